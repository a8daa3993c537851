"""Which way of naming the splines that mattered tells the truth, by intervention.

    python -m benchmarks.spline_faithfulness --data flower_photos --weights FILE
    python -m benchmarks.spline_faithfulness --show

Trains the three models of MODELS on 300 of the photos, backbone frozen, unless --models holds them;
a file NAME.pth that is put there is measured as well, if --kinds names it. For each photo that the
model was not trained on, each method names 1 % of all splines as those that spoke most for the
predicted class. They are set to zero together, and the fall of the class's logit is measured. The
controls are 20 sets of as many splines drawn by chance, the same for all methods, and the splines
with the largest coefficients (times the weights that they pass through). `deviations` is how far
the fall lies above the mean of the 20, in their standard deviations.

Every photo, model and method appends one JSON line to --results; what stands there is not measured
again, so that a run can be stopped and started anew, and goes on with other methods or more photos.
Differences between methods are paired, photo by photo.
"""

import argparse
import hashlib
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.faithful.namings import NAMINGS, Model, falls
from benchmarks.faithful.workers import add_shared, share
from benchmarks.runs import append_line, provenance, read_lines, train
from explaining.attribution import NAMED
from explaining.kan_vit import survey
from imaging.decoding import load_image
from imaging.digests import TrainedOn
from imaging.preprocess import eval_transform
from predicting.classifier import Classifier, open_classifier
from predicting.inputs import Photo, find_photos

# The rates are larger than train.py's, so that splines soon carry weight. Of the last three blocks
# alone they train and are measured in less time: what comes before is computed once for each photo.
TRAINING = ("--epochs", "6", "--val-split", "0.25", "--batch-size", "16")
MODELS = {
    "full": ("--mlp", "kan", "--kan-blocks", "last:3", "--kan-lr-scale", "1"),
    "rank16": ("--mlp", "kan", "--kan-rank", "16", "--kan-blocks", "last:3", "--kan-lr-scale", "3"),
    "groups": ("--mlp", "gkan", "--kan-groups", "64", "--kan-lr-scale", "15"),
}
KEPT = 80  # photos of each class that a model may be trained or validated on
REFERENCES = 16  # photos for what a curve gives on average
DRAWS, CHANCE = 20, "chance"
SIMPLEST, LARGEST = "first order", "largest"  # that the others are compared with


def number_of(name: str) -> int:
    """Decides what is drawn for a photo, the same in every run."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=6).digest(), "big")


def make_models(args: argparse.Namespace) -> None:
    """Trains what --models does not hold yet, on KEPT photos of each class."""
    args.models.mkdir(parents=True, exist_ok=True)
    left_out = args.models / "left_out.txt"
    of_class: dict[int | None, list[str]] = {}
    for photo in find_photos([args.data]):
        folder, name = Path(photo.path).parts[-2:]
        of_class.setdefault(folder, []).append(f"{folder}/{name}")
    names = [n for some in of_class.values() for n in sorted(some, key=number_of)[KEPT:]]
    left_out.write_text("\n".join(names) + "\n", encoding="utf-8")
    for kind in args.kinds:
        file = args.models / f"{kind}.pth"
        if not file.exists():
            if kind not in MODELS:
                raise SystemExit(f"{file} does not exist; put it there, or leave {kind} out")
            shared = ["--data-path", args.data, "--weights", args.weights, "--exclude", left_out]
            train(kind, [*map(str, shared), *TRAINING, *MODELS[kind]], args.models / "runs", file)
            print(f"trained: {file}", flush=True)


# --- measuring ----------------------------------------------------------------------------------


class Photos:
    """The photos that a model was not trained on, in an order drawn once."""

    def __init__(self, folder: str, classifier: Classifier) -> None:
        found = [p for p in find_photos([folder], classifier.classes) if not p.error]
        before = TrainedOn(classifier.facts.get("trained_on", "")).among([p.path for p in found])
        self.transform = eval_transform(classifier.preprocess)
        self.new: dict[str, Photo] = {}
        self.seen: list[Photo] = []
        named = {str(Path(photo.path).relative_to(folder)): photo for photo in found}
        for (name, photo), seen in sorted(
            zip(named.items(), before, strict=True), key=lambda pair: number_of(pair[0][0])
        ):
            if seen:
                self.seen.append(photo)
            else:
                self.new[name] = photo

    def image(self, photo: Photo) -> Tensor:
        return self.transform(load_image(photo.path, self.transform.min_size))

    def references(self) -> Tensor:
        """Training photos (B, 3, S, S), for what a curve gives on average; the last, if none is."""
        photos = self.seen or list(self.new.values())[::-1]
        return torch.stack([self.image(photo) for photo in photos[:REFERENCES]])


def chosen(method: str, model: Model, image: Tensor, target: int, seed: int) -> list[Tensor]:
    """The set of splines that a method names; of CHANCE the sets that are drawn."""
    total = len(model.strengths)
    count = max(1, round(NAMED * total))
    if method != CHANCE:
        return [NAMINGS[method](model, image, target, count)]
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(total, generator=generator)[:count] for _ in range(DRAWS)]


def measure_photo(args, kind: str, name: str, photo: Photo, photos: Photos, model: Model, wanted):
    """Appends a line for each of the wanted methods: falls of the logit without what it names."""
    image = model.prepared(photos.image(photo)[None])[0]
    with torch.inference_mode():
        logits = model.model(image[None])[0]
    target, whole = int(logits.argmax()), float(logits.max())
    for method in wanted:
        start = time.process_time()
        sets = chosen(method, model, image, target, number_of(name))
        seconds = round(time.process_time() - start, 4)
        found = [round(fall, 6) for fall in falls(model, image, target, sets, whole)]
        about = {"key": key_of(kind, name, method), "model": kind, "photo": name, "method": method}
        append_line(args.results, about | provenance() | {"falls": found, "seconds": seconds})


def key_of(kind: str, name: str, method: str) -> str:
    return f"{kind} | {name} | {method}"


def about_model(kind: str, model: Model) -> dict:
    """How many splines a model has, and which share of a layer's output they make."""
    shares = sorted(survey(model.layers[name], x).share for name, x in model.inputs.items())
    return {
        "key": key_of(kind, "", "about"), "model": kind, "method": "about", "layers": len(shares),
        "splines": len(model.strengths), "share_median": shares[len(shares) // 2],
        "share_most": shares[-1], "layers_above": sum(share >= 0.02 for share in shares),
    }  # fmt: skip


def work(args: argparse.Namespace, worker: int) -> None:
    """Measures every `--workers`-th photo until none is left or the minutes are over."""
    torch.set_num_threads(args.threads)
    over = time.monotonic() + 60 * args.minutes
    done = {line["key"] for line in read_lines(args.results)}
    for kind in args.kinds:
        classifier = open_classifier(str(args.models / f"{kind}.pth"), None, torch.device("cpu"))
        photos = Photos(args.data, classifier)
        model = Model(classifier.model.requires_grad_(False), photos.references())
        if not worker and key_of(kind, "", "about") not in done:
            append_line(args.results, about_model(kind, model))
        for name in list(photos.new)[: args.photos][worker :: args.workers]:
            wanted = [m for m in args.methods if key_of(kind, name, m) not in done]
            if time.monotonic() > over:
                return
            measure_photo(args, kind, name, photos.new[name], photos, model, wanted)


# --- the tables ---------------------------------------------------------------------------------


def told(values: list[float], digits: int = 3) -> str:
    """Returns "mean ± standard error", or nothing where there is no value."""
    if len(values) < 2:
        return "".join(f"{value:.{digits}f}" for value in values)
    error = statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.fmean(values):.{digits}f} ± {error:.{digits}f}"


def beyond(fall: float, by_chance: list[float]) -> float:
    """How many standard deviations of the falls by chance a fall lies above their mean."""
    return (fall - statistics.fmean(by_chance)) / max(statistics.stdev(by_chance), 1e-12)


def gaps(falls_of: dict[str, float], others: dict[str, float]) -> str:
    """The mean paired difference of two methods' falls, by photo, in its standard errors, too."""
    both = [falls_of[photo] - others[photo] for photo in sorted(falls_of.keys() & others.keys())]
    if len(both) < 2 or not statistics.stdev(both):
        return ""
    error = statistics.stdev(both) / len(both) ** 0.5
    return f"{told(both)} ({statistics.fmean(both) / error:+.1f} SE)"


HEADS = (
    "named by", "logit falls by", "deviations beyond chance", "above first order",
    "above the largest", "processor seconds a photo", "photos",
)  # fmt: skip


def row(method: str, lines: dict[str, dict], by_method: dict[str, dict[str, dict]]) -> list[str]:
    """A method's cells; lines are by photo."""
    chance = by_method.get(CHANCE, {})
    if method == CHANCE:
        means = [statistics.fmean(line["falls"]) for line in lines.values()]
        spread = [statistics.stdev(line["falls"]) for line in lines.values()]
        return [method, told(means), f"(one is {told(spread)})", "", "", "", str(len(lines))]
    fall = {photo: line["falls"][0] for photo, line in lines.items()}
    far = [beyond(fall[photo], chance[photo]["falls"]) for photo in fall.keys() & chance.keys()]
    cells = [method, told(list(fall.values())), told(far, 1)]
    for base in (SIMPLEST, LARGEST):
        others = {photo: line["falls"][0] for photo, line in by_method.get(base, {}).items()}
        cells.append(gaps(fall, others) if base != method else "")
    seconds = statistics.median(line["seconds"] for line in lines.values())
    return [*cells, f"{seconds:.2f}", str(len(lines))]


def show(lines: list[dict]) -> str:
    """A table for each model, the largest fall first."""
    found: dict[str, dict[str, dict[str, dict]]] = {}
    heads: dict[str, str] = {}
    for line in lines:
        if line["method"] == "about":
            heads[line["model"]] = (
                f": {line['splines']:,} splines in {line['layers']} layers, whose outputs they "
                f"make {line['share_most']:.1%} of at most, {line['share_median']:.1%} in the "
                f"median; 2 % or more in {line['layers_above']}"
            )
            continue
        of_model = found.setdefault(line["model"], {})
        of_model.setdefault(line["method"], {})[line["photo"]] = line
    parts = []
    for model, by_method in found.items():
        rows = [row(name, of, by_method) for name, of in by_method.items()]
        rows.sort(key=lambda cells: -float(cells[1].split()[0]))
        table = [HEADS, ["---"] * len(HEADS), *rows]
        text = "\n".join(f"| {' | '.join(cells)} |" for cells in table)
        parts.append(f"{model}{heads.get(model, '')}\n\n{text}")
    return "\n\n".join(parts) or "nothing is measured yet"


# --- the command --------------------------------------------------------------------------------


def parse_args(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", metavar="DIR", help="a folder of classes")
    parser.add_argument("--kinds", nargs="+", default=list(MODELS), metavar="NAME",
                        help="files NAME.pth in --models; default: those it trains")  # fmt: skip
    parser.add_argument("--methods", nargs="+", choices=[*NAMINGS, CHANCE], metavar="NAME",
                        default=[CHANCE, *NAMINGS], help="default: all, and chance")  # fmt: skip
    parser.add_argument("--photos", type=int, default=200, help="of each model (default: 200)")
    add_shared(parser, Path(__file__))
    return parser.parse_args(words)


def main() -> None:
    share(parse_args(), "benchmarks.spline_faithfulness", make_models, work, show)


if __name__ == "__main__":
    main()
