"""Which blocks can carry a graft, and where it is attached: one line per block class.

A residual block computes `x + drop_path(attention(norm(x)))`, whatever its library calls these children. A `BlockSpec`
names the child that receives X0 and the child through which the attention's result passes before the residual sum.
Classes of other libraries are named by their import path, so that none of these libraries is needed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import torch
from torch import nn

from vitgraft.errors import GraftError

__all__ = ["BLOCKS", "NOT_GRAFTABLE", "BlockSpec", "find_spec", "first_argument", "register_block"]

Size = tuple[int, int]
Layout = Literal["tokens", "nhwc", "nchw"]
ANY_PREFIX = -1


@dataclass(frozen=True)
class BlockSpec:
    """Where a graft is attached to the blocks of one class. Children are named as in `get_submodule`, dots included.

    Tokens lie row by row, prefix tokens in front of them.

    Args:
        input_from: Child whose first argument is X0; "" for the block's own input.
        output_to: Child whose first argument is the attention's result; the graft is added before it. A child that is
            called several times (a shared `drop_path`) counts once, the first time after X0 was read.
        output_of: Instead of `output_to`: child whose output, or the first entry of it, is the attention's result; ""
            for the block's own output.
        layout: Of X0 and the result where they have four dimensions: "nchw" (B, C, H, W), or "nhwc" (B, H, W, C). Three
            dimensions are always tokens (B, prefix + H * W, C), for which "tokens" is the same as "nhwc".
        grid: Grid (H, W) of flat tokens from the block's arguments, `grid(args, kwargs)`. None where the block is not
            given it: then it is that of the patch projection's output.
        prefix_tokens: Number of tokens in front of the grid's (class, registers, queries). None: as many as there are
            beyond the grid, up to 8; -1: as many as there are.
        accepts: Whether this very block has the residual; None for always.
        to_grid, from_grid: For a layout of its own: (block, X0) to tokens or (B, H, W, C), and (block, graft, result)
            from the graft's (B, H, W, C) to the result's layout.

    Raises:
        GraftError: Not exactly one of `output_to` and `output_of`, an unknown layout or an impossible number of tokens.
    """

    input_from: str = "norm1"
    output_to: str | None = None
    output_of: str | None = None
    layout: Layout = "tokens"
    grid: Callable[[tuple, Mapping[str, Any]], Size] | None = None
    prefix_tokens: int | None = None
    accepts: Callable[[nn.Module], bool] | None = None
    to_grid: Callable[[nn.Module, torch.Tensor], torch.Tensor] | None = None
    from_grid: Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor] | None = None

    def __post_init__(self) -> None:
        if (self.output_to is None) == (self.output_of is None):
            raise GraftError(
                f"output_to={self.output_to!r}, output_of={self.output_of!r}: give one of them, the child that the "
                "attention's result is passed to, or the child that returns it"
            )
        if self.output_to == "":
            raise GraftError("output_to='': give a child, or output_of='' for the block's own output")
        if self.layout not in get_args(Layout):
            raise GraftError(f"layout={self.layout!r} is not one of {', '.join(map(repr, get_args(Layout)))}")
        prefix = self.prefix_tokens
        if prefix is not None and (not isinstance(prefix, int) or prefix < ANY_PREFIX):
            raise GraftError(f"prefix_tokens={prefix!r} must be a whole number >= 0, -1 for any, or None")

    @property
    def path(self) -> str:
        """The children between which the graft is attached, for messages."""
        end = f"before {self.output_to}" if self.output_of is None else f"after {self.output_of or 'the block'}"
        return f"from {self.input_from or 'the block'} to the sum {end}"


def first_argument(args: tuple, kwargs: Mapping[str, Any]) -> Any:
    """The first positional argument of a call; of one by keywords, `x` (timm's name) or the first tensor."""
    if args:
        return args[0]
    tensors = [value for value in kwargs.values() if isinstance(value, torch.Tensor)]
    return kwargs.get("x", tensors[0] if tensors else None)


def size_argument(args: tuple, kwargs: Mapping[str, Any]) -> Size:
    """The grid that a block is given as one (height, width) or as two numbers."""
    numbers = []
    for value in (*args[1:], *kwargs.values()):
        if isinstance(value, (tuple, list, torch.Size)) and len(value) == 2:
            return value[0], value[1]
        if isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool):
            numbers.append(value)
    return numbers[0], numbers[1]


def map_argument(args: tuple, kwargs: Mapping[str, Any]) -> Size:
    """The grid of a block whose first argument is a map (B, C, H, W)."""
    x = first_argument(args, kwargs)
    return x.shape[-2], x.shape[-1]


@dataclass(frozen=True)
class _Has:
    """Whether `child` is there and, where class names are given, is or holds a module of one of these classes."""

    child: str
    class_names: tuple[str, ...] = ()

    def __call__(self, block: nn.Module) -> bool:
        module = getattr(block, self.child, None)
        if module is None:
            return False
        return not self.class_names or any(type(m).__name__ in self.class_names for m in (module, *module.children()))


def _has_skip(block: nn.Module) -> bool:
    return block.has_skip


def _norm_after_sum(block: nn.Module) -> bool:
    return not block.normalize_before


# layouts of their own


def _from_patch_parts(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """MobileViT v2: (B, C, P, N), N patches of P pixels, to (B * P, N, C), one grid per pixel of the patches."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0] * x.shape[2], x.shape[3], x.shape[1])


def _to_patch_parts(block: nn.Module, g: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    B, C, P, N = result.shape
    return g.reshape(B, P, N, C).permute(0, 3, 1, 2)


def _from_nest(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """NesT: (B, T, N, C), T windows of N tokens, to (B, H, W, C)."""
    from timm.models.nest import deblockify

    return deblockify(x, int(x.shape[2] ** 0.5))


def _to_nest(block: nn.Module, g: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    from timm.models.nest import blockify

    return blockify(g, int(result.shape[2] ** 0.5))


def _to_sam(block: nn.Module, g: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    """SAM in timm: stochastic depth acts on windows, before they are put together."""
    if block.window_size == 0:
        return g
    from timm.models.vision_transformer_sam import window_partition

    return window_partition(g, block.window_size)[0]


def _to_transformers_sam(block: nn.Module, g: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    """SAM in transformers: the attention's result is one of windows."""
    return g if block.window_size == 0 else block.window_partition(g, block.window_size)[0]


def _to_torchvision_maxvit(block: nn.Module, g: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    """MaxViT in torchvision: the residual lies between partition and its inverse."""
    return block.partition_swap(block.partition_op(g.permute(0, 3, 1, 2), block.p))


# the residuals that most blocks have
_pre = BlockSpec(output_to="drop_path1")  # x + drop_path1(attn(norm1(x)))
_post = BlockSpec("attn", "drop_path1")  # x + drop_path1(norm1(attn(x)))
_one_drop_path = BlockSpec(output_to="drop_path")  # drop_path serves attention and feed-forward network alike
_sized = BlockSpec(output_to="drop_path1", grid=size_argument)
_attention_tuple = BlockSpec("layernorm_before", output_of="attention")  # x + attention(layernorm_before(x))[0]
_clip = BlockSpec("layer_norm1", output_of="self_attn")
_transformers_swin = BlockSpec("layernorm_before", "drop_path", grid=size_argument)
_detr = BlockSpec("", output_of="self_attn", accepts=_norm_after_sum)

_TABLES: dict[str, dict[str, BlockSpec]] = {
    "timm.models.": {
        "_efficientnet_blocks.MobileAttention": BlockSpec("norm", "drop_path", layout="nchw", accepts=_has_skip),
        "beit.Block": _pre,
        "cait.LayerScaleBlock": _one_drop_path,
        "coat.SerialBlock": BlockSpec(output_to="drop_path", grid=size_argument),
        "convit.Block": _one_drop_path,
        "cpubone.ResidualBlock": BlockSpec(
            "main", "drop_path", layout="nchw", accepts=_Has("main", ("ConvAttention",))
        ),
        "csatv2.TransformerBlock": BlockSpec(output_to="drop_path1", layout="nchw", grid=map_argument),
        "davit.ChannelBlock": BlockSpec(output_to="drop_path1", grid=map_argument),
        "davit.SpatialBlock": BlockSpec(output_to="drop_path1", grid=map_argument),
        "deepseek_vit.DeepseekVitBlock": _pre,
        "edgenext.SplitTransposeBlock": BlockSpec("norm_xca", "drop_path", grid=map_argument),
        "efficientformer.MetaBlock1d": _pre,
        "efficientformer_v2.EfficientFormerV2Block": BlockSpec(
            "token_mixer", "drop_path1", layout="nchw", accepts=_Has("token_mixer", ("Attention2d",))
        ),
        "efficientvit_mit.ResidualBlock": BlockSpec(
            "", output_of="", layout="nchw", accepts=_Has("main", ("LiteMLA",))
        ),
        "efficientvit_msra.ResidualDrop": BlockSpec(
            "", output_of="", layout="nchw", accepts=_Has("m", ("LocalWindowAttention",))
        ),
        "eva.EvaBlock": _pre,
        "eva.EvaBlockPostNorm": _post,
        "fastvit.AttentionBlock": BlockSpec("norm", "drop_path1", layout="nchw"),
        "focalnet.FocalNetBlock": BlockSpec(output_to="drop_path1", layout="nchw"),
        "gcvit.GlobalContextVitBlock": _pre,
        "hieradet_sam2.MultiScaleBlock": _pre,
        "iformer.Residual": BlockSpec("", output_of="", layout="nchw", accepts=_Has("module", ("SHMA",))),
        "levit.LevitBlock": BlockSpec("attn", "drop_path1", layout="nchw"),
        "lowformer.ResidualBlock": BlockSpec(
            "main", "drop_path", layout="nchw", accepts=_Has("main", ("ConvAttention",))
        ),
        "maxxvit.ParallelPartitionAttention": _pre,
        "maxxvit.PartitionAttention2d": BlockSpec(output_to="drop_path1", layout="nchw"),
        "maxxvit.PartitionAttentionCl": _pre,
        "maxxvit.TransformerBlock2d": BlockSpec(output_to="drop_path1", layout="nchw"),
        "metaformer.MetaFormerBlock": BlockSpec(output_to="drop_path1", layout="nchw"),
        "mobilevit.LinearTransformerBlock": BlockSpec(
            output_to="drop_path1", to_grid=_from_patch_parts, from_grid=_to_patch_parts
        ),
        "mvitv2.MultiScaleBlock": _sized,
        "nest.TransformerLayer": BlockSpec(output_to="drop_path1", to_grid=_from_nest, from_grid=_to_nest),
        "nextvit.NextTransformerBlock": BlockSpec(output_to="mhsa_drop_path", layout="nchw"),
        "pvt_v2.Block": _sized,
        "shvit.Residual": BlockSpec("", output_of="", layout="nchw", accepts=_Has("m", ("SHSA",))),
        "swiftformer.Block": BlockSpec("attn", "drop_path", layout="nchw"),
        "swin_transformer.SwinTransformerBlock": _pre,
        "swin_transformer_v2.SwinTransformerV2Block": BlockSpec("", "drop_path1"),
        "swin_transformer_v2_cr.SwinTransformerV2CrBlock": BlockSpec("", "drop_path1"),
        "tiny_vit.TinyVitBlock": BlockSpec("", "drop_path1"),
        "tnt.Block": BlockSpec("norm_out", "drop_path"),
        "twins.Block": _sized,
        "visformer.Block": BlockSpec(output_to="drop_path", layout="nchw", accepts=_Has("attn")),
        "vision_transformer.Block": _pre,
        "vision_transformer.DiffParallelScalingBlock": BlockSpec("in_norm", "drop_path"),
        "vision_transformer.ParallelScalingBlock": BlockSpec("in_norm", "drop_path"),
        "vision_transformer.ParallelThingsBlock": BlockSpec("", "attns.0.drop_path"),
        "vision_transformer.ResPostBlock": _post,
        "vision_transformer_relpos.RelPosBlock": _pre,
        "vision_transformer_relpos.ResPostRelPosBlock": _post,
        "vision_transformer_sam.Block": BlockSpec(output_to="drop_path1", from_grid=_to_sam),
        "volo.Outlooker": _pre,
        "volo.Transformer": _pre,
        "xcit.XCABlock": _sized,
    },
    "vitgraft.models.": {"_cswin_blocks.CSWinBlock": _one_drop_path},
    "torchvision.models.": {
        "maxvit.PartitionAttentionLayer": BlockSpec(
            "", "stochastic_dropout", layout="nchw", from_grid=_to_torchvision_maxvit
        ),
        "swin_transformer.SwinTransformerBlock": BlockSpec(output_to="stochastic_depth"),
        "swin_transformer.SwinTransformerBlockV2": BlockSpec("attn", "stochastic_depth"),
        "vision_transformer.EncoderBlock": BlockSpec("ln_1", "dropout"),
    },
    "transformers.models.": {
        "aimv2.modeling_aimv2.Aimv2EncoderLayer": BlockSpec("rms_norm1", output_of="attention"),
        "altclip.modeling_altclip.AltCLIPEncoderLayer": _clip,
        "beit.modeling_beit.BeitLayer": BlockSpec("layernorm_before", "drop_path"),
        "blip.modeling_blip.BlipEncoderLayer": _clip,
        "blip_2.modeling_blip_2.Blip2EncoderLayer": _clip,
        "chinese_clip.modeling_chinese_clip.ChineseCLIPVisionLayer": _clip,
        "clip.modeling_clip.CLIPEncoderLayer": _clip,
        "clipseg.modeling_clipseg.CLIPSegEncoderLayer": _clip,
        "d_fine.modeling_d_fine.DFineEncoderLayer": _detr,
        "data2vec.modeling_data2vec_vision.Data2VecVisionLayer": BlockSpec("layernorm_before", "drop_path"),
        "deit.modeling_deit.DeiTLayer": _attention_tuple,
        "dinov2.modeling_dinov2.Dinov2Layer": _one_drop_path,
        "dinov2_with_registers.modeling_dinov2_with_registers.Dinov2WithRegistersLayer": _one_drop_path,
        "dinov3_vit.modeling_dinov3_vit.DINOv3ViTLayer": _one_drop_path,
        "donut.modeling_donut_swin.DonutSwinLayer": _transformers_swin,
        "dpt.modeling_dpt.DPTViTLayer": _attention_tuple,
        # in the last blocks the queries stand in front
        "eomt.modeling_eomt.EomtLayer": BlockSpec(output_to="drop_path", prefix_tokens=ANY_PREFIX),
        "eomt_dinov3.modeling_eomt_dinov3.EomtDinov3Layer": BlockSpec(output_to="drop_path", prefix_tokens=ANY_PREFIX),
        "focalnet.modeling_focalnet.FocalNetLayer": BlockSpec("", "drop_path", grid=size_argument),
        "glpn.modeling_glpn.GLPNLayer": BlockSpec("layer_norm_1", "drop_path", grid=size_argument),
        "ijepa.modeling_ijepa.IJepaLayer": _attention_tuple,
        "instructblip.modeling_instructblip.InstructBlipEncoderLayer": _clip,
        "maskformer.modeling_maskformer_swin.MaskFormerSwinLayer": _transformers_swin,
        "metaclip_2.modeling_metaclip_2.MetaClip2EncoderLayer": _clip,
        "owlvit.modeling_owlvit.OwlViTEncoderLayer": _clip,
        "poolformer.modeling_poolformer.PoolFormerLayer": BlockSpec("before_norm", "drop_path", layout="nchw"),
        "rt_detr.modeling_rt_detr.RTDetrEncoderLayer": _detr,
        "rt_detr_v2.modeling_rt_detr_v2.RTDetrV2EncoderLayer": _detr,
        "sam.modeling_sam.SamVisionLayer": BlockSpec("layer_norm1", output_of="attn", from_grid=_to_transformers_sam),
        "sam_hq.modeling_sam_hq.SamHQVisionLayer": BlockSpec(
            "layer_norm1", output_of="attn", from_grid=_to_transformers_sam
        ),
        "segformer.modeling_segformer.SegformerLayer": BlockSpec("layernorm_before", "drop_path", grid=size_argument),
        "siglip.modeling_siglip.SiglipEncoderLayer": _clip,
        "swin.modeling_swin.SwinLayer": _transformers_swin,
        "swinv2.modeling_swinv2.Swinv2Layer": BlockSpec("", "drop_path", grid=size_argument),
        "vit.modeling_vit.ViTLayer": _attention_tuple,
        "vit_msn.modeling_vit_msn.ViTMSNLayer": _attention_tuple,
        "vitpose_backbone.modeling_vitpose_backbone.VitPoseBackboneLayer": _attention_tuple,
    },
    "open_clip.transformer.": {
        "CustomResidualAttentionBlock": BlockSpec("ln_1", "ls_1"),
        "ResidualAttentionBlock": BlockSpec("ln_1", "ls_1"),
    },
    # facebookresearch/dinov2 and dinov3; MAE has timm's block. drop_path1 is called in training only.
    "dinov2.layers.block.": {
        "Block": BlockSpec(output_of="ls1"),
        "NestedTensorBlock": BlockSpec(output_of="ls1"),
    },
    "dinov3.layers.block.": {"SelfAttentionBlock": BlockSpec(output_of="ls1")},
}
BLOCKS: dict[str, BlockSpec] = {
    library + name: spec for library, table in _TABLES.items() for name, spec in table.items()
}
# by the class itself: a notebook defines a class of the same name again
_REGISTERED: dict[type, BlockSpec] = {}


# file of a library -> why a graft has no place in its models
NOT_GRAFTABLE: dict[str, str] = {
    "timm.models.efficientvim": "its blocks mix tokens by a state space model, there is no attention residual",
    "timm.models.gemma4_vit": "its patches carry their own coordinates, each image of a batch may have another grid",
    "timm.models.hiera": "its tokens are ordered by mask units, not row by row, and are dropped in pre-training",
    "timm.models.inception_next": "its blocks have convolutions and no attention",
    "timm.models.naflexvit": "a batch may hold images of different grids, padded to one length",
    "timm.models.repvit": "its blocks have convolutions and no attention",
    "transformers.models.cvt.modeling_cvt": "its attention adds the residual inside; timm has no CvT",
    "transformers.models.hiera.modeling_hiera": "its tokens are ordered by mask units, not row by row",
    "transformers.models.levit.modeling_levit": "its residuals are wrapped; timm has the same model as levit_*",
    "transformers.models.lw_detr.modeling_lw_detr": "its tokens are cut into windows before the blocks",
    "transformers.models.mobilevit.modeling_mobilevit": "timm has the same model as mobilevit_*",
    "transformers.models.mobilevitv2.modeling_mobilevitv2": "timm has the same model as mobilevitv2_*",
    "transformers.models.pvt.modeling_pvt": "this package has the same model for timm as pvt_*",
    "transformers.models.pvt_v2.modeling_pvt_v2": "timm has the same model as pvt_v2_*",
    "transformers.models.rf_detr.modeling_rf_detr": "its tokens are cut into windows before the blocks",
    "transformers.models.sam2.modeling_sam2": "timm has its encoder as sam2_hiera_*",
    "transformers.models.siglip2.modeling_siglip2": (
        "a batch may hold images of different grids; timm has its models of one size as vit_*_siglip_*.v2_webli"
    ),
    "transformers.models.swiftformer.modeling_swiftformer": "timm has the same model as swiftformer_*",
    "transformers.models.vit_mae.modeling_vit_mae": (
        "its encoder drops tokens; load its weights in ViTModel, or in timm's vit_*_patch16_224.mae"
    ),
    "transformers.models.yolos.modeling_yolos": "its detection tokens stand behind the grid's",
}


def class_path(cls: type) -> str:
    """The import path of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"


def _spec_of(cls: type) -> BlockSpec | None:
    return _REGISTERED.get(cls) or BLOCKS.get(class_path(cls))


def find_spec(block: nn.Module) -> BlockSpec | None:
    """The spec of a block, by its class or the nearest base class; None where there is none."""
    for cls in type(block).__mro__:
        spec = _spec_of(cls)
        if spec is not None:
            return spec if spec.accepts is None or spec.accepts(block) else None
    return None


def register_block(cls: type[nn.Module], **options: Any) -> None:
    """Makes a class of blocks known to `graft`, for the residual form `x + ...(attention(norm(x)))`.

    Args:
        cls: Class of the blocks; subclasses are found too.
        **options: Those of `BlockSpec`: `input_from`, one of `output_to` and `output_of`, `layout`, `grid`,
            `prefix_tokens`, `accepts`, `to_grid`, `from_grid`.

    Raises:
        GraftError: No class of modules, one that is registered already, or options that are impossible.

    Example:
        >>> vitgraft.register_block(MyBlock, input_from="norm1", output_to="drop_path1", layout="tokens")
    """
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise GraftError(f"register_block() takes a class of nn.Module; got {cls!r:.80}")
    known = _spec_of(cls)
    if known is not None:
        raise GraftError(f"{class_path(cls)} is registered already, {known.path}; a subclass can be registered anew")
    names = [field.name for field in fields(BlockSpec)]
    for name in options:
        if name not in names:
            raise GraftError(f"register_block() has no option {name!r}; there are {', '.join(names)}")
    _REGISTERED[cls] = BlockSpec(**options)
