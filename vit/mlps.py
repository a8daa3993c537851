"""A block's MLP, and the KAN in its place: which blocks have one, how wide it is."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from kan import GroupKANLinear, KANLinear


class Mlp(nn.Module):
    """The transformer's two linear maps with a GELU between, (B, N, C) -> (B, N, C)."""

    def __init__(self, dim: int, hidden: int, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.act(self.fc1(x))))


class KanMlp(nn.Module):
    """Two KAN layers that compute exactly what `Mlp` does while their splines are zero.

    fc1 has the identity as base function and fc2 the GELU, so `fc1.base_weight`, `fc1.bias` and so
    on are the MLP's weights and each edge adds a spline of its own. The splines start at zero: a
    block built from pretrained weights changes nothing, a new one starts as an MLP.

    at: "hidden" for splines before fc2 alone, where fc1 stays a linear map.
    """

    def __init__(self, dim: int, hidden: int, drop: float = 0.0, *, at: str = "mlp", **kan) -> None:
        super().__init__()
        linear = at == "hidden"
        self.fc1 = nn.Linear(dim, hidden) if linear else kan_layer(dim, hidden, nn.Identity, **kan)
        self.fc2 = kan_layer(hidden, dim, nn.GELU, **kan)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.fc1(x)))


def kan_layer(
    in_features, out_features, base, *, kind, rank, groups, grid, order, grid_range, bias=True
):
    """Returns a KANLinear (kind "kan") or GroupKANLinear ("gkan") whose splines are zero.

    groups: how many splines a GroupKANLinear has, or "feature": one for each of its inputs.
    """
    # Beyond the range splines go on straight instead of vanishing: activations move in training.
    shared = {
        "grid_size": grid,
        "spline_order": order,
        "grid_range": grid_range,
        "base_activation": base,
        "bias": bias,
        "scale_noise": 0.0,
        "outside": "linear",
    }
    if kind == "gkan":
        groups = in_features if groups == "feature" else groups
        return GroupKANLinear(in_features, out_features, groups=groups, **shared)
    # One scale per edge next to its coefficients would be a second handle on the same numbers.
    return KANLinear(
        in_features,
        out_features,
        spline_rank=rank,
        enable_standalone_scale_spline=False,
        **shared,
    )


def matching_hidden(dim: int, hidden: int, **kan) -> int:
    """Returns the KAN width with (nearly) the parameters of an MLP of width `hidden`."""

    def parameters(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    with torch.device("meta"):  # counting needs no memory
        target = parameters(Mlp(dim, hidden))
        in_groups = kan["kind"] == "gkan" and kan["groups"] != "feature"
        unit = kan["groups"] if in_groups else 1
        small, large = (parameters(KanMlp(dim, n * unit, **kan)) for n in (1, 2))
    per_unit = large - small  # the count is linear in the width
    return unit * max(1, round((target - small) / per_unit) + 1)


def parse_blocks(spec: str | Iterable[int], depth: int) -> tuple[int, ...]:
    """Returns the block numbers that `spec` names ("all", "last:N", "0,3,5" or numbers), sorted.

    Raises ValueError for a number outside [0, depth) and for anything else.
    """
    if isinstance(spec, str):
        text = spec.strip()
        try:
            if text == "all":
                return tuple(range(depth))
            if text.startswith("last:"):
                last = int(text.removeprefix("last:"))
                if not 1 <= last <= depth:
                    raise ValueError
                return tuple(range(depth - last, depth))
            numbers = [int(part) for part in text.split(",")]
        except ValueError:
            raise ValueError(
                f"kan_blocks {spec!r} is not all, last:N (N from 1 to {depth}) or a list of block "
                f"numbers such as 0,3,5"
            ) from None
    elif isinstance(spec, Iterable) and all(type(n) is int for n in spec):
        numbers = list(spec)
    else:
        raise ValueError(f"kan_blocks {spec!r:.80} is not all, last:N or a list of block numbers")
    outside = [n for n in numbers if not 0 <= n < depth]
    if outside or not numbers:
        raise ValueError(
            f"kan_blocks {spec!r}: the model has blocks 0 to {depth - 1}, "
            f"and no {', '.join(map(str, outside)) or 'empty list'}"
        )
    return tuple(sorted(set(numbers)))
