"""The command `vitgraft`. Each sub-command's `--help` shows what it does and examples that work as they stand.

PyTorch and everything above it is imported when a sub-command runs, not to print a help text.
"""

import argparse
import importlib.util
import json
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from vitgraft._version import __version__
from vitgraft.errors import CheckpointError, DataError, GraftError, MissingExtraError, ModelSpecError, RecipeError
from vitgraft.report.terminal import Progress, console, show, write

FORMATS = ("terminal", "markdown", "json")

# Commands that read a recipe; Lightning's command line takes all that follows them
RUNS = {
    "fit": "train a model from a recipe",
    "validate": "evaluate a checkpoint on the validation set",
    "test": "evaluate a checkpoint on the test set",
}

MODEL_HELP = """\
A MODEL is a name that timm knows, grafted or not, with options behind colons:
  graft_swin_tiny_patch4_window7_224                 the paper's model
  graft_deit_tiny_patch16_224:graft.levels=1         a graft option (a field of GraftConfig)
  graft_deit_tiny_patch16_224:graft.blocks=[4,8]     values are JSON, other text is text
  deit_tiny_patch16_224:drop_path_rate=0.1           any option of timm.create_model
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 0 done, 1 a check failed, 2 a wrong request.

    Args:
        argv: the words after the command's name; by default those of this process.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = _parser()
    if argv and argv[0] in RUNS:
        return _training(argv)
    args = parser.parse_args(argv)
    args.words = argv
    if not hasattr(args, "run"):
        parser.print_help()
        return 2
    try:
        return args.run(args) or 0
    except (
        ModelSpecError,
        GraftError,
        CheckpointError,
        DataError,
        RecipeError,
        MissingExtraError,
        CommandError,
    ) as error:
        print(f"vitgraft {args.command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


class CommandError(ValueError):
    """A request that the command line can't fulfil; the message says what would work."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vitgraft",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=f"Grafting Vision Transformers: what grafted models cost, how fast they are, and where they go.\n\n"
        f"{MODEL_HELP}",
        epilog="vitgraft COMMAND --help says more and shows examples.",
    )
    parser.add_argument("-V", "--version", action="version", version=f"vitgraft {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    _add_info(commands)
    _add_tables(commands)
    _add_bench(commands)
    _add_export(commands)
    _add_families(commands)
    _add_check_data(commands)
    _add_figures(commands)
    _add_results(commands)
    if _has("vitgraft.demo"):
        _add_demo(commands)
    _add_predict(commands)
    _add_plan(commands)
    for name, summary in RUNS.items():
        commands.add_parser(name, help=summary, add_help=False)
    return parser


def _training(argv: list[str]) -> int:
    """fit, validate, test, predict: their help needs no Lightning."""
    from vitgraft.training.help import asked, show_help

    if asked(argv):
        return show_help(argv)
    try:
        from vitgraft.training.cli import main
    except MissingExtraError as error:
        print(f"vitgraft {argv[0]}: error: {error}", file=sys.stderr)
        return 2
    return main(argv)


def _add(commands, name: str, run: Callable, summary: str, text: str, examples: Iterable[str]):
    shown = "\n".join(f"  {example}" for example in examples)
    parser = commands.add_parser(
        name,
        help=summary,
        description=text,
        epilog=f"examples:\n{shown}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _add_info(commands) -> None:
    parser = _add(
        commands,
        "info",
        _info,
        "where a model carries grafts and what they cost",
        f"Prints which blocks carry a graft, the map sizes of its levels, and the parameters and\n"
        f"multiply-accumulates (MAC) of backbone and grafts.\n\n{MODEL_HELP}",
        [
            "vitgraft info graft_swin_tiny_patch4_window7_224",
            "vitgraft info graft_deit_tiny_patch16_224 --img-size 384",
        ],
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--img-size", type=_positive, metavar="N", help="side of the image (default: the model's own)")


def _add_tables(commands) -> None:
    parser = _add(
        commands,
        "tables",
        _tables,
        "the paper's tables beside our counts",
        "Prints the paper's tables with columns paper, here and difference. Parameters and MAC are counted\n"
        "now; accuracies come from the files in the results folder, and are 'not measured' without one.",
        ["vitgraft tables", "vitgraft tables --table 2 5", "vitgraft tables --output tables.md"],
    )
    parser.add_argument("--table", nargs="+", metavar="N", help="1, 2, 5, 6, 7 or A (default: all)")
    _add_format(parser)
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help="default: ./results")


def _add_bench(commands) -> None:
    parser = _add(
        commands,
        "bench",
        _bench,
        "how fast models are beside each other",
        "Measures inference and training steps of models in one process, taking turns round by round, so that\n"
        "ratios hold on a machine whose speed drifts. Prints images/s (median, quartiles), the ratio to the\n"
        "first model, peak memory, MAC, and the achieved FLOP/s as a share of the matrix product's peak,\n"
        f"measured in the same run.\n\n{MODEL_HELP}",
        [
            "vitgraft bench deit_tiny_patch16_224 graft_deit_tiny_patch16_224",
            "vitgraft bench swin_tiny_patch4_window7_224 graft_swin_tiny_patch4_window7_224 --mode infer train \\",
            "    --dtype float32 bfloat16 --output results/bench.json",
        ],
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="the first is what the others are compared with")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default: cpu)")
    parser.add_argument(
        "--dtype",
        nargs="+",
        choices=("float32", "bfloat16"),
        default=["float32"],
        help="bfloat16 is autocast over float32 weights (default: float32)",
    )
    parser.add_argument(
        "--mode",
        nargs="+",
        choices=("infer", "train"),
        default=["infer"],
        help="train: forward, loss, backward and optimizer step (default: infer)",
    )
    parser.add_argument("--batch-size", type=_positive, default=16, metavar="N", help="default: 16")
    parser.add_argument(
        "--img-size", type=_positive, metavar="N", help="side of the images (default: each model's own)"
    )
    parser.add_argument("--threads", type=_positive, metavar="N", help="CPU threads (default: PyTorch's choice)")
    parser.add_argument("--compile", action="store_true", help="run the models through torch.compile")
    parser.add_argument("--rounds", type=_positive, default=10, metavar="N", help="default: 10")
    parser.add_argument(
        "--round-seconds",
        type=float,
        default=1.0,
        metavar="S",
        help="about how long a model runs in each round (default: 1)",
    )
    parser.add_argument(
        "--fused-attn",
        choices=("fastest", "on", "off"),
        default="fastest",
        help="timm's switch, experimental paths (Swin's) included where on; fastest tries both for each "
        "model and says which it took (default: fastest)",
    )
    parser.add_argument("--optimizer", choices=("adamw", "sgd"), default="adamw", help="default: adamw")
    parser.add_argument("--no-memory", action="store_true", help="skip the measurement of the peak memory")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write every number there too")


def _add_export(commands) -> None:
    parser = _add(
        commands,
        "export",
        _export,
        "write a finished run or a model for timm's hub, or as ONNX",
        "To a folder: safetensors and config.json in timm's hub format, with class names, input size, mean, std\n"
        "and crop; timm.create_model('local-dir:FOLDER', pretrained=True) loads it where vitgraft was imported.\n"
        "To a file that ends in .onnx: ONNX with a dynamic batch, compared with PyTorch in onnxruntime: every\n"
        f"output within 1e-4, or exit code 1.\n\nA SOURCE is a run's folder, one of its checkpoints, or a MODEL.\n"
        f"{MODEL_HELP}",
        [
            "vitgraft export runs/vit_micro_graft my_model",
            "vitgraft export runs/vit_micro_graft/last.ckpt my_model.onnx --weights raw",
            "vitgraft export graft_deit_tiny_patch16_224 graft_deit_tiny.onnx",
            "vitgraft export graft_swin_tiny_patch4_window7_224 out.onnx \\",
            "    --checkpoint best.safetensors --num-classes 10",
        ],
    )
    parser.add_argument("model", metavar="SOURCE")
    parser.add_argument("output", type=Path, metavar="FOLDER|OUT.onnx")
    parser.add_argument(
        "--weights", choices=("raw", "ema"), help="of a run (default: the averaged ones where there are any)"
    )
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="of a MODEL: weights (default: random ones)")
    parser.add_argument("--num-classes", type=_positive, metavar="N", help="classes of the checkpoint (default: 1000)")
    parser.add_argument("--img-size", type=_positive, metavar="N", help="side of the image (default: the model's own)")
    parser.add_argument("--opset", type=_positive, metavar="N", help="ONNX operator set (default: PyTorch's)")


def _add_predict(commands) -> None:
    parser = _add(
        commands,
        "predict",
        _predict,
        "what a trained model sees in images",
        "Names the most probable classes of images: files, folders with all images below them, or a tar.\n"
        "Shows them, or writes CSV, JSON, and a page of thumbnails to look through in a browser. Images\n"
        "that can't be read are named, and do not stop the others.",
        [
            "vitgraft predict --ckpt runs/NAME photos/",
            "vitgraft predict --ckpt runs/NAME/best.ckpt photos/ a.jpg --top 3 --output out.csv --html sheet.html",
            "vitgraft predict --ckpt exported/ photos.tar --output predictions.json",
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
    parser.add_argument("--top", type=_positive, default=5, metavar="K", help="classes for each image (default: 5)")
    parser.add_argument(
        "--output", type=Path, action="append", metavar="FILE", help="write .csv or .json there; may be given twice"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page of thumbnails")
    parser.add_argument(
        "--html-images", type=_positive, default=2000, metavar="N", help="most thumbnails in it (default: 2000)"
    )
    parser.add_argument(
        "--weights", choices=("raw", "ema"), help="of a run that has both (default: ema, the averaged ones)"
    )
    parser.add_argument("--batch-size", type=_positive, default=32, metavar="N", help="default: 32")
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda, cuda:1 (default: cuda where there is one)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read images (default: 0)")


def _add_plan(commands) -> None:
    parser = _add(
        commands,
        "plan",
        _plan,
        "what a recipe will cost: steps, loader, GPU hours",
        "Works out from the counted MAC of a recipe's model, the number of images and assumptions that it names\n"
        "how many steps a run takes, what the loader must deliver, and the hours on 1, 8 and 64 GPUs; with\n"
        "the batch and the learning rate of each. Runs nothing.",
        [
            "vitgraft plan --config recipes/imagenet1k/graft_swin_tiny.yaml",
            "vitgraft plan --config recipes/imagenet1k/graft_swin_tiny.yaml --gpu h100 --utilisation 0.2 --gpus 1 4 16",
            "vitgraft plan --config recipes/finetune/swin_tiny.yaml --images 10000 --tflops 30",
            "vitgraft plan --config recipes/imagenet1k --output docs/cost.md",
        ],
    )
    parser.add_argument(
        "--config", type=Path, nargs="+", required=True, metavar="RECIPE", help="recipes, or folders of them"
    )
    parser.add_argument("--gpus", type=_positive, nargs="+", default=[1, 8, 64], metavar="N", help="default: 1 8 64")
    parser.add_argument("--gpu", help="a100, h100, h200, l4, rtx4090 or v100 (default: a100)")
    parser.add_argument("--utilisation", type=float, metavar="X", help="share of its peak that it achieves, to 1")
    parser.add_argument("--tflops", type=float, metavar="X", help="achieved by each GPU, instead of those two")
    parser.add_argument("--doubling", type=float, metavar="X", help="speed kept when the GPUs double (default: 0.97)")
    parser.add_argument("--images", type=_positive, metavar="N", help="to train on (default: ImageNet-1K's)")
    parser.add_argument("--val-images", type=int, metavar="N", help="of each validation (default: ImageNet-1K's)")
    parser.add_argument("--images-per-core", type=float, metavar="X", help="images/s of a loader's core (default: 100)")
    parser.add_argument("--kilobytes", type=float, metavar="X", help="of an image file (default: 110)")
    parser.add_argument(
        "--recipe-gpus", type=_positive, metavar="N", help="GPUs that the recipe's batch size is for (default: 8)"
    )
    parser.add_argument(
        "--scale-batch", action="store_true", help="keep the batch of each GPU; the learning rate follows by the rule"
    )
    _add_format(parser)


def _add_families(commands) -> None:
    parser = _add(
        commands,
        "families",
        _families,
        "which of timm's transformer families can be grafted",
        "Grafts a small model of each transformer family of the installed timm, and checks that identity\n"
        "grafts leave its output equal bit for bit; prints what became of each, or why it cannot be grafted.\n"
        "Takes a few minutes for all of them.",
        ["vitgraft families", "vitgraft families beit eva", "vitgraft families --output docs/families.md"],
    )
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="names of timm's files (default: all)")
    _add_format(parser)


def _add_figures(commands) -> None:
    parser = _add(
        commands,
        "figures",
        _figures,
        "the paper's figures 1 (b) and 2 (a), drawn and measured",
        "tradeoff: accuracy against MAC as printed, arrows where grafts were added, and images/s measured on this\n"
        "machine (minutes) or read from a file of vitgraft bench. reach: the effective receptive field of a centre\n"
        "token in Swin-T and DeiT-T with and without grafts, with random weights on real photos. PNG and SVG each.",
        [
            "vitgraft figures",
            "vitgraft figures tradeoff --bench results/bench_tables.json --out docs/pictures",
            "vitgraft figures reach --photos DIR --seeds 0 1 2",
        ],
    )
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help="tradeoff, reach (default: both)")
    parser.add_argument("--out", type=Path, default=Path("figures"), metavar="DIR", help="default: ./figures")
    speed = parser.add_mutually_exclusive_group()
    speed.add_argument("--bench", type=Path, metavar="FILE.json", help="speeds that vitgraft bench --output wrote")
    speed.add_argument("--no-speed", action="store_true", help="leave the speed panel out")
    parser.add_argument("--photos", type=Path, metavar="DIR", help="photos for reach (default: scikit-learn's two)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N", help="start values (default: 0)")


def _add_check_data(commands) -> None:
    parser = _add(
        commands,
        "check-data",
        _check_data,
        "what is wrong with sets of images",
        "Decodes every image of one or more sets and lists unreadable files, empty classes, classes that differ\n"
        "between the sets, images that are in two of them (errors: exit code 1), and odd kinds of images, class\n"
        "imbalance and images that are twice in a set (warnings). A PATH is whatever data.root takes: a folder or\n"
        "tar of class folders, shards, or a folder with splits such as train and val, which are compared.",
        [
            "vitgraft check-data DIR",
            "vitgraft check-data DIR/train DIR/val --output check.json",
            "vitgraft check-data 'https://host/train-{0000..0127}.tar' --workers 8",
        ],
    )
    parser.add_argument("paths", nargs="+", metavar="PATH")
    parser.add_argument("--data-format", metavar="NAME", help="folder, tar, shards, imagenet-val or huggingface")
    parser.add_argument("--workers", type=_positive, default=1, metavar="N", help="processes that decode (default: 1)")
    parser.add_argument(
        "--imbalance",
        type=float,
        default=10.0,
        metavar="X",
        help="warn where the largest class has more than X times the images of the smallest (default: 10)",
    )
    parser.add_argument("--strict", action="store_true", help="exit code 1 for warnings too")
    _add_format(parser)


def _add_results(commands) -> None:
    parser = _add(
        commands,
        "results",
        _results,
        "finished runs side by side, seeds as mean and spread",
        "Reads the folders of runs that vitgraft fit made and prints their last evaluations; runs that differ in\n"
        "their seed alone become one row. --output writes a JSON file for each run, for the results folder.",
        ["vitgraft results runs/*", "vitgraft results runs/graft_* --dataset cifar10 --output results"],
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs")
    parser.add_argument("--dataset", metavar="NAME", help="name of the data (default: its folder's)")
    parser.add_argument("--format", choices=("terminal", "markdown"), default="terminal", help="default: terminal")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write RUN.json there for each run")


def _add_format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=FORMATS, help="default: by the ending of FILE, else terminal")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write to FILE (.md, .json, .txt), not the terminal"
    )


def _add_demo(commands) -> None:
    parser = _add(
        commands,
        "demo",
        _demo,
        "train three small models on real handwritten digits",
        "Trains full attention, windows only, and windows with grafts on scenes of handwritten digits, in\n"
        "minutes on a CPU, and writes a report that opens in a browser.",
        ["vitgraft demo"],
    )
    from vitgraft.demo import add_demo_arguments

    add_demo_arguments(parser)


def _info(args: argparse.Namespace) -> int:
    out = console()
    from vitgraft.report.info import describe_model, print_terminal
    from vitgraft.report.spec import ModelSpec, create_at, input_size_of

    spec = ModelSpec.parse(args.model)
    model = create_at(spec, args.img_size)
    input_size = input_size_of(model, args.img_size)
    title = f"{spec} at {input_size[1]} x {input_size[2]}"
    print_terminal(title, describe_model(model, input_size), out)
    return 0


def _tables(args: argparse.Namespace) -> int:
    _check_output(args.output)
    from vitgraft.report import tables

    wanted = [number.upper() for number in args.table or tables.TABLES]
    unknown = [number for number in wanted if number not in tables.TABLES]
    if unknown:
        raise CommandError(f"--table {' '.join(unknown)}: there are {', '.join(tables.TABLES)}")
    try:
        top1 = tables.read_top1(args.results)
    except ValueError as error:
        raise CommandError(str(error)) from error
    with Progress(sum(len(tables.TABLES[number].rows) for number in wanted)) as step:

        def rows(items):
            for row in items:
                step(row.label)
                yield row

        counted = {number: tables.count_table(tables.TABLES[number], top1, rows) for number in wanted}
    _print(
        args,
        lambda out: tables.print_terminal(counted, out),
        lambda: tables.to_markdown(counted),
        lambda: tables.to_json(counted),
    )
    return 0


def _bench(args: argparse.Namespace) -> int:
    out = console()
    _check_output(args.output)
    import torch

    from vitgraft.report import bench

    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        config = bench.BenchConfig(
            args.device,
            tuple(args.dtype),
            tuple(args.mode),
            args.batch_size,
            args.img_size,
            args.rounds,
            args.round_seconds,
            args.compile,
            args.fused_attn,
            args.optimizer,
            not args.no_memory,
        )
    except (ValueError, RuntimeError) as error:
        raise CommandError(str(error)) from error
    with Progress(bench.total_reports(len(args.models), config)) as step:
        result = bench.bench(args.models, config, step)
    bench.print_terminal(result, out)
    if args.output:
        write(args.output, json.dumps(result, indent=1) + "\n")
    return 0


def _export(args: argparse.Namespace) -> int:
    if args.output.suffix == ".onnx" or not args.output.is_dir():
        _check_output(args.output)
    from vitgraft import hub

    run = hub.is_run(args.model)
    if run and (args.checkpoint or args.num_classes or args.img_size):
        raise CommandError("--checkpoint, --num-classes and --img-size are for a MODEL; a run knows its own")
    if not run and args.weights:
        raise CommandError(f"--weights is for a run or its checkpoint, and {args.model} is neither")
    if args.output.suffix == ".onnx":
        return _export_onnx(args, run)
    if args.opset:
        raise CommandError("--opset is for ONNX: name an output that ends in .onnx")
    if run:
        done = hub.export_run(args.model, args.output, args.weights)
    else:
        from vitgraft.data.transforms import model_preprocessing
        from vitgraft.report.spec import ModelSpec

        spec = ModelSpec.parse(args.model)
        model = _model_to_export(args)
        options = {**spec.options, **({"img_size": args.img_size} if args.img_size else {})}
        options = {name: value for name, value in options.items() if name not in ("num_classes", "checkpoint_path")}
        name, arguments = hub.architecture_of(spec.name, options)
        said = f"of {args.checkpoint}" if args.checkpoint else "random"
        done = hub.export_hub(model, args.output, name, arguments, model_preprocessing(model), (), said)
    print(f"{done.path}: {done.architecture}, {done.num_classes} classes, weights: {done.weights}; loads as\n"
          f'  import timm, vitgraft\n  timm.create_model("local-dir:{done.path}", pretrained=True)')  # fmt: skip
    return 0


def _model_to_export(args: argparse.Namespace):
    from vitgraft.report.spec import ModelSpec, create_at

    options = {"num_classes": args.num_classes} if args.num_classes else {}
    if args.checkpoint:
        if not args.checkpoint.is_file():
            raise CommandError(f"--checkpoint {args.checkpoint}: no such file")
        options["checkpoint_path"] = str(args.checkpoint)
    return create_at(ModelSpec.parse(args.model), args.img_size, **options)


def _export_onnx(args: argparse.Namespace, run: bool) -> int:
    from vitgraft.export import TOLERANCE, export_onnx
    from vitgraft.report.spec import input_size_of

    if run:
        from vitgraft.evaluation.classifier import open_classifier

        found = open_classifier(args.model, args.weights)
        model, input_size = found.model, (3, *found.preprocessing.input_size)
        weights = f"{found.weights} weights of {args.model}"
    else:
        model = _model_to_export(args)
        input_size = input_size_of(model, args.img_size)
        weights = f"weights of {args.checkpoint}" if args.checkpoint else "random weights (no --checkpoint)"
    done = export_onnx(model, args.output, input_size, args.opset)
    shape = f"(batch, {', '.join(map(str, input_size))})"
    print(f"{done.path}: {done.size_bytes / 1e6:.1f} MB, opset {done.opset}, input images {shape}, {weights}")
    for batch, difference in done.differences.items():
        verdict = "ok" if difference <= TOLERANCE else "TOO LARGE"
        print(f"  onnxruntime, batch {batch}: largest difference {difference:.1e}, {verdict} (limit {TOLERANCE:.0e})")
    return 0 if done.ok else 1


def _predict(args: argparse.Namespace) -> int:
    args.output = args.output or []
    for path in [*args.output, *([args.html] if args.html else [])]:
        _check_output(path)
    wrong = [path for path in args.output if path.suffix not in (".csv", ".json")]
    if wrong:
        raise CommandError(f"--output {wrong[0]}: the name must end in .csv or .json")
    from vitgraft.evaluation.command import run

    return run(args)


def _plan(args: argparse.Namespace) -> int:
    _check_output(args.output)
    from dataclasses import fields

    from vitgraft.report import plan, plan_page

    given = {field.name: getattr(args, field.name, None) for field in fields(plan.Assumptions)}
    given["keep_batch"] = not args.scale_batch
    try:
        assumptions = plan.Assumptions(**{name: value for name, value in given.items() if value is not None})
    except ValueError as error:
        raise CommandError("--" + str(error).replace("; ", "; --").replace("_", "-")) from error
    recipes = plan.find_recipes(args.config)
    with Progress(len(recipes)) as step:
        plans = []
        for path in recipes:
            step(str(path))
            plans.append(plan.make_plan(path, assumptions, args.gpus))
    command = shlex.join(["vitgraft", *args.words])
    _print(
        args,
        lambda out: plan_page.print_terminal(plans, assumptions, out),
        lambda: plan_page.to_markdown(plans, assumptions, command),
        lambda: plan.to_json(plans, assumptions),
    )
    return 0


def _families(args: argparse.Namespace) -> int:
    _check_output(args.output)
    from dataclasses import asdict

    from vitgraft.models.families import FAMILIES, NOT_GRAFTABLE, survey, to_markdown
    from vitgraft.report.families import print_terminal

    known = sorted({*FAMILIES, *NOT_GRAFTABLE})
    unknown = [name for name in args.families if name not in known]
    if unknown:
        raise CommandError(f"unknown family {', '.join(unknown)}; there are {', '.join(known)}")
    names = args.families or known
    results = []
    with Progress(len(names)) as step:
        for name in names:
            step(name)
            results += survey([name])
    _print(
        args,
        lambda out: print_terminal(results, out),
        lambda: to_markdown(results),
        lambda: {"kind": "families", "families": [{**asdict(result), "ok": result.ok} for result in results]},
    )
    return 0


def _figures(args: argparse.Namespace) -> int:
    out = console()
    from vitgraft.report import figures

    wanted = args.figures or list(figures.FIGURES)
    unknown = [name for name in wanted if name not in figures.FIGURES]
    if unknown:
        raise CommandError(f"unknown figure {', '.join(unknown)}; there are {', '.join(figures.FIGURES)}")
    if args.photos and not args.photos.is_dir():
        raise CommandError(f"--photos {args.photos}: no such folder")
    measure = "tradeoff" in wanted and not args.no_speed and args.bench is None
    total = (figures.speed_reports() if measure else 0) + len(figures.SYSTEMS) * len(args.seeds) * ("reach" in wanted)
    try:
        record = figures.read_speeds(args.bench) if args.bench else None
        with Progress(total) as step:
            if measure:
                record = figures.measure_speeds(step)
            written = figures.make_figures(args.out, wanted, record, args.photos, args.seeds, step)
    except ValueError as error:
        raise CommandError(str(error)) from error
    for path in written:
        out.print(str(path), highlight=False, soft_wrap=True)
    return 0


def _check_data(args: argparse.Namespace) -> int:
    _check_output(args.output)
    if args.imbalance < 1:
        raise CommandError(f"--imbalance {args.imbalance:g}: at least 1")
    from vitgraft.data import check

    sources, findings = check.open_sets(args.paths, args.data_format)
    with Progress(sum(map(len, sources))) as step:
        report = check.check_sources(sources, args.workers, args.imbalance, step)
    report.findings[:0] = findings
    _print(
        args, lambda out: check.print_terminal(report, out), lambda: check.to_markdown(report), lambda: report.to_json()
    )
    return 1 if not report.ok or (args.strict and report.findings) else 0


def _results(args: argparse.Namespace) -> int:
    out = console()
    from vitgraft.report import runs

    try:
        records = runs.read_runs(args.runs, args.dataset)
    except ValueError as error:
        raise CommandError(str(error)) from error
    summaries = runs.summarize(records)
    if args.format == "markdown":
        write(None, runs.to_markdown(summaries))
    else:
        runs.print_terminal(summaries, out)
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        for folder, record in zip(args.runs, records, strict=True):
            write(args.output / f"{folder.name}.json", json.dumps(record, indent=1) + "\n")
    return 0


def _demo(args: argparse.Namespace) -> int:
    from vitgraft.demo import main as demo

    return demo(args)


def _print(args: argparse.Namespace, terminal: Callable, markdown: Callable, values: Callable) -> None:
    """Writes what a command found in the asked format, to the terminal or to the file."""
    suffixes = {".md": "markdown", ".json": "json"}
    chosen = args.format or (suffixes.get(args.output.suffix, "terminal") if args.output else "terminal")
    if chosen == "terminal":
        show(args.output, terminal)
    elif chosen == "markdown":
        write(args.output, markdown())
    else:
        write(args.output, json.dumps(values(), indent=1) + "\n")


def _check_output(path: Path | None) -> None:
    """Before any work is done: a file can be written there."""
    if path is not None and not path.parent.is_dir():
        raise CommandError(f"{path}: the folder {path.parent} does not exist")
    if path is not None and path.is_dir():
        raise CommandError(f"{path} is a folder; name a file in it")


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: at least 1")
    return value
