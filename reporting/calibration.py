"""Whether a probability means what it says: 0.9 should be right nine times in ten.

Logits are divided by a temperature (Guo et al., arXiv 1706.04599): one number, fitted on answers
to photos that no training saw, which changes no answer's class. How far probabilities are off is
the expected calibration error: the gap between their mean and the accuracy, over photos of like
probability.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BINS = 15  # of equal width, as in the paper
LOWEST, HIGHEST = 0.05, 20.0  # temperatures
TINY = float(np.finfo(np.float32).tiny)  # for probabilities that float32 has rounded to 0


@dataclass(frozen=True)
class Bin:
    """Photos of like probability: how many, the mean of it, and the share that is right."""

    photos: int
    probability: float
    accuracy: float


def at_temperature(probabilities, temperature: float) -> np.ndarray:
    """Returns the probabilities (N, K) of the same logits divided by a temperature."""
    logits = _logits(probabilities) / temperature
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def fit_temperature(probabilities, labels: Sequence[int]) -> float:
    """Returns the temperature at which the labels are likeliest.

    probabilities: (N, K) at temperature 1. One photo more is thought of, which is of each class in
    equal parts: without it, answers that are all right would be made certain, however few they are
    (after Platt, 1999). 1.0 without a photo.
    """
    labels = np.asarray(labels, int)
    if not len(labels):
        return 1.0
    logits = _logits(probabilities)
    photos = len(logits)
    own = photos / (photos + 1)
    wanted = own * logits[np.arange(photos), labels] + (1 - own) * logits.mean(1)

    def loss(power: float) -> float:
        scaled = logits * np.exp(-power)
        top = scaled.max(1)
        total = top + np.log(np.exp(scaled - top[:, None]).sum(1))
        return float((total - wanted * np.exp(-power)).mean())

    return float(np.exp(_lowest(loss, np.log(LOWEST), np.log(HIGHEST))))


def _lowest(loss, low: float, high: float, turns: int = 60) -> float:
    """Returns where a function with one valley is lowest (golden section)."""
    share = (5**0.5 - 1) / 2
    for _ in range(turns):
        left, right = high - share * (high - low), low + share * (high - low)
        if loss(left) < loss(right):
            high = right
        else:
            low = left
    return (low + high) / 2


def reliability(probabilities, labels: Sequence[int], bins: int = BINS) -> list[Bin]:
    """Returns the bins that hold photos, by the probability of the class that is answered."""
    sure = np.asarray(probabilities, float)
    top, right = sure.max(1), sure.argmax(1) == np.asarray(labels)
    number = np.minimum((top * bins).astype(int), bins - 1)
    found = []
    for k in range(bins):
        inside = number == k
        if inside.any():
            means = float(top[inside].mean()), float(right[inside].mean())
            found.append(Bin(int(inside.sum()), *means))
    return found


def calibration_error(probabilities, labels: Sequence[int]) -> float | None:
    """Returns the expected calibration error, a share; None without a photo."""
    return error_of(reliability(probabilities, labels)) if len(labels) else None


def error_of(bins: Sequence[Bin]) -> float:
    """Returns the expected calibration error of bins, of which there is at least one."""
    gaps = (one.photos * abs(one.probability - one.accuracy) for one in bins)
    return sum(gaps) / sum(one.photos for one in bins)


def log_loss(probabilities, labels: Sequence[int]) -> float | None:
    """Returns the mean of -ln of what the labels' classes are given, in nats; None without one."""
    if not len(labels):
        return None
    return -float(_logits(probabilities)[np.arange(len(labels)), np.asarray(labels, int)].mean())


def _logits(probabilities) -> np.ndarray:
    return np.log(np.maximum(np.asarray(probabilities, float), TINY))
