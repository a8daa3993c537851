"""Multi-head self-attention, with what families add to it: norms, rotary and relative positions.

Letters in shape comments: B batch, N tokens, C channels (embed_dim), H heads, D head size.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit.mlps import kan_layer
from vit.positions import Turn, relative_bias, relative_rows, turned


class Attention(nn.Module):
    """Multi-head self-attention, (B, N, C) -> (B, N, C), or of the first `out` tokens alone.

    norm: makes the norms that `qk_norm` (of each head's queries and keys) and `inner_norm` (of what
        `proj` reads) ask for.
    relative_grid: patches a side of its own relative position biases, None for none.
    rope_half: see `vit.positions.Rotary`.
    kan: what `kan_layer` needs where both of its maps have splines.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        head_dim: int,
        norm: partial,
        *,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        inner_norm: bool = False,
        relative_grid: int | None = None,
        rope_half: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        kan: dict | None = None,
    ) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.rope_half = num_heads, head_dim, rope_half
        self.scale = head_dim**-0.5
        self.attn_drop = attn_drop
        linear = nn.Linear if kan is None else partial(kan_layer, base=nn.Identity, **kan)
        width = num_heads * head_dim
        self.qkv = linear(dim, 3 * width, bias=qkv_bias)
        self.q_norm = norm(head_dim) if qk_norm else nn.Identity()
        self.k_norm = norm(head_dim) if qk_norm else nn.Identity()
        self.norm = norm(width) if inner_norm else nn.Identity()
        self.proj = linear(width, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self.relative_grid = relative_grid
        rows = relative_rows(relative_grid) if relative_grid else 0
        self.relative_position_bias_table = (
            nn.Parameter(torch.zeros(rows, num_heads)) if rows else None
        )

    def split(self, qkv: Tensor, turn: Turn | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """What `qkv` gives, (B, N, 3 H D) -> queries, keys and values, (B, H, N, D), to meet."""
        qkv = qkv.unflatten(2, (3, self.num_heads, self.head_dim))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, N, 3, H, D) -> 3 of (B, H, N, D)
        q, k = self.q_norm(q), self.k_norm(k)
        if turn is not None:
            q, k = turned(q, turn, self.rope_half), turned(k, turn, self.rope_half)
        return q, k, v

    def bias(self, shared: Tensor | None = None) -> Tensor | None:
        """What is added to the logits of attention, (H, N, N): its own biases and shared ones."""
        if self.relative_position_bias_table is None:
            return shared
        own = relative_bias(self.relative_position_bias_table, self.relative_grid)
        return own if shared is None else own + shared

    def forward(
        self,
        x: Tensor,
        out: int | None = None,
        turn: Turn | None = None,
        shared: Tensor | None = None,
    ) -> Tensor:
        q, k, v = self.split(self.qkv(x), turn)
        bias = self.bias(shared)
        mask = None if bias is None else bias[:, :out].to(q.dtype)
        dropout = self.attn_drop if self.training else 0.0
        x = F.scaled_dot_product_attention(q[:, :, :out], k, v, attn_mask=mask, dropout_p=dropout)
        x = x.transpose(1, 2).flatten(2)  # (B, H, N, D) -> (B, N, H * D)
        return self.proj_drop(self.proj(self.norm(x)))
