"""Small models of other libraries, far from their first values, and files as scripts leave them."""

import json
from pathlib import Path

import safetensors.torch
import timm
import torch
import transformers
from timm.models import save_for_hf
from torch import nn

from pretrained import load_model

TINY = {"img_size": 64, "embed_dim": 128, "depth": 2, "num_heads": 2, "num_classes": 2}
HF_TINY = {
    "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512,
    "image_size": 64, "patch_size": 16, "num_labels": 2,
}  # fmt: skip


@torch.no_grad()
def shaken(model: nn.Module) -> nn.Module:
    """Returns the model in eval mode with every parameter far from its initial value."""
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def vit(name: str = "vit_tiny_patch16_224", **options) -> nn.Module:
    """A model of timm, V(...)."""
    return shaken(timm.create_model(name, **TINY | options))


def hugging_face(kind: str = "ViT", head: str = "ForImageClassification", **options) -> nn.Module:
    """A model of transformers, H."""
    config = getattr(transformers, f"{kind}Config")(**HF_TINY | options)
    return shaken(getattr(transformers, f"{kind}{head}")(config))


def as_timm(model: nn.Module, folder: Path, **config) -> Path:
    """Writes a folder as timm does for a hub; `config` overrides what config.json says."""
    save_for_hf(model, folder, safe_serialization=True)
    beside(folder, **json.loads((folder / "config.json").read_text("utf-8")) | config)
    return folder / "model.safetensors"


def as_hub(state: dict, folder: Path, **config) -> Path:
    """Writes a state dict with a config.json beside it."""
    folder.mkdir(exist_ok=True)
    safetensors.torch.save_file({k: v.contiguous() for k, v in state.items()},
                                folder / "model.safetensors")  # fmt: skip
    beside(folder, **config)
    return folder / "model.safetensors"


def beside(folder: Path, **config) -> None:
    (folder / "config.json").write_text(json.dumps(config), "utf-8")


def saved(payload, folder: Path, name: str = "x.pth") -> Path:
    torch.save(payload, folder / name)
    return folder / name


IMAGES = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def assert_same(path: Path, theirs: torch.Tensor | nn.Module) -> None:
    """Asserts that the model in the file gives the library's logits."""
    theirs = theirs(IMAGES) if isinstance(theirs, nn.Module) else theirs
    theirs = getattr(theirs, "logits", theirs)
    assert theirs.std() > 0.1, "logits that hardly differ prove nothing"
    ours = load_model(path).model(IMAGES)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
