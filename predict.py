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
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import answers
from answers import Answer
from classifier import Classifier, newest_checkpoint, open_classifier
from find_photos import Photo, find_photos
from options import DEVICES, Parser, default_workers, existing, number, pick_device, run_cli
from photos import load_image
from preprocess import eval_transform


class Decoded(NamedTuple):
    photo: Photo
    tensor: Tensor | None = None  # (3, H, W), None where the photo could not be read
    image: object = None  # the PIL image, where a writer draws on it


def decode(photo: Photo, transform, keep_image: bool) -> Decoded:
    """Reads one photo; whatever is wrong with it becomes its `error`."""
    if photo.error:
        return Decoded(photo)
    try:
        image = load_image(photo.path, transform.min_size)
        return Decoded(photo, transform(image), image if keep_image else None)
    except Exception as error:  # a damaged file can make a decoder raise anything at all
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        return Decoded(photo._replace(error=reason))


def in_order(pool: ThreadPoolExecutor, function, items: Iterable, ahead: int) -> Iterator:
    """pool.map with at most `ahead` results waiting, so that memory does not grow with `items`."""
    waiting: deque = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            while waiting and (len(waiting) > ahead or waiting[0].done()):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def batches(items: Iterable, size: int) -> Iterator[list]:
    """Groups of `size`; the last one is shorter."""
    batch: list = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


@torch.inference_mode()
def probabilities(images: Tensor, forward, device: torch.device, tta: bool = False) -> Tensor:
    """Images (B, 3, H, W) -> probabilities (B, K) on the CPU; `tta`: mean of image and mirror."""
    images = images.to(device)
    result = forward(images).float().softmax(-1)
    if tta:
        result = (result + forward(images.flip(-1)).float().softmax(-1)) / 2
    return result.cpu()


def answer_batch(batch: Sequence[Decoded], predict, classes, topk, threshold) -> Iterator[Answer]:
    """Yields an Answer for each photo of `batch`, in its order."""
    readable = [item.tensor for item in batch if item.tensor is not None]
    rows = iter(predict(torch.stack(readable)) if readable else ())
    for photo, tensor, image in batch:
        if tensor is None:
            yield Answer(photo.path, error=photo.error)
            continue
        best = next(rows).topk(min(topk, len(classes)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        top = [(index, classes[index], probability) for index, probability in pairs]
        if top[0][2] != top[0][2]:
            yield Answer(photo.path, error="the model's output for this photo is not a number")
        else:
            yield Answer(photo.path, top, top[0][2] < threshold, photo.truth, image=image)


def default_settings(**changes) -> argparse.Namespace:
    """The settings that `answer_photos` reads, for other programs that predict."""
    settings = {"batch_size": 16, "workers": default_workers(), "tta": False}
    return argparse.Namespace(**settings | {"topk": 5, "threshold": 0.0} | changes)


def answer_photos(
    photos: Iterable[Photo], classifier, args, device, keep_image
) -> Iterator[Answer]:
    """Yields an Answer for each photo, in order, with no more than a few batches in memory."""
    transform = eval_transform(classifier.preprocess)
    read = partial(decode, transform=transform, keep_image=keep_image)
    answer = partial(
        answer_batch,
        predict=partial(probabilities, forward=classifier.forward, device=device, tta=args.tta),
        classes=classifier.classes,
        topk=args.topk,
        threshold=args.threshold,
    )
    groups = batches(photos, args.batch_size)
    first, second = next(groups, []), next(groups, [])
    groups = chain([first, second] if second else [first], groups)
    if device.type == "cpu" and second:
        yield from by_batch(groups, read, answer, args.workers)
        return
    with ThreadPoolExecutor(args.workers) as pool:  # decodes while the device computes
        decoded = in_order(pool, read, chain.from_iterable(groups), ahead=2 * args.batch_size)
        for batch in batches(decoded, args.batch_size):
            yield from answer(batch)


def by_batch(groups: Iterable[list[Photo]], read, answer, workers: int) -> Iterator[Answer]:
    """On a CPU: each thread decodes and computes whole batches, on its share of the cores.

    Two threads for decoding beside two of torch's would get into each other's way: torch's wait for
    one another in every layer (7 photos a second where 60 were possible, measured).
    """
    threads = torch.get_num_threads()
    share = max(1, threads // workers)

    def work(group: list[Photo]) -> list[Answer]:
        return list(answer([read(photo) for photo in group]))

    try:
        with ThreadPoolExecutor(
            workers, initializer=torch.set_num_threads, initargs=(share,)
        ) as pool:
            for found in in_order(pool, work, groups, ahead=workers):
                yield from found
    finally:
        torch.set_num_threads(threads)


def score_photos(classifier: Classifier, photos: Iterable[Photo], device) -> answers.Score:
    """The score over photos in class folders, for other programs."""
    score = answers.Score(classifier.classes)
    settings = default_settings(topk=1)
    for answer in answer_photos(photos, classifier, settings, device, keep_image=False):
        score.write(answer)
    return score


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
    writers: list = [answers.JsonLines() if args.json else answers.Table()]
    if args.csv:
        writers.append(answers.CsvFile(args.csv, min(args.topk, len(classifier.classes))))
    if args.save:
        writers.append(answers.AnnotatedPictures(args.save))
    if args.sort:
        writers.append(answers.SortedCopies(args.sort, classifier.classes))
    if args.explain:
        from photo_figure import Figures  # needs matplotlib

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
        help=f'below this probability the answer is "{answers.UNSURE}"',
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
    score = answers.Score(classifier.classes)
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
