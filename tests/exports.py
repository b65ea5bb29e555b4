"""Exports of other tools, as their documentation and their archives have them: the same six images and boxes of two
classes in each, `truth()`."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ("bolt", "nut")
WIDTH, HEIGHT = 64, 48
# image -> class and box x0, y0, x1, y1; the last image has no object
BOXES = {
    "a": [("bolt", (4, 6, 24, 26)), ("nut", (30, 8, 50, 40))],
    "b": [("nut", (2, 2, 20, 22))],
    "c": [("bolt", (10, 10, 30, 30)), ("bolt", (33, 20, 63, 44))],
    "d": [("nut", (8, 4, 40, 36))],
    "e": [("bolt", (16, 12, 48, 44)), ("nut", (0, 0, 16, 12))],
    "f": [],
}
SPLITS = {"train": "abcf", "val": "de"}


def truth(split: str) -> dict[str, list[tuple[str, tuple[float, ...]]]]:
    """Image -> class and x, y, width, height of each box."""
    return {
        name: [(label, (x0, y0, x1 - x0, y1 - y0)) for label, (x0, y0, x1, y1) in BOXES[name]]
        for name in SPLITS.get(split, "abcdef")
    }


def found(source) -> dict[str, list[tuple[str, tuple[float, ...]]]]:
    """The same of a source."""
    names = dict(zip(source.category_ids, source.class_names, strict=True))
    return {
        Path(source.name(index)).stem: [
            (names[one["category_id"]], tuple(np.round(one["bbox"], 3).tolist()))
            for one in source.objects(index).annotations
        ]
        for index in range(len(source))
    }


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = (WIDTH, HEIGHT), **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def write_images(folder: Path, names, ending: str = ".jpg") -> None:
    for name in names:
        write_image(folder / f"{name}{ending}", ord(name))


# Pascal VOC


def xml(name: str, database: str = "Unknown", shift: int = 0, size: bool = True, ending: str = ".jpg") -> str:
    """As labelImg writes it; `shift` is added to the first corner, 1 in the originals."""
    sides = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>" if size else ""
    objects = "".join(
        f"<object><name>{label}</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult><bndbox>"
        f"<xmin>{x0 + shift}</xmin><ymin>{y0 + shift}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for label, (x0, y0, x1, y1) in BOXES[name]
    )
    return (
        f"<annotation><folder>set</folder><filename>{name}{ending}</filename><path>/home/me/{name}{ending}</path>"
        f"<source><database>{database}</database></source>{sides}<segmented>0</segmented>{objects}</annotation>"
    )


def write_xml(folder: Path, names, **options) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / f"{name}.xml").write_text(xml(name, **options))


def labelimg(root: Path) -> Path:
    """XML beside the images, no splits."""
    write_images(root, BOXES)
    write_xml(root, BOXES)
    return root


def roboflow_voc(root: Path) -> Path:
    """train/ and valid/ with images and XML together."""
    for split, names in SPLITS.items():
        folder = root / {"val": "valid"}.get(split, split)
        write_images(folder, names)
        write_xml(folder, names, database="roboflow.com")
    (root / "README.roboflow.txt").write_text("exported\n")
    return root


def voc2007(root: Path) -> Path:
    """VOCdevkit/VOC2007 with ImageSets, lists of single classes among them; pixels are counted from 1."""
    start = root / "VOCdevkit" / "VOC2007"
    write_images(start / "JPEGImages", BOXES)
    write_xml(start / "Annotations", BOXES, database="The VOC2007 Database", shift=1)
    (start / "ImageSets" / "Main").mkdir(parents=True)
    for split, names in SPLITS.items():
        (start / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        (start / "ImageSets" / "Main" / f"bolt_{split}.txt").write_text("".join(f"{name} -1\n" for name in names))
    return root


def cvat_voc(root: Path, splits: bool = True) -> Path:
    """labelmap.txt, ImageSets/Main with subsets, or default.txt alone; corners with fractions; an image without XML."""
    write_images(root / "JPEGImages", BOXES)
    write_xml(root / "Annotations", "abcde", shift=0)
    for path in (root / "Annotations").iterdir():
        path.write_text(path.read_text().replace("</xmin>", ".0</xmin>"))
    (root / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\nbolt:250,50,83::\nnut:51,221,255::\n"
    )
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for split, names in SPLITS.items() if splits else {"default": BOXES}.items():
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    return root


# YOLO


def line(label: str, box) -> str:
    x0, y0, x1, y1 = box
    numbers = ((x0 + x1) / 2 / WIDTH, (y0 + y1) / 2 / HEIGHT, (x1 - x0) / WIDTH, (y1 - y0) / HEIGHT)
    return " ".join([str(NAMES.index(label)), *(f"{number:.6f}" for number in numbers)])


def polygon(label: str, box) -> str:
    x0, y0, x1, y1 = box
    points = ((x0, y0), (x1, y0), (x1, y1), (x0, y1))
    return " ".join([str(NAMES.index(label)), *(f"{x / WIDTH:.6f} {y / HEIGHT:.6f}" for x, y in points)])


def write_lines(folder: Path, names, make=line, empty: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if BOXES[name] or empty:
            (folder / f"{name}.txt").write_text("\n".join(make(*one) for one in BOXES[name]))


def ultralytics(root: Path, make=line) -> Path:
    """coco8's layout: images/train, labels/train and a yaml with `path`; images without objects have no file."""
    for split, names in SPLITS.items():
        write_images(root / "images" / split, names)
        write_lines(root / "labels" / split, names, make, empty=False)
    (root / "data.yaml").write_text(
        "path: ../datasets/screws\ntrain: images/train\nval: images/val\ntest:\nnames:\n  0: bolt\n  1: nut\n"
    )
    return root


def roboflow_yolo(root: Path) -> Path:
    """train/images, train/labels, valid/..., and a yaml whose paths have a ../ too many."""
    for split, names in SPLITS.items():
        folder = root / {"val": "valid"}.get(split, split)
        write_images(folder / "images", names)
        write_lines(folder / "labels", names)
    (root / "data.yaml").write_text(
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 2\nnames: ['bolt', 'nut']\n"
        "roboflow:\n  workspace: me\n"
    )
    return root


def labelstudio_yolo(root: Path) -> Path:
    """images, labels, classes.txt, notes.json; no splits."""
    write_images(root / "images", BOXES)
    write_lines(root / "labels", BOXES)
    (root / "classes.txt").write_text("bolt\nnut\n")
    (root / "notes.json").write_text('{"categories": [{"id": 0, "name": "bolt"}], "info": {}}')
    return root


def labelimg_yolo(root: Path) -> Path:
    """Text files and classes.txt among the images, no splits."""
    write_images(root, BOXES)
    write_lines(root, BOXES)
    (root / "classes.txt").write_text("bolt\nnut\n")
    return root


def cvat_yolo(root: Path, splits: bool = True) -> Path:
    """YOLO 1.1: obj.data, obj.names, lists of images, obj_train_data with images and text files."""
    for split, names in SPLITS.items() if splits else {"train": BOXES}.items():
        folder = {"train": "obj_train_data", "val": "obj_valid_data"}[split]
        write_images(root / folder, names)
        write_lines(root / folder, names)
        listed = {"val": "valid"}.get(split, split)
        (root / f"{listed}.txt").write_text("".join(f"data/{folder}/{name}.jpg\n" for name in names))
    (root / "obj.names").write_text("bolt\nnut\n")
    (root / "obj.data").write_text("classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")
    return root


SPLIT_EXPORTS = (roboflow_voc, voc2007, cvat_voc, ultralytics, roboflow_yolo, cvat_yolo)
WHOLE_EXPORTS = {
    "labelimg": labelimg,
    "cvat_voc": lambda root: cvat_voc(root, splits=False),
    "labelstudio_yolo": labelstudio_yolo,
    "labelimg_yolo": labelimg_yolo,
    "cvat_yolo": lambda root: cvat_yolo(root, splits=False),
}


# tables


def write_table(path: Path, rows, header=("image", "label"), delimiter: str = ",") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([header, *rows] if header else rows)
    return path
