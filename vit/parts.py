"""The small parts of a Vision Transformer: norms, patches, layer scale, stochastic depth.

Letters in shape comments: B batch, N tokens, C channels (embed_dim), S pixels a side.
"""

from functools import partial

import torch
from torch import Tensor, nn

# What a norm divides by: the deviation of what it centred, or the root of the mean square alone.
NORMS = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}


def norm_of(kind: str, eps: float) -> partial:
    """Returns what makes a norm of a width: `norm_of("layer", 1e-6)(768)`."""
    return partial(NORMS[kind], eps=eps)


class DropPath(nn.Module):
    """Drops a residual branch for whole samples (stochastic depth, arXiv 1603.09382).

    What survives is scaled by 1 / (1 - rate), so that the expectation stays; the identity in eval.
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        keep = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * keep / (1 - self.rate)

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


class LayerScale(nn.Module):
    """Multiplies each channel by a learned factor, first `init_value` (CaiT, arXiv 2103.17239)."""

    def __init__(self, dim: int, init_value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init_value))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class PatchEmbed(nn.Module):
    """Cuts images into patches and projects each one: (B, in_chans, S, S) -> (B, N, C).

    norm: makes the norm of what comes out, of its width; None for none.
    """

    def __init__(
        self,
        img_size: int,
        patch_size: int,
        in_chans: int,
        embed_dim: int,
        norm: partial | None = None,
    ) -> None:
        super().__init__()
        self.img_size, self.patch_size = img_size, patch_size
        self.grid_size = img_size // patch_size
        self.num_patches = self.grid_size**2
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)
        self.norm = norm(embed_dim) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        # What is left over beside whole patches is not seen: SigLIP has 27 of 14 in 384 pixels.
        if any(side // self.patch_size != self.grid_size for side in x.shape[-2:]):
            raise ValueError(
                f"the model takes images of {self.img_size} x {self.img_size} pixels, "
                f"not {x.shape[-2]} x {x.shape[-1]}"
            )
        return self.norm(self.proj(x).flatten(2).transpose(1, 2))  # (B, C, h, w) -> (B, N, C)
