"""The names of OpenAI's CLIP and of OpenCLIP, whose images' part is `visual`, made ours."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from formats.renaming import State, rename

OPEN_CLIP = [
    (r"^visual\.class_embedding$", "cls_token"),
    (r"^visual\.positional_embedding$", "pos_embed"),
    (r"^visual\.conv1\.", "patch_embed.proj."),
    (r"^visual\.ln_pre\.", "norm_pre."),
    (r"^visual\.ln_post\.", "norm."),
    (r"^visual\.transformer\.resblocks\.(\d+)\.", r"blocks.\1."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.ls_([12])\.", r".ls\1."),
    (r"\.attn\.in_proj_(weight|bias)$", r".attn.qkv.\1"),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
]


def with_heads(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an open_clip_config.json with the attention heads, for which it says their width."""
    model = config.get("model_cfg")
    vision = model.get("vision_cfg") if isinstance(model, Mapping) else None
    if not isinstance(vision, Mapping) or "timm_model_name" in vision:
        return dict(config)
    width, each = vision.get("width"), vision.get("head_width", 64)  # the library's default
    if type(width) is not int or type(each) is not int or not 0 < each <= width:
        return dict(config)
    told = {**vision, "num_heads": width // each}
    return {**config, "model_cfg": {**model, "vision_cfg": told}}


def from_open_clip(tensors: Mapping[str, Tensor]) -> State:
    """OpenAI's and OpenCLIP's Vision Transformers; the class token and positions lack an axis."""
    state = rename(tensors, OPEN_CLIP)
    for name in ("cls_token", "pos_embed"):
        if name in state:
            state[name] = state[name].reshape(1, -1, state[name].shape[-1])
    return state
