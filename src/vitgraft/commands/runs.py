"""Commands around training runs: init, check-data, convert, predict, demo; fit, validate, test are in `training`."""

import argparse
import shlex
from pathlib import Path

from vitgraft.atomic import check_writable
from vitgraft.commands.common import (
    add_command,
    add_format,
    add_trust,
    check_new_folder,
    check_output,
    check_report,
    positive,
    print_as,
)
from vitgraft.errors import CommandError
from vitgraft.terminal import Progress, printable, write

__all__ = ["COMMANDS"]


# how data.root is read: options of fit that init takes, each for a task or two
READING = {
    "format": "coco, voc, yolo, folder, table ..., where several lie there",
    "train": "the split to train on, a json or table, or [IMAGES,MASKS]",
    "val": "the split to validate on",
    "test": "the split for vitgraft test",
    "val_fraction": "fraction held out for validation (default: 0.1 or 0.2, where there is no validation split)",
    "file_column": "tables: the column of the files",
    "label_column": "tables: the column of the labels",
    "class_names": "of labels that are numbers, as [cat,dog]",
    "train_images": "COCO: the folder of the training images",
    "val_images": "COCO: the folder of the validation images",
    "colors": "masks: table of colors and their classes, red,green,blue,name",
    "label_values": "masks: values and their classes, as '{0: background, 255: object}'",
    "reduce_zero_label": "masks: whether 0 is ignored and 1 to C are the classes",
    "num_classes": "masks: how many classes",
    "image_suffix": "masks: of image names, before the ending",
    "label_suffix": "masks: of mask names, before the ending",
}


def _add_init(commands) -> None:
    parser = add_command(
        commands,
        "init",
        _init,
        "look at a dataset and write a recipe for it",
        "Finds out what a dataset is for (classes of images, boxes, boxes with masks, classes of pixels), opens it as\n"
        "training does, and writes a recipe with a reason beside each value: classes, image sizes, windows and levels\n"
        "of the grafts, batch, epochs, for this machine. `vitgraft fit --config recipe.yaml` then trains. Models are\n"
        "small, for an hour or less on a CPU, unless there are many images and a GPU. DIR is what data.root takes: a\n"
        "folder or tar of class folders, tables, COCO, Pascal VOC, YOLO, images and masks (docs/formats.md).",
        [
            "vitgraft init DIR",
            "vitgraft init photos.tar --output photos.yaml",
            "vitgraft init DIR --task detection                       boxes, though there are masks",
            "vitgraft init DIR --data.colors colors.csv               masks in colors",
            "vitgraft init DIR --device cuda --memory 24              for another machine, with a GPU of 24 GB",
        ],
    )
    add = parser.add_argument
    add("root", metavar="DIR", help="the dataset: folder, tar or shards")
    add("--output", type=Path, default=Path("recipe.yaml"), metavar="FILE", help="default: recipe.yaml")
    add("--force", action="store_true", help="overwrite FILE")
    tasks = ("classification", "detection", "instances", "segmentation")
    add("--task", choices=tasks, help="instances: boxes and masks; segmentation: of pixels (default: what lies there)")
    add("--device", choices=("cpu", "cuda"), help="what will train (default: cuda where there is one)")
    add("--memory", type=float, metavar="GB", help="memory of it (default: what is free)")
    reading = parser.add_argument_group("how the dataset is read, as in fit")
    for name, text in READING.items():
        reading.add_argument(f"--data.{name}", metavar="VALUE", help=text)


def _add_check_data(commands) -> None:
    parser = add_command(
        commands,
        "check-data",
        _check_data,
        "find errors in image datasets",
        "Decodes every image of one or more datasets and lists unreadable files, empty classes, classes that differ\n"
        "between them, images that are in two of them (errors: exit code 1), and unusual kinds of images, class\n"
        "imbalance and images that are twice in a dataset (warnings). A PATH is whatever data.root takes: a folder or\n"
        "tar of class folders, shards, or a folder with splits such as train and val, which are compared.\n"
        "In ADE20K's layout (images/SPLIT, annotations/SPLIT) also the label maps: missing ones, other sizes,\n"
        "colors instead of indices, values that are no class. In COCO's layout (annotations/instances_SPLIT.json),\n"
        "Pascal VOC's and YOLO's also the objects: missing keys, ids twice, unknown categories, impossible boxes and\n"
        "masks. Of a table of files and labels: rows without a file, images in several rows.",
        [
            "vitgraft check-data DIR",
            "vitgraft check-data DIR/train DIR/val --output check.json",
            "vitgraft check-data ADEChallengeData2016 --reduce-zero-label true",
            "vitgraft check-data 'https://host/train-{0000..0127}.tar' --workers 8",
        ],
    )
    add = parser.add_argument
    add("paths", nargs="+", metavar="PATH")
    add(
        "--data-format",
        metavar="NAME",
        help="folder, tar, table, shards, imagenet-val, huggingface, semantic, coco, voc or yolo",
    )
    add("--file-column", metavar="NAME", help="tables: the column of the files")
    add("--label-column", metavar="NAME", help="tables: the column of the labels")
    add("--workers", type=positive, default=1, metavar="N", help="processes that decode (default: 1)")
    add(
        "--imbalance",
        type=float,
        default=10.0,
        metavar="X",
        help="warn where the largest class has more than X times the images of the smallest (default: 10)",
    )
    add("--strict", action="store_true", help="exit code 1 for warnings too")
    add(
        "--max-left-out",
        type=float,
        default=0.5,
        metavar="X",
        help="COCO: an error where more than this fraction of the annotations can't be learned (default: 0.5)",
    )
    add(
        "--min-side",
        type=positive,
        default=32,
        metavar="N",
        help="COCO: images with a smaller side are not trained on, pixels (default: 32)",
    )
    labels = parser.add_argument_group("label maps of semantic segmentation (ADE20K's layout)")
    labels.add_argument(
        "--reduce-zero-label",
        choices=("true", "false"),
        help="whether 0 is ignored and 1 to C are the classes (default: what fits)",
    )
    labels.add_argument("--ignore-index", type=int, default=255, metavar="N", help="value ignored (default: 255)")
    labels.add_argument("--num-classes", type=positive, metavar="C", help="default: those named in classes.txt")
    labels.add_argument("--image-suffix", default="", metavar="TEXT", help="of image names, before the ending")
    labels.add_argument("--label-suffix", default="", metavar="TEXT", help="of label names, before the ending")
    labels.add_argument("--colors", metavar="FILE", help="table of colors and their classes: red,green,blue,name")
    labels.add_argument(
        "--label-values", type=_label_values, metavar="VALUES", help="values and their classes: 0=background,255=object"
    )
    add_format(parser)


def _label_values(text: str) -> dict[int, str]:
    try:
        pairs = [part.split("=", 1) for part in text.split(",")]
        return {int(value): name.strip() for value, name in pairs}
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r}: values and their classes, such as 0=background,255=object"
        ) from error


def _add_convert(commands) -> None:
    parser = add_command(
        commands,
        "convert",
        _convert,
        "write a dataset of boxes in COCO's layout",
        "Reads boxes and polygons in Pascal VOC's, YOLO's or COCO's layout, as training does, and writes\n"
        "OUT/annotations/instances_SPLIT.json and OUT/SPLIT/. Training reads all of them as they are: this is for\n"
        "what should be kept, or taken to other tools. Sizes that XML lacks are those of the images.",
        [
            "vitgraft convert VOCdevkit/VOC2007 OUT --to coco",
            "vitgraft convert labeled.tar OUT --to coco --val-fraction 0.1 --link",
        ],
    )
    add = parser.add_argument
    add("source", metavar="IN", help="folder or tar")
    add("out", type=Path, metavar="OUT", help="a new folder")
    add("--to", choices=("coco",), required=True, help="the layout to write")
    add("--data-format", choices=("coco", "voc", "yolo"), help="of IN (default: what lies there)")
    add("--val-fraction", type=float, metavar="X", help="of a dataset without splits, hold this fraction out as val")
    add("--seed", type=int, default=0, metavar="N", help="of that choice, as of a run (default: 0)")
    add("--link", action="store_true", help="link the image files instead of copying them, where that is possible")


def _add_predict(commands) -> None:
    parser = add_command(
        commands,
        "predict",
        _predict,
        "predict images with a trained model",
        "Takes images (files, folders with all images below them, or a tar) and does what the checkpoint was\n"
        "trained for. Classifiers: the most probable classes, as CSV, JSON and a page of thumbnails (--html).\n"
        "Detectors: boxes, scores and masks (--output, .csv or .json), also drawn on the images (--visualize).\n"
        "Segmenters: areas of the classes (--output), overlays with a legend and index PNGs (--visualize).\n"
        "Images that can't be read are named, and do not stop the others.",
        [
            "vitgraft predict --ckpt runs/NAME photos/",
            "vitgraft predict --ckpt runs/NAME/best.ckpt photos/ a.jpg --top 3 --output out.csv --html page.html",
            "vitgraft predict --ckpt exported/ photos.tar --output predictions.json",
            "vitgraft predict --ckpt runs/SEGMENTER photos/ --visualize out --output areas.csv",
            "vitgraft predict --ckpt runs/DETECTOR photos/ --visualize out --output objects.json",
            "vitgraft predict --ckpt swin_tiny_patch4_window7_224.ms_in1k a.jpg",
            "vitgraft predict --ckpt deit_tiny_patch16_224:checkpoint_path=deit.safetensors a.jpg",
        ],
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="images, folders, or one tar")
    parser.add_argument(
        "--ckpt",
        required=True,
        metavar="MODEL",
        help="folder of a run (its best.ckpt), checkpoint, exported folder, or a model's name with its options",
    )
    parser.add_argument("--top", type=positive, metavar="K", help="classes shown for each image (default: 5)")
    parser.add_argument(
        "--output", type=Path, action="append", metavar="FILE", help="write .csv or .json there; may be given twice"
    )
    parser.add_argument(
        "--visualize",
        type=Path,
        metavar="DIR",
        help="detectors, segmenters: draw predictions there; index PNGs of labels",
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page of thumbnails (classifiers)")
    parser.add_argument(
        "--html-images", type=positive, default=2000, metavar="N", help="most thumbnails in it (default: 2000)"
    )
    parser.add_argument(
        "--weights", choices=("raw", "ema"), help="of a run that has both (default: ema, the averaged ones)"
    )
    add_trust(parser)
    parser.add_argument("--batch-size", type=positive, default=32, metavar="N", help="default: 32")
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda, cuda:1 (default: cuda where there is one)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read images (default: 0)")
    parser.add_argument(
        "--score",
        type=float,
        metavar="X",
        help="detectors: least score drawn and counted; --output has all detections (default: 0.5)",
    )
    dense = parser.add_argument_group("segmenters (default of the first four: as in the run's evaluation)")
    dense.add_argument("--scales", type=_scales, metavar="X,Y", help="average over these sizes, such as 0.75,1,1.25")
    dense.add_argument("--flip", action=argparse.BooleanOptionalAction, help="average with the mirrored image")
    dense.add_argument(
        "--window", type=positive, metavar="N", help="slide a window of N pixels over every image, for large ones"
    )
    dense.add_argument("--stride", type=positive, metavar="N", help="from one window to the next (two thirds of it)")
    dense.add_argument(
        "--full-size", action="store_true", default=None, help="do not resize images as the evaluation does"
    )


def _scales(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: factors such as 0.75,1,1.25") from error


def _add_demo(commands) -> None:
    parser = add_command(
        commands,
        "demo",
        _demo,
        "train three small models on real handwritten digits",
        "Trains full attention, windows only, and windows with grafts on scenes of handwritten digits, in\n"
        "minutes on a CPU, and writes a report that opens in a browser.",
        ["vitgraft demo", "vitgraft demo --steps 20 --out runs/demo_short"],
    )
    add = parser.add_argument
    add("--out", default="runs/demo", help="folder of report.html and results.json (default: %(default)s)")
    add("--seed", type=int, default=0, help="scenes, initial weights, batch order (default: 0)")
    add("--steps", type=positive, default=700, help="optimizer steps of each model (default: 700)")
    add("--no-report", action="store_true", help="train and print the table only")


def _init(args: argparse.Namespace) -> int:
    check_output(args.output, (".yaml", ".yml"))
    if args.output.exists() and not args.force:
        raise CommandError(f"{args.output} is there already: give another --output, or --force to overwrite it")
    if args.root != args.root.encode(errors="replace").decode():
        raise CommandError(f"{args.root!r}: not in UTF-8, which a recipe can't hold; rename it, or give a link to it")
    if args.memory is not None and args.memory <= 0:
        raise CommandError(f"--memory {args.memory:g}: must be above 0")
    import torch

    if args.device == "cuda" and args.memory is None and not torch.cuda.is_available():
        raise CommandError("--device cuda: there is no GPU here; give its memory too, such as --memory 24")
    from vitgraft.tools.inspect_data import inspect
    from vitgraft.tools.new_recipe import recipe_text, this_machine
    from vitgraft.training.recipe import parse_arguments

    given = [
        f"--data.{name}={vars(args)[f'data.{name}']}" for name in READING if vars(args)[f"data.{name}"] is not None
    ]
    options = parse_arguments(given)[1].get("data")
    data = inspect(args.root, args.task, options)
    machine = this_machine(args.device, None if args.memory is None else args.memory * 1e9)
    more = {"task": args.task, "device": args.device, "memory": args.memory and f"{args.memory:g}"}
    words = ["vitgraft", "init", args.root, *given]
    words += [word for name, value in more.items() if value for word in (f"--{name}", value)]
    write(args.output, recipe_text(data, machine, args.output, shlex.join(words)))
    print(printable(f"{args.output}: {data.task}, {data.layout}: {data}"))
    commands = (f"fit --config {args.output}", f"validate --ckpt_path runs/{args.output.stem}")
    print("\n  vitgraft ".join(["next:", *map(printable, commands)]))
    return 0


def _check_data(args: argparse.Namespace) -> int:
    check_report(args)
    if args.imbalance < 1:
        raise CommandError(f"--imbalance {args.imbalance:g}: must be at least 1")
    if not 0 <= args.max_left_out <= 1:
        raise CommandError(f"--max-left-out {args.max_left_out:g}: must be from 0 to 1")
    from vitgraft.data.check import check, open_checks
    from vitgraft.data.findings import Options, print_terminal, to_markdown
    from vitgraft.data.layout import OBJECT_FORMATS
    from vitgraft.data.readers.open import FORMATS

    known = (*FORMATS, "semantic", *OBJECT_FORMATS)
    if args.data_format not in (None, *known):
        raise CommandError(f"--data-format {args.data_format}: must be one of {', '.join(known)}")

    options = Options(
        args.data_format,
        args.imbalance,
        None if args.reduce_zero_label is None else args.reduce_zero_label == "true",
        args.ignore_index,
        args.num_classes,
        args.image_suffix,
        args.label_suffix,
        args.max_left_out,
        args.min_side,
        args.file_column,
        args.label_column,
        args.colors,
        args.label_values,
    )
    checks, findings = open_checks(args.paths, options)
    try:
        with Progress(sum(map(len, checks))) as step:
            report = check(checks, args.workers, step)
    except ValueError as error:  # numbers of label values that contradict each other
        raise CommandError(f"--{str(error).replace('_', '-')}") from error
    report.findings[:0] = findings
    print_as(args, lambda out: print_terminal(report, out), lambda: to_markdown(report), lambda: report.to_json())
    return 1 if not report.ok or (args.strict and report.findings) else 0


def _convert(args: argparse.Namespace) -> int:
    if args.val_fraction is not None and not 0 < args.val_fraction < 1:
        raise CommandError(f"--val-fraction {args.val_fraction:g}: must be above 0 and below 1")
    check_new_folder(args.out)
    from vitgraft.tools.convert import open_splits, write_coco

    splits = open_splits(args.source, args.data_format, args.val_fraction, args.seed)
    with Progress(sum(len(one.images) for one in splits)) as step:
        write_coco(args.out, splits, args.link, step)
    for one in splits:
        for finding in one.json.findings:
            print(printable(finding.line()))
        objects = f"{sum(map(len, one.json.objects))} objects of {len(one.json.by_id)} classes"
        print(printable(f"{args.out}/annotations/instances_{one.split}.json: {len(one.images)} images, {objects}"))
    return 0


def _predict(args: argparse.Namespace) -> int:
    args.output = args.output or []
    for path in args.output:
        check_output(path, (".csv", ".json"))
    check_output(args.html)
    if args.visualize and (args.visualize.is_file() or not args.visualize.parent.is_dir()):
        raise CommandError(f"--visualize {args.visualize}: not a folder that can be made")
    if args.visualize:
        check_writable(args.visualize if args.visualize.is_dir() else args.visualize.parent)
    from vitgraft.predict.run import run

    return run(args)


def _add_visualize(commands) -> None:
    parser = add_command(
        commands,
        "visualize",
        _visualize,
        "draw what a model looks at",
        "One picture for each image: Grad-CAM of a class (classifiers; needs captum), attention rollout (ViTs with\n"
        "attention over the whole image), and the graft's own scales: the norm of each level's tokens and of what the\n"
        "graft adds to its block, of the first, a middle and the last graft. Without --method, all that the model has.",
        [
            "vitgraft visualize --ckpt runs/NAME photos/ --output pictures",
            "vitgraft visualize --ckpt runs/NAME a.jpg --output pictures --method grad-cam --class cat",
            "vitgraft visualize --ckpt deit_tiny_patch16_224 a.jpg --output pictures --method rollout",
            "vitgraft visualize --ckpt runs/DETECTOR photos/ --output pictures --method scales",
        ],
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="images, folders, or one tar")
    parser.add_argument(
        "--ckpt",
        required=True,
        metavar="MODEL",
        help="folder of a run (its best.ckpt), checkpoint, exported folder, or a model's name with its options",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the pictures")
    parser.add_argument(
        "--method", nargs="+", default=[], choices=("grad-cam", "rollout", "scales"), help="default: what the model has"
    )
    parser.add_argument(
        "--class",
        dest="class_name",
        metavar="NAME",
        help="grad-cam: a class (default: the predicted)",
    )
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda, cuda:1 (default: cuda where there is one)")
    add_trust(parser)


def _visualize(args: argparse.Namespace) -> int:
    if args.output.is_file() or not args.output.parent.is_dir():
        raise CommandError(f"--output {args.output}: not a folder that can be made")
    check_writable(args.output if args.output.is_dir() else args.output.parent)
    from vitgraft.tools.visualize import visualize

    return visualize(args.ckpt, args.paths, args.output, args.method, args.class_name, args.device, args.trust)


def _demo(args: argparse.Namespace) -> int:
    from vitgraft.tools.demo import DemoOptions, run_demo

    steps = f" --steps {args.steps}" if args.steps != DemoOptions.steps else ""
    command = f"vitgraft demo --seed {args.seed}{steps}"
    run_demo(args.out, DemoOptions(seed=args.seed, steps=args.steps), not args.no_report, command)
    return 0


COMMANDS = (_add_init, _add_check_data, _add_convert, _add_predict, _add_visualize, _add_demo)
"""What adds each command to the sub-commands of a parser, in the order of the help."""
