"""What a run trained beside a backbone that stayed as it was: the small file, and the whole again.

    record = record_of("weights/deit_tiny_patch16_224.safetensors")
    save_adapter("adapter.safetensors", part_of(state, frozen), facts, record)
    tensors = completed(part, model, backbone)     # those of the whole checkpoint

Such a file is a .safetensors of ours that lacks the backbone's tensors and says under `backbone`
whose they are: name, path, bytes and sha256 of a weights file. So any number of them share one.
"""

import contextlib
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from formats.checkpoints import save_safetensors
from formats.opening import INDEX, weights_in
from formats.resizing import fit_tensor, rename_maps
from splines.grids import uniform_knots
from system.files import WEIGHTS_FOLDER, sha256_of
from vit_model import VisionTransformer

State = Mapping[str, Tensor]
ADAPTER = "adapter.safetensors"
PEFT_FILE = "adapter_model.safetensors"  # what stands for a folder of the peft library
RECORD = {"name": str, "path": str, "bytes": int, "sha256": str}
# Instead of a grid of knots, where they are uniform: its (low, high), (2, curves), and its sizes.
ENDS = "_ends"


# --- which backbone -----------------------------------------------------------------------------


def record_of(path: str | Path) -> dict:
    """Returns what tells a weights file from all others, and where it lies.

    Raises ValueError for weights in several files, which no one digest tells.
    """
    path = Path(path)
    file = path / PEFT_FILE if (path / PEFT_FILE).is_file() else weights_in(path)
    if file.name.endswith(INDEX):
        raise ValueError(
            f"{path} holds its weights in several files, and --save-adapter names one: write it "
            f"as one with pretrained.py {path} --save FILE, and name that"
        )
    return {
        "name": path.resolve().name if path.is_dir() else path.name,
        "path": os.path.abspath(file),  # in a hub's cache configs lie beside the link alone
        "bytes": file.stat().st_size,
        "sha256": sha256_of(file),
    }


def checked_record(record: object) -> dict:
    """Returns a record; raises ValueError, worded to follow a file's name, for another value."""
    if (
        not isinstance(record, dict)
        or any(type(record.get(key)) is not kind for key, kind in RECORD.items())
        or not re.fullmatch("[0-9a-f]{64}", record["sha256"])
        or "\0" in record["path"] + record["name"]
    ):
        raise ValueError("has a `backbone` that is not one of ours")
    return record


def find_backbone(record: Mapping, near: Path) -> Path:
    """Returns where the file of a record lies: where it was, by the adapter, weights/, the caches.

    near: the file that has the record. Raises ValueError, worded to follow its name.
    """
    was = Path(record["path"])
    for path in _candidates(record, near):
        if sha256_of(path) == record["sha256"]:
            return path
    name = record["name"]
    there = f"another file lies at {was}" if os.path.isfile(was) else f"{was} is gone"
    raise ValueError(
        f"needs its backbone {name} (SHA-256 {record['sha256'][:16]}..., {record['bytes']:,} "
        f"bytes): {there}, and neither beside it nor in {WEIGHTS_FOLDER}/ nor in the caches of "
        f"torch and Hugging Face is a file of that digest; put it into {WEIGHTS_FOLDER}/"
    )


def _candidates(record: Mapping, near: Path) -> Iterator[Path]:
    """Yields the files that may be the record's, each once: those of its size."""
    seen: set[Path] = set()
    for path in _places(record, near):
        try:
            fits = path.is_file() and path.stat().st_size == record["bytes"]
            real = path.resolve()
        except OSError:  # a name too long, a folder that cannot be entered
            continue
        if fits and real not in seen:
            seen.add(real)
            yield path


def _places(record: Mapping, near: Path) -> Iterator[Path]:
    yield Path(record["path"])
    for folder in (near.parent, near.parent.parent):
        with contextlib.suppress(OSError):  # it cannot be listed
            yield from sorted(folder.iterdir())
    for folder in (WEIGHTS_FOLDER, *caches()):
        for root, _, files in os.walk(folder):
            yield from (Path(root, file) for file in sorted(files))


def caches() -> list[Path]:
    """Returns the folders in which torch.hub and Hugging Face keep what they fetched."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    torch_home = Path(os.environ.get("TORCH_HOME") or home / "torch")
    hub = os.environ.get("HF_HUB_CACHE")
    hugging_face = Path(os.environ.get("HF_HOME") or home / "huggingface")
    return [torch_home / "hub" / "checkpoints", Path(hub) if hub else hugging_face / "hub"]


# --- the part, and the whole ----------------------------------------------------------------------


def part_of(state: State, frozen: Collection[str]) -> dict[str, Tensor]:
    """Returns a state dict, or that of an average, without the parameters that stayed."""
    return {name: v for name, v in state.items() if name.removeprefix("module.") not in frozen}


def save_adapter(path: Path, part: State, facts: Mapping[str, Any], backbone: Mapping) -> None:
    """Writes a part with its facts (`checkpoints.checkpoint_facts`), whole or not at all."""
    order = facts["config"]["kan_order"]
    save_safetensors(path, _without_knots(part, order), {**facts, "backbone": dict(backbone)})


def completed(
    part: State, model: VisionTransformer, backbone: State, config: Mapping
) -> dict[str, Tensor]:
    """Returns every tensor of the model: the part's, and the backbone's in the model's sizes.

    model: perhaps on the meta device. config: the backbone's. Raises ValueError, worded to follow a
    file's name, where the backbone has another form.
    """
    target = model.state_dict()
    whole = _with_knots(part, model.sizes.kan_grid, model.sizes.kan_order)
    held = rename_maps(dict(backbone), target)
    for name in target.keys() - whole.keys():
        value = fit_tensor(name, held[name], model, config)[0] if name in held else None
        if value is None or value.shape != target[name].shape:
            raise ValueError(f"is an adapter for another backbone, whose {name} differs")
        whole[name] = value.to(target[name].dtype)
    return whole


def _without_knots(part: State, order: int) -> dict[str, Tensor]:
    """Returns the part with the ends of each uniform grid alone, which says the same."""
    packed = dict(part)
    for name, grid in part.items():
        size = grid.shape[-1] - 1 - 2 * order
        if not name.endswith(".grid") or size < 1:
            continue
        low, high = grid[:, order], grid[:, order + size]
        if torch.equal(uniform_knots(low, high, size, order), grid):
            del packed[name]
            packed[name + ENDS] = torch.stack([low, high])
    return packed


def _with_knots(part: State, size: int, order: int) -> dict[str, Tensor]:
    whole = dict(part)
    for name, ends in part.items():
        if name.endswith(f".grid{ENDS}"):
            if ends.ndim != 2 or len(ends) != 2:
                raise ValueError(f"has {name} that are no two ends of each curve")
            del whole[name]
            whole[name.removesuffix(ENDS)] = uniform_knots(ends[0], ends[1], size, order)
    return whole
