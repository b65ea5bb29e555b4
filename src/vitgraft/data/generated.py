"""Images made of nothing, for trying a recipe (`--smoke`) and for tests."""

import io

import numpy as np
from PIL import Image

from vitgraft.data.readers.base import ImageSource
from vitgraft.data.semantic import PixelSource
from vitgraft.randomness import derive


class GeneratedSource(ImageSource):
    """Blurred coloured squares as JPEG; image i is a function of (seed, i), its label is i modulo `num_classes`.

    Args:
        length: number of images.
        num_classes: number of classes.
        size: (height, width) in pixels.
        seed: which images.
    """

    def __init__(self, length: int, num_classes: int, size: tuple[int, int] = (64, 64), seed: int = 0):
        self.size, self.seed = size, seed
        self.labels = np.arange(length) % num_classes
        self.class_names = tuple(f"class_{number}" for number in range(num_classes))

    def name(self, index: int) -> str:
        return f"generated/{index}.jpg"

    def read(self, index: int) -> bytes:
        rng = np.random.default_rng(derive(self.seed, "generated", index))
        # a class has a mean colour, so that there is something to learn
        colour = np.random.default_rng(derive(0, "colour", int(self.labels[index]))).integers(64, 192, 3)
        small = np.clip(colour + rng.integers(-64, 64, (4, 4, 3)), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(small).resize(self.size[::-1], Image.Resampling.BICUBIC).save(buffer, "JPEG")
        return buffer.getvalue()

    def where(self) -> str:
        return "generated images"


class GeneratedPixels(PixelSource):
    """Blocks of colour with a class each; image i is a function of (seed, i).

    Args:
        length: number of images.
        num_classes: number of classes.
        size: (height, width) in pixels.
        seed: which images.
    """

    def __init__(self, length: int, num_classes: int, size: tuple[int, int] = (64, 64), seed: int = 0):
        self.length, self.size, self.seed = length, size, seed
        self.class_names = tuple(f"class_{number}" for number in range(num_classes))

    def __len__(self) -> int:
        return self.length

    def name(self, index: int) -> str:
        return f"generated/{index}"

    def load(self, index: int) -> tuple[Image.Image, np.ndarray]:
        rng = np.random.default_rng(derive(self.seed, "generated", index))
        classes = len(self.class_names)
        colours = np.random.default_rng(derive(0, "colours", classes)).integers(64, 192, (classes, 3))
        blocks = rng.integers(0, classes, (4, 4))
        rows, columns = (np.arange(side) * 4 // side for side in self.size)
        labels = blocks[rows[:, None], columns].astype(np.uint8)
        pixels = colours[labels] + rng.integers(-32, 32, (*self.size, 1))
        return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), labels

    def where(self) -> str:
        return "generated images"
