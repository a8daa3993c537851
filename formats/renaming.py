"""What the converters of several libraries' names share: renaming, and joining what ours joins."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

State = dict[str, Tensor]
# Before names of tensors that a library saves and does not read for its own classifier.
UNREAD = "unread."
QKV = ("query", "key", "value")


def rename(tensors: Mapping[str, Tensor], rules: list[tuple[str, str]]) -> State:
    """Returns the tensors under the names that all rules, one after the other, make of theirs."""
    state = {}
    for key, value in tensors.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        if key in state:
            raise ValueError(f"holds {key} twice, once under another name")
        state[key] = value
    return state


def join_qkv(state: State) -> State:
    """Stacks blocks.N.attn.query, key and value to blocks.N.attn.qkv: 3 of (D, D) -> (3D, D).

    A bias that one or two of the three lack counts as zero. Raises ValueError where the three do
    not fit.
    """
    joined = dict(state)
    for key in state:
        part = re.search(r"(?<=\.attn\.)(?:query|key|value)(?=\.)", key)
        if part is None or key not in joined:
            continue
        names = [key[: part.start()] + name + key[part.end() :] for name in QKV]
        if not (key.endswith(".bias") or all(name in state for name in names)):
            raise ValueError(f"has {key} without the same of queries, keys or values")
        parts = [state.get(name, torch.zeros_like(state[key])) for name in names]
        if len({part.shape for part in parts}) > 1:
            raise ValueError(
                f"has fewer keys than queries ({names[1]}), in groups of unknown size, which "
                f"is not supported"
            )
        joined[key[: part.start()] + "qkv" + key[part.end() :]] = torch.cat(parts)
        for name in names:
            joined.pop(name, None)
    return joined


def fold_class_position(state: State) -> State:
    """Adds the class token's position to the token, where registers follow it.

    DINOv2 inserts its registers after positions were added, so they have none; ours adds positions
    to patches alone then, as timm does. In float32: a half sum would be rounded.
    """
    if "reg_token" in state and "pos_embed" in state:
        positions = state["pos_embed"]
        state["cls_token"] = state["cls_token"].float() + positions[:, :1].float()
        state["pos_embed"] = positions[:, 1:]
    return state


def without_unread(state: State) -> tuple[State, dict[str, str]]:
    """Returns the tensors that count and, for those under `UNREAD`, {name: why they do not}."""
    why = "the classifier of this class reads its tokens without it"
    unread = {name.removeprefix(UNREAD): why for name in state if name.startswith(UNREAD)}
    return {k: v for k, v in state.items() if not k.startswith(UNREAD)}, unread
