"""Draws images, labels and predictions with their legend beside each other, for the documentation.

python -m reproduction.draw_segmentation RUN ROOT docs/pictures/camvid.jpg --split validation --images 5 40 80

ROOT is a dataset in ADE20K's layout; without it ("-") the scenes of digits are drawn.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from vitgraft.data.digits import DigitScenePixels
from vitgraft.data.label_maps import LabelRule, find_pairs
from vitgraft.metrics.draw import draw_classes, overlay, palette, resized
from vitgraft.predict.load import open_model


def draw(args: argparse.Namespace) -> None:
    """One row for each image."""
    segmenter = open_model(args.run, args.weights, task="segmentation")
    names = segmenter.class_names
    if args.root == "-":
        source = DigitScenePixels(max(args.images) + 1, split="test", size=args.scene_size)
    else:
        rule = LabelRule(len(names), reduce_zero_label=not args.zero_is_a_class)
        source = find_pairs(args.root, args.split).source(rule, names)
    rows = []
    for index in args.images:
        image, labels = source.load(index)
        (predicted,) = segmenter.predict([image])
        shown = resized(image)
        parts = [shown, overlay(shown, labels, palette(len(names))), draw_classes(image, predicted, names)]
        height = max(part.height for part in parts)  # of a legend that is longer than the image
        rows.append(Image.fromarray(np.hstack([part.crop((0, 0, part.width, height)) for part in parts])))
    canvas = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        canvas.paste(row, (0, top))
        top += row.height
    canvas.save(args.output, optimize=True)
    print(f"{args.output}: {canvas.width} x {canvas.height}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of a run, or its checkpoint")
    parser.add_argument("root", help='folder or tar, or "-"')
    parser.add_argument("output", type=Path)
    parser.add_argument("--split", default="validation")
    parser.add_argument("--images", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--weights", choices=("raw", "ema"))
    parser.add_argument("--zero-is-a-class", action="store_true")
    parser.add_argument("--scene-size", type=int, default=64)
    draw(parser.parse_args())
