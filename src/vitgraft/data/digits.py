"""Scenes of real handwritten digits of very different sizes: the dataset that is always there.

One large digit and a few small ones lie far apart on a textured canvas. The digits are scikit-learn's 1797 scans (8 x 8
pixels, 16 gray levels, `sklearn.datasets.load_digits`); nothing is downloaded. One generator serves three tasks:

- classification: small digits of one class lie on the left, of another class on the right, and the large digit between
  them decides which side counts: 0 the left, 1 the right. The label is the class of that side, so it needs a shape that
  spans half of the canvas and shapes of a few pixels far away from it, at once;
- detection with instance masks: boxes, masks and category ids of every digit;
- semantic segmentation: one map with 0 for the canvas and 1 + class for the ink of a digit.

A scene is a function of (seed, split, index) and of its size, of nothing else: no generator has a history, so
workers, order and resumption change nothing. Train and test scenes are made of different digit scans.

Shapes: H x W canvas in pixels, N digits of a scene. Images are uint8 (H, W, 3), boxes float32 (N, 4) as x0, y0, x1, y1
in pixels with the right and the bottom edge exclusive.
"""

from __future__ import annotations

import functools
from typing import Annotated, NamedTuple

import numpy as np
import torch
from PIL import Image
from pydantic import AfterValidator
from torch.utils.data import Dataset

from vitgraft.data.readers.base import Source
from vitgraft.errors import MissingExtraError

NUM_DIGITS = 10
COPIES = 4  # small digits on each side
# smallest and largest side of the large digit and of the small ones, of a canvas of 64 pixels
LARGE, SMALL = (26, 32), (11, 14)
SPLITS = ("train", "test")
# A pixel belongs to a digit where at least this fraction of its color is ink; below it the stroke can't be seen.
INK_THRESHOLD = 0.35


def _scene_size(size: int) -> int:
    if size % 4 or size < 24:
        raise ValueError(f"size={size}: give a multiple of 4, at least 24; smaller digits are unreadable")
    return size


# Side of a square canvas, pixels; all digits grow with it
SceneSize = Annotated[int, AfterValidator(_scene_size)]


class Scene(NamedTuple):
    """One scene. The first digit is the large one."""

    image: np.ndarray  # uint8 (H, W, 3)
    label: int  # a digit, 0 to 9
    boxes: np.ndarray  # float32 (N, 4)
    masks: np.ndarray  # bool (N, H, W); they never overlap
    category_ids: np.ndarray  # int64 (N,), digit classes 0 to 9
    semantic_mask: np.ndarray  # uint8 (H, W): 0 canvas, 1 + class for ink


@functools.lru_cache(maxsize=1)
def _digit_scans() -> tuple[np.ndarray, np.ndarray]:
    """All scans as fractions of ink, 0 to 1, float32 (1797, 8, 8), and their classes, int64 (1797,)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "train") from error
    digits = load_digits()
    return digits.images.astype(np.float32) / 16, digits.target.astype(np.int64)


@functools.lru_cache(maxsize=2)
def digit_instances(split: str) -> tuple[np.ndarray, ...]:
    """Indices into scikit-learn's scans that a split may use, one array for each class 0 to 9.

    Every fifth scan of a class is for tests, so both splits hold every class and share no scan.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: choose one of {', '.join(SPLITS)}")
    _, classes = _digit_scans()
    instances = []
    for digit in range(NUM_DIGITS):
        of_class = np.flatnonzero(classes == digit)
        is_test = np.arange(len(of_class)) % 5 == 4
        instances.append(of_class[is_test if split == "test" else ~is_test])
    return tuple(instances)


@functools.lru_cache(maxsize=256)
def _resize_matrix(source: int, target: int) -> np.ndarray:
    """Bilinear interpolation along one axis, half-pixel centers, as a matrix (target, source)."""
    centers = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
    return np.maximum(0, 1 - np.abs(centers[:, None] - np.arange(source))).astype(np.float32)


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear resize of (h, w) to (height, width)."""
    return _resize_matrix(image.shape[0], height) @ image @ _resize_matrix(image.shape[1], width).T


def _texture(rng: np.random.Generator, size: int) -> np.ndarray:
    """A canvas (size, size, 3) in 0 to 1: clouds at three scales, a grating, grain, in two colors of one family."""
    pattern = np.zeros((size, size), dtype=np.float32)
    for cells, weight in ((3, 0.5), (8, 0.35), (size // 2, 0.3)):
        pattern += weight * _resize(rng.standard_normal((cells, cells), dtype=np.float32), size, size)
    angle, period, phase = rng.uniform(0, np.pi), rng.uniform(4, 14), rng.uniform(0, 2 * np.pi)
    axis = np.arange(size, dtype=np.float32)
    wave = axis[None] * np.float32(np.cos(angle)) + axis[:, None] * np.float32(np.sin(angle))
    pattern += np.float32(rng.uniform(0.1, 0.5)) * np.sin(wave * np.float32(2 * np.pi / period) + np.float32(phase))
    blend = 1 / (1 + np.exp(-1.5 * pattern))
    dark = rng.uniform(0.05, 0.2, 3).astype(np.float32)
    light = dark + rng.uniform(0.05, 0.25, 3).astype(np.float32)
    return dark + blend[..., None] * (light - dark)


def _place(rng: np.random.Generator, canvas: int) -> list[tuple[int, int, int, int]]:
    """Boxes (x, y, width, height) that never overlap: the large digit, then those on the left, then on the right.

    The canvas has 4 x 4 cells. The large digit lies about the middle, on the four inner cells; each small digit has a
    cell of the outer column of its side for itself.
    """
    cell = canvas // 4
    cells = [(row, column) for column in (0, 3) for row in rng.permutation(4)[:COPIES]]
    placed = []
    for number, (row, column) in enumerate([(0, 0), *cells]):
        low, high = (side * canvas // 64 for side in (SMALL if number else LARGE))
        height = int(rng.integers(low, high + 1))
        # Handwriting is wider or narrower than the 8 x 8 frame it was scanned into.
        width = min(high, round(height * rng.uniform(0.85, 1.15)))
        room, x0, y0 = (cell, int(column) * cell, int(row) * cell) if number else (canvas, 0, 0)
        jitter = 2 if number else 0
        x, y = (
            start + min(max((room - side) // 2 + int(rng.integers(-jitter, jitter + 1)), 0), room - side)
            for start, side in ((x0, width), (y0, height))
        )
        placed.append((x, y, width, height))
    return placed


def make_scene(index: int, seed: int = 0, split: str = "train", size: int = 64) -> Scene:
    """Draw one scene.

    Args:
        index: which scene, 0 or more; there is no end.
        seed: which world of scenes, 0 or more.
        split: 'train' or 'test': which digit scans may be used.
        size: side of the canvas, pixels, a multiple of 4.

    Raises:
        ValueError: for an unknown split, a negative index or seed, or a size for which there is no room.
        MissingExtraError: where scikit-learn is not installed.
    """
    _scene_size(size)
    instances = digit_instances(split)
    if index < 0 or seed < 0:
        raise ValueError(f"index={index}, seed={seed}: both count from 0")
    scans, classes = _digit_scans()
    rng = np.random.default_rng(np.random.SeedSequence([seed, SPLITS.index(split), index]))
    side = int(rng.integers(2))
    left, right = (int(digit) for digit in rng.permutation(NUM_DIGITS)[:2])
    digits = [side] + [left] * COPIES + [right] * COPIES
    places = _place(rng, size)
    canvas = _texture(rng, size)

    boxes, masks, category_ids = [], [], []
    semantic_mask = np.zeros((size, size), dtype=np.uint8)
    for digit, (x, y, width, height) in zip(digits, places, strict=True):
        scan = int(rng.choice(instances[digit]))
        ink = _resize(scans[scan], height, width)[..., None] * np.float32(rng.uniform(0.8, 1.0))  # (h, w, 1)
        color = rng.uniform(0.8, 1.0, 3).astype(np.float32)
        window = canvas[y : y + height, x : x + width]
        window += ink * (color - window)
        mask = np.zeros((size, size), dtype=bool)
        mask[y : y + height, x : x + width] = ink[..., 0] >= INK_THRESHOLD
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        boxes.append((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
        masks.append(mask)
        category_ids.append(int(classes[scan]))
        semantic_mask[mask] = 1 + category_ids[-1]
    return Scene(
        image=(np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8),
        label=right if side else left,
        boxes=np.array(boxes, dtype=np.float32),
        masks=np.stack(masks),
        category_ids=np.array(category_ids, dtype=np.int64),
        semantic_mask=semantic_mask,
    )


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """uint8 (..., H, W, 3) to float32 (..., 3, H, W), standardized: the input of the demo's classifiers.

    Each channel of an image has mean 0, the image as a whole standard deviation 1, so that the canvas's color and
    contrast, which do not bear on the label, need not be unlearned first.
    """
    tensor = torch.from_numpy(image).movedim(-1, -3).float()
    tensor = tensor - tensor.mean((-2, -1), keepdim=True)
    return tensor / tensor.std((-3, -2, -1), keepdim=True).clamp_min(1e-6)


class DigitScenes(Source, Dataset):
    """The scenes 0 to `length` - 1 of a split as (image, label): standardized float32 (3, H, W), and an int.

    `scene(index)` is a whole scene; the sources of the dense tasks are subclasses that define `load`.

    Args:
        length: Number of scenes.
        seed: Which world of scenes.
        split: "train" or "test": which digit scans the scenes are made of.
        size: Side of the square scenes, pixels, a multiple of 4; all digits grow with it.
        num_classes: Of the dense tasks, for trying a recipe: class c becomes c modulo it; None: one for each digit.
        cache: Draw all images now (close to 1,000 a second on one core) and keep them in memory, H * W * 3 bytes each.
    """

    class_names: tuple[str, ...] = tuple(map(str, range(NUM_DIGITS)))

    def __init__(
        self,
        length: int,
        seed: int = 0,
        split: str = "train",
        size: int = 64,
        num_classes: int | None = None,
        cache: bool = False,
    ):
        if length < 1:
            raise ValueError(f"length={length}: give at least 1 scene")
        self.length, self.seed, self.split, self.size = length, seed, split, _scene_size(size)
        self.where = f"digit scenes ({split})"
        if num_classes is not None:
            self.class_names = tuple(f"class_{number}" for number in range(num_classes))
        digit_instances(split)  # an unknown split or a missing scikit-learn shows here, not in a worker
        scenes = [self.scene(index) for index in range(length)] if cache else []
        # uint8 (length, H, W, 3) and int64 (length,)
        self.images = torch.from_numpy(np.stack([scene.image for scene in scenes])) if cache else None
        self.labels = torch.tensor([scene.label for scene in scenes])

    def __len__(self) -> int:
        return self.length

    def name(self, index: int) -> str:
        return f"digits/{self.split}/{index}"

    def scene(self, index: int) -> Scene:
        """One scene with all its annotations."""
        return make_scene(index, self.seed, self.split, self.size)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if not 0 <= index < self.length:
            raise IndexError(f"index {index}: there are {self.length} scenes")
        if self.images is not None:
            return to_tensor(self.images[index].numpy()), int(self.labels[index])
        scene = self.scene(index)
        return to_tensor(scene.image), scene.label

    def __getitems__(self, indices: list[int]) -> list[tuple[torch.Tensor, int]]:
        """A batch at once; torch's DataLoader prefers this to one call for each image."""
        if self.images is None:
            return [self[index] for index in indices]
        images = to_tensor(self.images[indices].numpy())
        return list(zip(images, self.labels[indices].tolist(), strict=True))


class DigitScenePixels(DigitScenes):
    """Scenes of handwritten digits: class 0 is the canvas, classes 1 to 10 are the digits' ink."""

    class_names = ("background", *DigitScenes.class_names)

    def load(self, index: int) -> tuple[Image.Image, np.ndarray]:
        scene = self.scene(index)
        return Image.fromarray(scene.image), scene.semantic_mask % np.uint8(min(len(self.class_names), 255))

    def load_labels(self, index: int) -> np.ndarray:
        """The labels of a scene, uint8 (H, W)."""
        return self.load(index)[1]
