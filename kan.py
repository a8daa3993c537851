"""Kolmogorov-Arnold layers: a B-spline on every edge, at the cost of their matrix product.

    layer = KANLinear(64, 32)                     # y_o = sum_i [w_oi silu(x_i) + spline_oi(x_i)]
    y = layer(x)                                  # (..., 64) -> (..., 32)
    model = KAN([2, 5, 1], grid_size=5)           # layers in sequence

From "KAN: Kolmogorov-Arnold Networks" (arXiv 2404.19756). That all splines of an input are weighted
sums of the same few bases, so that the layer is one matrix product, is efficient-kan's observation;
its checkpoints load. What is different here:

- Between forward and backward only the input is kept; bases are computed again, chunk by chunk.
- Bases come from the knots as they are stored, uniform or not, by the local Cox-de Boor recursion:
  order + 1 of them per input, and no closed form that would hold for uniform knots only. On a CPU
  with a C compiler splines/native.c does this, else the same lines in torch.
- Second and higher derivatives, forward-mode derivatives, vmap, torch.compile and torch.export take
  a plain path of differentiable torch operations.

Integers as input are converted to the layer's type; NaN gives NaN. Beyond [low, high] and at
infinity a spline does what `outside` says.

Letters in shape comments: N rows (all leading dimensions), I in_features, O out_features,
G grid_size, k spline_order, K = G + k bases of an edge.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from splines.bases import OUTSIDE, dense_bases, local_bases, padded_knots, penalty, pieces
from splines.grids import change_of_grid, everywhere
from splines.products import (
    CHUNK_BYTES,
    BaseProduct,
    Curves,
    SplineProduct,
    plain_curves,
    plain_spline,
    product_dtype,
    scaled,
    wants_plain_path,
)

INITIALISATIONS = ("power", "glorot", "noise")


# --- Layers --------------------------------------------------------------------------------------


class SplineLayer(nn.Module):
    """What KANLinear and GroupKANLinear share: a grid of knots per curve, and a base function.

    grid: (curves, G + 2k + 1), float32 or float64 also where the weights are narrower.
    """

    def __init__(
        self, in_features, out_features, curves, grid_size, spline_order, base_activation,
        grid_range, bias, scale_noise, outside,
    ) -> None:  # fmt: skip
        super().__init__()
        positive = {"in_features": in_features, "out_features": out_features}
        for name, value in (positive | {"grid_size": grid_size}).items():
            if value != int(value) or value < 1:
                raise ValueError(f"{name} must be a whole number from 1 on, got {value}")
        if spline_order != int(spline_order) or spline_order < 0:
            raise ValueError(f"spline_order must be a whole number from 0 on, got {spline_order}")
        if len(grid_range) != 2 or not grid_range[0] < grid_range[1]:
            raise ValueError(f"grid_range must be (low, high), low below high, got {grid_range}")
        if not math.isfinite(grid_range[1] - grid_range[0]):
            raise ValueError(f"grid_range must be finite, got {grid_range}")
        if outside not in OUTSIDE:
            raise ValueError(f"outside must be one of {', '.join(OUTSIDE)}, got {outside!r}")
        if scale_noise < 0:
            raise ValueError(f"scale_noise must not be negative, got {scale_noise}")
        self.in_features, self.out_features, self.curves = in_features, out_features, curves
        self.grid_size, self.spline_order = grid_size, spline_order
        self.grid_range, self.outside = tuple(grid_range), outside
        self.scale_noise = scale_noise
        self.base_activation = base_activation()
        self.base_weight = nn.Parameter(torch.empty(out_features, in_features))
        self.register_parameter("bias", nn.Parameter(torch.zeros(out_features)) if bias else None)
        self.register_buffer("grid", self.build_grid())

    @property
    def bases_per_edge(self) -> int:
        return self.grid_size + self.spline_order

    def build_grid(self, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
        """Returns uniform knots on [low, high] (curves,), default `grid_range`, and k beyond."""
        if low is None:
            real = torch.promote_types(torch.get_default_dtype(), torch.float32)
            low, high = (torch.full((self.curves,), float(v), dtype=real) for v in self.grid_range)
        k, g = self.spline_order, self.grid_size
        if low.is_meta:  # torch would import its compiler (2 s) to compute nothing
            return low.new_empty(self.curves, g + 2 * k + 1)
        steps = torch.arange(-k, g + k + 1, dtype=torch.float64) / g  # on the CPU: MPS has none
        first, last = low.cpu().unsqueeze(1), high.cpu().unsqueeze(1)
        # This form gives low and high exactly, where low + step * (high - low) / g may not.
        return (first * (1 - steps) + last * steps).to(low)

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

    def may_fuse(self, x: Tensor) -> bool:
        """Whether functions of our own may compute the base function, and again for backward."""
        return not wants_plain_path(x) and next(self.base_activation.parameters(), None) is None

    def linear(self, x: Tensor) -> Tensor:
        """The base term (N, I) -> (N, O)."""
        if self.may_fuse(x) and not isinstance(self.base_activation, nn.Identity):
            dtype = product_dtype(x, self.base_weight)
            return BaseProduct.apply(x, self.base_weight, self.bias, self.base_activation, dtype)
        return F.linear(self.base_activation(x), self.base_weight, self.bias)

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
        """
        if grid_size != int(grid_size) or grid_size < 1:
            raise ValueError(f"grid_size must be a whole number from 1 on, got {grid_size}")
        k, old = self.spline_order, self.grid.double()
        inner = old[:, k : k + self.grid_size + 1]
        position = torch.arange(grid_size + 1, device=old.device) * self.grid_size
        cell = (position // grid_size).clamp(max=self.grid_size - 1)
        part = (position - cell * grid_size) / grid_size
        inner = inner[:, cell] * (1 - part) + inner[:, cell + 1] * part
        self._regrid(padded_knots(inner, k).to(self.grid.dtype))

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
        ranked = x.double().sort(0).values
        low, high = ranked[0], ranked[-1]
        # A constant feature still needs knots that its type can tell apart.
        room = torch.maximum(torch.full_like(low, margin), 1e-3 * torch.maximum(-low, high).abs())
        room = torch.where((high - low) > 2e-3 * torch.maximum(-low, high).abs(), margin, room)
        low, high = low - room.clamp_min(1e-6), high + room.clamp_min(1e-6)
        share = torch.linspace(0, 1, self.grid_size + 1, device=x.device, dtype=torch.float64)
        place = share * (len(x) - 1)
        below = place.long()
        part = (place - below)[:, None]
        above = (below + 1).clamp(max=len(x) - 1)
        adaptive = ranked[below] * (1 - part) + ranked[above] * part  # (G + 1, curves)
        adaptive[0], adaptive[-1] = low, high
        uniform = low + share[:, None] * (high - low)
        inner = self.grid_eps * uniform + (1 - self.grid_eps) * adaptive
        step = (high - low) / self.grid_size
        count = torch.arange(1, self.spline_order + 1, device=x.device)[:, None]
        grid = torch.cat([low - count.flip(0) * step, inner, high + count * step])
        self._regrid(grid.t().to(self.grid.dtype).contiguous(), x)

    def _regrid(self, grid: Tensor, samples: Tensor | None = None) -> None:
        """Puts another grid in place and carries the splines over."""
        size = grid.shape[1] - 1 - 2 * self.spline_order
        if not self.splines_are_zero:
            change = change_of_grid(self.grid, grid, self.spline_order, self.outside, samples)
            for p in self.spline_parameters():
                moved = torch.einsum("cnk,...ck->...cn", change, p.double())
                p.data = moved.to(p.dtype).contiguous()  # LBFGS takes views of gradients
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


class KANLinear(SplineLayer):
    """y_o = b_o + sum_i [base_oi activation(x_i) + scaler_oi sum_j spline_oij B_j(x_i)].

    in_features, out_features: sizes of the last dimension, input and output.
    grid_size: cells of [low, high]; spline_order: degree of the splines, 0 to 5 and beyond.
    scale_base, scale_spline: factors on the initial size of the two terms.
    enable_standalone_scale_spline: one more learned factor per edge (`spline_scaler`).
    grid_eps: share of uniform knots that `update_grid` mixes in. grid_range: (low, high).
    scale_noise: size of the initial splines of the "noise" scheme; 0 makes splines zero in all.
    spline_rank: R makes the coefficients `spline_up` (O, R) times `spline_down` (R, I, K).
    outside: "zero", "held" or "linear", what a spline does beyond [low, high].
    init: the scheme of `initialize_weights`.

    Raises ValueError for sizes below 1, an order below 0 and an empty range.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        grid_size: int = 5,
        spline_order: int = 3,
        scale_base: float = 1.0,
        scale_spline: float = 1.0,
        enable_standalone_scale_spline: bool = True,
        base_activation: Callable[[], nn.Module] = nn.SiLU,
        grid_eps: float = 0.02,
        grid_range: tuple[float, float] = (-1, 1),
        *,
        scale_noise: float = 0.1,
        bias: bool = False,
        spline_rank: int | None = None,
        outside: str = "zero",
        init: str = INITIALISATIONS[0],
    ) -> None:
        super().__init__(
            in_features, out_features, in_features, grid_size, spline_order, base_activation,
            grid_range, bias, scale_noise, outside,
        )  # fmt: skip
        if not 0 < grid_eps <= 1:
            raise ValueError(f"grid_eps must lie in (0, 1], got {grid_eps}")
        if init not in INITIALISATIONS:
            raise ValueError(f"init must be one of {', '.join(INITIALISATIONS)}, got {init!r}")
        if spline_rank is not None and (spline_rank != int(spline_rank) or spline_rank < 1):
            raise ValueError(f"spline_rank must be None or from 1 on, got {spline_rank}")
        self.scale_base, self.scale_spline = scale_base, scale_spline
        self.grid_eps, self.init, self.spline_rank = grid_eps, init, spline_rank
        coefficients = (in_features, self.bases_per_edge)
        if spline_rank is None:
            self.spline_weight = nn.Parameter(torch.empty(out_features, *coefficients))
        else:  # a factor per edge would undo the rank
            self.spline_up = nn.Parameter(torch.empty(out_features, spline_rank))
            self.spline_down = nn.Parameter(torch.empty(spline_rank, *coefficients))
        scaler = None
        if enable_standalone_scale_spline and spline_rank is None:
            scaler = nn.Parameter(torch.empty(out_features, in_features))
        self.register_parameter("spline_scaler", scaler)
        self.initialize_weights()

    @property
    def enable_standalone_scale_spline(self) -> bool:
        return self.spline_scaler is not None

    def spline_parameters(self) -> Iterator[Tensor]:
        yield self.spline_weight if self.spline_rank is None else self.spline_down

    @property
    def splines_are_zero(self) -> bool:
        matters = self.spline_weight if self.spline_rank is None else self.spline_up
        return not bool(matters.any())

    def per_curve(self, x: Tensor) -> Tensor:
        return x.reshape(-1, self.in_features)

    def reset_parameters(self) -> None:
        """Knots and weights anew, for instance after construction on the meta device."""
        self.grid.copy_(self.build_grid().to(self.grid))
        self.initialize_weights()

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Draws the weights by the scheme `init`.

        noise: the KAN paper's, base weights as those of nn.Linear and splines through noise of
            size scale_noise / G at the knots.
        glorot: all K + 1 terms of an edge carry the same share of a variance that is kept forward
            and backward (arXiv 2509.03417, eq. 9).
        power: coefficients (I (K + 1))^-1.75, the power law of the same paper; base weights that
            keep the variance. The paper's (I (K + 1))^-0.25 does so for widths near 64 only.
        """
        if self.base_weight.is_meta:
            return
        if self.bias is not None:
            self.bias.zero_()
        base, spline = self._standard_deviations()
        self.base_weight.normal_(0, self.scale_base * base)
        scale = self.scale_spline if self.scale_noise else 0.0
        if self.spline_scaler is not None:
            self.spline_scaler.fill_(self.scale_spline)
            scale = 1.0 if self.scale_noise else 0.0
        if self.spline_rank is not None:
            # The rank-wide result has unit size; `spline_up` alone sets the splines'.
            self.spline_down.normal_(0, self.in_features**-0.5)
            self.spline_up.normal_(0, scale * spline * (self.in_features / self.spline_rank) ** 0.5)
        elif self.init == "noise":
            self.spline_weight.copy_(scale * self._noise())
        else:
            self.spline_weight.normal_(0, scale * spline)

    def _standard_deviations(self) -> tuple[float, float]:
        """Of base weights and coefficients, for inputs of a standard normal distribution."""
        terms = self.bases_per_edge + 1
        if self.init == "noise":
            return (3 * self.in_features) ** -0.5, 0.3 * self.scale_noise / self.grid_size
        grid = self.grid[:1].cpu().double()
        z = torch.linspace(0, 1, 1002, dtype=torch.float64, device="cpu")[1:-1, None]
        z = math.sqrt(2) * torch.erfinv(2 * z - 1)  # quantiles of the normal distribution
        bases, slopes, _ = local_bases(z, grid, self.spline_order, self.outside)
        with torch.enable_grad():
            z.requires_grad_()
            active = self.base_activation(z)
            (rise,) = torch.autograd.grad(active.sum(), z)

        def deviation(value: Tensor, slope: Tensor, number: int) -> float:
            forward = self.in_features * value.square().sum().item() / number / len(z)
            backward = self.out_features * slope.square().sum().item() / number / len(z)
            return (2 / terms / (forward + backward)) ** 0.5

        if self.init == "power":
            keeping = (self.in_features * active.square().mean().item()) ** -0.5
            return keeping, (self.in_features * terms) ** -1.75
        return deviation(active, rise, 1), deviation(bases, slopes, self.bases_per_edge)

    def _noise(self) -> Tensor:
        """Coefficients of splines through noise at the G + 1 inner knots, (O, I, K)."""
        grid = self.grid[:1].double()
        k, g = self.spline_order, self.grid_size
        bases = dense_bases(grid[:, k : k + g + 1].t(), grid, k, self.outside)[:, 0]  # (G + 1, K)
        solution = torch.linalg.pinv(bases).to(self.spline_weight.dtype)  # one for all edges
        noise = self.spline_weight.new_empty(*self.spline_weight.shape[:2], g + 1)
        return noise.uniform_(-0.5, 0.5) * (self.scale_noise / g) @ solution.t()

    def b_splines(self, x: Tensor) -> Tensor:
        """Returns all bases at x, (..., I) -> (..., I, K), in float32 or float64."""
        x = self.checked(x)
        real = torch.promote_types(torch.promote_types(x.dtype, self.grid.dtype), torch.float32)
        return dense_bases(x.to(real), self.grid.to(real), self.spline_order, self.outside)

    calculate_b_spline_bases = b_splines

    @torch.no_grad()
    def curve2coeff(self, x: Tensor, y: Tensor) -> Tensor:
        """Least-squares coefficients (O, I, K) of curves through y (N, I, O) at x (N, I).

        Of all solutions the smallest, where samples repeat or are too few.
        """
        bases = self.b_splines(x).double()
        gram = torch.einsum("nij,nik->ijk", bases, bases)
        right = torch.einsum("nij,nio->ijo", bases, y.double())
        solution = torch.linalg.pinv(gram, rtol=1e-12, hermitian=True) @ right  # (I, K, O)
        return solution.permute(2, 0, 1).to(y.dtype).contiguous()

    @property
    def scaled_spline_weight(self) -> Tensor:
        """The coefficients of all edges, (O, I, K), whatever they are made of."""
        if self.spline_rank is not None:
            return torch.einsum("or,rij->oij", self.spline_up, self.spline_down)
        return scaled(self.spline_weight, self.spline_scaler)

    def compute_base_output(self, x: Tensor) -> Tensor:
        """The base term with bias, (..., I) -> (..., O)."""
        x = self.checked(x)
        return self.linear(x.reshape(-1, self.in_features)).reshape(
            *x.shape[:-1], self.out_features
        )

    def compute_spline_output(self, x: Tensor) -> Tensor:
        """The spline term, (..., I) -> (..., O)."""
        x = self.checked(x)
        rows = x.reshape(-1, self.in_features)
        dtype = product_dtype(x, self.base_weight)
        out = rows.new_zeros(rows.shape[0], self.out_features, dtype=dtype)
        return self._add_splines(out, rows).reshape(*x.shape[:-1], self.out_features)

    def forward(self, x: Tensor) -> Tensor:
        x = self.checked(x)
        rows = x.reshape(-1, self.in_features)  # (..., I) -> (N, I)
        return self._add_splines(self.linear(rows), rows).reshape(*x.shape[:-1], self.out_features)

    def _add_splines(self, out: Tensor, x: Tensor) -> Tensor:
        """out + the spline term; out (N, O) may be overwritten."""
        if self.spline_rank is None:
            return self._add_product(out, x, self.spline_weight, self.spline_scaler)
        inner = out.new_zeros(x.shape[0], self.spline_rank)
        inner = self._add_product(inner, x, self.spline_down, None)  # (N, R)
        return torch.addmm(out, inner, self.spline_up.t().to(inner.dtype))

    def _add_product(self, out, x, weight, scaler) -> Tensor:
        shape = self.grid, self.spline_order, self.outside
        if wants_plain_path(x):
            return out + plain_spline(x, weight, scaler, *shape, out.dtype)
        return SplineProduct.apply(out, x, weight, scaler, *shape)

    def regularization_loss(
        self, regularize_activation: float = 1.0, regularize_entropy: float = 1.0
    ) -> Tensor:
        """L1 and entropy of the edges (arXiv 2404.19756, eqs. 2.17 to 2.20) from weights alone.

        The paper takes the mean |spline| over samples; the mean |coefficient| bounds it from above.
        """
        return penalty(self.scaled_spline_weight, regularize_activation, regularize_entropy)

    def edge_activations(self, x: Tensor) -> Tensor:
        """Each edge's own output, (..., I) -> (..., O, I); summed over I, the layer's without bias.

        Needs no more memory than its result: features are worked on in groups.
        """
        x = self.checked(x)
        rows = x.reshape(-1, self.in_features)
        result = []
        for features in pieces(self.in_features, max(1, CHUNK_BYTES // (4 * len(rows) + 1) // 8)):
            grid = self.grid[features]
            bases = dense_bases(
                rows[:, features].to(grid.dtype), grid, self.spline_order, self.outside
            )
            weight = self.scaled_spline_weight[:, features]
            result.append(torch.einsum("nij,oij->noi", bases.to(weight.dtype), weight))
        base = self.base_activation(rows).unsqueeze(1) * self.base_weight
        return (base + torch.cat(result, -1)).reshape(*x.shape[:-1], *self.base_weight.shape)

    @torch.no_grad()
    def compress(self, rank: int) -> tuple["KANLinear", float]:
        """Returns the layer with coefficients of rank `rank`, and the relative error of these.

        The error is that of the best approximation (Eckart and Young), in the Frobenius norm.
        """
        low_rank = KANLinear(
            self.in_features, self.out_features, self.grid_size, self.spline_order,
            self.scale_base, self.scale_spline, False, lambda: self.base_activation, self.grid_eps,
            self.grid_range, bias=self.bias is not None, spline_rank=rank, outside=self.outside,
        ).to(self.base_weight)  # fmt: skip
        weight = self.scaled_spline_weight.double().flatten(1)  # (O, I * K)
        # Eigenvectors of the small Gram matrix are the left singular vectors, at a small price.
        _, vectors = torch.linalg.eigh(weight @ weight.t())
        up = vectors.flip(1)[:, :rank]
        down = up.t() @ weight
        low_rank.grid = self.grid.clone()
        low_rank.base_weight.copy_(self.base_weight)
        if self.bias is not None:
            low_rank.bias.copy_(self.bias)
        low_rank.spline_up.zero_()[:, : up.shape[1]] = up
        low_rank.spline_down.zero_()[: len(down)] = down.unflatten(1, (self.in_features, -1))
        error = (weight - up @ down).norm() / weight.norm().clamp_min(1e-300)
        return low_rank, error.item()


class GroupKANLinear(SplineLayer):
    """y = base_weight (activation(x) + spline_group(x)) + bias: one spline per group of features.

    Features are divided into `groups` runs of equal length; `spline_weight` (groups, K) and `grid`
    (groups, G + 2k + 1) belong to the groups. The idea of the Kolmogorov-Arnold Transformer (arXiv
    2409.10594) with B-splines in place of rational functions, at about the cost of nn.Linear.
    Raises ValueError where `groups` does not divide in_features.
    """

    grid_eps = 0.02

    def __init__(
        self,
        in_features: int,
        out_features: int,
        groups: int = 8,
        grid_size: int = 5,
        spline_order: int = 3,
        base_activation: Callable[[], nn.Module] = nn.SiLU,
        grid_range: tuple[float, float] = (-1, 1),
        *,
        bias: bool = True,
        scale_noise: float = 0.1,
        outside: str = "linear",
    ) -> None:
        if groups < 1 or in_features % groups:
            raise ValueError(f"groups must divide in_features {in_features}, got {groups}")
        super().__init__(
            in_features, out_features, groups, grid_size, spline_order, base_activation, grid_range,
            bias, scale_noise, outside,
        )  # fmt: skip
        self.groups = groups
        self.spline_weight = nn.Parameter(torch.empty(groups, self.bases_per_edge))
        self.initialize_weights()

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Base weights and bias as nn.Linear's, coefficients of deviation `scale_noise`."""
        if self.base_weight.is_meta:
            return
        bound = self.in_features**-0.5
        self.base_weight.uniform_(-bound, bound)
        if self.bias is not None:
            self.bias.uniform_(-bound, bound)
        self.spline_weight.normal_(0, self.scale_noise)

    def reset_parameters(self) -> None:
        """Knots and weights anew, for instance after construction on the meta device."""
        self.grid.copy_(self.build_grid().to(self.grid))
        self.initialize_weights()

    def spline_parameters(self) -> Iterator[Tensor]:
        yield self.spline_weight

    def per_curve(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.groups, -1)).transpose(-1, -2).reshape(-1, self.groups)

    def forward(self, x: Tensor) -> Tensor:
        x = self.checked(x)
        rows = x.reshape(-1, self.in_features)  # (..., I) -> (N, I)
        curves = Curves.apply if self.may_fuse(x) else plain_curves
        dtype = product_dtype(x, self.base_weight)
        shape = self.grid, self.spline_order, self.outside
        rows = curves(rows, self.spline_weight, *shape, self.base_activation, dtype)
        return F.linear(rows, self.base_weight, self.bias).reshape(*x.shape[:-1], self.out_features)

    def regularization_loss(
        self, regularize_activation: float = 1.0, regularize_entropy: float = 1.0
    ) -> Tensor:
        """As `KANLinear.regularization_loss`, with groups in the place of edges."""
        return penalty(self.spline_weight, regularize_activation, regularize_entropy)


class KAN(nn.Module):
    """KANLinear layers in sequence: KAN([2, 5, 1]) has two. `options` go to every layer."""

    def __init__(self, layers_hidden: list[int], **options) -> None:
        super().__init__()
        if len(layers_hidden) < 2:
            raise ValueError(f"layers_hidden must name two sizes or more, got {layers_hidden}")
        self.layers = self.build_layers(layers_hidden, **options)

    @staticmethod
    def build_layers(layers_hidden: list[int], **options) -> nn.ModuleList:
        return nn.ModuleList(
            KANLinear(before, after, **options) for before, after in pairwise(layers_hidden)
        )

    def forward(self, x: Tensor, update_grid: bool = False) -> Tensor:
        """(..., first size) -> (..., last size); `update_grid` moves the knots first."""
        for layer in self.layers:
            if update_grid:
                layer.update_grid(x.detach())
            x = layer(x)
        return x

    def refine(self, grid_size: int) -> None:
        """Grid extension of every layer."""
        for layer in self.layers:
            layer.refine(grid_size)

    def regularization_loss(
        self, regularize_activation: float = 1.0, regularize_entropy: float = 1.0
    ) -> Tensor:
        return sum(
            layer.regularization_loss(regularize_activation, regularize_entropy)
            for layer in self.layers
        )


@torch.no_grad()
def calibrate(
    model: nn.Module,
    batches: Iterable,
    outside_share: float = 0.01,
    layers: dict[str, SplineLayer] | None = None,
) -> dict[str, tuple[float, float]]:
    """Sets the ranges of KAN layers in `model` so that at most `outside_share` lies outside.

    batches: inputs of `model`, a few. layers: by name; by default all that `model` has. Returns the
    lowest low and highest high of each layer by its name. While all splines are zero no range
    changes what the model computes, and one pass measures all layers; else each layer is measured
    after those before it were set.
    """
    batches = list(batches)
    if layers is None:
        layers = {n: m for n, m in model.named_modules() if isinstance(m, SplineLayer)}
    if all(layer.splines_are_zero for layer in layers.values()):
        rounds = [layers]
    else:
        rounds = [{name: layer} for name, layer in layers.items()]
    for some in rounds:
        for name, (low, high) in measure_ranges(model, some, batches, outside_share).items():
            layers[name].set_range(low, high)
    return {n: (m.low.min().item(), m.high.max().item()) for n, m in layers.items()}


def measure_ranges(
    model: nn.Module, layers: dict[str, SplineLayer], batches: list, outside_share: float
) -> dict[str, tuple[Tensor, Tensor]]:
    """Returns (low, high), each (curves,), that in no batch leave more than the share outside."""
    ranges: dict[str, tuple[Tensor, Tensor]] = {}

    def measure(name: str, layer: SplineLayer, x: Tensor) -> None:
        ranked = layer.per_curve(x).to(layer.grid.dtype).t().sort(-1).values  # (curves, N)
        skip = int(outside_share / 2 * ranked.shape[1])
        low, high = ranked[:, skip], ranked[:, -1 - skip]
        # A feature that hardly varies still needs knots that its type can tell apart.
        room = 1e-3 * torch.maximum(low.abs(), high.abs()).clamp_min(1e-3) - (high - low)
        low, high = low - room.clamp_min(0) / 2, high + room.clamp_min(0) / 2
        if name in ranges:
            low = torch.minimum(low, ranges[name][0])
            high = torch.maximum(high, ranges[name][1])
        ranges[name] = low, high

    hooks = [
        layer.register_forward_pre_hook(lambda m, args, n=name: measure(n, m, args[0]))
        for name, layer in layers.items()
    ]
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            model(batch)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return ranges
