"""Cutting grids into windows and putting them together again.

B batch, H x W token grid, C channels, (h, w) window, N = h * w tokens of a window. Grids are (B, H, W, C).
"""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from vitgraft.layers.derived import derived

__all__ = [
    "cached_by_size",
    "effective_window",
    "into_windows",
    "out_of_windows",
    "pad_grid",
    "relative_position_bias",
    "relative_position_index",
    "shift_mask",
    "window_partition",
    "window_reverse",
]

Size = tuple[int, int]


def effective_window(size: Size, window_size: Size) -> Size:
    """The window that a grid of `size` (H, W) is really cut into: never larger than the grid."""
    return min(size[0], window_size[0]), min(size[1], window_size[1])


def pad_grid(x: torch.Tensor, multiple: Size) -> torch.Tensor:
    """Zero-pads (B, H, W, C) at the bottom and right to multiples of `multiple`; returns x itself where it fits."""
    H, W = x.shape[1], x.shape[2]
    # multiples by construction, so that symbolic shapes (torch.compile) need no proof of it
    bottom = (H + multiple[0] - 1) // multiple[0] * multiple[0] - H
    right = (W + multiple[1] - 1) // multiple[1] * multiple[1] - W
    return F.pad(x, (0, 0, 0, right, 0, bottom)) if bottom or right else x


def window_partition(x: torch.Tensor, window: Size) -> torch.Tensor:
    """(B, H, W, ...) -> (B * num_windows, h * w, ...), windows and the tokens in them in row-major order.

    H and W must be multiples of the window. A grid that is one window is only viewed, not copied.
    """
    B, H, W, *channels = x.shape
    h, w = window
    if (h, w) == (H, W):
        return x.reshape(B, H * W, *channels)
    x = x.reshape(B, H // h, h, W // w, w, *channels)
    return x.transpose(2, 3).reshape(-1, h * w, *channels)


def window_reverse(windows: torch.Tensor, window: Size, size: Size) -> torch.Tensor:
    """(B * num_windows, h * w, C) -> (B, H, W, C) for `size` (H, W): the inverse of `window_partition`."""
    h, w = window
    H, W = size
    C = windows.shape[-1]
    if (h, w) == (H, W):
        return windows.reshape(-1, H, W, C)
    x = windows.reshape(-1, H // h, W // w, h, w, C)
    return x.transpose(2, 3).reshape(-1, H, W, C)


def into_windows(x: torch.Tensor, window: Size, shift: Size = (0, 0)) -> torch.Tensor:
    """Shifts a grid cyclically up and left, then partitions it: (B, H, W, C) -> (B * num_windows, h * w, C)."""
    return window_partition(torch.roll(x, (-shift[0], -shift[1]), (1, 2)) if any(shift) else x, window)


def out_of_windows(windows: torch.Tensor, window: Size, shift: Size, size: Size) -> torch.Tensor:
    """The inverse of `into_windows`: (B * num_windows, h * w, C) -> (B, H, W, C) for `size` (H, W)."""
    x = window_reverse(windows, window, size)
    return torch.roll(x, shift, (1, 2)) if any(shift) else x


def cached_by_size(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Keeps the last results of `function(device, *key)`; called as `(x, *key)` with any tensor x of that device.

    For torch.compile the result is a constant of the graph. Where a graph is exported nothing is kept: one that closes
    over a cached tensor cannot be saved or moved. Buffers would be lost where a library makes models on the meta device
    and loads their weights afterwards.
    """

    # one entry a stage and image size; the largest, a mask for 800 x 1333 pixels, takes 13 MB
    @lru_cache(maxsize=16)
    def cached(*key: Any) -> torch.Tensor:
        # a tensor made in inference mode could never be used in training again
        with torch.inference_mode(False), torch.no_grad():
            return function(*key)

    @torch.compiler.assume_constant_result
    def constant(*key: Any) -> torch.Tensor:
        return cached(*key)

    @wraps(function)
    def get(x: torch.Tensor, *key: Any) -> torch.Tensor:
        if torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting():
            return constant(x.device, *key)
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing() or type(x) not in (torch.Tensor, nn.Parameter)
        return (function if traced else cached)(x.device, *key)

    return get


def relative_position_index(window_size: Size, device: torch.device | None = None) -> torch.Tensor:
    """Rows of the relative position bias table for each pair of tokens of a window: (h, w, h, w), int64.

    Swin's order: row (dy + h - 1) * (2w - 1) + (dx + w - 1) for query minus key. The slice [:a, :b, :a, :b] is
    the index of a smaller window on the same table, because only the offsets count.
    """
    h, w = window_size
    ys = torch.arange(h, device=device)
    xs = torch.arange(w, device=device)
    dy = ys.view(h, 1, 1, 1) - ys.view(1, 1, h, 1) + h - 1
    dx = xs.view(1, w, 1, 1) - xs.view(1, 1, 1, w) + w - 1
    return dy * (2 * w - 1) + dx


@cached_by_size
def _bias_rows(device: torch.device, table_window: Size, window: Size) -> torch.Tensor:
    h, w = window
    return relative_position_index(table_window, device)[:h, :w, :h, :w].reshape(-1)


def relative_position_bias(table: torch.Tensor, table_window: Size, window: Size) -> torch.Tensor:
    """Bias (1, heads, N, N) of a window from Swin's table ((2M - 1)(2M' - 1), heads).

    Args:
        table: The learned table.
        table_window: Window (M, M') that it is for.
        window: Window (h, w), at most `table_window`.
    """
    return derived(_gather_bias, table, table_window, window)


def _gather_bias(table: torch.Tensor, table_window: Size, window: Size) -> torch.Tensor:
    rows = _bias_rows(table, table_window, window)
    N = window[0] * window[1]
    # of four dimensions and contiguous: the fused kernel takes no other mask on a CPU
    return table[rows].view(N, N, -1).permute(2, 0, 1).contiguous()[None]


@cached_by_size
def _shift_mask(device: torch.device, window: Size, shift: Size, windows: Size, dtype: torch.dtype) -> torch.Tensor:
    regions = []
    for number, side, shifted in zip(windows, window, shift, strict=True):
        # only the last window of an axis holds tokens that the shift has made neighbors: its last `shifted` ones came
        # from the other end of the map
        last = torch.arange(number, device=device) == number - 1
        wrapped = torch.arange(side, device=device) >= side - shifted
        regions.append((last[:, None] & wrapped).long())  # (number, side)
    rows, cols = regions
    regions = rows[:, None, :, None] * 2 + cols[None, :, None, :]
    regions = regions.reshape(windows[0] * windows[1], -1)  # (num_windows, N)
    apart = regions[:, None, :] != regions[:, :, None]
    return apart.to(dtype) * -100.0  # the authors' value; an infinite one would change nothing that can be seen


def shift_mask(x: torch.Tensor, window: Size, shift: Size, windows: Size) -> torch.Tensor:
    """Mask that keeps tokens apart which only the cyclic shift has brought into one window.

    Args:
        x: Any tensor of the wanted device and dtype.
        window: Window (h, w).
        shift: Shift (down, right); 0 in a direction leaves that direction alone.
        windows: Number of windows down and across the padded map.

    Returns:
        (num_windows, N, N), 0 or -100, windows in row-major order.
    """
    return _shift_mask(x, window, shift, windows, x.dtype)
