"""`vitgraft predict` for detection: the detector of a run; boxes, masks, names and scores as CSV, JSON and pictures."""

import argparse
import contextlib
import csv
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from vitgraft.data.decode import decode_image
from vitgraft.data.detection_targets import encode_mask
from vitgraft.data.detection_transforms import DetectionPreprocessing, eval_transform
from vitgraft.data.readers.base import ImageSource
from vitgraft.data.readers.open import open_files
from vitgraft.errors import CheckpointError, CommandError, ImageError
from vitgraft.metrics.report_writer import unused_stem
from vitgraft.predict.draw_boxes import draw_detections
from vitgraft.predict.load import load_weights
from vitgraft.predict.writers import PredictionWriter
from vitgraft.terminal import Progress, console, print_whole
from vitgraft.weights.files import read_run

__all__ = ["Detections", "Detector", "detect", "open_detector", "run", "writer_for"]

SHOWN = 40  # rows in the terminal


@dataclass(frozen=True)
class Detector:
    """A model with all that its predictions need.

    Attributes:
        model: in eval mode: (list of (3, H, W), sizes=[(H, W) of the file]) -> boxes, scores, labels and masks of each.
        preprocessing: what it expects of its images.
        class_names: of the labels 1 to C.
        source: where it comes from, in words.
        weights: "raw" or "ema" (averaged).
    """

    model: nn.Module
    preprocessing: DetectionPreprocessing
    class_names: tuple[str, ...]
    source: str
    weights: str

    def facts(self) -> dict[str, Any]:
        """What a file of predictions says of its origin."""
        return {"model": self.source, "weights": self.weights, "preprocessing": asdict(self.preprocessing)}


def open_detector(what: str, weights: str | None = None) -> Detector:
    """Loads the detector of a run.

    Args:
        what: the run's folder (its best.ckpt, else last.ckpt), or a checkpoint.
        weights: "raw" or "ema"; None takes the averaged ones where there are any.

    Raises:
        CheckpointError: nothing there, damaged, or not of a detector.
    """
    checkpoint, path = read_run(what)
    from vitgraft.tasks.detection import Detection

    options = checkpoint["hyper_parameters"]
    if not checkpoint["task"].endswith(".Detection") or not isinstance(options.get("model"), str):
        raise CheckpointError(f"{path}: of a run of {checkpoint['task']}, which is no detector made by a model's name")
    task = Detection(**{**options, "pretrained": False, "checkpoint_path": None})
    model = task.build()
    weights = load_weights(model, checkpoint, path, weights)
    known = {field.name for field in fields(DetectionPreprocessing)}
    config = {name: value for name, value in (options.get("data_config") or {}).items() if name in known}
    config = {name: tuple(value) if isinstance(value, list) else value for name, value in config.items()}
    if "input_size" in config:
        config["input_size"] = config["input_size"][-2:]
    source = f"{options['model']} of {path}"
    return Detector(model.eval(), DetectionPreprocessing(**config), tuple(task.class_names), source, weights)


@torch.inference_mode()
def detect(detector: Detector, image: Image.Image) -> dict[str, np.ndarray]:
    """The objects in an image, the surest first.

    Args:
        detector: what predicts.
        image: RGB, of any size.

    Returns:
        boxes float32 (N, 4), x0, y0, x1, y1 in pixels of the image, scores float32 (N,), labels int64 (N,), 1 to C,
        and masks bool (N, H, W) where the model has them. What is not finite is left out.
    """
    device = next(detector.model.parameters()).device
    pixels = eval_transform(detector.preprocessing)(image).to(device)
    found = detector.model([pixels], sizes=[(image.height, image.width)])[0]
    finite = found["boxes"].isfinite().all(1) & found["scores"].isfinite()
    order = torch.argsort(found["scores"].nan_to_num(-1), descending=True, stable=True)
    order = order[finite[order]]
    return {name: found[name][order].cpu().numpy() for name in ("boxes", "scores", "labels", "masks") if name in found}


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
