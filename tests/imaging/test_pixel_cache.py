"""pixel_cache.py: each photo is decoded once, whichever process does it, and no pixel changes."""

import gc
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from torch.utils.data import DataLoader

import my_dataset
from imaging import pixel_cache
from imaging.decoding import decoded_size, load_image
from imaging.pixel_cache import ImageCache, open_cache
from imaging.preprocess import Preprocess, eval_transform, train_transform
from my_dataset import Failed, MyDataSet, SeededSampler

SMALL = Preprocess(img_size=16)
EXIF_TURNED = Image.Exif()
EXIF_TURNED[0x0112] = 6


@pytest.fixture
def paths(tmp_path):
    """Photos of several sizes and kinds, the last of which is damaged."""
    rng, folder = np.random.default_rng(0), tmp_path / "photos"
    folder.mkdir()

    def noise(*shape):
        return Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))

    noise(40, 50, 3).save(folder / "0.jpg")
    noise(300, 420, 3).save(folder / "1.jpg")  # decoded at reduced scale
    noise(301, 403, 3).save(folder / "2.jpg", exif=EXIF_TURNED)
    noise(30, 33, 4).save(folder / "3.png")
    noise(30, 30).save(folder / "4.png")
    (folder / "5.jpg").write_bytes((folder / "1.jpg").read_bytes()[:200])
    return sorted(str(path) for path in folder.iterdir())


def data(paths, transform, choice="ram", folder=None):
    dataset = MyDataSet(paths, list(range(len(paths))), transform)
    if choice:
        dataset.keep_decoded(choice, folder)
    return dataset


def loaded(dataset, workers=0, context=None):
    """All images of an epoch, by index, and the indices of the photos that failed."""
    loader = DataLoader(
        dataset,
        2,
        sampler=SeededSampler(len(dataset), 3),
        num_workers=workers,
        collate_fn=MyDataSet.collate_fn,
        multiprocessing_context=context,
    )
    images, failed = {}, []
    for batch in loader:
        images |= dict(zip(batch.indices.tolist(), batch.images, strict=True))
        failed += [failure.index for failure in batch.failed]
    return images, failed


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.mark.parametrize("choice", ["ram", "disk"])
@pytest.mark.parametrize(
    "transform",
    [
        eval_transform(SMALL),
        train_transform(SMALL, "none", 0.5),
        train_transform(SMALL, "basic"),
        train_transform(SMALL, "rand", 0.5, as_bytes=True),
    ],
)
def test_pixels_are_those_of_the_uncached_photos(paths, tmp_path, transform, choice):
    plain, failed = loaded(data(paths, transform, None))
    kept = data(paths, transform, choice, tmp_path)
    for _ in range(2):  # filled, then served
        images, failed_again = loaded(kept)
        assert equal(images, plain)
        assert failed_again == failed == [5]


def test_a_photo_is_decoded_once(paths, tmp_path, monkeypatch):
    decoded = []

    def counting(path, min_size):
        decoded.append(path)
        return load_image(path, min_size)

    monkeypatch.setattr(my_dataset, "load_image", counting)
    dataset = data(paths, train_transform(SMALL))
    loaded(dataset)
    assert sorted(decoded) == paths
    loaded(dataset)
    assert decoded[len(paths) :] == [paths[5]]  # the bad one, to say again what is wrong


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_what_workers_decode_all_processes_have(paths, context):
    dataset = data(paths, train_transform(SMALL))
    plain, _ = loaded(data(paths, train_transform(SMALL), None))
    images, _ = loaded(dataset, workers=2, context=context)
    assert equal(images, plain)
    assert [dataset.cache.get(i) is not None for i in range(6)] == [True] * 5 + [False]


def test_a_photo_that_goes_away_is_still_served_and_a_new_failure_is_told(paths):
    dataset = data(paths, eval_transform(SMALL))
    dataset[0]
    os.unlink(paths[0])
    os.unlink(paths[1])
    assert dataset[0][0].shape == (3, 16, 16)
    assert isinstance(dataset[1], Failed)


def test_sizes_are_known_before_decoding(paths):
    for path in paths[:5]:
        for min_size in (None, 64):
            assert decoded_size(path, min_size) == load_image(path, min_size).size
    assert decoded_size(paths[1], 64) == (105, 75)
    assert decoded_size(str(paths[0]) + "-not-there") == (0, 0)


def test_a_picture_of_another_size_is_not_kept():
    cache = ImageCache([(2, 3), (1, 1)])
    cache.put(0, Image.new("RGB", (3, 2), (1, 2, 3)))
    assert cache.get(0) is None
    cache.put(1, Image.new("RGB", (1, 1), (1, 2, 3)))
    assert cache.get(1).getpixel((0, 0)) == (1, 2, 3)
    assert cache.get(0) is None


def test_a_file_on_disk_has_no_name_and_takes_its_room_at_once(tmp_path):
    cache = ImageCache([(100, 100)], tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert os.fstat(cache.descriptor).st_blocks * 512 >= 30_001


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_memory_is_not_taken_from_dev_shm():
    cache = ImageCache([(10, 10)])
    assert "memfd" in os.readlink(f"/proc/self/fd/{cache.descriptor}")


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_what_nobody_holds_any_more_is_free_again(paths):
    dataset = data(paths, eval_transform(SMALL))
    loader = DataLoader(dataset, 2, num_workers=1, persistent_workers=True, collate_fn=list)
    list(loader)

    def kept():
        links = (os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd"))
        return sum("memfd:photos" in os.readlink(link) for link in links if os.path.islink(link))

    before = kept()
    del dataset, loader
    gc.collect()
    assert kept() == before - 2  # its own, and the map's


def test_nothing_is_left_after_a_kill(tmp_path):
    code = (
        "import os, signal, pathlib; from imaging.pixel_cache import ImageCache;"
        f"ImageCache([(9, 9)], pathlib.Path({str(tmp_path)!r})).bytes[0];"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == -9
    assert list(tmp_path.iterdir()) == []


# --- the choice ---


def choose(choice, monkeypatch, tmp_path, free, count=1000):
    monkeypatch.setattr(pixel_cache, "free_memory", lambda: free)
    asked = []

    def size_of(path):
        asked.append(path)
        return 100, 100

    cache, line = open_cache(choice, ["p"] * count, size_of, tmp_path)
    return cache is not None, line, len(asked)


def test_auto_takes_memory_where_a_quarter_of_the_free_holds_all(monkeypatch, tmp_path):
    kept, line, _ = choose("auto", monkeypatch, tmp_path, 4 * 30_000_001)
    assert kept
    assert line == "kept, 30.0 MB of memory"
    kept, line, _ = choose("auto", monkeypatch, tmp_path, 3 * 30_000_001)
    assert not kept
    assert "30.0 MB are more than the 22.5 MB" in line
    assert "--cache-images disk" in line


def test_a_large_set_is_judged_by_a_sample(monkeypatch, tmp_path):
    kept, _, asked = choose("auto", monkeypatch, tmp_path, 1000, count=100_000)
    assert not kept
    assert asked < 600


def test_what_was_asked_for_and_does_not_fit_is_refused_with_a_sentence(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match=r"--cache-images ram: .* 30.0 MB, but only 1.0 MB"):
        choose("ram", monkeypatch, tmp_path, 1_000_000)
    assert choose("ram", monkeypatch, tmp_path, 30_000_000)[0]
    assert not choose("off", monkeypatch, tmp_path, 10**12)[0]
    assert "of disk" in choose("disk", monkeypatch, tmp_path, 0)[1]
