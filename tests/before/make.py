"""Made what lies beside it: runs that an older program began, and the end that they reached there.

    cd tests/before && KAN_COMPILE=0 OMP_NUM_THREADS=1 python make.py CHECKOUT

CHECKOUT holds the program whose runs are to be kept: commit b7f96e5 for those that are here. Each
run is stopped as by SIGTERM after the first of two epochs, then copied and finished, so that
test_before.py can finish it, too, and compare.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

HERE = Path(__file__).resolve().parent
MODEL = {"name": "custom", "img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2}
MODEL |= {"num_heads": 2, "mlp_hidden": 64, "num_classes": 2}
SHARED = "--data-path photos --weights weights.pth --freeze-layers false --epochs 2 --amp off"
SHARED += " --workers 0 --batch-size 4 --device cpu"
RUNS = {
    "mlp": "--lr 0.001 --mixup 0.2 --drop-path 0.1 --aug trivial --reprob 0.2",
    "gkan": "--mlp gkan --lr 0.05 --accum-steps 2 --opt sgd",
}
# Within the first epoch's end a run looks for signals before it saves: so it stops after it.
STOP = """
import os, signal, sys
sys.path.insert(0, sys.argv.pop(1))
import train
written = train.RunLog.epoch
def epoch(log):
    written(log)
    os.kill(os.getpid(), signal.SIGTERM)
train.RunLog.epoch = epoch
sys.exit(train.main())
"""
# What a run is resumed without.
LEFT_OUT = ("*.png", "*.html", "*.tmp", "events.*", ".lock", "best.pth")


def draw_photos() -> None:
    """Twenty photos that a small model can nearly tell apart."""
    rng = np.random.default_rng(0)
    for hue, name in enumerate(("cats", "dogs")):
        folder = HERE / "photos" / name
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(10):
            pixels = rng.normal(110, 50, (6, 5, 3)).clip(0, 255)
            pixels[..., hue] += 30
            small = Image.fromarray(pixels.clip(0, 255).astype("uint8"))
            small.resize((25, 30), Image.Resampling.BILINEAR).save(folder / f"{number}.png")


def make_weights() -> None:
    """A pretrained model of random numbers, in the program's own format."""
    from vit_model import create_model

    torch.manual_seed(0)
    model = create_model(**MODEL)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    preprocess = {"img_size": 16, "resize_mode": "crop", "resize": None, "mean": [0.5, 0.4, 0.3]}
    checkpoint = {
        "model": model.state_dict(),
        "config": model.config,
        "classes": ["left", "right"],
        "preprocess": preprocess | {"std": [0.2, 0.3, 0.4], "interpolation": "bilinear"},
        "version": 1,
    }
    torch.save(checkpoint, HERE / "weights.pth")


def digests(state: dict) -> dict[str, str]:
    """SHA-256 of the bytes of each tensor."""
    return {
        name: hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()
        for name, value in sorted(state.items())
    }


def machine() -> dict:
    """What decides whether the same numbers come out to the last bit.

    The vendor, too: MKL has other kernels for other makers' processors of one capability.
    """
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text("utf-8").splitlines() if cpuinfo.exists() else []
    return {
        "vendor": next((line.split(":")[1].strip() for line in lines if "vendor" in line), ""),
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def logits(weights: Path, folder: Path) -> list[list[float]]:
    """A model's logits of the photos in `folder`, in sorted order."""
    from pretrained import load_model

    try:
        from imaging.decoding import load_image
        from imaging.preprocess import eval_transform
    except ImportError:  # before there were rooms
        from my_dataset import eval_transform, load_image

    loaded = load_model(weights)
    transform = eval_transform(loaded.preprocess)
    images = [transform(load_image(path)) for path in sorted(folder.rglob("*.png"))]
    with torch.inference_mode():
        return loaded.model(torch.stack(images)).tolist()


def predictions(checkout: Path, folder: Path, weights: Path) -> list[dict]:
    words = [sys.executable, str(checkout / "predict.py"), "photos", "--weights", str(weights)]
    words += ["--json", "--workers", "1", "--batch-size", "4"]
    told = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in told.splitlines()]


def make_run(name: str, flags: str, checkout: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shutil.copytree(HERE / "photos", folder / "photos")
        shutil.copy(HERE / "weights.pth", folder)
        words = [*SHARED.split(), *flags.split(), "--output", name]
        start = [sys.executable, "-c", STOP, str(checkout), *words]
        assert subprocess.run(start, cwd=folder, check=False).returncode == 128 + 15
        shutil.rmtree(HERE / name, ignore_errors=True)
        ignored = shutil.ignore_patterns(*LEFT_OUT)
        shutil.copytree(folder / name, HERE / name, ignore=ignored)
        shutil.copy(folder / name / "best.pth", HERE / name)
        words = [sys.executable, str(checkout / "train.py"), "--resume", name]
        subprocess.run(words, cwd=folder, check=True)
        last = torch.load(folder / name / "last.pth", weights_only=True)
        end = {
            "machine": machine(),
            "model": digests(last["model"]),
            "metrics": last["metrics"],
            "best_epoch": last["best"]["epoch"],
            "logits": logits(folder / name / "last.pth", HERE / "photos"),
            "logits_before": logits(HERE / name / "best.pth", HERE / "photos"),
            "predictions": predictions(checkout, folder, folder / name / "last.pth"),
            "predictions_before": predictions(checkout, folder, HERE / name / "best.pth"),
        }
        text = json.dumps(end, indent=1, ensure_ascii=False)
        (HERE / name / "end.json").write_text(text + "\n", "utf-8")


def main() -> None:
    checkout = Path(sys.argv[1]).resolve()
    sys.path.insert(0, str(checkout))
    os.environ |= {"KAN_COMPILE": "0", "OMP_NUM_THREADS": "1"}
    draw_photos()
    make_weights()
    for name, flags in RUNS.items():
        make_run(name, flags, checkout)


if __name__ == "__main__":
    main()
