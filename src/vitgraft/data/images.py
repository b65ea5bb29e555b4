"""A source of images as a dataset of batches: decoded, augmented, and with those that can't be read named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, default_collate

from vitgraft.data.decode import decode_image
from vitgraft.data.sampling import Draw
from vitgraft.data.sources import ImageSource
from vitgraft.data.transforms import BatchedTransform, Transform
from vitgraft.errors import ImageError
from vitgraft.randomness import derive, preserve_rng, seed_all

# So many images in a row that can't be read are no accident: the disk is gone, or the set is no set of images.
MOST_IN_A_ROW = 64


class Batch(NamedTuple):
    """What a loader yields.

    Attributes:
        images: float32 (B, 3, H, W).
        labels: int64 (B,), -1 where an image has none.
        indices: int64 (B,), of the images in their source.
        bad: "name: reason" of each image that was to be in the batch and can't be read. In training the next readable
            image of the source took its place; in evaluation it is left out, so B may be smaller, even 0.
    """

    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    bad: list[str]


class ImageDataset(Dataset):
    """Indexed with `Draw`s; a list of them gives a `Batch`.

    Args:
        source: where the images are.
        transform: RGB image -> float32 (3, H, W); may draw from the global generators of Python, numpy and PyTorch.
        seed: the run's seed; the augmentation of a draw is a function of it and of the draw.
        train: whether an unreadable image is replaced (training) or left out (evaluation).
        cache: decode every image once, now, and keep the pixels in memory.
    """

    def __init__(
        self, source: ImageSource, transform: Transform, seed: int = 0, train: bool = False, cache: bool = False
    ):
        self.source, self.transform, self.seed, self.train = source, transform, seed, train
        self.batched = transform if isinstance(transform, BatchedTransform) else None
        self.pixels = PixelCache(source) if cache else None

    def __len__(self) -> int:
        return len(self.source)

    def decoded(self, index: int) -> Image.Image:
        """The image as upright RGB.

        Raises:
            ImageError: it can't be read.
        """
        if self.pixels is not None:
            return self.pixels[index]
        return decode_image(self.source.read(index), self.source.name(index))

    def __getitem__(self, draw: Draw) -> tuple[torch.Tensor, int, int]:
        """One image, its label and its index. A plain number is the draw of epoch 0.

        Raises:
            ImageError: it can't be read.
        """
        draw = draw if isinstance(draw, Draw) else Draw(0, draw)
        with preserve_rng(cuda=False):
            return self._sample(draw, self.decoded(draw.index), self.transform)

    def _sample(self, draw: Draw, image: Image.Image, transform: Callable) -> tuple[Any, int, int]:
        if self.train:
            seed_all(derive(self.seed, "augment", *draw))
        try:
            pixels = transform(image)
        except Exception as error:
            error.add_note(
                f"while {self.source.name(draw.index)} was transformed, {image.width} x {image.height}, {draw}"
            )
            raise
        return pixels, int(self.source.labels[draw.index]), draw.index

    def __getitems__(self, draws: Sequence[Draw]) -> Batch:
        """A batch; torch's DataLoader asks for it at once. Draws nothing from the caller's generators."""
        samples, bad = [], []
        transform = self.transform if self.batched is None else self.batched.image
        with preserve_rng(cuda=False):
            for draw in draws:
                readable = self._readable(draw, bad)
                if readable is not None:
                    samples.append(self._sample(*readable, transform))
        if not samples:
            empty = torch.zeros(0, dtype=torch.int64)
            return Batch(torch.zeros(0, 3, 1, 1), empty, empty.clone(), bad)
        images, labels, indices = zip(*samples, strict=True)
        if self.batched is not None:
            pixels = self.batched.finish(images)
        else:
            pixels = default_collate(images)  # inside a worker it stacks straight into shared memory
        return Batch(pixels, torch.tensor(labels), torch.tensor(indices), bad)

    def _readable(self, draw: Draw, bad: list[str]) -> tuple[Draw, Image.Image] | None:
        """The draw and its image; in training, those of the next readable image; in evaluation, None."""
        first = None
        for step in range(min(MOST_IN_A_ROW, len(self)) if self.train else 1):
            index = (draw.index + step) % len(self)
            try:
                return draw._replace(index=index), self.decoded(index)
            except ImageError as error:
                bad.append(str(error))
                first = first or error
        if self.train:
            raise ImageError(first.name, f"{first.reason}; nor can the {step} images after it be read")
        return None


class PixelCache:
    """Decoded images in one block of memory, which forked workers share; 3 bytes a pixel.

    Images that can't be read raise their `ImageError` again when they are asked for.

    Args:
        source: where the images are.
        limit: most bytes it may take.

    Raises:
        ValueError: the images need more.
    """

    def __init__(self, source: ImageSource, limit: int = 16 << 30):
        self.ends = np.zeros(len(source), dtype=np.int64)
        self.sizes = np.zeros((len(source), 2), dtype=np.int32)  # (height, width)
        self.errors: dict[int, tuple[str, str]] = {}
        pieces, end = [], 0
        for index in range(len(source)):
            try:
                image = decode_image(source.read(index), source.name(index))
            except ImageError as error:
                self.errors[index] = (error.name, error.reason)
            else:
                pieces.append(image.tobytes())
                self.sizes[index] = image.height, image.width
                end += len(pieces[-1])
            self.ends[index] = end
            if end > limit:
                raise ValueError(
                    f"cache=True: the first {index + 1} of {len(source)} images of {source.where()} already take "
                    f"{end / 1e9:.1f} GB; caching is meant for small sets, use cache=False"
                )
        self.data = np.frombuffer(b"".join(pieces), dtype=np.uint8)

    def __getitem__(self, index: int) -> Image.Image:
        if index in self.errors:
            raise ImageError(*self.errors[index])
        height, width = map(int, self.sizes[index])
        end = int(self.ends[index])
        return Image.fromarray(self.data[end - 3 * height * width : end].reshape(height, width, 3))


def collate(batch: Batch) -> Batch:
    """A loader's `collate_fn`: the dataset gives whole batches already."""
    return batch
