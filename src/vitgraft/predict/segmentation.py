"""`vitgraft predict` for segmentation: the segmenter of a run, images of any size within a limit of memory;
index PNGs, overlays with a legend, the areas of the classes as CSV or JSON."""

import argparse
import contextlib
import csv
import json
import sys
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vitgraft.data.decode import decode_image
from vitgraft.data.readers.open import open_files
from vitgraft.data.segmentation_transforms import SegmentationPreprocessing, resize_image, resize_labels
from vitgraft.errors import CheckpointError, CommandError, ImageError
from vitgraft.metrics.report_writer import unused_stem
from vitgraft.metrics.segmentation import predicted_classes
from vitgraft.models.sliding_window import infer, infer_rows, window_problems
from vitgraft.predict.draw_masks import enlarged, overlay, with_legend
from vitgraft.predict.load import load_weights
from vitgraft.predict.writers import PredictionWriter
from vitgraft.terminal import Progress, console, print_whole
from vitgraft.weights.files import read_run

__all__ = [
    "Areas",
    "Segmenter",
    "classes_at_size",
    "open_segmenter",
    "peak_bytes",
    "run",
    "segment",
    "write_pictures",
    "writer_for",
]

SHOWN = 40  # rows in the terminal
LABELS, OVERLAYS = "labels", "overlays"
NO_CLASS = 255
# Beside the tensors that PyTorch shows there are the operators' workspaces and what the allocator can't use again
WORKSPACE = 1.5
# Copies of the scores (float32) that are alive where they are resized and compared
SCORE_COPIES = 4
# An image of 2 x 3000 pixels is a mistake rather than one of 180 x 270000
MOST_ENLARGED, MANY_PIXELS = 16, 1 << 24


@dataclass(frozen=True)
class Segmenter:
    """A model with all that its predictions need.

    Attributes:
        model: in eval mode: images (B, 3, H, W) -> logits (B, C, H, W).
        preprocessing: what it expects of its images.
        class_names: of each of the C classes.
        source: where it comes from, in words.
        weights: "raw" or "ema" (averaged).
        inference: window, stride, scales and flip of the run's evaluation, as `infer` takes them.
    """

    model: nn.Module
    preprocessing: SegmentationPreprocessing
    class_names: tuple[str, ...]
    source: str
    weights: str
    inference: dict[str, Any]

    def facts(self) -> dict[str, Any]:
        """What a file of predictions says of its origin."""
        return {
            "model": self.source,
            "weights": self.weights,
            "preprocessing": asdict(self.preprocessing),
            "inference": self.inference,
        }

    @property
    def window(self) -> int:
        """Side of the windows in which large images are cut: those of the evaluation, or the training crops."""
        return self.inference["window"] or min(self.preprocessing.input_size)

    def inner_size(self, image: Image.Image, full_size: bool = False) -> tuple[int, int]:
        """(height, width) that an image has in the model: as the evaluation resizes it, or its own."""
        size = (image.height, image.width)
        return size if full_size else self.preprocessing.size_of(*size)

    def needed(self, inner: tuple[int, int]) -> int:
        """Bytes for an image of this size at once, with all scales and flips of `inference`."""
        scores, area = 4 * SCORE_COPIES * len(self.class_names), inner[0] * inner[1]
        largest = max(self.inference["scales"]) ** 2 * area
        by_model = self.bytes_of_window / self.window**2 * largest
        if self.inference["window"] is not None:
            by_model = self.bytes_of_window + scores * largest
        return int(by_model + scores * area + 24 * largest)

    def inference_of(self, image: Image.Image, limit: float, full_size: bool = False) -> dict[str, Any]:
        """How `segment` does an image: as `inference` says, or one too large for that in windows, at one scale."""
        if self.needed(self.inner_size(image, full_size)) <= limit:
            return self.inference
        return {**self.inference, "window": self.window, "scales": (1.0,), "flip": False}

    @cached_property
    def bytes_of_window(self) -> int:
        """Memory that the model takes for one window, measured."""
        device = next(self.model.parameters()).device
        image = torch.zeros(1, 3, self.window, self.window, device=device)
        return int(peak_bytes(self.model, image) * WORKSPACE)


def open_segmenter(what: str, weights: str | None = None) -> Segmenter:
    """Loads the segmenter of a run.

    Args:
        what: the run's folder (its best.ckpt, else last.ckpt), or a checkpoint.
        weights: "raw" or "ema"; None takes the averaged ones where there are any.

    Raises:
        CheckpointError: nothing there, damaged, or not of a segmenter.
    """
    checkpoint, path = read_run(what)
    from vitgraft.tasks.segmentation import Segmentation

    options = checkpoint["hyper_parameters"]
    if not checkpoint["task"].endswith(".Segmentation") or not isinstance(options.get("model"), str):
        raise CheckpointError(f"{path}: of a run of {checkpoint['task']}, which is no segmenter made by a model's name")
    task = Segmentation(**{**options, "pretrained": False, "checkpoint_path": None})
    model = task.build()
    weights = load_weights(model, checkpoint, path, weights)
    known = {field.name for field in fields(SegmentationPreprocessing)}
    config = {name: value for name, value in (options.get("data_config") or {}).items() if name in known}
    config = {name: tuple(value) if isinstance(value, list) else value for name, value in config.items()}
    if "input_size" in config:
        config["input_size"] = config["input_size"][-2:]
    preprocessing = SegmentationPreprocessing(**{"short_side": None, "long_side": None, **config})
    how = {name: options.get(name) for name in ("window", "stride")}
    how |= {"scales": tuple(options.get("scales") or (1.0,)), "flip": bool(options.get("flip"))}
    source = f"{options['model']} of {path}"
    return Segmenter(model.eval(), preprocessing, tuple(task.class_names), source, weights, how)


@torch.inference_mode()
def segment(segmenter: Segmenter, image: Image.Image, limit: float = 4e9, full_size: bool = False) -> np.ndarray:
    """The class of each pixel.

    An image that fits is given to the model whole, resized as in the evaluation, at all scales that it uses. A larger
    one is cut in overlapping windows at one scale, without flips, whose scores are averaged; of one that is larger
    still, parts with a margin are done one after the other. `Segmenter.inference_of` says which it will be.

    Args:
        segmenter: what predicts.
        image: RGB, of any size.
        limit: memory that the model and its scores may take, bytes; the image itself, 3 bytes a pixel, and the result,
            1 byte a pixel, come on top.
        full_size: leave the image's size as it is, whatever the evaluation does.

    Returns:
        uint8 (H, W): 0 to C - 1, and 255 where the model's scores are not finite.

    Raises:
        ValueError: not even one window fits in `limit`, or an image of a few pixels' height or width would become huge.
    """
    device = next(segmenter.model.parameters()).device
    given, how, classes = segmenter.preprocessing, segmenter.inference, len(segmenter.class_names)
    size, inner = (image.height, image.width), segmenter.inner_size(image, full_size)
    if min(inner) > MOST_ENLARGED * min(size) and inner[0] * inner[1] > MANY_PIXELS:
        raise ValueError(
            f"{size[1]} x {size[0]} pixels would become {inner[1]} x {inner[0]} (short_side="
            f"{given.short_side}, long_side={given.long_side}): crop it, or leave its size with --full-size"
        )
    pixels = resize_image(torch.from_numpy(np.array(image)).permute(2, 0, 1), inner, given.antialias)

    def prepared(part: Tensor) -> Tensor:
        return given.standardize(part.to(device).float() / 255)[None]

    scores = 4 * SCORE_COPIES * classes  # bytes of a pixel
    if segmenter.needed(inner) <= limit:
        if scores * size[0] * size[1] <= limit:
            found = predicted_classes(infer(segmenter.model, prepared(pixels), **how, size=size))[0]
            return _as_bytes(found)
        return classes_at_size(infer(segmenter.model, prepared(pixels), **how)[0], size, limit)
    result = torch.empty(inner, dtype=torch.uint8)
    for kept, taken in _parts(inner, segmenter.window, segmenter.bytes_of_window, scores, limit):
        part = prepared(pixels[:, taken[0] : taken[1], taken[2] : taken[3]])
        top = taken[0]
        for first, probabilities in infer_rows(segmenter.model, part, segmenter.window, how["stride"]):
            found = torch.from_numpy(_as_bytes(predicted_classes(probabilities)[0]))
            start, stop = max(top + first, kept[0]), min(top + first + len(found), kept[1])
            if start < stop:
                rows = found[start - top - first : stop - top - first, kept[2] - taken[2] : kept[3] - taken[2]]
                result[start:stop, kept[2] : kept[3]] = rows
    return resize_labels(result, size).numpy()


def _as_bytes(classes: Tensor) -> np.ndarray:
    return torch.where(classes < 0, NO_CLASS, classes).to(torch.uint8).cpu().numpy()


Box = tuple[int, int, int, int]  # top, bottom, left, right


def _parts(size: tuple[int, int], window: int, by_model: int, scores: int, limit: float) -> Iterator[tuple[Box, Box]]:
    """(what is kept, what is computed) of parts that cover an image; what is computed has half a window around.

    Raises:
        ValueError: no part with more than its margins fits.
    """
    left, margin = limit - by_model, window // 2
    # a part takes the scores of two windows' height, and itself as float32 with what is made of it
    strip, pixel = 2 * window * scores, 24
    least_height, least_width = (min(side, 2 * window) for side in size)
    width = min(size[1], int(left / (strip + pixel * least_height)))
    if width < least_width:
        need = by_model + least_width * (strip + pixel * least_height)
        raise ValueError(
            f"memory={limit / 1e9:g} GB: windows of {window} pixels need {need / 1e9:.2g} GB; give --memory more"
        )
    height = min(size[0], int((left - strip * width) / (pixel * width)))
    for top, bottom, outer_top, outer_bottom in _spans(size[0], height, margin):
        for start, stop, outer_start, outer_stop in _spans(size[1], width, margin):
            yield (top, bottom, start, stop), (outer_top, outer_bottom, outer_start, outer_stop)


def _spans(side: int, part: int, margin: int) -> Iterator[Box]:
    """(first, end) of what is kept and (first, end) of what is computed, of spans of at most `part` pixels."""
    if part >= side:
        yield 0, side, 0, side
        return
    step = part - 2 * margin
    for first in range(0, side, step):
        end = min(first + step, side)
        yield first, end, max(0, first - margin), min(side, end + margin)


def classes_at_size(scores: Tensor, size: tuple[int, int], limit: float = 4e9) -> np.ndarray:
    """The best class of each pixel of scores resized, bilinear, without making all of the resized scores at once.

    Args:
        scores: (C, h, w).
        size: (H, W) of the result.
        limit: memory for the resized scores, bytes.

    Returns:
        uint8 (H, W); 255 where scores are not finite.
    """
    height, width = size
    rows = max(1, int(limit / (4 * SCORE_COPIES * len(scores) * max(width, scores.shape[2]))))
    result = np.empty(size, dtype=np.uint8)
    # half-pixel centres, as F.interpolate with align_corners=False
    places = ((torch.arange(height, device=scores.device) + 0.5) * scores.shape[1] / height - 0.5).clamp(min=0)
    above = places.floor().long()
    below = (above + 1).clamp(max=scores.shape[1] - 1)
    share = (places - above).to(scores.dtype)[:, None]
    for start in range(0, height, rows):
        band = slice(start, start + rows)
        lines = scores[:, above[band]] * (1 - share[band]) + scores[:, below[band]] * share[band]
        lines = F.interpolate(lines[None], (lines.shape[1], width), mode="bilinear", align_corners=False)
        result[band] = _as_bytes(predicted_classes(lines)[0])
    return result


@torch.no_grad()
def peak_bytes(model: nn.Module, image: Tensor) -> int:
    """Most bytes of tensors that a forward pass has alive at a time, without weights, on any device."""
    with LiveBytes() as live:
        model(image)
    return live.peak


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that operators make, from their making to their end."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.alive: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if not isinstance(leaf, Tensor):
                continue
            storage = leaf.untyped_storage()
            if storage._cdata in before or storage._cdata in self.alive:
                continue
            self.alive.add(storage._cdata)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._end, storage._cdata, storage.nbytes())
        return result

    def _end(self, storage: int, size: int) -> None:
        self.alive.discard(storage)
        self.now -= size


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
