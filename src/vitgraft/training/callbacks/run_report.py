"""The report of a run that trains: learning curves and what the last validation measured, renewed as it goes."""

import math
import time
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.trainer.states import TrainerFn

from vitgraft.atomic import atomic_write
from vitgraft.metrics.figures import png_of
from vitgraft.metrics.report_writer import report_page
from vitgraft.terminal import warn
from vitgraft.training.callbacks.worst_images import WorstImages
from vitgraft.training.curves import curves_figure, read_log
from vitgraft.training.run_folder import RunLogger

__all__ = ["RunReport"]

SECONDS = 20  # between two reports, at least
MOST_TIME = 0.02  # fraction of the run's time that reports may take


class RunReport(pl.Callback):
    """Writes curves.png and report.html into the run's folder: after validations, a few times a minute at most, and at
    the end of the run, however it ends.

    The curves are those of metrics.csv, so those of a resumed run begin where the run did. What goes wrong here is a
    warning, and ends no run.

    Args:
        worst: Draws the worst images, a callback before this one; None: none are drawn.
    """

    def __init__(self, worst: WorstImages | None = None) -> None:
        self.worst = worst or WorstImages(0)
        self._next = 0.0  # time.monotonic() from which another report may be written
        self._failed = self._trained = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._trained = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking and time.monotonic() >= self._next:
            self._write(trainer, pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._write(trainer, pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        # others leave their folder as it was
        if self._trained and (Path(trainer.default_root_dir) / "last.ckpt").is_file():
            self._write(trainer, pl_module)

    def _write(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        in_fit = trainer.state.fn == TrainerFn.FITTING
        if not in_fit or not trainer.is_global_zero or trainer.fast_dev_run or self._failed:
            return
        start = time.monotonic()
        try:
            _write_report(trainer, pl_module, self.worst)
        except Exception as error:  # a full disk, a missing library, a log of another program: the run matters more
            warn(f"no learning curves and report.html: {error}")
            self._failed = True
        end = time.monotonic()
        self._next = end + max(SECONDS, (end - start) / MOST_TIME)


def _write_report(trainer: pl.Trainer, pl_module: pl.LightningModule, worst: WorstImages) -> None:
    folder = Path(trainer.default_root_dir)
    for logger in trainer.loggers:
        if isinstance(logger, RunLogger):
            logger.save()
    log, figures = folder / "metrics.csv", {}
    if log.is_file():
        batches = trainer.num_training_batches
        updates = math.ceil(batches / trainer.accumulate_grad_batches) if math.isfinite(batches) else None
        figures["curves.png"] = png_of(curves_figure(read_log(log), updates or None, folder.name))
    reports = getattr(pl_module, "reports", {})
    weights, report = next(reversed(reports.items()), ("raw", None))  # of the averaged weights where there are any
    if not figures and report is None:
        return
    title = f"{folder.name}: {trainer.global_step:,} updates, epoch {trainer.current_epoch}"
    title += ", averaged weights (ema)" if weights == "ema" else ""
    pictures = worst.drawn(trainer, pl_module, weights)
    page = report_page(title, report, pl_module.class_names, figures, worst=pictures)
    for file_name, content in {**figures, "report.html": page.encode(errors="backslashreplace")}.items():
        with atomic_write(folder / file_name, "wb") as file:
            file.write(content)
