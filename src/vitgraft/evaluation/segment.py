"""`vitgraft predict` for segmentation: index PNGs, overlays with a legend, the areas of the classes as CSV or JSON."""

import argparse
import contextlib
import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vitgraft.commands._common import CommandError
from vitgraft.data.decode import decode_image
from vitgraft.data.sources import open_files
from vitgraft.errors import ImageError
from vitgraft.evaluation.files import unused_stem
from vitgraft.evaluation.predictions import PredictionWriter
from vitgraft.evaluation.segmentation_pictures import enlarged, overlay, with_legend
from vitgraft.evaluation.segmenter import NO_CLASS, Segmenter, open_segmenter, segment
from vitgraft.evaluation.sliding import window_problems
from vitgraft.report.terminal import Progress, console, print_whole

__all__ = ["Areas", "run", "write_pictures", "writer_for"]

SHOWN = 40  # rows in the terminal
LABELS, OVERLAYS = "labels", "overlays"


@dataclass(frozen=True)
class Areas:
    """How many pixels of one image each class has, or why that is not known.

    Attributes:
        image: its file.
        width: in pixels.
        height: in pixels.
        pixels: int64 (C + 1,), of each class; the last are pixels without a class.
        files: "labels" and "overlay" -> the files that were written of it.
        inference: how it was done, where that is not how all others were: too large for the memory given.
        error: why the image could not be predicted; None where it could.
    """

    image: str
    width: int = 0
    height: int = 0
    pixels: np.ndarray | None = None
    files: dict[str, str] | None = None
    inference: dict[str, Any] | None = None
    error: str | None = None

    def classes(self) -> list[tuple[int, int, float]]:
        """(class, pixels, share) of the classes that it has, the largest first."""
        if self.pixels is None:
            return []
        order = np.argsort(-self.pixels, kind="stable")
        total = max(1, self.width * self.height)
        return [(int(i), int(self.pixels[i]), float(self.pixels[i] / total)) for i in order if self.pixels[i]]


class CsvAreas(PredictionWriter):
    """One line for each image and class in it: image, width, height, class, name, pixels, share, error."""

    def begin(self) -> None:
        self.lines = csv.writer(self.file, lineterminator="\n")
        self.lines.writerow(["image", "width", "height", "class", "name", "pixels", "share", "error"])

    def add(self, prediction: Areas) -> None:
        one = prediction
        for number, pixels, share in one.classes():
            name, shown = _named(number, self.class_names)
            self.lines.writerow([one.image, one.width, one.height, shown, name, pixels, f"{share:.6g}", ""])
        if one.error is not None:
            self.lines.writerow([one.image, "", "", "", "", "", "", one.error])


class JsonAreas(PredictionWriter):
    """`{"kind": "segmentations", model and preprocessing, "images": [{"image": ..., "classes": [...]}, ...]}`."""

    def begin(self) -> None:
        head = json.dumps({"kind": "segmentations", **self.facts}, ensure_ascii=False, indent=1)
        self.file.write(head[:-2] + ',\n "images": [')
        self.first = True

    def add(self, prediction: Areas) -> None:
        one = prediction
        entry: dict[str, Any] = {"image": one.image}
        if one.error is not None:
            entry["error"] = one.error
        else:
            entry |= {"width": one.width, "height": one.height, **(one.files or {})}
            entry |= {"inference": one.inference} if one.inference else {}
            entry["classes"] = []
            for number, pixels, share in one.classes():
                name, shown = _named(number, self.class_names)
                entry["classes"].append(
                    {"index": shown, "class": name, "pixels": pixels, "share": float(f"{share:.6g}")}
                )
        self.file.write(("\n  " if self.first else ",\n  ") + json.dumps(entry, ensure_ascii=False))
        self.first = False

    def end(self) -> None:
        self.file.write("\n ]\n}\n")


def writer_for(path: Path, class_names: Sequence[str], facts: dict[str, Any]) -> PredictionWriter:
    """The writer for the file's ending, .csv or .json.

    Raises:
        ValueError: another ending.
    """
    kinds = {".csv": CsvAreas, ".json": JsonAreas}
    if path.suffix not in kinds:
        raise ValueError(f"{path}: the name must end in .csv or .json")
    return kinds[path.suffix](path, class_names, 0, facts)


def _named(number: int, class_names: Sequence[str]) -> tuple[str, int]:
    """Name and number of a class; pixels without a class are 255."""
    return (class_names[number], number) if number < len(class_names) else ("(no class)", NO_CLASS)


def write_pictures(
    folder: Path, stem: str, image: Image.Image, classes: np.ndarray, class_names: Sequence[str]
) -> dict[str, str]:
    """Writes labels/STEM.png, an 8-bit grey image of the classes, and overlays/STEM.jpg, for people.

    Args:
        folder: where the two folders are, or will be.
        stem: of the files' names.
        image: RGB.
        classes: uint8 (H, W), 255 where there is no class.
        class_names: of classes 0 to C - 1.
    """
    files = {"labels": folder / LABELS / f"{stem}.png", "overlay": folder / OVERLAYS / f"{stem}.jpg"}
    for path in files.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(classes).save(files["labels"])
    drawn = overlay(enlarged(image), classes, len(class_names))
    with_legend(drawn, classes, class_names, stem).save(files["overlay"], quality=90)
    return {name: str(path) for name, path in files.items()}


def run(args: argparse.Namespace) -> int:
    """Predicts, writes and shows; 0, or 1 where no image at all could be predicted.

    Args:
        args: paths, ckpt, weights, output, pictures, device, memory, full_size, scales, flip, window, stride: see the
            command's help.

    Raises:
        CommandError: options that don't go together.
    """
    if args.html:
        raise CommandError("--html is for classifiers; --pictures DIR writes overlays of a segmentation")
    source = open_files(args.paths)
    segmenter = open_segmenter(args.ckpt, args.weights)
    segmenter = replace(segmenter, inference=_inference(args, segmenter.inference))
    segmenter.model.to(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    names = segmenter.class_names
    if args.pictures:
        args.pictures.mkdir(parents=True, exist_ok=True)
        # so that the folder can be read as label files again
        (args.pictures / "classes.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    found, errors, total = [], [], np.zeros(len(names) + 1, dtype=np.int64)
    stems: set[str] = set()
    done = reduced = 0
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(writer_for(path, names, segmenter.facts())) for path in args.output]
        step = stack.enter_context(Progress(len(source)))
        for index in range(len(source)):
            step(source.name(index))
            one = _predict(segmenter, source, index, args, stems)
            reduced += one.inference is not None
            for writer in writers:
                writer.add(one)
            if one.error is not None:
                errors.append(one)
            else:
                total += one.pixels
                done += 1
            if len(found) < SHOWN:
                found.append(one)
    if not args.output and not args.pictures:
        _show(found, names, args.top)
    _summary(args, segmenter.source, done, total, errors, names)
    if reduced:
        print(_reduced(reduced, segmenter, args.memory))
    return 0 if done else 1


def _inference(args: argparse.Namespace, of_run: dict[str, Any]) -> dict[str, Any]:
    """How images are predicted: as in the run's evaluation, but for what the command line says."""
    given = {"scales": args.scales, "flip": args.flip, "window": args.window, "stride": args.stride}
    how = {**of_run, **{name: value for name, value in given.items() if value is not None}}
    if problems := window_problems(how["window"], how["stride"], how["scales"]):
        raise CommandError("; ".join(f"--{problem}" for problem in problems))
    return how


def _reduced(count: int, segmenter: Segmenter, memory: float) -> str:
    how = segmenter.inference
    lost = [] if len(how["scales"]) == 1 and how["scales"][0] == 1 else ["at scale 1 only"]
    lost += ["without flips"] if how["flip"] else []
    images = "1 image" if count == 1 else f"{count} images"
    return (
        f"{images} larger than --memory {memory:g} allows at once: in windows of {segmenter.window} pixels"
        + "".join(f", {text}" for text in lost)
    )


def _predict(segmenter, source, index: int, args: argparse.Namespace, stems: set[str]) -> Areas:
    name = source.name(index)
    try:
        image = decode_image(source.read(index), name)
    except ImageError as error:
        return Areas(name, error=error.reason or str(error))
    try:
        classes = segment(segmenter, image, args.memory * 1e9, args.full_size)
    except (ValueError, RuntimeError) as error:  # one image must not end the others' predictions
        return Areas(name, error=f"{type(error).__name__}: {error}")
    values = np.bincount(classes.reshape(-1), minlength=NO_CLASS + 1)
    pixels = np.append(values[: len(segmenter.class_names)], values[NO_CLASS])
    if not pixels[:-1].any():
        return Areas(name, error="the model's output is not finite")
    how, files = segmenter.inference_of(image, args.memory * 1e9, args.full_size), None
    if args.pictures:
        stem = unused_stem(name, stems)
        files = write_pictures(args.pictures, stem, image, classes, segmenter.class_names)
    return Areas(name, image.width, image.height, pixels, files, None if how == segmenter.inference else how)


def _show(found: Sequence[Areas], names: Sequence[str], top: int) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for heading in ("image", "size", "classes by area"):
        table.add_column(heading)
    for one in found:
        if one.error is not None:
            table.add_row(escape(one.image), "[red]not read[/red]", escape(one.error))
            continue
        parts = [f"{_named(i, names)[0].split(',')[0]} {share:.1%}" for i, _, share in one.classes()[:top]]
        table.add_row(escape(one.image), f"{one.width} x {one.height}", escape(", ".join(parts)))
    print_whole(console(), table)


def _summary(args, source: str, done: int, total: np.ndarray, errors: Sequence[Areas], names: Sequence[str]) -> None:
    order = [int(i) for i in np.argsort(-total, kind="stable")[:5] if total[i]]
    usual = ", ".join(f"{_named(i, names)[0].split(',')[0]} {total[i] / max(1, total.sum()):.1%}" for i in order)
    print(f"{done} image{'' if done == 1 else 's'} segmented by {source}{': ' + usual if usual else ''}")
    for path in args.output:
        print(f"written: {path}")
    if args.pictures and done:
        print(f"written: {args.pictures / LABELS} (index PNGs), {args.pictures / OVERLAYS}")
    if not args.output and not args.pictures and done + len(errors) > SHOWN:
        print(f"only the first {SHOWN} are shown; --output FILE.csv writes all")
    for one in errors[:20]:
        print(f"not predicted: {one.image}: {one.error}", file=sys.stderr)
    if len(errors) > 20:
        print(f"... and {len(errors) - 20} more; the written files name all", file=sys.stderr)
