"""Labels that are likely wrong: confident learning (Northcutt et al., arXiv 1911.00068).

Each photo's answer comes from a model that was trained without it. A photo counts as confidently of
a class where that class is as likely as it is, on the mean, to those that are labelled so. These
counts, label by confident class, estimate how many labels of each class are wrong, and so many of
its photos are suspects: those whose own label is least likely ("prune by class", PBC, in the
paper). They are ranked by that likelihood, too. Where classes are told apart with ease, that mean
is so high that it misses errors; so a photo is a suspect as well where the model is sure of another
class and all but excludes the label.

Copies that have different labels need no estimate: one of them must be wrong. They come first.

Shapes: N photos, K classes.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

CLOSE = 1e-6  # a likelihood so little below the threshold reaches it
SURE, EXCLUDED = 0.5, 0.05  # likelihoods of another class and of the label
LOWEST = 2e-6  # threshold, where a class is never believed at all


class Suspect(NamedTuple):
    """A photo whose label is likely wrong.

    photo, label, likely: indices, of the label that it has and of the one that it should. score:
    1 - the probability of its label, 1.0 where a copy has another label; copies: those, by index.
    """

    photo: int
    label: int
    likely: int
    score: float
    copies: tuple[int, ...] = ()


def suspects(probabilities, labels, copies: Sequence[Sequence[int]] = ()) -> list[Suspect]:
    """Returns the photos whose label is likely wrong, the most suspicious first.

    probabilities: (N, K), of models that were trained without the photo. labels: (N,). copies:
    groups of photos that show the same, by index; those of one label are passed over.
    """
    likelihoods, labels = np.asarray(probabilities, float), np.asarray(labels, int)
    found = [
        list(in_conflict(likelihoods, labels, np.asarray(group)))
        for group in copies
        if len({*labels[group]}) > 1
    ]
    own = likelihoods[np.arange(len(labels)), labels]
    found.sort(key=lambda members: min(own[one.photo] for one in members))
    first = [one for members in found for one in members]
    known = {one.photo for one in first}
    rest = {*wrong_labels(likelihoods, labels), *excluded(likelihoods, own)} - known
    rest = sorted(map(int, rest), key=lambda photo: (own[photo], photo))
    answers = likelihoods.argmax(1)
    return first + [Suspect(i, int(labels[i]), int(answers[i]), 1 - float(own[i])) for i in rest]


def in_conflict(likelihoods: np.ndarray, labels: np.ndarray, group) -> Iterator[Suspect]:
    """Yields the suspects among copies: those that differ from what most have, else all."""
    counts = Counter(labels[group].tolist())
    (most, count), *_ = counts.most_common()
    settled = 2 * count > len(group)
    for photo in group[np.argsort(likelihoods[group, labels[group]], kind="stable")]:
        label = int(labels[photo])
        if settled and label == most:
            continue
        others = [most] if settled else [other for other in counts if other != label]
        likely = max(others, key=lambda other: likelihoods[photo, other])
        unlike = tuple(group[labels[group] != label].tolist())
        yield Suspect(int(photo), label, likely, 1.0, unlike)


def wrong_labels(likelihoods: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the photos whose label confident learning calls wrong, the least likely label first.

    None is of the class that is its likeliest, and each class keeps a photo.
    """
    joint = confident_joint(likelihoods, labels)
    found = [np.array([], int)]
    for label, row in enumerate(joint):
        photos = np.flatnonzero(labels == label)
        right = rounded(row / row.sum() * len(photos))[label]
        wrong = len(photos) - max(1, right)
        order = np.argsort(likelihoods[photos, label], kind="stable")
        found.append(photos[order[: max(0, wrong)]])
    chosen = np.sort(np.concatenate(found))
    own = likelihoods[chosen, labels[chosen]]
    doubted = likelihoods[chosen].max(1) > own + CLOSE
    return chosen[doubted][np.argsort(own[doubted], kind="stable")]


def excluded(likelihoods: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Returns the photos that a model is sure are of another class than their label."""
    sure = likelihoods.max(1, initial=0) >= SURE
    return np.flatnonzero(sure & (own < EXCLUDED))


def confident_joint(likelihoods: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns counts (K, K) of photos by label (row) and the class that they are confidently of.

    Photos that are confidently of no class do not count; on the diagonal stands at least one.
    """
    classes = likelihoods.shape[1]
    thresholds = np.full(classes, np.inf)  # of a class without a photo: never reached
    for label in np.unique(labels):
        thresholds[label] = max(LOWEST, likelihoods[labels == label, label].mean())
    confident = likelihoods >= thresholds - CLOSE
    several = confident.sum(1) > 1
    likely = np.where(several, likelihoods.argmax(1), confident.argmax(1))
    some = confident.any(1)
    joint = np.zeros((classes, classes), int)
    np.add.at(joint, (labels[some], likely[some]), 1)
    np.fill_diagonal(joint, joint.diagonal().clip(min=1))
    return joint


def rounded(row: np.ndarray) -> np.ndarray:
    """Returns whole numbers of the same sum, those with the largest rest rounded up."""
    whole = row.round()
    lack = round(row.sum() - whole.sum())
    order = np.argsort(row - whole)
    whole[order[::-1][: max(0, lack)]] += 1
    whole[order[: max(0, -lack)]] -= 1
    return whole.astype(int)
