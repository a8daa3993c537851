"""grouping.py: what belongs together stays together, in folds as in the split."""

from collections import Counter

import pytest

from imaging.grouping import grouped_folds


def photos(counts, root="data"):
    """Paths and labels of so many photos a class."""
    pairs = [(f"{root}/{c}/{n:03d}.jpg", c) for c, count in enumerate(counts) for n in range(count)]
    return [path for path, _ in pairs], [label for _, label in pairs]


def test_folds_share_all_photos_and_are_stratified():
    paths, labels = photos((23, 50, 7))
    folds = grouped_folds(paths, labels, {}, 5, seed=1)
    assert sorted(index for fold in folds for index in fold) == list(range(80))
    for fold in folds:
        counts = Counter(labels[index] for index in fold)
        assert counts[0] in (4, 5)
        assert counts[1] == 10
        assert counts[2] in (1, 2)


def test_folds_keep_groups_whole_also_across_classes():
    paths, labels = photos((30, 30, 30))
    groups = {path: f"group {int(path[-7:-4]) // 3}" for path in paths}  # of nine, in all classes
    folds = grouped_folds(paths, labels, groups, 5, seed=0)
    where = {paths[index]: number for number, fold in enumerate(folds) for index in fold}
    for group in set(groups.values()):
        assert len({where[path] for path in paths if groups[path] == group}) == 1
    assert [len(fold) for fold in folds] == [18] * 5


def test_folds_depend_on_names_and_seed_alone():
    paths, labels = photos((9, 11))
    folds = grouped_folds(paths, labels, {}, 3, seed=4, root="data")
    named = [{paths[index] for index in fold} for fold in folds]
    back = grouped_folds(paths[::-1], labels[::-1], {}, 3, seed=4, root="data")
    assert [{paths[::-1][index] for index in fold} for fold in back] == named
    moved, _ = photos((9, 11), root="/else/where")
    assert grouped_folds(moved, labels, {}, 3, seed=4, root="/else/where") == folds
    assert grouped_folds(paths, labels, {}, 3, seed=5, root="data") != folds


def test_a_rare_class_may_miss_in_a_fold_but_not_in_training():
    paths, labels = photos((20, 2))
    folds = grouped_folds(paths, labels, {}, 5, seed=0)
    assert sorted(sum(labels[index] for index in fold) for fold in folds) == [0, 0, 0, 1, 1]
    together = dict.fromkeys(paths[20:], paths[20])
    with pytest.raises(ValueError, match="belong together"):
        grouped_folds(paths, labels, together, 5, seed=0)


def test_more_folds_than_groups_are_refused():
    paths, labels = photos((4, 3))
    with pytest.raises(ValueError, match="take fewer folds"):
        grouped_folds(paths, labels, {}, 8, seed=0)
