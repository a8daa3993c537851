"""suspects.py: the labels that confident learning calls wrong, against cleanlab and by hand."""

import numpy as np
import pytest
from cleanlab.count import compute_confident_joint
from cleanlab.filter import find_label_issues

from reporting.suspects import Suspect, confident_joint, rounded, suspects, wrong_labels
from reporting.suspects_page import write_suspects_page


def answers(photos, classes, seed, sure=2.0, noise=0.1):
    """Out-of-fold probabilities of a fair model, and labels of which some are wrong."""
    rng = np.random.default_rng(seed)
    true = rng.integers(classes, size=photos)
    logits = rng.normal(size=(photos, classes))
    logits[np.arange(photos), true] += sure
    shares = np.exp(logits)
    labels = np.where(rng.random(photos) < noise, rng.integers(classes, size=photos), true)
    return shares / shares.sum(1, keepdims=True), labels


# Of two equal rests either may be rounded up: none of these has such.
CASES = [(n, k, seed) for seed in range(4) for n, k in ((60, 3), (211, 5), (389, 13), (97, 17))]


@pytest.mark.filterwarnings("ignore:May not flag all label issues")  # a class of one photo
@pytest.mark.parametrize(("photos", "classes", "seed"), CASES)
def test_joint_and_suspects_are_cleanlabs(photos, classes, seed):
    likelihoods, labels = answers(photos, classes, seed, sure=1 + seed)
    theirs = compute_confident_joint(labels, likelihoods, calibrate=False)
    assert confident_joint(likelihoods, labels).tolist() == theirs.tolist()
    ranked = find_label_issues(
        labels,
        likelihoods,
        filter_by="prune_by_class",
        return_indices_ranked_by="self_confidence",
        n_jobs=1,
    )
    assert wrong_labels(likelihoods, labels).tolist() == ranked.tolist()


def test_thresholds_and_counts_are_those_worked_out_by_hand():
    likelihoods = np.array(
        [[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.3, 0.7], [0.2, 0.8], [0.45, 0.55]]
    )
    labels = np.array([0, 0, 0, 1, 1, 1])
    # Means of the own label: 0.6 and 0.683. The last photo reaches neither.
    assert confident_joint(likelihoods, labels).tolist() == [[2, 1], [0, 2]]
    (one,) = suspects(likelihoods, labels)
    assert one == (2, 0, 1, pytest.approx(0.9), ())


def test_errors_among_easy_photos_are_found_though_they_reach_no_threshold():
    labels = np.repeat([0, 1, 2], 6)
    likelihoods = np.eye(3)[labels] * 0.97 + 0.01
    likelihoods[0] = 0.04, 0.7, 0.26
    assert wrong_labels(likelihoods, labels).tolist() == []
    assert [(one.photo, one.likely) for one in suspects(likelihoods, labels)] == [(0, 1)]
    for other in ([0.06, 0.7, 0.24], [0.04, 0.49, 0.47]):  # not excluded; not sure
        likelihoods[0] = other
        assert suspects(likelihoods, labels) == []


def test_right_labels_are_no_suspects():
    likelihoods = np.eye(3)[[0, 0, 1, 1, 2, 2]] * 0.8 + 0.2 / 3
    assert suspects(likelihoods, [0, 0, 1, 1, 2, 2]) == []
    assert suspects(np.zeros((0, 3)), []) == []


def test_a_class_without_a_photo_and_one_that_is_never_believed_do_no_harm():
    likelihoods, labels = answers(80, 4, seed=1)
    labels[labels == 3] = 0
    assert not confident_joint(likelihoods, labels)[:3, 3].any()
    likelihoods[labels == 2, 2] = 0
    found = {one.photo for one in suspects(likelihoods, labels)}
    assert found < {*range(80)}
    assert (labels[[i for i in range(80) if i not in found]] == 2).any()


def test_copies_of_two_labels_come_first_the_less_believed_one_before_the_other():
    likelihoods = np.array(
        [[0.9, 0.05, 0.05], [0.3, 0.6, 0.1], [0.9, 0.05, 0.05], [0.1, 0.8, 0.1], [0.2, 0.1, 0.7],
         [0.01, 0.98, 0.01], [0.9, 0.05, 0.05]]
    )  # fmt: skip
    labels = [0, 1, 1, 1, 2, 0, 0]
    found = suspects(likelihoods, labels, copies=[[3, 4], [0, 6], [0, 2]])
    assert [(one.photo, one.label, one.likely, one.copies) for one in found] == [
        (2, 1, 0, (0,)),
        (0, 0, 1, (2,)),
        (4, 2, 1, (3,)),
        (3, 1, 2, (4,)),
        (5, 0, 1, ()),
    ]
    assert [one.score for one in found] == [1, 1, 1, 1, pytest.approx(0.99)]


def test_among_more_copies_those_that_differ_from_most_are_the_suspects():
    likelihoods = np.full((5, 3), 1 / 3)
    found = suspects(likelihoods, [0, 0, 1, 0, 2], copies=[[0, 1, 2, 3, 4]])
    assert [(one.photo, one.likely, one.copies) for one in found] == [
        (2, 0, (0, 1, 3, 4)),
        (4, 0, (0, 1, 2, 3)),
    ]


def test_rounding_keeps_the_sum():
    assert rounded(np.array([1.4, 1.45, 1.15])).tolist() == [1, 2, 1]
    assert rounded(np.array([0.6, 0.6, 1.8])).sum() == 3
    for seed in range(50):
        row = np.random.default_rng(seed).random(7)
        assert rounded(row / row.sum() * 23).sum() == 23


# --- the page ---


CLASSES = ["雛菊 & <b>", "玫瑰"]


def page(folder, found, paths, **more):
    facts = {
        "title": "Labels to check in <flowers>",
        "told": "2 of 9 labels are likely wrong",
        "found": found,
        "paths": paths,
        "labels": [one % 2 for one in range(len(paths))],
        "probabilities": np.tile([0.25, 0.75], (len(paths), 1)),
        "classes": CLASSES,
        "command": "python train.py --exclude run/suspects.csv",
    }
    return write_suspects_page(folder, **(facts | more)).read_text("utf-8")


@pytest.fixture
def photos(make_photos, tmp_path):
    root = make_photos(tmp_path / "data", ("a",), per_class=6)
    return sorted(map(str, root.rglob("*.jpg")))


def test_the_page_shows_each_suspect_with_label_likely_class_and_score(photos, tmp_path):
    found = [Suspect(2, 0, 1, 0.987), Suspect(5, 1, 0, 0.5)]
    text = page(tmp_path, found, photos)
    assert text.count("data:image/jpeg") == 2
    assert "label: <b><bdi>雛菊 &amp; &lt;b&gt;</bdi></b>" in text
    assert "likely: <b><bdi>玫瑰</bdi></b><br>score 0.987" in text
    assert "python train.py --exclude run/suspects.csv" in text
    assert "<b>" not in text.partition("<title>")[2].partition("</title>")[0]
    assert "http" not in text
    assert "more stand in suspects.csv" not in text


def test_copies_stand_side_by_side_once_with_what_the_model_gives_them(photos, tmp_path):
    found = [Suspect(1, 1, 0, 1.0, (0,)), Suspect(0, 0, 1, 1.0, (1,)), Suspect(3, 1, 0, 0.9)]
    text = page(tmp_path, found, photos)
    assert text.count("data:image/jpeg") == 3
    assert text.count('<div class="photos">') == 2  # a pair, and the others
    pair = text.partition('<div class="pairs">')[2].partition("</section>")[0]
    assert pair.index("a_01.jpg") < pair.index("a_00.jpg")
    assert "the model gives it 75.0&nbsp;%" in pair
    assert "the model gives it 25.0&nbsp;%" in pair


def test_the_page_is_bounded_and_says_how_many_it_leaves_out(tmp_path):
    paths = [f"gone/{number}.jpg" for number in range(130)]
    text = page(tmp_path, [Suspect(n, n % 2, 1 - n % 2, 0.9) for n in range(130)], paths)
    assert text.count("cannot be read any more") == 100
    assert "30 more stand in suspects.csv" in text


def test_a_page_without_suspects_says_so(tmp_path):
    text = page(tmp_path, [], [], told="none of 9 labels looks wrong", command="")
    assert "none of 9 labels looks wrong" in text
    assert "<section>" not in text
