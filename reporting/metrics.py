"""What answers are worth, in numbers: confusion, precision, recall, the mistakes to look at."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from system.terminal import table


def confusion_matrix(labels, predicted, num_classes: int) -> np.ndarray:
    """Returns counts (num_classes, num_classes): row the true class, column the predicted one."""
    pairs = np.asarray(labels, int) * num_classes + np.asarray(predicted, int)
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def class_table(matrix, classes: Sequence[str]) -> list[dict]:
    """Returns a dict per class: class, precision, recall, f1, support (photos of that class).

    precision is None for a class never predicted, recall for one without photos, f1 for both.
    """
    counts = np.asarray(matrix)
    right, support, predicted = np.diag(counts), counts.sum(1), counts.sum(0)

    def share(part, whole) -> float | None:
        return float(part / whole) if whole else None

    return [
        {
            "class": name,
            "precision": share(right[k], predicted[k]),
            "recall": share(right[k], support[k]),
            "f1": share(2 * right[k], support[k] + predicted[k]),
            "support": int(support[k]),
        }
        for k, name in enumerate(classes)
    ]


def balanced_accuracy(labels, predicted) -> float:
    """Returns the mean over the classes that have photos of the share that is right; 0 of none."""
    labels = np.asarray(labels, int)
    right = labels == np.asarray(predicted)
    shares = [right[labels == label].mean() for label in np.unique(labels)]
    return float(np.mean(shares)) if shares else 0.0


def class_lines(matrix, classes: Sequence[str]) -> list[str]:
    """Returns `class_table` as lines of text, in percent."""
    rows = [("precision", "recall", "F1", "photos", "class")]
    for row in class_table(matrix, classes):
        shares = (percent(row[name]) for name in ("precision", "recall", "f1"))
        rows.append((*shares, str(row["support"]), row["class"]))
    return table(rows, ">>>><")


def confusion_lines(matrix, classes: Sequence[str]) -> list[str]:
    """Returns the matrix as lines of text, each class with its recall."""
    rows = [["true \\ predicted", *classes, "recall"]]
    for row, of_class in zip(
        np.asarray(matrix).tolist(), class_table(matrix, classes), strict=True
    ):
        recall = of_class["recall"]
        told = "-" if recall is None else f"{recall:.3f}"
        rows.append([of_class["class"], *(f"{count:5d}" for count in row), told])
    return table(rows, "<" + ">" * (len(classes) + 1))


def most_confused(matrix, classes: Sequence[str], count: int = 10) -> list[tuple[str, str, int]]:
    """Returns the most frequent mistakes: (true class, predicted class, photos)."""
    counts = np.asarray(matrix)
    pairs = {(t, p): int(counts[t, p]) for t, p in np.argwhere(counts).tolist()}
    return most_frequent(pairs, classes, count)


def most_frequent(
    pairs: Mapping[tuple[int, int], int], classes: Sequence[str], count: int
) -> list[tuple[str, str, int]]:
    """The same from the photos of each (true, predicted) that there is."""
    wrong = [(pair, photos) for pair, photos in pairs.items() if pair[0] != pair[1]]
    wrong.sort(key=lambda item: -item[1])
    return [(classes[t], classes[p], photos) for (t, p), photos in wrong[:count]]


def worst_mistakes(
    paths: Sequence[str], labels, probabilities, classes: Sequence[str], count: int = 24
) -> list[dict]:
    """Returns the wrong predictions that the model was surest of, as `write_report` shows them.

    Args:
        paths, labels: of N photos, in the order of `probabilities` (N, len(classes)).
    """
    sure, labels = np.asarray(probabilities, float), np.asarray(labels, int)
    wrong = np.flatnonzero(sure.argmax(1) != labels)
    surest = wrong[np.argsort(-sure.max(1)[wrong], kind="stable")][:count]
    return [_answer(i, paths, labels, sure, classes) for i in surest]


def _answer(i: int, paths, labels: np.ndarray, sure: np.ndarray, classes: Sequence[str]) -> dict:
    return {
        "path": str(paths[i]),
        "true": classes[labels[i]],
        "predicted": classes[sure[i].argmax()],
        "probability": float(sure[i].max()),
    }


@dataclass(frozen=True)
class ConfusedPair:
    """Two classes that were taken for each other, with photos to see why.

    classes: their names. counts: of photos of the first taken for the second, and the other way.
    photos: of each class, as `worst_mistakes` gives them: those taken for the other, the surest
    first, then those of right answers that came nearest to the other.
    """

    classes: tuple[str, str]
    counts: tuple[int, int]
    photos: tuple[list[dict], list[dict]]

    @property
    def told(self) -> tuple[str, str]:
        """What happened to the photos of each class, in words."""
        return tuple(
            f"{true}: {count or 'none'} taken for {said}"
            for true, said, count in zip(
                self.classes, reversed(self.classes), self.counts, strict=True
            )
        )


def confused_pairs(
    paths: Sequence[str],
    labels,
    probabilities,
    classes: Sequence[str],
    count: int = 5,
    photos: int = 3,
) -> list[ConfusedPair]:
    """Returns the pairs of classes most often taken for each other, the most frequent first.

    paths, labels: of N photos, in the order of `probabilities` (N, len(classes)). photos: at most
    so many of each class.
    """
    sure, labels = np.asarray(probabilities, float), np.asarray(labels, int)
    predicted = sure.argmax(1)
    counts = confusion_matrix(labels, predicted, len(classes))
    both = np.triu(counts + counts.T, k=1)
    order = np.argsort(-both, axis=None, kind="stable")[:count]

    def nearest(own: int, other: int) -> list[dict]:
        near = np.flatnonzero((labels == own) & np.isin(predicted, (own, other)))
        near = near[np.lexsort((-sure[near, other], predicted[near] != other))]
        return [_answer(i, paths, labels, sure, classes) for i in near[:photos]]

    return [
        ConfusedPair(
            (classes[first], classes[second]),
            (int(counts[first, second]), int(counts[second, first])),
            (nearest(first, second), nearest(second, first)),
        )
        for first, second in np.transpose(np.unravel_index(order, both.shape)).tolist()
        if both[first, second]
    ]


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"
