"""The names that Hugging Face's transformers gives to a Vision Transformer's tensors, made ours.

What its classes compute beyond their tensors is here, too: what a classifier reads, and what a
config.json leaves out because it is the class's own value.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from torch import Tensor

from formats.renaming import UNREAD, State, fold_class_position, join_qkv, rename

T = TypeVar("T")
# Names of ViT, DeiT, DINOv2 and 3, MAE, BEiT, CLIP and SigLIP, the older and (since transformers 5)
# the newer, on the left; ours on the right.
HUGGING_FACE = [
    (r"^embeddings\.(?:cls_token|class_embedding)$", "cls_token"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.position_embeddings?(?:\.weight)?$", "pos_embed"),
    (r"^embeddings\.patch_embeddings?\.(?:projection\.)?", "patch_embed.proj."),
    (r"^(?:encoder\.|model\.)?layers?\.(\d+)\.", r"blocks.\1."),
    (r"\.attention\.attention\.", ".attention."),
    (r"\.(?:attention|self_attn)\.(?:query|q_proj)\.", ".attn.query."),
    (r"\.(?:attention|self_attn)\.(?:key|k_proj)\.", ".attn.key."),
    (r"\.(?:attention|self_attn)\.(?:value|v_proj)\.", ".attn.value."),
    (r"\.(?:attention|self_attn)\.(?:output\.dense|o_proj|out_proj)\.", ".attn.proj."),
    (r"^(blocks\.\d+)\.(?:attention\.)?relative_position_bias\.", r"\1.attn."),
    (r"^(?:encoder\.relative_position_bias|shared_position_bias)\.", "rel_pos_bias."),
    (r"\.(?:layernorm_before|layer_norm1)\.", ".norm1."),
    (r"\.(?:layernorm_after|layer_norm2)\.", ".norm2."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"^(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.(?:weights_out|down_proj)\.", ".mlp.fc2."),
    (r"\.mlp\.gate_proj\.", ".mlp.fc1_g."),
    (r"\.(?:layer_scale([12])\.lambda1|lambda_([12]))$", r".ls\1\2.gamma"),
    (r"^pre_layrnorm\.", "norm_pre."),
    (r"^(?:post_)?layernorm\.", "norm."),
    (r"^pooler\.layernorm\.", "fc_norm."),
    (r"^(?:cls_)?classifier\.", "head."),
    (r"^distillation_classifier\.", "head_dist."),
]


def own_classifier(tensors: Mapping[str, T], prefix: str) -> tuple[dict[str, T], bool]:
    """Returns CLIP's or SigLIP's tensors, and whether the library's own classifier is among them.

    prefix: what stood before the names of the images' part. In the library's class the classifier
    stands beside `vision_model`, and what it reads is known. Elsewhere a user's module holds both:
    what that calls its classifier is named as any other head.
    """
    if "embeddings.patch_embedding.weight" not in tensors:
        return dict(tensors), False
    outer, within, _ = prefix.rpartition("vision_model.")
    if within and f"{outer}classifier.weight" in tensors:
        return rename(tensors, [(rf"^{re.escape(outer)}classifier\.", "classifier.")]), True
    return rename(tensors, [(r"^classifier\.", "own_classifier.")]), False


def from_hugging_face(tensors: Mapping[str, Tensor]) -> State:
    """Hugging Face's ViT, DeiT, MAE, BEiT, DINOv2 and 3, heads included."""
    tensors = {name: value for name, value in tensors.items() if value.numel()}  # no registers
    state = rename(tensors, HUGGING_FACE)
    return fold_class_position(join_qkv(with_gates(state, state)))


def from_siglip(tensors: Mapping[str, Tensor]) -> State:
    """Hugging Face's SigLIP and CLIP: images' part of them, with what their classifiers read.

    SigLIP pools by attention, but its classifier reads the mean of all tokens. CLIP normalises the
    class token alone, and its classifier reads the mean of the patches before that norm.
    """
    state = {k: v.reshape(1, -1, v.shape[-1]) if _is_table(k) else v for k, v in tensors.items()}
    unread = {}
    if "classifier.weight" in state:
        parts = ("head.", "post_layernorm." if "embeddings.class_embedding" in state else "head.")
        unread = {name: state.pop(name) for name in list(state) if name.startswith(parts)}
    state = join_qkv(rename(_latent_pooling(state), HUGGING_FACE))
    return state | {UNREAD + name: value for name, value in unread.items()}


def _is_table(name: str) -> bool:
    """Whether a tensor is a row for each token, without the axis of the batch."""
    return name in ("embeddings.class_embedding", "embeddings.position_embedding.weight")


LATENT = [
    (r"^head\.probe$", "attn_pool.latent"),
    (r"^head\.attention\.out_proj\.", "attn_pool.proj."),
    (r"^head\.layernorm\.", "attn_pool.norm."),
    (r"^head\.mlp\.", "attn_pool.mlp."),
]


def _latent_pooling(tensors: State) -> State:
    """Names SigLIP's pooling as timm does, in_proj (3 D, D) in two: queries, keys and values."""
    state = rename(tensors, LATENT)
    for part in ("weight", "bias"):
        joined = state.pop(f"head.attention.in_proj_{part}", None)
        if joined is not None:
            width = len(joined) // 3
            state[f"attn_pool.q.{part}"] = joined[:width]
            state[f"attn_pool.kv.{part}"] = joined[width:]
    return state


def with_gates(named: Mapping[str, T], state: Iterable[str]) -> dict[str, T]:
    """Names up_proj, which stands beside a gate in a gated MLP and is the first map of others.

    state: the names of the whole model, which tell whether it has gates.
    """
    gated = any(".mlp.fc1_g." in name for name in state)
    return rename(named, [(r"\.mlp\.up_proj\.", ".mlp.fc1_x." if gated else ".mlp.fc1.")])


def pooling_of(format_name: str, own: bool, state: Mapping[str, Tensor]) -> str | None:
    """Returns what a class pools by where its tensors, under our names, tell it.

    own: whether the library's own classifier is among them.
    """
    mean = {
        "Hugging Face CLIP": own,
        "Hugging Face SigLIP": "attn_pool.latent" not in state,
    }
    return "avg" if mean.get(format_name) else None


# What a class takes where its config.json says nothing: only what differs is written inside
# `vision_config`, and older files lack newer keys.
_STILL = {"use_rot_pos_emb": False}  # what has learned or relative positions, or none
_VIT = _STILL | {"hidden_act": "gelu", "layer_norm_eps": 1e-12}
_LATER = _VIT | {"layer_norm_eps": 1e-6}
_BEIT = _VIT | {"use_mean_pooling": True}
_CLIP = _STILL | {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
DEFAULTS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("vit", "deit", "vit_mae"), _VIT),
    **dict.fromkeys(("vit_msn", "ijepa", "dinov2", "dinov2_with_registers"), _LATER),
    **dict.fromkeys(("beit", "data2vec-vision"), _BEIT),
    "dinov3_vit": {
        "hidden_act": "gelu", "layer_norm_eps": 1e-5, "image_size": 224, "rope_theta": 100.0,
        "use_rot_pos_emb": True, "rope_type": "dinov3", "rope_rotate_half": True,
    },
    **dict.fromkeys(("clip_vision_model", "metaclip_2_vision_model"), _CLIP),
    "siglip_vision_model": _LATER | {"hidden_act": "gelu_pytorch_tanh"},
}  # fmt: skip


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config.json of transformers with what it leaves out; any other as it is.

    Raises ValueError, worded to follow a file's name, for MLPs that are gated by another function
    than ours.
    """
    kind, inner = config.get("model_type"), config.get("vision_config")
    if isinstance(inner, Mapping):  # of models for images and texts
        own = DEFAULTS.get(f"{kind}_vision_model")
        if own is None:
            return {key: value for key, value in config.items() if key != "vision_config"}
        return {**config, "vision_config": {"num_attention_heads": 12, **own, **inner}}
    full = (DEFAULTS.get(kind, {}) if isinstance(kind, str) else {}) | dict(config)
    if isinstance(rope := full.get("rope_parameters"), Mapping) and "rope_theta" in rope:
        full |= {"rope_theta": rope["rope_theta"]}
    if full.get("use_gated_mlp") and full.get("hidden_act") not in ("silu", "swish"):
        raise ValueError(f"has MLPs gated by {full.get('hidden_act')}: only silu is supported")
    return full
