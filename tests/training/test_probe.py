"""The linear probe is scikit-learn's, chosen and judged on photos that the map has not seen."""

import itertools

import pytest
import torch

from training.probe import STRENGTHS, fit, probe

linear_model = pytest.importorskip("sklearn.linear_model")


def clouds(per_class=30, classes=3, width=7, apart=1.0, seed=0):
    """Features (M, width) that differ by class, of unlike scales, and labels."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=generator) * apart
    labels = torch.arange(classes).repeat(per_class)
    noise = torch.randn(len(labels), width, generator=generator)
    return (centres[labels] + noise) * torch.linspace(0.2, 5, width) + 3, labels


def folds_of(count, photos):
    """Blocks in a row, each with all classes."""
    ends = [photos * number // count for number in range(count + 1)]
    return [list(range(*block)) for block in itertools.pairwise(ends)]


def theirs(features, labels, strength):
    """scikit-learn's map for features in the probe's unit: their loss is a sum over the photos."""
    unit = (features - features.mean(0)).square().mean().sqrt()
    model = linear_model.LogisticRegression(
        C=1 / (strength * len(labels)), tol=1e-10, max_iter=10_000
    )
    model.fit((features / unit).numpy(), labels.numpy())
    return torch.from_numpy(model.coef_) / unit, torch.from_numpy(model.intercept_)


@pytest.mark.parametrize("strength", [STRENGTHS[0], 0.1, STRENGTHS[-1]])
@pytest.mark.parametrize(("per_class", "width"), [(30, 7), (4, 20)])
def test_a_map_is_that_of_scikit_learn(strength, per_class, width):
    features, labels = clouds(per_class, width=width)
    features = features.double()
    weight, bias = fit(features, labels, 3, strength, precision=1e-9)
    wanted, _ = theirs(features, labels, strength)
    torch.testing.assert_close(weight, wanted, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(bias.diff(), theirs(features, labels, strength)[1].diff(),
                               rtol=1e-3, atol=1e-3)  # fmt: skip


def test_answers_are_those_of_nested_cross_validation_by_hand():
    features, labels = clouds(apart=0.7)
    features, folds = features.double(), folds_of(3, 90)
    found = probe(features, labels, folds)
    unit = (features - features.mean(0)).square().mean().sqrt()
    for outer, judged in enumerate(folds):
        rest = [fold for number, fold in enumerate(folds) if number != outer]
        scores = []
        for strength in STRENGTHS:
            loss = 0.0
            for inner, held in enumerate(rest):
                seen = [i for fold in rest[:inner] + rest[inner + 1 :] for i in fold]
                loss += _loss(features / unit, labels, seen, held, strength)
            scores.append(loss)
        best = STRENGTHS[scores.index(min(scores))]
        seen = [i for fold in rest for i in fold]
        model = _their_fit(features / unit, labels, seen, best)
        wanted = torch.from_numpy(model.predict((features / unit)[judged].numpy()))
        assert torch.equal(found[judged], wanted)


def _their_fit(rows, labels, seen, strength):
    model = linear_model.LogisticRegression(C=1 / (strength * len(seen)), tol=1e-8, max_iter=5000)
    return model.fit(rows[seen].numpy(), labels[seen].numpy())


def _loss(rows, labels, seen, held, strength):
    logs = _their_fit(rows, labels, seen, strength).predict_log_proba(rows[held].numpy())
    return float(-torch.from_numpy(logs)[torch.arange(len(held)), labels[held]].sum())


def test_features_of_noise_are_right_no_more_often_than_chance():
    """Many more features than photos: whoever judged what was fitted would find all right."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(2).repeat(60)
    features = torch.randn(120, 400, generator=generator)
    share = (probe(features, labels, folds_of(5, 120)) == labels).float().mean()
    assert 0.35 < share < 0.65


def test_constant_features_and_a_class_of_few_photos_are_survived():
    features, labels = clouds()
    features[:, 2] = 4.0
    assert (probe(features, labels, folds_of(5, 90)) == labels).float().mean() > 0.6
    assert len(probe(torch.ones(90, 4), labels, folds_of(5, 90))) == 90
    few = torch.zeros(90, dtype=torch.int64)
    few[::30] = 1
    assert len(probe(features, few, folds_of(3, 90))) == 90
