"""The fields of `ViTConfig` that no shape tells, from the facts that were decided.

sizes |= told_sizes(facts, sizes)
sizes["global_pool"] = pooling(facts, sizes, by_class)
"""

from collections.abc import Mapping
from typing import Any

from formats.facts import Decided

# Fields that facts tell as they are.
FIELDS = (
    "norm_eps", "act", "pool_prefix", "pool_heads", "rope_temperature", "rope_rotate_half",
    "rope_grid_indexing", "rope_grid_offset", "rope_ref_grid",
)  # fmt: skip


def told_sizes(facts: Decided, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields but for heads and pooling; takes out of the assumptions what is idle.

    sizes: what shapes tell. Raises ValueError, worded to follow a file's name, where nothing tells
    by what positions the model knows where patches stand.
    """
    told = {field: facts.values[field] for field in FIELDS if field in facts.values}
    for field in ("rope_temperature", "rope_grid_offset"):
        told |= {field: float(told[field])} if isinstance(told.get(field), int) else {}
    told["answers"] = "sigmoid" if facts.values.get("answers") == "sigmoid" else "softmax"
    told["rope"] = _rope(facts, sizes)
    if facts.values.get("map_prefix") and sizes["global_pool"] == "map":
        told["pool_prefix"] = True
    if sizes["swiglu"] != "none":  # whose gate is a SiLU
        facts.assumed.pop("activation", None)
    if told["rope"] == "none":
        told = {field: value for field, value in told.items() if not field.startswith("rope_")}
    norm = facts.values.get("norm", sizes["norm"])
    if "norm" not in facts.values and norm == "rms":
        facts.assumed["kind of norm"] = "rms, for it has no biases"
    return told | {"norm": norm}


def _rope(facts: Decided, sizes: Mapping[str, Any]) -> str:
    """Returns the kind of rotary positions, "none" for none."""
    rotary, kind = facts.values.get("rotary"), facts.values.get("rope", "cat")
    if rotary is True:
        return kind
    placeless = not sizes["pos_embed"] and sizes["rel_pos"] == "none"
    eva02 = sizes["swiglu"] == "unpacked" and sizes["norm"] == "layer"  # rotary beside learned ones
    if (placeless or eva02) and "rotary positions" in facts.assumed:
        sign = "no positions among its tensors" if placeless else "the gates of EVA-02"
        raise ValueError(
            f"has {sign}, so its positions are rotary, and nothing tells which; name it as timm "
            f"names such a model (vit_small_patch16_dinov3.safetensors), or put its config.json "
            f"beside it"
        )
    return "none"


def pooling(facts: Decided, sizes: Mapping[str, Any], by_class: str | None) -> str:
    """Returns what the head reads: as stated, as the class of the tensors does, or as they look.

    by_class: of a library's class that its tensors tell, None where they tell none.
    """
    name, shown = "pooling", sizes["global_pool"]
    if shown in ("map", "token+avg"):  # which no other pooling has the tensors for
        return shown
    if "global_pool" in facts.values:
        return facts.values["global_pool"]
    if by_class is not None:
        facts.told[name] = f"{by_class} (the class of its tensors)"
        return by_class
    if "mean_pooling" in facts.values:
        return "avg" if facts.values["mean_pooling"] else "token"
    if sizes["class_token"]:
        facts.assumed[name] = shown
    return shown
