"""Labeled images as a dataset of batches: decoded, augmented, unreadable ones named."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import default_collate

from vitgraft.data.loader import Batch, Samples
from vitgraft.data.readers.base import ImageSource
from vitgraft.data.sampling import Draw
from vitgraft.data.transforms import BatchedTransform, Transform
from vitgraft.errors import ImageError


class ImageDataset(Samples):
    """Labeled images as a dataset.

    Args:
        source: Where the images are.
        transform: RGB image -> float32 (3, H, W); may draw from the global generators of Python, numpy and PyTorch.
        seed: The run's seed; the augmentation of a draw is a function of it and of the draw.
        train: Whether an unreadable image is replaced (training) or left out (evaluation).
        cache: Decode every image once, now, and keep the pixels in memory.
    """

    def __init__(
        self, source: ImageSource, transform: Transform, seed: int = 0, train: bool = False, cache: bool = False
    ):
        super().__init__(source, seed, train)
        self.batched = transform if isinstance(transform, BatchedTransform) else None
        self.transform = transform
        self.pixels = PixelCache(source) if cache else None

    def load(self, index: int) -> Image.Image:
        return super().load(index) if self.pixels is None else self.pixels[index]

    def prepare(self, loaded: Image.Image, index: int) -> Any:
        return (self.transform if self.batched is None else self.batched.image)(loaded)

    def __getitem__(self, draw: Draw | int) -> tuple[torch.Tensor, int, int]:
        """One image as float32 (3, H, W), its label and its index. A plain number is the draw of epoch 0.

        Raises:
            ImageError: it can't be read.
        """
        image, index = super().__getitem__(draw), draw.index if isinstance(draw, Draw) else draw
        pixels = image if self.batched is None else self.batched.finish([image])[0]
        return pixels, int(self.source.labels[index]), index

    def collate(self, samples: list[Any], indices: list[int], bad: list[str]) -> Batch:
        if not samples:
            empty = torch.zeros(0, dtype=torch.int64)
            return Batch(torch.zeros(0, 3, 1, 1), empty, empty.clone(), bad)
        if self.batched is not None:
            pixels = self.batched.finish(samples)
        else:
            pixels = default_collate(samples)  # inside a worker it stacks straight into shared memory
        labels = torch.tensor([int(self.source.labels[index]) for index in indices])
        return Batch(pixels, labels, torch.tensor(indices), bad)


class PixelCache:
    """Decoded images in one block of memory, which forked workers share; 3 bytes a pixel.

    Images that can't be read raise their `ImageError` again when they are asked for.

    Args:
        source: Where the images are.
        limit: Most bytes it may take.

    Raises:
        ValueError: The images need more.
    """

    def __init__(self, source: ImageSource, limit: int = 16 << 30):
        self.ends = np.zeros(len(source), dtype=np.int64)
        self.sizes = np.zeros((len(source), 2), dtype=np.int32)  # (height, width)
        self.errors: dict[int, tuple[str, str]] = {}
        pieces, end = [], 0
        for index in range(len(source)):
            try:
                image = source.load(index)
            except ImageError as error:
                self.errors[index] = (error.name, error.reason)
            else:
                pieces.append(image.tobytes())
                self.sizes[index] = image.height, image.width
                end += len(pieces[-1])
            self.ends[index] = end
            if end > limit:
                raise ValueError(
                    f"cache=True: the first {index + 1} of {len(source)} images of {source.where} already take "
                    f"{end / 1e9:.1f} GB; caching is meant for small datasets, use cache=False"
                )
        self.data = np.frombuffer(b"".join(pieces), dtype=np.uint8)

    def __getitem__(self, index: int) -> Image.Image:
        if index in self.errors:
            raise ImageError(*self.errors[index])
        height, width = map(int, self.sizes[index])
        end = int(self.ends[index])
        return Image.fromarray(self.data[end - 3 * height * width : end].reshape(height, width, 3))
