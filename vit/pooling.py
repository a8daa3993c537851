"""From all tokens to what the head reads.

Letters in shape comments: B batch, N tokens, C channels (embed_dim), H heads, D head size.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit.mlps import Mlp

# The class token, the mean of the patches, a latent query's attention, the first beside the second.
POOLS = ("token", "avg", "map", "token+avg")


class AttentionPool(nn.Module):
    """A learned query that attends to all tokens, then an MLP: (B, N, C) -> (B, 1, C).

    The multi-head attention pooling of SigLIP (arXiv 2303.15343).
    """

    def __init__(self, dim: int, num_heads: int, hidden: int, norm: partial, act: str) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.latent = nn.Parameter(torch.zeros(1, 1, dim))
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm = norm(dim)
        self.mlp = Mlp(dim, hidden, act=act)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The query (1, H, 1, D), keys and values (B, H, N, D) of tokens (B, N, C)."""
        q = self.q(self.latent).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        kv = self.kv(x).unflatten(2, (2, self.num_heads, -1))  # (B, N, 2, H, D)
        return q, *kv.permute(2, 0, 3, 1, 4).unbind(0)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        x = F.scaled_dot_product_attention(q.expand(x.shape[0], -1, -1, -1), k, v)
        x = self.proj(x.transpose(1, 2).flatten(2))  # (B, H, 1, D) -> (B, 1, C)
        return x + self.mlp(self.norm(x))


def reading(kind: str, tokens: int, first: int, prefix: int, pool_prefix: bool) -> Tensor:
    """How much of each token the head reads, (N,), which add up to 1: what explanations start from.

    first: the tokens that "token" reads, of `prefix` special ones. "map" counts as the mean.
    """
    shares = torch.zeros(tokens)
    if kind in ("token", "token+avg"):
        shares[:first] += 1 / first
    if kind != "token":
        start = 0 if pool_prefix else prefix
        shares[start:] += 1 / (tokens - start)
    return shares / shares.sum()
