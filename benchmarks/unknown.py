"""Whether a photo unlike those that a model was trained on is told from fresh ones of their kind.

    python -m benchmarks.unknown --weights FILE --data flower_photos --data trashnet --data ...

Of each data set 200 photos train a head on a frozen model and 50 more validate it, five times; the
rest of the set are fresh photos, and all photos of each other set are unlike ones. Scores: ours
(`formats.known`, as train.py fits it where the head alone is trained, and as predict.py asks it),
the largest probability (at the temperature that train.py fits), the energy of the logits (Liu et
al. 2020) and the Mahalanobis distance from the nearest class (Lee et al. 2018; one covariance,
Ledoit-Wolf). AUROC is the chance that an unlike photo has the higher score than a fresh one: 0.5
for a coin, 1 for always. "called" are the photos that predict.py calls unknown at its default.

In a second round of each split one class, drawn, is left out of training: its photos are unlike
those of the others, and fresh in everything else.
"""

import numpy as np
import torch
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score
from torch import Tensor

from benchmarks.pools import Pool, answers, asked_for, best_epoch, parser_for, probabilities
from formats.known import UNKNOWN_SHARE, Known
from reporting.calibration import at_temperature, fit_temperature
from system.terminal import table

SPLITS, TRAINED, JUDGED = 5, 200, 50
SCORES = "ours", "softmax", "energy", "Mahalanobis"


def mahalanobis(features: Tensor, labels: Tensor, asked: Tensor) -> np.ndarray:
    """The least squared distance of `asked` (N, F) from the means of the classes (N,)."""
    classes = labels.unique().tolist()
    means = torch.stack([features[labels == label].mean(0) for label in classes])
    rows = torch.searchsorted(labels.unique(), labels)
    precision = LedoitWolf(assume_centered=True).fit(features - means[rows]).precision_
    away = (asked[:, None] - means[None]).double().numpy()
    return np.einsum("nkf,fg,nkg->nk", away, precision, away).min(1)


def scores(photos: Pool, trained: Tensor, judged: Tensor, seed: int) -> tuple[dict, Tensor]:
    """Returns of all photos each score, higher for unlike, and whether they are called unknown.

    photos: of all sets, the labels of other ones without a meaning. trained, judged: rows.
    """
    features, labels = photos.features, photos.labels
    known = Known.fit(features[trained], labels[trained], features[judged], list(range(TRAINED)))
    known = Known.from_dict(known.to_dict())  # as it comes out of a checkpoint
    logits = answers(photos, trained, seed)
    chosen = logits[best_epoch(logits, labels, judged)]
    temperature = fit_temperature(probabilities(chosen[judged]), labels[judged].numpy())
    found = (
        known.distances(features).numpy(),
        -at_temperature(probabilities(chosen), temperature).max(1),
        -chosen.logsumexp(1).numpy(),
        mahalanobis(features[trained], labels[trained], features),
    )
    called = known.strangeness(features) <= UNKNOWN_SHARE
    return dict(zip(SCORES, found, strict=True)), called


def auroc(found: dict, fresh: Tensor, unlike: Tensor) -> list[float]:
    """The chance of each score to be higher for an unlike photo than for a fresh one."""
    truth = np.r_[np.zeros(len(fresh)), np.ones(len(unlike))]
    rows = torch.cat([fresh, unlike]).numpy()
    return [roc_auc_score(truth, found[name][rows]) for name in SCORES]


def split(rows: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns rows to train on, to validate on, and the fresh ones."""
    order = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
    return order[:TRAINED], order[TRAINED : TRAINED + JUDGED], order[TRAINED + JUDGED :]


def share(called: Tensor, rows: Tensor) -> float:
    return float(called[rows].float().mean())


def measure(own: Pool, others: list[Pool], seed: int) -> tuple[list, list]:
    """Returns of each other set the AUROCs and the share called unknown; and of the own one the
    shares called of fresh photos and of a left-out class, with that class's AUROCs."""
    everything = [own, *others]
    features = torch.cat([one.features for one in everything])
    labels = torch.cat([own.labels, torch.zeros(len(features) - len(own), dtype=torch.long)])
    photos = Pool(own.name, features, labels, own.classes)
    parts = torch.arange(len(features)).split([len(one) for one in everything])
    trained, judged, fresh = split(parts[0], seed)
    found, called = scores(photos, trained, judged, seed)
    against = [[*auroc(found, fresh, rows), share(called, rows)] for rows in parts[1:]]
    left_out = int(torch.randint(own.classes, (1,), generator=torch.Generator().manual_seed(seed)))
    rest = parts[0][own.labels != left_out]
    alike = parts[0][own.labels == left_out]
    *few, few_fresh = split(rest, seed)
    found, few_called = scores(photos, *few, seed)
    of_class = [share(few_called, alike), *auroc(found, few_fresh, alike)]
    return against, [share(called, fresh), *of_class]


def main() -> None:
    options = parser_for(__doc__).parse_args()
    sets = list(asked_for(options))
    pairs = [("trained on", "against", *SCORES, "called unknown")]
    own_rows = [("trained on", "fresh called (least, most)", "left-out class called", *SCORES)]
    for own in sets:
        others = [one for one in sets if one is not own]
        found = [measure(own, others, seed) for seed in range(SPLITS)]
        against = np.mean([one for one, _ in found], axis=0)
        for other, row in zip(others, against, strict=True):
            pairs.append((own.name, other.name, *(f"{value:.3f}" for value in row)))
        fresh, called, *of_class = np.array([one for _, one in found]).T
        spread = f"{fresh.mean():.3f} ({fresh.min():.3f}, {fresh.max():.3f})"
        told = [f"{values.mean():.3f}" for values in (called, *of_class)]
        own_rows.append((own.name, spread, *told))
    print(*table(pairs, "<<" + ">" * 5), "", *table(own_rows, "<" + ">" * 6), sep="\n")


if __name__ == "__main__":
    main()
