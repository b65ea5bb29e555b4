"""From an RGB image and its objects to the input of a detector, in torchvision.transforms.v2.

"multiscale" is the augmentation of DETR and Sparse R-CNN, which the Swin authors train with
(SwinTransformer/Swin-Transformer-Object-Detection configs/swin/mask_rcnn_swin_tiny_..._1x_coco.py): a flip, then by
equal chance (a) one of the short sides 480, 512, ..., 800, or (b) a short side of 400, 500 or 600, a random crop with
sides of 384 to 600, then (a). "single" is mmdetection's: one size and the flip. "native" changes no size.

One difference from mmdetection: an object with a mask of which the crop leaves no pixel is dropped (detectron2's
`filter_empty_instances` does so), where mmdetection keeps its box.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Any, Literal

import torch
from PIL import Image
from pydantic import AfterValidator, Field, PositiveInt
from pydantic.dataclasses import dataclass
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from vitgraft.data.transforms import fit_size
from vitgraft.options import Fraction

__all__ = ["DetectionAugmentation", "DetectionPreprocessing", "eval_transform", "train_transform"]

Transform = Callable[[Image.Image, dict[str, Any]], tuple[torch.Tensor, dict[str, Any]]]


@plain_dataclass(frozen=True)
class DetectionPreprocessing:
    """How images are prepared for a detector.

    Args:
        input_size: (Short side, longest long side) in pixels that the images are resized to; the largest that they
            have, where they keep their size.
        mean: Per channel, 0 to 1.
        std: Per channel, 0 to 1.
        native: Images keep their size.
    """

    input_size: tuple[int, int] = (800, 1333)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    native: bool = False


def _ordered(sides: tuple[int, int]) -> tuple[int, int]:
    if sides[0] > sides[1]:
        raise ValueError("the least and the largest side in pixels, such as [384, 600]")
    return sides


Sides = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]


@dataclass(frozen=True)
class DetectionAugmentation:
    """How training images are varied.

    Args:
        augmentation: "multiscale", "single" or "native".
        short_sides: Short sides of "multiscale", pixels.
        crop_short_sides: Short sides before the crop.
        crop_sides: Least and largest side of the crop.
        hflip: Probability of a horizontal flip.
        vflip: Probability of a vertical flip.

    Raises:
        ValueError: Values that are not possible.
    """

    augmentation: Literal["multiscale", "single", "native"] = "single"
    short_sides: Sides = tuple(range(480, 801, 32))
    crop_short_sides: Sides = (400, 500, 600)
    crop_sides: Annotated[tuple[PositiveInt, PositiveInt], AfterValidator(_ordered)] = (384, 600)
    hflip: Fraction = 0.5
    vflip: Fraction = 0.0


class ResizeShortSide(v2.RandomShortestSize):
    """Keeps the aspect; the short side is drawn from `min_size`, the long one is at most `max_size`.

    Rounded as mmcv does, where torchvision rounds down.
    """

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """The size, drawn once for the image and all that belongs to it."""
        side = self.min_size[int(torch.randint(len(self.min_size), ()))]
        return {"size": list(fit_size(*v2.query_size(flat_inputs), side, self.max_size))}


class RandomCropRange(v2.Transform):
    """A crop whose height and width are drawn on their own between two sizes, or what the image has of them.

    mmdetection's RandomCrop(crop_type="absolute_range", allow_negative_crop=True).
    """

    def __init__(self, low: int, high: int):
        super().__init__()
        self.low, self.high = low, high

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Place and size, drawn once for the image and all that belongs to it."""
        sides = v2.query_size(flat_inputs)
        drawn = [_between(min(side, self.low), min(side, self.high)) for side in sides]
        top, left = (_between(0, side - own) for side, own in zip(sides, drawn, strict=True))
        return {"top": top, "left": left, "height": drawn[0], "width": drawn[1]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Cuts it out."""
        return self._call_kernel(F.crop, inpt, **params)


class DropUnseen(v2.Transform):
    """Clips the boxes to the image and drops the objects of which nothing is left: no box, or no pixel of the mask."""

    def forward(self, image: Any, target: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """(image, target) -> the same with fewer objects"""
        boxes = F.clamp_bounding_boxes(target["boxes"])
        keep = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
        if "masks" in target:
            keep &= (target["masks"] > 0).flatten(1).any(1)
        kept = {"labels": target["labels"][keep], "boxes": tv_tensors.wrap(boxes[keep], like=boxes)}
        if "masks" in target:
            kept["masks"] = tv_tensors.wrap(target["masks"][keep], like=target["masks"])
        return image, {**target, **kept}


def _between(low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, ()))


def train_transform(preprocessing: DetectionPreprocessing, augmentation: DetectionAugmentation) -> Transform:
    """(RGB image, target of `to_target`) -> (float32 (3, H, W), target), drawn from PyTorch's global generator."""
    short_side, max_size = preprocessing.input_size
    steps: list[Any] = [v2.RandomHorizontalFlip(augmentation.hflip), v2.RandomVerticalFlip(augmentation.vflip)]
    if augmentation.augmentation == "multiscale":
        resize = ResizeShortSide(augmentation.short_sides, max_size)
        crop = [ResizeShortSide(augmentation.crop_short_sides, max_size), RandomCropRange(*augmentation.crop_sides)]
        steps.append(v2.RandomChoice([resize, v2.Compose([*crop, DropUnseen(), resize])]))
    elif augmentation.augmentation == "single":
        steps.append(ResizeShortSide([short_side], max_size))
    return v2.Compose([v2.ToImage(), *steps, *_finish(preprocessing)])


def eval_transform(preprocessing: DetectionPreprocessing) -> Callable[[Image.Image], torch.Tensor]:
    """RGB image -> float32 (3, H, W); nothing is random."""
    steps = (
        [] if preprocessing.native else [ResizeShortSide([preprocessing.input_size[0]], preprocessing.input_size[1])]
    )
    return v2.Compose([v2.ToImage(), *steps, *_finish(preprocessing)])


def _finish(preprocessing: DetectionPreprocessing) -> list[v2.Transform]:
    return [
        v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
        v2.Normalize(preprocessing.mean, preprocessing.std),
        v2.ToPureTensor(),
    ]
