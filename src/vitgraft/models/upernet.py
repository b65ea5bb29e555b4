"""UperNet as the Swin authors train it on ADE20K: pyramid pooling and a feature pyramid over four maps, FCN head aside.

The function and the parameter names are mmsegmentation's (`decode_head.`, `auxiliary_head.`; mmseg/models/decode_heads/
uper_head.py, psp_head.py and fcn_head.py, configs/_base_/models/upernet_swin.py of SwinTransformer/
Swin-Transformer-Semantic-Segmentation), so that the authors' checkpoints load: `vitgraft.load_official`.

Why not the decoder of segmentation-models-pytorch: its UPerNet pools into a quarter of the coarsest map's channels
instead of 512, merges them by a 1 x 1 convolution instead of 3 x 3, and has neither 3 x 3 convolutions on the levels of
the pyramid nor an auxiliary head. That is another function, and no published weights of the Swin authors fit it.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vitgraft.models.dense import new_parts, resize, undecayed

__all__ = ["FCNHead", "UperHead", "UperNet"]

# B batch, C_i x H_i x W_i the backbone's maps from fine (stride 4) to coarse, K classes


def _conv(inputs: int, outputs: int, kernel: int, **dd: Any) -> nn.Sequential:
    """Convolution without bias, batch norm, ReLU, under mmcv's names (`conv`, `bn`)."""
    layers = OrderedDict(
        conv=nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **dd),
        bn=nn.BatchNorm2d(outputs, **dd),  # not timm's fused one: nn.SyncBatchNorm's conversion would drop its ReLU
        relu=nn.ReLU(inplace=True),
    )
    return nn.Sequential(layers)


class _Head(nn.Module):
    """The classifier that both heads end with: dropout of whole channels, then 1 x 1."""

    def __init__(self, channels: int, num_classes: int, dropout: float, **dd: Any):
        super().__init__()
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = nn.Conv2d(channels, num_classes, 1, **dd)

    def init_weights(self) -> None:
        """mmcv's initial values: He's normal for the convolutions, N(0, 0.01) for the classifier."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is None:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.conv_seg.weight, std=0.01)
        nn.init.zeros_(self.conv_seg.bias)

    def classify(self, x: Tensor) -> Tensor:
        return self.conv_seg(self.dropout(x))


class UperHead(_Head):
    """Pyramid pooling on the coarsest map, a feature pyramid over all, one classifier at the finest map's size.

    Args:
        in_channels: Of the maps, from fine to coarse.
        num_classes: K.
        channels: Width of everything inside.
        pool_scales: Sides of the pooled maps.
        dropout: Fraction of the channels dropped before the classifier, in training.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        channels: int = 512,
        pool_scales: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
        **dd: Any,
    ):
        super().__init__(channels, num_classes, dropout, **dd)
        last = in_channels[-1]
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), _conv(last, channels, 1, **dd)) for scale in pool_scales
        )
        self.bottleneck = _conv(last + len(pool_scales) * channels, channels, 3, **dd)
        self.lateral_convs = nn.ModuleList(_conv(inputs, channels, 1, **dd) for inputs in in_channels[:-1])
        self.fpn_convs = nn.ModuleList(_conv(channels, channels, 3, **dd) for _ in in_channels[:-1])
        self.fpn_bottleneck = _conv(len(in_channels) * channels, channels, 3, **dd)
        self.init_weights()

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C_i, H_i, W_i) to logits (B, K, H_0, W_0)."""
        coarse = maps[-1]
        pooled = [resize(module(coarse), coarse.shape[2:]) for module in self.psp_modules]
        levels = [conv(level) for conv, level in zip(self.lateral_convs, maps[:-1], strict=True)]
        levels.append(self.bottleneck(torch.cat([coarse, *pooled], 1)))
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + resize(levels[i], levels[i - 1].shape[2:])
        outputs = [*(conv(level) for conv, level in zip(self.fpn_convs, levels[:-1], strict=True)), levels[-1]]
        size = outputs[0].shape[2:]
        outputs = [outputs[0], *(resize(output, size) for output in outputs[1:])]
        return self.classify(self.fpn_bottleneck(torch.cat(outputs, 1)))


class FCNHead(_Head):
    """One 3 x 3 convolution and a classifier on one map: the auxiliary head."""

    def __init__(self, in_channels: int, num_classes: int, channels: int = 256, dropout: float = 0.1, **dd: Any):
        super().__init__(channels, num_classes, dropout, **dd)
        self.convs = nn.Sequential(_conv(in_channels, channels, 3, **dd))
        self.init_weights()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to logits (B, K, H, W)."""
        return self.classify(self.convs(x))


class UperNet(nn.Module):
    """A backbone with UperNet's head, and in training an FCN head on one of its inner maps.

    Args:
        backbone: Images -> list of maps, from fine to coarse, with `feature_info.channels()`: what
            `vitgraft.pyramid` returns, or DenseFeatures (a new LayerNorm on each map, as the authors have it).
        num_classes: K.
        channels: Width of the head; less than the authors' 512 is cheaper (MAC grow with its square).
        pool_scales: Sides of the maps of the pyramid pooling.
        dropout: Of channels, before the classifiers.
        aux_channels: Width of the auxiliary head; None or 0: no such head.
        aux_index: Which map the auxiliary head sees; 2 is stride 16.

    Raises:
        TypeError: A backbone without `feature_info.channels()`.
        ValueError: Numbers out of range; the message names all.
    """

    heads = ("decode_head.", "auxiliary_head.")  # names of a checkpoint that are not the backbone's

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        channels: int = 512,
        pool_scales: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
        aux_channels: int | None = 256,
        aux_index: int = 2,
    ):
        super().__init__()
        info = getattr(backbone, "feature_info", None)
        if not hasattr(info, "channels"):
            raise TypeError(
                f"{type(backbone).__name__} has no feature_info with the channels of its maps; wrap the model: "
                "vitgraft.pyramid(model), or vitgraft.DenseFeatures(model) for the stages of timm's"
            )
        widths = list(info.channels())
        errors = [
            f"{name}={value!r}: {hint}"
            for name, value, good, hint in (
                ("num_classes", num_classes, num_classes >= 1, "give 1 or more"),
                ("channels", channels, channels >= 1, "give 1 or more"),
                ("pool_scales", pool_scales, min(pool_scales, default=0) >= 1, "give sides of 1 or more"),
                ("dropout", dropout, 0 <= dropout < 1, "give a fraction from 0 up and below 1"),
                ("aux_channels", aux_channels, not aux_channels or aux_channels > 0, "give 1 or more, or None"),
                ("aux_index", aux_index, -len(widths) <= aux_index < len(widths), f"there are {len(widths)} maps"),
            )
            if not good
        ]
        if errors:
            raise ValueError("; ".join(errors))
        parameter = next(backbone.parameters())
        dd = {"device": parameter.device, "dtype": parameter.dtype}
        self.num_classes = num_classes
        self.aux_index = aux_index
        self.backbone = backbone
        self.decode_head = UperHead(widths, num_classes, channels, pool_scales, dropout, **dd)
        self.auxiliary_head = None
        if aux_channels:
            self.auxiliary_head = FCNHead(widths[aux_index], num_classes, aux_channels, dropout, **dd)

    def get_classifier(self) -> tuple[nn.Module, ...]:
        """All that is new around the timm model: what trains when the backbone is frozen."""
        return (
            *new_parts(self.backbone),
            *(head for head in (self.decode_head, self.auxiliary_head) if head is not None),
        )

    def no_weight_decay(self) -> set[str]:
        """Parameters that the timm model wants without weight decay, by their names here."""
        return undecayed(self.backbone, "backbone.backbone")

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) of any size to logits (B, K, H, W); in training with an auxiliary head also those of it.

        The auxiliary head does not run in evaluation.
        """
        size = images.shape[2:]
        maps = self.backbone(images)
        logits = resize(self.decode_head(maps), size)
        if self.training and self.auxiliary_head is not None:
            return logits, resize(self.auxiliary_head(maps[self.aux_index]), size)
        return logits
