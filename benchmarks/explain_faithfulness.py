"""Which map of "where the model looked" tells the truth, by intervention.

    python -m benchmarks.explain_faithfulness --data flower_photos trashnet clothing/train \\
        --weights FILE --workers 2              # trains a ViT and a KAN-ViT a set, then measures
    python -m benchmarks.explain_faithfulness --show

For each photo that the model was not trained on, and each method, patches are ranked by the map of
the predicted class. Deletion takes them out, the most important first: a true map makes the class's
probability fall at once, so the mean probability along the way is low. Insertion puts them into an
empty photo in the same order: there it is high (RISE, arXiv 1806.07421). What is out shows the mean
colour or the photo blurred beyond recognition; both are given, since either is a choice. The score
is insertion minus deletion, the mean of both. SaCo (arXiv 2404.01415) takes ten groups of patches
out, one at a time, and asks whether they matter in the proportion that the map claims. Pointing:
the middle of a photo of another class is pasted in, at 3/7 of the width and a place drawn by
chance, and the map of its class should lie in its box. A random map is the control.

Every photo and method appends one JSON line to --results; lines that are there are not measured
again, so that a run can be stopped and started anew. Differences are paired, photo by photo, and
are to gradient-weighted attention, which served before this was measured.
"""

import argparse
import hashlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.faithful.measures import curves, paste, pointing
from benchmarks.faithful.workers import add_shared, share
from benchmarks.runs import append_line, provenance, read_lines, train
from explaining.methods import METHODS, NEXT_BEST
from imaging.decoding import load_image
from imaging.digests import TrainedOn
from imaging.preprocess import eval_transform
from predicting.classifier import Classifier, open_classifier
from predicting.inputs import find_photos

MODELS = {
    "ViT": ("--epochs", "10"),
    "KAN-ViT": ("--epochs", "5", "--mlp", "gkan"),
}
RANDOM = "random"
CURVES = ("deletion_mean", "insertion_mean", "deletion_blur", "insertion_blur")


@dataclass(frozen=True)
class Task:
    """One photo and one model: all methods are measured together."""

    data: str
    model: str
    photo: str

    def key(self, method: str) -> str:
        return f"{self.data} | {self.model} | {self.photo} | {method}"

    @property
    def seed(self) -> int:
        """Decides what is drawn for a photo, the same in every run."""
        return int.from_bytes(hashlib.blake2b(self.photo.encode(), digest_size=6).digest(), "big")


def random_map(model, images: Tensor, targets: Tensor) -> Tensor:
    return torch.rand(len(images), model.patch_embed.num_patches, device=images.device)


def methods(args: argparse.Namespace) -> dict[str, Callable]:
    every = METHODS | {RANDOM: random_map}
    return {name: every[name] for name in args.methods or every}


def name_of(folder: str) -> str:
    """What a data set is called: its folder, or the one above a folder of a split."""
    path = Path(folder).resolve()
    return path.parent.name if path.name in ("train", "val", "test") else path.name


def make_models(args: argparse.Namespace) -> None:
    """Trains what --models does not hold yet."""
    for folder in args.data:
        for kind, flags in MODELS.items():
            file = args.models / f"{name_of(folder)}-{kind}.pth"
            if not file.exists() and kind in args.kinds:
                shared = ["--data-path", folder, "--weights", args.weights, "--val-split", "0.6"]
                train(file.stem, [*shared, *flags], args.models / "runs", keep=file)
                print(f"trained: {file}", flush=True)


# --- measuring ----------------------------------------------------------------------------------


class Photos:
    """The photos of a data set that a model was not trained on, in an order drawn once."""

    def __init__(self, folder: str, classifier: Classifier, device: str) -> None:
        found = list(find_photos([folder], classifier.classes))
        before = TrainedOn(classifier.facts.get("trained_on", "")).among([p.path for p in found])
        found = [p for p, seen in zip(found, before, strict=True) if not seen]
        found = [photo for photo in found if photo.truth is not None and not photo.error]
        self.paths = {str(Path(p.path).relative_to(folder)): p for p in found}
        self.names = sorted(self.paths, key=lambda name: Task("", "", name).seed)
        self.transform, self.device = eval_transform(classifier.preprocess), device

    def image(self, name: str) -> Tensor:
        path = self.paths[name].path
        return self.transform(load_image(path, self.transform.min_size)).to(self.device)

    def other(self, name: str) -> str:
        """A photo of another class than that of `name`, the next in the order."""
        start, truth = self.names.index(name), self.paths[name].truth
        following = self.names[start + 1 :] + self.names[:start]
        return next(other for other in following if self.paths[other].truth != truth)


def measure(model, method: Callable, image: Tensor, target: int, pasted, label: int, steps: int):
    """Returns all figures of one method for one photo."""
    torch.manual_seed(0)
    start = time.perf_counter()
    relevance = method(model, image[None], torch.tensor([target], device=image.device))[0]
    seconds = time.perf_counter() - start
    found = curves(model, image, target, relevance, steps)
    of_object = method(model, pasted.image[None], torch.tensor([label], device=image.device))[0]
    return found | pointing(of_object, pasted) | {"seconds": round(seconds, 4)}


def work(args: argparse.Namespace, worker: int) -> None:
    """Measures every `--workers`-th photo until none is left or the minutes are over."""
    torch.set_num_threads(args.threads)
    over, wanted = time.monotonic() + 60 * args.minutes, methods(args)
    done = {line["key"] for line in read_lines(args.results)}
    for folder in args.data:
        for kind in args.kinds:
            file = args.models / f"{name_of(folder)}-{kind}.pth"
            classifier = open_classifier(str(file), None, torch.device(args.device))
            photos = Photos(folder, classifier, args.device)
            for photo in photos.names[: args.photos][worker :: args.workers]:
                task = Task(name_of(folder), kind, photo)
                left = {n: m for n, m in wanted.items() if task.key(n) not in done}
                if time.monotonic() > over:
                    return
                if left:
                    measure_photo(args, task, photos, classifier.model, left)


def measure_photo(args, task: Task, photos: Photos, model, wanted: dict[str, Callable]) -> None:
    """Appends a line for each of the methods."""
    image, other = photos.image(task.photo), photos.other(task.photo)
    generator = torch.Generator().manual_seed(task.seed)
    pasted = paste(image, photos.image(other), generator)
    with torch.inference_mode():
        target = int(model(image[None]).argmax())
    label = photos.paths[other].truth
    for name, method in wanted.items():
        found = measure(model, method, image, target, pasted, label, args.steps)
        found = {key: round(value, 6) for key, value in found.items()}
        about = {"key": task.key(name), "data": task.data, "model": task.model}
        about |= {"photo": task.photo, "method": name, "steps": args.steps}
        append_line(args.results, about | provenance() | found)


# --- the tables ---------------------------------------------------------------------------------


def score(line: dict) -> float:
    """Insertion minus deletion, the mean of both fillers."""
    down, up, down_blurred, up_blurred = (line[name] for name in CURVES)
    return (up - down + up_blurred - down_blurred) / 2


def mean_and_error(values: list[float]) -> tuple[float, float]:
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return statistics.fmean(values), error


def row(name: str, lines: dict[str, dict], base: dict[str, dict]) -> list[str]:
    """A method's cells; lines and base (those of NEXT_BEST) are by photo."""
    every = list(lines.values())
    cells = [name] + [f"{statistics.fmean(line[c] for line in every):.3f}" for c in CURVES]
    for values in ([score(line) for line in every], [line["saco"] for line in every]):
        mean, error = mean_and_error(values)
        cells.append(f"{mean:.3f} ± {error:.3f}")
    both = sorted(lines.keys() & base.keys())
    for measure_of in (score, lambda line: line["inside"]):
        gaps = [measure_of(lines[photo]) - measure_of(base[photo]) for photo in both]
        mean, error = mean_and_error(gaps) if gaps else (0.0, 0.0)
        times = f" ({mean / error:+.1f} SE)" if error else ""
        cells.append("" if name == NEXT_BEST else f"{mean:+.3f} ± {error:.3f}{times}")
    for name in ("hit", "inside"):
        cells.append(f"{statistics.fmean(line[name] for line in every):.3f}")
    seconds = statistics.median(line["seconds"] for line in every)
    return [*cells, f"{seconds:.2f}", str(len(every))]


HEADS = (
    "method", "deletion (mean colour)", "insertion", "deletion (blurred)", "insertion", "score",
    "SaCo", "score: above gradient-weighted", "inside: above gradient-weighted", "hit", "inside",
    "s a photo", "photos",
)  # fmt: skip


def show(lines: list[dict]) -> str:
    """A table for each data set and model, the best score first."""
    found: dict[tuple, dict[str, dict[str, dict]]] = {}
    for line in lines:
        methods_of = found.setdefault((line["data"], line["model"]), {})
        methods_of.setdefault(line["method"], {})[line["photo"]] = line
    parts = []
    for (data, model), by_method in found.items():
        rows = [row(name, of, by_method.get(NEXT_BEST, {})) for name, of in by_method.items()]
        rows.sort(key=lambda cells: -float(cells[5].split()[0]))
        table = [HEADS, ["---"] * len(HEADS), *rows]
        parts.append(f"{data}, {model}\n\n" + "\n".join(f"| {' | '.join(r)} |" for r in table))
    return "\n\n".join([*parts, overview(found)]) if parts else "nothing is measured yet"


def overview(found: dict[tuple, dict[str, dict[str, dict]]]) -> str:
    """Every method's score for each data set and model, and what it is above NEXT_BEST there."""
    names = list(dict.fromkeys(name for by_method in found.values() for name in by_method))
    rows = []
    for name in names:
        cells, every = [name], []
        for by_method in found.values():
            lines, base = by_method.get(name, {}), by_method.get(NEXT_BEST, {})
            every += lines.values()
            both = sorted(lines.keys() & base.keys())
            gaps = [score(lines[photo]) - score(base[photo]) for photo in both]
            mean, error = mean_and_error(gaps) if gaps else (0.0, 0.0)
            value = f"{statistics.fmean(map(score, lines.values())):.3f}" if lines else ""
            cells.append(f"{value} ({mean / error:+.1f} SE)" if error else value)
        means = (statistics.fmean(line[key] for line in every) for key in ("saco", "hit", "inside"))
        rows.append([*cells, *(f"{mean:.3f}" for mean in means), str(len(every))])
    rows.sort(key=lambda cells: cells[1], reverse=True)
    heads = ["score", *(f"{data}, {model}" for data, model in found), "SaCo", "hit", "inside", "n"]
    table = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in table)


# --- the command --------------------------------------------------------------------------------


def parse_args(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", default=[], metavar="DIR", help="folders of classes")
    parser.add_argument("--kinds", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--methods", nargs="+", choices=[*METHODS, RANDOM], metavar="NAME",
                        help="default: all")  # fmt: skip
    parser.add_argument("--photos", type=int, default=200, help="of each set (default: 200)")
    parser.add_argument("--steps", type=int, default=14, help="patches come in so many parts")
    parser.add_argument("--device", default="cpu")
    add_shared(parser, Path(__file__))
    return parser.parse_args(words)


def main() -> None:
    share(parse_args(), "benchmarks.explain_faithfulness", make_models, work, show)


if __name__ == "__main__":
    main()
