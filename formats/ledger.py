"""The ledger of a weights file: each tensor ends as used, harmless or unknown.

    tensors, harmless, prefix = one_model(raw)  # without prefixes, copies and decoders
    state, head = with_one_head(state, width)   # whatever the head is called
    state, unknown = check(state, wanted, allow_partial)   # unknown ones refuse

What is harmless stands with its reason in `fact_table`.
"""

import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from formats.fact_table import HARMLESS, HEAD_NAMES, PREFERRED, RELATIVES
from formats.opening import MARKS, are_copies
from vit_model import HEADS

State = dict[str, Tensor]
Reasons = dict[str, str]  # name of a tensor -> why it is left out
# Names of ours that are no head of one linear layer, whatever follows.
OURS = re.compile(
    r"^(?:\w+_token|pos_embed|patch_embed|blocks|norm|norm_pre|fc_norm|attn_pool|rope|rel_pos_bias"
    r"|head_dist|pre_logits)\b"
)


def one_model(tensors: Mapping[str, Tensor]) -> tuple[State, Reasons, str]:
    """Returns one model's tensors without what stands before all their names, and what it leaves.

    Last comes what stood before them.

    Raises ValueError, worded to follow a file's name, where the file holds several models.
    """
    prefixes = {name.removesuffix(end) for name in tensors for end in MARKS if _ends(name, end)}
    harmless: Reasons = {}
    if not prefixes:
        return dict(tensors), harmless, ""
    prefix = _chosen(prefixes, tensors)
    state: State = {}
    for name, value in tensors.items():
        reason = _copy_of(name, prefix, prefixes) or _harmless(name.removeprefix(prefix))
        if reason:
            harmless[name] = reason
            continue
        bare = name.removeprefix(prefix)
        state[name if bare in state else bare] = value
    return state, harmless, prefix


def _ends(name: str, end: str) -> bool:
    """Whether a name is `end` or ends with it after a dot or slash."""
    return name == end or name.endswith((f".{end}", f"/{end}"))


def _chosen(prefixes: Collection[str], tensors: Mapping[str, Tensor]) -> str:
    """Returns the prefix of the model to take where a file holds copies of one."""
    if len(prefixes) == 1:
        return next(iter(prefixes))

    def rank(prefix: str) -> int:
        ranks = [
            n
            for n, kind in enumerate(PREFERRED)
            if re.search(rf"(?:^|[./_]){kind}(?:[./_]|$)", prefix.lower())
        ]
        return min(ranks, default=len(PREFERRED))

    best, second, *_ = sorted(prefixes, key=rank)
    held: dict[str, State] = {prefix: {} for prefix in prefixes}
    for name, value in tensors.items():
        inside = max(filter(name.startswith, prefixes), key=len, default=None)
        if inside is not None:
            held[inside][name] = value
    if rank(best) == rank(second) or not are_copies(held.values()):
        names = ", ".join(sorted(p.strip("./") or "(no prefix)" for p in prefixes))
        raise ValueError(f"holds several models ({names}); keep one of them")
    return best


def _copy_of(name: str, prefix: str, prefixes: Collection[str]) -> str | None:
    """Returns the reason why a tensor is left out that belongs to another copy of the model."""
    for other in prefixes:
        if other == prefix:
            continue
        root = _root(other, prefix)
        inside = name.startswith(root) if root else not name.startswith(_root(prefix, other))
        if inside:
            return f"another copy of the model ({(root or other).strip('./') or 'no prefix'})"
    return None


def _root(prefix: str, other: str) -> str:
    """Returns the part of a prefix up to where it differs from another one, "" if it does not."""
    parts, others = (re.findall(r"[^./]+[./]", text) for text in (prefix, other))
    for n, part in enumerate(parts):
        if n >= len(others) or part != others[n]:
            return "".join(parts[: n + 1])
    return ""


def _harmless(name: str) -> str | None:
    return next((reason for pattern, reason in HARMLESS if re.search(pattern, name)), None)


def with_one_head(state: State, width: int) -> tuple[State, str | None]:
    """Returns the state with its classifier as `head`, and why it cannot serve, None if it can.

    width: of the tokens. A head that cannot serve is taken out: the rest of the model can. One
    linear layer is understood whatever it is called; several are not, for no tensor tells what
    stands between them.
    """
    layers: dict[str, list[str]] = {}
    for name in state:
        layer, _, last = name.rpartition(".")
        if re.fullmatch(HEAD_NAMES, layer) and not OURS.match(name):
            layers.setdefault(layer, []).append(last)
    if not layers or set(layers) == {"head"}:
        names = [f"head.{last}" for last in layers.get("head", ())]
        return _checked_head(state, names, "head", width)
    names = [f"{layer}.{last}" for layer, lasts in layers.items() for last in lasts]
    if len(layers) > 1:
        reason = f"its head has several layers ({', '.join(layers)}), and no tensor tells how"
        return _headless(state, names), f"{reason} they follow each other"
    return _checked_head(state, names, next(iter(layers)), width)


def _checked_head(state: State, names: list[str], layer: str, width: int):
    """Returns the state with that layer as `head` if it is one linear map of the class token."""
    if not names:
        return state, None
    weight, bias = (state.get(f"{layer}.{last}") for last in ("weight", "bias"))
    whole = {f"{layer}.weight", f"{layer}.bias"}
    if weight is None or weight.ndim != 2 or not set(names) <= whole:
        return _headless(state, names), f"its head ({', '.join(names)}) is no linear layer"
    inside = state.get("pre_logits.fc.weight")
    takes = width if inside is None or inside.ndim != 2 else inside.shape[0]
    beside = weight.shape[1] == 2 * takes and "cls_token" in state  # mean beside the class token
    if weight.shape[1] != takes and not beside:
        reason = f"its head reads {weight.shape[1]} features where the model has {takes}"
        return _headless(state, names), reason
    rest = {name: value for name, value in state.items() if name not in names}
    bias = weight.new_zeros(weight.shape[0]) if bias is None else bias
    return rest | {"head.weight": weight, "head.bias": bias}, None


def without_head(state: State) -> State:
    """Returns the state without its classifier and what else reads the pooled token."""
    return _headless(state, [name for name in state if name.startswith(HEADS)])


def _headless(state: State, names: Collection[str]) -> State:
    """Returns the state without the tensors of its head and of the layer before it."""
    gone = {*names, "pre_logits.fc.weight", "pre_logits.fc.bias"}
    return {name: value for name, value in state.items() if name not in gone}


def with_two_answers(state: State) -> State:
    """Returns the state whose head of one logit has two: a yes or no as softmax of (0, logit)."""
    heads = {name: value for name, value in state.items() if name.startswith(HEADS)}
    return state | {name: torch.cat([torch.zeros_like(v), v]) for name, v in heads.items()}


def refuse_relatives(state: Mapping[str, Tensor]) -> None:
    """Raises for transformers that share some of our names and work in another way."""
    for pattern, words, advice in RELATIVES:
        name = next((name for name in state if re.search(pattern, name)), None)
        if name:
            raise ValueError(f"{words}, which is not supported ({name}); {advice}")


def check(state: State, wanted: Collection[str], allow_partial: bool) -> tuple[State, Reasons]:
    """Returns (the tensors that the model uses, the unknown ones with a reason).

    wanted: names in the model that the file's shapes and facts describe. Raises ValueError for
    unknown ones unless `allow_partial`.
    """
    unknown = [name for name in state if name not in wanted]
    if unknown and not allow_partial:
        one = len(unknown) == 1
        words = "a tensor" if one else f"{len(unknown)} tensors"
        raise ValueError(_refusal(f"holds {words} that no model here has a place for", unknown))
    used = {name: value for name, value in state.items() if name in wanted}
    return used, dict.fromkeys(unknown, "unknown: the model has no such tensor (--allow-partial)")


def _refusal(words: str, names: list[str]) -> str:
    some = ", ".join(names[:2]) + (" ..." if len(names) > 2 else "")
    return f"{words} ({some}); train.py --allow-partial trains without them"
