"""`vitgraft predict` for detection: boxes, masks, names and scores as CSV or JSON, and as pictures."""

import argparse
import contextlib
import csv
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitgraft.commands._common import CommandError
from vitgraft.data.decode import decode_image
from vitgraft.data.objects import encode_mask
from vitgraft.data.sources import ImageSource, open_files
from vitgraft.errors import ImageError
from vitgraft.evaluation.detection_pictures import draw_detections
from vitgraft.evaluation.detector import Detector, detect, open_detector
from vitgraft.evaluation.files import unused_stem
from vitgraft.evaluation.predictions import PredictionWriter
from vitgraft.report.terminal import Progress, console, print_whole

__all__ = ["Detections", "run", "writer_for"]

SHOWN = 40  # rows in the terminal


@dataclass(frozen=True)
class Detections:
    """What was found in one image, or why that is not known.

    Attributes:
        image: its file.
        width: in pixels.
        height: in pixels.
        objects: the surest first, each with label (1 to C), score, bbox [x, y, width, height] in pixels of the file,
            and segmentation, a run-length code, where the model has masks.
        picture: the file that it was drawn to.
        error: why the image could not be predicted; None where it could.
    """

    image: str
    width: int = 0
    height: int = 0
    objects: list[dict[str, Any]] = field(default_factory=list)
    picture: str | None = None
    error: str | None = None


class CsvDetections(PredictionWriter):
    """One line for each object: image, class, name, score, x, y, width, height, error."""

    def begin(self) -> None:
        self.lines = csv.writer(self.file, lineterminator="\n")
        self.lines.writerow(["image", "class", "name", "score", "x", "y", "width", "height", "error"])

    def add(self, prediction: Detections) -> None:
        for one in prediction.objects:
            place = [f"{number:.2f}" for number in one["bbox"]]
            name = self.class_names[one["label"] - 1]
            self.lines.writerow([prediction.image, one["label"], name, f"{one['score']:.4f}", *place, ""])
        if prediction.error is not None:
            self.lines.writerow([prediction.image, *[""] * 7, prediction.error])


class JsonDetections(PredictionWriter):
    """`{"kind": "detections", model and preprocessing, "images": [{"image": ..., "objects": [...]}, ...]}`.

    Boxes and masks are written as COCO does: [x, y, width, height], and compressed run-length codes.
    """

    def begin(self) -> None:
        head = json.dumps({"kind": "detections", **self.facts}, ensure_ascii=False, indent=1)
        self.file.write(head[:-2] + ',\n "images": [')
        self.first = True

    def add(self, prediction: Detections) -> None:
        entry: dict[str, Any] = {"image": prediction.image}
        if prediction.error is not None:
            entry["error"] = prediction.error
        else:
            entry |= {"width": prediction.width, "height": prediction.height}
            if prediction.picture:
                entry["picture"] = prediction.picture
            entry["objects"] = [{"class": self.class_names[one["label"] - 1], **one} for one in prediction.objects]
        self.file.write(("\n  " if self.first else ",\n  ") + json.dumps(entry, ensure_ascii=False))
        self.first = False

    def end(self) -> None:
        self.file.write("\n ]\n}\n")


def writer_for(path: Path, class_names: Sequence[str], facts: dict[str, Any]) -> PredictionWriter:
    """The writer for the file's ending, .csv or .json.

    Raises:
        ValueError: another ending.
    """
    kinds = {".csv": CsvDetections, ".json": JsonDetections}
    if path.suffix not in kinds:
        raise ValueError(f"{path}: the name must end in .csv or .json")
    return kinds[path.suffix](path, class_names, 0, facts)


def run(args: argparse.Namespace) -> int:
    """Predicts, writes and shows; 0, or 1 where no image at all could be predicted.

    Args:
        args: paths, ckpt, weights, output, pictures, score, device: see the command's help.
    """
    if args.html:
        raise CommandError("--html is for classifiers; --pictures DIR draws what was detected")
    source = open_files(args.paths)
    detector = open_detector(args.ckpt, args.weights)
    detector.model.to(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    names = detector.class_names
    if args.pictures:
        args.pictures.mkdir(parents=True, exist_ok=True)
    shown, errors, counts = [], [], Counter()
    stems: set[str] = set()
    done = 0
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(writer_for(path, names, detector.facts())) for path in args.output]
        step = stack.enter_context(Progress(len(source)))
        for index in range(len(source)):
            step(source.name(index))
            one = _predict(detector, source, index, args.pictures, args.score, stems)
            for writer in writers:
                writer.add(one)
            if one.error is not None:
                errors.append(one)
            else:
                counts.update(found["label"] for found in one.objects if found["score"] >= args.score)
                done += 1
            if len(shown) < SHOWN:
                shown.append(one)
    if not args.output and not args.pictures:
        _show(shown, names, args.score)
    _summary(args, detector.source, done, counts, errors, names)
    return 0 if done else 1


def _predict(
    detector: Detector, source: ImageSource, index: int, folder: Path | None, score: float, stems: set[str]
) -> Detections:
    name = source.name(index)
    try:
        image = decode_image(source.read(index), name)
    except ImageError as error:
        return Detections(name, error=error.reason or str(error))
    try:
        found = detect(detector, image)
    except (ValueError, RuntimeError) as error:  # one image must not end the others' predictions
        return Detections(name, error=f"{type(error).__name__}: {error}")
    masks = found.get("masks")
    objects = []
    for i, (x0, y0, x1, y1) in enumerate(found["boxes"].tolist()):
        one = {"label": int(found["labels"][i]), "score": round(float(found["scores"][i]), 6)}
        one["bbox"] = [round(n, 3) for n in (x0, y0, x1 - x0, y1 - y0)]
        if masks is not None:
            one["segmentation"] = encode_mask(masks[i])
        objects.append(one)
    picture = None
    if folder is not None:
        stem = unused_stem(name, stems)
        sure = np.flatnonzero(found["scores"] >= score)
        drawn = draw_detections(
            image,
            found["boxes"][sure],
            found["labels"][sure].tolist(),
            detector.class_names,
            found["scores"][sure].tolist(),
            None if masks is None else masks[sure],
            stem,
        )
        picture = str(folder / f"{stem}.jpg")
        drawn.save(picture, quality=90)
    return Detections(name, image.width, image.height, objects, picture)


def _show(shown: Sequence[Detections], names: Sequence[str], score: float) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for heading in ("image", "size", f"objects (score {score:g} or more)"):
        table.add_column(heading)
    for one in shown:
        if one.error is not None:
            table.add_row(escape(one.image), "[red]not read[/red]", escape(one.error))
            continue
        counts = Counter(found["label"] for found in one.objects if found["score"] >= score).most_common()
        text = ", ".join(f"{names[label - 1]} ({count})" for label, count in counts) or "none"
        table.add_row(escape(one.image), f"{one.width} x {one.height}", escape(text))
    print_whole(console(), table)


def _summary(args, source: str, done: int, counts: Counter, errors: Sequence[Detections], names: Sequence[str]) -> None:
    usual = ", ".join(f"{names[label - 1]} ({count})" for label, count in counts.most_common(5)) or "nothing"
    images = "1 image" if done == 1 else f"{done} images"
    print(f"{images} predicted by {source}, with a score of {args.score:g} or more: {usual}")
    for path in [*args.output, *([args.pictures] if args.pictures and done else [])]:
        print(f"written: {path}")
    if not args.output and not args.pictures and done + len(errors) > SHOWN:
        print(f"only the first {SHOWN} are shown; --output FILE.csv writes all")
    for one in errors[:20]:
        print(f"not predicted: {one.image}: {one.error}", file=sys.stderr)
    if len(errors) > 20:
        print(f"... and {len(errors) - 20} more; the written files name all", file=sys.stderr)
