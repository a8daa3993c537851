"""Predicts photos with a trained model.

    python predict.py photo.jpg                          # the newest best.pth under weights/
    python predict.py photos/ --csv answers.csv          # a folder and all that lies below it
    find . -name '*.jpg' | python predict.py - --json    # a list on standard input
    python predict.py flower_photos/                     # class folders: accuracy, confusion matrix

Answers go to standard output as they come, in the order of the photos; progress and errors go to
standard error. Exit status: 0 all well, 1 some image failed, 2 wrong usage.
"""

import os
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from formats.finding import weights_name
from formats.known import UNKNOWN_SHARE
from predicting.classifier import newest_checkpoint, open_classifier, require_telling
from predicting.embedding import ENDINGS, FeatureFile
from predicting.inputs import class_folders, find_photos
from predicting.predictor import Predictor
from predicting.writers import (
    UNKNOWN,
    UNSURE,
    AnnotatedPictures,
    Answer,
    CsvFile,
    JsonLines,
    Score,
    SortedCopies,
    Table,
)
from pretrained import check_names
from system.devices import default_workers, pick_device
from system.flags import DEVICES, REQUIRED, Given, Section, existing, needs_flag, number, parse
from system.terminal import run_cli

TABLES = 8  # of more photos each gets a line
FILES = "csv", "embed"  # flags that write one; the other outputs are folders

PHOTOS, MODEL, OUTPUT = Section(""), Section("model"), Section("output")


@dataclass(frozen=True)
class Options(Given):
    """What a command line of predict.py says, a row for each flag: see `system.flags`."""

    inputs: list[str] = PHOTOS.row(
        REQUIRED,
        "photos, folders (with all that lies below), glob patterns; - reads a list from standard "
        "input, one path per line or NUL-separated",
        "inputs",
        kind="list",
        metavar="IMAGE|FOLDER|-",
    )
    weights: str | None = MODEL.row(
        None,
        "checkpoint of any format, what export.py wrote, or a name to download it by (default: the "
        "newest best.pth under weights/)",
        type=weights_name,
        metavar="FILE|NAME",
    )
    class_indices: str | None = MODEL.row(
        None,
        "index-to-name file for weights that hold no names (default: class_indices.json)",
        type=existing,
        metavar="FILE",
    )
    tta: bool = MODEL.row(False, "average over each photo and its mirror", kind="switch")
    device: str = MODEL.row("auto", DEVICES, metavar="NAME")
    batch_size: int = MODEL.row(16, "photos at a time", type=number(int, 1), metavar="N")
    workers: int = MODEL.row(
        default_workers(),
        "threads that decode photos and, on a CPU, predict them (default: cores, at most 8)",
        "--workers",
        "-j",
        type=number(int, 1, 256),
        metavar="N",
    )
    topk: int = OUTPUT.row(
        5,
        f"classes shown (of more than {TABLES} photos one, unless K is given)",
        type=number(int, 1),
        metavar="K",
    )
    threshold: float = OUTPUT.row(
        0.0,
        f'below this probability the answer is "{UNSURE}"',
        type=number(float, 0, 1),
        metavar="P",
    )
    unknown: float = OUTPUT.row(
        UNKNOWN_SHARE,
        f'the share of photos like those of the training set that may be called "{UNKNOWN}", so '
        "that unlike ones are (0: none); for models that train.py made",
        type=number(float, 0, 1),
        metavar="P",
    )
    json: bool = OUTPUT.row(False, "one JSON object per line, no tables", kind="switch")
    csv: str | None = OUTPUT.row(None, "also write a table for spreadsheets", metavar="FILE")
    embed: str | None = OUTPUT.row(
        None,
        "also write what the model's head reads of each photo, its features, a row a photo: as "
        ".npz (features, paths) or .csv",
        metavar="FILE",
    )
    save: str | None = OUTPUT.row(None, "also save each photo with its answer drawn", metavar="DIR")
    sort: str | None = OUTPUT.row(None, "also copy each photo into DIR/<its class>/", metavar="DIR")
    explain: str | None = OUTPUT.row(
        None,
        "also save a figure and a JSON file per photo: where the model looked, why",
        metavar="DIR",
    )
    explain_class: str | None = OUTPUT.row(
        None,
        "with --explain: explain this class (default: the predicted one)",
        metavar="NAME",
        needs=needs_flag("explain", "--explain DIR"),
    )

    def check(self) -> None:
        if self.embed and Path(self.embed).suffix.lower() not in ENDINGS:
            raise ValueError(
                f"--embed {self.embed} must end in {' or '.join(ENDINGS)}: readers go by it"
            )


def parse_args(argv: Sequence[str] | None = None) -> Options:
    return parse(
        Options,
        argv,
        prog="predict.py",
        description="Predict photos with a trained model.",
        epilog="Exit status: 0 all well, 1 some image failed, 2 wrong usage. "
        "Put -- before names that begin with a hyphen.",
    )


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


def make_writers(options: Options, predictor: Predictor, many: bool, weights: str) -> list:
    """The writers that the options ask for; output folders are created and tried here.

    many: so many photos that each gets a line: the best class, or as many as --topk says. weights:
    the file that the classifier is from.
    """
    classifier = predictor.classifier
    brief = (options.topk if "topk" in options.given else 1) if many else 0
    writers: list = [JsonLines() if options.json else Table(brief=brief)]
    if options.csv:
        writers.append(CsvFile(options.csv, min(options.topk, len(classifier.classes))))
    if options.embed:
        writers.append(FeatureFile(options.embed, classifier))
    if options.save:
        writers.append(AnnotatedPictures(options.save))
    if options.sort:
        writers.append(SortedCopies(options.sort, classifier.classes))
    if options.explain:
        from explaining.photo_figure import Figures  # needs matplotlib

        writers.append(Figures(options.explain, predictor, options.explain_class, weights))
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
        for writer in writers:
            writer.finish()
    return total, failed


def check_outputs(options: Options) -> None:
    """Raises ValueError where an output would lie among the photos: nothing is written there."""
    inputs = [Path(os.path.realpath(path)) for path in options.inputs]
    files: dict[str, str] = {}
    for flag in ("csv", "embed", "save", "sort", "explain"):
        if not getattr(options, flag):
            continue
        output = Path(os.path.realpath(getattr(options, flag)))
        if other := files.get(str(output)):
            both = "the same file" if flag in FILES else "a file and a folder of one name"
            raise ValueError(f"--{other} and --{flag} {getattr(options, flag)} would be {both}")
        if flag in FILES:
            files[str(output)] = flag
        if any(output.is_relative_to(path) or path.is_relative_to(output) for path in inputs):
            raise ValueError(
                f"--{flag} {getattr(options, flag)} lies among the photos to predict; "
                "name a place outside them"
            )


def main() -> int:
    options = parse_args()
    started = time.perf_counter()
    check_outputs(options)
    device = pick_device(options.device)
    weights = options.weights or newest_checkpoint()
    classifier = open_classifier(
        weights, options.class_indices, device, class_folders(options.inputs)
    )
    check_names(weights, classifier.classes, options.class_indices)
    if "unknown" in options.given:
        require_telling(options.unknown, {weights: classifier})
    predictor = Predictor(
        classifier,
        device=device,
        batch_size=options.batch_size,
        workers=options.workers,
        tta=options.tta,
        topk=options.topk,
        threshold=options.threshold,
        unknown=options.unknown,
    )
    score = Score(classifier.classes, classifier.trained_on)
    photos = find_photos(options.inputs, classifier.classes)
    first = list(islice(photos, TABLES + 1))
    writers = [*make_writers(options, predictor, len(first) > TABLES, weights), score]
    notes = sys.stderr if options.json else sys.stdout  # --json has standard output to itself
    title = f"{classifier.title} ({weights})"
    told = [*classifier.notes, *(note for writer in writers for note in writer.notes)]
    print(title, *told, sep="\n", end="\n\n", file=notes, flush=True)

    found = predictor.answers(
        chain(first, photos), keep_image=bool(options.save or options.explain)
    )
    with ExitStack() as stack:  # stops the threads and closes the files whatever happens
        for thing in (found, *writers):
            stack.enter_context(closing(thing))
        total, failed = write_all(found, writers)

    lines = score.lines()
    print(*lines, sep="\n", end="\n" * bool(lines), file=notes)
    if total > 1:
        seconds = time.perf_counter() - started
        print(f"{total} photos in {seconds:.1f} s, {failed} failed", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    run_cli(main)
