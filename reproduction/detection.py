"""What a detector costs: parameters and MAC of table 3, counted part by part.

The published FLOPs of Mask R-CNN are those of mmdetection's counter on a 1280 x 800 image, whose `forward_dummy` runs
the box head on 1000 proposals and the mask head on 100; so does this one. Selecting boxes and RoIAlign have no matrix
products and count nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from vitgraft.models.mask_rcnn import MaskRCNN
from vitgraft.tools.count import count_parts
from vitgraft.weights.create import build_model

__all__ = ["IMAGE_SIZE", "Counted", "build", "cost"]

IMAGE_SIZE = (800, 1280)
"""Height and width at which table 3 counts."""
BOX_PROPOSALS, MASK_PROPOSALS = 1000, 100
CLASSES = 80
"""Of COCO."""


class Counted(nn.Module):
    """What is counted of a detector: all that is computed for one image, with a fixed number of proposals."""

    def __init__(self, detector: MaskRCNN):
        super().__init__()
        self.backbone, self.rpn, heads = detector.backbone, detector.rpn.head, detector.roi_heads
        self.box = nn.Sequential(heads.box_head, heads.box_predictor)
        self.mask = nn.Sequential(heads.mask_head, heads.mask_predictor) if detector.has_masks else None

    def forward(self, image: torch.Tensor) -> list:
        maps = list(self.backbone(image).values())
        outputs = [self.rpn(maps), self.box(image.new_zeros(BOX_PROPOSALS, maps[0].shape[1], 7, 7))]
        if self.mask is not None:
            outputs.append(self.mask(image.new_zeros(MASK_PROPOSALS, maps[0].shape[1], 14, 14)))
        return outputs


def cost(detector: MaskRCNN, size: Sequence[int] = IMAGE_SIZE) -> dict[str, dict[str, int]]:
    """Parameters and MAC of a detector and its parts.

    Args:
        detector: Its tensors may be on the meta device; it is not run.
        size: Height and width of the image, multiples of 32.

    Returns:
        "total", "backbone", "fpn", "rpn", "box", "mask" -> {"params": ..., "macs": ...}; "fpn" and "mask" only where
        there is one.
    """
    parts = {"total": "", "backbone": "backbone.features", "fpn": "backbone.fpn"}
    parts |= {"rpn": "rpn", "box": "box", "mask": "mask"}
    return count_parts(Counted(detector), (3, *size), parts)


def build(
    backbone: str,
    graft: Mapping[str, Any] | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    device: str = "meta",
    **options: Any,
) -> MaskRCNN:
    """A COCO detector of table 3; without tensors, which is enough to count, unless another device is given.

    Args:
        backbone: timm's name.
        graft: Options of its graft, as in a recipe.
        model_kwargs: Other options of the backbone, likewise.
        device: Where its tensors are made.
        **options: Of `MaskRCNN`.
    """
    with torch.device(device):
        return MaskRCNN(build_model(backbone, 0, model_kwargs, graft, device=device), CLASSES, **options)
