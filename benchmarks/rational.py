"""Group-rational functions as the Kolmogorov-Arnold Transformer has them, to measure against.

    y = (a_0 + a_1 x + ... + a_5 x^5) / (1 + |b_1 x + ... + b_4 x^4|)

One numerator for a layer, a denominator for each of 8 groups of features (arXiv 2409.10594, eqs. 9
and 10). Backward sums over blocks of rows, as FlashKAT (arXiv 2505.13813) showed that one must.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

GROUPS, ROWS, BN, BI = 8, 128, 16, 64


@triton.jit
def parts(x, A, B, known):
    """Numerator, the sum inside the bars of the denominator, and the slopes of both."""
    p, dp = tl.load(A + 5) + 0 * x, 0 * x
    for j in tl.static_range(4, -1, -1):
        dp = dp * x + p
        p = p * x + tl.load(A + j)
    s, ds = tl.load(B + 3, known, 0.0) + 0 * x, 0 * x
    for j in tl.static_range(2, -1, -1):
        ds = ds * x + s
        s = s * x + tl.load(B + j, known, 0.0)
    return p, dp, s * x, ds * x + s


@triton.jit
def forward_kernel(X, A, B, Y, N, F, SIZE, ROWS: tl.constexpr, BN: tl.constexpr, BI: tl.constexpr):
    i = tl.program_id(1) * BI + tl.arange(0, BI)
    for row in range(0, ROWS, BN):
        n = tl.program_id(0).to(tl.int64) * ROWS + row + tl.arange(0, BN)
        there = (n < N)[:, None] & (i < F)
        x = tl.load(X + n[:, None] * F + i, there, 0.0).to(tl.float32)
        p, _, s, _ = parts(x, A, B + (i // SIZE) * 4, i < F)
        y = p / (1 + tl.abs(s))
        tl.store(Y + n[:, None] * F + i, y.to(Y.dtype.element_ty), there)


@triton.jit
def backward_kernel(
    X, A, B, G, DX, PART, N, F, SIZE, ROWS: tl.constexpr, BN: tl.constexpr, BI: tl.constexpr
):
    """DX, and in PART (row blocks, 10, F) the sums of the gradients of 6 a's and 4 b's."""
    i = tl.program_id(1) * BI + tl.arange(0, BI)
    block = tl.program_id(0).to(tl.int64)
    sums = ()
    for _ in tl.static_range(10):
        sums = sums + (tl.zeros((BI,), tl.float32),)  # noqa: RUF005
    for row in range(0, ROWS, BN):
        n = block * ROWS + row + tl.arange(0, BN)
        there = (n < N)[:, None] & (i < F)
        x = tl.load(X + n[:, None] * F + i, there, 0.0).to(tl.float32)
        g = tl.load(G + n[:, None] * F + i, there, 0.0).to(tl.float32)
        p, dp, s, ds = parts(x, A, B + (i // SIZE) * 4, i < F)
        q = 1 / (1 + tl.abs(s))
        sign = tl.where(s < 0, -1.0, 1.0)
        of_p, of_s = g * q, -g * p * q * q * sign
        dx = of_p * dp + of_s * ds
        tl.store(DX + n[:, None] * F + i, dx.to(DX.dtype.element_ty), there)
        power, more = of_p, ()
        for j in tl.static_range(6):
            more = more + (sums[j] + tl.sum(power, 0),)  # noqa: RUF005
            power = power * x
        power = of_s * x
        for j in tl.static_range(4):
            more = more + (sums[6 + j] + tl.sum(power, 0),)  # noqa: RUF005
            power = power * x
        sums = more
    for j in tl.static_range(10):
        tl.store(PART + (block * 10 + j) * F + i, sums[j], i < F)


class Rational(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        rows = x.contiguous().view(-1, x.shape[-1])
        y, grid = torch.empty_like(rows), blocks(rows)
        forward_kernel[grid](rows, a, b, y, *rows.shape, rows.shape[1] // len(b), ROWS, BN, BI)
        ctx.save_for_backward(rows, a, b)
        return y.view(x.shape)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows, a, b = ctx.saved_tensors
        out, grid = torch.empty_like(rows), blocks(rows)
        part = rows.new_empty(grid[0], 10, rows.shape[1], dtype=torch.float32)
        size = rows.shape[1] // len(b)
        g = grad.contiguous().view(rows.shape)
        backward_kernel[grid](rows, a, b, g, out, part, *rows.shape, size, ROWS, BN, BI)
        total = part.sum(0)
        of_b = total[6:].unflatten(1, (len(b), size)).sum(2).t()
        return out.view(grad.shape), total[:6].sum(1), of_b


def blocks(rows: Tensor) -> tuple[int, int]:
    return triton.cdiv(len(rows), ROWS), triton.cdiv(rows.shape[1], BI)


class GroupRational(nn.Module):
    """(..., F) -> (..., F)."""

    def __init__(self) -> None:
        super().__init__()
        self.numerator = nn.Parameter(torch.tensor([0.0, 1.0, 0.1, 0.0, 0.0, 0.0]))
        self.denominator = nn.Parameter(0.1 * torch.ones(GROUPS, 4))

    def forward(self, x: Tensor) -> Tensor:
        return Rational.apply(x, self.numerator, self.denominator)

    def by_formula(self, x: Tensor) -> Tensor:
        a, b = self.numerator, self.denominator.repeat_interleave(x.shape[-1] // GROUPS, 0)
        powers = torch.stack([x**j for j in range(6)], -1)
        return (powers @ a) / (1 + (powers[..., 1:5] * b).sum(-1).abs())


class RationalMlp(nn.Module):
    """A block's MLP with a rational function before each linear map, as KAT's."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.act1, self.fc1 = GroupRational(), nn.Linear(dim, hidden)
        self.act2, self.fc2 = GroupRational(), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act2(self.fc1(self.act1(x))))
