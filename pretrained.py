"""Pretrained weights: reads any file, says what it holds, fits it to a model, builds the KAN-ViT.

    python pretrained.py FILE                     # describe a file
    python pretrained.py FILE --save OUT.pth      # write it in our format, or as OUT.safetensors
    python pretrained.py FILE --save OUT --merge  # with its adapters (LoRA) merged
    python pretrained.py FILE --save OUT --without-photos    # nothing of the training photos in it
    python pretrained.py --rank FILE NAME --data-path DIR    # which suits these photos?

    weights = read_weights("deit_tiny_patch16_224.safetensors")
    model = create_model(**weights.config | {"num_classes": 5, "mlp": "kan", "kan_rank": 16})
    print(*load_into(model, weights).lines(), sep="\\n")    # logits equal those of the ViT
    calibrate(model, batches)                               # ranges of the splines, from photos

Files are read in `formats/`: `opening` (bytes to tensors), `naming` (others' names to ours),
`reading` (what a file holds), `fitting` and `resizing` (into a model).
"""

import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

import kan
from formats.checkpoints import (
    LATER_FACTS,
    checkpoint_facts,
    save_checkpoint,
    save_safetensors,
)
from formats.finding import check_output, find_weights, weights_name
from formats.finding import fetch_weights as fetch_weights
from formats.fitting import load_into
from formats.known import Known
from formats.reading import WeightsFile, read_weights
from imaging.digests import DIGEST
from imaging.preprocess import Preprocess
from splines.layer import SplineLayer
from system.files import parse_json, read_text
from system.flags import Given, Section, existing, needs_flag, number, parse
from system.terminal import command, counted, run_cli, table
from vit import catalogue
from vit_model import VARIANTS, VisionTransformer, create_model

CLASS_INDICES = "class_indices.json"  # what train.py leaves in the current folder
# Without a share left outside, a ViT's few large activations would stretch every cell of a grid.
OUTSIDE_SHARE = 0.01


@dataclass
class LoadedModel:
    """A model ready to predict, with the names of its classes and its way to prepare photos."""

    model: VisionTransformer
    classes: list[str]
    preprocess: Preprocess
    weights: WeightsFile
    classes_from: str = "the file"

    @property
    def notes(self) -> list[str]:
        """What a user should know: what was assumed, how photos are prepared for others' files,
        whence the classes where the file has none.
        """
        notes = list(self.weights.assumptions)
        if self.weights.format != "ours":
            notes.append(f"photos: {self.weights.photos}")
            why = self.weights.family_reason
            notes.append(f"normalisation: {self.preprocess.normalisation} ({why})")
        if self.model.sizes.answers == "sigmoid":
            notes.append("each class has a probability of its own: several may be true, or none")
        if not self.weights.classes:
            notes.append(f"class names: {self.classes_from}")
        return notes

    def on_data(self, classes: Sequence[str]) -> "LoadedModel":
        """The same model, with its classes named by those of the data where nothing else does."""
        names, whence = head_classes(self.weights, None, classes, names_here=True)
        return replace(self, classes=names, classes_from=whence)

    def without_photos(self) -> "LoadedModel":
        """The same model without what it keeps of its training photos: features and digests."""
        told = {key: LATER_FACTS[key] for key in ("trained_on", "known")}
        return replace(self, weights=replace(self.weights, meta=self.weights.meta | told))

    @property
    def facts(self) -> dict:
        """What our files say of it beside its tensors."""
        meta = self.weights.meta
        return checkpoint_facts(
            self.model,
            self.classes,
            self.preprocess,
            meta.get("epoch", 0),
            meta.get("metrics"),
            self.temperature,
            meta.get("trained_on", ""),
            meta.get("known"),
        )

    @property
    def temperature(self) -> float:
        """What the model's logits are divided by before they become probabilities."""
        return self.weights.meta.get("temperature", 1.0)


def load_model(
    path: str | Path,
    class_indices: str | Path | None = None,
    device: str | torch.device = "cpu",
    data_classes: Sequence[str] = (),
    names_here: bool = False,
    merge: bool = False,
) -> LoadedModel:
    """Returns the model in a weights file, in eval mode on `device`.

    class_indices: a JSON file with the names of the classes, asked only where the weights file
        does not name them. data_classes, names_here: see `head_classes`; without any the classes
        are called by their numbers. merge: whether adapters become part of the weights.
    Raises ValueError or FileNotFoundError for a file without a head, or an incomplete one.
    """
    path = find_weights(path)
    weights = read_weights(path)
    weights = weights.merged() if merge else weights
    training = command("train.py", "--weights", Path(path))
    if weights.no_head:
        raise ValueError(
            f"{path} cannot predict here: {weights.no_head}; {training} gives it a new head"
        )
    if not weights.config["num_classes"]:
        raise ValueError(
            f"{path} holds {weights.holds}: it cannot tell classes apart before it is fine-tuned "
            f"({training})"
        )
    model = _build(weights)
    classes, whence = head_classes(weights, class_indices, data_classes, names_here)
    return LoadedModel(model.to(device).eval(), classes, weights.preparation, weights, whence)


def _build(weights: WeightsFile) -> VisionTransformer:
    """Returns the model that the file describes, every tensor from the file."""
    model = create_model(**weights.config)
    missing = load_into(model, weights).new
    if missing:
        name, reason = next(iter(missing.items()))
        raise ValueError(
            f"{weights.path} is incomplete: it lacks {counted(len(missing), 'tensor')}, such as "
            f"{name} ({reason})"
        )
    return model


def head_classes(
    weights: WeightsFile,
    class_indices: str | Path | None = None,
    data_classes: Sequence[str] = (),
    names_here: bool = False,
) -> tuple[list[str], str]:
    """Returns the names of a head's classes in the order of its rows, and in words whence.

    The file's own names win; then those of `class_indices`; then, with `names_here`, those in the
    current folder's class_indices.json if they are as many, and no others than the data's; then the
    class folders of the data, where there are as many, sorted as text (0, 1, 10, 2), which is how
    training scripts number them; else numbers.
    Raises ValueError or FileNotFoundError for a `class_indices` that does not fit.
    """
    if weights.classes:
        return weights.classes, weights.classes_from
    count = weights.config["num_classes"]
    misfit = f"; {weights.classes_from}" if weights.classes_from else ""
    if class_indices is not None:
        return _class_indices(class_indices, weights), str(class_indices)
    fits = len(data_classes) == count
    names = _names_here(weights) if names_here else None
    if names and (not fits or set(names) == set(data_classes)):
        return names, f"{CLASS_INDICES} in the current folder"
    if fits:
        some = ", ".join(data_classes[:3]) + (" ..." if count > 3 else "")
        return sorted(data_classes), f"those of the data, in text order ({some}){misfit}"
    return [str(i) for i in range(count)], f"none are told, so they are numbers{misfit}"


def _names_here(weights: WeightsFile) -> list[str] | None:
    """Returns the names in the class_indices.json of the current folder if they are as many."""
    with suppress(ValueError, OSError):
        return _class_indices(CLASS_INDICES, weights)
    return None


def _class_indices(class_indices: str | Path, weights: WeightsFile) -> list[str]:
    """Returns the class names in a class_indices.json, {"0": "daisy", ...}, in order."""
    path, count = Path(class_indices), weights.config["num_classes"]
    if not path.is_file():
        raise FileNotFoundError(
            f"{weights.path} does not name its {count} classes and there is no {path}; "
            f"--class-indices names a file that does"
        )
    classes = _names_in(path)
    if len(classes) != count:
        raise ValueError(
            f"{path} names {counted(len(classes), 'class', 'classes')}, but {weights.path} has "
            f"{count}; --class-indices names the right file"
        )
    return classes


def _names_in(path: Path) -> list[str]:
    text = read_text(path)
    try:
        names = parse_json(text)
        return [str(names[str(i)]) for i in range(len(names))]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(
            f'{path} is not a table of class names such as {{"0": "daisy", "1": "roses"}}'
        ) from None


def check_names(weights: str, classes: Sequence[str], class_indices: str | Path | None) -> None:
    """Raises ValueError where --class-indices names other classes than a file that names its own.

    Whoever typed it would believe in its names.
    """
    if class_indices is not None and _names_in(Path(class_indices)) != list(classes):
        raise ValueError(
            f"--class-indices {class_indices} needs weights that name no classes: {weights} names "
            f"its own ({_some(classes)}); leave the flag out"
        )


def save_weights(path: str | Path, loaded: LoadedModel) -> None:
    """Writes a model in our checkpoint format, or as .safetensors with the same facts as metadata.

    The file appears whole or not at all.
    """
    state, facts = loaded.model.state_dict(), loaded.facts
    if Path(path).suffix == ".safetensors":
        save_safetensors(path, state, facts)
    else:
        state = {name: value.contiguous().cpu() for name, value in state.items()}
        save_checkpoint(path, {"model": state} | facts)


@dataclass
class CalibrationReport:
    """What `calibrate` did: the lowest low and highest high of each layer, and who was left out."""

    ranges: dict[str, tuple[float, float]]
    skipped: list[str]
    images: int

    def lines(self) -> list[str]:
        """The report in words, for printing."""
        lines = []
        if self.ranges:
            low = min(low for low, _ in self.ranges.values())
            high = max(high for _, high in self.ranges.values())
            lines.append(
                f"calibrated the grids of {len(self.ranges)} KAN layers on "
                f"{counted(self.images, 'photo')}, each feature its own: from {low:.3g} at the "
                f"lowest to {high:.3g} at the highest"
            )
        if self.skipped:
            lines.append(f"left {len(self.skipped)} KAN layers alone: their splines are trained")
        return lines


@torch.no_grad()
def calibrate(model: VisionTransformer, batches: Iterable[Tensor]) -> CalibrationReport:
    """Sets the grid range of every KAN layer whose splines are still zero from real photos.

    batches: images (B, C, S, S), prepared as for prediction. All layers are measured in one pass,
    since zero splines change nothing whatever their range. Layers with trained splines keep theirs.
    Raises ValueError without a photo.
    """
    layers = {n: layer for n, layer in model.named_modules() if isinstance(layer, SplineLayer)}
    fresh = {name: layer for name, layer in layers.items() if layer.splines_are_zero}
    photos = [batch.to(model.patch_embed.proj.weight) for batch in batches if len(batch)]
    if not photos:
        raise ValueError("there is no photo to calibrate the KAN layers on")
    ranges = kan.calibrate(model, photos, OUTSIDE_SHARE, fresh)
    skipped = [name for name in layers if name not in fresh]
    return CalibrationReport(ranges, skipped, sum(map(len, photos)))


def gmacs(name: str) -> float:
    """Returns the multiply-accumulates of one image, in 10^9, as torch's flop counter counts them.

    On the meta device: shapes alone are computed, so even the largest model takes no memory.
    """
    from torch.utils.flop_counter import FlopCounterMode  # 0.1 s

    with torch.device("meta"):
        model = create_model(name).eval()
        size = VARIANTS[name].sizes["img_size"]
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, size, size))
    return counter.get_total_flops() / 2e9


def parameters(name: str) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in create_model(name).parameters())


def model_table() -> str:
    """Returns the table: name, parameters, GMACs, image size, normalisation, weights' address."""
    rows = [("name", "params", "GMACs", "image", "normalisation", "weights")]
    for name, variant in VARIANTS.items():
        rows.append(
            (
                name,
                f"{parameters(name) / 1e6:.1f} M",
                f"{gmacs(name):.2f}",
                str(variant.sizes["img_size"]),
                {"half": "0.5", "imagenet": "ImageNet"}[variant.family],
                variant.url or "(no known address)",
            )
        )
    return "\n".join(table(rows, "<>>><<"))


def hub_table() -> str:
    """Returns the table of models to be fetched from the hub by name, and how."""
    how = "By name from the hub (pip install huggingface_hub): --weights hf-hub:timm/NAME"
    return "\n".join([how, *table(catalogue.rows(), "<>><<")])


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
        f"photos: {weights.photos}",
        f"classes: {_some(weights.classes) if weights.classes else 'not named'}"
        + (f" ({weights.classes_from})" if weights.classes_from else ""),
    ]
    lines += [f"{name}: {value}" for name, value in weights.facts.told.items()]
    lines += weights.assumptions
    if weights.no_head:
        lines.append(f"head: left out, for {weights.no_head}")
    lines += [
        f"ignored tensors: {_some([n for n, why in weights.ignored.items() if why == reason], 3)} "
        f"({reason})"
        for reason in dict.fromkeys(weights.ignored.values())
    ]
    lines += [
        f"ignored in {place}: {', '.join(keys)}" for place, keys in weights.facts.ignored.items()
    ]
    if config.get("mlp", "mlp") != "mlp":
        kan = {key: value for key, value in config.items() if key.startswith("kan_")}
        lines.append(f"KAN blocks: {', '.join(f'{k[4:]} {v}' for k, v in kan.items())}")
    told = {key: value for key, value in weights.meta.items() if key != "args"}
    if "trained_on" in told:
        told["trained_on"] = counted(len(told["trained_on"]) // DIGEST, "photo")
    if "known" in told:
        known = Known.from_dict(told["known"])
        told["known"] = f"features of {counted(len(known.features), 'photo')}" if known else "none"
    return lines + [f"{key}: {value}" for key, value in told.items()]


def _some(names: list[str], most: int = 10) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


FILE, OUTPUT, RANKING = Section(""), Section("output"), Section("comparing")


@dataclass(frozen=True)
class Options(Given):
    """What a command line of pretrained.py says, a row for each flag: see `system.flags`."""

    file: str | None = FILE.row(
        None,
        "weights of any supported format, or a name to download them by",
        "file",
        kind="optional",
        type=weights_name,
        metavar="FILE|NAME",
    )
    save: str | None = OUTPUT.row(
        None,
        "write it in our format (config, classes, preprocessing), or as OUT.safetensors",
        metavar="OUT",
    )
    merge: bool = OUTPUT.row(
        False,
        "with --save: make adapters part of the weights",
        kind="switch",
        needs=needs_flag("save", "--save OUT"),
    )
    without_photos: bool = OUTPUT.row(
        False,
        "with --save: keep nothing of the training photos, neither their features nor digests "
        "(SECURITY.md)",
        kind="switch",
        needs=needs_flag("save", "--save OUT"),
    )
    num_heads: int | None = OUTPUT.row(
        None, "attention heads, where no file tells them", type=number(int, 1), metavar="N"
    )
    class_indices: str | None = OUTPUT.row(
        None,
        "with --save: JSON with the class names (default: numbers)",
        type=existing,
        metavar="FILE",
    )

    rank: list[str] | None = RANKING.row(
        None,
        "which of these suits the photos of --data-path best: a linear map of each one's features, "
        "judged by cross-validation on training photos (train.py --weights auto)",
        kind="list",
        type=weights_name,
        metavar="FILE|NAME",
    )
    data_path: str | None = RANKING.row(
        None,
        "folder of class folders",
        type=existing,
        metavar="DIR",
    )

    def check(self) -> None:
        if bool(self.file) == bool(self.rank):
            raise ValueError("name one FILE, or several: --rank FILE ... --data-path DIR")
        if bool(self.rank) != bool(self.data_path):
            both = "--rank FILE ...", "--data-path DIR"
            raise ValueError(" needs ".join(both if self.rank else reversed(both)))
        if self.rank and (self.save or self.num_heads):
            raise ValueError("--rank compares files; --save and --num-heads are for one FILE")
        if odd := [name for name in self.rank or () if "," in name]:
            raise ValueError(f"--rank {odd[0]}: a name without a comma is needed; rename the file")
        if self.class_indices and not self.save:
            raise ValueError("--class-indices needs --save OUT")


def main() -> int:
    about = "Describes and converts weights files."
    options = parse(Options, prog="pretrained.py", description=about)
    if options.rank:
        return rank(options.rank, options.data_path)
    file = find_weights(options.file)
    if options.save:
        check_output("--save", options.save, file)
    weights = read_weights(file, num_heads=options.num_heads)
    weights = weights.merged() if options.merge else weights
    print(*describe(weights), sep="\n")
    if options.save:
        classes, whence = head_classes(weights, options.class_indices)
        check_names(options.file, classes, options.class_indices)
        loaded = LoadedModel(_build(weights), classes, weights.preparation, weights, whence)
        save_weights(options.save, loaded.without_photos() if options.without_photos else loaded)
        without = ", without what the file tells of its training photos" * options.without_photos
        print(f"wrote {options.save}{without}")
    return 0


def rank(names: Sequence[str], data_path: str) -> int:
    """Has train.py compare weights on the photos of a folder, and train nothing."""
    script = Path(__file__).with_name("train.py")
    flags = ["--weights", f"auto:{','.join(names)}", "--data-path", data_path, "--dry-run"]
    return subprocess.call([sys.executable, script, *flags])


if __name__ == "__main__":
    run_cli(main)
