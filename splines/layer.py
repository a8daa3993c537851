"""What the layers of kan.py share: a grid of knots per curve, a base function, how grids change."""

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from splines.activations import name_of
from splines.bases import OUTSIDE
from splines.exact import exact
from splines.grids import change_of_grid, everywhere, finer_knots, knots_at, uniform_knots
from splines.interface import Base
from splines.ops import layer

Range = tuple[float, float]


def require_whole(lowest: int, **values) -> None:
    """Raises ValueError for what is no whole number from `lowest` on."""
    for name, value in values.items():
        if value != int(value) or value < lowest:
            raise ValueError(f"{name} must be a whole number from {lowest} on, got {value}")


class SplineLayer(nn.Module):
    """What KANLinear and GroupKANLinear share: a grid of knots per curve, and a base function.

    grid: (curves, G + 2k + 1), float32 or float64 also where the weights are narrower.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        curves: int,
        grid_size: int,
        spline_order: int,
        base_activation: Callable[[], nn.Module],
        grid_range: Range,
        grid_eps: float,
        bias: bool,
        scale_noise: float,
        outside: str,
    ) -> None:
        super().__init__()
        require_whole(1, in_features=in_features, out_features=out_features, grid_size=grid_size)
        require_whole(0, spline_order=spline_order)
        if len(grid_range) != 2 or not grid_range[0] < grid_range[1]:
            raise ValueError(f"grid_range must be (low, high), low below high, got {grid_range}")
        if not math.isfinite(grid_range[1] - grid_range[0]):
            raise ValueError(f"grid_range must be finite, got {grid_range}")
        if outside not in OUTSIDE:
            raise ValueError(f"outside must be one of {', '.join(OUTSIDE)}, got {outside!r}")
        if scale_noise < 0:
            raise ValueError(f"scale_noise must not be negative, got {scale_noise}")
        if not 0 < grid_eps <= 1:
            raise ValueError(f"grid_eps must lie in (0, 1], got {grid_eps}")
        self.in_features, self.out_features, self.curves = in_features, out_features, curves
        self.grid_size, self.spline_order = grid_size, spline_order
        self.grid_range, self.grid_eps, self.outside = tuple(grid_range), grid_eps, outside
        self.scale_noise = scale_noise
        self.base_activation = base_activation()
        self.base_weight = nn.Parameter(torch.empty(out_features, in_features))
        self.register_parameter("bias", nn.Parameter(torch.zeros(out_features)) if bias else None)
        self.register_buffer("grid", self.build_grid())

    @property
    def settings(self) -> dict:
        """The keywords that make a layer like this one; its activation is shared, not copied."""
        shared = ("grid_size", "spline_order", "grid_range", "grid_eps", "scale_noise", "outside")
        return {name: getattr(self, name) for name in shared} | {
            "base_activation": lambda: self.base_activation,
            "bias": self.bias is not None,
        }

    def like(self, in_features: int | None = None, out_features: int | None = None, **changes):
        """Returns a new layer with the settings of this one, but for what is given."""
        sizes = in_features or self.in_features, out_features or self.out_features
        return type(self)(*sizes, **self.settings | changes).to(self.base_weight)

    def reset_parameters(self) -> None:
        """Knots and weights anew, for instance after construction on the meta device."""
        self.grid.copy_(self.build_grid().to(self.grid))
        self.initialize_weights()

    def initialize_weights(self) -> None:
        """Draws the weights."""
        raise NotImplementedError

    @property
    def bases_per_edge(self) -> int:
        return self.grid_size + self.spline_order

    def build_grid(self, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
        """Returns uniform knots on [low, high] (curves,), default `grid_range`, and k beyond."""
        if low is None:
            real = torch.promote_types(torch.get_default_dtype(), torch.float32)
            low, high = (torch.full((self.curves,), float(v), dtype=real) for v in self.grid_range)
        return uniform_knots(low, high, self.grid_size, self.spline_order)

    @property
    def low(self) -> Tensor:
        return self.grid[:, self.spline_order]

    @property
    def high(self) -> Tensor:
        return self.grid[:, self.grid_size + self.spline_order]

    def spline_parameters(self) -> Iterator[Tensor]:
        """The parameters whose last axis counts bases, and on which a change of grid acts."""
        raise NotImplementedError

    def per_curve(self, x: Tensor) -> Tensor:
        """(..., I) -> (N, curves): the inputs of each curve, one below the other."""
        raise NotImplementedError

    @property
    def splines_are_zero(self) -> bool:
        return not any(bool(p.any()) for p in self.spline_parameters())

    def checked(self, x: Tensor) -> Tensor:
        """The input as the layer can use it. Raises ValueError for another number of features."""
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise ValueError(
                f"the layer takes {self.in_features} features in the last dimension, got an input "
                f"of shape {tuple(x.shape)}"
            )
        return x if x.is_floating_point() else x.to(self.base_weight.dtype)

    def base(self, x: Tensor) -> Base:
        """The base term at x (N, I), with its values where only torch can compute them."""
        name = name_of(self.base_activation)
        active = self.base_activation(x) if name is None else None
        return Base(name or "", active, self.base_weight, self.bias)

    def compute_base_output(self, x: Tensor) -> Tensor:
        """The base term with bias, (..., I) -> (..., O)."""
        return F.linear(self.base_activation(self.checked(x)), self.base_weight, self.bias)

    def run(self, form: str, x: Tensor, base: Base | None = None) -> Tensor:
        """The layer in a form of `interface.Splines`, (..., I) -> (..., O), with its base."""
        x = self.checked(x)
        rows = x.reshape(-1, self.in_features)  # (..., I) -> (N, I)
        base = self.base(rows) if base is None else base
        shape = self.grid, self.spline_order, self.outside
        y = layer(form, rows, base, *self.coefficients(), *shape)
        return y.reshape(*x.shape[:-1], self.out_features)

    def coefficients(self) -> tuple[Tensor, Tensor | None]:
        """The two tensors that `run` wants: those of `interface.Splines`' forms."""
        raise NotImplementedError

    @torch.no_grad()
    def coverage(self, x: Tensor) -> float:
        """The share of the values of x (..., I) that lie within [low, high] of their feature."""
        x = self.per_curve(self.checked(x))
        return ((x >= self.low) & (x <= self.high)).sum().item() / max(1, x.numel())

    @torch.no_grad()
    def set_range(self, low: Tensor | float, high: Tensor | float) -> None:
        """Sets uniform knots on [low, high], numbers or one for each curve.

        The splines keep their values where the new grid can represent them.
        Raises ValueError where low is not below high.
        """
        low, high = (
            torch.as_tensor(v, dtype=self.grid.dtype, device=self.grid.device).expand(self.curves)
            for v in (low, high)
        )
        if not bool((low < high).all()) or not bool(torch.isfinite(high - low).all()):
            raise ValueError(
                "set_range: low must be below high, and both finite, for every feature"
            )
        self._regrid(self.build_grid(low, high))

    @torch.no_grad()
    def refine(self, grid_size: int) -> None:
        """Grid extension: the same function on [low, high] with `grid_size` cells.

        Exact where the new knots contain the old ones (grid_size a multiple of the old one), the
        best approximation elsewhere. New knots divide the old cells as evenly as the old ones did.
        In the middle of training an optimiser is made anew, and no loss of before may be kept:
        autograd holds the old shapes as long as one is.
        """
        require_whole(1, grid_size=grid_size)
        self._regrid(finer_knots(self.grid, self.spline_order, grid_size))

    @torch.no_grad()
    def update_grid(self, x: Tensor, margin: float = 0.01) -> None:
        """Moves the knots to where the inputs x (..., I) are and keeps the function.

        Knots follow the quantiles of x, mixed with `grid_eps` of uniform ones, on a range `margin`
        wider than that of x. In a distributed run the samples of all processes count.
        """
        x = everywhere(self.per_curve(self.checked(x)).to(self.grid.dtype))
        x = x[torch.isfinite(x).all(1)]
        if not len(x):
            return
        grid = knots_at(x, self.grid_size, self.spline_order, self.grid_eps, margin)
        self._regrid(grid, x)

    def _regrid(self, grid: Tensor, samples: Tensor | None = None) -> None:
        """Puts another grid in place and carries the splines over."""
        size = grid.shape[1] - 1 - 2 * self.spline_order
        if not self.splines_are_zero:
            change = change_of_grid(self.grid, grid, self.spline_order, self.outside, samples)
            for p in self.spline_parameters():
                moved = torch.einsum("cnk,...ck->...cn", change, exact(p))
                p.data = moved.to(p).contiguous()  # LBFGS takes views of gradients
        elif size != self.grid_size:
            for p in self.spline_parameters():
                # Of low rank only `spline_up` is zero: with both factors zero neither would ever
                # get a gradient, so the other one is drawn anew in the size that it had.
                deviation = p.square().mean().sqrt().item()
                p.data = p.new_empty(*p.shape[:-1], size + self.spline_order).normal_(0, deviation)
        self.grid_size = size
        if grid.shape == self.grid.shape:
            self.grid.copy_(grid)
        else:
            self.grid = grid

    def _apply(self, fn, recurse=True):
        grid = self.grid
        super()._apply(fn, recurse)
        if self.grid.dtype not in (torch.float32, torch.float64):  # .to(bfloat16) spares the knots
            self.grid = grid.to(self.grid.device, torch.promote_types(grid.dtype, torch.float32))
        return self

    def _load_from_state_dict(self, state_dict, prefix, *args):
        """Takes over the grid size of what is loaded."""
        grid = state_dict.get(f"{prefix}grid")
        if grid is not None and grid.ndim == 2 and grid.shape != self.grid.shape:
            size = grid.shape[1] - 1 - 2 * self.spline_order
            if size >= 1 and len(grid) == len(self.grid):
                self.grid = self.grid.new_empty(grid.shape)
                for p in self.spline_parameters():
                    p.data = p.new_empty(*p.shape[:-1], size + self.spline_order)
                self.grid_size = size
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"grid_size={self.grid_size}, spline_order={self.spline_order}, "
            f"outside={self.outside!r}, bias={self.bias is not None}"
        )
