"""GrafT, the module that is grafted onto a block of a vision transformer (section 2 of the paper).

    X0 ---------------- backbone block: Y0 = X0 + [MSA(LN(X0)) + up(Z1)] ---> FFN
     |                                                            ^
    down (eq. 1)                                                 up (eq. 2)
     v                                                            |
    X1 --- L-MSA ---------------------------------------------> + Z1      (eq. 3)
     |                                                            ^
    down                                                         up
     v                                                            |
    X2 --- L-MSA (window = whole grid: global) ----------------> Z2

B batch, H x W token grid, C channels, b level (0 is the backbone's own grid). Grids are (B, H, W, C).

Differences from the paper, which leaves these open:
- the embedding of E_aa starts at zero, so that the gate is one half everywhere;
- interpolation uses align_corners=False; odd grids are pooled to the ceiling (the last row averages what exists);
- on grids other than the one it was built for, E_aa is resized, and the coarsest level attends in windows if one
  window no longer covers it (the number of levels is part of the model, as in the paper's dense-task models);
- cross attention (table 5) stays inside the windows of the coarser level, so that cost remains linear.
"""

import torch
from timm.layers import trunc_normal_
from torch import nn

from vitgraft.layers.activation import GELU, gelu
from vitgraft.layers.attention import WindowAttention, WindowCrossAttention
from vitgraft.layers.downsample import Downsample, pool_grid
from vitgraft.layers.upsample import Upsample

__all__ = ["GrafT", "LeftLevel", "Level", "level_sizes"]


def level_sizes(feat_size: tuple[int, int], levels: int) -> list[tuple[int, int]]:
    """Grid sizes (height, width) of levels 1 to `levels` over a grid of `feat_size`; halved, rounded up."""
    sizes = []
    H, W = feat_size
    for _ in range(levels):
        H, W = -(-H // 2), -(-W // 2)
        sizes.append((H, W))
    return sizes


class Level(nn.Module):
    """One level of the graft: down to it, attention on it, up from it (equations 1, 3 and 2).

    Args:
        dim: Channels C.
        num_heads: Heads.
        feat_size: Grid (height, width) of this level.
        window_size: Attention window (height, width).
        downsample: "avg_pool", "linear" or "cross_attention".
        upsample: "w_bilinear", "bilinear", "nearest" or "cross_attention".
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        feat_size: tuple[int, int],
        window_size: tuple[int, int],
        downsample: str = "avg_pool",
        upsample: str = "w_bilinear",
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.down = Downsample(dim, downsample, num_heads, window_size, **dd)
        self.norm = nn.LayerNorm(dim, **dd)
        self.attn = WindowAttention(dim, num_heads, window_size, **dd)
        self.up = Upsample(dim, num_heads, feat_size, window_size, upsample, **dd)

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        """X + L-MSA(LN(X)), equation 3 without its last term: (B, h, w, C) -> (B, h, w, C)."""
        return x + self.attn(self.norm(x))


class LeftLevel(nn.Module):
    """A level above the backbone's resolution (appendix, table A, "left"): up to it, attention on it, pooled back.

    Args:
        dim: Channels C.
        num_heads: Heads.
        feat_size: Grid (height, width) that is upsampled to this level.
        window_size: Attention window (height, width).
    """

    def __init__(self, dim: int, num_heads: int, feat_size: tuple[int, int], window_size, device=None, dtype=None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.up = Upsample(dim, num_heads, feat_size, window_size, "w_bilinear", **dd)
        self.norm = nn.LayerNorm(dim, **dd)
        self.attn = WindowAttention(dim, num_heads, window_size, **dd)
        self.down_norm = nn.LayerNorm(dim, **dd)

    def init_identity(self) -> None:
        """Makes what comes back zero: GELU(0) = 0, while its gradient with respect to the LayerNorm is not."""
        nn.init.zeros_(self.down_norm.weight)
        nn.init.zeros_(self.down_norm.bias)

    def forward(self, x: torch.Tensor, finer: nn.ModuleList | list) -> torch.Tensor:
        """(B, H, W, C) -> (B, H, W, C), through 2H x 2W and the levels in `finer` above it."""
        B, H, W, _ = x.shape
        x = self.up(x, x.new_empty(B, 2 * H, 2 * W, 0))
        z = x + self.attn(self.norm(x))
        if len(finer):
            z = z + finer[0](x, finer[1:])
        return pool_grid(gelu(self.down_norm(z)))


class GrafT(nn.Module):
    """The multi-scale add-on: a grid in, what is added to the block's attention result out.

    Args:
        dim: Channels C of the block.
        num_heads: Heads of the block; C must be a multiple.
        feat_size: Grid (height, width) of the block, in tokens. Other grids work too; this one fixes E_aa's shape.
        levels: Number of levels below the block's resolution.
        window_size: Attention window (height, width) on every level.
        downsample: "avg_pool" (paper), "linear", "cross_attention".
        upsample: "w_bilinear" (paper), "bilinear", "nearest", "cross_attention".
        left_levels: Number of levels above the block's resolution (paper: 0).
        ffn_ratio: Hidden width of a feed-forward network of the graft's own, as a multiple of C; None shares the
            backbone's (equation 5, paper). It acts on the finest level, before the last upsampling (the reading that
            gives table 7's cost), and the output then belongs *after* the block's feed-forward network.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        feat_size: tuple[int, int],
        levels: int,
        window_size: tuple[int, int] = (7, 7),
        downsample: str = "avg_pool",
        upsample: str = "w_bilinear",
        left_levels: int = 0,
        ffn_ratio: float | None = None,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.dim = dim
        self.feat_size = feat_size
        self.levels = nn.ModuleList(
            Level(dim, num_heads, size, window_size, downsample, upsample, **dd)
            for size in level_sizes(feat_size, levels)
        )
        H, W = feat_size
        self.left_levels = nn.ModuleList(
            LeftLevel(dim, num_heads, (H * 2**i, W * 2**i), window_size, **dd) for i in range(left_levels)
        )
        self.ffn = None
        if ffn_ratio is not None and levels > 0:
            hidden = max(1, int(dim * ffn_ratio))
            self.ffn = nn.Sequential(
                nn.LayerNorm(dim, **dd), nn.Linear(dim, hidden, **dd), GELU(), nn.Linear(hidden, dim, **dd)
            )
        self.identity_init = False
        self.init_weights()

    def init_weights(self, *_args, **_kwargs) -> None:
        """Start values. timm calls this after a model's own initialisation has run over every linear layer."""
        for module in self.modules():
            if module is self:
                continue
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, (WindowAttention, WindowCrossAttention, Downsample, Upsample)):
                module.init_weights()
        if self.ffn is not None:
            for linear in (self.ffn[1], self.ffn[3]):
                trunc_normal_(linear.weight, std=0.02)
                nn.init.zeros_(linear.bias)
        if self.identity_init:
            self.init_identity()

    def init_identity(self) -> None:
        """Zeroes the last projection of each pathway: the output is zero, the block computes what it did before."""
        self.identity_init = True
        if len(self.levels):
            self.levels[0].up.init_identity()
        if len(self.left_levels):
            self.left_levels[0].init_identity()

    def pyramid(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Z1, Z2, ... of equation 3 for X0 (B, H, W, C): the outputs of all levels, finest first."""
        grids = [x]
        for level in self.levels:
            grids.append(level.down(grids[-1]))
        outputs: list[torch.Tensor] = []
        for b in range(len(self.levels), 0, -1):
            z = self.levels[b - 1].attend(grids[b])
            if outputs:
                z = z + self.levels[b].up(outputs[0], grids[b])
            outputs.insert(0, z)
        return outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """X0 (B, H, W, C) -> up(Z1) (B, H, W, C), the term that equation 4 adds to the block's attention."""
        out = None
        if len(self.levels):
            z = self.pyramid(x)[0]
            if self.ffn is not None:
                z = z + self.ffn(z)
            out = self.levels[0].up(z, x)
        if len(self.left_levels):
            left = self.left_levels[0](x, self.left_levels[1:])
            out = left if out is None else out + left
        return out

    def extra_repr(self) -> str:
        sizes = ", ".join(f"{h} x {w}" for h, w in level_sizes(self.feat_size, len(self.levels)))
        return f"dim={self.dim}, feat_size={self.feat_size}, levels=[{sizes}]"
