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

from typing import Literal

import torch
from timm.layers import trunc_normal_
from torch import nn

from vitgraft.errors import GraftError
from vitgraft.layers.activation import GELU, gelu
from vitgraft.layers.attention import WindowAttention, WindowCrossAttention
from vitgraft.layers.downsample import Downsample, pool_grid
from vitgraft.layers.levels import (
    LevelSizes,
    actual_sizes,
    max_levels,
    nominal_sizes,
    plan_levels,
    step_factor,
    whole_factor,
)
from vitgraft.layers.stripes import CrossShapedAttention
from vitgraft.layers.upsample import Upsample

__all__ = ["GrafT", "LeftLevel", "Level", "max_levels", "plan_levels"]

Size = tuple[int, int]


def _attention(
    kind: str, dim: int, num_heads: int, window_size: Size, relative_position_bias: bool, shift: bool, **dd
) -> nn.Module:
    """The self-attention of a level, (B, H, W, C) -> (B, H, W, C)."""
    if kind == "cross_shaped":
        return CrossShapedAttention(dim, num_heads, window_size, **dd)
    return WindowAttention(dim, num_heads, window_size, rel_pos=relative_position_bias, shift=shift, **dd)


class Level(nn.Module):
    """One level of the graft: down to it, attention on it, up from it (equations 1, 3 and 2).

    Args:
        dim: Channels C.
        num_heads: Heads.
        feat_size: Grid (height, width) of this level.
        window_size: Attention window (height, width).
        downsample: "avg_pool", "linear", "cross_attention" or "cross_attention_x0".
        upsample: "w_bilinear", "bilinear", "nearest" or "cross_attention".
        factor: Whole factor between this level and the next finer one; None: there is none.
        x0_factor: Whole factor between this level and the block's own grid, for "cross_attention_x0".
        gate: Whether there is E_aa; None: in the bilinear modes.
        relative_position_bias: Whether window attention has one.
        attention: "window" or "cross_shaped".
        shift: Whether the windows are shifted.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        feat_size: Size,
        window_size: Size,
        downsample: str = "avg_pool",
        upsample: str = "w_bilinear",
        *,
        factor: int | None = 2,
        x0_factor: int | None = None,
        gate: bool | None = None,
        relative_position_bias: bool = True,
        attention: str = "window",
        shift: bool = False,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.down = Downsample(dim, downsample, num_heads, window_size, factor, x0_factor, **dd)
        self.norm = nn.LayerNorm(dim, **dd)
        self.attn = _attention(attention, dim, num_heads, window_size, relative_position_bias, shift, **dd)
        self.up = Upsample(dim, num_heads, feat_size, window_size, upsample, factor, gate, **dd)

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
        gate, relative_position_bias, attention, shift: See `Level`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        feat_size: Size,
        window_size: Size,
        *,
        gate: bool | None = None,
        relative_position_bias: bool = True,
        attention: str = "window",
        shift: bool = False,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.up = Upsample(dim, num_heads, feat_size, window_size, "w_bilinear", gate=gate, **dd)
        self.norm = nn.LayerNorm(dim, **dd)
        self.attn = _attention(attention, dim, num_heads, window_size, relative_position_bias, shift, **dd)
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


def _check_heads(dim: int, width: int | None, num_heads: int) -> None:
    channels = dim if width is None else width
    if channels % num_heads == 0:
        return
    if width is None:
        raise GraftError(f"num_heads={num_heads} does not divide the {dim} channels")
    below = width // num_heads * num_heads
    fit = " or ".join(str(n) for n in (below, below + num_heads) if n > 0)
    raise GraftError(f"width={width} is no multiple of num_heads={num_heads}: the nearest that are: {fit}")


def _check_factors(
    feat_size: Size,
    sizes: list[Size],
    factors: list[tuple[int | None, int | None]],
    level_sizes: LevelSizes,
    downsample: str,
    upsample: str,
    window_size: Size,
) -> None:
    """Refuses given sizes that the operators cannot take."""
    for (h, w), (H, W), (factor, x0_factor) in zip(sizes, [feat_size, *sizes], factors, strict=False):
        between = (
            f"level_sizes={level_sizes!r}: from {H} x {W} to {h} x {w} is no whole factor, the same in height and "
        )
        needs = None
        if factor is None and downsample in ("linear", "cross_attention"):
            needs = f"downsample={downsample!r}", "downsample='avg_pool'"
        elif factor is None and upsample == "cross_attention":
            needs = f"upsample={upsample!r}", "upsample='bilinear'"
        elif factor is None and upsample == "w_bilinear" and (h > window_size[0] or w > window_size[1]):
            needs = f"upsample={upsample!r} on a level of several windows", "upsample='bilinear'"
        if needs is not None:
            raise GraftError(f"{between}width, which {needs[0]} needs. Use sizes that divide {H} x {W}, or {needs[1]}")
        if x0_factor is None and downsample == "cross_attention_x0":
            H, W = feat_size
            raise GraftError(
                f"level_sizes={level_sizes!r}: from the block's {H} x {W} to {h} x {w} is no whole factor, the same in "
                f"height and width, which downsample={downsample!r} needs. Use sizes that divide {H} x {W}, or "
                "downsample='avg_pool'"
            )


class GrafT(nn.Module):
    """The multi-scale add-on: a grid in, what is added to the block's attention result out.

    Args:
        dim: Channels C of the block.
        num_heads: Heads of the block; C (or `width`) must be a multiple.
        feat_size: Grid (height, width) of the block, in tokens. Other grids work too; this one fixes E_aa's shape.
        levels: Number of levels below the block's resolution.
        window_size: Attention window (height, width) on every level.
        downsample: "avg_pool" (paper), "linear", "cross_attention", "cross_attention_x0".
        upsample: "w_bilinear" (paper), "bilinear", "nearest", "cross_attention".
        left_levels: Number of levels above the block's resolution (paper: 0).
        ffn_ratio: Hidden width of a feed-forward network of the graft's own, as a multiple of C (or `width`).
        level_sizes: Sizes of the levels. "halve" (paper): half of the next finer one, rounded up. An integer f >= 1:
            the next finer one divided by f, rounded up. A tuple: the sizes themselves, finest first, each an integer
            (the longer side) or (height, width); those that are not smaller than `feat_size` are left out, the first
            `levels` of the others are used. On other grids they change in proportion, rounded up.
        width: Channels in which the graft works, between two linear layers; None: C, without these layers.
        gate: Whether there is E_aa; None: in the bilinear upsampling modes, as in the paper.
        relative_position_bias: Whether window attention has one.
        attention: "window" (paper), or "cross_shaped": CSWin's, in stripes as wide as the window.
        shift: Whether the windows are shifted by half a window, on levels of several windows.
        ffn: "shared" (paper): none of the graft's own, the backbone's serves both (equation 5). "separate": on the
            finest level, before the last upsampling (the reading that gives table 7's cost). "separate_full": after
            the last upsampling, at the block's full resolution. The output of the latter two belongs *after* the
            block's feed-forward network. None: "separate" where `ffn_ratio` is given, otherwise "shared".

    Raises:
        GraftError: The options do not fit each other or the grid; the message names what would.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        feat_size: Size,
        levels: int,
        window_size: Size = (7, 7),
        downsample: str = "avg_pool",
        upsample: str = "w_bilinear",
        left_levels: int = 0,
        ffn_ratio: float | None = None,
        *,
        level_sizes: LevelSizes = "halve",
        width: int | None = None,
        gate: bool | None = None,
        relative_position_bias: bool = True,
        attention: Literal["window", "cross_shaped"] = "window",
        shift: bool = False,
        ffn: Literal["shared", "separate", "separate_full"] | None = None,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        inner = dim if width is None else width
        _check_heads(dim, width, num_heads)
        if shift and attention == "cross_shaped":
            raise GraftError("shift=True shifts windows, and attention='cross_shaped' has stripes: use shift=False")
        self.dim = dim
        self.feat_size = tuple(feat_size)
        self.step = step_factor(level_sizes)
        self.nominal_sizes = nominal_sizes(self.feat_size, levels, level_sizes)
        factors = self._factors()
        _check_factors(self.feat_size, self.nominal_sizes, factors, level_sizes, downsample, upsample, window_size)
        self.proj_in = None if width is None else nn.Linear(dim, width, **dd)
        more = {
            "gate": gate,
            "relative_position_bias": relative_position_bias,
            "attention": attention,
            "shift": shift,
            **dd,
        }
        self.levels = nn.ModuleList(
            Level(inner, num_heads, size, window_size, downsample, upsample, factor=factor, x0_factor=x0_factor, **more)
            for size, (factor, x0_factor) in zip(self.nominal_sizes, factors, strict=True)
        )
        H, W = self.feat_size
        self.left_levels = nn.ModuleList(
            LeftLevel(inner, num_heads, (H * 2**i, W * 2**i), window_size, **more) for i in range(left_levels)
        )
        self.ffn = None
        if ffn is None:
            ffn = "shared" if ffn_ratio is None else "separate"
        self.full_ffn = ffn == "separate_full"
        if ffn != "shared" and levels > 0:
            hidden = max(1, int(inner * (0.375 if ffn_ratio is None else ffn_ratio)))
            self.ffn = nn.Sequential(
                nn.LayerNorm(inner, **dd), nn.Linear(inner, hidden, **dd), GELU(), nn.Linear(hidden, inner, **dd)
            )
        self.proj_out = None if width is None else nn.Linear(width, dim, **dd)
        self.identity_init = False
        self.init_weights()

    def init_weights(self, *_args, **_kwargs) -> None:
        """Start values. timm calls this after a model's own initialisation has run over every linear layer."""
        for module in self.modules():
            if module is self:
                continue
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(
                module, (WindowAttention, CrossShapedAttention, WindowCrossAttention, Downsample, Upsample)
            ):
                module.init_weights()
        linears = [] if self.ffn is None else [self.ffn[1], self.ffn[3]]
        if self.proj_in is not None:
            linears += [self.proj_in, self.proj_out]
        for linear in linears:
            trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        if self.identity_init:
            self.init_identity()

    def init_identity(self) -> None:
        """Zeroes the last projection of each pathway: the output is zero, the block computes what it did before."""
        self.identity_init = True
        if self.proj_out is not None:  # the others keep their start values, so that it gets a gradient
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

    def _factors(self) -> list[tuple[int | None, int | None]]:
        """Of each level, the whole factor to the next finer one and that to the block's grid."""
        if self.step is not None:
            return [(self.step, self.step ** (b + 1)) for b in range(len(self.nominal_sizes))]
        finer = [self.feat_size, *self.nominal_sizes]
        return [
            (whole_factor(fine, size), whole_factor(self.feat_size, size))
            for fine, size in zip(finer, self.nominal_sizes, strict=False)
        ]

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
