"""How far a linear map of features tells classes apart: logistic regression, fairly judged.

    answers = probe(features, labels, folds)       # of photos that the answering map has not seen
    weight, bias = fit(features, labels, 3, 1e-2)  # one map on all of them

The strength of the penalty decides much where photos are few. It is chosen by cross-validation
within the photos of each map, so that those it is judged by have no part in the choice (nested
cross-validation). All maps of one strength are fitted together, from strong to weak, each strength
starting where the last one ended: with five folds 15 maps serve both loops, for the map without
folds i and j belongs to the choice for either.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

# Of the squared weights, for features whose numbers have variance one on average.
STRENGTHS = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
STEPS = 60  # of L-BFGS at each strength; it mostly needs a third
PRECISION = 1e-4  # of the gradient, as a multiple of a loss that is about one


@dataclass
class _Problems:
    """Maps to be fitted together: features (M, R) in their principal directions, labels (M, K).

    shares: (P, M), what each photo counts in each map's loss, together one; 0 for left out.
    spread: (R,) the variance along each direction, which tells how steep the loss is there.
    """

    features: Tensor
    labels: Tensor
    shares: Tensor
    spread: Tensor

    def logits(self, maps: Tensor) -> Tensor:
        """Maps (P, R + 1, K), the last row the bias -> logits (M, P, K)."""
        count, size, classes = maps.shape
        weight = maps[:, :-1].transpose(0, 1).reshape(size - 1, count * classes)
        return (self.features @ weight).view(-1, count, classes) + maps[:, -1]

    def loss(self, maps: Tensor, strength: float) -> tuple[Tensor, Tensor]:
        """Returns the sum of all maps' losses and its gradient (P, R + 1, K)."""
        logits = self.logits(maps)
        logs, shares = logits.log_softmax(-1), self.shares.T.unsqueeze(-1)
        fit = -(logs * self.labels.unsqueeze(1) * shares).sum()
        errors = (logs.exp() - self.labels.unsqueeze(1)) * shares  # (M, P, K)
        slope = (self.features.T @ errors.flatten(1)).view(-1, *errors.shape[1:]).transpose(0, 1)
        slope = torch.cat([slope + strength * maps[:, :-1], errors.sum(0).unsqueeze(1)], 1)
        return fit + strength / 2 * maps[:, :-1].square().sum(), slope

    def solved(self, maps: Tensor, strength: float, steps: int, precision: float) -> Tensor:
        """Returns the maps of least loss, begun at others.

        The unknowns are scaled by how steep the loss is at zero, which makes them alike.
        """
        steep = torch.cat([self.spread, self.spread.new_ones(1)]) / maps.shape[-1]
        steep[:-1] += strength
        scale = steep.rsqrt().view(1, -1, 1)
        free = (maps / scale).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [free], max_iter=steps, history_size=10, line_search_fn="strong_wolfe",
            tolerance_grad=precision, tolerance_change=precision * 1e-3,
        )  # fmt: skip

        def closure() -> float:
            with torch.no_grad():
                loss, slope = self.loss(free * scale, strength)
            free.grad = slope * scale
            return float(loss)

        optimizer.step(closure)
        return free.detach() * scale


def _principal(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns features (M, C) in R principal directions, those (C, R), and the means (C,).

    A penalty of squared weights is the same in any directions; so few are needed as there are
    photos. The unit is such that the numbers of `features` have variance one on average.
    """
    means = features.mean(0)
    centred = features - means
    unit = centred.square().mean().sqrt().clamp_min(1e-12)
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    directions = vectors[:, -min(features.shape) :] / unit
    return centred @ directions, directions, means


def fit(
    features: Tensor, labels: Tensor, classes: int, strength: float, precision: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """Returns weight (classes, C) and bias (classes,) of logistic regression on features (M, C).

    Least is the mean of the cross-entropy and strength / 2 times the squared weights, of features
    in the unit of `_principal`.
    """
    rows, directions, means = _principal(features)
    shares = rows.new_full((1, len(rows)), 1 / len(rows))
    hot = F.one_hot(labels, classes).to(rows)
    problems = _Problems(rows, hot, shares, rows.square().mean(0))
    start = rows.new_zeros(1, rows.shape[1] + 1, classes)
    (found,) = problems.solved(start, strength, 1000, precision)
    weight = (directions @ found[:-1]).T
    return weight, found[-1] - weight @ means


@torch.no_grad()
def probe(features: Tensor, labels: Tensor, folds: Sequence[Sequence[int]]) -> Tensor:
    """Returns the answers (M,) to all photos, each by a map that was chosen and fitted without it.

    features: (M, C); labels: (M,), 0 to K - 1; folds: three or more, indices of the photos.
    """
    rows, _, _ = _principal(features)
    classes, count = int(labels.max()) + 1, len(folds)
    left_out = [*((i,) for i in range(count)), *combinations(range(count), 2)]
    shares = rows.new_ones(len(left_out), len(rows))
    for number, out in enumerate(left_out):
        for fold in out:
            shares[number, torch.as_tensor(folds[fold])] = 0
    shares /= shares.sum(1, keepdim=True)
    hot = F.one_hot(labels, classes).to(rows)
    problems = _Problems(rows, hot, shares, rows.square().mean(0))
    maps = rows.new_zeros(len(left_out), rows.shape[1] + 1, classes)
    answers, losses = [], []
    for strength in STRENGTHS:
        maps = problems.solved(maps, strength, STEPS, PRECISION)
        logits = problems.logits(maps)
        answers.append(logits.argmax(-1))  # (M, P)
        losses.append(-logits.log_softmax(-1)[torch.arange(len(labels)), :, labels])
    return _chosen(torch.stack(answers), torch.stack(losses), folds, left_out)


def _chosen(answers: Tensor, losses: Tensor, folds: Sequence, left_out: list) -> Tensor:
    """Returns for each fold the answers of the strength that is best on the other ones.

    answers, losses: (S, M, P), of each strength, photo and map.
    """
    found = torch.empty_like(answers[0, :, 0])
    for outer, photos in enumerate(folds):
        total = 0
        for number, out in enumerate(left_out):
            if len(out) == 2 and outer in out:
                (inner,) = set(out) - {outer}
                total = total + losses[:, torch.as_tensor(folds[inner]), number].sum(1)
        best = int(total.argmin())
        photos = torch.as_tensor(photos)
        found[photos] = answers[best, photos, outer]
    return found
