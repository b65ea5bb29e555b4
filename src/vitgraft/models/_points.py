"""Where a block of a timm model carries its graft: one line per block class. Plumbing of `sites.py`.

A residual block computes `x + drop_path(attention(norm(x)))`, whatever its family calls these children. A `GraftPoint`
names the child that *reads* X0 (its input is the graft's input) and the child that the result is *added* before (its
input is the attention's result, its output joins the residual sum). Both are the host's own names, so that a family is
one line here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

__all__ = ["GRIDS", "POINTS", "GraftPoint", "GridSource", "find_grid_source", "find_point"]

Size = tuple[int, int]


@dataclass(frozen=True)
class GraftPoint:
    """How a graft hangs on one class of blocks.

    Args:
        reads: Child (module or method) whose first argument is X0; "" stands for the block's own input.
        adds: Child (module or method) whose first argument is the attention's result; "" stands for what the block
            returns, where the block is nothing but the attention's residual.
        maps: X0 of four dimensions is (B, C, H, W); otherwise (B, H, W, C). Three dimensions are always tokens.
        maps_out: The same for the attention's result; None as `maps`.
        grid: Grid (H, W) of flat tokens from the block's arguments; None where its model has to say it.
        accepts: Tells whether this very block has an attention; None for always.
        to_grid, from_grid: For a layout of its own: (block, X0, grid) -> (B, H, W, C) and (block, graft, result) -> as
            the result.
        plain: Whether the block maps one tensor to one tensor, as fusing after the feed-forward network needs.
    """

    reads: str = "norm1"
    adds: str = "drop_path1"
    maps: bool = False
    maps_out: bool | None = None
    grid: Callable[..., Size] | None = None
    accepts: Callable[[nn.Module], bool] | None = None
    to_grid: Callable[[nn.Module, torch.Tensor, Size | None], torch.Tensor] | None = None
    from_grid: Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor] | None = None
    plain: bool = True

    def __reduce__(self) -> tuple:
        # by name: some entries hold functions that pickle cannot find
        return _named, (next(name for name, point in POINTS.items() if point is self),)


def _always(module: nn.Module) -> bool:
    return True


@dataclass(frozen=True)
class GridSource:
    """A module that knows the grid of the flat tokens that its blocks see, and changes with the input.

    Args:
        blocks: Its child that holds the blocks (a Sequential or ModuleList).
        methods: Its methods that run them; their first argument is what `grid` reads.
        grid: (module, first argument) -> (H, W), or None where this very module does not know it.
        varies: Whether this very module takes images of different sizes.
    """

    blocks: str
    methods: tuple[str, ...]
    grid: Callable[[nn.Module, Any], Size | None]
    varies: Callable[[nn.Module], bool] = _always


def _patches(model: nn.Module, image: torch.Tensor) -> Size | None:
    embed = model.patch_embed
    # a user's stem may not tell
    return tuple(embed.dynamic_feat_size(tuple(image.shape[-2:]))) if hasattr(embed, "dynamic_feat_size") else None


def _is_dynamic(model: nn.Module) -> bool:
    return bool(getattr(model, "dynamic_img_size", False)) and hasattr(model.patch_embed, "dynamic_feat_size")


def _strided(conv: nn.Conv2d | None, x: torch.Tensor) -> Size:
    """Grid of a stage that may begin with a strided convolution."""
    if conv is None:
        return x.shape[-2], x.shape[-1]
    H, W = (
        (n + 2 * p - k) // s + 1
        for n, p, k, s in zip(x.shape[-2:], conv.padding, conv.kernel_size, conv.stride, strict=True)
    )
    return H, W


def _pit(stage: nn.Module, x: Sequence[torch.Tensor]) -> Size:
    return _strided(None if stage.pool is None else stage.pool.conv, x[0])


def _metaformer(stage: nn.Module, x: torch.Tensor) -> Size:
    return _strided(getattr(stage.downsample, "conv", None), x)


def _mobilevit(block: nn.Module, x: torch.Tensor) -> Size:
    return -(-x.shape[-2] // block.patch_size[0]), -(-x.shape[-1] // block.patch_size[1])


def _of_first_argument(x: torch.Tensor, *args: Any, **kwargs: Any) -> Size:
    return x.shape[-2], x.shape[-1]


def _size_argument(x: torch.Tensor, size: Sequence[int] = (), **kwargs: Any) -> Size:
    size = size or kwargs.get("feat_size", ())
    return size[0], size[1]


def _has(child: str, *class_names: str) -> Callable[[nn.Module], bool]:
    """Whether `child` is there and, where class names are given, is or holds a module of one of these classes."""

    def accepts(block: nn.Module) -> bool:
        module = getattr(block, child, None)
        if module is None:
            return False
        return not class_names or any(type(m).__name__ in class_names for m in (module, *module.children()))

    return accepts


def _from_patch_parts(block: nn.Module, x: torch.Tensor, grid: Size | None) -> torch.Tensor:
    """MobileViT v2's (B, C, P, N), N patches of P pixels -> (B * P, H, W, C): one grid per pixel of the patches"""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0] * x.shape[2], *grid, x.shape[1])


def _to_patch_parts(block: nn.Module, g: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    B, C, P, N = result.shape
    return g.reshape(B, P, N, C).permute(0, 3, 1, 2)


def _from_nest(block: nn.Module, x: torch.Tensor, grid: Size | None) -> torch.Tensor:
    """(B, T, N, C), T windows of N tokens -> (B, H, W, C)"""
    from timm.models.nest import deblockify

    return deblockify(x, int(x.shape[2] ** 0.5))


def _to_nest(block: nn.Module, g: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    from timm.models.nest import blockify

    return blockify(g, int(result.shape[2] ** 0.5))


def _to_sam(block: nn.Module, g: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    """SAM drops paths window by window, before it puts the windows together."""
    if block.window_size == 0:
        return g
    from timm.models.vision_transformer_sam import window_partition

    return window_partition(g, block.window_size)[0]


_TIMM = "timm.models."
_pre = GraftPoint()  # x + drop_path1(attn(norm1(x)))
_post = GraftPoint(reads="attn")  # x + drop_path1(norm1(attn(x)))
_one_drop_path = GraftPoint(adds="drop_path")  # drop_path serves attention and feed-forward alike

POINTS: dict[str, GraftPoint] = {
    _TIMM + name: point
    for name, point in {
        "_efficientnet_blocks.MobileAttention": GraftPoint(
            reads="norm", adds="drop_path", maps=True, accepts=lambda block: block.has_skip
        ),
        "beit.Block": _pre,
        "cait.LayerScaleBlock": _one_drop_path,
        "coat.SerialBlock": GraftPoint(adds="drop_path", grid=_size_argument),
        "convit.Block": _one_drop_path,
        "cpubone.ResidualBlock": GraftPoint("main", "drop_path", maps=True, accepts=_has("main", "ConvAttention")),
        "csatv2.TransformerBlock": GraftPoint(grid=_of_first_argument, maps=True),
        "davit.ChannelBlock": GraftPoint(grid=_of_first_argument),
        "davit.SpatialBlock": GraftPoint(grid=_of_first_argument),
        "deepseek_vit.DeepseekVitBlock": _pre,
        "edgenext.SplitTransposeBlock": GraftPoint(reads="norm_xca", adds="drop_path", grid=_of_first_argument),
        "efficientformer.MetaBlock1d": _pre,
        "efficientformer_v2.EfficientFormerV2Block": GraftPoint(
            reads="token_mixer", maps=True, accepts=_has("token_mixer", "Attention2d")
        ),
        "efficientvit_mit.ResidualBlock": GraftPoint("", "", maps=True, accepts=_has("main", "LiteMLA")),
        "efficientvit_msra.ResidualDrop": GraftPoint("", "", maps=True, accepts=_has("m", "LocalWindowAttention")),
        "eva.EvaBlock": _pre,
        "eva.EvaBlockPostNorm": _post,
        "fastvit.AttentionBlock": GraftPoint(reads="norm", maps=True),
        "gcvit.GlobalContextVitBlock": _pre,
        "hieradet_sam2.MultiScaleBlock": _pre,
        "iformer.Residual": GraftPoint("", "", maps=True, accepts=_has("module", "SHMA")),
        "levit.LevitBlock": GraftPoint(reads="attn", maps=True),
        "lowformer.ResidualBlock": GraftPoint("main", "drop_path", maps=True, accepts=_has("main", "ConvAttention")),
        "maxxvit.ParallelPartitionAttention": _pre,
        "maxxvit.PartitionAttention2d": GraftPoint(maps=True),
        "maxxvit.PartitionAttentionCl": _pre,
        "maxxvit.TransformerBlock2d": GraftPoint(maps=True),
        "metaformer.MetaFormerBlock": GraftPoint(maps=True, accepts=_has("token_mixer", "Attention")),
        "mobilevit.LinearTransformerBlock": GraftPoint(to_grid=_from_patch_parts, from_grid=_to_patch_parts),
        "mvitv2.MultiScaleBlock": GraftPoint(grid=_size_argument, plain=False),
        "nest.TransformerLayer": GraftPoint(to_grid=_from_nest, from_grid=_to_nest),
        "nextvit.NextTransformerBlock": GraftPoint(adds="mhsa_drop_path", maps=True),
        "pvt_v2.Block": GraftPoint(grid=_size_argument),
        "shvit.Residual": GraftPoint("", "", maps=True, accepts=_has("m", "SHSA")),
        "swiftformer.Block": GraftPoint(reads="attn", adds="drop_path", maps=True),
        "swin_transformer.SwinTransformerBlock": _pre,
        "swin_transformer_v2.SwinTransformerV2Block": GraftPoint(reads="_attn"),
        "swin_transformer_v2_cr.SwinTransformerV2CrBlock": GraftPoint(reads="_shifted_window_attn"),
        "tiny_vit.TinyVitBlock": GraftPoint(reads=""),
        "tnt.Block": GraftPoint("norm_out", "drop_path", plain=False),
        "twins.Block": GraftPoint(grid=_size_argument),
        "visformer.Block": GraftPoint(adds="drop_path", maps=True, accepts=_has("attn")),
        "vision_transformer.Block": _pre,
        "vision_transformer.DiffParallelScalingBlock": GraftPoint(reads="in_norm", adds="drop_path"),
        "vision_transformer.ParallelScalingBlock": GraftPoint(reads="in_norm", adds="drop_path"),
        "vision_transformer.ParallelThingsBlock": GraftPoint(reads="", adds="attns"),
        "vision_transformer.ResPostBlock": _post,
        "vision_transformer_relpos.RelPosBlock": _pre,
        "vision_transformer_relpos.ResPostRelPosBlock": _post,
        "vision_transformer_sam.Block": GraftPoint(from_grid=_to_sam),
        "volo.Outlooker": _pre,
        "volo.Transformer": _pre,
        "xcit.XCABlock": GraftPoint(grid=lambda x, H, W: (H, W)),
    }.items()
}
POINTS["vitgraft.models._cswin_blocks.CSWinBlock"] = _one_drop_path

_model_methods = ("forward_features", "forward_intermediates")
GRIDS: dict[str, GridSource] = {
    _TIMM + "deepseek_vit.DeepseekVitEncoder": GridSource("blocks", _model_methods, _patches),
    _TIMM + "eva.Eva": GridSource("blocks", _model_methods, _patches, _is_dynamic),
    _TIMM + "metaformer.MetaFormerStage": GridSource("blocks", ("forward",), _metaformer),
    _TIMM + "mobilevit.MobileVitBlock": GridSource("transformer", ("forward",), _mobilevit),
    _TIMM + "mobilevit.MobileVitV2Block": GridSource("transformer", ("forward",), _mobilevit),
    _TIMM + "pit.Transformer": GridSource("blocks", ("forward",), _pit),
    _TIMM + "qwen3_vit.Qwen3VitEncoder": GridSource("blocks", _model_methods, _patches),
    _TIMM + "vision_transformer.VisionTransformer": GridSource("blocks", _model_methods, _patches, _is_dynamic),
}


def _named(name: str) -> GraftPoint:
    return POINTS[name]


def _lookup(module: nn.Module | type, table: dict[str, Any]) -> Any:
    for cls in (module if isinstance(module, type) else type(module)).__mro__:
        found = table.get(f"{cls.__module__}.{cls.__qualname__}")
        if found is not None:
            return found
    return None


def find_point(block: nn.Module) -> GraftPoint | None:
    """The graft point of a block, by its class or a base class; None where it has none."""
    point = _lookup(block, POINTS)
    if point is None or (point.accepts is not None and not point.accepts(block)):
        return None
    return point


def find_grid_source(module: nn.Module | type) -> GridSource | None:
    """How `module`, or a module of that class, tells the grid of its blocks' tokens; None where it does not."""
    return _lookup(module, GRIDS)
