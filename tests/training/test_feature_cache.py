"""Frozen layers run once: the same answers, the same order, any number of views."""

from pathlib import Path

import pytest
import torch
from torch import nn

from imaging.preprocess import Preprocess, eval_transform, train_transform
from my_dataset import MyDataSet, PhotoLoader, SeededSampler
from parallel.world import World
from training import feature_cache
from training.feature_cache import Tail, fill, plan, remove, run_frozen, run_once
from training.flags import Options
from vit_model import create_model

CPU = torch.device("cpu")


def small(**options):
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2}
    model = create_model("custom", num_classes=3, **sizes | options).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture
def loader(tmp_path, make_photos):
    """A loader of 12 photos, the second of which is broken."""
    folder = make_photos(tmp_path / "photos", per_class=4, size=20)
    paths = sorted(map(str, folder.glob("*/*.jpg")))
    Path(paths[1]).write_bytes(b"broken")
    labels = [i // 4 for i in range(12)]

    def make(transform):
        dataset = MyDataSet(paths, labels, transform)
        sampler = SeededSampler(12, seed=5)
        return PhotoLoader(dataset, 5, sampler)

    return make


@pytest.mark.parametrize(
    ("trainable", "skip"),
    [
        (["head.weight", "head.bias"], 4),
        (["head.weight", "norm.bias"], 3),
        (["head.weight", "blocks.2.mlp.fc1.spline_weight"], 2),
        (["blocks.0.mlp.fc1.spline_weight"], 0),
        (["cls_token", "head.weight"], -1),
    ],
)
def test_what_comes_before_everything_that_trains_is_skipped(trainable, skip):
    assert plan(small(), trainable) == skip


@pytest.mark.parametrize(
    ("flags", "processes", "skip"),
    [
        ({}, 1, 4),
        ({"aug": "none"}, 2, 4),
        ({"aug": "basic"}, 1, 0),
        ({"aug": "basic", "cache_views": 2}, 1, 4),
        ({"reprob": 0.1}, 1, 0),
        ({"mixup": 0.1, "cache_views": 2}, 1, 0),
        ({"cutmix": 0.1}, 1, 0),
        ({"teacher": "best.pth"}, 1, 0),
        ({"fsdp": True}, 1, 4),  # no effect with one process
        ({"fsdp": True}, 2, 0),
    ],
)
def test_layers_run_once_where_no_epoch_needs_them_anew(flags, processes, skip):
    world = World(size=processes)
    assert run_once(small(), ["head.weight"], Options(**flags), world) == skip
    assert run_once(small(), ["cls_token"], Options(**flags), world) == 0


@pytest.mark.parametrize("skip", [1, 2, 3, 4])
@pytest.mark.parametrize("options", [{}, {"mlp": "kan"}, {"distilled": True, "reg_tokens": 1}])
def test_frozen_part_and_tail_make_the_whole_model(skip, options):
    model, images = small(**options), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        tokens = run_frozen(model, skip, images)
        torch.testing.assert_close(Tail(model, skip)(tokens), model(images))


def test_the_tail_trains_the_models_own_parameters():
    model = small()
    Tail(model, 3)(torch.randn(2, 5, 16)).sum().backward()
    assert model.head.weight.grad is not None
    assert model.blocks[2].mlp.fc1.weight.grad is None


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("skip", [2, 4])
def test_cached_batches_are_those_of_the_photos(loader, tmp_path, monkeypatch, in_memory, skip):
    if not in_memory:
        monkeypatch.setattr(feature_cache, "free_memory", lambda: 0)
    photos = loader(eval_transform(Preprocess(16)))
    model = small().train()
    cached = fill(model, skip, photos, 1, CPU, None, tmp_path)
    assert model.training
    assert list(tmp_path.glob(".features*")) == [] or not in_memory
    for epoch in (0, 1):
        photos.sampler.set_epoch(epoch)
        for ours, theirs in zip(cached, photos, strict=True):
            assert torch.equal(ours.labels, theirs.labels)
            assert torch.equal(ours.indices, theirs.indices)
            assert [f.path for f in ours.failed] == [f.path for f in theirs.failed]
            with torch.no_grad():
                expected = run_frozen(model.eval(), skip, theirs.images)
            torch.testing.assert_close(ours.images, expected)
    remove(tmp_path)
    assert list(tmp_path.glob(".features*")) == []


def test_each_epoch_is_served_the_next_view(loader, tmp_path):
    photos = loader(train_transform(Preprocess(16), "basic"))
    cached = fill(small(), 4, photos, 2, CPU, None, tmp_path)
    seen = []
    for epoch in range(3):
        cached.sampler.set_epoch(epoch)
        by_photo = {}
        for batch in cached:
            by_photo |= dict(zip(batch.indices.tolist(), batch.images, strict=True))
        seen.append(torch.stack([by_photo[i] for i in sorted(by_photo)]))
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0], seen[1])


def test_a_resumed_epoch_skips_what_was_done(loader, tmp_path):
    cached = fill(small(), 4, loader(eval_transform(Preprocess(16))), 1, CPU, None, tmp_path)
    whole = [batch.indices for batch in cached]
    cached.sampler.set_epoch(0, start=5)
    assert len(cached) == 2
    rest = [batch.indices for batch in cached]
    assert all(torch.equal(a, b) for a, b in zip(rest, whole[1:], strict=True))


def test_no_readable_photo_is_said(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"broken")
    dataset = MyDataSet([str(path)], [0], eval_transform(Preprocess(16)))
    loader = PhotoLoader(dataset, 1, SeededSampler(1, 0))
    with pytest.raises(ValueError, match="no photo could be read"):
        fill(small(), 4, loader, 1, CPU, None, tmp_path)
