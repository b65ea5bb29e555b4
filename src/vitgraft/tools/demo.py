"""`vitgraft demo`: three small ViTs on scenes of real handwritten digits, side by side, at equal steps.

Full attention, windows only, and windows with grafts: the question of the paper's section 3.1, at a size that a laptop
trains in minutes. Small digits of one class lie on the left of a scene and of another on the right; the large digit in
the middle, 0 or 1, selects the side of the label.
"""

import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from vitgraft.atomic import check_writable
from vitgraft.data.digits import DigitScenes
from vitgraft.grafting import graft
from vitgraft.machine import record
from vitgraft.tasks.classification import Classification
from vitgraft.terminal import Progress, console, print_table, write_json
from vitgraft.tools.bench import BenchConfig, bench
from vitgraft.tools.demo_page import HEADINGS, DemoOptions, DemoResult, write_demo_report

__all__ = ["MODELS", "DemoOptions", "DemoResult", "build_model", "run_demo"]

MODELS = {"full": "full attention", "windows": "windows only", "grafted": "windows + grafts"}
BENCH = BenchConfig(batch_size=64, rounds=9, round_seconds=0.05, fused_attn="on", memory=False)


def build_model(kind: str, options: DemoOptions, image_size: int, num_classes: int) -> nn.Module:
    """One of the three models of `MODELS`, with initial weights that depend on the seed alone.

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


def _train(
    kind: str,
    model: nn.Module,
    train: DigitScenes,
    test: DigitScenes,
    options: DemoOptions,
    report: Callable[[str], None],
) -> DemoResult:
    """Trains one model; `report` gets a line about each step."""
    import pytorch_lightning as pl

    result = DemoResult(MODELS[kind], 0.0, 0, 0, 0.0, 0.0)

    class Curves(pl.Callback):
        """Records loss and accuracy."""

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            result.loss_curve.append((trainer.global_step, float(outputs["loss"])))
            report(f"{MODELS[kind]}: loss {outputs['loss']:.3f}")

        def on_validation_end(self, trainer: Any, module: Any) -> None:
            result.accuracy_curve.append((trainer.global_step, float(trainer.callback_metrics["val/acc"])))

    pl.seed_everything(options.seed, verbose=False)
    order = torch.Generator().manual_seed(options.seed)
    batches = DataLoader(train, options.batch_size, shuffle=True, drop_last=True, generator=order)
    warmup = options.steps // 10
    module = Classification(model, num_classes=model.num_classes, lr=options.lr, warmup_steps=warmup, betas=(0.9, 0.98))
    trainer = pl.Trainer(
        max_steps=options.steps,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
        val_check_interval=max(1, options.steps // 10),
        check_val_every_n_epoch=None,
        gradient_clip_val=1.0,
        callbacks=[Curves()],
    )
    start = time.perf_counter()
    trainer.fit(module, batches, DataLoader(test, 250))
    result.train_seconds = time.perf_counter() - start
    if not result.accuracy_curve or result.accuracy_curve[-1][0] != options.steps:
        trainer.validate(module, DataLoader(test, 250), verbose=False)  # the steps are no multiple of 10
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
    """
    out_console = console()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*num_workers.*|.*does not have many workers.*|.*isinstance.treespec.*")
    options = options or DemoOptions()
    out = Path(out)
    check_writable(out)
    with out_console.status(f"drawing {options.train_scenes + options.test_scenes:,} scenes of handwritten digits ..."):
        train = DigitScenes(options.train_scenes, options.seed, "train", cache=True)
        test = DigitScenes(options.test_scenes, options.seed, "test", cache=True)
    size, classes = train.size, len(train.class_names)
    models = {kind: build_model(kind, options, size, classes) for kind in MODELS}
    with Progress(len(MODELS) * options.steps) as step:
        results = {kind: _train(kind, models[kind], train, test, options, step) for kind in MODELS}
    measured = bench(list(MODELS), BENCH, make=lambda spec: (models[spec.name], (3, size, size)))["results"]
    for result, row in zip(results.values(), measured, strict=True):
        result.params, result.macs = row["params"], row["macs_per_image"]
        result.images_per_second = row["images_per_second"]["median"]
    out_console.print("test scenes, equal steps", style="bold")
    print_table(out_console, HEADINGS, [one.texts() for one in results.values()])
    found = record(
        "demo",
        "cpu",
        command=command or f"vitgraft demo --seed {options.seed}",
        options=asdict(options),
        results={kind: asdict(result) for kind, result in results.items()},
    )
    write_json(out / "results.json", found)
    if report:
        path = write_demo_report(out / "report.html", models, results, test, options, found)
        out_console.print(f"report: [bold]{path}[/bold] (opens from disk)")
    return results
