"""Cutting grids into windows and putting them together again.

B batch, H x W token grid, C channels, (h, w) window. Grids are (B, H, W, C).
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import nn

__all__ = [
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


def effective_window(size: tuple[int, int], window_size: tuple[int, int]) -> tuple[int, int]:
    """The window that a grid of `size` (H, W) is really cut into: never larger than the grid."""
    return min(size[0], window_size[0]), min(size[1], window_size[1])


def pad_grid(x: torch.Tensor, multiple: tuple[int, int]) -> torch.Tensor:
    """Zero-pads (B, H, W, C) at the bottom and right to multiples of `multiple`; returns x itself where it fits."""
    H, W = x.shape[1], x.shape[2]
    # multiples by construction, so that symbolic shapes (torch.compile) need no proof of it
    bottom = (H + multiple[0] - 1) // multiple[0] * multiple[0] - H
    right = (W + multiple[1] - 1) // multiple[1] * multiple[1] - W
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


@lru_cache(maxsize=64)
def _cached_bias_rows(*key) -> torch.Tensor:
    # A tensor made in inference mode could never be used in training again.
    with torch.inference_mode(False), torch.no_grad():
        return _bias_rows(*key)


def _bias_rows(table_window: tuple[int, int], window: tuple[int, int], device: torch.device) -> torch.Tensor:
    h, w = window
    return relative_position_index(table_window, device)[:h, :w, :h, :w].reshape(-1)


def relative_position_bias(table: torch.Tensor, table_window: tuple[int, int], window: tuple[int, int]) -> torch.Tensor:
    """Bias (1, heads, N, N) of a window of h * w = N tokens from Swin's table ((2M - 1)(2M' - 1), heads).

    The rows are computed when they are asked for, and kept by size outside of graphs: a buffer of them would be lost
    where a library makes models on the meta device and loads their weights afterwards.

    Args:
        table: The learned table.
        table_window: Window (M, M') that it is for.
        window: Window (h, w), at most `table_window`.
    """
    args = (table_window, window, table.device)
    plain = type(table) in (torch.Tensor, nn.Parameter) and not torch.compiler.is_compiling()
    rows = _cached_bias_rows(*args) if plain else _bias_rows(*args)
    h, w = window
    # of four dimensions and contiguous: the fused kernel takes no other mask on a CPU
    return table[rows].view(h * w, h * w, -1).permute(2, 0, 1).contiguous()[None]


class _Permute(torch.autograd.Function):
    """x[:, index] for a permutation of dimension 1, whose gradient is the inverse permutation and not a scatter."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor, index: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
        return x.index_select(1, index)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: torch.Tensor) -> None:
        ctx.permutation = inputs[1:]

    @staticmethod
    def jvp(ctx, tangent: torch.Tensor, *_: None) -> torch.Tensor:
        return tangent.index_select(1, ctx.permutation[0])

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        index, inverse = ctx.permutation
        return _Permute.apply(grad.contiguous(), inverse, index), None, None


# a model at one image size asks for one shifted order per stage
@lru_cache(maxsize=64)
def _window_order(
    size: tuple[int, int], window: tuple[int, int], shift: tuple[int, int], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Row-major positions of the shifted grid's tokens in window order, and the inverse permutation."""
    # a tensor made in inference mode could never be used in training again
    with torch.inference_mode(False), torch.no_grad():
        grid = torch.arange(size[0] * size[1], device=device).view(1, *size, 1)
        grid = torch.roll(grid, (-shift[0], -shift[1]), (1, 2))
        order = window_partition(grid, window).flatten()
        return order, torch.argsort(order)


def _permutes(x: torch.Tensor, shift: tuple[int, int]) -> bool:
    # In eager mode on a CPU a roll costs several times one gather. A compiler fuses the roll, and a graph should not
    # close over a cached tensor.
    eager = type(x) is torch.Tensor and not torch.compiler.is_compiling() and not torch.jit.is_tracing()
    return any(shift) and x.device.type == "cpu" and eager


def into_windows(x: torch.Tensor, window: tuple[int, int], shift: tuple[int, int] = (0, 0)) -> torch.Tensor:
    """Shifts a grid cyclically up and left, then partitions it: (B, H, W, C) -> (B * num_windows, h * w, C)."""
    if not any(shift):
        return window_partition(x, window)
    if _permutes(x, shift):
        B, H, W, C = x.shape
        order, inverse = _window_order((H, W), window, shift, x.device)
        return _Permute.apply(x.reshape(B, H * W, C), order, inverse).view(-1, window[0] * window[1], C)
    return window_partition(torch.roll(x, (-shift[0], -shift[1]), (1, 2)), window)


def out_of_windows(
    windows: torch.Tensor, window: tuple[int, int], shift: tuple[int, int], size: tuple[int, int]
) -> torch.Tensor:
    """The inverse of `into_windows`: (B * num_windows, h * w, C) -> (B, H, W, C) for `size` (H, W)."""
    if not any(shift):
        return window_reverse(windows, window, size)
    if _permutes(windows, shift):
        C = windows.shape[-1]
        order, inverse = _window_order(size, window, shift, windows.device)
        return _Permute.apply(windows.reshape(-1, size[0] * size[1], C), inverse, order).view(-1, *size, C)
    return torch.roll(window_reverse(windows, window, size), shift, (1, 2))


def _shift_mask(
    windows_h: int,
    windows_w: int,
    window_size: tuple[int, int],
    shift_size: tuple[int, int],
    device: torch.device,
    dtype: torch.dtype,
) -> torch.Tensor:
    regions = []
    for windows, window, shift in zip((windows_h, windows_w), window_size, shift_size, strict=True):
        # Only the last window of an axis holds tokens that the shift has made neighbours: its last `shift` ones came
        # from the other end of the map.
        last = torch.arange(windows, device=device) == windows - 1
        wrapped = torch.arange(window, device=device) >= window - shift
        regions.append((last[:, None] & wrapped).long())  # (windows, window)
    rows, cols = regions
    regions = rows[:, None, :, None] * 2 + cols[None, :, None, :]  # (windows_h, windows_w, M, M)
    regions = regions.reshape(windows_h * windows_w, -1)
    apart = regions[:, None, :] != regions[:, :, None]
    return apart.to(dtype) * -100.0  # the authors' value; an infinite one would change nothing that can be seen


# 16 masks are those of 4 image sizes; the largest of an 800 x 1333 image takes 13 MB in float32.
@lru_cache(maxsize=16)
def _cached_shift_mask(*key) -> torch.Tensor:
    # A tensor made in inference mode could never be used in training again.
    with torch.inference_mode(False), torch.no_grad():
        return _shift_mask(*key)


def shift_mask(
    x: torch.Tensor, window_size: tuple[int, int], shift_size: tuple[int, int], windows: tuple[int, int]
) -> torch.Tensor:
    """Mask that keeps tokens apart which only the cyclic shift has brought into one window.

    Kept by size for plain tensors. Under torch.compile and torch.export it is part of the graph (a few comparisons of
    indices), since a graph that closes over a cached tensor could not be saved or moved.

    Args:
        x: Any tensor of the wanted device and dtype.
        window_size: Window (height, width) M.
        shift_size: Shift (down, right); 0 in a direction leaves that direction alone.
        windows: Number of windows down and across the padded map.

    Returns:
        (N, L, L), 0 or -100, for the N windows in row-major order, of L = M * M tokens each.
    """
    args = (*windows, window_size, shift_size, x.device, x.dtype)
    if torch.compiler.is_compiling() or type(x) is not torch.Tensor:
        return _shift_mask(*args)
    return _cached_shift_mask(*args)
