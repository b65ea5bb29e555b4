"""Left-right pathway (equation 1): from one level of the graft to the next coarser one.

B batch, H x W token grid, C channels. Grids are (B, H, W, C); the coarser grid is (ceil(H / 2), ceil(W / 2)).
"""

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import nn

from vitgraft.layers.activation import gelu
from vitgraft.layers.attention import WindowCrossAttention
from vitgraft.layers.window import pad_grid

__all__ = ["Downsample", "pool_grid"]


def pool_grid(x: torch.Tensor) -> torch.Tensor:
    """Average over 2 x 2 tokens: (B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), C).

    The last row or column of an odd grid is averaged over the tokens that exist.
    """
    # without a gradient there is nothing to keep, and a compiler decides by itself
    keeps = torch.is_grad_enabled() and x.requires_grad and not torch.compiler.is_compiling()
    return _Pool.apply(x) if keeps and type(x) is torch.Tensor else _pool(x)


def _pool(x: torch.Tensor) -> torch.Tensor:
    # an NHWC grid seen as NCHW is in channels_last order, for which the kernel needs no copy
    x = x.permute(0, 3, 1, 2)
    x = F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
    return x.permute(0, 2, 3, 1)


class _Pool(torch.autograd.Function):
    """`_pool`, of which PyTorch's own keeps the whole input for the gradient and needs no more than its size."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return _pool(x)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: torch.Tensor) -> None:
        ctx.size = inputs[0].shape[1], inputs[0].shape[2]

    @staticmethod
    def jvp(ctx, tangent: torch.Tensor) -> torch.Tensor:
        return _pool(tangent)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:
        H, W = ctx.size
        B, h, w, C = grad.shape
        rows, cols = (grad.new_full((n,), 0.5) for n in (h, w))
        rows[-1], cols[-1] = 1 / (2 - H % 2), 1 / (2 - W % 2)  # the last ones of an odd grid stand alone
        grad = grad * (rows[:, None, None] * cols[:, None])
        return grad[:, :, None, :, None].expand(B, h, 2, w, 2, C).reshape(B, 2 * h, 2 * w, C)[:, :H, :W]


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
        x = gelu(self.norm(x))
        if self.attn is not None:
            return self.attn(pool_grid(x), x)
        if self.proj is None:
            return pool_grid(x)
        x = pad_grid(x, (2, 2))
        B, H, W, C = x.shape
        x = x.reshape(B, H // 2, 2, W // 2, 2, C).transpose(2, 3).reshape(B, H // 2, W // 2, 4 * C)
        return self.proj(x)
