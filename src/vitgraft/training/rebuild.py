"""A task from its checkpoint alone."""

from pathlib import Path
from typing import Any

from vitgraft.errors import CheckpointError
from vitgraft.training.checkpoint_files import read_or_previous

__all__ = ["read_hyper_parameters"]


def read_hyper_parameters(path: str | Path) -> tuple[str, dict[str, Any]]:
    """Class path of the task and the options that rebuild it, without its start weights, which the checkpoint replaces.

    Raises:
        CheckpointError: Damaged, refused, or not of a vitgraft run.
        FileNotFoundError: No such file.
    """
    checkpoint, path = read_or_previous(path)
    if not isinstance(checkpoint, dict) or not {"task", "hyper_parameters"} <= checkpoint.keys():
        raise CheckpointError(f"{path}: no checkpoint of a vitgraft run: it names no task and no hyper-parameters")
    options = {**checkpoint["hyper_parameters"], "pretrained": False, "checkpoint_path": None}
    return checkpoint["task"], options
