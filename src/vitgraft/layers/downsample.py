"""Left-right pathway (equation 1): from one level of the graft to the next coarser one.

B batch, H x W token grid, C channels, f whole factor between the sizes of two levels, in the paper 2. Grids are
(B, H, W, C); the coarser grid is (ceil(H / f), ceil(W / f)).
"""

import torch
import torch.nn.functional as F
from torch import nn

from vitgraft.layers.attention import WindowCrossAttention, init_linear
from vitgraft.layers.norm_gelu import norm_gelu, pool_grid
from vitgraft.layers.window import pad_grid

__all__ = ["Downsample"]


def resize_grid(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Adaptive average pooling, for sizes that differ by no whole factor: (B, H, W, C) -> (B, *size, C)."""
    return F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), size).permute(0, 2, 3, 1)


class Downsample(nn.Module):
    """X(b+1) = rho(GELU(LN(X(b)))), equation 1.

    Args:
        dim: Channels C.
        mode: "avg_pool", the paper's choice: rho averages f x f tokens, nothing learned. "linear": f x f tokens are
            concatenated and projected from f * f * C to C. "cross_attention": the averaged tokens attend to the finer
            ones (table 5). "cross_attention_x0": they attend to the block's own grid X0, after LayerNorm and GELU.
        num_heads: Heads, for cross attention only.
        window_size: Window (height, width) on the coarser grid, for cross attention only.
        factor: Whole factor f; None for grids that differ by no whole one, between which the average is an adaptive
            one. "linear" and "cross_attention" need a factor.
        x0_factor: Whole factor between X0 and the coarser grid, for "cross_attention_x0" only; None takes `factor`.
    """

    def __init__(
        self,
        dim: int,
        mode: str = "avg_pool",
        num_heads: int = 1,
        window_size: tuple[int, int] = (7, 7),
        factor: int | None = 2,
        x0_factor: int | None = None,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.factor = factor
        self.norm = nn.LayerNorm(dim, **dd)
        self.proj = nn.Linear(factor * factor * dim, dim, **dd) if mode == "linear" else None
        self.x0_norm = nn.LayerNorm(dim, **dd) if mode == "cross_attention_x0" else None
        self.attn = None
        if mode.startswith("cross_attention"):
            span = factor if self.x0_norm is None or x0_factor is None else x0_factor
            self.attn = WindowCrossAttention(dim, num_heads, window_size, out_proj=True, factor=span, **dd)
        self.init_weights()

    def init_weights(self) -> None:
        """LayerNorm at one and zero; the projections as Swin's linear layers."""
        self.norm.reset_parameters()
        if self.x0_norm is not None:
            self.x0_norm.reset_parameters()
        init_linear(self.proj)
        if self.attn is not None:
            self.attn.init_weights()

    def forward(
        self, x: torch.Tensor, x0: torch.Tensor | None = None, size: tuple[int, int] | None = None
    ) -> torch.Tensor:
        """Next finer level (B, H, W, C) -> (B, ceil(H / f), ceil(W / f), C), or of the `size` without a factor.

        Args:
            x: Next finer level.
            x0: The block's own grid (B, H0, W0, C), which "cross_attention_x0" needs.
            size: Size of the coarser grid, which a `factor` of None needs.
        """
        if self.factor is not None and self.proj is None and self.attn is None:
            return norm_gelu(self.norm, x, self.factor)
        x = norm_gelu(self.norm, x)
        if self.proj is not None:
            return self.proj(self._concatenate(x))
        pooled = resize_grid(x, size) if self.factor is None else pool_grid(x, self.factor)
        if self.attn is None:
            return pooled
        return self.attn(pooled, x if self.x0_norm is None else norm_gelu(self.x0_norm, x0))

    def _concatenate(self, x: torch.Tensor) -> torch.Tensor:
        """f x f tokens as one: (B, H, W, C) -> (B, ceil(H / f), ceil(W / f), f * f * C)."""
        f = self.factor
        x = pad_grid(x, (f, f))
        B, H, W, C = x.shape
        x = x.reshape(B, H // f, f, W // f, f, C).transpose(2, 3)
        return x.reshape(B, H // f, W // f, f * f * C)
