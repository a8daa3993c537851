"""How close predict.py comes to the bare model, how soon it answers, how much memory it takes.

    python -m benchmarks.predict_throughput --data flower_photos --weights best.pth

Prints photos per second of the model alone (the same batch again and again, already decoded) and of
predict.py's whole way from files to answers, in turns; seconds from the command to the answer for
one photo; and the peak memory for lists of growing length. --parts picks some of the three.
"""

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from itertools import cycle, islice
from pathlib import Path

import torch

import predict
from predicting import predictor
from predicting.classifier import open_classifier
from predicting.inputs import Photo, find_photos
from predicting.writers import CsvFile, JsonLines
from system.devices import default_workers, pick_device

PROGRAM = str(Path(predict.__file__).resolve())


def bare_rate(model: predictor.Predictor, images: torch.Tensor, photos: int) -> float:
    """Photos per second of the model alone."""
    start = time.perf_counter()
    for _ in range(0, photos, len(images)):
        model.see(images)
    return photos / (time.perf_counter() - start)


def predict_rate(model: predictor.Predictor, photos: list[Photo]) -> float:
    """Photos per second from files to a JSON line each and a CSV file."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        writers = [JsonLines(nowhere), CsvFile(os.devnull, model.topk)]
        start = time.perf_counter()
        total, failed = predict.write_all(model.answers(photos), writers)
    assert (total, failed) == (len(photos), 0)
    return total / (time.perf_counter() - start)


def throughput(options: argparse.Namespace, photos: list[Photo]) -> None:
    device = pick_device(options.device)
    classifier = open_classifier(options.weights, None, device)
    model = predictor.Predictor(
        classifier, device=device, batch_size=options.batch_size, workers=options.workers
    )
    size = classifier.preprocess.img_size
    images = torch.rand(options.batch_size, 3, size, size)
    bare, whole = [], []
    for turn in range(options.repeats + 1):
        rates = (
            bare_rate(model, images, len(photos)),
            predict_rate(model, photos),
        )
        if turn:  # the first warms caches and threads
            bare.append(rates[0])
            whole.append(rates[1])
    ratios = [w / b for w, b in zip(whole, bare, strict=True)]
    print(f"{classifier.title}: {len(photos)} photos, batch {options.batch_size}, {device}")
    for name, values in (("model alone", bare), ("predict.py", whole), ("ratio", ratios)):
        low, middle, high = min(values), statistics.median(values), max(values)
        print(f"  {name:12s} {middle:8.2f}  ({low:.2f} to {high:.2f}, {len(values)} turns)")


def run_predict(options: argparse.Namespace, paths: list[str]) -> tuple[float, int]:
    """Seconds and peak memory (KiB) of predict.py in a process of its own, paths on its input."""
    program = [sys.executable, PROGRAM, "-", "--json", "--weights"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    start = time.perf_counter()
    subprocess.run(
        [*program, options.weights, "--device", options.device],
        input="\n".join(paths).encode(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    seconds = time.perf_counter() - start
    return seconds, max(before, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)


def first_answer(options: argparse.Namespace, photos: list[Photo]) -> None:
    times = [run_predict(options, [photos[n].path])[0] for n in range(options.repeats + 1)][1:]
    print(f"one photo from the command line: {statistics.median(times):.2f} s "
          f"({min(times):.2f} to {max(times):.2f}, {len(times)} runs)")  # fmt: skip


def memory(options: argparse.Namespace, photos: list[Photo]) -> None:
    for count in (100, 1000, options.most):
        paths = [photo.path for photo in islice(cycle(photos), count)]
        seconds, peak = run_predict(options, paths)  # the peak of all so far: lengths must grow
        print(f"{count} photos: {seconds:.0f} s, peak memory {peak / 1024:.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, metavar="DIR", help="any folder of photos")
    parser.add_argument("--weights", required=True, metavar="FILE")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=default_workers())
    parser.add_argument("--photos", type=int, default=320, help="photos per turn (320)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--most", type=int, default=4000, help="the longest list (4000)")
    parser.add_argument(
        "--parts", nargs="+", default=["throughput", "start", "memory"], metavar="PART"
    )
    options = parser.parse_args()
    threads = torch.get_num_threads()
    print(f"{platform.platform()}, {os.cpu_count()} cores, {threads} threads, "
          f"Python {platform.python_version()}, torch {torch.__version__}")  # fmt: skip
    photos = list(islice(cycle(list(find_photos([options.data]))), options.photos))
    parts = {"throughput": throughput, "start": first_answer, "memory": memory}
    for part in options.parts:
        parts[part](options, photos)


if __name__ == "__main__":
    main()
