"""What a segmenter costs: parameters and MAC of table 4, and how they grow with the image.

The table's FLOPs are those of mmsegmentation's counter on a 512 x 2048 image: backbone and UperNet's head. The
auxiliary head runs in training only and has no MAC; its 0.9 M parameters are in the Swin authors' 60 M. The paper's
59 M of Swin-T is without it (59.0, with it 59.9), its 66 M of Swin-T + GrafT with it (65.6, without it 64.7).

`python -m reproduction.segmentation` prints the growth from 256 to 2048 pixels a side, with time and memory beside
it where asked for.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vitgraft.machine import peak_bytes, record, timed
from vitgraft.models.feature_pyramid import pyramid
from vitgraft.models.upernet import UperNet
from vitgraft.terminal import console, print_table, write_json
from vitgraft.tools.count import count_parts
from vitgraft.weights.create import build_model

__all__ = ["IMAGE_SIZE", "SIDES", "build", "cost", "growth", "measure"]

IMAGE_SIZE = (512, 2048)
"""Height and width at which table 4 counts."""
CLASSES = 150
"""Of ADE20K."""
SIDES = (256, 384, 512, 768, 1024, 1536, 2048)


def build(
    backbone: str,
    graft: Mapping[str, Any] | None = None,
    num_classes: int = CLASSES,
    device: str | torch.device = "meta",
    **options: Any,
) -> UperNet:
    """UperNet on a named backbone; without tensors, which is enough to count, unless another device is given.

    Args:
        backbone: timm's name.
        graft: Options of its graft, as in a recipe; `{"blocks": []}` makes a registered name without grafts.
        num_classes: Of the heads.
        device: Where its tensors are made.
        **options: Of `UperNet`.
    """
    return UperNet(pyramid(build_model(backbone, 0, None, graft, device=str(device))), num_classes, **options)


def cost(model: UperNet, size: Sequence[int] = IMAGE_SIZE) -> dict[str, dict[str, int]]:
    """Parameters and MAC of a segmenter and its parts.

    Args:
        model: Its tensors may be on the meta device; it is not run.
        size: Height and width of the image.

    Returns:
        "total", "backbone", "head", "auxiliary" -> {"params": ..., "macs": ...}; the last only where there is one, and
        without MAC: it does not run outside training.
    """
    parts = {"total": "", "backbone": "backbone", "head": "decode_head", "auxiliary": "auxiliary_head"}
    return count_parts(model, (3, *size), parts)


def growth(model: UperNet, sides: Sequence[int] = SIDES) -> list[dict[str, float]]:
    """MAC of square images of these sides.

    Returns:
        A row per side: "side", "macs", "macs_per_pixel", and "off_linear": MAC per pixel divided by those of the
        largest side, minus 1; 0 everywhere would be strictly linear.
    """
    rows = [{"side": side, "macs": cost(model, (side, side))["total"]["macs"]} for side in sides]
    for row in rows:
        row["macs_per_pixel"] = row["macs"] / row["side"] ** 2
    last = max(rows, key=lambda row: row["side"])["macs_per_pixel"]
    return [{**row, "off_linear": row["macs_per_pixel"] / last - 1} for row in rows]


@torch.inference_mode()
def measure(model: UperNet, side: int, repeats: int = 3) -> dict[str, float]:
    """Time and memory of one square image.

    Args:
        model: On the device that is measured.
        side: Of the image, pixels.
        repeats: The fastest counts; a first run that is not counted comes before.

    Returns:
        "seconds", and "peak_bytes": most memory beyond model and image.
    """
    model.eval()
    device = next(model.parameters()).device
    image = torch.randn(1, 3, side, side, device=device)
    model(image)
    seconds = min(timed(lambda: model(image), 1, device) for _ in range(repeats))
    return {"seconds": seconds, "peak_bytes": peak_bytes(lambda: model(image), device)}


def _texts(row: dict[str, float]) -> list[str]:
    texts = [f"{row['side']}", f"{row['macs'] / 1e9:.1f}", f"{row['macs_per_pixel'] / 1e3:.1f}"]
    texts.append(f"{row['off_linear']:+.1%}")
    if "seconds" not in row:
        return [*texts, *["-"] * 4]
    pixels = row["side"] ** 2
    texts += [f"{row['seconds']:.3f}", f"{row['seconds'] / pixels * 1e6:.2f}"]
    return [*texts, f"{row['peak_bytes'] / 2**20:.0f}", f"{row['peak_bytes'] / pixels:.0f}"]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; prints a row for each size."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduction.segmentation", description="MAC of UperNet by the size of the image."
    )
    parser.add_argument("--backbone", default="graft_swin_tiny_patch4_window7_224", help="default: %(default)s")
    parser.add_argument("--graft", type=json.loads, metavar="JSON", help="options of its graft")
    parser.add_argument("--num-classes", type=int, default=CLASSES, help="default: %(default)s")
    parser.add_argument("--sides", type=int, nargs="+", default=SIDES, metavar="PIXELS", help="default: 256 to 2048")
    parser.add_argument("--measure", type=int, nargs="*", metavar="PIXELS", help="time and memory of these sides, too")
    parser.add_argument("--device", default="cpu", help="where that is measured; default: %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the numbers there too")
    args = parser.parse_args(argv)
    rows = growth(build(args.backbone, args.graft, args.num_classes), args.sides)
    if args.measure:
        model = build(args.backbone, args.graft, args.num_classes, args.device)
        for row in rows:
            if row["side"] in args.measure:
                row.update(measure(model, row["side"], args.repeats))
    print(f"UperNet on {args.backbone}, {args.num_classes} classes, one image")
    headings = ["side", "GMAC", "kMAC/pixel", "off linear", "seconds", "us/pixel", "MiB", "B/px"]
    print_table(console(), headings, map(_texts, rows), left=())
    if args.output:
        options = {"backbone": args.backbone, "graft": args.graft, "num_classes": args.num_classes}
        write_json(args.output, record("mac_growth", args.device, **options, rows=rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
