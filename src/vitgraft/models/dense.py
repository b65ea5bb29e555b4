"""Maps for detection and segmentation: a backbone's stages, each after its own new LayerNorm."""

from collections.abc import Sequence

import torch
from timm.layers import Format, get_device_dtype
from timm.models import FeatureInfo
from timm.models.swin_transformer import SwinTransformerBlock
from torch import nn
from torch.nn import functional as F

__all__ = ["DenseFeatures", "check_size", "new_parts", "resize", "undecayed"]


def resize(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """(B, C, H, W) to the given height and width, bilinearly."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def new_parts(features: nn.Module) -> list[nn.Module]:
    """All that is new around the timm model `features.backbone`."""
    return [child for name, child in features.named_children() if name != "backbone"]


def undecayed(features: nn.Module, prefix: str) -> set[str]:
    """Parameters that the timm model `features.backbone` wants without weight decay; `prefix` is its name outside."""
    names = getattr(getattr(features, "backbone", None), "no_weight_decay", set)()
    return {f"{prefix}.{name}" for name in names}


def _free_size(model: nn.Module) -> tuple[int, int] | None:
    """Switches a ViT or Swin of timm to images of any size, as its option would have made it: `dynamic_img_size` of
    ViTs, `strict_img_size=False` of Swin. Its only size where it has no such, None where that is unknown.
    """
    embed = getattr(model, "patch_embed", None)
    if not getattr(embed, "strict_img_size", False):
        return None
    rope = getattr(model, "rope", None)
    cached = hasattr(rope, "bands") and not hasattr(rope, "_use_cached_embed")  # timm before 1.0.30: no way back
    if getattr(model, "dynamic_img_size", None) is not False or (cached and rope.bands is None):
        return tuple(embed.img_size)
    model.dynamic_img_size = True
    embed.strict_img_size = False
    if getattr(embed, "flatten", False):
        embed.flatten, embed.output_fmt = False, Format.NHWC
    if hasattr(rope, "_use_cached_embed"):
        rope._use_cached_embed = False
    swin_blocks = [module for module in model.modules() if hasattr(module, "dynamic_mask")]
    for block in swin_blocks:
        block.dynamic_mask = True
    if swin_blocks:  # a ViT's images are padded by `SimpleFeaturePyramid`
        embed.dynamic_img_pad = True
    return None


def check_size(
    model: nn.Module, only: tuple[int, int] | None, size: Sequence[int], padded: Sequence[int] | None = None
) -> None:
    """Checks the size of images for a model that may take one size only.

    Args:
        model: The model.
        only: The (height, width) that it takes, in pixels; None: any.
        size: (height, width) of the images.
        padded: Their size when the model gets them; None: as `size`.

    Raises:
        ValueError: They have another size.
    """
    if only is not None and tuple(padded or size) != tuple(only):
        raise ValueError(
            f"{type(model).__name__} takes images of {only[0]} x {only[1]} pixels only, not {size[0]} x {size[1]}: "
            "create it for that size, or resize the images"
        )


class DenseFeatures(nn.Module):
    """What the Swin authors' detection and segmentation backbones give: a map per stage, after a LayerNorm of its own.

    The norms are `norm{i}`, i the index of the stage, as in the authors' checkpoints; `vitgraft.load_official` fills
    them from those, or leaves them new with ImageNet weights. Blocks of the authors' Swin shift their windows as the
    dense-task code does, also on a map of a single window.

    Args:
        model: A timm model with `forward_intermediates` and `feature_info`. With `prune`, it loses what the maps do
            not need: stages behind the last, final norm, classifier (as with `features_only`), so that every parameter
            has a gradient. ViTs and Swins take images of any size afterwards.
        out_indices: Stages to return, from 0 in rising order; negative ones count from the end.
        norm: Without it the maps are the stages' own.
        eps: Of the norms (1e-5, the authors' value).

    Raises:
        TypeError: A model without `forward_intermediates`, or one made with features_only=True.
        ValueError: Indices outside the model, twice the same, or out of order.
    """

    def __init__(
        self,
        model: nn.Module,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        norm: bool = True,
        eps: float = 1e-5,
        prune: bool = True,
    ):
        super().__init__()
        info = getattr(model, "feature_info", None)
        if not hasattr(model, "forward_intermediates") or not isinstance(info, list):
            raise TypeError(
                f"{type(model).__name__} has no forward_intermediates with a list feature_info; give the model itself, "
                "timm.create_model(name) without features_only=True"
            )
        levels = len(info)
        indices = [i + levels if i < 0 else i for i in out_indices]
        if not indices or indices != sorted(set(indices)) or indices[0] < 0 or indices[-1] >= levels:
            raise ValueError(
                f"out_indices={tuple(out_indices)}: use rising indices of this model's {levels} feature levels, "
                f"0 to {levels - 1}"
            )
        if prune and hasattr(model, "prune_intermediate_layers"):
            model.prune_intermediate_layers(indices, prune_norm=True)
        for module in model.modules():
            if isinstance(module, SwinTransformerBlock):  # timm's too, for swin_padding="authors" later on
                module.shift_single_window = True
        self.backbone = model
        self.size = _free_size(model)
        self.out_indices = tuple(indices)
        self.feature_info = FeatureInfo(info, self.out_indices)
        self.norm = norm
        for i in self.out_indices if norm else ():
            layer = nn.LayerNorm(info[i]["num_chs"], eps=eps, **get_device_dtype(model))
            self.add_module(f"norm{i}", layer)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Images (B, in_chans, H, W) to one map (B, C_i, H_i, W_i) per index.

        Raises:
            ValueError: The model takes images of one size only, and these have another.
        """
        check_size(self.backbone, self.size, x.shape[-2:])
        maps = self.backbone.forward_intermediates(x, indices=list(self.out_indices), intermediates_only=True)
        if not self.norm:
            return maps
        return [
            getattr(self, f"norm{i}")(level.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()
            for i, level in zip(self.out_indices, maps, strict=True)
        ]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Saves memory by computing the inside of the backbone's blocks twice."""
        self.backbone.set_grad_checkpointing(enable)
