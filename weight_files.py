"""Opens a weights file of any kind without running anything in it: bytes in, named tensors out.

A file is recognised by its first bytes, never by its suffix. Pickles (.pth, .bin) are opened with
`weights_only=True`, .npz with `allow_pickle=False`. Whatever else a file may be is said in one
sentence that names it.
"""

import argparse
import json
import pickle
import pickletools
import re
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

# Where training scripts keep the weights inside a checkpoint; the first that is there wins.
# Averaged weights come first: they are what such scripts evaluate.
WRAPPERS = ("state_dict_ema", "model_ema", "teacher", "model", "state_dict", "module")
# What wrappers of modules put before each name: DistributedDataParallel, torch.compile, ...
PREFIXES = re.compile(r"^(?:(?:module|_orig_mod|model|backbone|teacher)\.)+")


@dataclass
class RawWeights:
    """What a file holds: `tensors` by name, and what stood beside them.

    extras: the plain values at the top of a checkpoint (epoch, classes, ...).
    metadata: the text fields in a .safetensors header.
    """

    tensors: dict[str, Tensor]
    extras: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)


def open_weights(path: str | Path) -> RawWeights:
    """Returns the tensors in the file, wrappers seen through.

    Raises FileNotFoundError or ValueError, each with one sentence naming the file.
    """
    path = Path(path)
    kind = _recognise(path)
    if kind == "safetensors":
        return _open_safetensors(path)
    if kind == "npz":
        return RawWeights(_open_npz(path))
    payload = _open_pickle(path)
    tensors, extras = _unwrap(payload, path)
    return RawWeights(tensors, extras)


def _recognise(path: Path) -> str:
    """Returns "safetensors", "npz" or "pickle", or raises with what the file is instead."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a weights file{_inside(path)}")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise ValueError(f"{path} is empty")
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(
            f"{path} is a Git LFS pointer, not the weights themselves; `git lfs pull` fetches them"
        )
    if head.startswith(b"PK\x03\x04"):
        return _recognise_zip(path)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        return "safetensors"
    if head[:1] == b"\x80":  # every pickle since protocol 2 starts so
        return "pickle"
    if _is_text(head):
        what = "an HTML page" if b"<html" in head.lower() else "a text file"
        raise ValueError(f"{path} is {what}, not a weights file")
    raise ValueError(
        f"{path} is no weights file that can be read here (.safetensors, .pth, .bin or .npz)"
    )


def _inside(folder: Path) -> str:
    for name in ("best.pth", "model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return f" in it, such as {folder / name}"
    return ""


def _is_text(head: bytes) -> bool:
    try:
        head[:-4].decode()  # the last character may be cut in two
    except UnicodeDecodeError:
        return False
    return b"\0" not in head


def _recognise_zip(path: Path) -> str:
    """Tells numpy's archives from torch's, whose checksums torch itself does not look at."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if names and all(name.endswith(".npy") for name in names):
                return "npz"
            checked = any(entry.CRC for entry in archive.infolist())  # torch can leave them out
            spoilt = archive.testzip() if checked else None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise _damaged(path, error) from None
    if spoilt:
        raise _damaged(path, f"{spoilt} has another checksum than was written")
    if any(name.endswith("data.pkl") for name in names):
        return "pickle"
    raise ValueError(f"{path} is a zip archive without weights in it")


def _damaged(path: Path, reason: object = "") -> ValueError:
    detail = f" ({str(reason).splitlines()[0]})" if str(reason) else ""
    return ValueError(f"{path} is cut short or damaged{detail}; get it once more")


def _open_safetensors(path: Path) -> RawWeights:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise _damaged(path, error) from None
    return RawWeights(_named(tensors, path), metadata=metadata)


def _open_npz(path: Path) -> dict[str, Tensor]:
    tensors = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for name in archive.files:
                array = archive[name]
                if (
                    array.dtype.kind == "V" and array.dtype.itemsize == 2
                ):  # bfloat16, as JAX saves it
                    tensors[name] = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
                elif array.dtype.kind in "fiub":
                    tensors[name] = torch.from_numpy(np.ascontiguousarray(array))
    except Exception as error:  # numpy and zlib name a damaged archive in many ways
        if "allow_pickle" in str(error):
            raise ValueError(
                f"{path} holds pickled objects, which are never opened because a pickle can run "
                f"code; save plain arrays or .safetensors"
            ) from None
        raise _damaged(path, error) from None
    return tensors


def _open_pickle(path: Path) -> Any:
    """Returns what torch.load finds, limited to tensors and plain values."""
    try:
        # The options of a run, which timm's and DeiT's scripts save beside the weights, are a
        # plain bag of values. The warnings are about protocols of pickles that are refused anyway.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"(?:GLOBAL|class) ([\w.]+)", str(error))
        what = named[1] if named else _first_global(path)
        if what is None:
            raise _damaged(path, "not a readable pickle") from None
        raise ValueError(
            f"{path} holds more than tensors ({what}), and opening that could run code; ask for "
            f"the weights as .safetensors or as a plain state dict"
        ) from None
    except Exception as error:  # a cut pickle fails in as many ways as pickles have opcodes
        raise _damaged(path, error) from None


def _first_global(path: Path) -> str | None:
    """Returns what a bare pickle would import first, read without running it; None for nothing."""
    names: list[str] = []
    try:
        with path.open("rb") as file:
            for opcode, argument, _ in pickletools.genops(file):
                if opcode.name == "GLOBAL":
                    return str(argument).replace(" ", ".")
                if opcode.name == "STACK_GLOBAL":  # module and name were pushed just before
                    return ".".join(names[-2:])
                if isinstance(argument, str):
                    names.append(argument)
    except ValueError:  # the pickle ends too early
        return None
    return None


def _unwrap(payload: Any, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the state dict inside a checkpoint, and the plain values that stood beside it."""
    extras: dict[str, Any] = {}
    while isinstance(payload, Mapping):
        inner = next((k for k in WRAPPERS if _is_state(payload.get(k))), None)
        if inner is None:
            break
        # Our own checkpoints say which weights were evaluated: those under `model`.
        if "config" in payload and "classes" in payload and _is_state(payload.get("model")):
            inner = "model"
        extras |= {k: v for k, v in payload.items() if k != inner}
        payload = payload[inner]
    if not isinstance(payload, Mapping):
        raise ValueError(f"{path} holds a {type(payload).__name__}, not a dict of named tensors")
    return _named(payload, path), extras


def _is_state(value: Any) -> bool:
    """Whether `value` is a dict with tensors in it, or a wrapper round one."""
    return isinstance(value, Mapping) and any(
        isinstance(v, Tensor) or _is_state(v) for v in value.values()
    )


def _named(state: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a state dict without the prefixes of wrapping modules."""
    tensors = {
        PREFIXES.sub("", str(name)): value
        for name, value in state.items()
        if isinstance(value, Tensor)
    }
    if not tensors:
        raise ValueError(f"{path} holds no tensors")
    return tensors


def read_json(path: Path) -> Any:
    """Returns what a JSON file beside the weights says, or None when there is none to be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
