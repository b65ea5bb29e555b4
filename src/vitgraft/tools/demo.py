"""`vitgraft demo`: three small ViTs on scenes of real handwritten digits, side by side, at equal steps.

Full attention, windows only, and windows with grafts: the question of the paper's section 3.1, at a size that a laptop
trains in minutes. Small digits of one class lie on the left of a scene and of another on the right; the large digit in
the middle, 0 or 1, says which side is the label.
"""

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitgraft.data.digits import DigitScenes
from vitgraft.errors import MissingExtraError
from vitgraft.grafting import graft
from vitgraft.machine import describe
from vitgraft.tools.count import count_macs, count_params
from vitgraft.tools.demo_page import DemoOptions, DemoResult, write_demo_report

__all__ = ["MODELS", "DemoOptions", "DemoResult", "add_demo_arguments", "build_model", "main", "run_demo"]

MODELS = {"full": "full attention", "windows": "windows only", "grafted": "windows + grafts"}


def build_model(kind: str, options: DemoOptions, image_size: int, num_classes: int) -> nn.Module:
    """One of the three models of `MODELS`, with start weights that depend on the seed alone.

    Raises:
        ValueError: Unknown kind.
    """
    from timm.models.vision_transformer import VisionTransformer

    if kind not in MODELS:
        raise ValueError(f"kind={kind!r}: choose one of {', '.join(MODELS)}")
    torch.manual_seed(options.seed)
    model = VisionTransformer(
        img_size=image_size,
        patch_size=options.patch_size,
        embed_dim=options.embed_dim,
        depth=options.depth,
        num_heads=options.num_heads,
        class_token=False,
        global_pool="avg",
        num_classes=num_classes,
        weight_init="jax",
    )
    # A short run has no time to grow position embeddings from timm's 0.02
    nn.init.normal_(model.pos_embed, std=0.2)
    window = {"backbone_attention": "window", "window_size": options.window_size}
    if kind == "windows":
        return graft(model, blocks=(), **window)
    return graft(model, **window) if kind == "grafted" else model


def _throughput(models: dict[str, nn.Module], images: torch.Tensor, rounds: int = 9) -> dict[str, float]:
    """Images/s of inference, interleaved, median of the rounds."""
    seconds: dict[str, list[float]] = {kind: [] for kind in models}
    with torch.inference_mode():
        for number in range(rounds + 1):
            for kind, model in models.items():
                start = time.perf_counter()
                model(images)
                if number:  # the first round warms up
                    seconds[kind].append(time.perf_counter() - start)
    return {kind: len(images) / sorted(times)[len(times) // 2] for kind, times in seconds.items()}


def _train(kind: str, model: nn.Module, train: DigitScenes, test: DigitScenes, options: DemoOptions) -> DemoResult:
    """Trains one model with a progress bar."""
    import pytorch_lightning as pl
    from torch.utils.data import DataLoader

    from vitgraft.tasks.classification import Classification

    result = DemoResult(MODELS[kind], 0.0, 0, 0, 0.0, 0.0)

    class Curves(pl.Callback):
        """Notes loss and accuracy."""

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            result.loss_curve.append((trainer.global_step, float(outputs["loss"])))

        def on_validation_end(self, trainer: Any, module: Any) -> None:
            if not trainer.sanity_checking:
                result.accuracy_curve.append((trainer.global_step, float(trainer.callback_metrics["val/acc"])))

    class Bar(pl.callbacks.TQDMProgressBar):
        """One line per model instead of one per epoch."""

        def on_train_epoch_start(self, trainer: Any, *_: Any) -> None:
            self.train_progress_bar.total = options.steps
            self.train_progress_bar.initial = 0
            self.train_progress_bar.set_description(f"{MODELS[kind]:>17}")

        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            bar = self.train_progress_bar
            bar.n = trainer.global_step
            bar.set_postfix({k.split("/")[1]: f"{float(v):.3f}" for k, v in trainer.progress_bar_metrics.items()})

        def init_validation_tqdm(self) -> Any:
            return pl.callbacks.progress.tqdm_progress.Tqdm(disable=True)

    pl.seed_everything(options.seed, verbose=False)
    batches = DataLoader(
        train,
        options.batch_size,
        shuffle=True,
        drop_last=True,
        generator=torch.Generator().manual_seed(options.seed),
    )
    module = Classification(
        model,
        num_classes=model.num_classes,
        lr=options.lr,
        warmup_steps=options.steps // 10,
        betas=(0.9, 0.98),
    )
    trainer = pl.Trainer(
        max_steps=options.steps,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        val_check_interval=max(1, options.steps // 10),
        check_val_every_n_epoch=None,
        gradient_clip_val=1.0,
        callbacks=[Curves(), Bar()],
    )
    start = time.perf_counter()
    trainer.fit(module, batches, DataLoader(test, 250))
    result.train_seconds = time.perf_counter() - start
    if not result.accuracy_curve or result.accuracy_curve[-1][0] != options.steps:
        trainer.validate(module, DataLoader(test, 250), verbose=False)  # steps are no multiple of 10; Curves notes it
    result.accuracy = result.accuracy_curve[-1][1]
    return result


def run_demo(
    out: str | Path = "runs/demo", options: DemoOptions | None = None, report: bool = True, command: str = ""
) -> dict[str, DemoResult]:
    """Trains the three models at equal steps, prints a table and writes `results.json` and `report.html`.

    Args:
        out: Folder that is written to; made where it is missing.
        options: Sizes and steps.
        report: Whether the HTML report is written too.
        command: The command line that is recorded.

    Returns:
        The results by kind, in the order of `MODELS`.

    Raises:
        MissingExtraError: An extra is not installed.
    """
    try:
        import pytorch_lightning  # noqa: F401
        from rich.console import Console
    except ImportError as error:
        raise MissingExtraError(error.name or "pytorch-lightning", "train") from error
    import logging
    import warnings

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*num_workers.*|.*does not have many workers.*|.*isinstance.treespec.*")
    options = options or DemoOptions()
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    console = Console()
    with console.status(f"drawing {options.train_scenes + options.test_scenes:,} scenes of handwritten digits ..."):
        train = DigitScenes(options.train_scenes, options.seed, "train", cache=True)
        test = DigitScenes(options.test_scenes, options.seed, "test", cache=True)
    size, classes = train.config.size, train.config.num_classes
    models = {kind: build_model(kind, options, size, classes) for kind in MODELS}
    results = {kind: _train(kind, models[kind], train, test, options) for kind in MODELS}
    for model in models.values():
        model.eval()
    images = torch.stack([test[i][0] for i in range(min(64, len(test)))])
    speed = _throughput(models, images)
    for kind, model in models.items():
        results[kind].params = count_params(model)
        results[kind].macs = count_macs(model, (3, size, size))
        results[kind].images_per_second = speed[kind]
    _print_table(console, results)
    record = _record(results, options, command)
    (out / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    if report:
        path = write_demo_report(out / "report.html", models, results, test, options, record)
        console.print(f"report: [bold]{path}[/bold] (opens from disk)")
    return results


def _record(results: dict[str, DemoResult], options: DemoOptions, command: str) -> dict[str, Any]:
    """What is kept of a run: metrics, options, versions, hardware."""
    return {
        "what": "demo",
        "command": command or f"vitgraft demo --seed {options.seed}",
        "options": asdict(options),
        "results": {kind: asdict(result) for kind, result in results.items()},
        "machine": describe(torch.device("cpu")),
    }


def _print_table(console: Any, results: dict[str, DemoResult]) -> None:
    from rich.table import Table

    table = Table(title="test scenes, equal steps")
    for heading in ("model", "accuracy", "parameters", "MMAC", "images/s", "training"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for result in results.values():
        table.add_row(
            result.name,
            f"{result.accuracy:.1%}",
            f"{result.params:,}",
            f"{result.macs / 1e6:.1f}",
            f"{result.images_per_second:.0f}",
            f"{result.train_seconds:.0f} s",
        )
    console.print(table)


def add_demo_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the demo's options to a command line parser."""
    parser.add_argument(
        "--out", default="runs/demo", help="folder of report.html and results.json (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="scenes, start weights, batch order (default: %(default)s)")
    parser.add_argument(
        "--steps", type=int, default=DemoOptions.steps, help="optimiser steps of each model (default: %(default)s)"
    )
    parser.add_argument("--no-report", action="store_true", help="train and print the table only")


def main(args: argparse.Namespace) -> int:
    """Runs the demo for parsed arguments; the exit code."""
    options = DemoOptions(seed=args.seed, steps=args.steps)
    command = f"vitgraft demo --seed {args.seed}" + (
        f" --steps {args.steps}" if args.steps != DemoOptions.steps else ""
    )
    run_demo(args.out, options, not args.no_report, command)
    return 0


def _run_seeds(argv: list[str] | None = None) -> int:
    """`python -m vitgraft.tools.demo --seeds 0 1 2`: one run for each seed, its record in results/demo_seed{N}.json."""
    parser = argparse.ArgumentParser(prog="python -m vitgraft.tools.demo", description="the demo with several seeds")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--steps", type=int, default=DemoOptions.steps, help="of each model (default: %(default)s)")
    parser.add_argument("--out", default="runs", help="folder of the runs' folders demo_seed{N} (default: %(default)s)")
    parser.add_argument("--results", default="results", help="folder of the records (default: %(default)s)")
    args = parser.parse_args(argv)
    for seed in args.seeds:
        out = Path(args.out) / f"demo_seed{seed}"
        main(argparse.Namespace(out=out, seed=seed, steps=args.steps, no_report=False))
        record = Path(args.results) / f"demo_seed{seed}.json"
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text((out / "results.json").read_text())
    return 0


if __name__ == "__main__":
    raise SystemExit(_run_seeds())
