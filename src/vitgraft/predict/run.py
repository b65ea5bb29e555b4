"""`vitgraft predict`: one loop for all tasks, from image files to what is written and shown."""

import argparse
import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vitgraft.data.decode import decode_image
from vitgraft.data.loader import TIMEOUT, begin_worker
from vitgraft.data.readers.base import ImageSource
from vitgraft.data.readers.open import open_files
from vitgraft.errors import CommandError, ImageError
from vitgraft.predict.base import Prediction, Predictor
from vitgraft.predict.load import PREDICTORS, open_model
from vitgraft.predict.writers import WRITERS, HtmlWriter
from vitgraft.terminal import Progress, console, note, print_table, printable

__all__ = ["move", "predictions", "run", "unused_stem"]

SHOWN = 40  # rows in the terminal
ERRORS_SHOWN = 20
THUMBNAIL = 160  # longer side in pixels
SETTINGS = tuple(dict.fromkeys(name for predictor in PREDICTORS.values() for name in predictor.settings))


class Prepared(NamedTuple):
    """An image ready for the model, or the error of one that is not."""

    index: int
    pixels: Tensor | None = None
    size: tuple[int, int] = (0, 0)
    kept: Image.Image | None = None
    error: str | None = None


class PreparedImages(Dataset):
    """Image i as `Prepared`; with itself kept, or its thumbnail.

    Args:
        source: The images.
        transform: RGB image -> float32 (3, H, W).
        keep: Whether images are kept.
        thumbnails: Number of images, from the first on, of which a thumbnail is kept.
    """

    def __init__(self, source: ImageSource, transform, keep: bool, thumbnails: int):
        self.source, self.transform, self.keep, self.thumbnails = source, transform, keep, thumbnails

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Prepared:
        try:
            image = decode_image(self.source.read(index), self.source.name(index))
            pixels = self.transform(image)
        except Exception as error:  # one image must not end the others' predictions
            return Prepared(index, error=_reason(error))
        size, kept = (image.height, image.width), image if self.keep else None
        if kept is None and index < self.thumbnails:
            kept = image.copy()
            kept.thumbnail((THUMBNAIL, THUMBNAIL))
        return Prepared(index, pixels, size, kept)


def predictions(
    predictor: Predictor,
    source: ImageSource,
    batch_size: int = 32,
    workers: int = 0,
    keep: bool = False,
    thumbnails: int = 0,
) -> Iterator[Prediction]:
    """The predictions of all images, in their order; one that can't be predicted has its error.

    Args:
        predictor: What predicts.
        source: The images (`vitgraft.data.readers.open.open_files`).
        batch_size: Images at a time, where the model takes several.
        workers: Processes that read images.
        keep: Whether predictions hold their images.
        thumbnails: Number of images, from the first on, of which predictions hold a thumbnail.
    """
    images = PreparedImages(source, predictor.transform, keep, thumbnails)
    loader = DataLoader(
        images,
        batch_size if predictor.batched else 1,
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=begin_worker,
        timeout=TIMEOUT if workers else 0,
    )
    for batch in loader:
        readable = [one for one in batch if one.error is None]
        results, failed = [], "the model's output is not finite"
        try:
            if readable:
                results = predictor.predict_batch([one.pixels for one in readable], [one.size for one in readable])
        except (ValueError, RuntimeError) as error:
            results, failed = [None] * len(readable), _reason(error)
            if isinstance(error, RuntimeError) and "memory" in failed:
                failed += f"; {predictor.memory_hint}"
        found = iter(results)
        for one in batch:
            result = None if one.error else next(found)
            error = one.error or (failed if result is None else None)
            yield Prediction(source.name(one.index), one.size[1], one.size[0], result, error, one.kept)


def move(predictor: Predictor, device: str | None) -> None:
    """Puts the model on a device; None: on the GPU where there is one.

    Raises:
        CommandError: There is no such device.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        predictor.model.to(device)
    except (RuntimeError, AssertionError) as error:  # of PyTorch, also where it was built without CUDA
        raise CommandError(f"--device {device}: not here ({str(error).splitlines()[0]}); --device cpu works") from error


def run(args: argparse.Namespace) -> int:
    """Predicts, writes and shows; 0, or 1 where no image at all could be predicted.

    Args:
        args: paths, ckpt, weights, trust, output, visualize, html, html_images, batch_size, device, workers, and the
            settings of all predictors, None where not given.

    Raises:
        CommandError: An option that this task does not have, or out of range.
    """
    source = open_files(args.paths)  # quick mistakes before the model is loaded
    predictor = open_model(args.ckpt, args.weights, trust=args.trust)
    try:
        predictor = predictor.with_settings(**{name: getattr(args, name) for name in SETTINGS})
    except ValueError as error:
        name, _, text = str(error).partition("=")
        raise CommandError(f"--{name.replace('_', '-')}={text}") from error
    if args.visualize and not predictor.draws:
        raise CommandError("--visualize is for segmentation and detection; --html FILE writes a page of thumbnails")
    if args.html and predictor.draws:
        raise CommandError("--html is for classifiers; --visualize DIR draws what was predicted")
    move(predictor, args.device)
    if args.visualize:
        args.visualize.mkdir(parents=True, exist_ok=True)

    shown: list[tuple[str, str, str]] = []
    errors: list[str] = []
    stems: set[str] = set()
    counts: Counter[str] = Counter()
    thumbnails = args.html_images if args.html else 0
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(WRITERS[path.suffix](path, predictor)) for path in args.output]
        if args.html:
            writers.append(stack.enter_context(HtmlWriter(args.html, predictor, args.html_images)))
        step = stack.enter_context(Progress(len(source)))
        for one in predictions(predictor, source, args.batch_size, args.workers, bool(args.visualize), thumbnails):
            step(one.image)
            if one.error is not None:
                errors.append(f"not predicted: {one.image}: {one.error}")
            else:
                counts += predictor.counts(one)
                if args.visualize:
                    one.files = predictor.draw(args.visualize, unused_stem(one.image, stems), one)
            for writer in writers:
                writer.add(one)
            if len(shown) < SHOWN:
                text = predictor.describe(one) if one.error is None else f"not predicted: {one.error}"
                shown.append((one.image, f"{one.width} x {one.height}" if one.width else "", text))
    done = len(source) - len(errors)
    files = [*args.output, *([args.html] if args.html else []), *([args.visualize] if args.visualize and done else [])]
    if not files:
        print_table(console(), ("image", "size", "prediction"), shown, (0, 1, 2))
    usual = predictor.summary(counts) if done else ""
    note(f"{done} image{'' if done == 1 else 's'} predicted by {predictor.source}{': ' + usual if usual else ''}")
    for path in files:
        note(f"written: {path}")
    if not files and len(source) > SHOWN:
        print(f"only the first {SHOWN} are shown; --output FILE.csv writes all")
    if args.html and done > args.html_images:
        print(f"the page shows the first {args.html_images}; --html-images N shows more")
    for text in errors[:ERRORS_SHOWN]:
        print(printable(text), file=sys.stderr)
    if len(errors) > ERRORS_SHOWN:
        print(f"... and {len(errors) - ERRORS_SHOWN} more; the written files name all", file=sys.stderr)
    return 0 if done else 1


def unused_stem(name: str, used: set[str]) -> str:
    """A file name without ending for what is written about image file `name`; images of several folders and endings
    may share one, and some systems take A and a for one name.

    Args:
        name: The image's path.
        used: Names given so far, to which this one is added.
    """
    plain = stem = Path(name).stem
    number = 1
    while stem.casefold() in used:
        number += 1
        stem = f"{plain}_{number}"
    used.add(stem.casefold())
    return stem


def _reason(error: Exception) -> str:
    if isinstance(error, ImageError):
        return error.reason or str(error)
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
