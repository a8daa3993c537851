"""Pretrained weights: reads any file, says what it holds, fits it to a model, builds the KAN-ViT.

    python pretrained.py FILE                     # describe a file
    python pretrained.py FILE --save OUT.pth      # write it in our format, or as OUT.safetensors

    weights = read_weights("deit_tiny_patch16_224.safetensors")
    model = create_model(**weights.config | {"num_classes": 5, "mlp": "kan", "kan_rank": 16})
    print(*load_into(model, weights).lines(), sep="\\n")    # logits equal those of the ViT
    calibrate(model, batches)                               # ranges of the splines, from photos

The work is done in `weight_files` (opens a file), `weight_formats` (others' names to ours),
`weight_reader` (what a file holds), `weight_resizing` and `weight_loader` (into a model),
`calibration` and `downloads`.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch

from calibration import calibrate
from downloads import fetch_file, fetch_flower_photos
from my_dataset import Preprocess
from options import Parser, existing, run_cli
from utils import CHECKPOINT_VERSION, atomic_file, save_checkpoint
from vit_model import VisionTransformer, create_model, find_variant
from weight_files import parse_json
from weight_loader import LoadReport, load_into
from weight_reader import WeightsFile, read_weights

__all__ = [
    "LoadReport",
    "LoadedModel",
    "WeightsFile",
    "calibrate",
    "fetch_flower_photos",
    "fetch_weights",
    "load_into",
    "load_model",
    "read_weights",
]


@dataclass
class LoadedModel:
    """A model ready to predict, with the names of its classes and its way to prepare photos."""

    model: VisionTransformer
    classes: list[str]
    preprocess: Preprocess
    weights: WeightsFile


def load_model(
    path: str | Path,
    class_indices: str | Path | None = None,
    device: str | torch.device = "cpu",
) -> LoadedModel:
    """Returns the model in a weights file, in eval mode on `device`.

    class_indices: a JSON file with the names of the classes, asked only where the weights file
        does not name them; without one they are called by their numbers.
    Raises ValueError or FileNotFoundError for a file without a head, or an incomplete one.
    """
    weights = read_weights(path)
    if not weights.config["num_classes"]:
        raise ValueError(
            f"{path} holds {weights.holds}: it cannot tell classes apart before it is fine-tuned "
            f"(train.py --weights {path})"
        )
    model = _build(weights)
    classes = weights.classes or class_names(class_indices, weights)
    return LoadedModel(model.to(device).eval(), classes, _preprocess(weights), weights)


def _build(weights: WeightsFile) -> VisionTransformer:
    """Returns the model that the file describes, every tensor from the file."""
    model = create_model(**weights.config)
    missing = load_into(model, weights).new
    if missing:
        name, reason = next(iter(missing.items()))
        raise ValueError(
            f"{weights.path} is incomplete: {len(missing)} tensors are missing, such as {name} "
            f"({reason})"
        )
    return model


def _preprocess(weights: WeightsFile) -> Preprocess:
    if weights.preprocess:
        return Preprocess.from_dict(weights.preprocess)
    return Preprocess(img_size=weights.config["img_size"], mean=weights.mean, std=weights.std)


def class_names(class_indices: str | Path | None, weights: WeightsFile) -> list[str]:
    """Returns the class names in a class_indices.json, {"0": "daisy", ...}, in order."""
    count = weights.config["num_classes"]
    if class_indices is None:
        return [str(i) for i in range(count)]
    path = Path(class_indices)
    if not path.is_file():
        raise FileNotFoundError(
            f"{weights.path} does not name its {count} classes and there is no {path}; "
            f"--class-indices names a file that does"
        )
    try:
        names = parse_json(path.read_text(encoding="utf-8"))
        classes = [str(names[str(i)]) for i in range(len(names))]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(
            f'{path} is not a table of class names such as {{"0": "daisy", "1": "roses"}}'
        ) from None
    if len(classes) != count:
        raise ValueError(
            f"{path} names {len(classes)} classes, but {weights.path} has {count}; --class-indices "
            f"names the right file"
        )
    return classes


def fetch_weights(name: str, folder: str | Path = "weights") -> Path:
    """Returns the path of the pretrained file of variant `name`, downloading it when missing.

    Raises ValueError for an unknown name or one without a known address, OSError when offline.
    """
    variant = find_variant(name)
    if variant.url is None:
        raise ValueError(
            f"no address is known for the weights of {name}; --weights FILE takes them from a file"
        )
    return fetch_file(variant.url, folder, variant.sha256)


def save_weights(path: str | Path, loaded: LoadedModel) -> None:
    """Writes a model in our checkpoint format, or as .safetensors with the same facts as metadata.

    The file appears whole or not at all.
    """
    state = {name: value.contiguous().cpu() for name, value in loaded.model.state_dict().items()}
    facts = {
        "config": loaded.model.config,
        "classes": loaded.classes,
        "preprocess": loaded.preprocess.to_dict(),
        "epoch": loaded.weights.meta.get("epoch", 0),
        "metrics": loaded.weights.meta.get("metrics", {}),
        "version": CHECKPOINT_VERSION,
    }
    if Path(path).suffix != ".safetensors":
        save_checkpoint(path, {"model": state} | facts)
        return
    metadata = {"format": "pt"} | {key: json.dumps(value) for key, value in facts.items()}
    with atomic_file(path) as file:
        file.write(safetensors.torch.save(state, metadata))


def describe(weights: WeightsFile) -> list[str]:
    """What a file holds, in words."""
    config = weights.config
    parameters = sum(v.numel() for k, v in weights.state.items() if not k.endswith(".grid"))
    dtypes = sorted({str(v.dtype).removeprefix("torch.") for v in weights.state.values()})
    lines = [
        f"file: {weights.path}",
        f"format: {weights.format}",
        f"model: {weights.holds}",
        f"parameters: {parameters:,} in {len(weights.state)} tensors of {', '.join(dtypes)}",
        f"normalisation: {weights.family}, mean {weights.mean}, std {weights.std} "
        f"({weights.family_reason})",
        f"classes: {_some(weights.classes) if weights.classes else 'not named'}",
    ]
    if config.get("mlp", "mlp") != "mlp":
        kan = {key: value for key, value in config.items() if key.startswith("kan_")}
        lines.append(f"KAN blocks: {', '.join(f'{k[4:]} {v}' for k, v in kan.items())}")
    if weights.preprocess:
        lines.append(f"preprocessing: {weights.preprocess}")
    lines += [f"{key}: {value}" for key, value in weights.meta.items() if key != "args"]
    return lines


def _some(names: list[str], most: int = 10) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def main() -> None:
    parser = Parser(prog="pretrained.py", description="Describes and converts weights files.")
    parser.add_argument(
        "file", type=existing, metavar="FILE", help="a weights file of any supported format"
    )
    flag = parser.add_argument_group("output").add_argument
    flag(
        "--save",
        metavar="OUT",
        help="write it in our format (config, classes, preprocessing), or as OUT.safetensors",
    )
    flag(
        "--class-indices",
        type=existing,
        metavar="FILE",
        help="with --save: JSON with the class names (default: numbers)",
    )
    args = parser.parse_args()
    if args.class_indices and not args.save:
        parser.error("--class-indices needs --save OUT")
    weights = read_weights(args.file)
    print(*describe(weights), sep="\n")
    if args.save:
        classes = weights.classes or class_names(args.class_indices, weights)
        loaded = LoadedModel(_build(weights), classes, _preprocess(weights), weights)
        save_weights(args.save, loaded)
        print(f"wrote {args.save}")


if __name__ == "__main__":
    run_cli(main)
