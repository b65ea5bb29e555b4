"""The layers of CSWin Transformer; `cswin.py` says what is decided here and where the authors' code differs."""

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, use_fused_attn
from torch import nn

from vitgraft.layers.activation import GELU

# B batch, H x W token grid, C channels, N stripes, L tokens in a stripe. Grids are (B, H, W, C).


class ChannelsLast(nn.Module):
    """(B, C, H, W) to (B, H, W, C)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 2, 3, 1)


class StripeAttention(nn.Module):
    """Multi-head attention inside stripes of the map, plus LePE.

    Args:
        dim: Channels of the query, the key and the value.
        num_heads: Heads; divides `dim`.
        stripe_size: Width of a vertical stripe, or height of a horizontal one. Not used by "full".
        direction: "vertical" (all rows, `stripe_size` columns), "horizontal" (`stripe_size` rows, all columns) or
            "full" (the whole map is one stripe).
        attn_drop: Dropout rate of the attention weights.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        stripe_size: int = 7,
        direction: str = "vertical",
        attn_drop: float = 0.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        if direction not in ("vertical", "horizontal", "full"):
            raise ValueError(f"direction={direction!r}: use 'vertical', 'horizontal' or 'full'")
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide dim={dim} of a {direction} stripe attention")
        if stripe_size < 1:
            raise ValueError(f"stripe_size={stripe_size}: at least 1 is needed")
        self.dim = dim
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = self.head_dim**-0.5
        self.stripe_size = stripe_size
        self.direction = direction
        self.fused_attn = use_fused_attn()
        self.attn_drop = nn.Dropout(attn_drop)
        self.get_v = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, device=device, dtype=dtype)

    def extra_repr(self) -> str:
        return f"{self.direction}, stripe_size={self.stripe_size}, num_heads={self.num_heads}"

    def forward(self, qkv: torch.Tensor) -> torch.Tensor:
        """(B, H, W, 3, C), query, key and value of every token, to (B, H, W, C)."""
        B, H, W, _, C = qkv.shape
        n = self.stripe_size
        stripes_h = (H + n - 1) // n if self.direction == "horizontal" else 1
        stripes_w = (W + n - 1) // n if self.direction == "vertical" else 1
        rows = n if self.direction == "horizontal" else H
        cols = n if self.direction == "vertical" else W
        pad_h, pad_w = stripes_h * rows - H, stripes_w * cols - W
        top, left = pad_h // 2, pad_w // 2
        padded = pad_h > 0 or pad_w > 0
        if padded:
            qkv = F.pad(qkv, (0, 0, 0, 0, left, pad_w - left, top, pad_h - top))

        # One copy for vertical stripes; a view for the others, whose tokens lie next to each other already.
        x = qkv.reshape(B, stripes_h, rows, stripes_w, cols, 3, C).transpose(2, 3)
        x = x.reshape(B * stripes_h * stripes_w, rows * cols, 3, self.num_heads, self.head_dim)
        q, k, v = x.transpose(1, 3).unbind(2)  # (N, heads, L, head_dim) each

        # Stripes as images in channels_last memory: no copy between the layouts of attention and convolution.
        images = x[:, :, 2].reshape(-1, rows, cols, C).permute(0, 3, 1, 2)
        lepe = self.get_v(images).permute(0, 2, 3, 1)  # (N, rows, cols, C)
        x = self._attend(q, k, v).transpose(1, 2).reshape(lepe.shape) + lepe

        x = x.reshape(B, stripes_h, stripes_w, rows, cols, C).transpose(2, 3)
        x = x.reshape(B, stripes_h * rows, stripes_w * cols, C)
        return x[:, top : top + H, left : left + W] if padded else x

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if self.fused_attn:
            dropout_p = self.attn_drop.p if self.training else 0.0
            return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p)
        attn = (q * self.scale) @ k.transpose(-2, -1)
        return self.attn_drop(attn.softmax(dim=-1)) @ v


class CSWinBlock(nn.Module):
    """A transformer block with cross-shaped windows on a grid.

    Args:
        dim: Channels.
        num_heads: Heads of the block; with two branches each has half of them.
        stripe_size: See StripeAttention.
        full: One branch over the whole map instead of two of stripes.
        feat_size: Size of the map at the nominal image size, for the record only: every size works.
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
        feat_size: tuple[int, int] | None = None,
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
        self.feat_size = feat_size
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
        branches = len(self.attns)
        qkv = self.qkv(x).unflatten(-1, (3, branches, self.dim // branches))
        x = torch.cat([attn(qkv[..., i, :]) for i, attn in enumerate(self.attns)], dim=-1)
        return self.proj_drop(self.proj(x))

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
