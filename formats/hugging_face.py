"""The names that Hugging Face's transformers gives to a Vision Transformer's tensors, made ours."""

from collections.abc import Mapping

from torch import Tensor

from formats.renaming import State, fold_class_position, join_qkv, rename

# Hugging Face names on the left, the older and (since transformers 5) the newer, ours on the right.
HUGGING_FACE = [
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(?:encoder\.layer|layers|encoder\.layers)\.(\d+)\.", r"blocks.\1."),
    (r"\.attention\.(?:attention\.)?(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.q_proj\.", ".attn.query."),
    (r"\.attention\.k_proj\.", ".attn.key."),
    (r"\.attention\.v_proj\.", ".attn.value."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"^(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"^layernorm\.", "norm."),
    (r"^(?:cls_)?classifier\.", "head."),
    (r"^distillation_classifier\.", "head_dist."),
]


def from_hugging_face(tensors: Mapping[str, Tensor]) -> State:
    """Hugging Face's ViT, DeiT and DINOv2 (with or without registers), heads included."""
    return fold_class_position(join_qkv(rename(tensors, HUGGING_FACE)))
