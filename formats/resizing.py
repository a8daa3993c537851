"""Fits the tensors of one Vision Transformer to another: sizes, channels, positions, MLP to KAN.

Everything here is a pure function of tensors. `weight_loader.load_into` decides what is called.

Letters in shape comments: C channels, D width, h and w patches per side, P patch size.
"""

import re

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_positions(positions: Tensor, grid: int, prefix: int, new_prefix: int) -> Tensor:
    """Returns position embeddings (1, N, D) for a grid of `grid` x `grid` patches.

    The first `prefix` rows belong to special tokens and are not interpolated: they are kept, cut to
    `new_prefix` rows or filled up with zeros. Patches are interpolated as in timm: bicubic, with
    antialiasing.
    """
    special, patches = positions[:, :prefix], positions[:, prefix:]
    side = round(patches.shape[1] ** 0.5)
    if side != grid:
        image = patches.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)  # (1, D, h, w)
        image = F.interpolate(image, size=(grid, grid), mode="bicubic", antialias=True)
        patches = image.permute(0, 2, 3, 1).flatten(1, 2).to(positions.dtype)  # (1, N, D)
    missing = positions.new_zeros(1, max(0, new_prefix - prefix), positions.shape[2])
    return torch.cat([special[:, :new_prefix], missing, patches], dim=1)


def resize_patches(weight: Tensor, patch: int) -> Tensor:
    """Returns a patch projection (D, C, P, P) for patches of `patch` pixels.

    The pseudo-inverse of image resizing (FlexiViT, arXiv 2212.08013): an image and its enlarged
    copy give the same tokens where patches grow, and nearly so where they shrink.
    """
    old = weight.shape[-1]
    if old == patch:
        return weight
    pixels = torch.eye(old**2).reshape(old**2, 1, old, old)
    resized = F.interpolate(pixels, size=(patch, patch), mode="bicubic", antialias=True)
    inverse = torch.linalg.pinv(resized.flatten(1).T)  # (old * old, new * new)
    flat = weight.float().flatten(2) @ inverse  # (D, C, P * P)
    return flat.unflatten(2, (patch, patch)).to(weight.dtype)


def fit_channels(weight: Tensor, channels: int) -> Tensor:
    """Returns a patch projection (D, C, P, P) for images of another number of channels.

    Grey images take the sum over colours, so that a grey photo gives the tokens of its colour copy;
    more channels repeat the colours, scaled to keep the size of the tokens.
    """
    old = weight.shape[1]
    if old == channels:
        return weight
    if channels == 1:
        return weight.sum(1, keepdim=True)
    repeats = -(-channels // old)
    return weight.repeat(1, repeats, 1, 1)[:, :channels] * (old / channels)


def rename_mlps(state: dict[str, Tensor], target: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns `state` with each block's MLP under the names that the block has in `target`.

    An MLP's weight is a KAN layer's base weight: with its splines at zero the layer computes the
    same. The other way round the splines have no place and stay behind as ignored.
    """
    renamed = {}
    for name, value in state.items():
        if re.search(r"\.mlp\.fc[12]\.", name) and name not in target:
            other = re.sub(r"\.weight$", ".base_weight", name)
            if other == name:
                other = re.sub(r"\.base_weight$", ".weight", name)
            name = other if other in target else name
        renamed[name] = value
    return renamed
