"""The method, and nothing else: what the paper describes, on (B, H, W, C) grids."""

from vitgraft.layers.attention import WindowAttention, WindowCrossAttention
from vitgraft.layers.downsample import Downsample
from vitgraft.layers.graft import GrafT, max_levels, plan_levels
from vitgraft.layers.norm_gelu import norm_gelu, pool_grid
from vitgraft.layers.stripes import CrossShapedAttention, StripeAttention
from vitgraft.layers.upsample import Upsample, bilinear_upsample, window_bilinear_upsample
from vitgraft.layers.window import window_partition, window_reverse

__all__ = [
    "CrossShapedAttention",
    "Downsample",
    "GrafT",
    "StripeAttention",
    "Upsample",
    "WindowAttention",
    "WindowCrossAttention",
    "bilinear_upsample",
    "max_levels",
    "norm_gelu",
    "plan_levels",
    "pool_grid",
    "window_bilinear_upsample",
    "window_partition",
    "window_reverse",
]
