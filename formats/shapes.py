"""The fields of `ViTConfig` that the names and shapes of a state dict tell.

    sizes = sizes_of(state)
    state = with_absent_biases(state, sizes["depth"])

Heads leave no trace, and neither do activation, epsilon and rotary positions: `facts` decides them.

Letters in shape comments: D width, H heads, K head size, P patch size.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from formats.architectures import HEADS
from formats.renaming import State
from vit_model import VARIANTS

# Parts that are there where a tensor is: (field, tensor).
PARTS = (
    ("class_token", "cls_token"),
    ("pos_embed", "pos_embed"),
    ("distilled", "dist_token"),
    ("patch_norm", "patch_embed.norm.weight"),
    ("norm_pre", "norm_pre.weight"),
    ("final_norm", "norm.weight"),
    ("fc_norm", "fc_norm.weight"),
    ("qkv_bias", "blocks.0.attn.qkv.bias"),
    ("qk_norm", "blocks.0.attn.q_norm.weight"),
    ("attn_norm", "blocks.0.attn.norm.weight"),
    ("mlp_norm", "blocks.0.mlp.norm.weight"),
)
NORM_BIAS, SCALE = "blocks.0.norm1.bias", "blocks.0.ls1.gamma"
TABLE = "relative_position_bias_table"
NEEDED = ("patch_embed.proj.weight", "blocks.0.norm1.weight", "blocks.0.attn.qkv.weight")


def check_complete(state: State) -> None:
    """Raises ValueError where a state dict lacks what every Vision Transformer has."""
    base = {name.replace(".base_weight", ".weight") for name in state}
    missing = [key for key in NEEDED if key not in base]
    if missing:
        raise ValueError(f"is no complete Vision Transformer: it lacks {', '.join(missing)}")


def sizes_of(state: State, no_embed_class: bool | None = None, img_size: int | None = None) -> dict:
    """Returns the fields of `ViTConfig` that the names and shapes of a state dict tell.

    The number of heads leaves no trace in the shapes: it is that of the variant of this width and
    depth, else heads are 64 wide. no_embed_class: whether positions are those of patches alone,
    where that is known. img_size: of the images, which counts where the model has neither absolute
    nor relative positions; 224 or nearly so where that is not known.
    """
    if state["patch_embed.proj.weight"].ndim != 4:
        raise ValueError("has a patch projection that is no convolution")
    width, in_chans, patch, _ = state["patch_embed.proj.weight"].shape
    depth = 1 + max(int(m[1]) for k in state if (m := re.match(r"blocks\.(\d+)\.", k)))
    registers = state["reg_token"].shape[1] if "reg_token" in state else 0
    special = ("cls_token" in state) + ("dist_token" in state) + registers
    side, no_embed_class = _grid(state, special, no_embed_class)
    if side is None:
        side = max(1, round((img_size or 224) / patch))
    return {
        "img_size": side * patch,
        "patch_size": patch,
        "in_chans": in_chans,
        "embed_dim": width,
        "depth": depth,
        "num_heads": heads_of(width, depth),
        "mlp_hidden": _same([_hidden(state, n) for n in range(depth)]),
        "reg_tokens": registers,
        "no_embed_class": no_embed_class,
        **{field: name in state for field, name in PARTS},
        **_kinds(state),
        **_head(state, width),
        **_kan_sizes(state, depth),
    }


def _kinds(state: State) -> dict:
    """Returns which of several forms the parts of the blocks have."""
    return {
        "norm": "layer" if NORM_BIAS in state else "rms",
        "swiglu": _gate(state),
        "rel_pos": _relative(state),
        "init_values": 1e-5 if SCALE in state else None,
        "mlp_scale": SCALE not in state or SCALE.replace("ls1", "ls2") in state,
    }


def _head(state: State, width: int) -> dict:
    """Returns what the tensors behind the blocks tell of the head and of what it reads."""
    head, pre_logits = state.get("head.weight"), state.get("pre_logits.fc.weight")
    inner = state.get("attn_pool.mlp.fc1.weight")
    return {
        "num_classes": 0 if head is None else head.shape[0],
        "representation_size": None if pre_logits is None else pre_logits.shape[0],
        "dist_head": "dist_token" not in state or head is None or "head_dist.weight" in state,
        "global_pool": _pool(state, width, head if pre_logits is None else pre_logits),
        "pool_hidden": None if inner is None else len(inner),
    }


def _grid(state: State, special: int, no_embed_class: bool | None) -> tuple[int | None, bool]:
    """Returns (patches a side, whether special tokens have no positions); None: nothing tells."""
    if "pos_embed" in state:
        positions = state["pos_embed"].shape[1]
        # Positions may or may not count the special tokens: the square that is left decides.
        if no_embed_class is None:
            no_embed_class = _side(positions) is not None and _side(positions - special) is None
        side = _side(positions if no_embed_class else positions - special)
        if side is None:
            raise ValueError(f"has {positions} positions, which make no square grid of patches")
        return side, no_embed_class
    for name, value in state.items():
        if name.endswith(TABLE):
            double = _side(len(value) - 3)  # offsets from -(G - 1) to G - 1 along either axis
            if double is None or double % 2 == 0:
                raise ValueError(f"has {len(value)} relative positions, which make no square grid")
            return (double + 1) // 2, bool(no_embed_class)
    return None, bool(no_embed_class)


def _gate(state: State) -> str:
    """Returns whether MLPs are gated, and where their gate's weights are."""
    if any(".mlp.fc1_g." in name for name in state):
        return "unpacked"
    first = _first(state, "blocks.0.mlp.fc1.")
    return "packed" if first is not None and len(first) == 2 * _hidden(state, 0) else "none"


def _relative(state: State) -> str:
    block = f"blocks.0.attn.{TABLE}" in state
    shared = f"rel_pos_bias.{TABLE}" in state
    return {(True, True): "both", (True, False): "block", (False, True): "shared"}.get(
        (block, shared), "none"
    )


def _pool(state: State, width: int, first: Tensor | None) -> str:
    """Returns what the head, or the map before it, reads as far as tensors tell: else the token."""
    if "attn_pool.latent" in state:
        return "map"
    if first is not None and first.shape[1] == 2 * width:
        return "token+avg"
    return "token" if "cls_token" in state and "fc_norm.weight" not in state else "avg"


def with_absent_biases(state: State, depth: int, norm: str = "rms") -> State:
    """Returns the state with zeros for the biases that all blocks lack alike.

    norm: "layer" for those of norms, too, and not of linear maps alone.
    """
    maps = ("attn.proj", "mlp.fc1", "mlp.fc1_g", "mlp.fc1_x", "mlp.fc2")
    layers = [[f"blocks.{n}.{part}" for n in range(depth)] for part in maps]
    layers += [["patch_embed.proj"], *([f"attn_pool.{m}"] for m in ("q", "kv", "proj"))]
    if norm == "layer" and NORM_BIAS not in state:
        norms = {n.removesuffix(".weight") for n in state if re.search(r"norm\w*\.weight$", n)}
        layers += [[name] for name in sorted(norms)]
    full = dict(state)
    for names in layers:
        if all(f"{n}.weight" in state and f"{n}.bias" not in state for n in names):
            for name in names:
                weight = state[f"{name}.weight"]
                full[f"{name}.bias"] = weight.new_zeros(weight.shape[0])
    return full


def _kan_sizes(state: State, depth: int) -> dict:
    """Returns the `mlp` and `kan_...` fields of `ViTConfig` for a state dict with KAN blocks.

    A grid has grid_size + 2 * order + 1 knots, a spline grid_size + order coefficients.
    """
    layer = "blocks.{}.mlp.fc2."  # has splines wherever a block has
    blocks = [n for n in range(depth) if f"{layer}base_weight".format(n) in state]
    if not blocks:
        return {}
    layer = layer.format(blocks[0])
    low_rank = f"{layer}spline_down" in state
    splines = state[f"{layer}spline_{'down' if low_rank else 'weight'}"]
    rows, knots = state[f"{layer}grid"].flatten(1).shape
    order = knots - splines.shape[-1] - 1
    grouped = splines.ndim == 2  # one spline for each group: (groups, coefficients)
    layers = {
        part: f"blocks.{blocks[0]}.{part}."
        for part in ("attn.qkv", "mlp.fc1", "mlp.fc1_g", "mlp.fc2")
        if f"blocks.{blocks[0]}.{part}.base_weight" in state
    }
    if all(len(state[f"{at}grid"]) == state[f"{at}base_weight"].shape[1] for at in layers.values()):
        rows = "feature"
    return {
        "mlp": "gkan" if grouped else "kan",
        "kan_blocks": blocks,
        "kan_rank": splines.shape[0] if low_rank else None,
        "kan_grid": splines.shape[-1] - order,
        "kan_order": order,
        "kan_at": "all" if "attn.qkv" in layers else "mlp" if len(layers) > 1 else "hidden",
    } | ({"kan_groups": rows} if grouped else {})


def _side(patches: int) -> int | None:
    """Returns the side of a square grid of so many patches, None if there is no such square."""
    side = round(max(patches, 0) ** 0.5)
    return side if side > 0 and side**2 == patches else None


def heads_of(width: int, depth: int) -> int:
    """Returns the number of attention heads of a model `width` wide and `depth` blocks deep."""
    return known_heads(width, depth) or max(1, width // 64)


def heads_in(state: State) -> int | None:
    """Returns the attention heads where a part has something of each: a bias, a rate, a norm."""
    for name, value in state.items():
        if name.endswith(TABLE):
            return value.shape[1]  # (rows, H)
        if name == "rope.freqs":
            return value.shape[2]  # (2, depth, H, K / 2)
    norm = state.get("blocks.0.attn.q_norm.weight")
    mixed = _first(state, "blocks.0.attn.proj.")
    return None if norm is None or mixed is None else mixed.shape[1] // len(norm)


def width_of_heads(state: State, heads: int) -> int | None:
    """Returns how wide each of so many heads is, None where all are as wide as the tokens."""
    mixed, patches = _first(state, "blocks.0.attn.proj."), state["patch_embed.proj.weight"]
    if mixed is None or mixed.shape[1] == len(patches) or mixed.shape[1] % heads:
        return None
    return mixed.shape[1] // heads


def known_heads(width: int, depth: int) -> int | None:
    """Returns the heads of every known model of that width and depth, None if there is none."""
    for variant in VARIANTS.values():
        if (variant.sizes["embed_dim"], variant.sizes["depth"]) == (width, depth):
            return variant.sizes["num_heads"]
    return HEADS.get((width, depth))


def _hidden(state: Mapping[str, Tensor], block: int) -> int:
    """Returns the width inside the MLP (or KAN) of a block: what its last map reads."""
    last = _first(state, f"blocks.{block}.mlp.fc2.")
    if last is None:
        name = f"blocks.{block}.mlp.fc2.weight"
        raise ValueError(f"is no complete Vision Transformer: it lacks {name}")
    return last.shape[1]


def _first(state: Mapping[str, Tensor], layer: str) -> Tensor | None:
    """Returns the weight of a linear map or KAN layer, None where there is none."""
    return state.get(f"{layer}weight", state.get(f"{layer}base_weight"))


def _same(values: list[int]) -> int | tuple[int, ...]:
    """Returns the one value that all have, else all of them."""
    return values[0] if len(set(values)) == 1 else tuple(values)
