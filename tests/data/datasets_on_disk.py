"""Small datasets on the disk for the tests of `vitgraft.data`: class folders, COCO's json, label maps."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from vitgraft.cli import main
from vitgraft.data.detection_targets import encode_mask


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


# ids with gaps, not in order
CATEGORIES = [{"id": 7, "name": "bolt"}, {"id": 3, "name": "nut"}]


def disc(height: int, width: int, y: int, x: int, radius: int) -> np.ndarray:
    """bool (height, width)"""
    rows, columns = np.mgrid[:height, :width]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def annotation(number: int, image: int, category: int, box: list, segmentation, **more) -> dict:
    one = {"id": number, "image_id": image, "category_id": category, "bbox": box, "iscrowd": 0}
    return {**one, "area": box[2] * box[3], "segmentation": segmentation, **more}


def coco_values() -> dict:
    """Polygons, a compressed and an uncompressed run-length code, a crowd, an image without objects, a gray one."""
    mask = disc(40, 60, 20, 30, 8)
    images = [
        {"id": 10, "file_name": "a.png", "height": 40, "width": 60},
        {"id": 4, "file_name": "b.jpg", "height": 50, "width": 48},
        {"id": 99, "file_name": "empty.png", "height": 40, "width": 40},
    ]
    # uncompressed: 50 rows a column; the crowd is columns 10 to 19
    crowd = {"size": [50, 48], "counts": [500, 500, 1400]}
    annotations = [
        annotation(1, 10, 7, [22, 12, 17, 17], encode_mask(mask), area=int(mask.sum())),
        annotation(2, 10, 3, [2, 3, 10, 20], [[2, 3, 12, 3, 12, 23, 2, 23]]),
        annotation(5, 4, 3, [30, 5, 10, 10], [[30, 5, 40, 5, 40, 15, 30, 15]]),
        annotation(6, 4, 3, [10, 0, 10, 50], crowd, iscrowd=1),
    ]
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


def write_set(root: Path, values: dict, split: str = "train", seed: int = 0) -> Path:
    """annotations/instances_SPLIT.json and SPLIT/ below a root; b.jpg is gray."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / split).mkdir(exist_ok=True)
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(values))
    generator = np.random.default_rng(seed)
    for one in values["images"]:
        shape = (one["height"], one["width"]) + (() if one["file_name"] == "b.jpg" else (3,))
        Image.fromarray(generator.integers(0, 255, shape).astype(np.uint8)).save(root / split / one["file_name"])
    return root


SIZE = (40, 32)  # width, height


def label_bytes(values, format: str = "PNG", mode: str | None = None) -> bytes:
    """A label file of (H, W) values, 8-bit or 16-bit gray."""
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


def check_data(capsys, *words):
    """`vitgraft check-data`: exit status, its JSON, and the findings by level and kind."""
    code = main(["check-data", *map(str, words), "--format", "json"])
    report = json.loads(capsys.readouterr().out)
    assert report["kind"] == "check-data"
    return code, report, {(one["level"], one["kind"]): one for one in report["findings"]}
