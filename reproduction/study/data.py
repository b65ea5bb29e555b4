"""The data of the study, as tensors in memory."""

import functools
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vitgraft.data.digits import make_scene
from vitgraft.errors import CommandError
from vitgraft.randomness import derive

__all__ = ["Images", "Split", "load_data", "shared_folder"]

CIFAR_MEAN, CIFAR_STD = (0.49125, 0.48209, 0.44652), (0.24523, 0.24278, 0.26063)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass
class Split:
    """uint8 images (N, 3, H, W) and int64 labels (N,)."""

    images: Tensor
    labels: Tensor

    def rows(self, rows: Tensor) -> "Split":
        """A part of it."""
        return Split(self.images[rows], self.labels[rows])

    def to(self, device: torch.device) -> "Split":
        """On a device."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass
class Images:
    """What a run trains and is evaluated on.

    Args:
        train: Training images.
        test: Those of the evaluation: the test set, or what was kept of the training images.
        prepare: uint8 images (B, 3, H, W) and a generator -> the model's input; augmented unless the latter is None.
    """

    train: Split
    test: Split
    prepare: Callable[[Tensor, torch.Generator | None], Tensor]


def shared_folder() -> Path:
    """The folder of the datasets: $VITGRAFT_SHARED, or `shared` beside the clone."""
    return Path(os.environ.get("VITGRAFT_SHARED", Path(__file__).resolve().parents[3] / "shared"))


def load_data(options: dict[str, Any], seed: int, held_out: bool) -> Images:
    """The data of a run.

    Args:
        options: Those of the grid.
        seed: The run's.
        held_out: Keep a part of the training images for the evaluation, and leave the test set alone.

    Raises:
        CommandError: The data is not there.
    """
    return _LOADERS[options["data"]](options, seed, held_out)


def permutation(length: int, seed: int, *what: int | str) -> Tensor:
    """A permutation that depends on the arguments alone."""
    return torch.randperm(length, generator=torch.Generator().manual_seed(derive(seed, *what)))


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile() and member.name.endswith(".jpg"):
                    yield member.name, archive.extractfile(member).read()
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror or error}; $VITGRAFT_SHARED names the data's folder") from error


# --- CIFAR-10


@functools.cache
def _cifar(split: str) -> Split:
    images, labels, names = [], [], []
    for name, data in _members(shared_folder() / "data" / "cifar10" / f"{split}.tar.gz"):
        label = Path(name).parent.name
        if label not in names:
            names.append(label)  # the classes are in alphabetical order
        images.append(np.asarray(Image.open(io.BytesIO(data))))
        labels.append(names.index(label))
    return Split(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels))


def _of_classes(split: Split, first: int, end: int) -> Split:
    rows = torch.nonzero((split.labels >= first) & (split.labels < end)).flatten()
    part = split.rows(rows)
    return Split(part.images, part.labels - first)


def _normalize(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 (B, 3, H, W) -> float32, standardized per channel."""
    scale, shift = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (std, mean))
    return (images.float() / 255 - shift) / scale


def pad_crop_flip(images: Tensor, generator: torch.Generator, pad: int = 4) -> Tensor:
    """Random crops of zero-padded images, half of them mirrored: uint8 (B, 3, H, W) to the same."""
    B, _, H, W = images.shape
    device = images.device
    top, left = torch.randint(0, 2 * pad + 1, (2, B), generator=generator).to(device)
    flip = (torch.rand(B, generator=generator) < 0.5).to(device)
    rows = top[:, None] + torch.arange(H, device=device)
    columns = left[:, None] + torch.arange(W, device=device)
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    which = torch.arange(B, device=device)[:, None, None]
    padded = F.pad(images, (pad,) * 4).permute(0, 2, 3, 1)
    return padded[which, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


def _prepare_cifar(images: Tensor, generator: torch.Generator | None) -> Tensor:
    images = images if generator is None else pad_crop_flip(images, generator)
    return _normalize(images, CIFAR_MEAN, CIFAR_STD)


def _load_cifar(options: dict[str, Any], seed: int, held_out: bool, classes: tuple[int, int] = (0, 10)) -> Images:
    train = _of_classes(_cifar("train"), *classes)
    order = permutation(len(train.labels), 0, "split")
    if "train_images" in options:  # a part of them, another one for each seed
        order = permutation(len(train.labels), seed, "part")[: options["train_images"]]
    if held_out:
        kept = len(order) // (5 if "train_images" in options else 10)
        return Images(train.rows(order[kept:]), train.rows(order[:kept]), _prepare_cifar)
    return Images(train.rows(order), _of_classes(_cifar("val"), *classes), _prepare_cifar)


# --- digit scenes


def _scenes(split: str, seed: int, first: int, length: int, size: int) -> Split:
    scenes = [make_scene(index, seed, split, size) for index in range(first, first + length)]
    images = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2).contiguous()
    return Split(images, torch.tensor([scene.label for scene in scenes]))


@functools.lru_cache(maxsize=1)  # the configurations of a seed are run one after the other
def _digits(seed: int, size: int, train: int, test: int, held_out: bool) -> tuple[Split, Split]:
    evaluation = _scenes("train", seed, train, test, size) if held_out else _scenes("test", seed, 0, test, size)
    return _scenes("train", seed, 0, train, size), evaluation


def _prepare_digits(images: Tensor, generator: torch.Generator | None) -> Tensor:
    """As `vitgraft.data.digits.to_tensor`."""
    images = images.float()
    images = images - images.mean((-2, -1), keepdim=True)
    return images / images.std((-3, -2, -1), keepdim=True).clamp_min(1e-6)


def _load_digits(options: dict[str, Any], seed: int, held_out: bool) -> Images:
    size = options["model"]["img_size"]
    found = _digits(seed, size, options["train_scenes"], options["test_scenes"], held_out)
    return Images(*found, _prepare_digits)


# --- grocery


@functools.cache
def _grocery() -> dict[str, Split]:
    """The middle 160 x 160 pixels of each photo, by split, with coarse classes."""
    folder = shared_folder() / "data" / "grocery"
    found: dict[str, tuple[list, list]] = {}
    pairs = list(_members(folder / "grocery.tar"))
    coarse = json.loads((folder / "coarse.json").read_text(encoding="utf-8"))
    names = sorted(set(coarse.values()))
    for name, data in pairs:
        split, fine, _ = Path(name).parts[-3:]
        image = Image.open(io.BytesIO(data)).convert("RGB")
        left, top = (image.width - 160) // 2, (image.height - 160) // 2
        images, labels = found.setdefault(split, ([], []))
        images.append(np.asarray(image.crop((left, top, left + 160, top + 160))))
        labels.append(names.index(coarse[fine]))
    return {
        split: Split(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels))
        for split, (images, labels) in found.items()
    }


def _prepare_grocery(images: Tensor, generator: torch.Generator | None) -> Tensor:
    """To 128 x 128: in training a square of 0.35 to 1 of the area, half of them mirrored, else all of the image."""
    x = _normalize(images, IMAGENET_MEAN, IMAGENET_STD)
    if generator is None:
        return F.interpolate(x, size=(128, 128), mode="bilinear", antialias=True)
    B = len(x)
    side = (0.35 + 0.65 * torch.rand(B, generator=generator)).sqrt()
    center = (1 - side) * (2 * torch.rand(2, B, generator=generator) - 1)
    flip = torch.where(torch.rand(B, generator=generator) < 0.5, -1.0, 1.0)
    theta = torch.zeros(B, 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = side * flip, center[0]
    theta[:, 1, 1], theta[:, 1, 2] = side, center[1]
    grid = F.affine_grid(theta.to(x.device), [B, 3, 128, 128], align_corners=False)
    return F.grid_sample(x, grid, align_corners=False, padding_mode="reflection")


def _load_grocery(options: dict[str, Any], seed: int, held_out: bool) -> Images:
    splits = _grocery()
    return Images(splits["train"], splits["val" if held_out else "test"], _prepare_grocery)


_LOADERS = {
    "cifar10": _load_cifar,
    "cifar10_old": functools.partial(_load_cifar, classes=(0, 5)),
    "cifar10_new": functools.partial(_load_cifar, classes=(5, 10)),
    "digits": _load_digits,
    "grocery": _load_grocery,
}
