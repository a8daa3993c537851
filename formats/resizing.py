"""Fits the tensors of one Vision Transformer to another: sizes, channels, places, MLP to KAN.

Everything here is a pure function of tensors. `fitting.load_into` decides what is called.

Letters in shape comments: C channels, D width, h and w patches per side, P patch size.
"""

import re
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vit.positions import relative_rows
from vit_model import VisionTransformer


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


def resize_offsets(table: Tensor, grid: int) -> Tensor:
    """Returns relative position biases (rows, H) for a grid of `grid` x `grid` patches.

    As BEiT resizes them (and timm): a table of S x S offsets is laid out so that its distances grow
    geometrically from 1 to the new farthest one, and read there at whole distances, linearly. The
    three rows of the class token stay.
    """
    side, new = round((len(table) - 3) ** 0.5), 2 * grid - 1
    if side == new:
        return table
    reach = _distances(side // 2, grid - 1)
    places = np.array([*(-d for d in reversed(reach)), 0.0, *reach])
    wanted = np.arange(1 - grid, grid, dtype=np.float64)
    reads = np.stack([np.interp(wanted, places, row) for row in np.eye(side)], 1)  # (new, side)
    matrix = torch.from_numpy(reads)
    offsets = table[:-3].double().unflatten(0, (side, side))
    resized = torch.einsum("nh,mw,hwc->nmc", matrix, matrix, offsets).flatten(0, 1)
    return torch.cat([resized.to(table.dtype), table[-3:]])


def _distances(count: int, farthest: int) -> list[float]:
    """Returns `count` distances, 1, 1 + q, 1 + q + q^2 ..., that end near `farthest`.

    q is found to 1e-6 between 1.01 and 1.5 by halving, and not better: as in the files of BEiT.
    """
    low, high, ratio = 1.01, 1.5, 1.01
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (1 - ratio**count) / (1 - ratio) > farthest:
            high = ratio
        else:
            low = ratio
    return [sum(ratio**i for i in range(n + 1)) for n in range(count)]


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


def rename_maps(state: dict[str, Tensor], target: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns `state` with each block's linear maps under the names that they have in `target`.

    A linear map's weight is a KAN layer's base weight: with its splines at zero the layer computes
    the same. The other way round the splines have no place and stay behind as ignored.
    """
    renamed = {}
    for name, value in state.items():
        if re.search(r"\.(mlp\.fc[12](_[gx])?|attn\.(qkv|proj))\.", name) and name not in target:
            other = re.sub(r"\.weight$", ".base_weight", name)
            if other == name:
                other = re.sub(r"\.base_weight$", ".weight", name)
            name = other if other in target else name
        renamed[name] = value
    return renamed


def fit_tensor(
    name: str, value: Tensor, model: VisionTransformer, config: Mapping
) -> tuple[Tensor, str]:
    """Returns (tensor in the model's size where that is sound, how, or "" if nothing was done).

    config: of the file that the tensor comes from.
    """
    if name == "pos_embed" and value.shape != model.pos_embed.shape:
        prefix = _prefix(config)
        new_prefix = 0 if model.sizes.no_embed_class else model.num_prefix_tokens
        grid = model.patch_embed.grid_size
        return resize_positions(value, grid, prefix, new_prefix), "bicubic interpolation"
    if name.endswith("relative_position_bias_table"):
        grid = model.patch_embed.grid_size
        fits = len(value) == relative_rows(grid)
        return resize_offsets(value, grid), "" if fits else "interpolation of distances"
    if name != "patch_embed.proj.weight":
        return value, ""
    how = []
    if value.shape[1] != model.sizes.in_chans and value.shape[1] in (1, 3):
        value = fit_channels(value, model.sizes.in_chans)
        how.append(f"colours to {model.sizes.in_chans} channels")
    if value.shape[-1] != model.sizes.patch_size:
        value = resize_patches(value, model.sizes.patch_size)
        how.append("pseudo-inverse of resizing")
    return value, " and ".join(how)


def _prefix(config: Mapping) -> int:
    """Returns how many position embeddings of a model belong to special tokens."""
    if config.get("no_embed_class"):
        return 0
    special = bool(config.get("distilled")) + config.get("reg_tokens", 0)
    return special + bool(config.get("class_token", True))
