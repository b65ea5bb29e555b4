"""What `vitgraft validate` and `vitgraft test` print and write."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from vitgraft.machine import describe
from vitgraft.metrics.report_writer import print_report, write_report
from vitgraft.terminal import console, note
from vitgraft.training.callbacks.worst_images import WorstImages

__all__ = ["EvaluationFiles"]


class EvaluationFiles(pl.Callback):
    """Prints the metrics of an evaluation and writes its report into the run's folder.

    It goes to OUT/validate or OUT/test, that of averaged weights to OUT/validate_ema or OUT/test_ema, and that of a
    part of the dataset (`limit_val_batches`, `max_images`) to OUT/validate_part ..., which never replaces that of the
    whole dataset. Sliding windows go to OUT/validate_sliding, several scales or flips to OUT/validate_multi_scale.

    Args:
        worst: Draws the worst images, a callback before this one; None: none are drawn.
    """

    def __init__(self, worst: WorstImages | None = None) -> None:
        self.worst = worst or WorstImages(0)
        self.bad: list[str] = []

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.bad = []

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        self.bad += getattr(batch, "bad", [])

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._finish(trainer, pl_module, "validate")

    on_test_start = on_validation_start
    on_test_batch_end = on_validation_batch_end

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._finish(trainer, pl_module, "test")

    def _finish(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        bad = [self.bad]
        if trainer.world_size > 1:
            bad = [None] * trainer.world_size
            torch.distributed.all_gather_object(bad, self.bad)
        if not trainer.is_global_zero or trainer.fast_dev_run:
            return
        unreadable = sorted(text for part in bad for text in part)
        data = getattr(trainer.datamodule, "metadata", {})
        part = "_part" if limited(trainer, stage) or data.get("max_images") is not None else ""
        for weights, report in getattr(pl_module, "reports", {}).items():
            parts, options = pl_module.inference()
            words = "averaged weights (ema)" if weights == "ema" else "weights as trained"
            title = f"{stage}{', ONLY A PART of the dataset' if part else ''}: "
            title += f"{trainer.ckpt_path or 'no checkpoint'}, {words}"
            print_report(console(), report, pl_module.class_names, title, len(unreadable))
            metadata = {
                "stage": stage,
                "checkpoint": str(trainer.ckpt_path) if trainer.ckpt_path else None,
                "weights": weights,
                "model": str(pl_module.hparams.get("model", type(pl_module.model).__name__)),
                "data": getattr(trainer.datamodule, "root", None),
                "split": getattr(trainer.datamodule, "splits", {}).get("val" if stage == "validate" else "test"),
                "data_config": pl_module.data_config,
                "data_options": data,
                "processes": trainer.world_size,
                "precision": str(trainer.precision),
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "machine": describe(trainer.strategy.root_device),
                **options,
            }
            if part:
                metadata["limited"] = "only a part of the dataset was measured"
            name = "_".join([stage + ("_ema" if weights == "ema" else "") + part, *parts])
            folder = Path(trainer.default_root_dir) / name
            title = ", ".join([stage, *(one.replace("_", " ") for one in parts)])
            worst = self.worst.drawn(trainer, pl_module, weights)
            written = write_report(folder, report, pl_module.class_names, title, metadata, unreadable, worst)
            note(f"written to {folder}: {', '.join(path.name for path in written)}\n")


def limited(trainer: pl.Trainer, stage: str) -> bool:
    """Whether the trainer is limited to a part of the dataset."""
    limit = trainer.limit_val_batches if stage == "validate" else trainer.limit_test_batches
    return not (isinstance(limit, float) and limit == 1.0)  # the int 1 is one batch
