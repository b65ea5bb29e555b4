"""Commands about models: info, bench, export, families."""

import argparse
from dataclasses import asdict, fields
from pathlib import Path

from vitgraft.atomic import check_writable
from vitgraft.commands.common import (
    MODEL_HELP,
    add_command,
    add_format,
    add_trust,
    check_output,
    check_report,
    positive,
    print_as,
)
from vitgraft.errors import CommandError
from vitgraft.terminal import Progress, console, write_json

__all__ = ["COMMANDS"]


def _add_info(commands) -> None:
    parser = add_command(
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
    parser.add_argument("--img-size", type=positive, metavar="N", help="side of the image (default: the model's own)")


def _add_bench(commands) -> None:
    parser = add_command(
        commands,
        "bench",
        _bench,
        "how fast models are, side by side",
        "Measures inference and training steps of models in one process, taking turns round by round, so that\n"
        "ratios hold on a machine whose speed drifts. Prints images/s (median, quartiles), CPU time, the ratio to\n"
        "the first model and to its fastest run, peak memory, and the achieved FLOP/s as a fraction of the matrix\n"
        "product's peak, measured in the same run. Of timm's two attention settings both are measured in every\n"
        "round, and the faster one counts. With one thread on a CPU, CPU time counts: use --threads 1 where other\n"
        "processes run. glibc's allocator may cost a tenth of the time; MALLOC_MMAP_THRESHOLD_=4000000000 and\n"
        f"MALLOC_TRIM_THRESHOLD_=4000000000 in the environment keep it from returning memory.\n\n{MODEL_HELP}",
        [
            "vitgraft bench deit_tiny_patch16_224 graft_deit_tiny_patch16_224 --threads 1",
            "vitgraft bench swin_tiny_patch4_window7_224 graft_swin_tiny_patch4_window7_224 --mode infer train \\",
            "    --dtype float32 bfloat16 --output results/bench.json",
            "vitgraft bench deit_tiny_patch16_224 graft_deit_tiny_patch16_224 --run eager compile freeze",
            "vitgraft bench deit_tiny_patch16_224 graft_deit_tiny_patch16_224 --img-size 224 448 896 --batch-size 1",
        ],
    )
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="the first is what the others are compared with")
    add("--device", default="cpu", help="cpu, cuda, cuda:1 (default: cpu)")
    add(
        "--dtype",
        nargs="+",
        dest="dtypes",
        choices=("float32", "bfloat16", "bfloat16-weights"),
        default=["float32"],
        help="bfloat16 is autocast over float32 weights (default: float32)",
    )
    add(
        "--mode",
        nargs="+",
        dest="modes",
        choices=("infer", "train"),
        default=["infer"],
        help="train: forward, loss, backward and optimizer step (default: infer)",
    )
    add("--batch-size", type=positive, default=16, metavar="N", help="default: 16")
    add(
        "--img-size",
        type=positive,
        nargs="+",
        dest="img_sizes",
        default=[],
        metavar="N",
        help="sides of the images (default: each model's own); of several, the exponent p of time = pixels^p too",
    )
    add("--channels-last", action="store_true", help="models and images in channels_last memory")
    add("--threads", type=positive, metavar="N", help="CPU threads (default: PyTorch's choice)")
    add(
        "--run",
        nargs="+",
        dest="runs",
        choices=("eager", "compile", "compile-frozen", "freeze"),
        default=["eager"],
        help="compile: torch.compile; compile-frozen: with the weights as constants; freeze: vitgraft.freeze; both for "
        "inference alone (default: eager)",
    )
    add(
        "--compile-mode",
        choices=("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
        default="default",
        help="torch.compile's (default: default)",
    )
    add("--rounds", type=positive, default=10, metavar="N", help="default: 10")
    add(
        "--round-seconds", type=float, default=1.0, metavar="S", help="approximate time of a model a round (default: 1)"
    )
    add(
        "--fused-attn",
        choices=("fastest", "on", "off"),
        default="fastest",
        help="timm's switch; on includes experimental paths (Swin's); fastest measures both in every round "
        "(default: fastest)",
    )
    add("--optimizer", choices=("adamw", "sgd"), default="adamw", help="PyTorch's fused one (default: adamw)")
    add("--no-memory", action="store_false", dest="memory", help="skip the measurement of the peak memory")
    add("--output", type=Path, metavar="FILE.json", help="write every number there too")


def _add_export(commands) -> None:
    parser = add_command(
        commands,
        "export",
        _export,
        "write a finished run for Python, the hub or onnxruntime",
        "To a folder: weights, config.json and a model card in the hub's form, of classifiers, detectors and\n"
        "segmenters; vitgraft.load('FOLDER') predicts the same. Classifiers are in timm's hub format too:\n"
        "timm.create_model('local-dir:FOLDER', pretrained=True) loads them where vitgraft was imported.\n"
        "With --grafts-only: the grafts alone, for vitgraft.load_grafts(model, 'FOLDER').\n"
        "To a file that ends in .onnx: ONNX, written where onnxruntime computes what PyTorch computes: logits within\n"
        "1e-4; boxes within 0.5 pixels, scores within 1e-3, masks and class maps equal in 99.9 % of the pixels.\n"
        "The batch is free, but 1 for detectors; the metadata holds class names, input size, mean and std.\n\n"
        f"A SOURCE is a run's folder, one of its checkpoints, an exported folder, or a MODEL.\n{MODEL_HELP}",
        [
            "vitgraft export runs/vit_micro_graft my_model --license apache-2.0",
            "vitgraft export runs/vit_micro_graft/last.ckpt my_model.onnx --weights raw",
            "vitgraft export runs/vit_micro_graft my_grafts --grafts-only",
            "vitgraft export runs/detector detector.onnx --img-size 640x960",
            "vitgraft export graft_deit_tiny_patch16_224 graft_deit_tiny.onnx",
            "vitgraft export graft_swin_tiny_patch4_window7_224 out.onnx \\",
            "    --checkpoint best.safetensors --num-classes 10",
        ],
    )
    add = parser.add_argument
    add("model", metavar="SOURCE")
    add("output", type=Path, metavar="FOLDER|OUT.onnx")
    add("--weights", choices=("raw", "ema"), help="of a run (default: the averaged ones where there are any)")
    add_trust(parser)
    add("--license", metavar="ID", help="of the weights, for the card of a folder, such as apache-2.0")
    add("--grafts-only", action="store_true", help="a folder of the grafts alone, with what else the run trained then")
    add("--checkpoint", type=Path, metavar="FILE", help="of a MODEL: weights (default: random ones)")
    add("--num-classes", type=positive, metavar="N", help="classes of the checkpoint (default: 1000)")
    add(
        "--img-size",
        type=_size,
        metavar="N|HxW",
        help="pixels, of a MODEL or the input of a detector's or segmenter's file (default: its own)",
    )
    add("--free-size", action="store_true", help="of a detector's or segmenter's file: any height and width")
    add("--images", nargs="+", type=Path, metavar="FILE", help="compare a detector or segmenter on these images")
    add("--opset", type=positive, metavar="N", help="ONNX operator set (default: PyTorch's)")


def _size(text: str) -> tuple[int, int]:
    sides = [positive(part) for part in text.lower().split("x")]
    if len(sides) > 2:
        raise argparse.ArgumentTypeError(f"{text}: N, or HEIGHTxWIDTH")
    return sides[0], sides[-1]


def _add_families(commands) -> None:
    parser = add_command(
        commands,
        "families",
        _families,
        "which models of timm, torchvision, transformers and open_clip can be grafted",
        "Grafts a small model of each transformer family of the installed libraries, and checks that identity\n"
        "grafts leave its output equal bit for bit; prints the outcome of each, or why it cannot be grafted.\n"
        "Takes a few minutes for all of them.",
        ["vitgraft families transformers", "vitgraft families beit eva", "vitgraft families --output docs/families.md"],
    )
    parser.add_argument("families", nargs="*", metavar="NAME", help="libraries, or names of their files (default: all)")
    add_format(parser)


def _info(args: argparse.Namespace) -> int:
    out = console()
    from vitgraft.models.spec import ModelSpec, input_size_of
    from vitgraft.tools.info import describe_model, print_terminal
    from vitgraft.weights.create import create_at

    spec = ModelSpec.parse(args.model)
    model = create_at(spec, args.img_size)
    input_size = input_size_of(model, args.img_size)
    print_terminal(f"{spec} at {input_size[1]} x {input_size[2]}", describe_model(model, input_size), out)
    return 0


def _bench(args: argparse.Namespace) -> int:
    out = console()
    check_output(args.output, (".json",))
    import torch

    from vitgraft.tools import bench

    if args.threads:
        torch.set_num_threads(args.threads)
    config = bench.BenchConfig(**{field.name: getattr(args, field.name) for field in fields(bench.BenchConfig)})
    with Progress(bench.total_reports(len(args.models), config)) as step:
        result = bench.bench(args.models, config, step)
    bench.print_terminal(result, out)
    if args.output:
        write_json(args.output, result)
    return 0


def _export(args: argparse.Namespace) -> int:
    onnx = args.output.suffix == ".onnx"
    if onnx or not args.output.is_dir():
        check_output(args.output)
    else:
        check_writable(args.output.absolute().parent)
    from vitgraft.weights.files import resolve_checkpoint

    kind = resolve_checkpoint(args.model, names=True).kind
    found = kind in ("run", "weights", "export")
    if found and (args.checkpoint or args.num_classes):
        raise CommandError("--checkpoint and --num-classes are for a MODEL; a run knows its own")
    if kind not in ("run", "weights") and args.weights:
        raise CommandError(f"--weights is for a run or its checkpoint, and {args.model} is neither")
    if args.opset and not onnx:
        raise CommandError("--opset is for ONNX: name an output that ends in .onnx")
    if onnx and (args.license or args.grafts_only):
        option = "--license" if args.license else "--grafts-only"
        raise CommandError(f"{option} is for a folder: name an output that does not end in .onnx")
    if not found:
        return _export_model(args, onnx)
    from vitgraft.predict.load import open_model

    run = open_model(args.model, args.weights, trust=args.trust)
    dense = {"--img-size": args.img_size, "--free-size": args.free_size, "--images": args.images}
    given = next((name for name, value in dense.items() if value), None)
    if given and not (onnx and run.task != "classification"):
        raise CommandError(f"{given} is for ONNX of a detector or segmenter, or for a MODEL; a run knows its own")
    if args.grafts_only:
        return _export_grafts(args, run)
    if not onnx:
        from vitgraft.predict.exported import save_run

        _print_folder(save_run(run, args.output, args.license))
        return 0
    if run.task != "classification":
        return _export_dense_onnx(args, run)
    from vitgraft.tools.export import metadata_of

    size = run.preprocessing.input_size
    metadata = metadata_of(run, size)
    return _export_onnx(args, run.model, (3, *size), f"{run.weights} weights of {args.model}", metadata)


def _export_grafts(args: argparse.Namespace, run) -> int:
    from vitgraft.weights.graft_files import save_grafts

    if args.output.is_dir() and any(args.output.iterdir()):
        raise CommandError(f"{args.output} exists and is not empty; export into another folder")
    frozen = bool((run.hyper_parameters or {}).get("train_grafts_only"))
    head = frozen and run.task == "classification"
    folder = save_grafts(run.model, args.output, head=head)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder}: grafts{' and classifier' if head else ''}, {size / 1e6:.2f} MB; loads as\n"
          f"  import vitgraft\n  vitgraft.load_grafts(model, {str(folder)!r})")  # fmt: skip
    if not frozen:
        print("the run trained its backbone too, whose changes are not among the grafts; train_grafts_only freezes it")
    return 0


def _export_model(args: argparse.Namespace, onnx: bool) -> int:
    """A MODEL by its name."""
    if args.grafts_only or args.free_size or args.images:
        raise CommandError("--grafts-only, --free-size and --images are for a run")
    if args.img_size and args.img_size[0] != args.img_size[1]:
        raise CommandError(f"--img-size {args.img_size[0]}x{args.img_size[1]}: of a MODEL the side of a square alone")
    side = args.img_size[0] if args.img_size else None
    from vitgraft.data.transforms import model_preprocessing
    from vitgraft.models.spec import ModelSpec, input_size_of
    from vitgraft.predict.exported import architecture_of, export_hub

    spec = ModelSpec.parse(args.model)
    model = _model_to_export(args, side)
    if onnx:
        weights = f"weights of {args.checkpoint}" if args.checkpoint else "random weights (no --checkpoint)"
        return _export_onnx(args, model, input_size_of(model, side), weights, None)
    options = {**spec.options, **({"img_size": side} if side else {})}
    options = {name: value for name, value in options.items() if name not in ("num_classes", "checkpoint_path")}
    weights = f"of {args.checkpoint}" if args.checkpoint else "random"
    details = {"license": args.license} if args.license else {}
    given = (*architecture_of(spec.name, options), model_preprocessing(model))
    _print_folder(export_hub(model, args.output, *given, weights=weights, details=details))
    return 0


def _print_folder(done) -> None:
    print(f"{done.path}: {done.architecture}, {done.num_classes} classes, weights: {done.weights}; loads as\n"
          f"  import vitgraft\n  vitgraft.load({str(done.path)!r})")  # fmt: skip
    if done.task == "classification":
        print(f'  timm.create_model("local-dir:{done.path}", pretrained=True)')


def _model_to_export(args: argparse.Namespace, side: int | None):
    from vitgraft.models.spec import ModelSpec
    from vitgraft.weights.create import create_at

    options = {"num_classes": args.num_classes} if args.num_classes else {}
    if args.checkpoint:
        if not args.checkpoint.is_file():
            raise CommandError(f"--checkpoint {args.checkpoint}: no such file")
        options["checkpoint_path"] = str(args.checkpoint)
    return create_at(ModelSpec.parse(args.model), side, **options)


def _export_onnx(args: argparse.Namespace, model, input_size, weights: str, metadata) -> int:
    from vitgraft.tools.export import TOLERANCE, export_onnx

    done = export_onnx(model, args.output, input_size, args.opset, metadata)
    shape = f"(batch, {', '.join(map(str, input_size))})"
    print(f"{done.path}: {done.size_bytes / 1e6:.1f} MB, opset {done.opset}, input images {shape}, {weights}")
    for batch, difference in done.differences.items():
        verdict = "ok" if difference <= TOLERANCE else "TOO LARGE"
        print(f"  onnxruntime, batch {batch}: largest difference {difference:.1e}, {verdict} (limit {TOLERANCE:.0e})")
    if not done.ok:
        print("nothing was written")
    return 0 if done.ok else 1


def _export_dense_onnx(args: argparse.Namespace, run) -> int:
    from vitgraft.predict.inputs import read_image
    from vitgraft.tools.export_dense import export_dense

    images = [read_image(path) for path in args.images or ()]
    done = export_dense(run, args.output, args.img_size, args.free_size, args.opset, images)
    shape = ", ".join(name if side == 0 else str(side)
                      for name, side in zip(("batch", "", "height", "width"), done.inputs, strict=True))  # fmt: skip
    print(f"{done.path}: {done.size_bytes / 1e6:.1f} MB, opset {done.opset}, input images ({shape}), outputs "
          f"{', '.join(done.outputs)}, {run.weights} weights of {args.model}")  # fmt: skip
    for check in done.checks:
        print(f"  onnxruntime, {check}")
    if sum(check.objects or 0 for check in done.checks) == 0 and run.task == "detection":
        print("  no object was found to compare; --images FILE ... compares on images of yours")
    return 0


def _families(args: argparse.Namespace) -> int:
    check_report(args)
    from vitgraft.tools.survey import check_names, print_terminal, survey, to_markdown

    results = []
    with Progress(check_names(args.families)) as step:
        for result in survey(args.families):
            results.append(result)
            step(result.family)
    print_as(
        args,
        lambda out: print_terminal(results, out),
        lambda: to_markdown(results),
        lambda: {"kind": "families", "families": [{**asdict(result), "ok": result.ok} for result in results]},
    )
    return 0


COMMANDS = (_add_info, _add_bench, _add_export, _add_families)
"""What adds each command to the sub-commands of a parser, in the order of the help."""
