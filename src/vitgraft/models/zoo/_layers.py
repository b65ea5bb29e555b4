"""Layers that several systems of the zoo have in common."""

import torch
from timm.layers import DropPath, Mlp
from torch import nn

from vitgraft.models._cpu import GELU

# B batch, N tokens, C channels, h heads, d channels of a head.

NORM_EPS = 1e-6


class Attention(nn.Module):
    """Base of the attentions: heads and dropouts. A subclass adds its projections, the last of them `proj`.

    Args:
        dim: Channels C, a multiple of `num_heads`.
        num_heads: Heads.
        attn_drop: Dropout rate of the attention weights.
        proj_drop: Dropout rate after the last projection.
    """

    def __init__(self, dim: int, num_heads: int, attn_drop: float = 0.0, proj_drop: float = 0.0):
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide dim={dim}")
        self.num_heads = num_heads
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj_drop = nn.Dropout(proj_drop)

    def _heads(self, x: torch.Tensor, parts: int = 1) -> tuple[torch.Tensor, ...]:
        """(B, N, parts * C) to `parts` times (B, h, N, d)."""
        B, N, C = x.shape
        return x.view(B, N, parts, self.num_heads, C // parts // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)


class Block(nn.Module):
    """A pre-norm transformer block: the attention, then the MLP, each behind a LayerNorm and in a residual sum.

    Args:
        attn: Attention layer; further arguments of the block are passed to it.
        dim: Channels C.
        mlp_ratio: Width of the MLP's hidden layer as a multiple of `dim`.
        proj_drop: Dropout rate inside the MLP.
        drop_path: Rate of stochastic depth.
    """

    attention_norms: tuple[str, ...] = ("norm1",)

    def __init__(
        self,
        attn: nn.Module,
        dim: int,
        mlp_ratio: float = 4.0,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        for name in self.attention_norms:
            self.add_module(name, nn.LayerNorm(dim, eps=NORM_EPS, **dd))
        self.attn = attn
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=GELU, drop=proj_drop, **dd)

    def forward(self, x: torch.Tensor, *args) -> torch.Tensor:
        """(B, N, C) to (B, N, C)."""
        x = x + self.drop_path(self.attn(self.norm1(x), *args))
        return x + self.drop_path(self.mlp(self.norm2(x)))
