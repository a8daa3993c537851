"""Temperatures and what they do to the calibration error."""

import numpy as np
import pytest
import torch

from reporting.calibration import (
    at_temperature,
    calibration_error,
    fit_temperature,
    log_loss,
    reliability,
)


@pytest.fixture
def logits():
    return 3 * torch.randn(4000, 5, generator=torch.Generator().manual_seed(1)).double()


def drawn(logits):
    """A label for each row of logits, drawn by its probabilities."""
    generator = torch.Generator().manual_seed(2)
    return torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0].numpy()


@pytest.mark.parametrize("wrong", [0.4, 1.0, 2.5])
def test_the_temperature_that_was_applied_is_found(logits, wrong):
    labels, sure = drawn(logits), (logits * wrong).softmax(1).numpy()
    found = fit_temperature(sure, labels)
    assert found == pytest.approx(wrong, rel=0.06)
    after = calibration_error(at_temperature(sure, found), labels)
    assert after < 0.02
    assert wrong == 1 or after < 0.5 * calibration_error(sure, labels)


def test_a_temperature_scales_logits_and_changes_no_answer(logits):
    sure = logits.softmax(1).numpy()
    cooled = at_temperature(sure, 2.5)
    np.testing.assert_allclose(cooled, (logits / 2.5).softmax(1).numpy(), atol=1e-12)
    assert (cooled.argmax(1) == sure.argmax(1)).all()
    np.testing.assert_allclose(at_temperature(sure, 1.0), sure, atol=1e-12)


def test_a_few_answers_that_are_all_right_do_not_become_certain():
    sure = np.array([[0.7, 0.2, 0.1]] * 6)
    assert 0.2 < fit_temperature(sure, [0] * 6) < 1
    assert fit_temperature(np.empty((0, 3)), []) == 1.0


def test_probabilities_of_zero_and_one_are_borne():
    sure = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    found = fit_temperature(sure, [0, 1, 1, 1])
    assert np.isfinite(at_temperature(sure, found)).all()
    assert found > 1


def test_the_log_loss_is_that_of_torch_in_nats(logits):
    labels = drawn(logits)
    wanted = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)).item()
    assert log_loss(logits.softmax(1), labels) == pytest.approx(wanted)
    assert log_loss(np.empty((0, 3)), []) is None
    assert np.isfinite(log_loss([[1.0, 0.0]], [1]))


def test_the_error_is_the_gap_of_each_bin_weighed_by_its_photos():
    sure = np.array([[0.9, 0.1]] * 4 + [[0.45, 0.55]] * 2)
    labels = [0, 0, 0, 1, 1, 0]
    told = reliability(sure, labels)
    assert [(one.photos, one.accuracy) for one in told] == [(2, 0.5), (4, 0.75)]
    assert calibration_error(sure, labels) == pytest.approx((4 * 0.15 + 2 * 0.05) / 6)
    assert calibration_error(np.empty((0, 2)), []) is None
