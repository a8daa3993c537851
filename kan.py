"""Kolmogorov-Arnold layers: a B-spline on every edge, at the cost of their matrix product.

    layer = KANLinear(64, 32)                     # y_o = sum_i [w_oi silu(x_i) + spline_oi(x_i)]
    y = layer(x)                                  # (..., 64) -> (..., 32)
    model = KAN([2, 5, 1], grid_size=5)           # layers in sequence

From "KAN: Kolmogorov-Arnold Networks" (arXiv 2404.19756). That all splines of an input are weighted
sums of the same few bases, so that the layer is one matrix product, is efficient-kan's observation;
its checkpoints load. What is different here:

- Between forward and backward only the input is kept; bases are computed again, chunk by chunk.
- Bases come from the knots as they are stored, uniform or not, by the local Cox-de Boor recursion:
  a closed form is taken only where they are found to be even. On a CPU with a C compiler
  splines/native.c does this, on a GPU the kernels of splines/triton_kernels.py, else torch.
- A layer is one operator of torch, which torch.compile takes as it is. Second derivatives,
  forward-mode derivatives, vmap and torch.export get plain, differentiable torch operations.

Integers as input are converted to the layer's type; NaN gives NaN. Beyond [low, high] and at
infinity a spline does what `outside` says.

Letters in shape comments: N rows (all leading dimensions), I in_features, O out_features,
G grid_size, k spline_order, K = G + k bases of an edge.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn

from splines.bases import dense_bases, penalty, pieces, scaled
from splines.exact import exact
from splines.grids import range_of
from splines.interface import Base
from splines.layer import Range, SplineLayer, require_whole
from splines.pykan import Edges, Source, base_function, read_layers
from splines.starts import INITIALISATIONS, Spread, noisy, spreads


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
        grid_range: Range = (-1, 1),
        *,
        scale_noise: float = 0.1,
        bias: bool = False,
        spline_rank: int | None = None,
        outside: str = "zero",
        init: str = INITIALISATIONS[0],
    ) -> None:
        super().__init__(
            in_features, out_features, curves=in_features, grid_size=grid_size,
            spline_order=spline_order, base_activation=base_activation, grid_range=grid_range,
            grid_eps=grid_eps, bias=bias, scale_noise=scale_noise, outside=outside,
        )  # fmt: skip
        if init not in INITIALISATIONS:
            raise ValueError(f"init must be one of {', '.join(INITIALISATIONS)}, got {init!r}")
        if spline_rank is not None:
            require_whole(1, spline_rank=spline_rank)
        self.scale_base, self.scale_spline = scale_base, scale_spline
        self.init, self.spline_rank = init, spline_rank
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

    @classmethod
    def of_edges(cls, edges: Edges, function: nn.Module | None) -> "KANLinear":
        """Returns the layer with the numbers of `edges` and a base function, None for zero."""
        outputs, inputs, count = edges.coef.shape
        sizes = inputs, outputs, count - edges.order, edges.order
        layer = cls(*sizes, bias=True, base_activation=lambda: function or nn.SiLU())
        layer = layer.to(edges.coef)
        layer.grid = edges.grid.to(layer.grid)
        layer.spline_weight.copy_(edges.coef)
        layer.spline_scaler.copy_(edges.scaler)
        layer.base_weight.copy_(edges.base_weight if function else torch.zeros(()))
        layer.bias.copy_(edges.bias)
        return layer

    @property
    def enable_standalone_scale_spline(self) -> bool:
        return self.spline_scaler is not None

    @property
    def settings(self) -> dict:
        own = (
            "scale_base",
            "scale_spline",
            "enable_standalone_scale_spline",
            "spline_rank",
            "init",
        )
        return super().settings | {name: getattr(self, name) for name in own}

    def spline_parameters(self) -> Iterator[Tensor]:
        yield self.spline_weight if self.spline_rank is None else self.spline_down

    @property
    def splines_are_zero(self) -> bool:
        matters = self.spline_weight if self.spline_rank is None else self.spline_up
        return not bool(matters.any())

    def per_curve(self, x: Tensor) -> Tensor:
        return x.reshape(-1, self.in_features)

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
        base, spline = self._spreads()
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
            shape = self.grid[:1], self.spline_order, self.outside, self.scale_noise
            self.spline_weight.copy_(scale * noisy(self.spline_weight, *shape))
        else:
            self.spline_weight.normal_(0, scale * spline)

    def _spreads(self) -> Spread:
        if self.init == "noise":
            return Spread((3 * self.in_features) ** -0.5, 0.3 * self.scale_noise / self.grid_size)
        shape = self.grid[:1], self.spline_order, self.outside
        sizes = self.in_features, self.out_features
        return spreads(self.init, *sizes, *shape, self.base_activation)

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
        bases = exact(self.b_splines(x))
        gram = torch.einsum("nij,nik->ijk", bases, bases)
        right = torch.einsum("nij,nio->ijo", bases, exact(y))
        solution = torch.linalg.pinv(gram, rtol=1e-12, hermitian=True) @ right  # (I, K, O)
        return solution.permute(2, 0, 1).to(y).contiguous()

    @property
    def scaled_spline_weight(self) -> Tensor:
        """The coefficients of all edges, (O, I, K), whatever they are made of."""
        if self.spline_rank is not None:
            return torch.einsum("or,rij->oij", self.spline_up, self.spline_down)
        return scaled(self.spline_weight, self.spline_scaler)

    def compute_spline_output(self, x: Tensor) -> Tensor:
        """The spline term, (..., I) -> (..., O)."""
        return self.run(self.form, x, Base("identity", None, None, None))

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.form, x)

    @property
    def form(self) -> str:
        return "dense" if self.spline_rank is None else "low_rank"

    def coefficients(self) -> tuple[Tensor, Tensor | None]:
        if self.spline_rank is None:
            return self.spline_weight, self.spline_scaler
        return self.spline_down, self.spline_up

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
        for features in pieces(self.in_features, max(1, (1 << 19) // (len(rows) + 1))):
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
        low_rank = self.like(spline_rank=rank, enable_standalone_scale_spline=False)
        weight = exact(self.scaled_spline_weight).flatten(1)  # (O, I * K)
        # Eigenvectors of the small Gram matrix are the left singular vectors, at a small price.
        _, vectors = torch.linalg.eigh(weight @ weight.t())
        up = vectors.flip(1)[:, :rank]
        down = up.t() @ weight
        low_rank.grid = self.grid.clone()
        low_rank.base_weight.copy_(self.base_weight)
        if self.bias is not None:
            low_rank.bias.copy_(self.bias)
        low_rank.spline_up.zero_()[:, : up.shape[1]] = up.to(low_rank.spline_up)
        back = down.unflatten(1, (self.in_features, -1)).to(low_rank.spline_down)
        low_rank.spline_down.zero_()[: len(down)] = back
        error = (weight - up @ down).norm() / weight.norm().clamp_min(1e-300)
        return low_rank, error.item()


class GroupKANLinear(SplineLayer):
    """y = base_weight (activation(x) + spline_group(x)) + bias: one spline per group of features.

    Features are divided into `groups` runs of equal length; `spline_weight` (groups, K) and `grid`
    (groups, G + 2k + 1) belong to the groups. The idea of the Kolmogorov-Arnold Transformer (arXiv
    2409.10594) with B-splines in place of rational functions, at about the cost of nn.Linear.
    Raises ValueError where `groups` does not divide in_features.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        groups: int = 8,
        *,
        grid_size: int = 5,
        spline_order: int = 3,
        base_activation: Callable[[], nn.Module] = nn.SiLU,
        grid_eps: float = 0.02,
        grid_range: Range = (-1, 1),
        bias: bool = True,
        scale_noise: float = 0.1,
        outside: str = "linear",
    ) -> None:
        if groups < 1 or in_features % groups:
            raise ValueError(f"groups must divide in_features {in_features}, got {groups}")
        super().__init__(
            in_features, out_features, curves=groups, grid_size=grid_size,
            spline_order=spline_order, base_activation=base_activation, grid_range=grid_range,
            grid_eps=grid_eps, bias=bias, scale_noise=scale_noise, outside=outside,
        )  # fmt: skip
        self.groups = groups
        self.spline_weight = nn.Parameter(torch.empty(groups, self.bases_per_edge))
        self.initialize_weights()

    @property
    def settings(self) -> dict:
        return super().settings | {"groups": self.groups}

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

    def spline_parameters(self) -> Iterator[Tensor]:
        yield self.spline_weight

    def per_curve(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.groups, -1)).transpose(-1, -2).reshape(-1, self.groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.run("group", x)

    def coefficients(self) -> tuple[Tensor, Tensor | None]:
        return self.spline_weight, None

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

    @classmethod
    @torch.no_grad()
    def from_pykan(
        cls, source: Source, base_activation: Callable[[], nn.Module] | None = None
    ) -> "KAN":
        """Returns the network that a MultKAN of pykan is, from the model or its state dict.

        base_activation: the base function, where it is not the model's (a state dict says none:
        SiLU). Raises ValueError for symbolic edges and multiplication nodes.
        """
        layers = read_layers(source)
        function = base_activation() if base_activation else base_function(source)
        model = cls([layers[0].grid.shape[0], *(len(edges.bias) for edges in layers)])
        for number, edges in enumerate(layers):
            model.layers[number] = KANLinear.of_edges(edges, function)
        return model

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
) -> dict[str, Range]:
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
        low, high = range_of(layer.per_curve(x).to(layer.grid.dtype), outside_share)
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
