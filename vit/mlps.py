"""A block's MLP, and the KAN in its place: its forms, which blocks have a KAN, how wide it is."""

from collections.abc import Callable, Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kan import GroupKANLinear, KANLinear


class QuickGELU(nn.Module):
    """The GELU's first approximation, x sigmoid(1.702 x), which OpenAI's CLIP was trained with."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "quick_gelu": QuickGELU,
    "silu": nn.SiLU,
    "relu": nn.ReLU,
}
# Whether an MLP is gated, and where its gate's weights are: in fc1's first half or apart.
SWIGLU = ("none", "packed", "unpacked")
# The maps of all forms of MLP, by name.
MAPS = ("fc1", "fc1_g", "fc1_x", "fc2")


class Mlp(nn.Module):
    """The transformer's two linear maps with an activation between, (B, N, C) -> (B, N, C).

    norm: makes a norm of what fc2 reads, None for none.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        drop: float = 0.0,
        *,
        act: str = "gelu",
        norm: partial | None = None,
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = ACTIVATIONS[act]()
        self.norm = norm(hidden) if norm else nn.Identity()
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.norm(self.act(self.fc1(x)))))


class KanMlp(nn.Module):
    """Two KAN layers that compute exactly what `Mlp` does while their splines are zero.

    fc1 has the identity as base function and fc2 the activation, so `fc1.base_weight`, `fc1.bias`
    and so on are the MLP's weights and each edge adds a spline of its own. The splines start at
    zero: a block built from pretrained weights changes nothing, a new one starts as an MLP.

    at: "hidden" for splines before fc2 alone, where fc1 stays a linear map. With a norm before fc2
        the activation stands before it, and fc2's base function is the identity.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        drop: float = 0.0,
        *,
        at: str = "mlp",
        act: str = "gelu",
        norm: partial | None = None,
        **kan,
    ) -> None:
        super().__init__()
        linear = at == "hidden"
        self.fc1 = nn.Linear(dim, hidden) if linear else kan_layer(dim, hidden, nn.Identity, **kan)
        self.act = ACTIVATIONS[act]() if norm else nn.Identity()
        self.norm = norm(hidden) if norm else nn.Identity()
        self.fc2 = kan_layer(hidden, dim, nn.Identity if norm else ACTIVATIONS[act], **kan)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.norm(self.act(self.fc1(x)))))


class SwiGlu(nn.Module):
    """A gated MLP, fc2(norm(silu(gate) * value)) (arXiv 2002.05202), (B, N, C) -> (B, N, C).

    hidden: the width of gate and value. split: their maps are fc1_g and fc1_x instead of the halves
    of fc1. first, second: make the maps before and behind the product. norm: as in `Mlp`.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        drop: float = 0.0,
        *,
        split: bool = False,
        norm: partial | None = None,
        first: Callable = nn.Linear,
        second: Callable = nn.Linear,
    ) -> None:
        super().__init__()
        self.split = split
        if split:
            self.fc1_g, self.fc1_x = first(dim, hidden), first(dim, hidden)
        else:
            self.fc1 = first(dim, 2 * hidden)
        self.norm = norm(hidden) if norm else nn.Identity()
        self.fc2 = second(hidden, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = (self.fc1_g(x), self.fc1_x(x)) if self.split else self.fc1(x).chunk(2, -1)
        return self.drop(self.fc2(self.norm(F.silu(gate) * value)))


def first_maps(mlp: nn.Module) -> list[nn.Module]:
    """Returns the maps that read what goes into an MLP: one, or two of a gated one."""
    return [layer for name, layer in mlp.named_children() if name in MAPS and name != "fc2"]


def make_mlp(
    dim: int,
    hidden: int,
    drop: float = 0.0,
    *,
    swiglu: str = "none",
    act: str = "gelu",
    norm: partial | None = None,
    at: str = "mlp",
    kan: dict | None = None,
) -> nn.Module:
    """Returns the MLP of a block, or with `kan` (what `kan_layer` needs) the KAN in its place.

    In a gated MLP the inputs of each map have splines beside what the map does of them.
    """
    if swiglu == "none":
        kind = Mlp if kan is None else partial(KanMlp, at=at, **kan)
        return kind(dim, hidden, drop, act=act, norm=norm)
    spline = nn.Linear if kan is None else partial(kan_layer, base=nn.Identity, **kan)
    first = nn.Linear if at == "hidden" else spline
    split = swiglu == "unpacked"
    return SwiGlu(dim, hidden, drop, split=split, norm=norm, first=first, second=spline)


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


def matching_hidden(dim: int, hidden: int, *, swiglu: str = "none", at: str = "mlp", **kan) -> int:
    """Returns the KAN width with (nearly) the parameters of an MLP of width `hidden`."""

    def parameters(width: int, kan: dict | None = None) -> int:
        module = make_mlp(dim, width, swiglu=swiglu, at=at, kan=kan)
        return sum(p.numel() for p in module.parameters())

    with torch.device("meta"):  # counting needs no memory
        target = parameters(hidden)
        in_groups = kan["kind"] == "gkan" and kan["groups"] != "feature"
        unit = kan["groups"] if in_groups else 1
        small, large = (parameters(n * unit, kan) for n in (1, 2))
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
