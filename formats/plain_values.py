"""Values beside the tensors in a pickle, made inert: numbers of numpy, paths, options of runs.

`torch.load(weights_only=True)` refuses a file for one np.float64 next to the weights. Here stands,
for each class that training scripts leave there, something of ours that keeps the bytes and runs
nothing: neither the class nor any code of its library is ever called.

    with torch.serialization.safe_globals(STAND_INS):
        plain(torch.load(file, weights_only=True))
"""

import argparse
from typing import Any

import numpy as np

NUMBERS = "fiubcUS"  # kinds of numpy's types that are plain bytes; objects and records are not


class DType:
    """Stands for numpy.dtype: its name and byte order."""

    def __init__(self, name: str = "", *_: object) -> None:
        self.name, self.order = str(name), "="

    def __setstate__(self, state: tuple) -> None:
        self.order = str(state[1])

    def read(self, data: object) -> np.ndarray | None:
        """The numbers in `data`; None for types that are not plain bytes."""
        try:
            kind = np.dtype(self.name)
        except TypeError:
            return None
        if kind.kind not in NUMBERS or not kind.itemsize or not isinstance(data, bytes):
            return None
        order = self.order if self.order in "<>" else "="
        return np.frombuffer(data, kind.newbyteorder(order))


class Array:
    """Stands for numpy.ndarray."""

    def __init__(self, *_: object) -> None:
        self.values: list | None = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, by_column, data = state
        order = "F" if by_column is True else "C"
        numbers = dtype.read(data)
        self.values = None if numbers is None else numbers.reshape(shape, order=order).tolist()


class Text(str):
    """Stands for what a word says best: a path, a version."""

    def __new__(cls, *parts: object) -> "Text":
        return super().__new__(cls, "/".join(str(part)[:4096] for part in parts))

    def __setstate__(self, state: object) -> None:
        """What a class adds to its text is of no use here."""


class Nothing:
    """Stands for what says nothing about a model: a date, a range."""

    def __init__(self, *_: object) -> None:
        """Takes whatever the class takes."""

    def __setstate__(self, state: object) -> None:
        """And whatever it is made of."""


class Bag(argparse.Namespace):
    """Stands for a bag of options."""

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


def scalar(dtype: DType, data: bytes = b"") -> object:
    """A number of numpy as Python's."""
    numbers = dtype.read(data)
    return None if numbers is None else numbers[0].item()


def empty_dict(*_: object) -> dict:
    """A defaultdict without its default."""
    return {}


# Name in the pickle -> what stands for it.
TABLE: dict[str, Any] = {
    "numpy.dtype": DType,
    "numpy.ndarray": Array,
    **{f"numpy.{core}.multiarray.scalar": scalar for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": Array for core in ("core", "_core")},
    "argparse.Namespace": Bag,
    "types.SimpleNamespace": Bag,
    "collections.defaultdict": empty_dict,
    **{f"builtins.{kind}": Nothing for kind in ("list", "dict", "int", "float", "str")},
    **{f"builtins.{kind}": Nothing for kind in ("range", "slice", "frozenset")},
    **{
        f"{module}.{kind}": Text
        for module in ("pathlib", "pathlib._local")
        for kind in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    },
    **{f"datetime.{kind}": Nothing for kind in ("datetime", "date", "time", "timedelta")},
    "torch.torch_version.TorchVersion": Text,
}
HOLDERS = (Nothing, DType, Array, Text, Bag)  # classes themselves, as default_factory=list
STAND_INS = [(stand_in, name) for name, stand_in in TABLE.items()]


def plain(value: Any) -> Any:
    """Returns what a stand-in stands for; other values as they are."""
    if isinstance(value, Array):
        return value.values
    if isinstance(value, Nothing | DType) or any(value is kind for kind in HOLDERS):
        return None
    if isinstance(value, Text):
        return str(value)
    return value
