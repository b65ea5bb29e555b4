"""ONNX files with a batch of any size, compared with the model they were made from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from vitgraft.errors import MissingExtraError

TOLERANCE = 1e-4
"""Largest difference of an output between PyTorch and onnxruntime that passes; of the largest output where that is
below 1, since the small logits of random weights would agree in anything."""


@dataclass(frozen=True)
class OnnxExport:
    """What was written, and by batch size how far onnxruntime's outputs are from PyTorch's (see `TOLERANCE`)."""

    path: Path
    opset: int
    size_bytes: int
    differences: dict[int, float]

    @property
    def ok(self) -> bool:
        """Whether every difference is within `TOLERANCE`."""
        return all(difference <= TOLERANCE for difference in self.differences.values())


def export_onnx(model: nn.Module, path: str | Path, input_size: Sequence[int], opset: int | None = None) -> OnnxExport:
    """Writes `model` as ONNX with a dynamic batch and runs the file in onnxruntime.

    Args:
        model: Any model of one image tensor with one output tensor; exported in eval mode, and left in its own.
        path: File to write; weights go into the same file.
        input_size: (channels, height, width), fixed in the file.
        opset: ONNX operator set; None takes PyTorch's default.

    Returns:
        The differences for batches of 1, 2 and 5; the caller decides what to do when they are too large.

    Raises:
        MissingExtraError: Onnx, onnxscript or onnxruntime is missing.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  what torch.onnx writes with
    except ImportError as error:
        raise MissingExtraError(error.name or "onnx", "export") from error
    path = Path(path)
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        # a batch of 2, since torch.export takes a size of 1 for a constant
        images = torch.randn(2, *input_size, device=device)
        with torch.no_grad():
            program = torch.onnx.export(
                model,
                (images,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=["images"],
                output_names=["output"],
                opset_version=opset,
                verbose=False,
            )
        program.save(str(path), external_data=False)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        differences = {}
        for batch in (1, 2, 5):
            images = torch.randn(batch, *input_size, device=device)
            with torch.no_grad():
                expected = model(images).float().cpu()
            (output,) = session.run(None, {"images": images.cpu().numpy()})
            difference = (torch.from_numpy(output) - expected).abs().max().item()
            differences[batch] = difference / min(1.0, expected.abs().max().item())
    finally:
        model.train(was_training)
    versions = {entry.domain: entry.version for entry in onnx.load(str(path), load_external_data=False).opset_import}
    return OnnxExport(path, versions.get("", 0), path.stat().st_size, differences)
