"""The systems of the paper's tables, built as they are counted and timed."""

from collections.abc import Iterable

from torch import nn

from reproduction import detection, segmentation
from reproduction.paper import TABLES, PaperTable
from vitgraft.models.spec import ModelSpec, input_size_of
from vitgraft.weights.create import create

__all__ = ["TASKS", "build_system", "systems"]

TASKS = ("classification", "detection", "segmentation")


def systems(numbers: Iterable[str] = TABLES) -> dict[str, list[str]]:
    """The models of these tables and what they are compared with, by task, each once, in printed order."""
    found: dict[str, list[str]] = {}
    for number in numbers:
        table = TABLES[number]
        if isinstance(table, PaperTable):
            specs = found.setdefault(table.task, [])
            specs += [str(spec) for row in table.rows for spec in (table.base_of(row), row.spec)]
    return {task: list(dict.fromkeys(found[task])) for task in TASKS if task in found}


def build_system(task: str, spec: ModelSpec, device: str) -> tuple[nn.Module, tuple[int, int, int]]:
    """A row's model as it is counted and timed, and the (channels, height, width) of its images.

    Args:
        task: Of `TASKS`; the model is the backbone of a Mask R-CNN or of UperNet in the last two.
        spec: The model.
        device: Where its tensors are made; "meta" makes none.

    Raises:
        ModelSpecError, GraftError: Unknown name, or an impossible option.
    """
    if task == "classification":
        try:
            model = create(spec, device)
        except (NotImplementedError, RuntimeError):  # a constructor that reads values needs real tensors
            model = create(spec)
        return model, input_size_of(model)
    options = {key: value for key, value in spec.options.items() if key != "graft"}
    graft = spec.options.get("graft")
    if task == "detection":
        detector = detection.build(spec.name, graft, options, device)
        return detection.Counted(detector), (3, *detection.IMAGE_SIZE)
    return segmentation.build(spec.name, graft, device=device), (3, *segmentation.IMAGE_SIZE)
