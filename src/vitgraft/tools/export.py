"""ONNX files, compared with the model they were made from before they are put in place."""

import contextlib
import io
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitgraft._version import __version__
from vitgraft.errors import ExportError, MissingExtraError
from vitgraft.predict.base import Predictor
from vitgraft.weights.official import short_reason

__all__ = ["TOLERANCE", "OnnxExport", "export_onnx", "metadata_of", "onnx_file"]

TOLERANCE = 1e-4
"""Largest difference of an output between PyTorch and onnxruntime that passes; of the largest output where that is
below 1, since the small logits of random weights would agree in anything."""


def metadata_of(run: Predictor, input_size: Sequence[int] | None) -> dict[str, Any]:
    """What a file's metadata holds of a run.

    Args:
        run: Of `vitgraft.load`.
        input_size: (height, width); None: any.
    """
    preprocessing = asdict(run.preprocessing)
    preprocessing.pop("input_size", None)
    return {
        "task": run.task,
        "class_names": list(run.class_names),
        "input_size": None if input_size is None else list(input_size),
        "mean": list(preprocessing.pop("mean")),
        "std": list(preprocessing.pop("std")),
        "preprocessing": preprocessing,
        "weights": run.weights,
    }


@dataclass(frozen=True)
class OnnxExport:
    """What was exported, and by batch size how far onnxruntime's outputs are from PyTorch's (see `TOLERANCE`).

    The file is at `path` only where all of them are within it.
    """

    path: Path
    opset: int
    size_bytes: int
    differences: dict[int, float]

    @property
    def ok(self) -> bool:
        """Whether every difference is within `TOLERANCE`."""
        return all(difference <= TOLERANCE for difference in self.differences.values())


class OnnxFile:
    """An ONNX file that is not in place yet.

    Attributes:
        session: Of onnxruntime, on the CPU.
        opset: Of the file's standard operators.
        size_bytes: Of the file.
    """

    def __init__(self, path: Path, target: Path):
        import onnx
        import onnxruntime

        self._path, self._target = path, target
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what fails is raised as well
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # of onnxruntime's own classes, which derive from nothing in common
            raise ExportError(
                f"onnxruntime cannot run the exported model ({short_reason(error)}); nothing was written"
            ) from error
        model = onnx.load(str(path), load_external_data=False)
        self.opset = {entry.domain: entry.version for entry in model.opset_import}.get("", 0)
        self.size_bytes = path.stat().st_size

    def run(self, images: Tensor) -> list[Tensor]:
        """All outputs for a batch of images.

        Raises:
            ExportError: An operator fails.
        """
        try:
            return [torch.from_numpy(output) for output in self.session.run(None, {"images": images.cpu().numpy()})]
        except Exception as error:
            raise ExportError(
                f"onnxruntime fails on images {tuple(images.shape)} ({short_reason(error)}); nothing was written"
            ) from error

    def keep(self) -> None:
        """Puts the file in place."""
        os.replace(self._path, self._target)


@contextlib.contextmanager
def onnx_file(
    model: nn.Module,
    path: Path,
    images: Tensor,
    outputs: Sequence[str],
    free: Mapping[int, Any],
    opset: int | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Iterator[OnnxFile]:
    """Exports a model beside `path`, where it is put by `keep`; without that, nothing stays.

    Args:
        model: In evaluation mode: images -> a tensor or tuple of tensors.
        path: Where the file is to be; weights go into the same file.
        images: An example of the input.
        outputs: Their names.
        free: Axis of the images -> its `torch.export.Dim`; all others are fixed.
        opset: ONNX operator set; None takes PyTorch's default.
        metadata: Entries of the file's metadata; what is not text is written as JSON.

    Raises:
        MissingExtraError: Onnx, onnxscript or onnxruntime is missing.
        ExportError: PyTorch cannot export the model, or onnxruntime lacks one of its operators.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401  what torch.onnx writes with
    except ImportError as error:
        raise MissingExtraError(error.name or "onnx", "export") from error
    with _quiet():
        try:
            with torch.no_grad():
                program = torch.onnx.export(
                    model,
                    (images,),
                    dynamo=True,
                    dynamic_shapes=(dict(free),) if free else None,
                    input_names=["images"],
                    output_names=list(outputs),
                    opset_version=opset,
                    verbose=False,
                )
        except Exception as error:  # the exporter raises what it likes
            raise ExportError(
                f"PyTorch cannot export the model to ONNX: {_cause(error)}; nothing was written"
            ) from error
    for name, value in {"vitgraft_version": __version__, **(metadata or {})}.items():
        program.model.metadata_props[name] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as scratch:
        new = Path(scratch) / path.name
        program.save(str(new), external_data=False)
        yield OnnxFile(new, path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings about PyTorch's insides, and the whole graph, which torch.export prints where it fails."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _cause(error: BaseException) -> str:
    """The operator or line that the exporter stumbled on: its own messages begin with advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    reason, lines = short_reason(error), [line.strip() for line in str(error).splitlines() if line.strip()]
    if reason.endswith(":") and len(lines) > 1:  # a heading
        reason += f" {lines[1]}"
    return reason[:300]


def export_onnx(
    model: nn.Module,
    path: str | Path,
    input_size: Sequence[int],
    opset: int | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> OnnxExport:
    """Writes `model` as ONNX with a dynamic batch, where onnxruntime computes the same.

    Args:
        model: Any model of one image tensor with one output tensor; exported in eval mode, and left in its own.
        path: File to write; weights go into the same file.
        input_size: (channels, height, width), fixed in the file.
        opset: ONNX operator set; None takes PyTorch's default.
        metadata: As of `onnx_file`.

    Returns:
        The differences for batches of 1, 2 and 5; where they are too large, nothing is written.

    Raises:
        MissingExtraError: Onnx, onnxscript or onnxruntime is missing.
        ExportError: PyTorch cannot export the model, or onnxruntime cannot run it.
    """
    path = Path(path)
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        # a batch of 2, since torch.export takes a size of 1 for a constant
        images = torch.randn(2, *input_size, device=device)
        free = {0: torch.export.Dim("batch")}
        with onnx_file(model, path, images, ["output"], free, opset, metadata) as file:
            differences = {}
            for batch in (1, 2, 5):
                images = torch.randn(batch, *input_size, device=device)
                with torch.no_grad():
                    expected = model(images).float().cpu()
                (output,) = file.run(images)
                difference = (output - expected).abs().max().item()
                differences[batch] = difference / min(1.0, expected.abs().max().item())
            done = OnnxExport(path, file.opset, file.size_bytes, differences)
            if done.ok:
                file.keep()
    finally:
        model.train(was_training)
    return done
