"""Memory of training a detector: `python -m vitgraft.report.detection_memory BACKBONE [BACKBONE ...]`.

Each backbone trains a COCO Mask R-CNN for a few steps (AdamW, generated images with 20 objects each) in a process of
its own, one after the other on the same machine. On a GPU the number is the most that PyTorch had allocated; on a CPU
the most memory that the process occupied, less what it occupied before the detector was made.
"""

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from vitgraft.report.detection import CLASSES, IMAGE_SIZE
from vitgraft.report.spec import ModelSpec

__all__ = ["compare", "measure"]

OBJECTS = 20
PLAIN = "graft_swin_tiny_patch4_window7_224:graft.blocks=[]"
GRAFTED = "graft_swin_tiny_patch4_window7_224"


def measure(backbone: str, size: Sequence[int], batch: int, steps: int, device: str, bf16: bool) -> int:
    """Bytes at the peak of a few training steps in this process, which should have done nothing else before.

    Args:
        backbone: A model as `vitgraft tables` and `vitgraft bench` write it: NAME or NAME:option=value.
        size: Height and width of the images.
        batch: Images of a step.
        steps: At least 2: the optimizer's own memory comes with the first.
        device: "cpu" or "cuda".
        bf16: Train under bfloat16 autocast.
    """
    from vitgraft.models.mask_rcnn import MaskRCNN
    from vitgraft.tasks._models import build_backbone

    spec = ModelSpec.parse(backbone)
    torch.manual_seed(0)
    height, width = size
    images = [torch.randn(3, height, width, device=device) for _ in range(batch)]
    corner = torch.rand(OBJECTS, 2) * torch.tensor([width, height]) * 0.7
    boxes = torch.cat([corner, corner + 8 + torch.rand(OBJECTS, 2) * torch.tensor([width, height]) * 0.25], 1)
    masks = torch.zeros(OBJECTS, height, width, dtype=torch.uint8)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = 1
    target = {"boxes": boxes, "labels": torch.randint(1, CLASSES + 1, (OBJECTS,)), "masks": masks}
    target = {name: value.to(device) for name, value in target.items()}

    before = _occupied()
    model = MaskRCNN(build_backbone(spec.name, spec.options), CLASSES).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-5)
    for _ in range(steps):
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            loss = sum(model(images, [target] * batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def _occupied() -> int:
    """Bytes of memory that this process has now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def compare(backbones: Sequence[str], size: Sequence[int], batch: int, steps: int, device: str, bf16: bool) -> dict:
    """Measures each backbone in a process of its own; the record that `results/` keeps, ratios to the first."""
    found = {}
    for backbone in backbones:
        options = [f"--size={size[0]}x{size[1]}", f"--batch={batch}", f"--steps={steps}", f"--device={device}"]
        words = [sys.executable, "-m", __spec__.name, backbone, "--alone", *options, *(["--bf16"] if bf16 else [])]
        found[backbone] = int(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])
    first = next(iter(found.values()))
    return {
        "kind": "detection_memory",
        "size": list(size),
        "batch": batch,
        "precision": "bf16" if bf16 else "fp32",
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "bytes": found,
        "ratio": {backbone: round(value / first, 4) for backbone, value in found.items()},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; prints one line for each backbone."""
    parser = argparse.ArgumentParser(prog="python -m vitgraft.report.detection_memory", description=__doc__)
    parser.add_argument("backbones", nargs="*", default=[PLAIN, GRAFTED], help="default: Swin-T, and Swin-T + GrafT")
    parser.add_argument("--size", default="x".join(map(str, IMAGE_SIZE)), help="height x width of the images")
    parser.add_argument("--batch", type=int, default=1, help="images of a step")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--bf16", action="store_true", help="train under bfloat16 autocast")
    parser.add_argument("--output", type=Path, help="JSON file for the record")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    size = tuple(int(side) for side in args.size.split("x"))
    if args.alone:
        print(measure(args.backbones[0], size, args.batch, args.steps, args.device, args.bf16))
        return 0
    record = compare(args.backbones, size, args.batch, args.steps, args.device, args.bf16)
    for backbone, value in record["bytes"].items():
        print(f"{value / 2**30:7.3f} GiB  {record['ratio'][backbone]:.3f}  {backbone}")
    if args.output:
        args.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
