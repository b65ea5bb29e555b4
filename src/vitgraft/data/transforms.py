"""From an RGB image to the input of a model: timm's transforms, under timm's names."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Annotated, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import AfterValidator, NonNegativeFloat, PositiveInt
from pydantic.dataclasses import dataclass
from timm.data import auto_augment, create_transform, resolve_model_data_config
from timm.data.transforms import MaybeToTensor
from torch import nn
from torchvision import transforms

from vitgraft.models.spec import input_size_of
from vitgraft.options import Fraction, Range

Transform = Callable[[Image.Image], torch.Tensor]


class BatchedTransform:
    """A transform whose last steps, to a tensor and normalized, are done for a whole batch at once.

    The values are those of the steps one by one, bit for bit; for small images it is several times faster.

    Args:
        image: RGB image -> RGB image of the final size.
        mean: Per channel, 0 to 1.
        std: Per channel, 0 to 1.
    """

    def __init__(self, image: Callable[[Image.Image], Image.Image], mean: Sequence[float], std: Sequence[float]):
        self.image = image
        self.mean, self.std = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """RGB image -> float32 (3, H, W)"""
        return self.finish([self.image(image)])[0]

    def finish(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Images of one size -> float32 (B, 3, H, W)"""
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
        scaled = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(255)
        return scaled.sub_(self.mean).div_(self.std)


class PadCrop:
    """A random crop of an image with zeros around.

    Args:
        size: (height, width) of the crop, pixels.
        padding: Zeros on each side, pixels; more where the image is smaller than the crop.
    """

    def __init__(self, size: tuple[int, int], padding: int):
        self.size, self.padding = size, padding

    def __call__(self, image: Image.Image) -> Image.Image:
        height, width = self.size
        pad_x, pad_y = max(self.padding, width - image.width), max(self.padding, height - image.height)
        left = random.randint(-pad_x, image.width + pad_x - width)
        top = random.randint(-pad_y, image.height + pad_y - height)
        return image.crop((left, top, left + width, top + height))  # black where there is no image


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What a model expects of its images; timm's data configuration (`timm.data.resolve_data_config`).

    Args:
        input_size: (height, width) in pixels.
        interpolation: Of the resize in evaluation.
        mean: Per channel, 0 to 1.
        std: Per channel, 0 to 1.
        crop_pct: Fraction of the resized image's side that the center crop keeps.
        crop_mode: "center", "squash" or "border".
    """

    input_size: tuple[int, int] = (224, 224)
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    crop_pct: float = 0.875
    crop_mode: str = "center"


def _readable_by_timm(text: str) -> str:
    try:
        create_transform(32, is_training=True, auto_augment=text)
    except Exception as error:  # timm's parser lets KeyError, ValueError, AssertionError ... through
        examples = "'rand-m9-mstd0.5-inc1', 'augmix-m5-w4-d2' or 'original'"
        raise ValueError(f"timm can't read it ({error or type(error).__name__}); such as {examples}") from error
    return text


@dataclass(frozen=True)
class Augmentation:
    """How training images are varied; the names are those of timm's training script.

    Args:
        scale: Smallest and largest fraction of the image's area that the random crop takes.
        ratio: Smallest and largest width / height of the random crop.
        hflip: Probability of a horizontal flip.
        vflip: Probability of a vertical flip.
        color_jitter: Range of brightness, contrast and saturation; unused while `auto_augment` is on.
        auto_augment: timm's text for AutoAugment, RandAugment or AugMix, such as "rand-m9-mstd0.5-inc1".
        train_interpolation: "bicubic", "bilinear", or "random" for one of both by chance.
        train_crop_mode: "rrc" random resized crop; timm's "rkrc" and "rkrr"; "pad" for small images, which are not
            resized: zeros added around (an eighth of the side), then a random crop, as DeiT does for CIFAR.
        reprob: Probability of random erasing.
        remode: "pixel", "rand" or "const": what is put there.
        recount: Most regions that are erased.

    Raises:
        ValueError: Values that are not possible.
    """

    scale: Range = (0.08, 1.0)
    ratio: Range = (3 / 4, 4 / 3)
    hflip: Fraction = 0.5
    vflip: Fraction = 0.0
    color_jitter: NonNegativeFloat | None = 0.4
    auto_augment: Annotated[str, AfterValidator(_readable_by_timm)] | None = None
    train_interpolation: Literal["bicubic", "bilinear", "random"] = "random"
    train_crop_mode: Literal["rrc", "rkrc", "rkrr", "pad"] = "rrc"
    reprob: Fraction = 0.0
    remode: Literal["pixel", "rand", "const"] = "pixel"
    recount: PositiveInt = 1


def train_transform(preprocessing: Preprocessing, augmentation: Augmentation) -> Transform:
    """RGB image -> float32 (3, H, W), drawn from the global generators."""
    options = asdict(augmentation)
    padded = options["train_crop_mode"] == "pad"
    transform = create_transform(
        (3, *preprocessing.input_size),
        is_training=True,
        interpolation=options.pop("train_interpolation"),
        re_prob=options.pop("reprob"),
        re_mode=options.pop("remode"),
        re_count=options.pop("recount"),
        mean=preprocessing.mean,
        std=preprocessing.std,
        **options | {"train_crop_mode": "rrc" if padded else options["train_crop_mode"]},
    )
    repair_posterize(transform)
    if padded:
        transform.transforms[0] = PadCrop(preprocessing.input_size, min(preprocessing.input_size) // 8)
    return _batched(transform, preprocessing)


def _batched(transform: transforms.Compose, preprocessing: Preprocessing) -> Transform:
    """Takes the last steps of timm's transform out, where they are the last ones: random erasing comes after them."""
    *steps, to_tensor, normalize = transform.transforms
    if isinstance(to_tensor, MaybeToTensor) and isinstance(normalize, transforms.Normalize):
        return BatchedTransform(transforms.Compose(steps), preprocessing.mean, preprocessing.std)
    return transform


def repair_posterize(transform: transforms.Compose) -> None:
    """Lets timm's "keep 0 bits" of Posterize give a black image, as it is meant and as Pillow had it up to 12.

    Pillow 13 refuses 0 bits. The strongest magnitude asks for them, which "rand-m9-mstd0.5" reaches by its noise about
    once in 500 images, so training would stop there. Changes timm's operators in this transform only.
    """
    for step in transform.transforms:
        policies = [getattr(step, "ops", None) or [], *(getattr(step, "policy", None) or [])]
        for operator in (operator for policy in policies for operator in policy):
            if getattr(operator, "aug_fn", None) is auto_augment.posterize:
                operator.aug_fn = _posterize


def _posterize(image: Image.Image, bits_to_keep: int, **options) -> Image.Image:
    if bits_to_keep < 1:
        return Image.new(image.mode, image.size)
    return auto_augment.posterize(image, bits_to_keep, **options)


def eval_transform(preprocessing: Preprocessing) -> Transform:
    """RGB image -> float32 (3, H, W): resized and cropped by the model's own rule; nothing is random."""
    options = asdict(preprocessing)
    size = options.pop("input_size")
    transform = create_transform((3, *size), is_training=False, **options)
    return _batched(transform, preprocessing)


def model_preprocessing(model: nn.Module, input_size: tuple[int, int] | None = None, **options) -> Preprocessing:
    """What a timm model expects of its images.

    Args:
        model: Made by `timm.create_model`.
        input_size: (height, width) instead of the model's own.
        options: Other fields of `Preprocessing` that replace the model's own; None leaves them.
    """
    config = resolve_model_data_config(model)
    config["input_size"] = input_size or input_size_of(model)[1:]
    return Preprocessing(**config | {name: value for name, value in options.items() if value is not None})


def fit_size(
    height: int, width: int, short_side: int | None, long_side: int | None, ratio: float = 1.0
) -> tuple[int, int]:
    """(height, width) with the aspect kept, as large as both limits times `ratio` allow (mmcv's `imrescale`)."""
    factors = [
        limit * ratio / side
        for limit, side in ((short_side, min(height, width)), (long_side, max(height, width)))
        if limit is not None
    ]
    factor = min(factors) if factors else ratio
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))
