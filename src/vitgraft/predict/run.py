"""`vitgraft predict`: what stands between the command line and the files."""

import argparse
import contextlib
import sys
from collections import Counter

import torch

from vitgraft.data.readers.open import open_files
from vitgraft.errors import CommandError
from vitgraft.predict.classification import predict
from vitgraft.predict.contact_sheet import write_contact_sheet
from vitgraft.predict.load import open_classifier, task_of_run
from vitgraft.predict.writers import Prediction, writer_for
from vitgraft.terminal import Progress, console, print_whole

__all__ = ["run"]

SHOWN = 40  # rows in the terminal
OF_SEGMENTATION = ("scales", "flip", "window", "stride", "full_size")


def run(args: argparse.Namespace) -> int:
    """Predicts with whatever the checkpoint's task is; 0, or 1 where no image at all could be read.

    Raises:
        CommandError: an option that this task does not have.
    """
    task = task_of_run(args.ckpt)
    given = [name for name in OF_SEGMENTATION if getattr(args, name) not in (None, False)]
    if given and task != "Segmentation":
        kind = "a detector" if task == "Detection" else "a classifier"
        raise CommandError(f"--{given[0].replace('_', '-')} is for segmentation; {args.ckpt} is {kind}")
    if task == "Segmentation":
        from vitgraft.predict.segmentation import run as run_task
    elif task == "Detection":
        from vitgraft.predict.detection import run as run_task
    else:
        run_task = run_classifier
    return run_task(args)


def run_classifier(args: argparse.Namespace) -> int:
    """Names the most probable classes of images.

    Args:
        args: paths, ckpt, weights, top, output, html, html_images, batch_size, device, workers: see the command's help.
    """
    if args.pictures:
        raise CommandError("--pictures is for segmentation and detection; --html FILE writes a page of thumbnails")
    source = open_files(args.paths)  # the quick mistakes before the model is loaded
    classifier = open_classifier(args.ckpt, args.weights)
    names = classifier.class_names
    top = min(args.top, len(names))
    sheet: list[Prediction] = []
    shown: list[Prediction] = []
    counts: Counter[int] = Counter()
    errors: list[Prediction] = []
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(writer_for(path, names, top, classifier.facts())) for path in args.output]
        step = stack.enter_context(Progress(len(source)))
        thumbnails = args.html_images if args.html else 0
        found = predict(classifier, source, top, args.batch_size, device, args.workers, thumbnails)
        for number, prediction in enumerate(found):
            step(prediction.image)
            for writer in writers:
                writer.add(prediction)
            if prediction.error is not None:
                errors.append(prediction)
            else:
                counts[prediction.classes[0]] += 1
                if args.html and number < args.html_images:
                    sheet.append(prediction)
            if len(shown) < SHOWN:
                shown.append(prediction)
    if args.html:
        write_contact_sheet(args.html, sheet + errors, names, classifier.facts(), counts.total() - len(sheet))
    if not args.output and not args.html:
        _show(shown, names)
    _summary(args, classifier.source, counts, errors, names)
    return 0 if counts else 1


def _show(predictions: list[Prediction], names: tuple[str, ...]) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for heading in ("image", "class", "others"):
        table.add_column(heading)
    table.columns[1].no_wrap = True
    for one in predictions:
        texts = [f"{names[i].split(',')[0]} {p:.1%}" for i, p in zip(one.classes, one.probabilities, strict=True)]
        if one.error is not None:
            texts = ["[red]not read[/red]", escape(one.error)]
        else:
            texts = [escape(text) for text in texts]
        table.add_row(escape(one.image), texts[0], ", ".join(texts[1:]))
    print_whole(console(), table)


def _summary(args, source: str, counts: Counter, errors: list[Prediction], names: tuple[str, ...]) -> None:
    usual = ", ".join(f"{names[i].split(',')[0]} {count}" for i, count in counts.most_common(5))
    images = "1 image" if counts.total() == 1 else f"{counts.total()} images"
    print(f"{images} predicted by {source}{': ' + usual if usual else ''}")
    for path in [*args.output, *([args.html] if args.html else [])]:
        print(f"written: {path}")
    if not args.output and not args.html and counts.total() + len(errors) > SHOWN:
        print(f"only the first {SHOWN} are shown; --output FILE.csv writes all")
    if args.html and counts.total() > args.html_images:
        print(f"the sheet shows the first {args.html_images}; --html-images N shows more")
    for one in errors[:20]:
        print(f"not read: {one.image}: {one.error}", file=sys.stderr)
    if len(errors) > 20:
        print(f"... and {len(errors) - 20} more; the written files name all", file=sys.stderr)
