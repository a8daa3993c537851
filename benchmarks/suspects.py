"""Whether photos with a wrong label stand first among the suspects of a run with folds.

    python -m benchmarks.suspects --weights FILE --data flower_photos --data trashnet

Of each data set 5 % of the labels are made wrong by chance, five times. Heads are trained in five
folds, each choosing its best epoch, as train.py --folds 5 does; suspects.py ranks the photos. Told
are the suspects as a share of all photos, how many of them were made wrong (the rest are hard
photos, and errors that were there before), and the share of all wrong ones that stand among the
suspects, and among the first tenth of the photos in their order. Beside it, in the same tenth: the
photos on which the confident joint alone counts a wrong label, and the ranking by margin.

Then a quarter of the photos is kept apart with its labels as they were, and heads are trained on
the rest: as it is, without all suspects, without the wrong ones among them, and with no label made
wrong. That tells whether to leave suspects out unseen.
"""

import numpy as np
import torch
from torch import Tensor

from benchmarks.calibration import of_folds
from benchmarks.pools import Pool, answers, asked_for, parser_for
from reporting.calibration import at_temperature, fit_temperature
from reporting.suspects import CLOSE, suspects
from system.terminal import table

DRAWS, WRONG, FIRST, APART = 5, 0.05, 0.1, 0.25


def with_wrong_labels(photos: Pool, rng: np.random.Generator) -> tuple[Pool, np.ndarray]:
    """Returns the photos with some labels changed to another class, and whose (N,)."""
    wrong = np.zeros(len(photos), bool)
    wrong[rng.choice(len(photos), round(WRONG * len(photos)), replace=False)] = True
    shift = torch.from_numpy(rng.integers(1, photos.classes, len(photos)) * wrong)
    labels = (photos.labels + shift) % photos.classes
    return Pool(photos.name, photos.features, labels, photos.classes), wrong


def out_of_fold(photos: Pool, seed: int) -> np.ndarray:
    """Returns calibrated probabilities (N, K), each of a head trained without the photo."""
    found, rows, _ = of_folds(photos, torch.arange(len(photos)), seed)
    likelihoods = np.empty_like(found)
    likelihoods[rows.numpy()] = found
    return at_temperature(likelihoods, fit_temperature(likelihoods, photos.labels.numpy()))


def off_diagonal(likelihoods: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the photos that are confidently of another class, the least likely label first."""
    own = likelihoods[np.arange(len(labels)), labels]
    limits = [
        own[labels == k].mean() if (labels == k).any() else 2 for k in range(likelihoods.shape[1])
    ]
    confident = likelihoods >= np.array(limits) - CLOSE
    likely = np.where(confident.sum(1) > 1, likelihoods.argmax(1), confident.argmax(1))
    found = np.flatnonzero(confident.any(1) & (likely != labels))
    return found[np.argsort(own[found], kind="stable")]


def by_margin(likelihoods: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns all photos, those first whose label falls furthest behind the best other class."""
    rows = np.arange(len(labels))
    others = likelihoods.copy()
    others[rows, labels] = 0
    return np.argsort(likelihoods[rows, labels] - others.max(1), kind="stable")


def ranks(photos: Pool, draw: int) -> list[float]:
    """Returns shares of one draw, as the first table has them."""
    changed, wrong = with_wrong_labels(photos, np.random.default_rng(draw))
    likelihoods, labels = out_of_fold(changed, draw), changed.labels.numpy()
    found = np.array([one.photo for one in suspects(likelihoods, labels)], int)
    tenth = round(FIRST * len(photos))

    def recalled(ranked: np.ndarray) -> float:
        return wrong[ranked[:tenth]].sum() / wrong.sum()

    return [
        len(found) / len(photos),
        wrong[found].mean(),
        wrong[found].sum() / wrong.sum(),
        recalled(found),
        recalled(off_diagonal(likelihoods, labels)),
        recalled(by_margin(likelihoods, labels)),
    ]


def worth(photos: Pool, draw: int) -> list[float]:
    """Returns accuracies on photos kept apart, as the second table has them."""
    rng = np.random.default_rng(draw)
    order = torch.from_numpy(rng.permutation(len(photos)))
    apart, rest = order.tensor_split([round(APART * len(photos))])
    known = Pool(photos.name, photos.features[rest], photos.labels[rest], photos.classes)
    changed, wrong = with_wrong_labels(known, rng)
    found = suspects(out_of_fold(changed, draw), changed.labels.numpy())
    suspected = np.isin(np.arange(len(rest)), [one.photo for one in found])

    def accuracy(labels: Tensor, left_out: np.ndarray) -> float:
        whole = photos.labels.clone()
        whole[rest] = labels
        pooled = Pool(photos.name, photos.features, whole, photos.classes)
        logits = answers(pooled, rest[torch.from_numpy(~left_out)], draw)[-1][apart]
        return float((logits.argmax(1) == photos.labels[apart]).float().mean())

    nothing = np.zeros(len(rest), bool)
    return [
        accuracy(changed.labels, nothing),
        accuracy(changed.labels, suspected),
        accuracy(changed.labels, suspected & wrong),
        accuracy(known.labels, nothing),
    ]


def show(head: tuple[str, ...], found: dict[str, np.ndarray]) -> None:
    """Prints the mean of each column, and its smallest and largest value; found: (draws, C)."""
    rows = [head]
    for name, values in found.items():
        ends = zip(values.mean(0), values.min(0), values.max(0), strict=True)
        rows.append((name, *(f"{mean:.3f} ({low:.2f}-{high:.2f})" for mean, low, high in ends)))
    print(*table(rows, "<" + ">" * (len(head) - 1)), "", sep="\n", flush=True)


def main() -> None:
    options = parser_for(__doc__).parse_args()
    pools = list(asked_for(options))
    heads = ("suspects", "precision", "recall", "in first tenth", "joint alone", "by margin")
    found = {one.name: np.array([ranks(one, d) for d in range(DRAWS)]) for one in pools}
    show(("photos", *heads), found)
    heads = ("as it is", "without suspects", "without wrong ones", "none wrong")
    found = {one.name: np.array([worth(one, d) for d in range(DRAWS)]) for one in pools}
    show(("accuracy", *heads), found)


if __name__ == "__main__":
    main()
