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
        "ratios hold on a machine whose speed drifts. Prints images/s (median, quartiles), the ratio to the\n"
        "first model, peak memory, MAC, and the achieved FLOP/s as a fraction of the matrix product's peak,\n"
        f"measured in the same run.\n\n{MODEL_HELP}",
        [
            "vitgraft bench deit_tiny_patch16_224 graft_deit_tiny_patch16_224",
            "vitgraft bench swin_tiny_patch4_window7_224 graft_swin_tiny_patch4_window7_224 --mode infer train \\",
            "    --dtype float32 bfloat16 --output results/bench.json",
        ],
    )
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="the first is what the others are compared with")
    add("--device", default="cpu", help="cpu, cuda, cuda:1 (default: cpu)")
    add(
        "--dtype",
        nargs="+",
        dest="dtypes",
        choices=("float32", "bfloat16"),
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
    add("--img-size", type=positive, metavar="N", help="side of the images (default: each model's own)")
    add("--threads", type=positive, metavar="N", help="CPU threads (default: PyTorch's choice)")
    add("--compile", action="store_true", help="run the models through torch.compile")
    add("--rounds", type=positive, default=10, metavar="N", help="default: 10")
    add(
        "--round-seconds", type=float, default=1.0, metavar="S", help="approximate time of a model a round (default: 1)"
    )
    add(
        "--fused-attn",
        choices=("fastest", "on", "off"),
        default="fastest",
        help="timm's switch; on includes experimental paths (Swin's); fastest tries both for each "
        "model and reports which it took (default: fastest)",
    )
    add("--optimizer", choices=("adamw", "sgd"), default="adamw", help="default: adamw")
    add("--no-memory", action="store_false", dest="memory", help="skip the measurement of the peak memory")
    add("--output", type=Path, metavar="FILE.json", help="write every number there too")


def _add_export(commands) -> None:
    parser = add_command(
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
    add = parser.add_argument
    add("model", metavar="SOURCE")
    add("output", type=Path, metavar="FOLDER|OUT.onnx")
    add("--weights", choices=("raw", "ema"), help="of a run (default: the averaged ones where there are any)")
    add_trust(parser)
    add("--checkpoint", type=Path, metavar="FILE", help="of a MODEL: weights (default: random ones)")
    add("--num-classes", type=positive, metavar="N", help="classes of the checkpoint (default: 1000)")
    add("--img-size", type=positive, metavar="N", help="side of the image (default: the model's own)")
    add("--opset", type=positive, metavar="N", help="ONNX operator set (default: PyTorch's)")


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
    if args.output.suffix == ".onnx" or not args.output.is_dir():
        check_output(args.output)
    else:
        check_writable(args.output.absolute().parent)
    from vitgraft.tools import hub
    from vitgraft.weights.files import resolve_checkpoint

    run = resolve_checkpoint(args.model, names=True).kind in ("run", "weights")
    if run and (args.checkpoint or args.num_classes or args.img_size):
        raise CommandError("--checkpoint, --num-classes and --img-size are for a MODEL; a run knows its own")
    if not run and args.weights:
        raise CommandError(f"--weights is for a run or its checkpoint, and {args.model} is neither")
    if args.output.suffix == ".onnx":
        return _export_onnx(args, run)
    if args.opset:
        raise CommandError("--opset is for ONNX: name an output that ends in .onnx")
    if run:
        done = hub.export_run(args.model, args.output, args.weights, args.trust)
    else:
        from vitgraft.data.transforms import model_preprocessing
        from vitgraft.models.spec import ModelSpec

        spec = ModelSpec.parse(args.model)
        model = _model_to_export(args)
        options = {**spec.options, **({"img_size": args.img_size} if args.img_size else {})}
        options = {name: value for name, value in options.items() if name not in ("num_classes", "checkpoint_path")}
        name, arguments = hub.architecture_of(spec.name, options)
        weights = f"of {args.checkpoint}" if args.checkpoint else "random"
        done = hub.export_hub(model, args.output, name, arguments, model_preprocessing(model), weights=weights)
    print(f"{done.path}: {done.architecture}, {done.num_classes} classes, weights: {done.weights}; loads as\n"
          f'  import timm, vitgraft\n  timm.create_model("local-dir:{done.path}", pretrained=True)')  # fmt: skip
    return 0


def _model_to_export(args: argparse.Namespace):
    from vitgraft.models.spec import ModelSpec
    from vitgraft.weights.create import create_at

    options = {"num_classes": args.num_classes} if args.num_classes else {}
    if args.checkpoint:
        if not args.checkpoint.is_file():
            raise CommandError(f"--checkpoint {args.checkpoint}: no such file")
        options["checkpoint_path"] = str(args.checkpoint)
    return create_at(ModelSpec.parse(args.model), args.img_size, **options)


def _export_onnx(args: argparse.Namespace, run: bool) -> int:
    from vitgraft.models.spec import input_size_of
    from vitgraft.tools.export import TOLERANCE, export_onnx

    if run:
        from vitgraft.predict.load import open_model

        found = open_model(args.model, args.weights, task="classification", trust=args.trust)
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
