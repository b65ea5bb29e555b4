"""Cutting grids into windows and putting them together again.

B batch, H x W token grid, C channels, (h, w) window. Grids are (B, H, W, C).
"""

import torch
import torch.nn.functional as F

__all__ = ["effective_window", "pad_grid", "relative_position_index", "window_partition", "window_reverse"]


def effective_window(size: tuple[int, int], window_size: tuple[int, int]) -> tuple[int, int]:
    """The window that a grid of `size` (H, W) is really cut into: never larger than the grid."""
    return min(size[0], window_size[0]), min(size[1], window_size[1])


def pad_grid(x: torch.Tensor, multiple: tuple[int, int]) -> torch.Tensor:
    """Zero-pads (B, H, W, C) at the bottom and right to multiples of `multiple`; returns x itself where it fits."""
    bottom = -x.shape[1] % multiple[0]
    right = -x.shape[2] % multiple[1]
    return F.pad(x, (0, 0, 0, right, 0, bottom)) if bottom or right else x


def window_partition(x: torch.Tensor, window: tuple[int, int]) -> torch.Tensor:
    """(B, H, W, C) -> (B * num_windows, h * w, C), windows and the tokens in them in row-major order.

    H and W must be multiples of the window. A grid that is one window is only viewed, not copied.
    """
    B, H, W, C = x.shape
    h, w = window
    if (h, w) == (H, W):
        return x.reshape(B, H * W, C)
    x = x.reshape(B, H // h, h, W // w, w, C)
    return x.transpose(2, 3).reshape(-1, h * w, C)


def window_reverse(windows: torch.Tensor, window: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
    """(B * num_windows, h * w, C) -> (B, H, W, C) for `size` (H, W): the inverse of `window_partition`."""
    h, w = window
    H, W = size
    C = windows.shape[-1]
    if (h, w) == (H, W):
        return windows.reshape(-1, H, W, C)
    x = windows.reshape(-1, H // h, W // w, h, w, C)
    return x.transpose(2, 3).reshape(-1, H, W, C)


def relative_position_index(window_size: tuple[int, int], device: torch.device | None = None) -> torch.Tensor:
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
