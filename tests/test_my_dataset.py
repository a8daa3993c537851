"""my_dataset.py: photos by index and seed, whatever the workers; orders that can be resumed."""

import pickle
from collections import Counter

import pytest
import torch
from torch.utils.data import DataLoader

from imaging.preprocess import Preprocess, eval_transform, train_transform
from imaging.splitting import prepare_data
from my_dataset import Batch, Failed, MyDataSet, SeededSampler, read_split_data

SMALL = Preprocess(img_size=16)


@pytest.fixture
def dataset(make_photos, tmp_path):
    """24 photos with random changes."""
    root = make_photos(tmp_path / "data")
    paths = sorted(str(path) for path in root.rglob("*.jpg"))
    return MyDataSet(paths, [index // 8 for index in range(24)], train_transform(SMALL))


def batches(dataset, sampler, workers=0, context=None):
    loader = DataLoader(
        dataset,
        batch_size=5,
        sampler=sampler,
        num_workers=workers,
        collate_fn=MyDataSet.collate_fn,
        multiprocessing_context=context,
    )
    return list(loader)


def orders(sampler):
    return [index for index, _ in sampler]


# --- the data set ---


def test_an_item_is_tensor_and_label(dataset):
    image, label = dataset[10]
    assert image.shape == (3, 16, 16)
    assert label == 1
    assert len(dataset) == 24


def test_random_changes_depend_on_file_and_seed_alone(dataset):
    first = dataset[3, 77][0]
    torch.manual_seed(5)
    dataset[3]
    assert torch.equal(dataset[3, 77][0], first)
    assert not torch.equal(dataset[3, 78][0], first)


def test_a_seeded_item_leaves_the_generator_as_it_was(dataset):
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    dataset[3, 77]
    assert torch.equal(torch.rand(3), expected)


def test_the_generator_is_left_as_it_was_when_a_transform_fails(dataset):
    def fail(image):
        raise RuntimeError("a bug, not a bad photo")

    dataset.transform = fail
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError):
        dataset[3, 77]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("context", "workers"), [(None, 2), ("spawn", 1)])
def test_workers_do_not_change_the_batches(dataset, context, workers):
    sampler = SeededSampler(len(dataset), seed=1)
    plain = batches(dataset, sampler)
    parallel = batches(dataset, sampler, workers, context)
    assert len(plain) == len(parallel) == 5
    for one, other in zip(plain, parallel, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.indices, other.indices)


def test_a_bad_photo_is_named_and_never_replaced(dataset, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_text("no photo", "utf-8")
    dataset.images_path[2] = str(bad)
    dataset.images_path[4] = str(tmp_path / "gone.jpg")
    assert dataset[2] == Failed(str(bad), "not a picture of any format that can be read here", 2)
    first, *others = batches(dataset, SeededSampler(24, seed=0, shuffle=False), workers=1)
    assert first.images.shape == (3, 3, 16, 16)
    assert first.labels.tolist() == [0, 0, 0]
    assert first.indices.tolist() == [0, 1, 3]
    assert [failed.index for failed in first.failed] == [2, 4]
    assert first.failed[1].reason == "No such file or directory"
    assert sum(len(batch.labels) for batch in others) == 19


def test_a_batch_of_bad_photos_only_is_empty(tmp_path):
    dataset = MyDataSet([str(tmp_path / "gone.jpg")] * 2, [0, 1], eval_transform(SMALL))
    (batch,) = batches(dataset, [0, 1])
    assert len(batch.images) == len(batch.labels) == 0
    assert len(batch.failed) == 2


def test_plain_indices_work_as_keys(dataset):
    batch = next(iter(DataLoader(dataset, 4, collate_fn=dataset.collate_fn)))
    assert isinstance(batch, Batch)
    assert batch.indices.tolist() == [0, 1, 2, 3]
    assert batch.labels.dtype == torch.int64


def test_the_transform_decides_how_small_a_photo_may_be_decoded(dataset):
    assert dataset.min_size == 4 * 16
    assert MyDataSet([], [], eval_transform(SMALL)).min_size == 18
    assert MyDataSet([], [], eval_transform(SMALL), min_size=99).min_size == 99
    assert MyDataSet([], []).min_size is None


def test_the_data_set_can_be_pickled(dataset):
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again[5, 6][0], dataset[5, 6][0])


def test_the_references_function_gives_four_lists(make_photos, tmp_path):
    root = make_photos(tmp_path / "data", per_class=5)
    train_paths, train_labels, val_paths, val_labels = read_split_data(root, 0.4, seed=2)
    split = prepare_data(root, val_split=0.4, seed=2)
    assert (train_paths, train_labels) == split.train
    assert (val_paths, val_labels) == split.val
    assert Counter(val_labels) == {0: 2, 1: 2, 2: 2}


# --- the order ---


def test_order_is_a_function_of_seed_and_epoch():
    sampler = SeededSampler(50, seed=3)
    sampler.set_epoch(1)
    first = list(sampler)
    assert sorted(index for index, _ in first) == list(range(50))
    sampler.set_epoch(2)
    assert list(sampler) != first
    again = SeededSampler(50, seed=3)
    again.set_epoch(1)
    assert list(again) == first
    other = SeededSampler(50, seed=4)
    other.set_epoch(1)
    assert orders(other) != [index for index, _ in first]


def test_seeds_of_photos_differ_within_and_between_epochs():
    sampler = SeededSampler(200, seed=0)
    seeds = [seed for _, seed in sampler]
    sampler.set_epoch(1)
    seeds += [seed for _, seed in sampler]
    assert len(set(seeds)) == 400
    assert len({seed % 2**32 for seed in seeds}) == 400  # torch's generator uses the lower half


def test_order_of_today_is_that_of_tomorrow():
    """A run must resume with the order it began with, also with a newer version of this file."""
    sampler = SeededSampler(9, seed=1)
    sampler.set_epoch(2)
    assert orders(sampler) == [4, 3, 6, 2, 0, 8, 5, 1, 7]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_resuming_within_an_epoch_skips_what_was_seen(world_size):
    for rank in range(world_size):
        sampler = SeededSampler(20, seed=0, rank=rank, world_size=world_size)
        sampler.set_epoch(4)
        whole = list(sampler)
        assert len(sampler) == len(whole)
        sampler.set_epoch(4, start=3)
        assert list(sampler) == whole[3:]
        assert len(sampler) == len(whole) - 3
    sampler.set_epoch(4, start=99)
    assert len(sampler) == len(list(sampler)) == 0


def test_batches_of_all_ranks_together_are_those_of_one_process():
    ranks = [SeededSampler(20, seed=0, rank=rank, world_size=3) for rank in range(3)]
    shares = [orders(rank) for rank in ranks]
    assert [len(share) for share in shares] == [len(rank) for rank in ranks] == [7, 7, 6]
    alone = orders(SeededSampler(20, seed=0))
    for start in range(0, 7, 2):
        together = set().union(*(share[start : start + 2] for share in shares))
        assert together == set(alone[3 * start : 3 * start + 6])


def test_evaluation_takes_every_photo_once_whatever_the_ranks():
    ranks = [SeededSampler(20, seed=0, shuffle=False, rank=r, world_size=3) for r in range(3)]
    assert sorted(index for rank in ranks for index, _ in rank) == list(range(20))
    assert orders(ranks[0])[:3] == [0, 3, 6]
    assert [len(rank) for rank in ranks] == [7, 7, 6]


def test_a_rank_without_a_photo_yields_nothing():
    sampler = SeededSampler(2, seed=0, rank=2, world_size=3)
    assert list(sampler) == []
    assert len(sampler) == 0


def test_every_epoch_of_a_persistent_loader_has_its_own_order(dataset):
    sampler = SeededSampler(len(dataset), seed=0)
    loader = DataLoader(
        dataset,
        batch_size=8,
        sampler=sampler,
        num_workers=1,
        persistent_workers=True,
        collate_fn=dataset.collate_fn,
    )
    seen = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        seen.append([index for batch in loader for index in batch.indices.tolist()])
    assert seen[0] != seen[1]
    assert sorted(seen[0]) == sorted(seen[1]) == list(range(24))
