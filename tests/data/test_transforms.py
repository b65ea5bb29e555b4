"""The transforms are timm's: the same pixels as its own pipeline, at the same seed."""

import dataclasses
import io

import pytest
import timm
import torch
from datasets_on_disk import image_bytes
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

import vitgraft  # noqa: F401  registers the models
from vitgraft.data.transforms import (
    Augmentation,
    Preprocessing,
    eval_transform,
    fit_size,
    model_preprocessing,
    train_transform,
)
from vitgraft.randomness import seed_all

DEIT = Augmentation(auto_augment="rand-m9-mstd0.5-inc1", reprob=0.25, train_interpolation="bicubic")


def image(size=(90, 70)):
    return Image.open(io.BytesIO(image_bytes(3, size))).convert("RGB")


@pytest.mark.parametrize("reprob", [0.0, 0.25])
@pytest.mark.parametrize("seed", range(5))
def test_training_is_timms(seed, reprob):
    timms = create_transform(
        48, True, auto_augment="rand-m9-mstd0.5-inc1", re_prob=reprob, re_mode="pixel", interpolation="bicubic"
    )
    ours = train_transform(Preprocessing((48, 48)), dataclasses.replace(DEIT, reprob=reprob))
    results = []
    for transform in (timms, ours):
        seed_all(seed)
        results.append(transform(image()))
    assert torch.equal(*results) and results[0].shape == (3, 48, 48)


# bicubic at 0.9, 0.875 and 1.0; bilinear; mean 0.5; a size that is not 224
MODELS = (
    "vit_tiny_patch16_224", "deit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "beit_base_patch16_224",
    "graft_cswin_tiny_224", "graft_swin_tiny_patch4_window7_224", "resnet18.tv_in1k", "vit_small_patch14_reg4_dinov2",
    "swinv2_tiny_window8_256", "convnext_tiny.fb_in1k",
)  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_evaluation_follows_the_models_rule(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    preprocessing = model_preprocessing(model)
    config = resolve_model_data_config(model)
    assert (preprocessing.crop_pct, preprocessing.mean) == (config["crop_pct"], config["mean"])
    timms, ours = create_transform(**config, is_training=False), eval_transform(preprocessing)
    for size in ((400, 300), (200, 300), (90, 120)):
        assert torch.equal(timms(image(size)), ours(image(size)))


def test_small_images_are_padded_and_cropped_not_resized():
    preprocessing = Preprocessing((32, 32), mean=(0.0,) * 3, std=(1.0,) * 3, crop_pct=1.0)
    transform = train_transform(preprocessing, Augmentation(train_crop_mode="pad", hflip=0.0, color_jitter=None))
    original = eval_transform(preprocessing)(image((32, 32)))
    padded = torch.nn.functional.pad(original, (4, 4, 4, 4))
    places = set()
    for seed in range(40):
        seed_all(seed)
        crop = transform(image((32, 32)))
        found = [(y, x) for y in range(9) for x in range(9) if torch.equal(padded[:, y : y + 32, x : x + 32], crop)]
        assert len(found) == 1
        places.update(found)
    assert len(places) > 20


@pytest.mark.parametrize("size", [(20, 40), (40, 20), (10, 10)])
def test_padding_of_images_that_are_too_small(size):
    transform = train_transform(Preprocessing((32, 32)), Augmentation(train_crop_mode="pad"))
    for seed in range(20):
        seed_all(seed)
        assert transform(image(size)).shape == (3, 32, 32)


def test_a_batch_at_once_is_each_image_by_itself():
    transform = eval_transform(Preprocessing((48, 40), crop_pct=0.9))
    images = [image((90, 70)), image((64, 200))]
    together = transform.finish([transform.image(one) for one in images])
    assert together.is_contiguous() and together.shape == (2, 3, 48, 40)
    assert all(torch.equal(alone, transform(one)) for alone, one in zip(together, images, strict=True))


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "v0", "originalr", "augmix-m9-w3"])
def test_posterize_down_to_black(policy):
    """The strongest Posterize keeps 0 bits, which Pillow 13 refuses; it must not stop a run."""
    transform = train_transform(Preprocessing((24, 24)), Augmentation(auto_augment=policy))
    step = next(step for step in transform.image.transforms if hasattr(step, "ops") or hasattr(step, "policy"))
    operators = step.ops if hasattr(step, "ops") else [operator for policy in step.policy for operator in policy]
    posterizing = [operator for operator in operators if "Posterize" in operator.name]
    assert posterizing
    for operator in posterizing:
        assert not any(channel != (0, 0) for channel in operator.aug_fn(image(), 0).getextrema())
        assert operator.aug_fn(image(), 4).getextrema()[0][1] > 0 and operator.aug_fn(image(), 8) is not None


def test_random_interpolation_and_erasing_are_used():
    outputs = []
    for mode in ("bilinear", "bicubic"):
        seed_all(0)
        plain = Augmentation(train_interpolation=mode, color_jitter=None, hflip=0.0)
        outputs.append(train_transform(Preprocessing((24, 24)), plain)(image()))
    assert not torch.equal(*outputs)
    seed_all(0)
    erased = train_transform(Preprocessing((24, 24)), Augmentation(reprob=1.0, remode="const", color_jitter=None))
    assert (erased(image()) == 0).all(0).any()


@pytest.mark.parametrize(
    "size, limits, ratio, expected",
    [
        ((512, 683), (512, 2048), 1.0, (512, 683)),
        ((300, 400), (512, 2048), 1.0, (512, 683)),
        ((400, 300), (512, 2048), 0.5, (341, 256)),
        ((100, 1000), (512, 2048), 1.0, (205, 2048)),  # the long side decides
        ((360, 480), (None, None), 2.0, (720, 960)),
        ((360, 480), (None, 240), 1.0, (180, 240)),
        ((3, 1000), (None, 100), 1.0, (1, 100)),
        ((480, 640), (800, 1333), 1.0, (800, 1067)),
        ((427, 640), (800, 1333), 1.0, (800, 1199)),
        ((200, 800), (800, 1333), 1.0, (333, 1333)),
    ],
)
def test_sizes_as_mmcv_has_them(size, limits, ratio, expected):
    assert fit_size(*size, *limits, ratio) == expected
