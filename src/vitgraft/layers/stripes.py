"""Attention in stripes, of the CSWin kind: its two directions, and both together as the attention of a graft's level.

B batch, H x W token grid, C channels, N stripes, L tokens in a stripe. Grids are (B, H, W, C).
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn

from vitgraft.errors import GraftError
from vitgraft.layers.attention import attend_qkv, init_linear
from vitgraft.layers.window import window_partition, window_reverse

__all__ = ["CrossShapedAttention", "StripeAttention", "attend_stripes"]


class StripeAttention(nn.Module):
    """Multi-head attention inside stripes of the map, plus LePE.

    Args:
        dim: Channels of the query, the key and the value.
        num_heads: Heads; divides `dim`.
        stripe_size: Width of a vertical stripe, or height of a horizontal one. Not used by "full".
        direction: "vertical" (all rows, `stripe_size` columns), "horizontal" (`stripe_size` rows, all columns) or
            "full" (the whole map is one stripe).
        attn_drop: Dropout rate of the attention weights.
        clip: Whether a stripe is cut to a map narrower than it. Otherwise the map is padded, as in the CSWin authors'
            dense-task code.

    Raises:
        ValueError: An unknown direction, heads that do not divide the channels, or a stripe of no width.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        stripe_size: int = 7,
        direction: str = "vertical",
        attn_drop: float = 0.0,
        clip: bool = False,
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
        self.num_heads = num_heads
        self.stripe_size = stripe_size
        self.direction = direction
        self.clip = clip
        self.attn_drop = nn.Dropout(attn_drop)
        self.get_v = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, device=device, dtype=dtype)

    def extra_repr(self) -> str:
        return f"{self.direction}, stripe_size={self.stripe_size}, num_heads={self.num_heads}"

    def forward(self, qkv: torch.Tensor) -> torch.Tensor:
        """(B, H, W, 3, C), query, key and value of every token, to (B, H, W, C)."""
        _, H, W, _, _ = qkv.shape
        rows = min(self.stripe_size, H) if self.clip else self.stripe_size
        cols = min(self.stripe_size, W) if self.clip else self.stripe_size
        stripe = (rows if self.direction == "horizontal" else H, cols if self.direction == "vertical" else W)
        pad_h, pad_w = ((n + side - 1) // side * side - n for n, side in zip((H, W), stripe, strict=True))
        top, left = pad_h // 2, pad_w // 2
        padded = H + pad_h, W + pad_w
        if padded != (H, W):
            qkv = F.pad(qkv, (0, 0, 0, 0, left, pad_w - left, top, pad_h - top))

        x = window_partition(qkv, stripe)  # (N, L, 3, C)
        # stripes as images in channels_last memory: no copy between the layouts of attention and convolution
        values = x[:, :, 2].unflatten(1, stripe).permute(0, 3, 1, 2)
        lepe = self.get_v(values).permute(0, 2, 3, 1).flatten(1, 2)
        x = attend_qkv(x, self.num_heads, drop=self.attn_drop) + lepe  # (N, L, C)
        x = window_reverse(x, stripe, padded)
        return x if padded == (H, W) else x[:, top : top + H, left : left + W]


def attend_stripes(attns: Iterable[StripeAttention], qkv: torch.Tensor) -> torch.Tensor:
    """Query, key and value (B, H, W, 3C), an equal part of the channels for each direction -> (B, H, W, C)."""
    attns = list(attns)
    qkv = qkv.unflatten(-1, (3, len(attns), qkv.shape[-1] // (3 * len(attns))))
    return torch.cat([attn(qkv[..., i, :]) for i, attn in enumerate(attns)], dim=-1)


class CrossShapedAttention(nn.Module):
    """CSWin's attention on a level of the graft: half of the heads in vertical stripes, half in horizontal ones.

    LePE, a depthwise 3 x 3 convolution of the values inside each stripe, is its encoding of positions. A stripe is cut
    to a grid narrower than it, so on a grid of at most one window both halves attend over the whole grid: this is
    then CSWin's full attention, since heads and LePE's channels do not interact.

    Args:
        dim: Channels C, a multiple of `num_heads`.
        num_heads: Heads, an even number.
        window_size: Height of the horizontal stripes and width of the vertical ones.

    Raises:
        GraftError: `num_heads` is odd.
    """

    def __init__(self, dim: int, num_heads: int, window_size: tuple[int, int], device=None, dtype=None):
        super().__init__()
        if num_heads % 2:
            raise GraftError(
                f"attention='cross_shaped' gives half of the heads to each direction, and num_heads={num_heads} is "
                "odd: use an even num_heads, or attention='window'"
            )
        dd = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        rows, cols = window_size
        self.attns = nn.ModuleList(
            StripeAttention(dim // 2, num_heads // 2, size, direction, clip=True, **dd)
            for direction, size in (("vertical", cols), ("horizontal", rows))
        )
        self.init_weights()

    def init_weights(self) -> None:
        """Linear layers as Swin's, convolutions as PyTorch's."""
        init_linear(self.qkv, self.proj)
        for attn in self.attns:
            attn.get_v.reset_parameters()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, C) -> (B, H, W, C), any H and W."""
        return self.proj(attend_stripes(self.attns, self.qkv(x)))
