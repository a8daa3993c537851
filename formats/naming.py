"""The names that other libraries give to a Vision Transformer's tensors, turned into ours (timm's).

    name, state = convert(tensors)     # what open_weights returned -> ("torchvision", our names)
    sizes = sizes_of(state)            # fields of ViTConfig that the shapes tell

One pure function for each source, state dict in, state dict out. What a source has and our model
lacks keeps its name; `ledger` says what becomes of it.

Letters in shape comments: D width, H heads, K head size, P patch size.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from formats.fact_table import HEADS
from formats.hugging_face import HUGGING_FACE, from_hugging_face, from_siglip
from formats.renaming import State, fold_class_position, join_qkv, rename
from vit_model import VARIANTS


def convert(tensors: Mapping[str, Tensor], others: Iterable[str] = ()) -> tuple[str, State]:
    """Returns (name of the format, tensors under our names), told by the names alone.

    others: names of tensors that the file has beside the model's, a decoder's or a mask token's.
    Raises ValueError, worded to follow a file's name, for what is no Vision Transformer.
    """
    for name, mark, converter in FORMATS:
        if any(re.search(mark, key) for key in (*tensors, *others)):
            return name, converter(tensors)
    raise ValueError(_what_it_is(tensors))


# Blocks in chunks, as DINOv2 trains them: blocks.CHUNK.NUMBER, numbered through all chunks.
CHUNKS = (r"^blocks\.\d+\.(\d+)\.(?=norm|attn|mlp|ls|gamma)", r"blocks.\1.")
TIMM = [(r"gamma_([12])$", r"ls\1.gamma"), CHUNKS]


def from_timm(tensors: Mapping[str, Tensor]) -> State:
    """timm, jx_vit_*, DeiT and the reference: our own names.

    DeiT III calls its layer scale gamma_1 and gamma_2. The very first files of timm hold the patch
    projection as a matrix (D, 3 P P).
    """
    state = rename(tensors, TIMM)
    projection = state.get("patch_embed.proj.weight")
    if projection is not None and projection.ndim == 2:
        patch = round((projection.shape[1] / 3) ** 0.5)
        state["patch_embed.proj.weight"] = projection.reshape(-1, 3, patch, patch)
    return state


def from_dinov2(tensors: Mapping[str, Tensor]) -> State:
    """DINOv2 as its authors publish it: our names but for the registers."""
    return fold_class_position(rename(tensors, [(r"^register_tokens$", "reg_token"), *TIMM]))


# What stands before the names of a ViT's modules in models that hold one.
OUTER = r"^(?:\w+\.)*?(?=(?:encoder\.)?layers?\.\d|blocks\.\d|embeddings\.|layernorm\.)"


def of_modules(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a file says of some modules of timm's or Hugging Face's ViT, under our names.

    Queries, keys and values stay apart: blocks.N.attn.query.weight and so on.
    """
    return rename(values, [(OUTER, ""), *HUGGING_FACE, *TIMM])


TORCHVISION = [
    (r"^class_token$", "cls_token"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.self_attention\.in_proj_(weight|bias)$", r".attn.qkv.\1"),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(?:0|linear_1)\.", ".mlp.fc1."),
    (r"\.mlp\.(?:3|linear_2)\.", ".mlp.fc2."),
    (r"^encoder\.ln\.", "norm."),
    (r"^heads\.head\.", "head."),
    (r"^heads\.pre_logits\.", "pre_logits.fc."),
]


def from_torchvision(tensors: Mapping[str, Tensor]) -> State:
    """torchvision's vit_b_16 and kin."""
    return rename(tensors, TORCHVISION)


GOOGLE = [
    (r"^cls$", "cls_token"),
    (r"^Transformer/posembed_input/pos_embedding$", "pos_embed"),
    (r"^embedding/", "patch_embed.proj/"),
    (r"^Transformer/encoderblock_(\d+)/", r"blocks.\1/"),
    (r"/LayerNorm_0/", ".norm1/"),
    (r"/LayerNorm_2/", ".norm2/"),
    (r"/MultiHeadDotProductAttention_1/out/", ".attn.proj/"),
    (r"/MultiHeadDotProductAttention_1/", ".attn."),
    (r"/MlpBlock_3/Dense_0/", ".mlp.fc1/"),
    (r"/MlpBlock_3/Dense_1/", ".mlp.fc2/"),
    (r"^Transformer/encoder_norm/", "norm/"),
    (r"^pre_logits/", "pre_logits.fc/"),
    (r"/(?:kernel|scale)$", ".weight"),
    (r"/bias$", ".bias"),
]


def from_google(tensors: Mapping[str, Tensor]) -> State:
    """Google's .npz of the original ViT and of AugReg (JAX: kernels have the input axes first)."""
    state = {key: _from_jax(key, v) for key, v in rename(tensors, GOOGLE).items()}
    return join_qkv(state)


def _from_jax(key: str, value: Tensor) -> Tensor:
    """Lays a JAX kernel out as torch wants it; biases lose their head axis, (H, K) -> (D,)."""
    if re.search(r"\.attn\.\w+\.bias$", key):
        return value.flatten()
    if not key.endswith(".weight") or value.ndim == 1:
        return value
    if key == "patch_embed.proj.weight":
        return value.permute(3, 2, 0, 1).contiguous()  # (P, P, 3, D) -> (D, 3, P, P)
    if ".attn.proj." in key:
        return value.flatten(0, 1).T.contiguous()  # (H, K, D) -> (D, D)
    return value.flatten(1).T.contiguous()  # (D, H, K) -> (D, D); (in, out) -> (out, in)


# (name, a pattern that one of its tensor names matches, converter), the most particular first.
FORMATS = [
    ("Google npz", r"^embedding/kernel$", from_google),
    ("Hugging Face CLIP", r"^embeddings\.class_embedding$", from_siglip),
    ("Hugging Face SigLIP", r"^embeddings\.patch_embedding\.weight$", from_siglip),
    ("Hugging Face DINOv3", r"^embeddings\.patch_embeddings\.weight$", from_hugging_face),
    ("Hugging Face", r"^embeddings\.patch_embeddings\.projection\.weight$", from_hugging_face),
    ("torchvision", r"^conv_proj\.weight$", from_torchvision),
    ("DINOv2", r"(?:^|\.)(?:register_tokens|mask_token)$", from_dinov2),
    ("timm", r"^patch_embed\.proj\.weight$", from_timm),
]
NEEDED = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.norm1.weight")


def check_complete(state: State) -> None:
    """Raises ValueError where a state dict lacks what every Vision Transformer has."""
    missing = [key for key in NEEDED if key not in state]
    if missing == ["cls_token"]:
        raise ValueError(
            "has no class token (cls_token): it pools its tokens, which is not supported"
        )
    if missing:
        raise ValueError(f"is no complete Vision Transformer: it lacks {', '.join(missing)}")


def _what_it_is(tensors: Mapping[str, Tensor]) -> str:
    some = ", ".join(list(tensors)[:3])
    filters = sum(v.ndim == 4 for v in tensors.values())
    if filters > 3:  # a Vision Transformer has one convolution
        return f"holds a convolutional network ({some} ...), not a Vision Transformer"
    return f"holds no Vision Transformer that is known here; its first tensors are {some}"


def sizes_of(state: State, no_embed_class: bool | None = None) -> dict:
    """Returns the fields of `ViTConfig` that the names and shapes of a state dict tell.

    The number of heads leaves no trace in the shapes: it is that of the variant of this width and
    depth, else heads are 64 wide. no_embed_class: whether positions are those of patches alone,
    where that is known.
    """
    if state["patch_embed.proj.weight"].ndim != 4:
        raise ValueError("has a patch projection that is no convolution")
    width, in_chans, patch, _ = state["patch_embed.proj.weight"].shape
    depth = 1 + max(int(m[1]) for k in state if (m := re.match(r"blocks\.(\d+)\.", k)))
    registers = state["reg_token"].shape[1] if "reg_token" in state else 0
    distilled = "dist_token" in state
    positions = state["pos_embed"].shape[1]
    special = 1 + distilled + registers
    # Positions may or may not count the special tokens: the square that is left decides.
    if no_embed_class is None:
        no_embed_class = _side(positions) is not None and _side(positions - special) is None
    side = _side(positions if no_embed_class else positions - special)
    if side is None:
        raise ValueError(f"has {positions} positions, which make no square grid of patches")
    head, pre_logits = state.get("head.weight"), state.get("pre_logits.fc.weight")
    return {
        "img_size": side * patch,
        "patch_size": patch,
        "in_chans": in_chans,
        "num_classes": 0 if head is None else head.shape[0],
        "embed_dim": width,
        "depth": depth,
        "num_heads": heads_of(width, depth),
        "mlp_hidden": _same([_hidden(state, n) for n in range(depth)]),
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "representation_size": None if pre_logits is None else pre_logits.shape[0],
        "distilled": distilled,
        "dist_head": not distilled or head is None or "head_dist.weight" in state,
        "reg_tokens": registers,
        "no_embed_class": no_embed_class,
        "init_values": 1e-5 if "blocks.0.ls1.gamma" in state else None,
        **_kan_sizes(state, depth),
    }


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
        for part in ("attn.qkv", "mlp.fc1", "mlp.fc2")
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
        "kan_at": "all" if "attn.qkv" in layers else "mlp" if "mlp.fc1" in layers else "hidden",
    } | ({"kan_groups": rows} if grouped else {})


def _side(patches: int) -> int | None:
    """Returns the side of a square grid of so many patches, None if there is no such square."""
    side = round(max(patches, 0) ** 0.5)
    return side if side > 0 and side**2 == patches else None


def heads_of(width: int, depth: int) -> int:
    """Returns the number of attention heads of a model `width` wide and `depth` blocks deep."""
    return known_heads(width, depth) or max(1, width // 64)


def known_heads(width: int, depth: int) -> int | None:
    """Returns the heads of every known model of that width and depth, None if there is none."""
    for variant in VARIANTS.values():
        if (variant.sizes["embed_dim"], variant.sizes["depth"]) == (width, depth):
            return variant.sizes["num_heads"]
    return HEADS.get((width, depth))


def _hidden(state: State, block: int) -> int:
    """Returns the width inside the MLP (or KAN) of a block."""
    for name in ("weight", "base_weight"):
        key = f"blocks.{block}.mlp.fc1.{name}"
        if key in state:
            return state[key].shape[0]
    raise ValueError(f"is no complete Vision Transformer: it lacks blocks.{block}.mlp.fc1.weight")


def _same(values: list[int]) -> int | tuple[int, ...]:
    """Returns the one value that all have, else all of them."""
    return values[0] if len(set(values)) == 1 else tuple(values)
