"""Which map of "where the model looked" tells the truth: a deletion and insertion test.

    python -m benchmarks.explain_faithfulness --data flower_photos --weights best.pth

For each photo and method, patches are ranked by the map of the predicted class. Deletion takes them
out of the photo, the most important first: a true map makes the class's probability fall at once,
so the mean probability along the way is low. Insertion puts them into an empty photo in the same
order: there it is high (RISE, arXiv 1806.07421). Patches that are out show the mean colour, or the
photo blurred beyond recognition; both are given, since either is a choice. A random order is the
control. The score is insertion minus deletion, the mean of both ways, with its standard error.
"""

import argparse
import os
import platform
import random
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from explaining.attention_maps import METHODS
from imaging.decoding import load_image
from imaging.preprocess import eval_transform
from predicting.classifier import open_classifier
from predicting.inputs import find_photos
from system.devices import pick_device


def random_order(model, images: Tensor, targets: Tensor) -> Tensor:
    patches = model.patch_embed.num_patches
    return torch.rand(len(images), patches, device=images.device)


def blurred(image: Tensor, strength: int = 8) -> Tensor:
    """The photo (3, S, S) with only what a thumbnail of `strength` pixels keeps of it."""
    small = torch.nn.functional.interpolate(image[None], size=strength, mode="area")
    return torch.nn.functional.interpolate(small, size=image.shape[-1], mode="bicubic")[0]


def mixtures(image: Tensor, other: Tensor, order: Tensor, steps: int) -> Tensor:
    """`image` with ever more patches, in `order`, taken from `other`: (steps + 1, 3, S, S)."""
    side = round(len(order) ** 0.5)
    size = image.shape[-1] // side
    result = []
    for step in range(steps + 1):
        replaced = torch.zeros(len(order), dtype=torch.bool, device=image.device)
        replaced[order[: round(len(order) * step / steps)]] = True
        mask = replaced.view(side, side).repeat_interleave(size, 0).repeat_interleave(size, 1)
        result.append(torch.where(mask, other, image))
    return torch.stack(result)


@torch.inference_mode()
def mean_probability(model, images: Tensor, target: int) -> float:
    """Of the class along the way: the area under the curve, by the trapezoid rule."""
    values = model(images).softmax(-1)[:, target]
    return float(torch.trapezoid(values) / (len(values) - 1))


def measure(model, image: Tensor, method: Callable, steps: int) -> tuple[list[float], float]:
    """Deletion and insertion with each kind of empty photo, and the method's seconds."""
    with torch.inference_mode():
        target = model(image[None]).argmax(1)
    target = target.clone()
    start = time.perf_counter()
    relevance = method(model, image[None], target)[0]
    seconds = time.perf_counter() - start
    order = relevance.argsort(descending=True)
    scores = []
    for empty in (torch.zeros_like(image), blurred(image)):
        scores.append(mean_probability(model, mixtures(image, empty, order, steps), int(target)))
        scores.append(mean_probability(model, mixtures(empty, image, order, steps), int(target)))
    return scores, seconds


def line(name: str, rows: list[tuple[list[float], float]]) -> str:
    columns = [
        statistics.mean(values) for values in zip(*(scores for scores, _ in rows), strict=True)
    ]
    gains = [(s[1] - s[0] + s[3] - s[2]) / 2 for s, _ in rows]
    error = statistics.stdev(gains) / len(gains) ** 0.5
    seconds = statistics.median(seconds for _, seconds in rows)
    return (
        f"{name:28s}  {columns[0]:.3f}  {columns[1]:.3f}   {columns[2]:.3f}  {columns[3]:.3f}   "
        f"{statistics.mean(gains):+.3f} ± {error:.3f}   {seconds:.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, metavar="DIR", help="any folder of photos")
    parser.add_argument("--weights", required=True, metavar="FILE")
    parser.add_argument("--photos", type=int, default=50)
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    device = pick_device(options.device)
    classifier = open_classifier(options.weights, None, device)
    transform = eval_transform(classifier.preprocess)
    paths = [photo.path for photo in find_photos([options.data])]
    paths = random.Random(0).sample(paths, min(options.photos, len(paths)))
    images = [transform(load_image(path, transform.min_size)).to(device) for path in paths]
    torch.manual_seed(0)
    print(f"{platform.platform()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
          f"torch {torch.__version__}")  # fmt: skip
    print(f"{classifier.title}, {len(images)} photos, {options.steps} steps")
    print("                               mean colour     blurred        insertion")
    print("method                        delete  insert  delete  insert  - deletion        s/photo")
    for name, method in {**METHODS, "random order": random_order}.items():
        rows = [measure(classifier.model, image, method, options.steps) for image in images]
        print(line(name, rows), flush=True)


if __name__ == "__main__":
    main()
