"""Smaller models: removes the hidden units of MLP and KAN blocks that matter least.

A hidden unit is one output of a block's first layer: all edges that lead to it and from it go
together, so the pruned model is a smaller dense model, not a masked one. What a unit gave on
average is added to the second layer's bias, so that only its variation is lost.

The importance of a unit is what its variation does to the answer, to first order: the mean over
photos and the sum over tokens of (gradient of the answer's margin times what the unit adds beyond
its mean), squared: the criterion of "Importance Estimation for Neural Network Pruning" (arXiv
1906.10771), taken at the unit's output instead of its weights.

Letters in shape comments: N tokens of all photos in a chunk, I hidden units, O outputs, K bases.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from explaining.curves import CHUNK
from kan import GroupKANLinear, KANLinear
from splines.bases import dense_bases
from vit_model import SwiGlu, VisionTransformer, create_model


@contextmanager
def second_layers(model: VisionTransformer, keep: list) -> Iterator[None]:
    """Within it, (input, output) of every block's second layer are put into `keep`, in order."""
    hooks = [
        block.mlp.fc2.register_forward_hook(lambda _, args, out: keep.append((args[0], out)))
        for block in model.blocks
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def margin(logits: Tensor) -> Tensor:
    """The best logit above the log-sum of the others, (B, K) -> (B,): it does not saturate."""
    best = logits.max(-1)
    others = logits.scatter(1, best.indices[:, None], -torch.inf)
    return best.values - others.logsumexp(-1)


def terms(mlp: nn.Module, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
    """What fc2 makes of its input (N, I): values that meet base_weight (N, I), bases (N, I, K)."""
    layer = mlp.fc2
    if isinstance(layer, nn.Linear):
        return hidden, None
    active = layer.base_activation(hidden)
    size = layer.in_features // layer.curves
    grid = layer.grid.repeat_interleave(size, 0)
    bases = dense_bases(hidden.to(grid), grid, layer.spline_order, layer.outside).to(hidden)
    if isinstance(layer, KANLinear):
        return active, bases
    return active + (bases * layer.spline_weight.repeat_interleave(size, 0)).sum(-1), None


def sensitivities(mlp: nn.Module, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
    """The gradient (N, O) of fc2's output carried back to each of its `terms`."""
    layer = mlp.fc2
    if isinstance(layer, nn.Linear):
        return gradient @ layer.weight, None
    to_base = gradient @ layer.base_weight
    if isinstance(layer, GroupKANLinear):
        return to_base, None
    if layer.spline_rank is None:
        to_bases = gradient @ layer.scaled_spline_weight.flatten(1)  # (N, O) @ (O, I * K)
    else:
        to_bases = gradient @ layer.spline_up @ layer.spline_down.flatten(1)
    return to_base, to_bases.unflatten(1, (layer.in_features, -1))


@torch.no_grad()
def chunk_importance(mlp: nn.Module, hidden: Tensor, gradient: Tensor) -> Tensor:
    """Importance (I,) of the units for inputs (N, I) and gradients (N, O) of fc2, summed over N."""
    values, bases = terms(mlp, hidden)
    to_values, to_bases = sensitivities(mlp, gradient)
    added = (values - values.mean(0)) * to_values
    if bases is not None:
        added += ((bases - bases.mean(0)) * to_bases).sum(-1)
    return added.square().sum(0)


def unit_importance(model: VisionTransformer, images: Tensor) -> list[Tensor]:
    """Importance of each block's hidden units, (I,) per block, measured on images (B, 3, S, S)."""
    total = [torch.zeros(block.mlp.fc2.in_features, device=images.device) for block in model.blocks]
    for chunk in images.split(CHUNK):
        seen: list[tuple[Tensor, Tensor]] = []
        with torch.enable_grad(), second_layers(model, seen):
            answers = margin(model(chunk.detach().requires_grad_()))
            gradients = torch.autograd.grad(answers.sum(), [output for _, output in seen])
        for n, ((hidden, _), gradient) in enumerate(zip(seen, gradients, strict=True)):
            total[n] += chunk_importance(
                model.blocks[n].mlp, hidden.detach().flatten(0, 1), gradient.flatten(0, 1)
            )
    return [importance / len(images) for importance in total]


def units_to_keep(model: VisionTransformer, importance: list[Tensor], share: float) -> list[Tensor]:
    """Indices of the units that stay, per block, when `share` of them are removed.

    Every block loses the same share; the groups of a GroupKANLinear stay equally large.
    """
    kept = []
    for block, values in zip(model.blocks, importance, strict=True):
        groups = 1 if spline_per_unit(block.mlp.fc2) else block.mlp.fc2.groups
        by_group = values.view(groups, -1)
        count = max(1, round(by_group.shape[1] * (1 - share)))
        best = by_group.topk(count).indices.sort().values  # (groups, count)
        offset = torch.arange(groups, device=values.device)[:, None] * by_group.shape[1]
        kept.append((best + offset).flatten())
    return kept


def pruned_state(model: VisionTransformer, kept: list[Tensor]) -> dict[str, Tensor]:
    """The state dict with only the units `kept` in each block."""
    state = dict(model.state_dict())
    for n, (block, keep) in enumerate(zip(model.blocks, kept, strict=True)):
        grouped = isinstance(block.mlp.fc2, GroupKANLinear)
        mlp = f"blocks.{n}.mlp."
        second = f"{mlp}fc2."
        # The gate's half of a gated MLP's first map stands before the value's.
        packed = isinstance(block.mlp, SwiGlu) and not block.mlp.split
        both = torch.cat([keep, keep + block.mlp.fc2.in_features]) if packed else keep
        for first in (f"{mlp}{name}." for name in ("fc1", "fc1_g", "fc1_x", "norm")):
            for name in ("weight", "base_weight", "bias", "spline_weight", "spline_up"):
                # A group's spline belongs to inputs of fc1, which stay as they are.
                if first + name in state and not (grouped and name.startswith("spline")):
                    state[first + name] = state[first + name][both]
        for name in ("weight", "base_weight", "spline_weight", "spline_down"):
            if second + name in state and not (grouped and name.startswith("spline")):
                state[second + name] = state[second + name][:, keep]
        if spline_per_unit(block.mlp.fc2):
            for name in ("grid", "spline_weight") if grouped else ("grid",):
                if second + name in state:
                    state[second + name] = state[second + name][keep]
    return state


def spline_per_unit(layer: nn.Module) -> bool:
    """Whether no two inputs of a block's second layer share a spline."""
    return not isinstance(layer, GroupKANLinear) or layer.groups == layer.in_features


def prune(model: VisionTransformer, images: Tensor, share: float) -> VisionTransformer:
    """A smaller copy of `model` without the least important `share` of its hidden units.

    images: (B, 3, S, S), a few dozen typical ones. Raises ValueError for a share outside [0, 1).
    """
    if not 0 <= share < 1:
        raise ValueError(f"the share of units to remove must lie in [0, 1), got {share}")
    kept = units_to_keep(model, unit_importance(model, images), share)
    config = model.config | {"mlp_hidden": [len(keep) for keep in kept], "kan_hidden": "full"}
    small = create_model(**config).to(images.device).eval()
    small.load_state_dict(pruned_state(model, kept))
    add_means(model, small, kept, images)
    return small


@torch.no_grad()
def add_means(model, small, kept: list[Tensor], images: Tensor) -> None:
    """Adds to each second layer's bias of `small` what the removed units gave on average."""
    missing = [0.0] * len(kept)
    for chunk in images.split(CHUNK):
        seen: list[tuple[Tensor, Tensor]] = []
        with second_layers(model, seen):
            model(chunk)
        for n, (hidden, output) in enumerate(seen):
            rest = small.blocks[n].mlp.fc2(hidden[..., kept[n]])
            missing[n] = missing[n] + (output - rest).mean((0, 1)) * len(chunk) / len(images)
    for block, bias in zip(small.blocks, missing, strict=True):
        block.mlp.fc2.bias += bias
