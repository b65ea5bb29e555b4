"""Augmentation of segmentation: image and labels stay together, sizes, crops, padding, colors."""

import random

import numpy as np
import torch
from PIL import Image

from vitgraft.data.segmentation_transforms import (
    EvalTransform,
    SegmentationAugmentation,
    SegmentationPreprocessing,
    TrainTransform,
    crop_box,
    photometric_distortion,
)

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def scene(height=60, width=80):
    """An image whose red is its column and green its row, and labels that are a function of both."""
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([columns * 255 // width, rows * 255 // height, np.zeros_like(rows)], -1).astype(np.uint8)
    return Image.fromarray(pixels), ((rows * 4 // height) * 4 + columns * 4 // width).astype(np.uint8)


def test_labels_move_with_their_pixels():
    image, labels = scene()
    transform = TrainTransform(
        SegmentationPreprocessing((64, 64), short_side=None, long_side=None, **PLAIN),
        SegmentationAugmentation(scale=(0.5, 2.0), photometric=False),
    )
    random.seed(0)
    seen = []
    for _ in range(30):
        pixels, classes = transform(image, labels)
        assert pixels.shape == (3, 64, 64) and classes.shape == (64, 64) and classes.dtype == torch.int64
        there = classes < 255
        column, row = pixels[0] * 255 / 255 * 4, pixels[1] * 4  # in quarters of the image
        expected = row.clamp(0, 3.99).floor() * 4 + column.clamp(0, 3.99).floor()
        inner = there & ((column - column.round()).abs() > 0.12) & ((row - row.round()).abs() > 0.12)
        assert inner.sum() > 100 and (expected[inner] == classes[inner]).all()
        assert (pixels[:, ~there] == 0).all()
        seen.append(((pixels[0, 0, 5] > pixels[0, 0, 0]).item(), (~there).any().item()))
    assert {flipped for flipped, _ in seen} == {True, False} and {padded for _, padded in seen} == {True, False}


def test_no_class_fills_a_crop_where_another_crop_can_be_found():
    labels = torch.zeros(100, 100, dtype=torch.uint8)
    labels[:, 70:] = 1
    labels[:30] = 255
    random.seed(0)

    def shares(ratio):
        for _ in range(60):
            top, left, height, width = crop_box(labels, (40, 40), ratio)
            crop = labels[top : top + height, left : left + width]
            counts = torch.bincount(crop[crop < 255].int(), minlength=2)
            yield (counts.max() / counts.sum().clamp(min=1)).item()

    free, kept = list(shares(1.0)), list(shares(0.75))
    assert sum(share >= 0.75 for share in free) > 30 and sum(share >= 0.75 for share in kept) < 20
    assert crop_box(torch.full((20, 30), 255, dtype=torch.uint8), (40, 25), 0.75)[2:] == (20, 25)


def test_colors_change_within_bounds_and_all_four_ways():
    random.seed(0)
    image = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.6 + 0.2
    outcomes = [photometric_distortion(image) for _ in range(60)]
    assert all(one.min() >= 0 and one.max() <= 1 for one in outcomes)
    assert any(torch.equal(one, image) for one in outcomes)
    means = torch.stack([one.mean() for one in outcomes])
    assert means.min() < 0.4 and means.max() > 0.6
    gray = torch.full((3, 4, 4), 0.5)
    changed = torch.stack([photometric_distortion(gray).mean((1, 2)) for _ in range(60)])
    assert (changed.std(1) < 1e-5).all()  # gray has no hue and no saturation to change
    assert changed.max() <= min(1, (0.5 + 32 / 255) * 1.5) + 1e-6 and changed.min() >= (0.5 - 32 / 255) * 0.5 - 1e-6


def test_evaluation_resizes_the_image_and_leaves_the_labels():
    image, labels = scene()
    transform = EvalTransform(SegmentationPreprocessing((64, 64), short_side=30, long_side=None))
    pixels, classes = transform(image, labels)
    assert pixels.shape == (3, 30, 40) and np.array_equal(classes.numpy(), labels)
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    back = (pixels * std.view(3, 1, 1) + mean.view(3, 1, 1)).permute(1, 2, 0).numpy()
    assert np.abs(back - np.asarray(image.resize((40, 30), Image.Resampling.BILINEAR)) / 255).max() < 0.01
