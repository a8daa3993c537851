"""Opens a weights file of any kind without running anything in it: bytes in, named tensors out.

A file is recognised by its first bytes, never by its suffix. Pickles (.pth, .bin) are opened with
`weights_only=True`, .npz with `allow_pickle=False`. Whatever else a file may be is said in one
sentence that names it.
"""

import mmap
import pickle
import pickletools
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from formats.plain_values import STAND_INS, Bag, plain
from system.files import json_if_any
from system.terminal import command

# Where training scripts keep the weights inside a checkpoint; the first that is there wins.
# Averaged weights come first: they are what such scripts evaluate.
WRAPPERS = (
    "state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "teacher", "model",
    "model_state_dict", "state_dict", "model_state", "net", "network", "weights", "params",
    "module",
)  # fmt: skip
# What wrappers of modules put before each name: DistributedDataParallel, torch.compile, ...
PREFIXES = re.compile(r"^(?:(?:module|model)\.)+")
# ... and in the middle of one, where they wrap a block.
INNER = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module|_forward_module)\."
)
# Ends of the names by which a Vision Transformer is known, whatever stands before them.
MARKS = (
    "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.weight",
    "embeddings.patch_embeddings.weight",
    "embeddings.patch_embedding.weight",
    "visual.class_embedding",
    "conv_proj.weight",
    "embedding/kernel",
)
# Where in a tensor's name its block begins.
BLOCK = re.compile(r"(?:blocks|layers?|encoder_layer|encoderblock)[._]\d+[./]").search
# A file may unpack to so many times its size, and so many bytes more; weights hardly shrink at all.
MOST_UNPACKED, ROOM = 20, 1 << 28
DEEPEST = 50  # containers within containers
# The weights of a folder as libraries write it, or a run of train.py; the first that is there.
USUAL = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "best.pth")
INDEX = ".index.json"  # of weights in several files
SHARD = re.compile(r"-\d{5}-of-(?!00001)\d{5}\.\w+$")  # the name of one of them
ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".npz")
NO_WEIGHTS = f"name a weights file ({', '.join(ENDINGS)}), for none lies right inside it"


@dataclass
class RawWeights:
    """What a file holds: `tensors` by name, and what stood beside them.

    extras: the plain values at the top of a checkpoint (epoch, classes, ...).
    metadata: the text fields in a .safetensors header.
    brought: whether the classifier among the tensors comes from elsewhere, with an adapter.
    """

    tensors: dict[str, Tensor]
    extras: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    brought: bool = False


def open_weights(path: str | Path) -> RawWeights:
    """Returns the tensors in a file, a folder or those that an index names, wrappers seen through.

    Raises FileNotFoundError or ValueError, each with one sentence naming the file.
    """
    path = weights_in(Path(path))
    several = path.name.endswith(INDEX) and path.is_file()
    return _open_shards(path) if several else _open_file(path)


def _open_file(path: Path) -> RawWeights:
    kind = _recognise(path)
    if kind == "safetensors":
        return _open_safetensors(path)
    if kind == "npz":
        return RawWeights(_open_npz(path))
    tensors, extras = _unwrap(_open_pickle(path), path)
    return RawWeights(tensors, extras)


def open_pickle(path: str | Path) -> Any:
    """Returns what torch.save wrote: tensors in plain dicts, lists and tuples, and plain values.

    Raises FileNotFoundError or ValueError, each with one sentence naming the file.
    """
    path = Path(path)
    if _recognise(path) != "pickle":
        raise ValueError(f"{path} was not written by torch.save")
    return _open_pickle(path)


def members_of(path: Path) -> list[Path]:
    """Returns the models in the folder of a run that kept those of its folds; [] of any other.

    Raises ValueError where one of them is gone, or is still to come.
    """
    if (path / "best.pth").exists() or not (path / "fold1" / "best.pth").is_file():
        return []
    results = json_if_any(path / "results.json")  # a run that is not finished has none
    folds = results.get("folds") if isinstance(results, dict) else None
    if not folds:
        resume = command("python", "train.py", "--resume", path)
        raise ValueError(f"{path} is a run whose folds are not all trained: {resume}")
    members = [path / f"fold{k + 1}" / "best.pth" for k in range(len(folds))]
    for member in members:
        if not member.is_file():
            raise ValueError(f"{path} holds an ensemble that is not whole: {member} is gone")
    return members


def weights_in(path: Path) -> Path:
    """Returns the weights file of a folder, or its index where they are several; a file as it is.

    Raises ValueError or FileNotFoundError for a folder that has none, or several.
    """
    if SHARD.search(path.name) and path.is_file():
        raise ValueError(f"{path} is one of several files of a model: name their folder instead")
    if not path.is_dir():
        return path
    names = {entry.name for entry in path.iterdir() if entry.is_file()}
    usual = [name for file in USUAL for name in (file, f"{file}{INDEX}") if name in names]
    if usual:
        return path / usual[0]
    if members := members_of(path):
        raise ValueError(
            f"{path} holds an ensemble of {len(members)} models, which predict.py alone takes: "
            f"name one of them, such as {members[0]}"
        )
    others = sorted(name for name in names if name.endswith(ENDINGS))
    if any(map(SHARD.search, others)):
        raise FileNotFoundError(
            f"{path} holds parts of a model ({', '.join(others[:2])} ...) and no {USUAL[0]}{INDEX} "
            f"that says which tensors are in which; get that too"
        )
    if len(others) != 1:
        what = f"name one of its weights files ({', '.join(others[:3])})" if others else NO_WEIGHTS
        raise ValueError(f"{path} is a folder; {what}")
    return path / others[0]


def _open_shards(index: Path) -> RawWeights:
    """Returns the tensors of all files that an index names, {"weight_map": {tensor: file}}."""
    told = json_if_any(index)
    places = told.get("weight_map") if isinstance(told, dict) else None
    if not isinstance(places, dict) or not places or not all(map(_is_name, places.values())):
        raise ValueError(f"{index} is no index of weights: it says of no tensor where it lies")
    files = sorted(set(places.values()))
    missing = [file for file in files if not (index.parent / file).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{index} names {len(files)} files of which {len(missing)} are not beside it, such as "
            f"{missing[0]}; get them as well"
        )
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= _open_file(index.parent / file).tensors
    if any(name not in tensors and PREFIXES.sub("", name) not in tensors for name in places):
        raise ValueError(f"{index} names tensors that its files lack: they belong to another model")
    return RawWeights(tensors)


def _is_name(file: Any) -> bool:
    """Whether `file` is the name of a file right beside the index, and no index."""
    return isinstance(file, str) and Path(file).name == file and not file.endswith(INDEX)


def _recognise(path: Path) -> str:
    """Returns "safetensors", "npz" or "pickle", or raises with what the file is instead."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; {NO_WEIGHTS}")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if not path.is_file():  # a pipe or a device may never end
        raise ValueError(f"{path} is a pipe or a device, not a weights file")
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
            _refuse_bomb(path, archive)
            if names and all(name.endswith(".npy") for name in names):
                return "npz"
            checked = any(entry.CRC for entry in archive.infolist())  # torch can leave them out
            spoilt = archive.testzip() if checked else None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
        raise _damaged(path, error) from None  # RuntimeError: encrypted, or an unknown compression
    if spoilt:
        raise _damaged(path, f"{spoilt} has another checksum than was written")
    if any(name.endswith("constants.pkl") or "/code/" in name for name in names):
        raise ValueError(
            f"{path} is a program of torch.jit.save (TorchScript), which runs when it is opened; "
            f"write the weights alone: torch.save(model.state_dict(), FILE)"
        )
    if any(name.endswith(("archive_format", "exported_program.json")) for name in names):
        raise ValueError(
            f"{path} is a program of torch.export, which can run any code when it is opened; "
            f"write the weights alone: torch.save(model.state_dict(), FILE)"
        )
    if any(name.endswith("data.pkl") for name in names):
        return "pickle"
    raise ValueError(f"{path} is a zip archive without weights in it")


def _refuse_bomb(path: Path, archive: zipfile.ZipFile) -> None:
    """Raises ValueError for an archive that unpacks to far more than weights ever do."""
    packed, unpacked = path.stat().st_size, sum(entry.file_size for entry in archive.infolist())
    if unpacked > ROOM + MOST_UNPACKED * packed:
        raise ValueError(
            f"{path} has {packed:,} bytes and would unpack to {unpacked:,}, which is no weights "
            f"file but made to fill the memory"
        )


def _damaged(path: Path, reason: object = "") -> ValueError:
    detail = f" ({str(reason).splitlines()[0]})" if str(reason) else ""
    if "weights_only" in detail:  # torch's advice to open what could run code
        detail = ""
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
    """Returns what torch.load finds, limited to plain tensors and plain values."""
    try:
        if _names_bytearray(path):  # torch.load would call it, with whatever length
            raise pickle.UnpicklingError("GLOBAL bytearray")
        # The warnings are about protocols of pickles that are refused anyway.
        with torch.serialization.safe_globals(STAND_INS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            payload = torch.load(path, map_location="cpu", weights_only=True)
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
    storages: dict[int, int] = {}
    payload = _plain(payload, path, storages, {})
    claimed = sum(storages.values())  # a pickle can ask for memory that the file does not fill
    if claimed > ROOM + MOST_UNPACKED * path.stat().st_size:
        raise ValueError(f"{path} claims tensors of {claimed:,} bytes, which it cannot hold")
    return payload


def _names_bytearray(path: Path) -> bool:
    """Whether a pickle names the one function that torch.load calls and that takes a length."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith("data.pkl")]
            return any(b"bytearray" in archive.read(name) for name in names)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(b"bytearray") >= 0


def _plain(value: Any, path: Path, storages: dict, done: dict[int, Any], depth: int = 0) -> Any:
    """Returns a copy of nested containers in plain dicts, lists and tuples, each made once.

    What a pickle builds may carry attributes in place of its methods, hold itself, or hold tensors
    without the memory for them: such raise ValueError.

    storages: takes the address and size of each tensor's memory.
    """
    if isinstance(value, Tensor):
        return _plain_tensor(value, path, storages)
    if isinstance(value, Bag):  # options of a run
        value = vars(value)
    value = plain(value)
    if not isinstance(value, dict | list | tuple):
        return value
    if depth > DEEPEST:
        raise ValueError(f"{path} is nested more than {DEEPEST} deep, as no weights file is")
    if id(value) not in done:
        deeper = (path, storages, done, depth + 1)
        if isinstance(value, dict):
            copy = {key: _plain(item, *deeper) for key, item in dict.items(value)}
        else:
            copy = (tuple if isinstance(value, tuple) else list)(
                _plain(item, *deeper) for item in value
            )
        done[id(value)] = copy
    return done[id(value)]


def _plain_tensor(value: Tensor, path: Path, storages: dict[int, int]) -> Tensor:
    value = Tensor.detach(value)
    if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
        raise ValueError(f"{path} holds a sparse, quantised or empty tensor; only plain ones load")
    storage = value.untyped_storage()
    claimed = value.numel() * value.element_size()
    if claimed > storage.nbytes():
        shape = " x ".join(map(str, value.shape))
        raise ValueError(
            f"{path} claims a tensor of {shape} numbers ({claimed:,} bytes) and holds "
            f"{storage.nbytes():,} bytes of it"
        )
    storages[storage.data_ptr()] = storage.nbytes()
    return value


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
    while isinstance(payload, dict):
        inner = _inner(payload, path)
        if inner is None:
            break
        extras |= {k: v for k, v in payload.items() if k != inner}
        payload = payload[inner]
    if not isinstance(payload, dict):
        raise ValueError(f"{path} holds a {type(payload).__name__}, not a dict of named tensors")
    return _named(payload, path), extras


def _inner(payload: dict, path: Path) -> str | None:
    """Returns the key under which the weights lie, None where `payload` itself is a state dict."""
    # Our own checkpoints say which weights were evaluated: those under `model`.
    if "config" in payload and "classes" in payload and _is_state(payload.get("model")):
        return "model"
    states = [key for key, value in payload.items() if isinstance(value, dict) and _is_state(value)]
    models = [key for key in states if _is_state(payload[key], MARKS)]
    usual = [key for key in WRAPPERS if key in (models or states)]
    whole = any(isinstance(value, Tensor) for value in payload.values())
    if not usual and whole:
        return None
    if len(models) > 1 and not (usual and are_copies(dict(_tensors(payload[m])) for m in models)):
        names = ", ".join(map(str, models))
        raise ValueError(f"{path} holds several models ({names}); keep one of them")
    return (usual or models or [None])[0]


def are_copies(models: Iterable[Mapping[str, Tensor]]) -> bool:
    """Whether several models are one, averaged or trained on: their blocks are alike in shape."""
    outlines = [
        {name[at.start() :]: value.shape for name, value in model.items() if (at := BLOCK(name))}
        for model in models
    ]
    return all(outline == outlines[0] for outline in outlines)


def _is_state(value: Any, ends: tuple[str, ...] = ("",)) -> bool:
    """Whether `value` is a dict with tensors in it whose names end so, or a wrapper round one."""
    return any(name.endswith(ends) for name, _ in _tensors(value))


def _tensors(value: Any) -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors in a dict and in those within it, with their names there."""
    waiting, seen = [value], set()
    while waiting:  # each dict once, however many others hold it
        inner = waiting.pop()
        if isinstance(inner, dict) and id(inner) not in seen:
            seen.add(id(inner))
            yield from ((str(k), v) for k, v in inner.items() if isinstance(v, Tensor))
            waiting += inner.values()


def _named(state: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a state dict without the prefixes of wrapping modules."""
    tensors = {
        INNER.sub("", name): value
        for name, value in state.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }
    if not tensors:
        raise ValueError(f"{path} holds no tensors")
    bare = {PREFIXES.sub("", name): value for name, value in tensors.items()}
    return bare if len(bare) == len(tensors) else tensors
