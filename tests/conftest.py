"""What every test shares: the project on the path, quiet threads, small photo folders."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

if not torch.cuda.is_available():  # kernels for GPUs then run on the CPU (tests/test_triton.py)
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def pytest_configure(config):
    """`pytest -k triton` runs the slow ones, too."""
    if "triton" in config.option.keyword and "not slow" in config.option.markexpr:
        config.option.markexpr = ""


@pytest.fixture(autouse=True)
def _same_random_numbers_in_any_order():
    torch.manual_seed(0)


def draw_class_photo(rng, hue, size=48):
    """Returns a noisy photo whose colour says its class, so that a tiny model can learn it."""
    base = np.zeros((size, size, 3))
    base[..., hue % 3] = 160
    base[: size // 2, :, (hue + 1) % 3] = 60 * (hue // 3)
    return Image.fromarray(np.clip(base + rng.normal(40, 25, base.shape), 0, 255).astype("uint8"))


@pytest.fixture(scope="session")
def make_photos():
    """Returns make(root, classes=("daisy", "roses", "tulips"), per_class=8, size=48) -> root."""

    def make(root, classes=("daisy", "roses", "tulips"), per_class=8, size=48, seed=0):
        rng = np.random.default_rng(seed)
        for hue, name in enumerate(classes):
            folder = Path(root) / name
            folder.mkdir(parents=True)
            for number in range(per_class):
                photo = draw_class_photo(rng, hue, size)
                photo.save(folder / f"{name}_{number:02d}.jpg", quality=90)
        return Path(root)

    return make


@pytest.fixture
def call(monkeypatch, capsys):
    """Returns call(main, *words) -> (exit status, output, errors) of a command, in this process."""

    from system.terminal import run_cli  # only now is the project on the path

    def call(main, *words):
        monkeypatch.setattr(sys, "argv", [f"{main.__module__}.py", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            run_cli(main)
        captured = capsys.readouterr()
        return end.value.code, captured.out, captured.err

    return call


@pytest.fixture
def no_pictures(monkeypatch):
    """Leaves out of a run its pictures and page: half the time of a tiny one."""
    import train  # only where it is wanted: it brings all of the project with it

    for name in ("show_start", "write_results"):
        monkeypatch.setattr(train, name, lambda *_: None)
