"""Whether the 95 % interval beside an accuracy holds what it says.

    python -m benchmarks.intervals --weights FILE --data flower_photos --data trashnet

From each data set, 300 times: 200 photos train a head, 100 others are judged, and the accuracy on
all that remain should lie in the interval. Three ways to draw: photo by photo; each photo in five
near copies, which are drawn together; photos that look alike (neighbours in their class, one to
eight) drawn together. For the latter two, the interval with the effective number of photos stands
beside the one that takes every photo for an independent one.

What remains is finite, so that its accuracy is off by chance as well: of 1,000 photos 700 remain,
the difference of both accuracies has 1 + 100 / 700 times the variance of the one judged, and an
exact interval would hold it in 93.3 %, not in 95 % ("expected").
"""

import math
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from benchmarks.pools import Pool, answers, asked_for, parser_for
from reporting.intervals import Z, accuracy_of, design_effect
from system.terminal import table

DRAWS, TRAIN, TEST, COPIES, LARGEST = 300, 200, 100, 5, 8


def copied(photos: Pool, seed: int = 0) -> tuple[Pool, np.ndarray]:
    """Returns the photos, each five times with a little noise, and their groups."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.arange(len(photos)).repeat_interleave(COPIES)
    noise = torch.randn(len(rows), photos.features.shape[1], generator=generator)
    spread = 0.1 * photos.features.std(0)
    features = photos.features[rows] + noise * spread
    made = Pool(photos.name, features, photos.labels[rows], photos.classes)
    return made, np.arange(len(rows)) // COPIES


def alike(photos: Pool, seed: int = 0) -> np.ndarray:
    """Returns each photo's group: a photo and its nearest neighbours of its class, one to eight."""
    rng = np.random.default_rng(seed)
    features = torch.nn.functional.normalize(photos.features, dim=1)
    groups, left = np.full(len(photos), -1), set(range(len(photos)))
    for first in rng.permutation(len(photos)).tolist():
        if first not in left:
            continue
        same = [i for i in left if photos.labels[i] == photos.labels[first]]
        near = (features[same] @ features[first]).argsort(descending=True)
        for i in near[: rng.integers(1, LARGEST + 1)].tolist():
            groups[same[i]] = first
            left.discard(same[i])
    return groups


def draw(groups: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Returns photos to train on, to judge, and the rest, by index: groups are kept whole."""
    order = rng.permutation(np.unique(groups))
    members = [np.flatnonzero(groups == name) for name in order]
    counts = np.cumsum([len(one) for one in members])
    first, second = np.searchsorted(counts, (TRAIN, TRAIN + TEST)) + 1
    parts = members[:first], members[first:second], members[second:]
    return tuple(torch.from_numpy(np.concatenate(part)) for part in parts)


def row(photos: Pool, groups: np.ndarray, title: str, draws: int) -> tuple[str, ...]:
    """Returns a line of the table: in how many draws the interval holds the rest's accuracy."""
    rng, held, plain, effects, ratio = np.random.default_rng(0), 0, 0, [], []
    for number in range(draws):
        trained, judged, rest = draw(groups, rng)
        right = (answers(photos, trained, number)[-1].argmax(1) == photos.labels).numpy()
        truth, names = right[rest].mean(), groups[judged].astype(str)
        told, bare = accuracy_of(right[judged], names), accuracy_of(right[judged])
        held += told.low <= truth <= told.high
        plain += bare.low <= truth <= bare.high
        effects.append(design_effect(right[judged].astype(float), names))
        ratio.append(len(judged) / len(rest))
    expected = 2 * NormalDist().cdf(Z / math.sqrt(1 + np.mean(ratio))) - 1
    shares = (f"{100 * count / draws:.1f}" for count in (held, plain))
    return photos.name, title, *shares, f"{100 * expected:.1f}", f"{np.mean(effects):.2f}"


def main() -> None:
    parser = parser_for(__doc__)
    parser.add_argument("--draws", type=int, default=DRAWS)
    options = parser.parse_args()
    rows = [("photos", "drawn", "held, %", "groups ignored, %", "expected, %", "design effect")]
    for photos in asked_for(options):
        copies, names = copied(photos)
        ways = (
            (photos, np.arange(len(photos)), "one by one"),
            (copies, names, "five copies together"),
            (photos, alike(photos), "alike ones together"),
        )
        for some, groups, title in ways:
            rows.append(row(some, groups, title, options.draws))
            print(*rows[-1], flush=True)
    print(*table(rows, "<<>>>>"), sep="\n")


if __name__ == "__main__":
    main()
