"""Triton kernels for what a grafted block does between its linear layers: without a backward, so for inference alone.

    python -m benchmarks.kernels    # on a GPU: are the results right, and how long does it take?
    TRITON_INTERPRET=1 python -m benchmarks.kernels --device cpu    # in Triton's interpreter: are they right?

Each stands beside its plain version, which calls the functions of `vitgraft.layers`. No model uses them: they stay here
until a profile on a GPU (`python -m benchmarks.gpu`) shows that they pay.

B batch, H x W token grid, C channels, (h, w) coarser grid, f factor between the two. Grids are (B, H, W, C).
"""

import argparse
import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import nn

from vitgraft.layers import pool_grid
from vitgraft.layers.attention import attend_qkv
from vitgraft.layers.upsample import window_bilinear_upsample
from vitgraft.layers.window import into_windows, out_of_windows, shift_mask
from vitgraft.machine import record
from vitgraft.terminal import write_json

__all__ = ["KERNELS", "check", "norm_and_pool", "time_kernels", "upsample_add_norm", "window_attention"]

Size = tuple[int, int]
INTERPRETED = triton.knobs.runtime.interpret
"""Whether kernels run in Triton's interpreter, whose matrix products take no bfloat16: they are computed in float32."""


@triton.jit
def _norm_and_pool(
    x, normed, pooled, weight1, bias1, weight2, bias2, H, W, h, w, cells, eps1, eps2,
    C: tl.constexpr, BLOCK_C: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A program computes TILE cells of the coarser grid, from the up to four tokens of each."""
    cell = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = cell < cells
    c = tl.arange(0, BLOCK_C)
    real = c < C
    image = (cell // (h * w)).to(tl.int64)
    row = cell % (h * w) // w
    col = cell % w
    weight1 = tl.load(weight1 + c, mask=real, other=0.0).to(tl.float32)[None, :]
    weight2 = tl.load(weight2 + c, mask=real, other=0.0).to(tl.float32)[None, :]
    bias1 = tl.load(bias1 + c, mask=real, other=0.0).to(tl.float32)[None, :]
    bias2 = tl.load(bias2 + c, mask=real, other=0.0).to(tl.float32)[None, :]
    total = tl.zeros([TILE, BLOCK_C], tl.float32)
    count = tl.zeros([TILE], tl.float32)
    for token in tl.static_range(4):
        i = 2 * row + token // 2
        j = 2 * col + token % 2
        exists = inside & (i < H) & (j < W)
        mask = exists[:, None] & real[None, :]
        place = ((image * H + i) * W + j)[:, None] * C + c[None, :]
        value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
        # one mean and variance for both norms
        value = tl.where(real[None, :], value - (tl.sum(value, 1) / C)[:, None], 0.0)
        variance = tl.sum(value * value, 1) / C
        first = value * tl.rsqrt(variance + eps1)[:, None] * weight1 + bias1
        tl.store(normed + place, first.to(normed.dtype.element_ty), mask=mask)
        second = value * tl.rsqrt(variance + eps2)[:, None] * weight2 + bias2
        second = 0.5 * second * (1 + tl.erf(second * 0.7071067811865476))
        total += tl.where(exists[:, None], second, 0.0)
        count += exists.to(tl.float32)
    total /= tl.maximum(count, 1.0)[:, None]
    place = cell.to(tl.int64)[:, None] * C + c[None, :]
    tl.store(pooled + place, total.to(pooled.dtype.element_ty), mask=inside[:, None] & real[None, :])


def norm_and_pool(
    x: torch.Tensor, norm1: nn.LayerNorm, norm: nn.LayerNorm, tile: int = 4, warps: int = 4
) -> tuple[torch.Tensor, torch.Tensor]:
    """norm1(X0) and pool(GELU(LN(X0))) (equation 1, factor 2), of which plain PyTorch reads X0 twice.

    Args:
        x: X0, (B, H, W, C).
        norm1: The block's.
        norm: The graft's.
        tile: Cells of the coarser grid of a program.
        warps: Of a program.

    Returns:
        (B, H, W, C), (B, ceil(H / 2), ceil(W / 2), C)
    """
    B, H, W, C = x.shape
    h, w = -(-H // 2), -(-W // 2)
    x = x.contiguous()
    normed, pooled = torch.empty_like(x), x.new_empty(B, h, w, C)
    cells = B * h * w
    _norm_and_pool[(triton.cdiv(cells, tile),)](
        x, normed, pooled, norm1.weight, norm1.bias, norm.weight, norm.bias, H, W, h, w, cells, norm1.eps, norm.eps,
        C=C, BLOCK_C=triton.next_power_of_2(C), TILE=tile, num_warps=warps,
    )  # fmt: skip
    return normed, pooled


def plain_norm_and_pool(x: torch.Tensor, norm1: nn.LayerNorm, norm: nn.LayerNorm) -> tuple[torch.Tensor, torch.Tensor]:
    """`norm_and_pool` by PyTorch."""
    return norm1(x), pool_grid(F.gelu(norm(x)))


@triton.jit
def _upsample_add_norm(
    z, logits, x0, attended, summed, normed, weight, bias, H, W, h, w, down, across, eps,
    C: tl.constexpr, BLOCK_C: tl.constexpr, WH: tl.constexpr, WW: tl.constexpr, FACTOR: tl.constexpr,
    BLOCK_N: tl.constexpr, TILE: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """A program computes TILE fine tokens of one window, from all of its WH x WW coarse ones."""
    window = tl.program_id(0)
    image = (window // (down * across)).to(tl.int64)
    top = window % (down * across) // across * WH
    left = window % across * WW
    # a window that the border cuts off ends there, and so does its interpolation
    height = tl.minimum(h - top, WH)
    width = tl.minimum(w - left, WW)
    c = tl.arange(0, BLOCK_C)
    real = c < C
    n = tl.arange(0, BLOCK_N)
    y = n // WW
    x = n % WW
    mask = ((y < height) & (x < width))[:, None] & real[None, :]
    place = (top + y) * w + left + x
    gate = tl.load(logits + place[:, None] * C + c[None, :], mask=mask, other=0.0).to(tl.float32)
    place = image * h * w + place
    value = tl.load(z + place[:, None] * C + c[None, :], mask=mask, other=0.0)
    kind = tl.float32 if INTERPRETED else value.dtype
    value = (value.to(tl.float32) * tl.sigmoid(gate)).to(value.dtype)

    fine = tl.program_id(1) * TILE + tl.arange(0, TILE)
    i = fine // (FACTOR * WW)
    j = fine % (FACTOR * WW)
    row = tl.minimum(tl.maximum((i + 0.5) / FACTOR - 0.5, 0.0), height - 1.0)
    col = tl.minimum(tl.maximum((j + 0.5) / FACTOR - 0.5, 0.0), width - 1.0)
    rows = tl.maximum(1 - tl.abs(row[:, None] - y[None, :]), 0.0)
    cols = tl.maximum(1 - tl.abs(col[:, None] - x[None, :]), 0.0)
    # for a factor of 2 the weights are sixteenths, which bfloat16 and TF32 have
    up = tl.dot((rows * cols).to(kind), value.to(kind), input_precision="tf32x3")

    inside = (i < FACTOR * WH) & (top * FACTOR + i < H) & (left * FACTOR + j < W)
    mask = inside[:, None] & real[None, :]
    place = ((image * H + top * FACTOR + i) * W + left * FACTOR + j)[:, None] * C + c[None, :]
    up += tl.load(attended + place, mask=mask, other=0.0).to(tl.float32)
    up += tl.load(x0 + place, mask=mask, other=0.0).to(tl.float32)
    rounded = up.to(summed.dtype.element_ty)
    tl.store(summed + place, rounded, mask=mask)
    up = tl.where(mask, rounded.to(tl.float32), 0.0)
    up = tl.where(mask, up - (tl.sum(up, 1) / C)[:, None], 0.0)
    up *= tl.rsqrt(tl.sum(up * up, 1) / C + eps)[:, None]
    up *= tl.load(weight + c, mask=real, other=0.0).to(tl.float32)[None, :]
    up += tl.load(bias + c, mask=real, other=0.0).to(tl.float32)[None, :]
    tl.store(normed + place, up.to(normed.dtype.element_ty), mask=mask)


def upsample_add_norm(
    z: torch.Tensor,
    logits: torch.Tensor,
    x0: torch.Tensor,
    attended: torch.Tensor,
    norm2: nn.LayerNorm,
    window: Size,
    factor: int = 2,
    tile: int = 32,
    warps: int = 4,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Y0 = X0 + (attention + W-Bilinear(z * E_aa)) and norm2(Y0): equations 2 and 4 after alpha's linear layer.

    Args:
        z: What alpha returns, (B, h, w, C) with at most 512 channels.
        logits: E_aa before its sigmoid, (h, w, C).
        x0: X0, (B, H, W, C) with H <= f h and W <= f w.
        attended: The attention's result, (B, H, W, C).
        norm2: The block's.
        window: Of the level, of at most 64 tokens.
        factor: f.
        tile: Fine tokens of a program.
        warps: Of a program.

    Returns:
        Y0 and norm2(Y0), both (B, H, W, C).
    """
    B, H, W, C = x0.shape
    h, w = z.shape[1:3]
    WH, WW = min(window[0], h), min(window[1], w)
    down, across = -(-h // WH), -(-w // WW)
    z, logits, x0, attended = (tensor.contiguous() for tensor in (z, logits, x0, attended))
    summed, normed = torch.empty_like(x0), torch.empty_like(x0)
    grid = (B * down * across, triton.cdiv(factor**2 * WH * WW, tile))
    _upsample_add_norm[grid](
        z, logits, x0, attended, summed, normed, norm2.weight, norm2.bias, H, W, h, w, down, across, norm2.eps,
        C=C, BLOCK_C=triton.next_power_of_2(max(C, 16)), WH=WH, WW=WW, FACTOR=factor,
        BLOCK_N=triton.next_power_of_2(max(WH * WW, 16)), TILE=tile, INTERPRETED=INTERPRETED, num_warps=warps,
    )  # fmt: skip
    return summed, normed


def plain_upsample_add_norm(
    z: torch.Tensor,
    logits: torch.Tensor,
    x0: torch.Tensor,
    attended: torch.Tensor,
    norm2: nn.LayerNorm,
    window: Size,
    factor: int = 2,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`upsample_add_norm` by PyTorch."""
    up = window_bilinear_upsample(z * logits.sigmoid().to(z.dtype), window, factor)
    summed = x0 + (attended + up[:, : x0.shape[1], : x0.shape[2]])
    return summed, norm2(summed)


@triton.jit
def _window_attention(
    qkv, bias, out, H, W, scale,
    HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, WH: tl.constexpr, WW: tl.constexpr,
    SHIFT_H: tl.constexpr, SHIFT_W: tl.constexpr, BLOCK_N: tl.constexpr, HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """A program computes one head of one window."""
    head = tl.program_id(1)
    across = W // WW
    down = H // WH
    window = tl.program_id(0)
    image = (window // (down * across)).to(tl.int64)
    row = window % (down * across) // across
    col = window % across
    C = HEADS * D
    N = WH * WW
    n = tl.arange(0, BLOCK_N)
    y = n // WW
    x = n % WW
    exists = n < N
    token = (image * H + (row * WH + y + SHIFT_H) % H) * W + (col * WW + x + SHIFT_W) % W
    d = tl.arange(0, BLOCK_D)
    mask = exists[:, None] & (d < D)[None, :]
    place = qkv + token[:, None] * (3 * C) + head * D + d[None, :]
    q = tl.load(place, mask=mask, other=0.0)
    k = tl.load(place + C, mask=mask, other=0.0)
    v = tl.load(place + 2 * C, mask=mask, other=0.0)
    kind = tl.float32 if INTERPRETED else q.dtype
    weights = tl.dot(q.to(kind), tl.trans(k.to(kind)), input_precision=PRECISION) * scale
    if HAS_BIAS:
        both = exists[:, None] & exists[None, :]
        place = (head * N + n[:, None]) * N + n[None, :]
        weights += tl.load(bias + place, mask=both, other=0.0).to(tl.float32)
    if SHIFT_H + SHIFT_W > 0:
        # tokens that the shift has brought from the other end of the map
        below = ((row == down - 1) & (y >= WH - SHIFT_H)).to(tl.int32)
        beside = ((col == across - 1) & (x >= WW - SHIFT_W)).to(tl.int32)
        region = 2 * below + beside
        weights += tl.where(region[:, None] != region[None, :], -100.0, 0.0)
    weights = tl.where(exists[None, :], weights, float("-inf"))
    weights = tl.exp(weights - tl.max(weights, 1)[:, None])
    weights = weights / tl.sum(weights, 1)[:, None]
    found = tl.dot(weights.to(v.dtype).to(kind), v.to(kind), input_precision=PRECISION)
    place = out + token[:, None] * C + head * D + d[None, :]
    tl.store(place, found.to(out.dtype.element_ty), mask=mask)


def window_attention(
    qkv: torch.Tensor,
    bias: torch.Tensor | None,
    num_heads: int,
    window: Size,
    shift: Size = (0, 0),
    warps: int = 4,
) -> torch.Tensor:
    """Attention in shifted windows between its two linear layers, which then need no copies into windows and back.

    Args:
        qkv: Queries, keys and values of a grid of whole windows, (B, H, W, 3C), head-major.
        bias: Of relative positions, (1, heads, N, N), or None.
        num_heads: Heads.
        window: (height, width), of N = height * width <= 64 tokens.
        shift: Down and right; tokens that it brings together from the two ends of the map are kept apart.
        warps: Of a program.

    Returns:
        (B, H, W, C)
    """
    B, H, W, channels = qkv.shape
    D = channels // 3 // num_heads
    N = window[0] * window[1]
    qkv = qkv.contiguous()
    out = qkv.new_empty(B, H, W, channels // 3)
    precision = "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    _window_attention[(B * (H // window[0]) * (W // window[1]), num_heads)](
        qkv, qkv if bias is None else bias.contiguous(), out, H, W, D**-0.5,
        HEADS=num_heads, D=D, BLOCK_D=triton.next_power_of_2(max(D, 16)), WH=window[0], WW=window[1],
        SHIFT_H=shift[0], SHIFT_W=shift[1], BLOCK_N=triton.next_power_of_2(max(N, 16)), HAS_BIAS=bias is not None,
        PRECISION=precision, INTERPRETED=INTERPRETED, num_warps=warps,
    )  # fmt: skip
    return out


def plain_window_attention(
    qkv: torch.Tensor, bias: torch.Tensor | None, num_heads: int, window: Size, shift: Size = (0, 0)
) -> torch.Tensor:
    """`window_attention` by PyTorch."""
    H, W = qkv.shape[1:3]
    if any(shift):
        mask = shift_mask(qkv, window, shift, (H // window[0], W // window[1]))[:, None]
        bias = mask if bias is None else bias + mask
    out = attend_qkv(into_windows(qkv, window, shift), num_heads, bias)
    return out_of_windows(out, window, shift, (H, W))


Case = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments of a kernel and of its plain version."""


def _norm(channels: int, like: torch.Tensor, eps: float = 1e-5) -> nn.LayerNorm:
    norm = nn.LayerNorm(channels, eps=eps, device=like.device, dtype=like.dtype)
    with torch.no_grad():
        nn.init.normal_(norm.weight, 1, 0.2)
        nn.init.normal_(norm.bias, 0, 0.2)
    return norm


def _pool_case(like: torch.Tensor, batch: int, grid: Size, channels: int) -> Case:
    x = torch.randn(batch, *grid, channels).to(like) * 2 + 0.5
    return (x, _norm(channels, like, 1e-6), _norm(channels, like)), {}


def _upsample_case(
    like: torch.Tensor, batch: int, grid: Size, channels: int, coarse: Size, window: Size, factor: int = 2
) -> Case:
    x0, attended = (torch.randn(batch, *grid, channels).to(like) for _ in range(2))
    z, logits = torch.randn(batch, *coarse, channels).to(like), torch.randn(*coarse, channels).to(like)
    return (z, logits, x0, attended, _norm(channels, like)), {"window": window, "factor": factor}


def _attention_case(
    like: torch.Tensor,
    batch: int,
    grid: Size,
    channels: int,
    num_heads: int,
    window: Size,
    shift: Size = (0, 0),
    bias: bool = True,
) -> Case:
    N = window[0] * window[1]
    qkv = torch.randn(batch, *grid, 3 * channels).to(like)
    values = torch.randn(1, num_heads, N, N).to(like) if bias else None
    return (qkv, values), {"num_heads": num_heads, "window": window, "shift": shift}


@dataclass(frozen=True)
class Kernel:
    """A kernel and what it is compared with.

    Args:
        fused: By Triton.
        plain: By PyTorch.
        case: Makes arguments from a tensor of the wanted device and dtype, and the options of a shape.
        shapes: Odd ones, at which results are checked.
        model_shapes: Those of the models at 224 x 224, without the batch.
        variants: Options of `fused` that are timed.
    """

    fused: Callable[..., Any]
    plain: Callable[..., Any]
    case: Callable[..., Case]
    shapes: Sequence[Mapping[str, Any]]
    model_shapes: Mapping[str, Mapping[str, Any]]
    variants: Sequence[Mapping[str, int]]


def _variants(tiles: Sequence[int], warps: Sequence[int]) -> list[dict[str, int]]:
    return [{"tile": tile, "warps": number} for tile in tiles for number in warps]


KERNELS = {
    "norm_and_pool": Kernel(
        norm_and_pool,
        plain_norm_and_pool,
        _pool_case,
        (
            {"batch": 2, "grid": (14, 14), "channels": 192},
            {"batch": 2, "grid": (7, 5), "channels": 24},
            {"batch": 1, "grid": (8, 9), "channels": 96},
            {"batch": 3, "grid": (1, 1), "channels": 40},
        ),
        {
            "DeiT-T": {"grid": (14, 14), "channels": 192},
            "Swin-T, stage 1": {"grid": (56, 56), "channels": 96},
            "Swin-T, stage 3": {"grid": (14, 14), "channels": 384},
        },
        _variants((1, 4, 8), (2, 4)),
    ),
    "upsample_add_norm": Kernel(
        upsample_add_norm,
        plain_upsample_add_norm,
        _upsample_case,
        (
            {"batch": 2, "grid": (14, 14), "channels": 192, "coarse": (7, 7), "window": (7, 7)},
            {"batch": 1, "grid": (20, 17), "channels": 96, "coarse": (10, 9), "window": (7, 7)},
            {"batch": 2, "grid": (9, 12), "channels": 40, "coarse": (5, 6), "window": (4, 5)},
            {"batch": 1, "grid": (7, 7), "channels": 24, "coarse": (4, 4), "window": (8, 8)},
            {"batch": 1, "grid": (12, 11), "channels": 24, "coarse": (4, 4), "window": (3, 3), "factor": 3},
        ),
        {
            "DeiT-T": {"grid": (14, 14), "channels": 192, "coarse": (7, 7), "window": (7, 7)},
            "Swin-T, stage 1": {"grid": (56, 56), "channels": 96, "coarse": (28, 28), "window": (7, 7)},
            "Swin-T, stage 3": {"grid": (14, 14), "channels": 384, "coarse": (7, 7), "window": (7, 7)},
        },
        _variants((16, 32, 64), (4, 8)),
    ),
    "window_attention": Kernel(
        window_attention,
        plain_window_attention,
        _attention_case,
        (
            {"batch": 2, "grid": (14, 14), "channels": 96, "num_heads": 3, "window": (7, 7), "shift": (3, 3)},
            {"batch": 2, "grid": (14, 14), "channels": 192, "num_heads": 3, "window": (7, 7), "bias": False},
            {"batch": 1, "grid": (8, 15), "channels": 24, "num_heads": 2, "window": (4, 5), "shift": (2, 2)},
            {"batch": 1, "grid": (16, 8), "channels": 32, "num_heads": 1, "window": (8, 8), "shift": (4, 0)},
            {"batch": 3, "grid": (3, 3), "channels": 40, "num_heads": 2, "window": (3, 3)},
        ),
        {
            "DeiT-T": {"grid": (14, 14), "channels": 192, "num_heads": 3, "window": (7, 7), "bias": False},
            "Swin-T, stage 1": {
                "grid": (56, 56), "channels": 96, "num_heads": 3, "window": (7, 7), "shift": (3, 3),
            },
            "Swin-T, stage 3": {
                "grid": (14, 14), "channels": 384, "num_heads": 12, "window": (7, 7), "shift": (3, 3),
            },
        },
        ({"warps": 1}, {"warps": 2}, {"warps": 4}),
    ),
}  # fmt: skip
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""Of the norm of the difference, as a multiple of the result's norm."""


@contextlib.contextmanager
def _poisoned() -> Iterator[None]:
    """New tensors hold NaN, so that what a kernel leaves out is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def _tuple(values: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (values,) if isinstance(values, torch.Tensor) else values


def _in_float32(value: Any) -> Any:
    if isinstance(value, nn.LayerNorm):
        copy = nn.LayerNorm(value.normalized_shape, eps=value.eps, device=value.weight.device)
        copy.load_state_dict(value.state_dict())
        return copy
    return value.float() if isinstance(value, torch.Tensor) else value


@torch.no_grad()
def error_of(kernel: Kernel, case: Case) -> float:
    """The largest relative error of a result, against the plain version in float32 without TF32."""
    arguments, options = case
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with _poisoned():
            found = _tuple(kernel.fused(*arguments, **options))
        expected = _tuple(kernel.plain(*map(_in_float32, arguments), **options))
    finally:
        torch.set_float32_matmul_precision(precision)
    errors = [(a.float() - b).norm() / b.norm() for a, b in zip(found, expected, strict=True)]
    return torch.stack(errors).max().item()


def check(device: torch.device, names: Iterable[str] = tuple(KERNELS)) -> list[dict[str, Any]]:
    """Kernels beside their plain versions, at odd shapes and in float32 and bfloat16.

    Args:
        device: Of a GPU; a CPU in Triton's interpreter.
        names: Of the kernels.

    Returns:
        JSON values: "kernel", "dtype", "shape", "error", "right".
    """
    torch.manual_seed(0)
    rows = []
    for name in names:
        kernel = KERNELS[name]
        for dtype, tolerance in TOLERANCES.items():
            for shape in kernel.shapes:
                error = error_of(kernel, kernel.case(torch.empty(0, device=device, dtype=dtype), **shape))
                right = error <= tolerance  # not of NaN
                rows.append({"kernel": name, "dtype": _name(dtype), "shape": shape, "error": error, "right": right})
    return rows


@torch.no_grad()
def time_kernels(names: Iterable[str] = tuple(KERNELS), batches: Sequence[int] = (64,)) -> list[dict[str, Any]]:
    """Milliseconds of kernels, of their plain versions and of those compiled, at the models' shapes on a GPU.

    "bytes" are those of all arguments and results: each has to be read or written at least once.
    """
    from triton.testing import do_bench

    torch.manual_seed(0)
    rows = []
    for name in names:
        kernel = KERNELS[name]
        for model, shape in kernel.model_shapes.items():
            for dtype, tolerance in TOLERANCES.items():
                for batch in batches:
                    case = kernel.case(torch.empty(0, device="cuda", dtype=dtype), batch=batch, **shape)
                    torch.compiler.reset()  # or the ninth shape runs uncompiled
                    compiled = torch.compile(kernel.plain, dynamic=False)
                    error = error_of(kernel, case)
                    rows.append({"kernel": name, "model": model, "dtype": _name(dtype), "batch_size": batch})
                    rows[-1] |= {"error": error, "right": error <= tolerance}
                    if rows[-1]["right"]:
                        arguments, options = case
                        tensors = [*_tensors(arguments), *_tuple(kernel.plain(*arguments, **options))]

                        def milliseconds(function: Callable, arguments=arguments, **options: Any) -> float:
                            return do_bench(lambda: function(*arguments, **options), 10, 30, return_mode="median")

                        rows[-1] |= {
                            "bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors),
                            "plain": milliseconds(kernel.plain, **options),
                            "compiled": milliseconds(compiled, **options),
                            "triton": [
                                {**variant, "milliseconds": milliseconds(kernel.fused, **options, **variant)}
                                for variant in kernel.variants
                            ],
                        }
                    print_timing(rows[-1])
    return rows


def _tensors(arguments: Sequence[Any]) -> Iterator[torch.Tensor]:
    for value in arguments:
        yield from value.parameters() if isinstance(value, nn.Module) else [] if value is None else [value]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def fastest(row: Mapping[str, Any]) -> float:
    """Milliseconds of the fastest variant in a row of `time_kernels`."""
    return min(variant["milliseconds"] for variant in row["triton"])


def print_timing(row: Mapping[str, Any]) -> None:
    """Prints a row of `time_kernels`."""
    head = f"  {row['kernel']}, {row['model']}, {row['dtype']}, batch {row['batch_size']}: error {row['error']:.1e}"
    if not row["right"]:
        print(f"{head}: WRONG, not timed", flush=True)
        return
    best = fastest(row)
    print(
        f"{head}; plain {row['plain']:.3f} ms, compiled {row['compiled']:.3f}, Triton {best:.3f} "
        f"({row['bytes'] / best / 1e6:,.0f} GB/s)",
        flush=True,
    )


def print_check(row: Mapping[str, Any]) -> None:
    """Prints a row of `check`."""
    shape = ", ".join(f"{name} {value}" for name, value in row["shape"].items())
    print(
        f"  {'' if row['right'] else 'WRONG: '}{row['kernel']} {row['dtype']} {row['error']:.1e}: {shape}", flush=True
    )


def measure(device: str, names: Iterable[str] = tuple(KERNELS)) -> dict[str, Any]:
    """Checks kernels and, on a GPU, times them: "checks" and "timings"."""
    checks = check(torch.device(device), names)
    for row in checks:
        print_check(row)
    return {"triton": triton.__version__, "checks": checks, "timings": time_kernels(names) if device == "cuda" else []}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: 0 if all results are right, 1 if not, 2 if an argument is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: in Triton's interpreter")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write every number there too")
    args = parser.parse_args(argv)
    if args.device == "cpu" and not INTERPRETED:
        parser.error("--device cpu: set TRITON_INTERPRET=1, since Triton has no compiler for it")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no GPU here; use TRITON_INTERPRET=1 and --device cpu")
    found = measure(args.device)
    if args.output:
        write_json(args.output, record("kernels", args.device, **found))
    return int(not all(row["right"] for row in [*found["checks"], *found["timings"]]))


if __name__ == "__main__":
    raise SystemExit(main())
