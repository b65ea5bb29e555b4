"""Memory of training a detector: `python -m benchmarks.detection_memory BACKBONE [BACKBONE ...]`.

Each backbone trains a COCO Mask R-CNN for two steps (AdamW, generated images with 20 objects each). Counted are the
weights, gradients, optimizer and all that a step keeps: the most bytes that PyTorch's allocator had handed out at once.
"""

import argparse
import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from reproduction.detection import CLASSES, IMAGE_SIZE
from vitgraft.machine import peak_bytes, record, source_commit
from vitgraft.models.mask_rcnn import MaskRCNN
from vitgraft.models.spec import ModelSpec
from vitgraft.terminal import write_json
from vitgraft.weights.create import build_backbone

__all__ = ["compare", "measure"]

OBJECTS = 20
STEPS = 2  # the optimizer's own memory comes with the first
PLAIN = "graft_swin_tiny_patch4_window7_224:graft.blocks=[]"
GRAFTED = "graft_swin_tiny_patch4_window7_224"


def measure(
    backbone: str, size: Sequence[int], batch: int, device: str = "cpu", bf16: bool = False, **detector: Any
) -> int:
    """Bytes at the peak of two training steps, the detector itself included.

    Args:
        backbone: A model as `vitgraft bench` takes it: NAME or NAME:option=value.
        size: Height and width of the images.
        batch: Images of a step.
        device: "cpu" or "cuda".
        bf16: Train under bfloat16 autocast.
        **detector: Options of `MaskRCNN`.
    """
    spec = ModelSpec.parse(backbone)

    def train() -> None:
        torch.manual_seed(0)
        images, target = _generate(size, batch, device)
        model = MaskRCNN(build_backbone(spec.name, spec.options), CLASSES, **detector).to(device).train()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-5)
        for _ in range(STEPS):
            with torch.autocast(device, torch.bfloat16, enabled=bf16):
                loss = sum(model(images, [target] * batch).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    gc.collect()
    return peak_bytes(train, torch.device(device))


def _generate(size: Sequence[int], batch: int, device: str) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """Images of noise, and boxes of all sizes with masks that fill them."""
    height, width = size
    images = [torch.randn(3, height, width, device=device) for _ in range(batch)]
    whole = torch.tensor([width, height])
    corner = torch.rand(OBJECTS, 2) * whole * 0.7
    boxes = torch.cat([corner, corner + 8 + torch.rand(OBJECTS, 2) * whole * 0.25], 1)
    masks = torch.zeros(OBJECTS, height, width, dtype=torch.uint8)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = 1
    target = {"boxes": boxes, "labels": torch.randint(1, CLASSES + 1, (OBJECTS,)), "masks": masks}
    return images, {name: value.to(device) for name, value in target.items()}


def compare(
    backbones: Sequence[str],
    size: Sequence[int],
    batch: int,
    device: str = "cpu",
    bf16: bool = False,
    **detector: Any,
) -> dict[str, Any]:
    """Measures backbones one after the other; the record that `results/` keeps, ratios to the first."""
    found = {backbone: measure(backbone, size, batch, device, bf16, **detector) for backbone in backbones}
    first = next(iter(found.values()))
    return record(
        "detection_memory",
        device,
        size=list(size),
        batch=batch,
        precision="bf16 autocast" if bf16 else "fp32",
        peak_memory_bytes=found,
        ratio={backbone: round(value / first, 4) for backbone, value in found.items()},
        commit=source_commit(),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; prints one line for each backbone."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.detection_memory", description=__doc__)
    parser.add_argument("backbones", nargs="*", default=[PLAIN, GRAFTED], help="default: Swin-T, and Swin-T + GrafT")
    parser.add_argument("--size", default="x".join(map(str, IMAGE_SIZE)), help="height x width of the images")
    parser.add_argument("--batch", type=int, default=1, help="images of a step")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--bf16", action="store_true", help="train under bfloat16 autocast")
    parser.add_argument("--output", type=Path, help="JSON file for the record")
    args = parser.parse_args(argv)
    size = tuple(int(side) for side in args.size.split("x"))
    found = compare(args.backbones, size, args.batch, args.device, args.bf16)
    for backbone, value in found["peak_memory_bytes"].items():
        print(f"{value / 2**30:7.3f} GiB  {found['ratio'][backbone]:.3f}  {backbone}")
    if args.output:
        write_json(args.output, found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
