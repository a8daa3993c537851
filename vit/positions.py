"""Where a token stands, told to attention: rotary positions and relative position biases.

Learned absolute positions are mere parameters (`pos_embed`); these two act within each block. Both
know the patches' places by their grid alone, so that another image size needs no other numbers
(rotary) or an interpolated table (relative).

Letters in shape comments: B batch, G patches a side, P patches (G * G), N all tokens, H heads,
D head size.
"""

import math

import torch
from torch import Tensor, nn

ROPES = ("none", "cat", "dinov3", "mixed")
RELATIVE = ("none", "block", "shared", "both")
INDEXINGS = ("ij", "xy")
Turn = tuple[Tensor, Tensor]  # sine and cosine of each angle, (H or 1, N, D)


class Rotary(nn.Module):
    """Rotary positions (RoFormer, arXiv 2104.09864) of a square grid of patches.

    Pairs of a query's and a key's numbers are turned by angles that grow with the patch's place.

    kind: "cat" (EVA-02, arXiv 2303.11331): half of the angles for either axis, place times
        temperature ** (-4 i / D); "dinov3" (arXiv 2508.10104): the same with places from -1 to 1
        times 2 pi; "mixed" (RoPE-ViT, arXiv 2403.13298): learned frequencies `freqs` for both axes
        at once, of each block and head.
    reference: patches a side that places are scaled to ("cat"), None for as they are.
    half: pairs are i and i + D / 2 instead of neighbours.
    prefix: tokens before the patches, which are not turned.
    """

    def __init__(
        self,
        kind: str,
        depth: int,
        heads: int,
        head_dim: int,
        grid: int,
        prefix: int,
        *,
        temperature: float,
        half: bool,
        indexing: str,
        offset: float,
        reference: int | None,
    ) -> None:
        super().__init__()
        self.kind, self.depth, self.head_dim = kind, depth, head_dim
        self.grid, self.prefix, self.half = grid, prefix, half
        self.temperature, self.indexing = temperature, indexing
        self.offset, self.reference = offset, reference
        shape = (2, depth, heads, head_dim // 2)
        self.freqs = nn.Parameter(torch.zeros(shape)) if kind == "mixed" else None

    def init_weights(self) -> None:
        """Axes of each head of each block, turned by chance, as the paper starts."""
        if self.freqs is None:
            return
        with torch.no_grad():
            turned = torch.rand(self.freqs.shape[1:3])[..., None] * 2 * math.pi  # (depth, H, 1)
            rates = self._rates(self.freqs.device)
            for axis, shift in enumerate((0.0, -math.pi / 2)):
                angles = (turned + shift, turned + math.pi / 2 + shift)
                self.freqs[axis] = torch.cat([rates * angle.cos() for angle in angles], -1)

    def _rates(self, device: torch.device) -> Tensor:
        """How much faster each pair turns than the slowest, (D / 4,)."""
        count = self.head_dim // 4
        return self.temperature ** (-torch.arange(count, device=device).float() / count)

    def _places(self, device: torch.device) -> Tensor:
        """Coordinates of each patch in the order of its axes, (P, 2)."""
        steps = torch.arange(self.grid, device=device).float()
        if self.kind == "dinov3":
            steps = 2 * math.pi * (2 * (steps + 0.5 + self.offset) / self.grid - 1)
        elif self.kind == "cat":
            steps = (steps + self.offset) * ((self.reference or self.grid) / self.grid)
        down, right = torch.meshgrid(steps, steps, indexing="ij")  # (G, G)
        axes = (down, right) if self.indexing == "ij" else (right, down)
        return torch.stack(axes, -1).flatten(0, 1)  # (P, 2)

    def forward(self, device: torch.device) -> list[Turn]:
        """Returns what turns the tokens of each block, in float32.

        Computed anew each time: a ten thousandth of a model's work, and no table to round or lose.
        """
        places = self._places(device)
        if self.freqs is None:
            angles = places[:, :, None] * self._rates(device)  # (P, 2, D / 4)
            angles = angles.flatten(1)[None, None].expand(self.depth, 1, -1, -1)
        else:
            rates = self.freqs.float()[..., None, :]  # (2, depth, H, 1, D / 2)
            angles = places[:, :1] * rates[0] + places[:, 1:] * rates[1]  # (depth, H, P, D / 2)
        angles = torch.cat([angles, angles], -1) if self.half else angles.repeat_interleave(2, -1)
        still = angles.new_zeros(*angles.shape[:2], self.prefix, self.head_dim)
        angles = torch.cat([still, angles], 2)  # (depth, H or 1, N, D)
        return list(zip(angles.sin().unbind(), angles.cos().unbind(), strict=True))


def turned(x: Tensor, turn: Turn, half: bool) -> Tensor:
    """Returns queries or keys (B, H, N, D) turned by a block's angles."""
    sine, cosine = turn
    if half:
        first, second = x.chunk(2, -1)
        other = torch.cat([-second, first], -1)
    else:
        other = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
    return (x * cosine + other * sine).to(x.dtype)


def relative_rows(grid: int) -> int:
    """How many rows a table of biases has: one for each offset, three for the class token."""
    return (2 * grid - 1) ** 2 + 3


def relative_bias(table: Tensor, grid: int) -> Tensor:
    """Returns what is added to attention's logits, (H, N, N), from a table of offsets (rows, H).

    BEiT's (arXiv 2106.08254): the last three rows are from the class token, to it, and between
    itself; the others the offsets from patch to patch, row by row.
    """
    steps = torch.arange(grid, device=table.device)
    apart = steps[:, None] - steps[None] + grid - 1  # (G, G), from 0 to 2 G - 2
    down = apart[:, None, :, None] * (2 * grid - 1)
    index = (down + apart[None, :, None, :]).reshape(grid**2, grid**2)  # of patch p and patch q
    rows = len(table)
    from_class = index.new_full((1, grid**2), rows - 3)
    to_class = torch.cat([index.new_full((1, 1), rows - 1), index.new_full((grid**2, 1), rows - 2)])
    index = torch.cat([to_class, torch.cat([from_class, index])], 1)  # (N, N)
    return table[index].permute(2, 0, 1)  # (N, N, H) -> (H, N, N)


class RelativeBias(nn.Module):
    """The relative position biases that all blocks share, (H, N, N)."""

    def __init__(self, grid: int, heads: int) -> None:
        super().__init__()
        self.grid = grid
        self.relative_position_bias_table = nn.Parameter(torch.zeros(relative_rows(grid), heads))

    def forward(self) -> Tensor:
        return relative_bias(self.relative_position_bias_table, self.grid)
