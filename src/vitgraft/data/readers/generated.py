"""Images made of nothing, for trying a recipe (`--smoke`) and for tests."""

import io

import numpy as np
from PIL import Image

from vitgraft.data.readers.base import ImageSource
from vitgraft.randomness import derive


class GeneratedSource(ImageSource):
    """Blurred colored squares as JPEG; image i is a function of (seed, i), its label is i modulo `num_classes`.

    Args:
        length: Number of images.
        num_classes: Number of classes.
        size: (height, width) in pixels.
        seed: Which images.
    """

    where = "generated images"

    def __init__(self, length: int, num_classes: int, size: tuple[int, int] = (64, 64), seed: int = 0):
        self.size, self.seed = size, seed
        self.labels = np.arange(length) % num_classes
        self.class_names = tuple(f"class_{number}" for number in range(num_classes))

    def name(self, index: int) -> str:
        return f"generated/{index}.jpg"

    def read(self, index: int) -> bytes:
        rng = np.random.default_rng(derive(self.seed, "generated", index))
        # a class has a mean color, so that there is something to learn
        color = np.random.default_rng(derive(0, "colour", int(self.labels[index]))).integers(64, 192, 3)
        small = np.clip(color + rng.integers(-64, 64, (4, 4, 3)), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(small).resize(self.size[::-1], Image.Resampling.BICUBIC).save(buffer, "JPEG")
        return buffer.getvalue()
