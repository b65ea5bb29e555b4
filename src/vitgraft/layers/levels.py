"""Sizes of a graft's levels: how many there are, how large they are, by what factor neighbors differ.

All sizes are (height, width) in tokens, levels are listed finest first and without the block's own grid. The option
`level_sizes` is "halve" (the paper: half of the next finer size, rounded up), a whole factor between neighbors (also
rounded up), or the sizes themselves, each an integer for the longer side or (height, width).
"""

import itertools
import sys
from typing import Literal

from vitgraft.errors import GraftError

__all__ = [
    "LevelSizes",
    "actual_sizes",
    "level_factors",
    "max_levels",
    "nominal_sizes",
    "plan_levels",
    "step_factor",
    "whole_factor",
]

Size = tuple[int, int]
LevelSizes = Literal["halve"] | int | tuple[int | Size, ...]


def step_factor(level_sizes: LevelSizes) -> int | None:
    """Factor between each level and the next finer one; None where the sizes are given."""
    if level_sizes == "halve":
        return 2
    return level_sizes if isinstance(level_sizes, int) else None


def whole_factor(fine: Size, coarse: Size) -> int | None:
    """The whole number by which `fine` is `coarse`, the same in both directions; None where there is none."""
    factor = fine[0] // coarse[0]
    return factor if fine == (factor * coarse[0], factor * coarse[1]) else None


def level_factors(feat_size: Size, sizes: list[Size], step: int | None) -> list[tuple[int | None, int | None]]:
    """For each level the whole factor to the next finer one and that to the block's grid, None where there is none.

    Args:
        feat_size: The block's grid.
        sizes: Sizes of the levels.
        step: What `step_factor` gives.
    """
    if step is not None:  # rounding up hides it from the sizes
        return [(step, step ** (b + 1)) for b in range(len(sizes))]
    return [
        (whole_factor(finer, size), whole_factor(feat_size, size))
        for finer, size in zip([feat_size, *sizes], sizes, strict=False)
    ]


def _ceil_div(size: Size, factor: int) -> Size:
    return -(-size[0] // factor), -(-size[1] // factor)


def _as_pair(entry: int | Size, feat_size: Size) -> Size:
    """A given size as (height, width): of an integer, the longer side, the other one follows the grid."""
    if not isinstance(entry, int):
        return tuple(entry)
    H, W = feat_size
    other = -(-entry * min(H, W) // max(H, W))
    return (entry, other) if H >= W else (other, entry)


def _given_sizes(feat_size: Size, level_sizes: tuple[int | Size, ...]) -> list[Size]:
    """The given sizes that are smaller than the grid `feat_size`, as (height, width)."""
    H, W = feat_size
    sizes = [_as_pair(entry, feat_size) for entry in level_sizes]
    for (h, w), (lower_h, lower_w) in itertools.pairwise(sizes):
        if lower_h > h or lower_w > w or (lower_h, lower_w) == (h, w):
            raise GraftError(
                f"level_sizes={level_sizes!r} has sizes that do not fall: {h} x {w}, then {lower_h} x {lower_w}. Give "
                "the finest level first, and each level fewer tokens than the one before"
            )
    smaller = []
    for h, w in sizes:
        if h <= H and w <= W and (h, w) != (H, W):
            smaller.append((h, w))
        elif h < H or w < W:
            raise GraftError(
                f"level_sizes={level_sizes!r}: {h} x {w} is not smaller than the {H} x {W} grid in both directions. "
                "Give the longer side alone, as one number, and the other one follows"
            )
    return smaller


def max_levels(feat_size: Size, level_sizes: LevelSizes = "halve") -> int:
    """How many levels a grid of `feat_size` can have: until one token is left, or all given sizes that are smaller.

    Raises:
        GraftError: The given sizes do not fall, or are not smaller in both directions.
    """
    factor = step_factor(level_sizes)
    if factor == 1:
        return sys.maxsize
    return len(plan_levels(feat_size, 1, "auto", level_sizes))


def nominal_sizes(feat_size: Size, levels: int, level_sizes: LevelSizes = "halve") -> list[Size]:
    """Sizes of exactly `levels` levels over a grid of `feat_size`.

    Raises:
        GraftError: Fewer sizes than that are given and smaller than the grid.
    """
    factor = step_factor(level_sizes)
    if factor is None:
        sizes = _given_sizes(feat_size, level_sizes)
        if levels > len(sizes):
            H, W = feat_size
            raise GraftError(
                f"level_sizes={level_sizes!r} has {len(sizes)} sizes below the {H} x {W} grid, and levels={levels} "
                f"needs {levels}: give more sizes, or levels={len(sizes)}"
            )
        return sizes[:levels]
    sizes = []
    for _ in range(levels):
        feat_size = _ceil_div(feat_size, factor)
        sizes.append(feat_size)
    return sizes


def plan_levels(
    feat_size: Size, window_size: int, levels: int | Literal["auto"] = "auto", level_sizes: LevelSizes = "halve"
) -> list[Size]:
    """Sizes of the levels that a block gets.

    Args:
        feat_size: Grid (height, width) of the block.
        window_size: Side of the attention window.
        levels: "auto": until one window covers the level, which none may be needed for; with a factor of 1, which
            changes no size, one level; of given sizes, all that are smaller than the grid. An integer: at most that
            many of these.
        level_sizes: "halve", a factor, or given sizes.

    Returns:
        Sizes (height, width), finest first.

    Raises:
        GraftError: The given sizes do not fall, or are not smaller in both directions.
    """
    factor = step_factor(level_sizes)
    if factor is None:
        sizes = _given_sizes(feat_size, level_sizes)
    elif factor == 1:
        sizes = [feat_size]
    else:
        sizes, size = [], feat_size
        while max(size) > window_size:
            size = _ceil_div(size, factor)
            sizes.append(size)
    return sizes if levels == "auto" else sizes[:levels]


def actual_sizes(grid: Size, feat_size: Size, nominal: list[Size], factor: int | None) -> list[Size]:
    """Sizes of the levels over a grid of another size than the nominal `feat_size`.

    With a factor each is the next finer one divided by it, rounded up. Given sizes grow with the grid, rounded up: two
    of them that differ by a whole factor nominally then still do, since ceil(ceil(a / b) / c) = ceil(a / (b c)).
    """
    if factor is not None:
        return nominal_sizes(grid, len(nominal), factor)
    return [(-(-grid[0] * h // feat_size[0]), -(-grid[1] * w // feat_size[1])) for h, w in nominal]
