"""KAN layers from operators that every runtime has, for ONNX and other exports.

The layers of kan.py look up the few B-splines that are not zero at each input. Inference engines
have no such operator, and evaluating all bases by recursion is slow in them. So exported layers use
another basis of the same piecewise polynomials of order k: with v the input, scaled so that
[low, high] becomes [-G/2, G/2],

    1, v, ..., v^k,  relu(v - t)^k for knots t right of the middle,  relu(t - v)^k left of it,

for each of the G - 1 inner knots t: as many functions as there are B-splines, each made of a few
elementwise operations. Measuring from the middle keeps them small, so float32 loses little (powers
counted from the left end would not be so kind). Beyond [low, high] v is held, and a straight line
added where the layer has `outside="linear"`.

Letters in shape comments: I inputs, O outputs, R rank, C curves, K bases, F functions of the basis
above but 1, P points.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kan import GroupKANLinear, KANLinear
from splines.bases import dense_bases
from vit.mlps import first_maps


class PowerBasis(nn.Module):
    """The F functions of the module's docstring, of each input feature."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        grid = layer.grid.detach().double()
        self.order, self.cells = layer.spline_order, layer.grid_size
        self.linear = layer.outside == "linear"
        low, high = grid[:, self.order], grid[:, self.order + self.cells]
        scale = self.cells / (high - low)
        shift = -(low + high) / 2 * scale
        inner = grid[:, self.order + 1 : self.order + self.cells] * scale[:, None] + shift[:, None]
        size = layer.in_features // layer.curves
        self.matrix = self._from_bases(layer, low, high, inner)  # (C, K, 1 + F), not exported
        self.register_buffer("scale", scale.float().repeat_interleave(size))
        self.register_buffer("shift", shift.float().repeat_interleave(size))
        # Left of the middle a knot is turned round: sign * (v - t) with sign -1.
        self.signs = [1.0 if 2 * (n + 1) >= self.cells else -1.0 for n in range(self.cells - 1)]
        knots = inner.float().repeat_interleave(size, 0).t()  # (G - 1, I)
        self.register_buffer("knots", knots.contiguous())

    def forward(self, x: Tensor) -> list[Tensor]:
        """Inputs (..., I) -> F tensors (..., I)."""
        half = self.cells / 2
        v = x * self.scale + self.shift
        held = v.clamp(-half, half)
        functions = [held]
        for _ in range(self.order - 1):
            functions.append(functions[-1] * held)
        for n, sign in enumerate(self.signs):
            ramp = F.relu(held - self.knots[n] if sign > 0 else self.knots[n] - held)
            functions.append(power(ramp, self.order))
        if self.linear:
            functions += [F.relu(v - half), F.relu(-half - v)]
        return functions

    def _from_bases(self, layer: nn.Module, low: Tensor, high: Tensor, inner: Tensor) -> Tensor:
        """The matrix (C, K, 1 + F) that takes coefficients of B-splines to those of this basis."""
        k, half = self.order, self.cells / 2
        count = 6 * (self.cells + k)
        angles = (torch.arange(count, device=low.device).double() + 0.5) * torch.pi / count
        v = half * torch.cos(angles)  # (P,), Chebyshev points: no end is neglected
        x = (low + high)[:, None] / 2 + v * ((high - low) / self.cells)[:, None]  # (C, P)
        bases = dense_bases(x.t(), layer.grid.double(), k, layer.outside)  # (P, C, K)
        signs = inner.new_tensor(
            [1.0 if 2 * (n + 1) >= self.cells else -1.0 for n in range(self.cells - 1)]
        )

        def functions(v: Tensor) -> Tensor:  # (P,) -> (C, P, 1 + F), without the outside
            powers = v[:, None] ** torch.arange(k + 1, device=v.device)  # (P, k + 1)
            ramps = (signs * (v[:, None] - inner[:, None])).clamp_min(0)  # (C, P, G - 1)
            return torch.cat([powers.expand(len(inner), -1, -1), ramps**k], -1)

        matrix = torch.linalg.lstsq(functions(v), bases.transpose(0, 1)).solution.mT  # (C, K, F)
        if not self.linear:
            return matrix
        ends = v.new_tensor([half, -half])
        ramps = signs * (ends[:, None] - inner[:, None])  # (C, 2, G - 1)
        slopes = torch.where(ramps > 0, k * ramps ** (k - 1) * signs, 0.0)
        exponents = torch.arange(k + 1, device=v.device)
        of_powers = exponents * ends[:, None] ** (exponents - 1).clamp_min(0)  # (2, k + 1)
        slopes = torch.cat([of_powers.expand(len(inner), -1, -1), slopes], -1)  # (C, 2, 1 + F)
        right, left = (matrix @ slopes.mT).unbind(-1)  # (C, K) each
        return torch.cat([matrix, right[..., None], -left[..., None]], -1)

    def coefficients(self, coef: Tensor) -> Tensor:
        """Coefficients of B-splines (..., C, K) as those of 1 and the F others (..., C, 1 + F)."""
        return torch.einsum("...ck,ckf->...cf", coef.detach().double(), self.matrix)


def power(x: Tensor, exponent: int) -> Tensor:
    result = x
    for _ in range(exponent - 1):
        result = result * x
    return result


class PortableKANLinear(nn.Module):
    """What a KANLinear computes in evaluation."""

    def __init__(self, layer: KANLinear):
        super().__init__()
        self.basis = PowerBasis(layer)
        self.base_activation = layer.base_activation
        low_rank = layer.spline_rank is not None
        coef = self.basis.coefficients(
            layer.spline_down if low_rank else layer.scaled_spline_weight
        )
        constant = coef[..., 0].sum(-1)  # (O,) or (R,)
        weights = coef[..., 1:].permute(2, 1, 0).float()  # (F, I, O) or (F, I, R)
        self.up = nn.Parameter(layer.spline_up.detach().t().clone()) if low_rank else None
        if low_rank:
            constant = constant @ layer.spline_up.detach().double().t()
        bias = constant if layer.bias is None else constant + layer.bias.detach()
        self.bias = nn.Parameter(bias.float())
        self.base_weight = nn.Parameter(layer.base_weight.detach().t().clone())
        # One product of joined functions where the output is wide, else a sum of narrow ones:
        # whichever writes less.
        self.joined = weights.shape[2] > layer.in_features
        self.weights = nn.Parameter(weights.flatten(0, 1) if self.joined else weights.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        functions = self.basis(x)
        if self.joined:
            spline = torch.cat(functions, -1) @ self.weights
        else:
            spline = functions[0] @ self.weights[0]
            for n in range(1, len(functions)):
                spline = spline + functions[n] @ self.weights[n]
        if self.up is not None:
            spline = spline @ self.up
        return self.base_activation(x) @ self.base_weight + self.bias + spline


class PortableGroupKANLinear(nn.Module):
    """What a GroupKANLinear computes in evaluation."""

    def __init__(self, layer: GroupKANLinear):
        super().__init__()
        self.basis = PowerBasis(layer)
        self.base_activation = layer.base_activation
        coef = self.basis.coefficients(layer.spline_weight)  # (G, 1 + F)
        size = layer.in_features // layer.groups
        self.weights = nn.Parameter(coef[:, 1:].float().repeat_interleave(size, 0).t().contiguous())
        self.base_weight = nn.Parameter(layer.base_weight.detach().t().clone())
        constant = layer.base_weight.detach().double() @ coef[:, 0].repeat_interleave(size)
        bias = constant if layer.bias is None else constant + layer.bias.detach()
        self.bias = nn.Parameter(bias.float())

    def forward(self, x: Tensor) -> Tensor:
        total = self.base_activation(x)
        for n, function in enumerate(self.basis(x)):
            total = total + function * self.weights[n]
        return total @ self.base_weight + self.bias


def portable(model: nn.Module) -> nn.Module:
    """A copy of `model` for evaluation on the CPU whose KAN layers use plain operators.

    Layers whose splines vanish outside the grid, or are constant on each cell, stay as they are.
    """
    model = copy.deepcopy(model).cpu().float().eval()
    kinds = {KANLinear: PortableKANLinear, GroupKANLinear: PortableGroupKANLinear}
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            kind = kinds.get(type(layer))
            if kind and layer.spline_order > 0 and layer.outside != "zero":
                setattr(parent, name, kind(layer))
    return model


@torch.no_grad()
def norms_folded(model: nn.Module) -> nn.Module:
    """A copy of `model` that computes the same with each LayerNorm's factors in the maps after it.

    Rounding to 8 bits gives all channels of a map's input one step. Factors that differ much, and
    that the map undoes, would leave its smaller channels nothing; without factors all are alike.
    Norms before anything else than linear maps stay, and norms without a shift; and the last one,
    whose factors belong to what the head reads: those features are compared (`formats.known`).
    """
    model = copy.deepcopy(model)
    pairs = [(block.norm1, [block.attn.qkv]) for block in model.blocks]
    pairs += [(block.norm2, first_maps(block.mlp)) for block in model.blocks]
    for norm, maps in pairs:
        if type(norm) is nn.LayerNorm and all(type(one) is nn.Linear for one in maps):
            for one in maps:
                shift = one.weight.double() @ norm.bias.double()
                bias = shift if one.bias is None else shift + one.bias.double()
                one.bias = nn.Parameter(bias.float())
                one.weight.copy_(one.weight.double() * norm.weight.double())
            norm.weight.fill_(1.0)
            norm.bias.zero_()
    return model
