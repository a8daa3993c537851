"""Adapters of the `peft` library over timm's or Hugging Face's Vision Transformer.

    adapter = opened("my_lora")                     # None for anything else
    state = adapter.merged_into(backbone_state)     # under our names

Such a folder holds adapter_config.json and adapter_model.safetensors: of LoRA two factors for each
adapted module, and whole what was trained beside them (the head, biases). It names its backbone and
has no digest of it.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from formats.adapter_file import PEFT_FILE, caches
from formats.hub import HubName, base_revision, cached, folder_of
from formats.hugging_face import with_gates
from formats.naming import of_modules
from formats.opening import INDEX, open_weights
from formats.renaming import QKV
from system.files import WEIGHTS_FOLDER, read_json
from vit_model import VARIANTS, is_number

CONFIG = "adapter_config.json"
FILES = (PEFT_FILE, "adapter_model.bin")
# As the hubs call a model's file, or the index of its several ones.
WHOLE = tuple(
    name + end for name in ("model.safetensors", "pytorch_model.bin") for end in ("", INDEX)
)
# Of the settings those that change what the factors mean, in a way that is not followed here.
NOT_FOLLOWED = ("use_dora", "layer_replication", "alora_invocation_tokens")
# Ways to begin that take something out of the backbone's own weights.
RESIDUAL = ("pissa", "olora", "corda", "loftq")
FACTOR = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.(weight|bias)")
WRAPPED = re.compile(r"\.(?:modules_to_save(?:\.default)?|base_layer)(?=\.)")


@dataclass(frozen=True)
class PeftAdapter:
    """What a folder of peft holds.

    tensors: by name as the whole model has it, whole; factors: {name of a weight: (A, B, bias of B
    or None, how often their product counts)}, both under our names. head: the tensors of the
    classifier among the whole ones, under the names of the file.
    """

    folder: Path
    backbone: Path
    tensors: dict[str, Tensor]
    factors: dict[str, tuple[Tensor, Tensor, Tensor | None, float]]
    head: dict[str, Tensor]

    def merged_into(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns a backbone's state dict, under our names, with the adapter's part in it.

        Raises ValueError, worded to follow the folder's name, where it was made for another model.
        """
        # In float32, in which the model computes: half of a small change is lost in bfloat16.
        whole = {name: value.to(torch.float32, copy=True) for name, value in state.items()}
        for name, (down, up, bias, strength) in with_gates(self.factors, state).items():
            if name == "head.weight" and name not in whole:
                continue  # of a head that could not serve
            change = up.double().flatten(1) @ down.double().flatten(1) * strength
            _add(whole, name, change)
            if bias is not None:
                _add(whole, name.removesuffix("weight") + "bias", bias.double() * strength)
        for name, value in self.tensors.items():
            if name.startswith("head."):
                whole[name] = value
            else:
                _rows(whole, name, value.shape).copy_(value)
        return whole


def _add(state: Mapping[str, Tensor], name: str, change: Tensor) -> None:
    rows = _rows(state, name, change.shape)
    rows.copy_((rows.double().reshape(change.shape) + change).reshape(rows.shape))


def _rows(state: Mapping[str, Tensor], name: str, shape: torch.Size) -> Tensor:
    """Returns the tensor of that name, or the third of it that queries, keys or values are."""
    part = next((n for n, word in enumerate(QKV) if f".attn.{word}." in name), None)
    joined = name if part is None else re.sub(r"\.(query|key|value)\.", ".qkv.", name)
    if joined not in state:
        raise ValueError(f"adapts {name}, and its backbone has no such module")
    rows = state[joined] if part is None else state[joined].chunk(3)[part]
    if rows.numel() != shape.numel() or rows.shape[:1] != shape[:1]:
        has, asked = (" x ".join(map(str, size)) for size in (rows.shape, shape))
        raise ValueError(f"is for another backbone: {name} is {asked} there and {has} in this one")
    return rows


def opened(path: Path) -> PeftAdapter | None:
    """Returns the adapter in a folder of peft, or whose file `path` is; None for anything else.

    Raises ValueError or FileNotFoundError, with a sentence that names the folder, for one that is
    not followed or whose backbone cannot be found.
    """
    folder = path.parent if path.name in FILES else path
    if not folder.is_dir() or not (folder / CONFIG).is_file():
        return None
    file = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if file is None:
        raise FileNotFoundError(f"{folder} has {CONFIG} and no {PEFT_FILE} beside it")
    config = read_json(folder / CONFIG)
    try:
        _check(config)
        return PeftAdapter(
            folder, _backbone(folder, config), *_sorted(open_weights(file).tensors, config)
        )
    except ValueError as error:
        raise ValueError(f"{folder} {error}") from None


def _check(config: object) -> None:
    if not isinstance(config, dict) or "peft_type" not in config:
        raise ValueError(f"has a {CONFIG} that is not one of the peft library")
    if config["peft_type"] != "LORA":
        raise ValueError(f"is an adapter of type {config['peft_type']!r:.40}: only LORA is read")
    for setting in NOT_FOLLOWED:
        if config.get(setting):
            raise ValueError(f"is LoRA with {setting}, which is not followed; merge it with peft")
    begun = config.get("init_lora_weights")
    if isinstance(begun, str) and begun.lower().startswith(RESIDUAL):
        raise ValueError(
            f"is LoRA begun by {begun:.40}, which changes the backbone; convert it to plain LoRA "
            f"with peft (path_initial_model_for_weight_conversion)"
        )


def _sorted(held: Mapping[str, Tensor], config: Mapping) -> tuple[dict, dict, dict]:
    """Returns (whole tensors, factors, tensors of the head) of a file: see `PeftAdapter`."""
    parts: dict[str, dict] = {}
    tensors = {}
    for key, value in held.items():
        name = key.removeprefix("base_model.model.")
        if found := FACTOR.fullmatch(name):
            parts.setdefault(found[1], {})[found[2] + found[3]] = value
        elif ".original_module." not in name:  # what the trained copy stands for
            tensors[WRAPPED.sub("", name)] = value
    factors = {}
    for module, part in parts.items():
        up, down = part.get("Bweight"), part.get("Aweight")
        fits = up is not None and down is not None and up.ndim == down.ndim >= 2
        if not fits or up.shape[1] != len(down) or not len(down):
            raise ValueError(f"has factors of {module} that do not fit each other")
        strength = _strength(module, len(down), config)
        if config.get("fan_in_fan_out") and up.ndim == 2:
            raise ValueError("is LoRA with fan_in_fan_out, which no Vision Transformer here has")
        factors[f"{module}.weight"] = (down, up, part.get("Bbias"), strength)
    names = of_modules({name: name for name in tensors})  # those of the file by ours
    whole = {ours: tensors[name] for ours, name in names.items()}
    head = {name: tensors[name] for ours, name in names.items() if ours.startswith("head.")}
    return whole, of_modules(factors), head


def _strength(module: str, rank: int, config: Mapping) -> float:
    """Returns how often the product of a module's factors counts."""
    patterns = config.get("alpha_pattern") or {}
    try:
        fits = (key for key in patterns if re.fullmatch(rf"(.*\.)?({key})", module))
        alpha = patterns.get(next(fits, None), config.get("lora_alpha"))
    except (re.error, AttributeError, TypeError):
        raise ValueError(f"has an alpha_pattern that is none: {patterns!r:.80}") from None
    if not is_number(alpha):
        raise ValueError(f"has a lora_alpha that is no number: {alpha!r:.40}")
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


# --- where the backbone lies ----------------------------------------------------------------------


def _backbone(folder: Path, config: Mapping) -> Path:
    """Returns the weights file of the model that an adapter names."""
    name = config.get("base_model_name_or_path")
    name = name if isinstance(name, str) else ""
    revision = base_revision(config)
    for place in _places(folder, name, revision):
        for file in (place, *(place / name for name in WHOLE)):
            if os.path.isfile(file):  # False also for what is no path at all
                return file
    at = f" at revision {revision}" if revision else ""
    named = f"its backbone {name}{at}" if name else "its backbone, which its config does not name"
    raise ValueError(
        f"needs {named}: put its file into {WEIGHTS_FOLDER}/, or write where it lies under "
        f"base_model_name_or_path in {folder / CONFIG}"
    )


def _snapshots(cache: Path, name: str, revision: str | None) -> list[Path]:
    """Returns where a cache of the hub's holds a repository: at that revision, else at main.

    The only one that is there serves where no revision is asked for and none is called main.
    """
    found = cached(HubName(name, revision or "main"), cache)
    others = [*folder_of(name, cache).glob("snapshots/*")]
    return [found] if found else others if len(others) == 1 and revision is None else []


def _places(folder: Path, name: str, revision: str | None) -> Iterator[Path]:
    """Yields where a backbone of that name may lie: as a path, in weights/, in the caches."""
    if name:
        yield from (Path(name), folder / name, WEIGHTS_FOLDER / name)
        short = name.rsplit("/", 1)[-1]
        for ending in ("", ".safetensors", ".pth", ".bin", ".npz"):
            yield WEIGHTS_FOLDER / (short + ending)
        variant = VARIANTS.get(short.split(".")[0])  # timm adds ".augreg_in1k" and such
        if variant and variant.url:
            yield WEIGHTS_FOLDER / variant.url.rsplit("/", 1)[-1]
        if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
            for cache in caches():
                yield from _snapshots(cache, name, revision)
    yield from (folder / file for file in WHOLE)
