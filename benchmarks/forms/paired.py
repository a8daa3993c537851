"""Differences of two forms, photo by photo, with the interval that photos and seeds leave."""

import math
from dataclasses import dataclass, replace

import numpy as np

DRAWS = 1000
Values = dict[str, dict[int, list[float]]]  # set -> seed -> one value for each judging photo


@dataclass(frozen=True)
class Difference:
    """mean: ours minus theirs. low, high: its 95 % interval.

    seeds: how many would decide it, infinite where the photos that all seeds share would not let
    any number of them; None where nothing tells.
    """

    mean: float
    low: float
    high: float
    seeds: float | None

    @property
    def decided(self) -> bool:
        return self.low > 0 or self.high < 0


def difference(
    ours: Values, theirs: Values, same_photos: set[str], draws: int = DRAWS
) -> Difference:
    """Returns the mean over sets and seeds of ours minus theirs, with a bootstrap interval.

    Each draw takes, within each set, as many seeds as there are, with replacement, and photos of
    each likewise; of a set in `same_photos`, which every seed judges by the same ones, the photos
    are drawn once for all of its seeds.
    """
    random = np.random.default_rng(0)
    per_set, points, stays = [], [], 0.0
    for name in ours:
        pairs = [np.subtract(ours[name][seed], theirs[name][seed]) for seed in sorted(ours[name])]
        points.append([pair.mean() for pair in pairs])
        per_set.append(_drawn(pairs, name in same_photos, random, draws))
        stays += _of_photos(pairs) / len(ours) ** 2 if name in same_photos else 0.0
    low, high = (float(end) for end in np.quantile(np.mean(per_set, axis=0), [0.025, 0.975]))
    by_seed = np.mean(points, axis=0)
    found = Difference(float(by_seed.mean()), low, high, None)
    return replace(found, seeds=_seeds(by_seed, stays, found.decided))


def _drawn(pairs: list, shared: bool, random, draws: int) -> np.ndarray:
    """Returns the mean of a set in each draw, (draws,)."""
    seeds, rows = len(pairs), np.arange(draws)
    total = np.zeros(draws)
    once = _weights(len(pairs[0]), random, draws) if shared else None
    for _ in range(seeds):
        chosen = random.integers(seeds, size=draws)
        means = [(once if shared else _weights(len(pair), random, draws)) @ pair for pair in pairs]
        total += np.stack(means, axis=1)[rows, chosen]
    return total / seeds


def _weights(photos: int, random, draws: int) -> np.ndarray:
    return random.multinomial(photos, np.full(photos, 1 / photos), size=draws) / photos


def _of_photos(pairs: list) -> float:
    """Returns the variance that a set's photos leave in its mean, whatever the number of seeds.

    What the seeds have in common, photo by photo, is the photos': their covariance between seeds.
    """
    if len(pairs) < 2:
        return 0.0
    between = np.cov(np.stack(pairs))
    common = (between.sum() - np.trace(between)) / (len(pairs) * (len(pairs) - 1))
    return max(0.0, common / len(pairs[0]))


def _seeds(by_seed: np.ndarray, stays: float, decided: bool) -> float | None:
    """Returns how many seeds would put zero outside the interval if mean and spread stay.

    stays: the variance that no seed takes away.
    """
    if len(by_seed) < 2 or by_seed.mean() == 0:
        return None
    room = (by_seed.mean() / 1.96) ** 2 - stays
    count = max(2, math.ceil(by_seed.var(ddof=1) / room)) if room > 0 else math.inf
    return min(count, len(by_seed)) if decided else max(count, len(by_seed) + 1)
