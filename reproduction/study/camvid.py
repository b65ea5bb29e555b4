"""The segmentation runs of the study: `vitgraft fit` on CamVid, then `vitgraft test` once, of the last weights."""

import contextlib
import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from reproduction.study.data import shared_folder
from vitgraft import pyramid
from vitgraft.errors import CommandError
from vitgraft.models.upernet import UperNet

__all__ = ["run_camvid", "segmenter"]

ROOT = Path(__file__).resolve().parents[2]
STEPS_AN_EPOCH = 45
HEAD = 32
"""Channels of both heads, as in the recipe."""


def segmenter(backbone: nn.Module, num_classes: int) -> nn.Module:
    """The recipe's UperNet on a backbone, to be counted."""
    return UperNet(pyramid(backbone), num_classes, HEAD, aux_channels=HEAD)


def run_camvid(
    options: Mapping[str, Any],
    mlp_ratio: float | None,
    seed: int,
    peak: float,
    folder: Path,
    deadline: float = math.inf,
    device: str = "cpu",
) -> dict[str, Any] | None:
    """Trains a segmenter and tests it.

    Args:
        options: Those of the grid.
        mlp_ratio: Of the backbone's feed-forward networks; None: the model's own.
        seed: The run's.
        peak: The learning rate.
        folder: The run's folder, from which it is resumed.
        deadline: Time of `time.monotonic` at which it is saved and ends.
        device: Where.

    Returns:
        accuracy (mIoU in percent on the test set), area, curve (one point), seconds of CPU with the evaluations,
        step_seconds; None where the deadline came first.
    """
    data = shared_folder() / "data" / "camvid"
    arguments = {name: value for name, value in options["model"].items() if name not in ("name", "num_classes")}
    if mlp_ratio is not None:
        arguments["mlp_ratio"] = mlp_ratio
    steps = options["steps"]
    finished, spent = folder / "finished", folder.with_suffix(".seconds")
    where = ["--trainer.accelerator", "gpu" if device.startswith("cuda") else "cpu"]
    fit = ["fit", "--config", str(ROOT / options["recipe"]), "--data.root", str(data / "camvid.tar"), *where]
    fit += ["--seed_everything", str(seed), "--out", str(folder), "--model.lr", str(peak)]
    fit += ["--trainer.max_epochs", str(-(-steps // STEPS_AN_EPOCH)), "--trainer.enable_progress_bar", "false"]
    fit += ["--model.model_kwargs", json.dumps({**arguments, "drop_path_rate": 0.0})]
    fit += ["--model.graft", json.dumps(options["graft"])]
    fit += ["--resume"] if (folder / "last.ckpt").exists() else []
    if not finished.exists():
        if not _call(fit, deadline, spent):
            return None
        finished.touch()
    test = ["test", "--ckpt_path", str(folder / "last.ckpt"), "--data.root", str(data / "camvid_test.tar"), *where]
    if not _call([*test, "--data.test", "test"], deadline, None):
        return None
    metrics = json.loads(next(folder.glob("test*/metrics.json")).read_text(encoding="utf-8"))["metrics"]
    score, seconds = round(100 * metrics["miou"], 3), float(spent.read_text())
    curve = [[steps, score, round(seconds, 2)]]
    return {
        "accuracy": score,
        "area": score,
        "curve": curve,
        "seconds": round(seconds, 2),
        "step_seconds": round(seconds / steps, 5),
    }


def _call(arguments: list[str], deadline: float, spent: Path | None) -> bool:
    """Calls vitgraft; whether it came to its end before the deadline. Its CPU seconds are added to those in a file."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(
        [sys.executable, "-m", "vitgraft", *arguments], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    try:
        code = process.wait(None if deadline == math.inf else max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)  # it saves
        process.wait()
        code = None
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if spent is not None:
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        old = 0.0
        with contextlib.suppress(OSError):
            old = float(spent.read_text())
        spent.write_text(str(old + after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime))
    if code:
        raise CommandError(f"vitgraft {arguments[0]} ended with exit code {code}")
    return code == 0
