"""From an image and its labels to the input of a segmentation model: the augmentation of mmsegmentation for ADE20K.

Training: resize to fit (2048, 512) times a random ratio, a random crop in which no class has more than 75 % of the
labeled pixels, flip, photometric distortion, standardize, pad. Evaluation: resize to fit (2048, 512), standardize;
labels stay as they are.

Differences from mmsegmentation's `PhotoMetricDistortion`: saturation is blended with gray as torchvision does it, not
multiplied in HSV; colors are clipped once at the end, not after each step. Images are resized with antialiasing where
`antialias` is set; OpenCV, which the authors used, has none.

Everything is drawn from Python's global generator.
"""

from __future__ import annotations

import random
from dataclasses import dataclass as plain_dataclass
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torchvision.transforms.v2 import functional as V

from vitgraft.data.label_maps import IGNORE
from vitgraft.data.transforms import fit_size
from vitgraft.options import Fraction, Range

__all__ = [
    "EvalTransform",
    "SegmentationAugmentation",
    "SegmentationPreprocessing",
    "TrainTransform",
    "crop_box",
    "photometric_distortion",
]

CROP_TRIES = 10  # mmsegmentation RandomCrop: after so many the crop is taken as it is
# mmsegmentation PhotoMetricDistortion's defaults; brightness of 0 to 255, hue of 180 (OpenCV's half degrees)
BRIGHTNESS, CONTRAST, SATURATION, HUE = 32 / 255, (0.5, 1.5), (0.5, 1.5), 18 / 180


@plain_dataclass(frozen=True)
class SegmentationPreprocessing:
    """What a segmentation model expects of its images.

    Args:
        input_size: (Height, width) of the training crops, pixels.
        mean: Per channel, 0 to 1.
        std: Per channel, 0 to 1.
        short_side: Images are resized, with their aspect kept, so that the shorter side has at most so many pixels;
            None: they keep their size.
        long_side: And the longer side at most so many; None: no limit.
        antialias: Whether shrinking averages pixels.
    """

    input_size: tuple[int, int] = (512, 512)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    short_side: int | None = 512
    long_side: int | None = 2048
    antialias: bool = True

    def size_of(self, height: int, width: int, ratio: float = 1.0) -> tuple[int, int]:
        """(height, width) to which an image of that size is resized."""
        return fit_size(height, width, self.short_side, self.long_side, ratio)

    def standardize(self, image: Tensor) -> Tensor:
        """(..., 3, H, W) of 0 to 1, standardized."""
        mean, std = (torch.tensor(values, device=image.device).view(3, 1, 1) for values in (self.mean, self.std))
        return (image - mean) / std


@dataclass(frozen=True)
class SegmentationAugmentation:
    """How training images are varied.

    Args:
        scale: Smallest and largest factor on the evaluation's size.
        cat_max_ratio: Largest fraction of the labeled pixels of a crop that one class may have, as far as ten tries
            can find one; 1: any crop will do.
        hflip: Probability of a horizontal flip.
        photometric: Whether brightness, contrast, saturation and hue are varied.

    Raises:
        ValueError: Values that are not possible.
    """

    scale: Range = (0.5, 2.0)
    cat_max_ratio: Annotated[float, Field(gt=0, le=1)] = 0.75
    hflip: Fraction = 0.5
    photometric: bool = True


def crop_box(labels: Tensor, size: tuple[int, int], cat_max_ratio: float) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random crop that one class does not fill (mmsegmentation's `RandomCrop`).

    Args:
        labels: (H, W), 255 where ignored.
        size: (Height, width); less where the image is smaller.
        cat_max_ratio: Largest fraction of the labeled pixels that one class may have; 1: any.
    """
    height, width = min(size[0], labels.shape[0]), min(size[1], labels.shape[1])
    for _ in range(CROP_TRIES if cat_max_ratio < 1 else 1):
        top = random.randint(0, labels.shape[0] - height)
        left = random.randint(0, labels.shape[1] - width)
        if cat_max_ratio >= 1:
            break
        counts = torch.bincount(labels[top : top + height, left : left + width].reshape(-1).int(), minlength=IGNORE + 1)
        counts = counts[:IGNORE]
        if (counts > 0).sum() > 1 and counts.max() < cat_max_ratio * counts.sum():
            break
    return top, left, height, width


def photometric_distortion(image: Tensor) -> Tensor:
    """Brightness, contrast (before or after the rest), saturation and hue, each with probability 1/2.

    Args:
        image: float32 (3, H, W) of 0 to 1.

    Returns:
        The same, clipped to 0 to 1.
    """
    if random.random() < 0.5:
        image = image + random.uniform(-BRIGHTNESS, BRIGHTNESS)
    contrast_first = random.random() < 0.5
    # contrast is a plain factor there, with black kept, not torchvision's distance from the mean
    contrast = random.uniform(*CONTRAST) if random.random() < 0.5 else 1.0
    if contrast_first:
        image = image * contrast
    image = image.clamp(0, 1)
    if random.random() < 0.5:
        image = V.adjust_saturation(image, random.uniform(*SATURATION))
    if random.random() < 0.5:
        image = V.adjust_hue(image, random.uniform(-HUE, HUE))
    return image if contrast_first else (image * contrast).clamp(0, 1)


def to_tensors(image: Image.Image, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    """uint8 (3, H, W) and uint8 (H, W)."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    return pixels, torch.from_numpy(np.ascontiguousarray(labels))


def resize_image(pixels: Tensor, size: tuple[int, int], antialias: bool) -> Tensor:
    """uint8 (3, H, W) resized, bilinear with half-pixel centers."""
    if tuple(pixels.shape[-2:]) == tuple(size):
        return pixels
    return V.resize(pixels, list(size), antialias=antialias)


def resize_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """(H, W) resized: each pixel takes a class that was there."""
    if tuple(labels.shape) == tuple(size):
        return labels
    return F.interpolate(labels[None, None], tuple(size), mode="nearest-exact")[0, 0]


class TrainTransform:
    """(image, labels (H, W)) -> (float32 (3, h, w), int64 (h, w)), of the crop's size.

    Args:
        preprocessing: Size, mean, std.
        augmentation: How the images are varied.
    """

    def __init__(self, preprocessing: SegmentationPreprocessing, augmentation: SegmentationAugmentation):
        self.preprocessing, self.augmentation = preprocessing, augmentation

    def __call__(self, image: Image.Image, labels: np.ndarray) -> tuple[Tensor, Tensor]:
        given, varied = self.preprocessing, self.augmentation
        pixels, classes = to_tensors(image, labels)
        size = given.size_of(*classes.shape, random.uniform(*varied.scale))
        classes = resize_labels(classes, size)
        top, left, height, width = crop_box(classes, given.input_size, varied.cat_max_ratio)
        classes = classes[top : top + height, left : left + width]
        pixels = resize_image(pixels, size, given.antialias)[:, top : top + height, left : left + width]
        if random.random() < varied.hflip:
            pixels, classes = pixels.flip(2), classes.flip(1)
        pixels = pixels.float() / 255
        if varied.photometric:
            pixels = photometric_distortion(pixels)
        # zeros after standardizing, as mmsegmentation pads: the mean color
        right, below = given.input_size[1] - width, given.input_size[0] - height
        pixels = F.pad(given.standardize(pixels), (0, right, 0, below))
        return pixels.contiguous(), F.pad(classes, (0, right, 0, below), value=IGNORE).long()


class EvalTransform:
    """(image, labels (H, W)) -> (float32 (3, h, w) of the evaluation's size, int64 (H, W) as they are).

    Args:
        preprocessing: Size, mean, std.
    """

    def __init__(self, preprocessing: SegmentationPreprocessing):
        self.preprocessing = preprocessing

    def image(self, image: Image.Image) -> Tensor:
        """RGB image -> float32 (3, h, w)"""
        given = self.preprocessing
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        pixels = resize_image(pixels, given.size_of(image.height, image.width), given.antialias)
        return given.standardize(pixels.float() / 255)

    def __call__(self, image: Image.Image, labels: np.ndarray) -> tuple[Tensor, Tensor]:
        return self.image(image), torch.from_numpy(np.ascontiguousarray(labels)).long()
