"""Four maps of strides 4, 8, 16 and 32 from any backbone: what detectors and segmentation heads read.

A backbone with four stages gives them by itself (`DenseFeatures`). A plain ViT has one stride; its last map is turned
into four as in ViTDet (Li et al., "Exploring Plain Vision Transformer Backbones for Object Detection", section 3).
"""

import math
from collections.abc import Sequence

import torch
from timm.layers import LayerNorm2d, get_device_dtype
from timm.models import FeatureInfo
from torch import nn
from torch.nn import functional as F

from vitgraft.models.dense import DenseFeatures

__all__ = ["STRIDES", "SimpleFeaturePyramid", "feature_backbone"]

STRIDES = (4, 8, 16, 32)
"""Pixels for each cell of the maps, finest first."""


class SimpleFeaturePyramid(nn.Module):
    """ViTDet's simple feature pyramid: strides 4, 8, 16 and 32 from the last map of a plain ViT.

    Finer maps by transposed convolutions (2 x 2, stride 2; LayerNorm and GELU between two of them, half the channels
    after each), coarser ones by max pooling (2 x 2). Patches of 14 pixels and the like stand for the nearest power
    of two: their map is interpolated to that stride, every cell staying where it is in the image.

    Args:
        model: A timm model of one stride, with `forward_intermediates` and `feature_info`; it loses its final norm and
            its classifier, so that every parameter has a gradient.
        out_channels: With it, each map goes through ViTDet's 1 x 1 and 3 x 3 convolutions to so many channels, each
            with a LayerNorm, and a detector needs no FPN. Without it, each has its own channels and one new LayerNorm.
        strides: Of the maps, rising powers of two.

    Raises:
        TypeError, ValueError: As `DenseFeatures`; a model of more than one stride, or one beyond 64.
    """

    def __init__(self, model: nn.Module, out_channels: int | None = None, strides: Sequence[int] = STRIDES):
        super().__init__()
        dense = DenseFeatures(model, out_indices=(-1,), norm=False)
        reductions = {level["reduction"] for level in model.feature_info}
        patch = dense.feature_info.reduction()[0]
        if len(reductions) > 1 or patch > 64:
            raise ValueError(
                f"{type(model).__name__} has strides {sorted(reductions)}: a simple feature pyramid is made from a "
                "plain ViT of one stride up to 64"
            )
        dim, dd = dense.feature_info.channels()[0], get_device_dtype(model)
        self.backbone = model
        self.index = dense.out_indices[0]
        self.patch = patch
        self.base = 2 ** round(math.log2(patch))  # stride that the map is brought to first
        self.strides = tuple(strides)
        self.levels = nn.ModuleList(_level(dim, self.base, stride, out_channels, dd) for stride in strides)
        channels = [out_channels or dim // max(1, self.base // stride) for stride in strides]
        info = [
            {"num_chs": number, "reduction": stride, "module": f"levels.{i}", "index": i}
            for i, (number, stride) in enumerate(zip(channels, strides, strict=True))
        ]
        self.feature_info = FeatureInfo(info, tuple(range(len(info))))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Images (B, in_chans, H, W) to one map (B, C_i, ceil(H / stride), ceil(W / stride)) per stride."""
        size = x.shape[-2:]
        x = _pad_to(x, self.patch)
        x = self.backbone.forward_intermediates(x, indices=[self.index], intermediates_only=True)[0]
        if self.base != self.patch:
            # one more row and column, or the last cells would have nothing to be interpolated from; the scale is
            # given and not derived from the sizes, so that cell i keeps its place (i + 0.5) * stride in the image
            x = F.pad(x, (0, 2, 0, 2), mode="replicate")
            x = F.interpolate(x, scale_factor=self.patch / self.base, mode="bilinear", align_corners=False)
            x = x[..., : -(-size[0] // self.base), : -(-size[1] // self.base)]
        # pooling leaves out odd last rows, which DenseFeatures' merging keeps
        x = _pad_to(x, max(1, self.strides[-1] // self.base), "replicate")
        maps = [level(x) for level in self.levels]
        return [
            level[..., : -(-size[0] // stride), : -(-size[1] // stride)]
            for level, stride in zip(maps, self.strides, strict=True)
        ]


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


def feature_backbone(
    model: nn.Module, out_channels: int | None = None, norm: bool = True
) -> DenseFeatures | SimpleFeaturePyramid:
    """Four NCHW maps of strides 4, 8, 16 and 32 from any timm backbone.

    Args:
        model: A timm model, grafted or not; it loses the parts that the maps do not need.
        out_channels: Channels of the four maps of a plain ViT's pyramid; None: each has its own number.
        norm: A new LayerNorm on each stage's map, as in Swin's detectors; a plain ViT's pyramid always has its own.

    Returns:
        A module: images (B, in_chans, H, W) -> list of four (B, C_i, ceil(H / stride), ceil(W / stride)), finest first;
        `feature_info.channels()` and `feature_info.reduction()` are known before the first image.

    Raises:
        TypeError: A model without `forward_intermediates`, or made with features_only=True.
        ValueError: Its stages lack one of the strides, and it has more than one.
    """
    info = getattr(model, "feature_info", None)
    if not isinstance(info, list):
        return DenseFeatures(model)  # which raises
    reductions = [level["reduction"] for level in info]
    if set(STRIDES) <= set(reductions):
        last = {reduction: i for i, reduction in enumerate(reductions)}  # the last map of each stride
        return DenseFeatures(model, [last[stride] for stride in STRIDES], norm=norm)
    if len(set(reductions)) > 1:
        raise ValueError(
            f"{type(model).__name__} has maps of strides {sorted(set(reductions))}; dense tasks need 4, 8, 16 and 32, "
            "or a plain ViT of one stride"
        )
    return SimpleFeaturePyramid(model, out_channels)
