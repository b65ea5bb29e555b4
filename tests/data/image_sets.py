"""Small image sets for the tests of `vitgraft.data`."""

import io
import tarfile

import numpy as np
from PIL import Image


def image_bytes(seed: int = 0, size: tuple[int, int] = (40, 32), format: str = "JPEG", mode: str = "RGB", **options):
    """An encoded image of smooth noise, (width, height) pixels."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize(size, Image.Resampling.BICUBIC).convert(mode).save(buffer, format, **options)
    return buffer.getvalue()


def write_folder(root, counts: dict[str, int], seed: int = 0, **options):
    """ROOT/CLASS/N.jpg, `counts` images of each class; returns root."""
    for label, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f"{number:03}.jpg").write_bytes(image_bytes(seed + 1000 * label + number, **options))
    return root


def write_tar(path, folder, mode: str = "w", prefix: str = ""):
    """Packs all files of a folder; returns the tar's path."""
    with tarfile.open(path, mode) as tar:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                tar.add(file, prefix + str(file.relative_to(folder)))
    return path


def add_bytes(tar, name: str, data: bytes) -> None:
    """Puts a file into an open tar."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
