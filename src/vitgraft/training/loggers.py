"""Where a run's metrics go beside metrics.csv: TensorBoard, Weights & Biases or MLflow, by Lightning's loggers."""

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from vitgraft.errors import MissingExtraError
from vitgraft.training import run_folder

__all__ = ["LoggerName", "make", "run_ids"]

LoggerName = Literal["csv", "tensorboard", "wandb", "mlflow"]
PROJECT = "vitgraft"
SERVICES = {"wandb": WandbLogger, "mlflow": MLFlowLogger}


def make(names: LoggerName | Sequence[LoggerName] | None, out: str | Path) -> list[Logger]:
    """The loggers of a run. metrics.csv is always one: the curves are drawn from it.

    Args:
        names: Further ones; None takes TensorBoard where it is installed.
        out: Folder of the run. A resumed run continues those that its record names.

    Raises:
        MissingExtraError: The package of one is not installed.
    """
    if names is None:
        names = ["tensorboard"] if importlib.util.find_spec("tensorboard") else []
    names = dict.fromkeys([names] if isinstance(names, str) else names)
    ids = run_folder.read_record(out).get("loggers", {})
    return [run_folder.RunLogger(out), *(_make(name, Path(out), ids.get(name)) for name in names if name != "csv")]


def _make(name: str, out: Path, run_id: str | None) -> Logger:
    try:
        if name == "tensorboard":
            return TensorBoardLogger(save_dir=out, name="", version="")
        if name == "wandb":  # WANDB_MODE=offline needs no network
            return WandbLogger(project=PROJECT, name=out.name, save_dir=out, id=run_id, resume="allow")
        uri = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{out.resolve() / 'mlflow.db'}")
        return MLFlowLogger(experiment_name=PROJECT, run_name=out.name, tracking_uri=uri, run_id=run_id)
    except ModuleNotFoundError as error:
        raise MissingExtraError(name, name) from error


def run_ids(loggers: Sequence[Any]) -> dict[str, str]:
    """Name of a service -> the name that it has given the run; opens the run there."""
    found = {}
    for logger in loggers:
        for name, cls in SERVICES.items():
            if isinstance(logger, cls) and logger.experiment is not None and logger.version:
                found[name] = str(logger.version)
    return found
