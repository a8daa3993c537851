"""Intervals of an accuracy: Wilson's, and how groups lessen what photos tell."""

import numpy as np
import pytest

from reporting.intervals import accuracy_of, design_effect, wilson


def test_wilson_has_the_published_values():
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    for right, photos, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson(right / photos, photos) == pytest.approx((low, high), abs=5e-5)


def test_all_right_ends_at_one_and_none_has_no_accuracy():
    told = accuracy_of([True] * 20)
    assert (told.share, told.high, told.low) == (1, 1, pytest.approx(0.8389, abs=1e-4))
    assert accuracy_of([]) is None


def test_photos_alone_are_worth_themselves_and_copies_of_one_a_single_photo():
    right = np.array([1, 1, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1], float)
    assert design_effect(right, [str(i) for i in range(12)]) == 1
    pairs = [str(i // 2) for i in range(12)]
    assert design_effect(right, pairs) == pytest.approx(2)
    told = accuracy_of(right, pairs)
    assert (told.photos, told.worth) == (12, pytest.approx(6))
    assert told.interval == pytest.approx(wilson(8 / 12, 6))
    assert "12 photos in groups, worth 6" in told.words


def test_groups_without_a_common_answer_cost_nothing():
    right = np.tile([1.0, 0.0], 30)
    assert design_effect(right, [str(i // 2) for i in range(60)]) == 1


def test_where_groups_cannot_be_compared_each_counts_as_one_photo():
    assert design_effect(np.ones(12), [str(i // 4) for i in range(12)]) == 4
    assert design_effect(np.array([1.0, 0, 1]), ["a", "a", "a"]) == 3
