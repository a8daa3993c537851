"""Our own file of a model: tensors and plain Python, which `torch.load` opens without pickles."""

import json
import os
from collections.abc import Mapping

import safetensors.torch
import torch
from torch import Tensor

from formats.opening import open_pickle
from system.files import atomic_file

# 2: `temperature`, by which logits are divided before they become probabilities, and `trained_on`.
CHECKPOINT_VERSION = 2
# What files say that have none of them. `known` needs no version: who skips it errs in nothing.
LATER_FACTS: dict = {"temperature": 1.0, "trained_on": "", "known": {}}


def checkpoint_facts(
    model,
    classes,
    preprocess,
    epoch: int,
    metrics: dict | None,
    temperature: float = 1.0,
    trained_on: str = "",
    known: dict | None = None,
) -> dict:
    """Returns what stands beside the tensors in every file of ours, as plain Python.

    model: with `create_model(**model.config)` it can be built again. preprocess: a `Preprocess`.
    temperature: what logits are divided by before they become probabilities. trained_on: the
    digests of the photos, see `imaging.digests`. known: `formats.known.Known.to_dict`.
    """
    return {
        "config": model.config,
        "classes": classes,
        "preprocess": preprocess.to_dict(),
        "epoch": epoch,
        "metrics": metrics or {},
        "temperature": temperature,
        "trained_on": trained_on,
        "known": known or {},
        "version": CHECKPOINT_VERSION,
    }


def save_checkpoint(path: str | os.PathLike, checkpoint: dict) -> None:
    """Writes a checkpoint, a dict of tensors and plain Python, whole or not at all."""
    with atomic_file(path) as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:
            # After a failed write torch closes its archive and fails again: the first one counts.
            raise (error.__context__ or error) from None


def save_safetensors(path: str | os.PathLike, state: Mapping[str, Tensor], facts: Mapping) -> None:
    """Writes tensors with the same facts as JSON in the header, whole or not at all."""
    state = {name: value.detach().contiguous().cpu() for name, value in state.items()}
    metadata = {"format": "pt"} | {key: json.dumps(value) for key, value in facts.items()}
    with atomic_file(path) as file:
        file.write(safetensors.torch.save(state, metadata))


def load_checkpoint(path: str | os.PathLike) -> dict:
    """Returns what `save_checkpoint` wrote, on the CPU.

    Raises ValueError, naming the file, for anything that is not such a checkpoint; nothing in the
    file is executed.
    """
    checkpoint = open_pickle(path)
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("model"), dict):
        raise ValueError(f"{path} is no checkpoint of this program: it holds no 'model'")
    try:
        check_version(checkpoint.get("version", 0))
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None
    return checkpoint


def check_version(version: object) -> None:
    """Raises ValueError, worded to follow a file's name, where a later program wrote the file."""
    if not isinstance(version, int):
        raise ValueError(f"has a version that is no number: {version!r:.80}")
    if version > CHECKPOINT_VERSION:
        raise ValueError(f"was written by a newer version ({version}); update the program")
