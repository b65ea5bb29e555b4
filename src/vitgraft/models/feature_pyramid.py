"""Maps of strides 4, 8, 16 and 32 from any backbone: what detectors and segmentation heads read.

A backbone with four stages gives them by itself (`DenseFeatures`). A plain ViT has one stride; its last map is turned
into four as in ViTDet (Li et al., "Exploring Plain Vision Transformer Backbones for Object Detection", section 3). The
coarser ones may also be the levels of a graft, which computes maps at a half, a quarter, ... of the resolution anyway.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import ConfigDict
from timm.layers import Attention, LayerNorm2d, get_device_dtype
from timm.models import FeatureInfo
from torch import nn
from torch.nn import functional as F
from typing_extensions import TypedDict

from vitgraft.errors import GraftError
from vitgraft.grafting.api import grafts
from vitgraft.grafting.blocks import find_spec
from vitgraft.grafting.inject import GridSource, TokenGrid
from vitgraft.grafting.replace import WindowedAttention, replace_child
from vitgraft.models.dense import DenseFeatures, check_size
from vitgraft.models.plain_vit import Collected, plain_map
from vitgraft.options import Count, WholeNumber

__all__ = ["STRIDES", "PyramidOptions", "SimpleFeaturePyramid", "is_hierarchical", "pyramid"]

STRIDES = (4, 8, 16, 32)
"""Pixels for each cell of the maps, finest first."""

Source = Literal["last", "levels"]


class PyramidOptions(TypedDict, total=False):
    """Options of `pyramid`, which documents them and has their defaults, for recipes."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    out_channels: Count | None
    source: Source
    window_size: Count | None
    global_blocks: WholeNumber | list[WholeNumber]


class SimpleFeaturePyramid(nn.Module):
    """ViTDet's simple feature pyramid: maps of several strides from the last map of a plain ViT.

    Finer maps by transposed convolutions (2 x 2, stride 2; LayerNorm and GELU between two of them, half the channels
    after each), coarser ones by max pooling (2 x 2). Patches of 14 pixels and the like stand for the nearest power
    of two: their map is interpolated to that stride, every cell staying where it is in the image.

    Args:
        model: A plain ViT of timm, torchvision or transformers, or of blocks that `graft` knows, grafted or not. It
            loses what the maps do not depend on (final norm, classifier, pooler; what cannot be removed is frozen), so
            that every trainable parameter has a gradient. timm's models take any image size afterwards.
        out_channels: With it, each map goes through ViTDet's 1 x 1 and 3 x 3 convolutions to so many channels, each
            with a LayerNorm, and a detector needs no FPN. Without it, each has its own channels and one new LayerNorm.
        strides: Of the maps, rising powers of two.
        source: Where maps coarser than the patch come from: "last", the last map; "levels", the levels of the last
            graft, as it computed them in that call. Beyond its coarsest level they are pooled from that.
        window_size: Side in tokens of the windows inside which the blocks attend, as ViTDet does on large images; None
            leaves the attention as it is. Class and register tokens attend to the whole image, and each window to them.
        global_blocks: Blocks that keep their attention over the whole image: so many, evenly spaced, the last one among
            them, or their indices.

    Raises:
        TypeError, ValueError: As `pyramid`.
    """

    def __init__(
        self,
        model: nn.Module,
        out_channels: int | None = None,
        strides: Sequence[int] = STRIDES,
        source: Source = "last",
        window_size: int | None = None,
        global_blocks: int | Sequence[int] = 4,
    ):
        super().__init__()
        _check(model, strides, source, out_channels)
        replaced = [] if window_size is None else _windowed_blocks(model, window_size, global_blocks)
        self.read = plain_map(model)
        self.patch = self.read.patch
        if self.patch > 64:
            raise ValueError(f"{type(model).__name__} has patches of {self.patch} pixels: use a plain ViT of up to 64")
        self.backbone = model
        self.base = 2 ** round(math.log2(self.patch))  # stride that the map is brought to first
        self.strides = tuple(strides)
        self.grid: GridSource | None = None  # of the blocks with windows
        if replaced:
            self.grid = GridSource(model_id=id(model))
            tokens = TokenGrid(self.grid, prefix=model.num_prefix_tokens)
            for block in replaced:
                block.register_forward_pre_hook(tokens.note_block)
                replace_child(block, "attn", WindowedAttention(block.attn, tokens, (window_size, window_size)))
        # stride and channels of the maps that the others are made from, finest first
        sources = [(self.base, self.read.channels)]
        self.collected: list[Collected] = []
        if source == "levels":
            sources += self._collect_levels(list(grafts(model).values())[-1])
        # each is made from the coarsest that is not coarser
        self.made_from = [max(i for i, (s, _) in enumerate(sources) if i == 0 or s <= stride) for stride in strides]
        self.levels = nn.ModuleList()
        channels = []
        for stride, i in zip(strides, self.made_from, strict=True):
            start, dim = sources[i]
            self.levels.append(_level(dim, start, stride, out_channels, get_device_dtype(model)))
            channels.append(out_channels or dim // max(1, start // stride))
        self.source_strides = [stride for stride, _ in sources]
        info = [
            {"num_chs": number, "reduction": stride, "module": f"levels.{i}", "index": i}
            for i, (number, stride) in enumerate(zip(channels, strides, strict=True))
        ]
        self.feature_info = FeatureInfo(info, tuple(range(len(info))))

    def _collect_levels(self, graft: nn.Module) -> list[tuple[int, int]]:
        """Collects the levels of a graft that the strides need: stride and channels of each."""
        found = []
        for i, level in enumerate(graft.levels):
            stride = self.base * graft.step ** (i + 1)
            if stride <= self.strides[-1]:
                collected = Collected()
                # what a level passes on to the next finer one is its output Z (equation 3)
                level.up.register_forward_pre_hook(collected.note_input)
                self.collected.append(collected)
                found.append((stride, level.norm.normalized_shape[0]))
        return found

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Images (B, in_chans, H, W) to one map (B, C_i, ceil(H / stride), ceil(W / stride)) per stride.

        Raises:
            ValueError: The model takes one image size only, and this is another.
        """
        size = x.shape[-2:]
        x = _pad_to(x, self.patch)
        check_size(self.backbone, self.read.size, size, x.shape[-2:])
        if self.grid is not None:
            self.grid.note((x.shape[-2] // self.patch, x.shape[-1] // self.patch), alone=True)
        for collected in self.collected:
            collected.expect()
        maps = [self.read(self.backbone, x)]
        maps += [collected.take().permute(0, 3, 1, 2) for collected in self.collected]
        maps = [self._to_stride(one, stride, size) for one, stride in zip(maps, self.source_strides, strict=True)]
        results = [level(maps[i]) for level, i in zip(self.levels, self.made_from, strict=True)]
        return [
            one[..., : -(-size[0] // stride), : -(-size[1] // stride)]
            for one, stride in zip(results, self.strides, strict=True)
        ]

    def _to_stride(self, x: torch.Tensor, stride: int, size: Sequence[int]) -> torch.Tensor:
        """Brings the map of a patch of any side to the power of two that it stands for, and pads it for pooling."""
        if self.base != self.patch:
            # one more row and column, or the last cells would have nothing to be interpolated from; the scale is
            # given and not derived from the sizes, so that cell i keeps its place (i + 0.5) * stride in the image
            x = F.pad(x, (0, 2, 0, 2), mode="replicate")
            x = F.interpolate(x, scale_factor=self.patch / self.base, mode="bilinear", align_corners=False)
            x = x[..., : -(-size[0] // stride), : -(-size[1] // stride)]
        # pooling leaves out odd last rows, which DenseFeatures' merging keeps
        return _pad_to(x, max(1, self.strides[-1] // stride), "replicate")

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Saves memory by computing the inside of the backbone's blocks twice, where the library has that."""
        if hasattr(self.backbone, "set_grad_checkpointing"):
            self.backbone.set_grad_checkpointing(enable)
        elif enable:
            self.backbone.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            self.backbone.gradient_checkpointing_disable()


def _check(model: nn.Module, strides: Sequence[int], source: str, out_channels: int | None) -> None:
    if source not in ("last", "levels"):
        raise ValueError(f"source={source!r} is not one of 'last', 'levels'")
    if out_channels is not None and out_channels < 1:
        raise ValueError(f"out_channels={out_channels}: give 1 or more, or None")
    if source == "last":
        return
    found = list(grafts(model).values())
    if not found or not len(found[-1].levels):
        has = "has no grafts" if not found else "has a last graft without levels below its own resolution"
        raise GraftError(
            f"source='levels' reads the levels of the last graft, and {type(model).__name__} {has}: "
            "vitgraft.graft(model) first, or use source='last'"
        )
    step = found[-1].step
    if step is None or step & (step - 1):
        raise GraftError(
            f"source='levels' needs levels that differ by powers of two; graft the model with level_sizes='halve', not "
            f"{'given sizes' if step is None else step}, or use source='last'"
        )


def _check_strides(strides: Sequence[int]) -> None:
    powers = all(isinstance(stride, int) and stride > 0 and not stride & (stride - 1) for stride in strides)
    if not strides or not powers or list(strides) != sorted(set(strides)):
        raise ValueError(f"strides={tuple(strides)}: give rising powers of two, such as {STRIDES}")


def _windowed_blocks(model: nn.Module, window_size: int, global_blocks: int | Sequence[int]) -> list[nn.Module]:
    """The blocks of a plain ViT of timm that get windows.

    Raises:
        ValueError: Impossible sizes or blocks.
        GraftError: Blocks whose attention cannot be replaced.
    """
    if window_size < 1:
        raise ValueError(f"window_size={window_size}: give 1 token or more, or None")
    blocks = list(getattr(model, "blocks", ()))
    for i, block in enumerate(blocks or [model]):
        attn, spec = getattr(block, "attn", None), find_spec(block)
        if type(attn) is WindowedAttention:
            raise GraftError(f"window_size={window_size}: block {i} has windows already; leave window_size out")
        if type(attn) is not Attention or spec is None or spec.input_from == "attn":
            what = f"block {i} has {type(attn).__name__}" if blocks else f"{type(model).__name__} has no such blocks"
            raise GraftError(
                f"window_size={window_size} replaces the attention of timm's plain ViT blocks, and {what}: leave "
                "window_size out"
            )
    if isinstance(global_blocks, int):
        if not 0 <= global_blocks <= len(blocks):
            raise ValueError(
                f"global_blocks={global_blocks}: this model has {len(blocks)} blocks; give 0 to {len(blocks)}"
            )
        chosen = {(i + 1) * len(blocks) // global_blocks - 1 for i in range(global_blocks)}
    else:
        chosen = set(global_blocks)
        if not chosen <= set(range(len(blocks))):
            raise ValueError(f"global_blocks={tuple(global_blocks)}: this model has blocks 0 to {len(blocks) - 1}")
    return [block for i, block in enumerate(blocks) if i not in chosen]


def _level(dim: int, base: int, stride: int, out_channels: int | None, dd: dict) -> nn.Sequential:
    """From the map of stride `base` and `dim` channels to that of `stride`."""
    layers: list[nn.Module] = []
    while base > stride:
        if layers:
            layers += [LayerNorm2d(dim, **dd), nn.GELU()]
        layers.append(nn.ConvTranspose2d(dim, dim // 2, 2, 2, **dd))
        base, dim = base // 2, dim // 2
    while base < stride:
        layers.append(nn.MaxPool2d(2))
        base *= 2
    if out_channels is None:
        layers.append(LayerNorm2d(dim, **dd))
    else:
        layers += [
            nn.Conv2d(dim, out_channels, 1, bias=False, **dd),
            LayerNorm2d(out_channels, **dd),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False, **dd),
            LayerNorm2d(out_channels, **dd),
        ]
    return nn.Sequential(*layers)


def _pad_to(x: torch.Tensor, multiple: int, mode: str = "constant") -> torch.Tensor:
    """(B, C, H, W) padded right and bottom to multiples of `multiple`."""
    below, right = (-x.shape[-2]) % multiple, (-x.shape[-1]) % multiple
    return F.pad(x, (0, right, 0, below), mode=mode) if below or right else x


def is_hierarchical(model: nn.Module) -> bool:
    """Whether it is a timm model with maps of several strides."""
    info = getattr(model, "feature_info", None)
    return isinstance(info, list) and len({level["reduction"] for level in info}) > 1


def pyramid(
    model: nn.Module,
    strides: Sequence[int] = STRIDES,
    out_channels: int | None = None,
    source: Source = "last",
    window_size: int | None = None,
    global_blocks: int | Sequence[int] = 4,
    norm: bool = True,
) -> DenseFeatures | SimpleFeaturePyramid:
    """Maps of several strides from any backbone, for detectors and segmentation heads.

    Args:
        model: A plain ViT of timm, torchvision or transformers, or of blocks that `graft` knows; or a hierarchical
            model of timm, whose stages pass through. Grafted or not. It loses the parts that the maps do not need.
        strides: Pixels for each cell of the maps: rising powers of two.
        out_channels: Of all maps of a plain ViT; None: each has its own number.
        source: Where a plain ViT's maps that are coarser than its patch come from: "last", its last map; "levels", the
            levels of its last graft.
        window_size: Side in tokens of the windows inside which a plain ViT of timm attends; None: over the whole image.
        global_blocks: With windows, the blocks that still attend over the whole image: so many, evenly spaced, or their
            indices.
        norm: A new LayerNorm on each stage's map, as in Swin's detectors; a plain ViT's pyramid always has its own.

    Returns:
        A module, images (B, in_chans, H, W) -> list of maps (B, C_i, ceil(H / stride), ceil(W / stride)), finest first
        (hierarchical models round their own way, ConvNeXt and SwinV2-CR down);
        `feature_info.channels()` and `feature_info.reduction()` are known before the first image.

    Raises:
        TypeError: No module, or one made with features_only=True.
        ValueError: An impossible option; or a hierarchical model lacks a stride, or is not of timm.
        GraftError: source="levels" without grafts, windows in blocks that cannot have them, or a model that does not
            keep the grid of its tokens (also a ValueError).
        NoGraftPointError: A model of unknown blocks.

    Example:
        >>> features = vitgraft.pyramid(timm.create_model("vit_small_patch14_reg4_dinov2", pretrained=True))
        >>> [tuple(level.shape[1:]) for level in features(torch.randn(1, 3, 224, 320))]
        [(96, 56, 80), (192, 28, 40), (384, 14, 20), (384, 7, 10)]
    """
    _check_strides(strides)
    if not is_hierarchical(model):
        return SimpleFeaturePyramid(model, out_channels, strides, source, window_size, global_blocks)
    name = type(model).__name__
    for option, value, default in (
        ("out_channels", out_channels, None),
        ("source", source, "last"),
        ("window_size", window_size, None),
    ):
        if value != default:
            raise ValueError(f"{option}={value!r} is for plain ViTs; {name} is hierarchical, its stages pass through")
    # the last map of each stride
    last = {level["reduction"]: i for i, level in enumerate(model.feature_info)}
    if not set(strides) <= set(last):
        raise ValueError(
            f"{name} has maps of strides {sorted(last)}, and strides={tuple(strides)} needs others: choose among them, "
            "or give a plain ViT of one stride"
        )
    return DenseFeatures(model, [last[stride] for stride in strides], norm=norm)
