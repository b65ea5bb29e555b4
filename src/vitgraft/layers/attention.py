"""L-MSA: attention inside windows, of the Swin kind, and its cross form between two levels.

B batch, H x W token grid, C channels, M window side, h heads, d channels of a head. Grids are (B, H, W, C).
"""

import math

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_, use_fused_attn
from torch import nn

from vitgraft.layers.window import (
    effective_window,
    into_windows,
    out_of_windows,
    pad_grid,
    relative_position_bias,
    shift_mask,
    window_partition,
    window_reverse,
)

__all__ = ["WindowAttention", "WindowCrossAttention", "attend", "attend_qkv", "init_linear"]


def init_linear(*linears: nn.Linear | None) -> None:
    """Swin's initial values: truncated normal of standard deviation 0.02, biases zero."""
    for linear in linears:
        if linear is not None:
            trunc_normal_(linear.weight, std=0.02)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)


def _fused(x: torch.Tensor) -> bool:
    """Whether `scaled_dot_product_attention` is the faster way.

    On a CPU its kernel wins while no gradient is wanted, and loses where a bias needs one (it then takes a slow path).
    A traced graph is the same in both modes, which torch.jit.trace checks.
    """
    return use_fused_attn() and (x.device.type != "cpu" or not torch.is_grad_enabled() or torch.jit.is_tracing())


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None = None,
    drop: nn.Dropout | None = None,
) -> torch.Tensor:
    """softmax(q k^T / sqrt(d) + bias) v.

    Args:
        q: (B, h, N, d).
        k: (B, h, L, d).
        v: (B, h, L, d).
        bias: (n, h or 1, N or 1, L) with n a divisor of B: it is repeated along the batch.
        drop: Dropout of the attention weights.

    Returns:
        (B, h, N, d)
    """
    B, h, N, d = q.shape
    L = k.shape[2]  # not -1, which has no value in an empty batch
    if bias is not None and bias.shape[0] > 1:
        bias = bias.expand(B // bias.shape[0], *bias.shape).flatten(0, 1)
    drops = drop is not None and drop.training and drop.p > 0
    if _fused(q) and not drops:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias.to(q.dtype))
    # the scale inside the product saves a pass over q; products of three dimensions save copies
    q, k, v = q.reshape(B * h, N, d), k.reshape(B * h, L, d), v.reshape(B * h, L, d)
    weights = torch.baddbmm(q.new_zeros(1, 1, 1), q, k.transpose(1, 2), beta=0, alpha=d**-0.5)
    if bias is not None:
        weights = weights.view(B, h, N, L).add_(bias)
    weights = weights.softmax(dim=-1).view(B * h, N, L)
    if drops:
        weights = drop(weights)
    return torch.bmm(weights.to(v.dtype), v).view(B, h, N, d)


def attend_qkv(
    qkv: torch.Tensor, num_heads: int, bias: torch.Tensor | None = None, drop: nn.Dropout | None = None
) -> torch.Tensor:
    """`attend` on the result of a joint projection: (B, N, 3C) or (B, N, 3, C), head-major -> (B, N, C)."""
    B, N, *channels = qkv.shape
    C = math.prod(channels) // 3
    qkv = qkv.view(B, N, 3, num_heads, C // num_heads).permute(2, 0, 3, 1, 4)  # (3, B, h, N, d)
    if not _fused(qkv):
        qkv = qkv.contiguous()  # one copy instead of three
    return attend(*qkv.unbind(0), bias, drop).transpose(1, 2).reshape(B, N, C)


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows: Swin's L-MSA (section 2.2, equation 3), by default without the shift.

    A grid under the window is one window of its own size; other grids are zero-padded right and bottom to a
    multiple of the window, and the padded tokens take part, as in the Swin authors' dense-task code.

    Args:
        dim: Channels C, a multiple of `num_heads`.
        num_heads: Heads.
        window_size: Window (height, width) in tokens.
        qkv_bias: Whether the query-key-value projection has a bias.
        rel_pos: Whether a learned relative position bias is added to the attention weights.
        shift: Whether the windows are shifted by half a window down and right, in the directions in which the grid has
            several. It is padded before the shift and masked after it, as in the Swin authors' dense-task code.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: tuple[int, int],
        qkv_bias: bool = True,
        rel_pos: bool = True,
        shift: bool = False,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.window_size = window_size
        self.shift = shift
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        if rel_pos:
            rows = (2 * window_size[0] - 1) * (2 * window_size[1] - 1)
            self.relative_position_bias_table = nn.Parameter(torch.zeros(rows, num_heads, **dd))
        else:
            self.relative_position_bias_table = None
        self.init_weights()

    def init_weights(self) -> None:
        """Swin's initial values, of the table too."""
        init_linear(self.qkv, self.proj)
        if self.relative_position_bias_table is not None:
            trunc_normal_(self.relative_position_bias_table, std=0.02)

    def bias(self, window: tuple[int, int]) -> torch.Tensor | None:
        """Relative position bias (1, heads, N, N) of a window of h * w = N tokens, at most `window_size`."""
        if self.relative_position_bias_table is None:
            return None
        return relative_position_bias(self.relative_position_bias_table, self.window_size, window)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, C) -> (B, H, W, C), any H and W."""
        _, H, W, _ = x.shape
        window = effective_window((H, W), self.window_size)
        x = pad_grid(x, window)
        padded = x.shape[1], x.shape[2]
        bias, shift = self.bias(window), (0, 0)
        if self.shift:
            windows = padded[0] // window[0], padded[1] // window[1]
            shift = tuple(side // 2 if n > 1 else 0 for side, n in zip(window, windows, strict=True))
        if any(shift):
            mask = shift_mask(x, window, shift, windows)[:, None]  # (num_windows, 1, N, N)
            bias = mask if bias is None else bias + mask
        x = into_windows(x, window, shift)  # (B * num_windows, N, C)
        x = self.proj(attend_qkv(self.qkv(x), self.num_heads, bias))
        x = out_of_windows(x, window, shift, padded)
        return x if padded == (H, W) else x[:, :H, :W]


class WindowCrossAttention(nn.Module):
    """Attention of one level's windows to the windows of another level that cover the same region.

    The paper's table 5 tries it for down- and upsampling. The two levels differ by a whole factor f, in the paper 2: a
    window of M x M tokens of the coarse level lies over fM x fM of the fine one. Both grids are zero-padded to whole
    windows, and padded keys are masked. Only queries are projected; keys and values are the context itself: the reading
    that gives table 5's parameters and cost.

    Args:
        dim: Channels C of both levels, a multiple of `num_heads`.
        num_heads: Heads.
        window_size: Window (height, width) on the coarse level.
        out_proj: Whether the result is projected too.
        factor: Whole factor f between the sizes of the two levels.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: tuple[int, int],
        out_proj: bool = False,
        factor: int = 2,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.window_size = window_size
        self.factor = factor
        self.q = nn.Linear(dim, dim, **dd)
        self.proj = nn.Linear(dim, dim, **dd) if out_proj else None
        self.init_weights()

    def init_weights(self) -> None:
        """Swin's initial values."""
        init_linear(self.q, self.proj)

    def _heads(self, windows: torch.Tensor) -> torch.Tensor:
        """(B, N, C) -> (B, heads, N, d)"""
        B, N, C = windows.shape
        return windows.view(B, N, self.num_heads, C // self.num_heads).transpose(1, 2)

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Queries (B, H, W, C), context (B, H', W', C), finer or coarser by the factor -> (B, H, W, C)."""
        H, W = x.shape[1], x.shape[2]
        h, w = context.shape[1], context.shape[2]
        window = effective_window((min(H, h), min(W, w)), self.window_size)  # of the coarse level
        fine_window = self.factor * window[0], self.factor * window[1]
        x_window, context_window = (fine_window, window) if h < H or w < W else (window, fine_window)
        x, keys = pad_grid(x, x_window), pad_grid(context, context_window)
        mask = None
        if keys is not context:
            inside = window_partition(pad_grid(context.new_ones(1, h, w, 1), context_window), context_window)
            mask = torch.zeros_like(inside).masked_fill(inside == 0, torch.finfo(inside.dtype).min)
            mask = mask[:, None].transpose(2, 3)  # (num_windows, 1, 1, L)
        padded = x.shape[1], x.shape[2]
        q = self._heads(self.q(window_partition(x, x_window)))
        kv = self._heads(window_partition(keys, context_window))
        out = attend(q, kv, kv, mask).transpose(1, 2).flatten(2)
        if self.proj is not None:
            out = self.proj(out)
        return window_reverse(out, x_window, padded)[:, :H, :W]
