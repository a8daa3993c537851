"""What a model keeps of its training photos: which, how precisely, and what it says of others."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from formats.known import Known, as_bytes, checked_known, kept


def photos(count, width, seed=0):
    """Features (count, width) of unequal lengths, about one direction, as those of a model are."""
    random = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, width, generator=random) + 0.5
    return rows * (1 + torch.arange(count)[:, None])


def oracle(known, asked):
    """Mean cosine distance from the three nearest of what is kept, in double precision."""
    search = NearestNeighbors(n_neighbors=3, metric="cosine", algorithm="brute")
    search.fit(known.features.double().numpy())
    return search.kneighbors(asked.double().numpy())[0].mean(1)


def labels_of(count, classes=3):
    return torch.arange(count) % classes


# ------------------------------------------------------------------------------- how far, how rare


@pytest.mark.parametrize(("count", "width", "asked"), [(40, 7, 11), (9, 192, 2_500), (3, 5, 1)])
def test_a_score_is_the_mean_cosine_distance_from_the_three_nearest(count, width, asked):
    known = Known.fit(photos(count, width), labels_of(count))
    others = photos(asked, width, seed=1)
    assert known.distances(others).numpy() == pytest.approx(oracle(known, others), abs=1e-6)


def test_fewer_photos_than_three_are_compared_with_all_there_are():
    known = Known.fit(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))
    assert known.distances(torch.tensor([[2.0, 0.0]])).tolist() == pytest.approx([0.5])
    assert known.distances(torch.empty(0, 2)).shape == (0,)


def test_strangeness_is_the_share_of_judged_photos_that_are_as_far_the_photo_counted_in():
    judged, asked = photos(23, 6, seed=2), photos(50, 6, seed=3)
    known = Known.fit(photos(30, 6), labels_of(30), judged)
    far, scores = oracle(known, asked), oracle(known, judged)
    wanted = [(1 + (scores >= one).sum()) / (1 + len(scores)) for one in far]
    assert known.strangeness(asked).numpy() == pytest.approx(wanted, abs=1e-6)
    # One of the judged photos itself is as far as itself.
    own = [(1 + (scores >= one).sum()) / 24 for one in scores]
    assert known.strangeness(judged).numpy() == pytest.approx(own, abs=1e-6)


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3])
def test_of_photos_of_the_same_kind_at_most_the_share_is_called_unknown(share):
    """Over many draws of training, judged and fresh photos; and not much less than it either."""
    draws, judged, called = 400, 59, []
    for seed in range(draws):
        rows = photos(30 + judged + 20, 4, seed) / 7
        known = Known.fit(rows[:30], labels_of(30), rows[30 : 30 + judged])
        called.append(float((known.strangeness(rows[30 + judged :]) <= share).float().mean()))
    # `photos` are longer one by one, which a direction does not show: all rows are alike.
    spread = 3 * np.std(called) / draws**0.5
    assert np.mean(called) <= share + spread
    assert np.mean(called) >= share - 1 / (judged + 1) - spread


def test_a_share_that_is_met_exactly_is_called_unknown():
    known = Known(as_bytes(torch.eye(4)), torch.linspace(0, 0.5, 19))
    asked = torch.tensor([[-1.0, -1.0, -1.0, -1.0]])
    assert known.least == pytest.approx(0.05)
    assert bool((known.strangeness(asked) <= 0.05).all())
    assert not bool((known.strangeness(asked) <= 0.0499).any())


def test_without_a_judged_photo_nothing_is_called_unknown():
    known = Known.fit(photos(9, 5), labels_of(9))
    assert known.least == 1
    assert known.strangeness(-photos(2, 5)).tolist() == [1, 1]


def test_photos_of_one_group_do_not_judge_each_other():
    rows, groups = photos(12, 6), list("aabbccddeeff")
    known = Known.fit(rows, labels_of(12), None, groups)
    units = known.features.double().numpy()
    asked = rows.double().numpy()
    for some in (units, asked):
        some /= np.linalg.norm(some, axis=1, keepdims=True)
    wanted = []
    for row, group in enumerate(groups):
        cosines = asked[row] @ units.T
        other = sorted(c for c, g in zip(cosines, groups, strict=True) if g != group)
        wanted.append(1 - np.mean(other[-3:]))
    assert known.scores.numpy() == pytest.approx(sorted(wanted), abs=1e-6)


def test_judged_photos_and_groups_together_give_the_scores_of_both():
    rows, judged = photos(12, 6), photos(5, 6, seed=1)
    apart = Known.fit(rows, labels_of(12), judged), Known.fit(rows, labels_of(12), None, range(12))
    both = Known.fit(rows, labels_of(12), judged, range(12))
    assert torch.equal(both.scores, torch.cat([one.scores for one in apart]).sort().values)


def test_very_many_scores_are_thinned_out_evenly():
    scores = torch.rand(50_001) ** 2
    known = Known(torch.ones(1, 2, dtype=torch.int8), torch.empty(0)).judged_by(scores)
    assert len(known.scores) == 2_000
    for share in (0.01, 0.05, 0.5, 0.99):
        wanted, found = scores.quantile(share), known.scores.quantile(share)
        assert abs(found - wanted) < 1e-3


def test_a_spoilt_feature_spoils_no_checkpoint():
    judged = photos(6, 4, seed=1)
    judged[2] = float("nan")
    known = Known.fit(photos(9, 4), labels_of(9), judged)
    assert len(known.scores) == 5
    assert Known.from_dict(json.loads(json.dumps(known.to_dict()))).scores.isfinite().all()


# ------------------------------------------------------------------------------------ what is kept


@pytest.mark.parametrize("most", [10, 11, 57])
def test_photos_of_every_class_are_kept_and_of_rare_ones_all(most):
    labels = torch.tensor([0] * 900 + [1] * 3 + [2] * 90 + [3] * 2)[torch.randperm(995)]
    rows = kept(labels, most)
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert len(rows) == most
    counts = labels[rows].bincount(minlength=4).tolist()
    assert counts[3] == 2
    assert min(counts) >= 2
    assert max(counts) - min(counts[0], counts[2]) <= 1
    assert torch.equal(rows, kept(labels, most))


def test_where_all_find_room_all_are_kept():
    assert kept(labels_of(7), 7).tolist() == list(range(7))


@pytest.mark.parametrize("width", [5, 192, 768, 1536])
def test_eight_bits_change_a_distance_by_less_than_a_hundredth(width):
    rows, asked = photos(50, width), photos(20, width, seed=1)
    rows[:, 1] *= 8  # a model's features have a few large numbers
    found = Known(as_bytes(rows), torch.empty(0)).distances(asked)
    search = NearestNeighbors(n_neighbors=3, metric="cosine", algorithm="brute")
    wanted = search.fit(rows.double().numpy()).kneighbors(asked.double().numpy())[0].mean(1)
    assert np.abs(found.numpy() - wanted).max() < 0.01


def test_a_row_of_zeros_has_no_direction_and_is_as_far_from_all():
    known = Known.fit(torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1]))
    assert known.distances(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist() == [1, 1]


@pytest.mark.parametrize("width", [192, 768, 1536])
def test_of_20_000_photos_a_checkpoint_holds_at_most_a_megabyte(width):
    rows = photos(500, width).repeat(40, 1)
    known = Known.fit(rows, labels_of(20_000), rows[:5_000])
    assert known.to_dict().keys() == {"features", "width", "scores"}
    assert len(json.dumps(known.to_dict())) <= 1_000_000
    file = io.BytesIO()
    torch.save(known.to_dict(), file)
    assert file.tell() <= 1_000_000
    assert len(known.features) > 400


def test_what_was_kept_comes_back_the_same():
    known = Known.fit(photos(20, 6), labels_of(20), photos(30, 6, seed=1))
    found = Known.from_dict(json.loads(json.dumps(known.to_dict())))
    assert torch.equal(found.features, known.features)
    assert torch.allclose(found.scores, known.scores, atol=1e-7)
    asked = photos(100, 6, seed=2)
    assert torch.equal(found.strangeness(asked), known.strangeness(asked))
    assert Known.from_dict({}) is None


# --------------------------------------------------------------------------- files of other making

GOOD = Known.fit(photos(4, 3), labels_of(4), photos(2, 3)).to_dict()
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=5,
)


def refused(values):
    """The sentence of a refusal, "" where the values are taken."""
    known, said = None, ""
    try:
        known = Known.from_dict(values)
    except ValueError as error:
        said = str(error)
    assert "\n" not in said
    assert not said or "has a `known` that holds no features of training photos" in said
    if known is not None:
        told = known.strangeness(torch.ones(2, known.width))
        assert ((told >= known.least) & (told <= 1)).all()
    return said


@settings(max_examples=100, deadline=None)
@given(values=ANYTHING)
def test_anything_is_taken_or_refused_in_one_sentence(values):
    refused(values)


@pytest.mark.parametrize("part", GOOD)
@settings(max_examples=60, deadline=None)
@given(value=ANYTHING)
def test_any_part_is_taken_or_refused_in_one_sentence(part, value):
    refused(GOOD | {part: value})


WRONG = {
    "no dict": [1],
    "a tensor": torch.zeros(3),
    "half of it": {"features": GOOD["features"]},
    "width 0": GOOD | {"width": 0},
    "width -3": GOOD | {"width": -3},
    "a width that is a truth": GOOD | {"width": True},
    "a width that does not divide": GOOD | {"width": 5},
    "no feature": GOOD | {"features": ""},
    "no base64": GOOD | {"features": "%%%%"},
    "not Latin": GOOD | {"features": "雛菊雛菊"},
    "scores as text": GOOD | {"scores": "0.5"},
    "a text among scores": GOOD | {"scores": [0.1, "0.5"]},
    "no number": GOOD | {"scores": [0.1, float("nan")]},
    "endless": GOOD | {"scores": [float("inf")]},
    "farther than can be": GOOD | {"scores": [1e300]},
    "more digits than a float has": GOOD | {"scores": [10**400]},
}


@pytest.mark.parametrize("case", WRONG)
def test_what_no_program_wrote_is_refused(case):
    assert refused(WRONG[case])


def test_scores_in_any_order_and_whole_numbers_are_taken():
    known = Known.from_dict(GOOD | {"scores": [1, 0, 0.5]})
    assert known.scores.tolist() == [0, 0.5, 1]
    assert Known.from_dict(GOOD | {"scores": []}).least == 1


def test_features_of_another_model_are_refused():
    assert checked_known({"known": GOOD}, 3).width == 3
    assert checked_known({}, 3) is None
    with pytest.raises(ValueError, match="of 3 numbers a photo for a model of 192 features"):
        checked_known({"known": GOOD}, 192)


def test_the_file_has_one_byte_a_number():
    assert len(base64.b64decode(GOOD["features"])) == 4 * 3
