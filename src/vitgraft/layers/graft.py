"""GrafT, the module that is grafted onto a block of a vision transformer (section 2 of the paper).

    X0 ---------------- backbone block: Y0 = X0 + [MSA(LN(X0)) + up(Z1)] ---> FFN      (eq. 4, 5)
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

from typing import Any

import torch
from torch import nn

from vitgraft.config import GraftConfig
from vitgraft.errors import GraftError
from vitgraft.layers.attention import WindowAttention, init_linear
from vitgraft.layers.downsample import Downsample
from vitgraft.layers.levels import (
    actual_sizes,
    level_factors,
    max_levels,
    nominal_sizes,
    plan_levels,
    step_factor,
)
from vitgraft.layers.norm_gelu import norm_gelu
from vitgraft.layers.stripes import CrossShapedAttention
from vitgraft.layers.upsample import Upsample

__all__ = ["GrafT", "LeftLevel", "Level", "max_levels", "plan_levels"]

Size = tuple[int, int]


def _attention(dim: int, num_heads: int, config: GraftConfig, **dd: Any) -> nn.Module:
    """The self-attention of a level, (B, H, W, C) -> (B, H, W, C)."""
    window = config.window_size, config.window_size
    if config.attention == "cross_shaped":
        return CrossShapedAttention(dim, num_heads, window, **dd)
    rel_pos, shift = config.relative_position_bias, config.shifted_windows
    return WindowAttention(dim, num_heads, window, rel_pos=rel_pos, shift=shift, **dd)


class Level(nn.Module):
    """One level of the graft: down to it, attention on it, up from it (equations 1, 3 and 2).

    Args:
        dim: Channels C.
        num_heads: Heads.
        feat_size: Grid (height, width) of this level.
        config: The options.
        factor: Whole factor between this level and the next finer one; None: there is none.
        x0_factor: Whole factor between this level and the block's own grid, for "cross_attention_x0".
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        feat_size: Size,
        config: GraftConfig,
        factor: int | None = 2,
        x0_factor: int | None = None,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        window = config.window_size, config.window_size
        self.down = Downsample(dim, config.downsample, num_heads, window, factor, x0_factor, **dd)
        self.norm = nn.LayerNorm(dim, **dd)
        self.attn = _attention(dim, num_heads, config, **dd)
        self.up = Upsample(dim, num_heads, feat_size, window, config.upsample, factor, config.gate, **dd)

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        """X + L-MSA(LN(X)), equation 3 without its last term: (B, h, w, C) -> (B, h, w, C)."""
        return x + self.attn(self.norm(x))


class LeftLevel(nn.Module):
    """A level above the backbone's resolution (appendix, table A, "left"): up to it, attention on it, pooled back.

    Args:
        dim: Channels C.
        num_heads: Heads.
        feat_size: Grid (height, width) that is upsampled to this level.
        config: The options, of which this level always has W-Bilinear upsampling and pooling.
    """

    def __init__(self, dim: int, num_heads: int, feat_size: Size, config: GraftConfig, device=None, dtype=None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        window = config.window_size, config.window_size
        self.up = Upsample(dim, num_heads, feat_size, window, "w_bilinear", gate=config.gate, **dd)
        self.norm = nn.LayerNorm(dim, **dd)
        self.attn = _attention(dim, num_heads, config, **dd)
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
        return norm_gelu(self.down_norm, z, 2)


class GrafT(nn.Module):
    """The multi-scale add-on: a grid in, what is added to the block's attention result out.

    With `ffn="shared"` (equation 5) the backbone's feed-forward network serves both. With the other two values the
    graft has one of its own, and its output belongs *after* the block's.

    Args:
        dim: Channels C of the block.
        num_heads: Heads of the block, where the configuration has none; C (or `width`) must be a multiple.
        feat_size: Grid (height, width) of the block, in tokens. Other grids work too; this one fixes E_aa's shape.
        levels: Number of levels below the block's resolution.
        config: The options; None is the paper's final model. What `GraftConfig` has on the choice of blocks and
            levels and of the backbone has no meaning here, and `shifted_windows` is that of this very graft.
        **options: Single options of `GraftConfig`, on top of `config`.

    Raises:
        GraftError: The options do not fit each other or the grid; the message names what would.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        feat_size: Size,
        levels: int,
        config: GraftConfig | None = None,
        *,
        device=None,
        dtype=None,
        **options: Any,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        config = GraftConfig.make(config, **options)
        num_heads = config.num_heads or num_heads
        width = dim if config.width is None else config.width
        _check_heads(dim, config.width, num_heads)
        self.dim = dim
        self.feat_size = tuple(feat_size)
        self.step = step_factor(config.level_sizes)
        self.nominal_sizes = nominal_sizes(self.feat_size, levels, config.level_sizes)
        factors = level_factors(self.feat_size, self.nominal_sizes, self.step)
        _check_factors(self.feat_size, self.nominal_sizes, factors, config)
        self.proj_in = None if config.width is None else nn.Linear(dim, width, **dd)
        self.levels = nn.ModuleList(
            Level(width, num_heads, size, config, factor, x0_factor, **dd)
            for size, (factor, x0_factor) in zip(self.nominal_sizes, factors, strict=True)
        )
        H, W = self.feat_size
        self.left_levels = nn.ModuleList(
            LeftLevel(width, num_heads, (H * 2**i, W * 2**i), config, **dd) for i in range(config.left_levels)
        )
        self.ffn = None
        self.full_ffn = config.ffn == "separate_full"
        if config.ffn != "shared" and levels > 0:
            hidden = max(1, int(width * config.ffn_ratio))
            self.ffn = nn.Sequential(
                nn.LayerNorm(width, **dd), nn.Linear(width, hidden, **dd), nn.GELU(), nn.Linear(hidden, width, **dd)
            )
        self.proj_out = None if config.width is None else nn.Linear(width, dim, **dd)
        self.identity_init = config.init == "identity"
        self.init_weights()

    def init_weights(self, *_args, **_kwargs) -> None:
        """Initial values. timm calls this after a model's own initialization has run over every linear layer."""
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif module is not self and hasattr(module, "init_weights"):
                module.init_weights()
        if self.ffn is not None:
            init_linear(self.ffn[1], self.ffn[3])
        init_linear(self.proj_in, self.proj_out)
        if self.identity_init:
            self.init_identity()

    def init_identity(self) -> None:
        """Zeroes the last projection of each pathway: the output is zero, the block computes what it did before."""
        self.identity_init = True
        if self.proj_out is not None:  # the others keep their initial values, so that it gets a gradient
            nn.init.zeros_(self.proj_out.weight)
            nn.init.zeros_(self.proj_out.bias)
            return
        if self.ffn is not None and self.full_ffn:
            nn.init.zeros_(self.ffn[3].weight)
            nn.init.zeros_(self.ffn[3].bias)
        if len(self.levels):
            self.levels[0].up.init_identity()
        if len(self.left_levels):
            self.left_levels[0].init_identity()

    def sizes(self, grid: Size) -> list[Size]:
        """Sizes of all levels over a grid (height, width) of the block, finest first."""
        return actual_sizes(grid, self.feat_size, self.nominal_sizes, self.step)

    def pyramid(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Z1, Z2, ... of equation 3 for X0 (B, H, W, C): the outputs of all levels, finest first, `width` channels."""
        return self._pyramid(x if self.proj_in is None else self.proj_in(x))

    def _pyramid(self, x: torch.Tensor) -> list[torch.Tensor]:
        # a factor needs no sizes: each level follows from the next finer one
        sizes = [None] * len(self.levels) if self.step is not None else self.sizes((x.shape[1], x.shape[2]))
        grids = [x]
        for level, size in zip(self.levels, sizes, strict=True):
            grids.append(level.down(grids[-1], x, size))
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
        if self.proj_in is not None:
            x = self.proj_in(x)
        if len(self.levels):
            z = self._pyramid(x)[0]
            if self.ffn is not None and not self.full_ffn:
                z = z + self.ffn(z)
            out = self.levels[0].up(z, x)
            if self.ffn is not None and self.full_ffn:
                out = out + self.ffn(out)
        if len(self.left_levels):
            left = self.left_levels[0](x, self.left_levels[1:])
            out = left if out is None else out + left
        return out if self.proj_out is None else self.proj_out(out)

    def __prepare_scriptable__(self) -> "GrafT":
        raise GraftError(
            "torch.jit.script is not supported by models with grafts: use torch.jit.trace, torch.export or "
            "torch.compile"
        )

    def extra_repr(self) -> str:
        sizes = ", ".join(f"{h} x {w}" for h, w in self.nominal_sizes)
        return f"dim={self.dim}, feat_size={self.feat_size}, levels=[{sizes}]"


def _check_heads(dim: int, width: int | None, num_heads: int) -> None:
    if (width or dim) % num_heads == 0:
        return
    if width is None:
        raise GraftError(f"num_heads={num_heads} does not divide the {dim} channels")
    below = width // num_heads * num_heads
    fit = " or ".join(str(n) for n in (below, below + num_heads) if n > 0)
    raise GraftError(f"width={width} is no multiple of num_heads={num_heads}: the nearest that are: {fit}")


def _check_factors(
    feat_size: Size, sizes: list[Size], factors: list[tuple[int | None, int | None]], config: GraftConfig
) -> None:
    """Refuses given sizes that the operators cannot take."""
    down, up = f"downsample={config.downsample!r}", f"upsample={config.upsample!r}"
    for (h, w), finer, (factor, x0_factor) in zip(sizes, [feat_size, *sizes], factors, strict=False):
        needs = None
        if factor is None and config.downsample in ("linear", "cross_attention"):
            needs = down, "downsample='avg_pool'"
        elif factor is None and config.upsample == "cross_attention":
            needs = up, "upsample='bilinear'"
        elif factor is None and config.upsample == "w_bilinear" and max(h, w) > config.window_size:
            needs = f"{up} on a level of several windows", "upsample='bilinear'"
        elif x0_factor is None and config.downsample == "cross_attention_x0":
            needs, finer = (down, "downsample='avg_pool'"), feat_size
        if needs is not None:
            H, W = finer
            raise GraftError(
                f"level_sizes={config.level_sizes!r}: from {H} x {W} to {h} x {w} is no whole factor, the same in "
                f"height and width, which {needs[0]} needs. Use sizes that divide {H} x {W}, or {needs[1]}"
            )
