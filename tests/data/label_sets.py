"""Small sets of images with label files for the tests of semantic segmentation."""

import io

import numpy as np
from image_sets import image_bytes
from PIL import Image

SIZE = (40, 32)  # width, height


def label_bytes(values, format: str = "PNG", mode: str | None = None) -> bytes:
    """A label file of (H, W) values, 8-bit or 16-bit grey."""
    buffer = io.BytesIO()
    image = Image.fromarray(np.asarray(values))
    (image if mode is None else image.convert(mode)).save(buffer, format)
    return buffer.getvalue()


def blocks(number: int, values=(1, 2, 3), size: tuple[int, int] = SIZE) -> np.ndarray:
    """uint8 (H, W): upright stripes of some values, another order for each number."""
    columns = np.arange(size[0]) * len(values) // size[0]
    return np.tile(np.roll(values, number)[columns].astype(np.uint8), (size[1], 1))


def write_pairs(root, counts=None, values=(0, 1, 2, 3), names=("cat", "dog", "eel")):
    """ADE20K's layout, `counts` pairs in each split; returns root."""
    for split, count in (counts or {"training": 3, "validation": 2}).items():
        (root / "images" / split).mkdir(parents=True)
        (root / "annotations" / split).mkdir(parents=True)
        for number in range(count):
            seed = number + 100 * (split != "training")
            (root / "images" / split / f"{number}.jpg").write_bytes(image_bytes(seed, SIZE))
            (root / "annotations" / split / f"{number}.png").write_bytes(label_bytes(blocks(number, values)))
    if names:
        (root / "classes.txt").write_text("\n".join(names) + "\n")
    return root
