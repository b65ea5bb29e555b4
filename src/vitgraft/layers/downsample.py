"""Left-right pathway (equation 1): from one level of the graft to the next coarser one.

B batch, H x W token grid, C channels. Grids are (B, H, W, C); the coarser grid is (ceil(H / 2), ceil(W / 2)).
"""

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import nn

from vitgraft.layers.attention import WindowCrossAttention
from vitgraft.layers.window import pad_grid

__all__ = ["Downsample", "pool_grid"]


def pool_grid(x: torch.Tensor) -> torch.Tensor:
    """Average over 2 x 2 tokens: (B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), C).

    The last row or column of an odd grid is averaged over the tokens that exist.
    """
    # an NHWC grid seen as NCHW is in channels_last order, for which the kernel needs no copy
    x = x.permute(0, 3, 1, 2)
    x = F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
    return x.permute(0, 2, 3, 1)


class Downsample(nn.Module):
    """X(b+1) = rho(GELU(LN(X(b)))), equation 1.

    Args:
        dim: Channels C.
        mode: "avg_pool", the paper's choice: rho averages 2 x 2 tokens, nothing learned. "linear": 2 x 2 tokens are
            concatenated and projected from 4C to C. "cross_attention": the averaged tokens ask the finer ones
            (table 5).
        num_heads: Heads, for "cross_attention" only.
        window_size: Window (height, width) on the coarser grid, for "cross_attention" only.
    """

    def __init__(
        self,
        dim: int,
        mode: str = "avg_pool",
        num_heads: int = 1,
        window_size: tuple[int, int] = (7, 7),
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.norm = nn.LayerNorm(dim, **dd)
        self.proj = nn.Linear(4 * dim, dim, **dd) if mode == "linear" else None
        self.attn = None
        if mode == "cross_attention":
            self.attn = WindowCrossAttention(dim, num_heads, window_size, out_proj=True, **dd)
        self.init_weights()

    def init_weights(self) -> None:
        """LayerNorm at one and zero; the projections as Swin's linear layers."""
        self.norm.reset_parameters()
        if self.proj is not None:
            trunc_normal_(self.proj.weight, std=0.02)
            nn.init.zeros_(self.proj.bias)
        if self.attn is not None:
            self.attn.init_weights()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), C)"""
        x = F.gelu(self.norm(x))
        if self.attn is not None:
            return self.attn(pool_grid(x), x)
        if self.proj is None:
            return pool_grid(x)
        x = pad_grid(x, (2, 2))
        B, H, W, C = x.shape
        x = x.reshape(B, H // 2, 2, W // 2, 2, C).transpose(2, 3).reshape(B, H // 2, W // 2, 4 * C)
        return self.proj(x)
