"""The names that other libraries give to a Vision Transformer's tensors, turned into ours (timm's).

    name, state = convert(tensors)     # what open_weights returned -> ("torchvision", our names)

One pure function for each source, state dict in, state dict out. What a source has and our model
lacks keeps its name; `ledger` says what becomes of it.

Letters in shape comments: D width, H heads, K head size, P patch size.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from formats.hugging_face import HUGGING_FACE, from_hugging_face, from_siglip
from formats.open_clip import from_open_clip
from formats.renaming import State, fold_class_position, join_qkv, rename


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
# timm's Eva and Beit, and their authors' own names, beside those of its VisionTransformer.
TIMM = [
    CHUNKS,
    (r"gamma_([12])$", r"ls\1.gamma"),
    (r"\.attn\.q(?:_proj\.|_(?=bias$))", ".attn.query."),
    (r"\.attn\.k_proj\.", ".attn.key."),
    (r"\.attn\.v(?:_proj\.|_(?=bias$))", ".attn.value."),
    (r"\.inner_attn_ln\.", ".norm."),
    (r"\.mlp\.ffn_ln\.", ".mlp.norm."),
    (r"\.mlp\.w1\.", ".mlp.fc1_g."),
    (r"\.mlp\.w2\.", ".mlp.fc1_x."),
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
]


def from_timm(tensors: Mapping[str, Tensor]) -> State:
    """timm, jx_vit_*, DeiT and the reference: our own names.

    DeiT III calls its layer scale gamma_1 and gamma_2. The very first files of timm hold the patch
    projection as a matrix (D, 3 P P).
    """
    state = join_qkv(_with_all_keys(rename(tensors, TIMM)))
    projection = state.get("patch_embed.proj.weight")
    if projection is not None and projection.ndim == 2:
        patch = round((projection.shape[1] / 3) ** 0.5)
        state["patch_embed.proj.weight"] = projection.reshape(-1, 3, patch, patch)
    return state


def _with_all_keys(state: State) -> State:
    """Repeats keys and values that several heads share, so that each has its own (3 of (H K, D)).

    Heads' width is that of the norm of queries; where there is none, they stay as they are.
    """
    full = dict(state)
    for name, value in state.items():
        block, _, part = name.partition(".attn.")
        queries = state.get(f"{block}.attn.query.{part.rpartition('.')[2]}")
        norm = state.get(f"{block}.attn.q_norm.weight")
        if part.startswith(("key.", "value.")) and queries is not None and norm is not None:
            heads = value.unflatten(0, (-1, len(norm)))
            full[name] = heads.repeat_interleave(len(queries) // len(value), 0).flatten(0, 1)
    return full


def from_dinov2(tensors: Mapping[str, Tensor]) -> State:
    """DINOv2 and 3 as their authors publish them: our names but for the registers.

    DINOv3's biases of keys count as zero, which a mask says.
    """
    masks = {name for name in tensors if name.endswith("qkv.bias_mask")}
    state = {name: value for name, value in tensors.items() if name not in masks}
    for name in masks:
        bias = state[name.removesuffix("_mask")].clone()
        bias[len(bias) // 3 : 2 * len(bias) // 3] = 0
        state[name.removesuffix("_mask")] = bias
    names = [(r"^(?:register|storage)_tokens$", "reg_token"), *TIMM]
    return fold_class_position(join_qkv(rename(state, names)))


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
    ("OpenCLIP", r"^visual\.transformer\.resblocks\.", from_open_clip),
    ("torchvision", r"^conv_proj\.weight$", from_torchvision),
    ("DINOv3", r"(?:^|\.)storage_tokens$", from_dinov2),
    ("timm", r"(?:^|\.)(?:relative_position_bias_table|q_bias|q_proj\.weight)$", from_timm),
    ("DINOv2", r"(?:^|\.)(?:register_tokens|mask_token)$", from_dinov2),
    ("timm", r"^patch_embed\.proj\.weight$", from_timm),
]


def _what_it_is(tensors: Mapping[str, Tensor]) -> str:
    some = ", ".join(list(tensors)[:3])
    if any("lora_" in name for name in tensors):
        return (
            f"holds LoRA adapters alone ({some} ...), and nothing says their backbone, rank and "
            f"scale: put the adapter_config.json that peft wrote beside it, and name the folder"
        )
    if any(re.search(r"\.rel_pos_[hw]$", name) for name in tensors):
        return "is the encoder of SAM or ViTDet, whose attention works in windows: not supported"
    filters = sum(v.ndim == 4 for v in tensors.values())
    if filters > 3:  # a Vision Transformer has one convolution
        return f"holds a convolutional network ({some} ...), not a Vision Transformer"
    return f"holds no Vision Transformer that is known here; its first tensors are {some}"
