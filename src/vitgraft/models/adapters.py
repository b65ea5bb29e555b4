"""Pyramids as backbones of other libraries' systems: segmentation-models-pytorch's decoders, transformers' heads.

torchvision's detectors take `vitgraft.models.mask_rcnn.FPNBackbone`.
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from vitgraft.errors import MissingExtraError
from vitgraft.models.feature_pyramid import pyramid

__all__ = ["SMPEncoder", "TransformersBackbone", "register_smp_encoder"]


class SMPEncoder(nn.Module):
    """A plain ViT as an encoder of segmentation-models-pytorch: the image, and maps of strides 2 to 32.

    Args:
        model: A plain ViT, as `vitgraft.pyramid` takes it.
        depth: Number of maps beside the image.
        output_stride: Coarsest stride (8, 16 or 32); deeper maps stay at it, as those of a dilated network do.
        strides: Those that the decoder reads, the coarsest among them; the other maps have no channels, as those of
            the library's own transformer encoders at stride 2. None: all. What a decoder does not read has parameters
            without gradients, for which DistributedDataParallel waits.
        **options: Of `vitgraft.pyramid`: `out_channels`, `source`, `window_size`, `global_blocks`.

    Raises:
        TypeError, ValueError: As `vitgraft.pyramid`; strides that there are not, or without the coarsest.
    """

    _is_torch_scriptable = False
    _is_torch_exportable = _is_torch_compilable = True

    def __init__(
        self,
        model: nn.Module,
        depth: int = 5,
        output_stride: int = 32,
        strides: Sequence[int] | None = None,
        **options: Any,
    ):
        super().__init__()
        self.strides = [min(2 ** (i + 1), output_stride) for i in range(depth)]
        strides = sorted(set(self.strides if strides is None else strides))
        if not set(strides) <= set(self.strides) or self.strides[-1] not in strides:
            raise ValueError(
                f"strides={tuple(strides)}: with encoder_depth={depth} and output_stride={output_stride} choose among "
                f"{tuple(dict.fromkeys(self.strides))}, {self.strides[-1]} included"
            )
        self.in_channels = next(m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d))
        self.features = pyramid(model, strides, **options)
        self.output_stride = self.strides[-1]
        channels = dict(zip(strides, self.features.feature_info.channels(), strict=True))
        self.out_channels = [self.in_channels, *(channels.get(stride, 0) for stride in self.strides)]

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Images (B, in_channels, H, W) to [x, map of stride 2, of stride 4, ...]."""
        found = dict(zip(self.features.feature_info.reduction(), self.features(x), strict=True))
        H, W = x.shape[-2:]
        return [
            x,
            *(
                found[stride] if stride in found else x.new_empty(x.shape[0], 0, -(-H // stride), -(-W // stride))
                for stride in self.strides
            ),
        ]

    def set_in_channels(self, in_channels: int, pretrained: bool = True) -> None:
        """Checks the channels that the library asks for.

        Raises:
            ValueError: The model reads images of other channels.
        """
        if in_channels != self.in_channels:
            raise ValueError(
                f"in_channels={in_channels}: this encoder's model reads {self.in_channels}; create it for others "
                f"(timm: in_chans={in_channels})"
            )

    def make_dilated(self, output_stride: int) -> None:
        """Nothing to do: the encoder was made for its output stride."""


def _make_smp_encoder(model: nn.Module | Callable[[], nn.Module], options: dict, **params: Any) -> SMPEncoder:
    return SMPEncoder(copy.deepcopy(model) if isinstance(model, nn.Module) else model(), **params, **options)


def register_smp_encoder(name: str, model: nn.Module | Callable[[], nn.Module], **options: Any) -> None:
    """Makes a plain ViT an encoder of segmentation-models-pytorch, for every decoder that takes any encoder.

    Hierarchical models of timm and of this package need no registration: `encoder_name="tu-NAME"`.

    Args:
        name: The `encoder_name`, given with `encoder_weights=None`.
        model: A plain ViT, as `vitgraft.pyramid` takes it, of which each network gets a copy; or a function that makes
            one.
        **options: Of `SMPEncoder`: `strides`, `out_channels`, `source`, `window_size`, `global_blocks`.

    Raises:
        MissingExtraError: segmentation-models-pytorch is not installed.
        ValueError: The name is taken.

    Example:
        >>> vitgraft.register_smp_encoder("dinov2", lambda: timm.create_model("vit_small_patch14_dinov2"))
        >>> net = segmentation_models_pytorch.Unet("dinov2", encoder_weights=None, classes=5)
    """
    try:
        from segmentation_models_pytorch.encoders import encoders
    except ImportError as error:
        raise MissingExtraError("segmentation-models-pytorch", "dev") from error
    if name in encoders or name.startswith("tu-"):
        raise ValueError(f"name={name!r} is an encoder of segmentation-models-pytorch already: choose another name")
    encoders[name] = {"encoder": partial(_make_smp_encoder, model, options), "params": {}, "pretrained_settings": {}}


class TransformersBackbone(nn.Module):
    """A pyramid with what transformers' heads ask of a backbone (`AutoBackbone`).

    `channels`, `out_features` and `stage_names` are known before the first image.

    Args:
        features: What `vitgraft.pyramid` returned.
    """

    def __init__(self, features: nn.Module):
        super().__init__()
        self.features = features
        self.channels = list(features.feature_info.channels())
        self.out_features = [f"stride{stride}" for stride in features.feature_info.reduction()]
        self.stage_names = list(self.out_features)
        self.out_indices = list(range(len(self.channels)))
        self.out_feature_channels = dict(zip(self.out_features, self.channels, strict=True))

    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> Any:
        """Images (B, C, H, W) to a `BackboneOutput` with the tuple `feature_maps`; other arguments are ignored."""
        from transformers.modeling_outputs import BackboneOutput

        return BackboneOutput(feature_maps=tuple(self.features(pixel_values)))

    def forward_with_filtered_kwargs(self, *args: Any, **kwargs: Any) -> Any:
        """As `forward`."""
        return self(*args, **kwargs)
