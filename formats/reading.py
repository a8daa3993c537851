"""Tells what a weights file holds: its format, its model, its classes, how it normalises images.

`weight_files` opens the file and `weight_formats` gives the tensors our names; what remains is to
find out what no tensor says: the normalisation, the names of the classes, the attention heads.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from formats.checkpoints import check_version
from formats.naming import convert, sizes_of
from formats.opening import RawWeights, open_weights
from imaging.preprocess import Preprocess
from system.files import json_if_any, parse_json
from vit_model import FAMILIES, VARIANTS, create_model, find_variant, kind_of

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MOST_ASKED = 4  # times the numbers in a file that its sizes may ask for, heads and blocks left out


@dataclass
class WeightsFile:
    """What a weights file holds, under our names.

    format: where it comes from: "ours", "timm", "Hugging Face", "torchvision", "Google npz", ...
    family: "half", "imagenet" or "custom": how images are normalised; `mean` and `std` say it in
        numbers and `family_reason` how it was found.
    config: keyword arguments of `create_model` for the model that the tensors make.
    classes: the names of the head's classes, None where the file does not tell.
    preprocess: a dict for `Preprocess.from_dict`; only our own files have one.
    meta: epoch, metrics, version and such of our own checkpoints.
    """

    path: str
    format: str
    family: str
    family_reason: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    config: dict
    state: dict[str, Tensor]
    classes: list[str] | None = None
    preprocess: dict | None = None
    meta: dict = field(default_factory=dict)

    @property
    def class_names(self) -> list[str] | None:
        """The names of the classes unless they are mere numbers, 0, 1, 2 ..."""
        numbers = [str(i) for i in range(len(self.classes or ()))]
        return None if self.classes in (None, numbers) else self.classes

    @property
    def holds(self) -> str:
        """What the file holds, in words."""
        config = self.config
        head = f"{config['num_classes']} classes" if config["num_classes"] else "no head"
        kan = kind_of(config, " with ", " blocks")
        return (
            f"{config['name']}{kan} ({config['embed_dim']} wide, "
            f"{config['depth']} blocks, {config['img_size']}-pixel images, {head})"
        )


def read_weights(path: str | Path, model: str | None = None) -> WeightsFile:
    """Returns what the file at `path` holds, of whatever format, recognised from its tensor names.

    model: the name of a variant, whose normalisation is assumed where the file tells nothing.
    Raises ValueError or FileNotFoundError, with one sentence that names the file.
    """
    path = Path(path)
    raw = open_weights(path)
    try:
        if "config" in raw.extras or "config" in raw.metadata:
            return _read_ours(path, raw)
        return _read_foreign(path, raw, model)
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None


def _read_ours(path: Path, raw: RawWeights) -> WeightsFile:
    """Reads a checkpoint of train.py, or a .safetensors that `save_weights` wrote."""
    extras = raw.extras or {key: _parsed(text) for key, text in raw.metadata.items()}
    check_version(extras.get("version", 1))
    config = checked_config(extras["config"], raw.tensors)
    classes = checked_classes(extras.get("classes"), config)
    preprocess = extras.get("preprocess")
    mean, std = FAMILIES["half"]
    if preprocess:
        checked = checked_preprocess(preprocess, config)
        mean, std = checked.mean, checked.std
    checked_metrics(extras.get("metrics"))
    return WeightsFile(
        path=str(path),
        format="ours",
        family=_family_of(mean, std),
        family_reason="the checkpoint says so",
        mean=mean,
        std=std,
        config=config,
        state=raw.tensors,
        classes=classes,
        preprocess=preprocess,
        meta={k: extras[k] for k in ("epoch", "metrics", "version", "args") if k in extras},
    )


def checked_config(config: object, tensors: Mapping[str, Tensor]) -> dict:
    """Returns the whole config of the model that `config` and its tensors describe.

    Raises ValueError, worded to follow a file's name, where the one contradicts the others. Nothing
    of the size that they claim is allocated.
    """
    if not isinstance(config, dict) or not isinstance(config.get("name"), str):
        raise ValueError("has a `config` that is not one of ours")
    if not all(isinstance(key, str) for key in config):
        raise ValueError("has a `config` that is not one of ours")
    with torch.device("meta"):
        model = create_model(**config)
    wanted = model.state_dict()
    for name in tensors.keys() & wanted.keys():
        _check_tensor(name, tensors[name], wanted[name].shape)
    held = {value.untyped_storage().data_ptr(): value for value in tensors.values()}
    stored = sum(v.untyped_storage().nbytes() // v.element_size() for v in held.values())
    asked = sum(value.numel() for value in wanted.values())
    if asked > MOST_ASKED * stored:
        raise ValueError(
            f"is no complete Vision Transformer: it holds {stored:,} of the {asked:,} numbers that "
            f"its sizes ask for"
        )
    return model.config


def _check_tensor(name: str, value: Tensor, shape: torch.Size) -> None:
    if value.shape != shape:
        has, asked = (" x ".join(map(str, size)) or "one" for size in (value.shape, shape))
        raise ValueError(f"holds {name} of {has} numbers where its other sizes ask for {asked}")
    if value.dtype not in FLOATS:
        raise ValueError(f"holds {name} as {str(value.dtype).removeprefix('torch.')}, not floats")


def checked_classes(classes: object, config: dict) -> list[str]:
    """Returns the names of a file's classes; raises ValueError where they do not fit its config."""
    classes = [] if classes is None else classes
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"has `classes` that are not a list of names: {classes!r:.80}")
    if len(classes) != config["num_classes"]:
        raise ValueError(f"names {len(classes)} classes for a head of {config['num_classes']}")
    return classes


def checked_metrics(metrics: object) -> None:
    """Raises ValueError where a file's metrics are no numbers."""
    metrics = {} if metrics is None else metrics
    if not isinstance(metrics, dict) or not all(
        value is None or type(value) in (int, float) for value in metrics.values()
    ):
        raise ValueError(f"has `metrics` that are not numbers: {metrics!r:.80}")


def checked_preprocess(values: object, config: dict) -> Preprocess:
    """Returns a file's preprocessing; raises ValueError where it does not fit its config."""
    preprocess = Preprocess.from_dict(values)
    if preprocess.img_size != config["img_size"]:
        raise ValueError(
            f"prepares images of {preprocess.img_size} pixels for a model of {config['img_size']}"
        )
    return preprocess


def _parsed(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        return text


def _read_foreign(path: Path, raw: RawWeights, model: str | None) -> WeightsFile:
    try:
        name, state = convert(raw.tensors)
        sizes = sizes_of(state)
    except (KeyError, IndexError, RuntimeError) as error:  # of tensors that others lack or misshape
        raise ValueError(f"has tensors that do not fit together ({error})") from None
    beside = _sidecars(path, sizes["embed_dim"])
    if beside.get("hidden_act", "gelu") != "gelu":
        raise ValueError(f"has {beside['hidden_act']} activations; only gelu is supported")
    if "num_attention_heads" in beside:
        sizes["num_heads"] = beside["num_attention_heads"]
    mean, std, reason = _normalisation(path, name, sizes, raw.metadata, beside, model)
    family = _family_of(mean, std)
    config = {"name": variant_like(sizes, family), **sizes}
    checked_config(config, state)
    return WeightsFile(
        path=str(path),
        format=name,
        family=family,
        family_reason=reason,
        mean=mean,
        std=std,
        config=config,
        state=state,
        classes=_class_names(beside, sizes["num_classes"]),
    )


def variant_like(sizes: dict, family: str) -> str:
    """Returns the name of the variant with these sizes, "custom" if there is none."""
    decisive = ("embed_dim", "depth", "patch_size", "distilled", "reg_tokens")
    telling = ("img_size", "num_classes")

    def likeness(name: str) -> tuple:
        variant = VARIANTS[name]
        full = {"distilled": False, "reg_tokens": 0, "num_classes": 1000} | variant.sizes
        same = [full[key] == sizes[key] for key in telling]
        layer_scale = ("init_values" in full) == (sizes["init_values"] is not None)
        fits = layer_scale and all(full[key] == sizes[key] for key in decisive)
        return fits, variant.family == family, sum(same)

    best = max(VARIANTS, key=likeness)
    return best if likeness(best)[0] else "custom"


# --- normalisation ------------------------------------------------------------------------------


def _family_of(mean: Iterable[float], std: Iterable[float]) -> str:
    for family, values in FAMILIES.items():
        if (tuple(mean), tuple(std)) == values:
            return family
    return "custom"


def _sidecars(path: Path, width: int) -> dict:
    """Returns what config.json and preprocessor_config.json beside the file say, merged.

    They describe the usual names of the hubs, or the only weights file of a folder; a config of
    another width belongs to something else.
    """
    suffixes = {".safetensors", ".bin", ".pth", ".pt", ".npz"}
    alone = sum(other.suffix in suffixes for other in path.parent.iterdir()) == 1
    if not alone and path.stem not in ("model", "pytorch_model"):
        return {}
    config = json_if_any(path.with_name("config.json"))
    config = config if isinstance(config, dict) else {}
    if config.get("hidden_size", config.get("num_features", width)) != width:
        return {}
    more = config.get("pretrained_cfg"), json_if_any(path.with_name("preprocessor_config.json"))
    merged = dict(config)
    for said in more:
        merged |= said if isinstance(said, dict) else {}
    # Hugging Face says image_mean, timm mean.
    return merged | {k: merged[f"image_{k}"] for k in ("mean", "std") if f"image_{k}" in merged}


def _normalisation(path: Path, format_name, sizes, metadata, beside, model) -> tuple:
    """Returns (mean, std, how it was found); the first witness that tells anything decides."""
    for source, said in (("the config beside the file", beside), ("its metadata", metadata)):
        if "mean" in said and "std" in said:
            values = (_parsed(v) if isinstance(v, str) else v for v in (said["mean"], said["std"]))
            said = dict(zip(("mean", "std"), values, strict=True))
            preprocess = Preprocess.from_dict(said)
            return preprocess.mean, preprocess.std, f"{source} says so"
    if format_name == "torchvision":
        return *FAMILIES["imagenet"], "it is in torchvision's format"
    if format_name == "DINOv2" or sizes["init_values"] is not None:
        return *FAMILIES["imagenet"], "it has the layer scale of DINOv2 or DeiT III"
    if sizes["distilled"]:
        return *FAMILIES["imagenet"], "it has DeiT's distillation token"
    if format_name == "Google npz":
        return *FAMILIES["half"], "it is in Google's format"
    name = path.name.lower()
    if found := re.search(r"deit|dino|mae|vit_[blh]_\d\d-", name):
        return *FAMILIES["imagenet"], f"its name has {found[0]!r}"
    if found := re.search(r"augreg|i?n?21k|jx_vit|google|vit_\w+_patch", name):
        return *FAMILIES["half"], f"its name has {found[0]!r}"
    if model is not None:
        return *FAMILIES[find_variant(model).family], f"--model is {model}"
    return *FAMILIES["half"], "nothing tells, so 0.5 is assumed; --mean and --std overrule it"


def _class_names(beside: dict, num_classes: int) -> list[str] | None:
    """Returns the class names of a Hugging Face or timm config, None where it has none."""
    names = beside.get("id2label") or beside.get("label_names")
    if isinstance(names, dict):
        names = [names.get(str(i), f"LABEL_{i}") for i in range(num_classes)]
    if not isinstance(names, list) or len(names) != num_classes or "LABEL_0" in names:
        return None
    return [str(name) for name in names]
