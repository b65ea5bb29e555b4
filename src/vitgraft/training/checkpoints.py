"""Reading checkpoints of runs."""

from pathlib import Path
from typing import Any

import torch

from vitgraft.errors import CheckpointError

__all__ = ["read_hyper_parameters"]


def read_hyper_parameters(path: str | Path) -> tuple[str, dict[str, Any]]:
    """Class path of the task and the options that rebuild it, without its start weights, which the checkpoint holds.

    Raises:
        CheckpointError: Not a checkpoint of a vitgraft run.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise CheckpointError(f"{path}: not a readable checkpoint: {error}") from error
    if not isinstance(checkpoint, dict) or "task" not in checkpoint:
        raise CheckpointError(f"{path}: no checkpoint of a vitgraft run: it names no task")
    options = {**checkpoint["hyper_parameters"], "pretrained": False, "checkpoint_path": None}
    return checkpoint["task"], options
