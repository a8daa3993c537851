"""Photos at 160 pixels and weights in half precision, in one small file that every machine reads.

    write("worth.pack", ["flower_photos", "data_sets/grocery"], "deit_tiny.safetensors")
    pack = Pack("worth.pack");  pack.sets["grocery"].images, pack.weights

Photos are what prediction sees, the centre square of the shorter side, kept as JPEG. A set is a
folder of class folders, or has train/ and test/ (and validation/, which trains).
"""

import functools
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from formats.reading import WeightsFile, read_weights
from imaging.decoding import load_image
from imaging.preprocess import Fit, Preprocess
from imaging.scanning import scan_classes

SIZE = 160
MOST = 45e6  # bytes: what travels in one parcel, with room to spare
PARTS = {"train": False, "training": False, "validation": False, "val": False, "test": True}


@dataclass(frozen=True)
class PhotoSet:
    """images: uint8 (M, 3, 160, 160). labels: (M,). test: whether the set's own test part has it.

    test is all False where the set has no such part: each seed then splits for itself.
    """

    name: str
    classes: list[str]
    images: Tensor
    labels: Tensor
    test: Tensor


def write(path: str | Path, folders: list[str], weights: str) -> int:
    """Writes the pack and returns its size in bytes; the quality falls until it fits MOST."""
    model = read_weights(weights)
    preprocess = Preprocess(SIZE, mean=tuple(model.mean), std=tuple(model.std))
    found = {Path(folder).name: photos_of(Path(folder)) for folder in folders}
    squares = {
        name: [_square(file, preprocess) for file, _, _ in rows]
        for name, (_, rows) in found.items()
    }
    tensors = {f"weights/{name}": value.half() for name, value in model.state.items()}
    about = {"config": model.config, "mean": model.mean, "std": model.std, "family": model.family}
    about["sets"] = {name: classes for name, (classes, _) in found.items()}
    for quality in range(90, 40, -5):
        for name, (_, rows) in found.items():
            jpegs = [_jpeg(image, quality) for image in squares[name]]
            joined = np.frombuffer(b"".join(jpegs), np.uint8).copy()
            tensors[f"{name}/jpeg"] = torch.from_numpy(joined)
            tensors[f"{name}/ends"] = torch.tensor([len(jpeg) for jpeg in jpegs]).cumsum(0)
            tensors[f"{name}/labels"] = torch.tensor([label for _, label, _ in rows])
            tensors[f"{name}/test"] = torch.tensor([test for _, _, test in rows])
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        if size < MOST:
            break
    save_file(tensors, path, {"about": json.dumps(about | {"quality": quality})})
    return size


def photos_of(folder: Path) -> tuple[list[str], list[tuple[str, int, bool]]]:
    """Returns the class names and (file, label, whether of the test part) of each photo."""
    parts = [part for part in sorted(folder.iterdir()) if part.name.lower() in PARTS] or [folder]
    files = [
        (name, photo.path, PARTS.get(part.name.lower(), False))
        for part in parts
        for name, photos in scan_classes(str(part), []).items()
        for photo in photos
    ]
    classes = sorted({name for name, _, _ in files})
    return classes, [(path, classes.index(name), test) for name, path, test in files]


def _square(path: str, preprocess: Preprocess) -> Image.Image:
    image = load_image(path, min_size=preprocess.min_size)
    return Fit(preprocess)(image)


def _jpeg(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


class Pack:
    """A pack that was written: `sets` by name, and `weights` for `load_into`, in float32.

    Photos are decoded when they are first asked for.
    """

    def __init__(self, path: str | Path) -> None:
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["about"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self._classes, self._tensors = about["sets"], tensors
        state = {
            name.removeprefix("weights/"): value.float()
            for name, value in tensors.items()
            if name.startswith("weights/")
        }
        told = (about[key] for key in ("family", "mean", "std", "config"))
        family, mean, std, config = told
        self.weights = WeightsFile(str(path), "ours", family, "", mean, std, config, state)

    @functools.cached_property
    def sets(self) -> dict[str, PhotoSet]:
        return {name: _set(name, names, self._tensors) for name, names in self._classes.items()}


def _set(name: str, classes: list[str], tensors: dict[str, Tensor]) -> PhotoSet:
    ends = tensors[f"{name}/ends"].tolist()
    data = tensors[f"{name}/jpeg"].numpy().tobytes()
    pictures = [
        np.asarray(Image.open(io.BytesIO(data[start:end])))
        for start, end in zip([0, *ends], ends, strict=False)
    ]
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
    labels, test = tensors[f"{name}/labels"], tensors[f"{name}/test"]
    return PhotoSet(name, classes, images, labels, test)
