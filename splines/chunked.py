"""The forms of a layer as products of matrices, whose bases are made chunk by chunk, twice."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from splines.bases import pieces, scaled
from splines.interface import Base, Gradients, Splines, Wanted

# A chunk of bases should stay in the last cache, yet be wide enough for an efficient product.
CHUNK_BYTES = 16 << 20
CHUNK_ROWS = 2048
# A device wants products that fill it, and its memory is fast.
DEVICE_BYTES = 128 << 20
DEVICE_ROWS = 1 << 15


class ChunkedSplines(Splines):
    """What torch and C share. A subclass computes `bases`, `slopes`, `curves` and their backward.

    It may take narrow products (`takes`) and scales of edges out of torch's hands.
    """

    def __init__(self, *shape) -> None:
        super().__init__(*shape)
        self.buffers: dict[str, Tensor] = {}

    def buffer(
        self, name: str, rows: int, columns: int, dtype: torch.dtype | None = None
    ) -> Tensor:
        """An uninitialised (rows, columns): the same memory each time, as fresh pages cost time."""
        size, found = rows * columns, self.buffers.get(name)
        if found is None or found.numel() < size:
            found = torch.empty(size, dtype=dtype or self.dtype, device=self.grid.device)
            self.buffers[name] = found
        return found[:size].view(rows, columns)

    # --- what a subclass gives ---

    def bases(self, x: Tensor, features: slice = slice(None)) -> Tensor:
        """(N, F) -> (N, F * K), where the F columns of x are `features`; in any order of columns.

        That of `scaled`, from which `add_gradient` returns.
        """
        raise NotImplementedError

    def slopes(self, x: Tensor, grad: Tensor, out: Tensor, features: slice = slice(None)) -> None:
        """Puts the gradient of x (N, F) into `out`, from that of the bases (N, F * K)."""
        raise NotImplementedError

    def add_gradient(self, out: Tensor, grad: Tensor, bases: Tensor, more: bool) -> None:
        """Puts the weights' gradient grad^T bases into `out` (O, F, K), or adds what is `more`."""
        add_product(out.flatten(1), grad.t(), bases, more)

    def takes(self, outputs: int) -> bool:
        """Whether `product` serves for so many outputs, faster than multiplying all the zeros."""
        return False

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        """The product of all bases at x (N, I) and weight (O, I, K), (N, O), for few outputs."""
        raise NotImplementedError

    def product_backward(self, x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of x (N, I) and weight (O, I, K) from that of `product`'s result (N, O)."""
        raise NotImplementedError

    def scaled(self, weight: Tensor, scaler: Tensor | None, features: slice) -> Tensor:
        """Weights (O, I, K) times scaler (O, I) of some features, (O, F * K)."""
        some = None if scaler is None else scaler[:, features]
        return scaled(weight[:, features], some).flatten(1).to(self.dtype)

    def scaled_backward(self, weight, scaler, features: slice, grad, grad_scaler) -> None:
        """Turns the gradient of the product in grad[:, features] into that of the weights.

        grad_scaler (O, I) receives that of the scaler where it is wanted.
        """
        part, g = weight[:, features], grad[:, features]
        if grad_scaler is not None:
            grad_scaler[:, features] = (g * part).sum(-1)
        g.mul_(scaler[:, features].unsqueeze(-1))

    def curves(self, x: Tensor, coef: Tensor, base: Base) -> Tensor:
        """activation(x) + one spline for each group of features, (N, I); coef (groups, K)."""
        raise NotImplementedError

    def curves_backward(
        self, x: Tensor, coef: Tensor, base: Base, grad: Tensor, again: bool
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """Gradients of x (N, I), base.active and coef (groups, K) from that of `curves`' result.

        With that result once more, if it is wanted `again`; `grad` may be overwritten.
        """
        raise NotImplementedError

    # --- the three forms ---

    def dense(self, x: Tensor, base: Base, weight: Tensor, scaler: Tensor | None) -> Tensor:
        return self._add_splines(self._base(x, base, len(weight)), x, weight, scaler)

    def dense_backward(
        self, grad: Tensor, x: Tensor, base: Base, weight: Tensor, scaler: Tensor | None,
        wanted: Wanted,
    ) -> Gradients:  # fmt: skip
        gradients = self._splines_backward(grad, x, weight, scaler, wanted)
        return self._add_base_backward(gradients, grad, x, base, wanted)

    def low_rank(self, x: Tensor, base: Base, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        z = x.new_zeros(len(x), len(down), dtype=self.dtype)
        z = self._add_splines(z, x, down, None)
        return self._base(x, base, len(up)).addmm_(z, up.t().to(self.dtype)), z

    def low_rank_backward(
        self, grad: Tensor, x: Tensor, base: Base, down: Tensor, up: Tensor, z: Tensor,
        wanted: Wanted,
    ) -> Gradients:  # fmt: skip
        gradients = Gradients()
        if wanted.x or wanted.spline:
            gradients = self._splines_backward(grad @ up.to(self.dtype), x, down, None, wanted)
        if wanted.second:
            gradients = gradients._replace(second=(grad.t() @ z).to(up.dtype))
        return self._add_base_backward(gradients, grad, x, base, wanted)

    def group(self, x: Tensor, base: Base, coef: Tensor) -> Tensor:
        return self._linear(self.curves(x, coef, base), base)

    def group_backward(
        self, grad: Tensor, x: Tensor, base: Base, coef: Tensor, wanted: Wanted
    ) -> Gradients:
        back = grad @ base.weight.to(self.dtype)
        grad_x, active, spline, h = self.curves_backward(x, coef, base, back, wanted.base_weight)
        weight = (grad.t() @ h).to(base.weight.dtype) if wanted.base_weight else None
        bias = grad.sum(0, dtype=base.bias.dtype) if wanted.bias else None
        return Gradients(grad_x, active, weight, bias, spline)

    # --- the base term ---

    def _linear(self, h: Tensor, base: Base) -> Tensor:
        bias = None if base.bias is None else base.bias.to(self.dtype)
        return F.linear(h.to(self.dtype), base.weight.to(self.dtype), bias)

    def _base(self, x: Tensor, base: Base, outputs: int) -> Tensor:
        """The base term (N, O), which may be overwritten."""
        if base.weight is None:
            return x.new_zeros(len(x), outputs, dtype=self.dtype)
        return self._linear(base.inputs(x), base)

    def _add_base_backward(
        self, gradients: Gradients, grad: Tensor, x: Tensor, base: Base, wanted: Wanted
    ) -> Gradients:
        """The gradients of the splines, and those of the base term with them."""
        if base.weight is None:
            return gradients
        if wanted.x and base.active is None:
            back = base.inputs_backward(x, grad @ base.weight.to(self.dtype)).to(x.dtype)
            gradients = gradients._replace(x=back.add_(gradients.x))
        if wanted.active:
            back = (grad @ base.weight.to(self.dtype)).to(base.active.dtype)
            gradients = gradients._replace(active=back)
        if wanted.base_weight:
            weight = grad.t() @ base.inputs(x).to(self.dtype)
            gradients = gradients._replace(base_weight=weight.to(base.weight.dtype))
        if wanted.bias:
            gradients = gradients._replace(bias=grad.sum(0, dtype=base.bias.dtype))
        return gradients

    # --- the spline term of every edge ---

    def _add_splines(self, out: Tensor, x: Tensor, weight: Tensor, scaler: Tensor | None) -> Tensor:
        """out (N, O) + sum_ij B_j(x_ni) scaler_oi weight_oij, in place, chunk by chunk."""
        if self.takes(len(weight)):
            return out.add_(self.product(x, scaled(weight, scaler)))
        for features, rows in self._chunks(x):
            columns = self.scaled(weight, scaler, features)
            for row in rows:
                out[row].addmm_(self.bases(x[row, features], features), columns.t())
        return out

    def _splines_backward(self, grad, x, weight, scaler, wanted: Wanted) -> Gradients:
        if not (wanted.x or wanted.spline or wanted.second):
            return Gradients()
        if self.takes(len(weight)):
            return self._narrow_backward(grad, x, weight, scaler)
        return self._chunks_backward(grad, x, weight, scaler, wanted)

    def _narrow_backward(self, grad, x, weight, scaler) -> Gradients:
        """The gradients of `product`, of which all come at once."""
        grad_x, grad_weight = self.product_backward(x, scaled(weight, scaler), grad)
        grad_x, grad_weight, grad_scaler = grad_x.to(x.dtype), grad_weight.to(weight.dtype), None
        if scaler is not None:
            grad_scaler = (grad_weight * weight).sum(-1)
            grad_weight = grad_weight * scaler.unsqueeze(-1)
        return Gradients(grad_x, spline=grad_weight, second=grad_scaler)

    def _chunks_backward(self, grad, x, weight, scaler, wanted: Wanted) -> Gradients:
        """The gradients of chunks, in which the bases are computed again."""
        scales = scaler is not None and (wanted.spline or wanted.second)
        # Not empty_like, which would keep the strides of something transposed.
        grad_x = x.new_empty(x.shape) if wanted.x else None
        new = weight.new_empty if len(x) else weight.new_zeros
        grad_weight = new(weight.shape) if wanted.spline or scales else None
        grad_scaler = scaler.new_empty(scaler.shape) if scales and wanted.second else None
        for features, rows in self._chunks(x):
            columns = self.scaled(weight, scaler, features)
            for number, row in enumerate(rows):
                g, part = grad[row], x[row, features]
                if grad_weight is not None:
                    bases = self.bases(part, features)
                    self.add_gradient(grad_weight[:, features], g, bases, number > 0)
                if wanted.x:
                    # In the place of the bases, which have had their turn.
                    to = self.buffer("bases", len(g), columns.shape[1])
                    torch.mm(g, columns, out=to)
                    self.slopes(part, to, grad_x[row, features], features)
            if scales:
                self.scaled_backward(weight, scaler, features, grad_weight, grad_scaler)
        return Gradients(grad_x, spline=grad_weight, second=grad_scaler)

    def _chunks(self, x: Tensor) -> Iterator[tuple[slice, list[slice]]]:
        """Yields slices of features with the slices of rows to go through for each."""
        on_cpu = x.device.type == "cpu"
        rows = list(pieces(len(x), CHUNK_ROWS if on_cpu else DEVICE_ROWS))
        bytes_per_row = self.count * self.dtype.itemsize * (rows[0].stop if rows else 1)
        most = (CHUNK_BYTES if on_cpu else DEVICE_BYTES) // bytes_per_row
        for features in pieces(x.shape[1], max(16, most)):
            yield features, rows


def add_product(out: Tensor, a: Tensor, b: Tensor, more: bool) -> None:
    """out = a @ b, or out += a @ b if there is `more` than the first part, in out's type."""
    if out.dtype != a.dtype:
        product = a @ b
        out.add_(product) if more else out.copy_(product)
    elif more:
        out.addmm_(a, b)
    else:
        torch.mm(a, b, out=out)
