"""The method, and nothing else: what the paper describes, on (B, H, W, C) grids."""

from vitgraft.layers.attention import WindowAttention, WindowCrossAttention
from vitgraft.layers.downsample import Downsample, pool_grid
from vitgraft.layers.graft import GrafT, level_sizes
from vitgraft.layers.upsample import Upsample, bilinear_upsample, window_bilinear_upsample
from vitgraft.layers.window import window_partition, window_reverse

__all__ = [
    "Downsample",
    "GrafT",
    "Upsample",
    "WindowAttention",
    "WindowCrossAttention",
    "bilinear_upsample",
    "level_sizes",
    "pool_grid",
    "window_bilinear_upsample",
    "window_partition",
    "window_reverse",
]
