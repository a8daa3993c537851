"""What a layer asks of its splines, whoever computes them: torch, C or Triton."""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from splines.activations import ACTIVATIONS
from splines.grids import is_even


class Base(NamedTuple):
    """The base term of a layer, activation(x) weight^T + bias.

    activation: a name in `ACTIVATIONS`; active: activation(x) of any other, as torch computed it.
    """

    activation: str
    active: Tensor | None
    weight: Tensor | None  # (O, I); None: the layer has no base term
    bias: Tensor | None  # (O,)

    def of(self, rows: slice) -> "Base":
        """That of some rows of x."""
        return self if self.active is None else self._replace(active=self.active[rows])

    def inputs(self, x: Tensor) -> Tensor:
        """activation(x), (N, I)."""
        return ACTIVATIONS[self.activation](x) if self.active is None else self.active

    def inputs_backward(self, x: Tensor, grad: Tensor) -> Tensor:
        """The gradient of x from that of activation(x), which is no longer needed."""
        return ACTIVATIONS[self.activation](x, grad.to(x.dtype))


class Wanted(NamedTuple):
    """Of which inputs of a layer gradients are wanted."""

    x: bool
    active: bool
    base_weight: bool
    bias: bool
    spline: bool
    second: bool


class Gradients(NamedTuple):
    """Those gradients, each in its input's type; what is not wanted may be None."""

    x: Tensor | None = None
    active: Tensor | None = None
    base_weight: Tensor | None = None
    bias: Tensor | None = None
    spline: Tensor | None = None
    second: Tensor | None = None


class Splines:
    """The splines of some features on one grid, and the layers made of them; no part of any graph.

    x: inputs (N, I), as a sample of what will come; grid: (curves, G + 2k + 1). dtype: the type in
    which matrices are multiplied and results returned. Bases are computed in `real`: float32, or
    float64 where the input or the grid is.

    The three forms of a layer, for x (N, I), each with its backward, which takes the gradient of
    the result (N, O):
        dense: base term + sum over i and j of B_j(x_i) scaler_oi weight_oij; weight (O, I, K),
            scaler (O, I) or None.
        low_rank: base term + up z, z_r = sum over i and j of B_j(x_i) down_rij; down (R, I, K), up
            (O, R). Also returns z (N, R), which its backward wants back.
        group: base_weight (activation(x) + one spline for each group of features) + bias; coef
            (groups, K).
    """

    def __init__(
        self, x: Tensor, grid: Tensor, order: int, outside: str, dtype: torch.dtype
    ) -> None:
        self.order, self.outside, self.dtype = order, outside, dtype
        self.real = real_type(x, grid)
        self.grid = grid.to(self.real)
        self.count = grid.shape[1] - 1 - order

    @functools.cached_property
    def even(self) -> bool:
        """Whether the closed form of bases on even knots serves.

        It begins at order 2: below, the side of a knot would depend on rounding.
        """
        return self.order >= 2 and is_even(self.grid)

    def dense(self, x: Tensor, base: Base, weight: Tensor, scaler: Tensor | None) -> Tensor:
        raise NotImplementedError

    def dense_backward(
        self, grad: Tensor, x: Tensor, base: Base, weight: Tensor, scaler: Tensor | None,
        wanted: Wanted,
    ) -> Gradients:  # fmt: skip
        raise NotImplementedError

    def low_rank(self, x: Tensor, base: Base, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def low_rank_backward(
        self, grad: Tensor, x: Tensor, base: Base, down: Tensor, up: Tensor, z: Tensor,
        wanted: Wanted,
    ) -> Gradients:  # fmt: skip
        raise NotImplementedError

    def group(self, x: Tensor, base: Base, coef: Tensor) -> Tensor:
        raise NotImplementedError

    def group_backward(
        self, grad: Tensor, x: Tensor, base: Base, coef: Tensor, wanted: Wanted
    ) -> Gradients:
        raise NotImplementedError


def real_type(x: Tensor, grid: Tensor) -> torch.dtype:
    """The type in which the bases at x are computed."""
    return torch.float64 if torch.float64 in (x.dtype, grid.dtype) else torch.float32
