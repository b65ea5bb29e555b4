"""The layers of CSWin Transformer; what is decided here, and where the authors' code differs, is in `cswin.py`."""

import torch
from timm.layers import DropPath, Mlp
from torch import nn

from vitgraft.layers.stripes import StripeAttention, attend_stripes
from vitgraft.models._cpu import GELU

# B batch, H x W token grid, C channels. Grids are (B, H, W, C).


class CSWinBlock(nn.Module):
    """A transformer block with cross-shaped windows on a grid.

    Args:
        dim: Channels.
        num_heads: Heads of the block; with two branches each has half of them.
        stripe_size: Width of the vertical stripes and height of the horizontal ones.
        full: One branch over the whole map instead of two of stripes.
        mlp_ratio: Width of the MLP's hidden layer as a multiple of `dim`.
        proj_drop: Dropout rate after the projection of the attention and inside the MLP.
        drop_path: Rate of stochastic depth.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        stripe_size: int = 7,
        full: bool = False,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
        act_layer: type[nn.Module] = GELU,
        norm_layer: type[nn.Module] = nn.LayerNorm,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        directions = ("full",) if full else ("vertical", "horizontal")
        branches = len(directions)
        if dim % branches or num_heads % branches:
            raise ValueError(f"dim={dim} and num_heads={num_heads} must both be even: half go to each kind of stripe")
        self.dim = dim
        self.num_heads = num_heads
        self.stripe_size = stripe_size
        # The order of the children is that of the authors' state dict.
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        self.norm1 = norm_layer(dim, **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        self.attns = nn.ModuleList(
            StripeAttention(dim // branches, num_heads // branches, stripe_size, direction, attn_drop, **dd)
            for direction in directions
        )
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=act_layer, drop=proj_drop, **dd)
        self.norm2 = norm_layer(dim, **dd)

    def _attn(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        return self.proj_drop(self.proj(attend_stripes(self.attns, self.qkv(x))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        x = x + self.drop_path(self._attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class MergeBlock(nn.Module):
    """3x3 convolution of stride 2, then norm: (B, H, W, dim) to (B, ceil(H / 2), ceil(W / 2), out_dim)."""

    def __init__(self, dim: int, out_dim: int, norm_layer: type[nn.Module] = nn.LayerNorm, device=None, dtype=None):
        super().__init__()
        self.conv = nn.Conv2d(dim, out_dim, 3, stride=2, padding=1, device=device, dtype=dtype)
        self.norm = norm_layer(out_dim, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
