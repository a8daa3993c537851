"""Predicts photos with a trained model.

    python predict.py photo.jpg                          # the newest best.pth under weights/
    python predict.py photos/ --csv answers.csv          # a folder and all that lies below it
    find . -name '*.jpg' | python predict.py - --json    # a list on standard input
    python predict.py flower_photos/                     # class folders: accuracy, confusion matrix

Answers go to standard output as they come, in the order of the photos; progress and errors go to
standard error. Exit status: 0 all well, 1 some image failed, 2 wrong usage.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import torch

from predicting.classifier import Classifier, newest_checkpoint, open_classifier
from predicting.inputs import find_photos
from predicting.predictor import answer_photos
from predicting.writers import (
    UNSURE,
    AnnotatedPictures,
    Answer,
    CsvFile,
    JsonLines,
    Score,
    SortedCopies,
    Table,
)
from system.devices import default_workers, pick_device
from system.flags import DEVICES, Parser, existing, number
from system.terminal import run_cli


def progress_bar():
    """A counter on standard error, from the first second on, so that a single photo shows none."""
    from tqdm import tqdm

    watched = sys.stderr.isatty()
    return tqdm(
        unit=" photos",
        file=sys.stderr,
        delay=1,
        mininterval=0.2 if watched else 10,  # in a log a line every ten seconds is enough
        dynamic_ncols=True,
        disable=watched and sys.stdout.isatty(),  # there the answers are the progress
    )


def make_writers(args: argparse.Namespace, classifier: Classifier, device: torch.device) -> list:
    """The writers that the options ask for; output folders are created and tried here."""
    writers: list = [JsonLines() if args.json else Table()]
    if args.csv:
        writers.append(CsvFile(args.csv, min(args.topk, len(classifier.classes))))
    if args.save:
        writers.append(AnnotatedPictures(args.save))
    if args.sort:
        writers.append(SortedCopies(args.sort, classifier.classes))
    if args.explain:
        from explaining.photo_figure import Figures  # needs matplotlib

        writers.append(Figures(args.explain, classifier, args.explain_class, device))
    return writers


def write_all(found: Iterable[Answer], writers: Sequence) -> tuple[int, int]:
    """Hands each answer to each writer; returns how many photos there were, how many failed."""
    total = failed = 0
    with progress_bar() as bar:
        for answer in found:
            for writer in writers:
                writer.write(answer)
            bar.update()
            total += 1
            failed += answer.error is not None
    return total, failed


def check_outputs(args: argparse.Namespace) -> None:
    """Raises ValueError where an output would lie among the photos: nothing is written there."""
    inputs = [Path(os.path.realpath(path)) for path in args.inputs]
    table = args.csv and os.path.realpath(args.csv)
    for flag in ("save", "sort", "explain", "csv"):
        if not getattr(args, flag):
            continue
        output = Path(os.path.realpath(getattr(args, flag)))
        if flag != "csv" and table == str(output):
            raise ValueError(f"--csv {args.csv} would be a file and --{flag} a folder there")
        if any(output.is_relative_to(path) or path.is_relative_to(output) for path in inputs):
            raise ValueError(
                f"--{flag} {getattr(args, flag)} lies among the photos to predict; "
                "name a place outside them"
            )


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="predict.py",
        description="Predict photos with a trained model.",
        epilog="Exit status: 0 all well, 1 some image failed, 2 wrong usage. "
        "Put -- before names that begin with a hyphen.",
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="IMAGE|FOLDER|-",
        help="photos, folders (with all that lies below), glob patterns; - reads a list from "
        "standard input, one path per line or NUL-separated",
    )
    model = parser.add_argument_group("model")
    model.add_argument(
        "--weights",
        type=existing,
        metavar="FILE",
        help="checkpoint of any format, or what export.py wrote (default: the newest best.pth "
        "under weights/)",
    )
    model.add_argument(
        "--class-indices",
        type=existing,
        metavar="FILE",
        help="index-to-name file for weights that hold no names (default: class_indices.json)",
    )
    model.add_argument("--tta", action="store_true", help="average over each photo and its mirror")
    model.add_argument("--device", default="auto", metavar="NAME", help=DEVICES)
    model.add_argument(
        "--batch-size", type=number(int, 1), default=16, metavar="N", help="photos at a time"
    )
    model.add_argument(
        "--workers",
        "-j",
        type=number(int, 1, 256),
        default=default_workers(),
        metavar="N",
        help="threads that decode photos and, on a CPU, predict them (default: cores, at most 8)",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--topk", type=number(int, 1), default=5, metavar="K", help="classes shown")
    output.add_argument(
        "--threshold",
        type=number(float, 0, 1),
        default=0.0,
        metavar="P",
        help=f'below this probability the answer is "{UNSURE}"',
    )
    output.add_argument("--json", action="store_true", help="one JSON object per line, no tables")
    output.add_argument("--csv", metavar="FILE", help="also write a table for spreadsheets")
    output.add_argument("--save", metavar="DIR", help="also save each photo with its answer drawn")
    output.add_argument("--sort", metavar="DIR", help="also copy each photo into DIR/<its class>/")
    output.add_argument(
        "--explain", metavar="DIR", help="also save a figure per photo: where the model looked, why"
    )
    output.add_argument(
        "--explain-class",
        metavar="NAME",
        help="with --explain: explain this class (default: the predicted one)",
    )
    args = parser.parse_args(argv)
    if args.explain_class and not args.explain:
        parser.error("--explain-class needs --explain DIR")
    return args


def main() -> int:
    args = parse_args()
    started = time.perf_counter()
    check_outputs(args)
    device = pick_device(args.device)
    weights = args.weights or newest_checkpoint()
    classifier = open_classifier(weights, args.class_indices, device)
    score = Score(classifier.classes)
    writers = [*make_writers(args, classifier, device), score]
    notes = sys.stderr if args.json else sys.stdout  # with --json standard output holds JSON alone
    print(f"{classifier.title} ({weights})", end="\n\n", file=notes, flush=True)

    photos = find_photos(args.inputs, classifier.classes)
    found = answer_photos(photos, classifier, args, device, keep_image=args.save or args.explain)
    with ExitStack() as stack:  # stops the threads and closes the files whatever happens
        for thing in (found, *writers):
            stack.enter_context(closing(thing))
        total, failed = write_all(found, writers)

    print(*score.lines(), sep="\n", end="\n" if score.total else "", file=notes)
    if total > 1:
        seconds = time.perf_counter() - started
        print(f"{total} photos in {seconds:.1f} s, {failed} failed", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    run_cli(main)
