"""Predictions drawn on their image: masks, boxes and classes as colors, with names that a person can read."""

import colorsys
import functools
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from vitgraft.terminal import printable, short_name

__all__ = ["draw_classes", "draw_detections", "overlay", "palette", "resized", "side_by_side", "with_legend"]

SHORTEST_SIDE = 480  # images are enlarged to this, or the names would be larger than the objects
LONGEST_SIDE = 1600  # and shrunk to this
MOST_CLASSES = 24  # in a legend; the others are summed up in one line
MOST_NAMED = 60  # detections, by descending score; the others are drawn without their names
INSTANCE_COLORS = 24  # detections beyond these take the colors from the first one on again
LONGEST_NAME = 26
IGNORED = (160, 160, 160)
FIRST = 2 * 72 + 36 + 21  # of the candidates: a quiet blue, as class 0 often is the background, wall or sky


@functools.lru_cache(maxsize=4)
def palette(num_classes: int) -> np.ndarray:
    """A color for each class, uint8 (C, 3): each as far as can be from those before it, so the first ones differ most.

    Class k has the same color whatever the number of classes.
    """
    candidates = [
        colorsys.hls_to_rgb(hue / 36, light, saturation)
        for light in (0.5, 0.35, 0.65, 0.8)
        for saturation in (0.85, 0.5)
        for hue in range(36)
    ]
    colors = np.array(candidates) * 255
    perceived = _perceived(colors)
    chosen = [FIRST]
    distances = np.linalg.norm(perceived - perceived[FIRST], axis=1)
    while len(chosen) < min(num_classes, len(colors)):
        chosen.append(int(distances.argmax()))
        distances = np.minimum(distances, np.linalg.norm(perceived - perceived[chosen[-1]], axis=1))
    return colors[[chosen[number % len(chosen)] for number in range(num_classes)]].round().astype(np.uint8)


def _perceived(colors: np.ndarray) -> np.ndarray:
    """RGB (N, 3) of 0 to 255 in Oklab (Ottosson 2020), where equal distances look about equally different."""
    linear = np.where(colors <= 10.31475, colors / 3294.6, ((colors / 255 + 0.055) / 1.055) ** 2.4)
    to_cones = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    to_lab = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return np.cbrt(linear @ to_cones.T) @ to_lab.T


def resized(image: Image.Image) -> Image.Image:
    """The image at a size to look at: small ones enlarged, very large ones shrunk."""
    factor = min(max(1.0, SHORTEST_SIDE / min(image.size)), LONGEST_SIDE / max(image.size))
    return image if factor == 1 else image.resize([max(1, round(side * factor)) for side in image.size])


def overlay(image: Image.Image, regions: np.ndarray, colors: np.ndarray, alpha: float = 0.6) -> Image.Image:
    """The image with a color on each region, and a dark line where two regions meet.

    Args:
        image: RGB, of any size.
        regions: Whole numbers (H, W), of any size: stretched over the image. Region k has color k; what has no color
            is left as it is.
        colors: uint8 (K, 3).
        alpha: Of the colors.
    """
    regions = np.asarray(Image.fromarray(regions.astype(np.int32)).resize(image.size, Image.Resampling.NEAREST))
    shown = [int(number) for number in np.unique(regions) if 0 <= number < len(colors)]
    if not shown:
        return image
    masks = torch.from_numpy(regions == np.array(shown)[:, None, None])
    drawn = draw_segmentation_masks(pil_to_tensor(image), masks, alpha, [tuple(colors[k].tolist()) for k in shown])
    border = np.zeros(regions.shape, dtype=bool)
    border[:, :-1] |= regions[:, :-1] != regions[:, 1:]
    border[:-1] |= regions[:-1] != regions[1:]
    return to_pil_image(torch.where(torch.from_numpy(border), (drawn * 0.35).to(torch.uint8), drawn))


def draw_classes(image: Image.Image, classes: np.ndarray, class_names: Sequence[str], title: str = "") -> Image.Image:
    """The classes as colors on the image, with a legend: color, name and fraction of the area, by descending area.

    Args:
        image: RGB.
        classes: Whole numbers (H, W); what is no class is left as it is.
        class_names: Of classes 0 to C - 1.
        title: A line above.
    """
    colors = palette(len(class_names))
    pixels = np.bincount(classes.reshape(-1), minlength=len(class_names))
    order = [int(i) for i in np.argsort(-pixels[: len(class_names)], kind="stable") if pixels[i]]
    rows = [
        (tuple(colors[i].tolist()), short_name(class_names[i], LONGEST_NAME), pixels[i]) for i in order[:MOST_CLASSES]
    ]
    if more := order[MOST_CLASSES:]:
        rows.append((None, f"{len(more)} more classes", pixels[more].sum()))
    if ignored := pixels[len(class_names) :].sum():
        rows.append((IGNORED, "no class", ignored))
    texts = [(color, name, _percent(area / classes.size)) for color, name, area in rows]
    return with_legend(overlay(resized(image), classes, colors), texts, title)


def draw_detections(
    image: Image.Image,
    boxes: np.ndarray,
    labels: Sequence[int],
    class_names: Sequence[str],
    scores: Sequence[float] | None,
    masks: np.ndarray | None = None,
    title: str = "",
) -> Image.Image:
    """The image with each detection in a color of its own, and the number of objects of each class beside it.

    Args:
        image: RGB, of any size; enlarged or shrunk to one to look at.
        boxes: (N, 4), x0, y0, x1, y1 in pixels of the image.
        labels: 1 to C, of each.
        class_names: Of the labels 1 to C.
        scores: Of each, 0 to 1, descending; None of objects as they are labeled.
        masks: bool (N, H, W) of the image's size, or None.
        title: A line above.
    """
    drawn = resized(image)
    size = int(np.clip(min(drawn.size) / 40, 12, 22))
    colors = palette(INSTANCE_COLORS)[np.arange(len(labels)) % INSTANCE_COLORS]
    if masks is not None and len(masks):
        drawn = overlay(drawn, _regions(masks, drawn.size), colors, alpha=0.45)
    if len(labels):
        # a single class is named beside the image
        known = [_one_line(short_name(name, LONGEST_NAME)) for name in class_names]
        names = ["" if len(known) == 1 else known[label - 1] for label in labels]
        if scores is not None:
            names = [f"{name} {score:.0%}".strip() for name, score in zip(names, scores, strict=True)]
        texts = [text if number < MOST_NAMED else None for number, text in enumerate(names)]
        scale = [drawn.width / image.width, drawn.height / image.height] * 2
        # in reverse: the highest score lies on top
        pixels = draw_bounding_boxes(
            pil_to_tensor(drawn),
            torch.from_numpy(np.asarray(boxes, dtype=float) * scale).flip(0),
            texts[::-1],
            [tuple(color.tolist()) for color in colors[::-1]],
            width=max(2, round(min(drawn.size) / 400)),
            font=_font_file(),
            font_size=size if _font_file() else None,
            label_colors=["black" if np.dot(color, (0.299, 0.587, 0.114)) > 110 else "white" for color in colors[::-1]],
            fill_labels=True,
        )
        drawn = to_pil_image(pixels)
    counts = Counter(short_name(class_names[label - 1], LONGEST_NAME) for label in labels).most_common()
    rows = [(None, name, str(count)) for name, count in counts[:MOST_CLASSES]]
    if more := counts[MOST_CLASSES:]:
        rows.append((None, f"{len(more)} more classes", str(sum(count for _, count in more))))
    return with_legend(drawn, rows or [(None, "nothing found", "")], title)


def _regions(masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Masks (N, H, W) to the number of the first one at each pixel, -1 without one, at (width, height) `size`."""
    regions = np.full(size[::-1], -1)
    for number in range(len(masks) - 1, -1, -1):
        mask = Image.fromarray(masks[number].astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)
        regions[np.asarray(mask) >= 128] = number
    return regions


def side_by_side(images: Sequence[Image.Image]) -> Image.Image:
    """Images in a row, on white."""
    canvas = Image.new("RGB", (sum(one.width for one in images), max(one.height for one in images)), "white")
    left = 0
    for one in images:
        canvas.paste(one, (left, 0))
        left += one.width
    return canvas


def with_legend(image: Image.Image, rows: Sequence[tuple], title: str) -> Image.Image:
    """The image with its title above, and (color or None, name, text) of each row beside it."""
    title, rows = _one_line(title), [(color, _one_line(name), text) for color, name, text in rows]
    size = int(np.clip(image.height / 24, 14, 28))
    font, line = _font(size), int(size * 1.5)
    swatch = int(size * 1.1) if any(color for color, _, _ in rows) else 0
    top = line + size // 2 if title else 0
    widths = [int(max((font.getlength(row[column]) for row in rows), default=0)) for column in (1, 2)]
    width = image.width + 4 * size + swatch + sum(widths)
    canvas = Image.new("RGB", (width, max(top + image.height, len(rows) * line + size + top)), "white")
    canvas.paste(image, (0, top))
    draw = ImageDraw.Draw(canvas)
    while len(title) > 4 and font.getlength(title) > width - 8:
        title = "…" + title[2:]
    draw.text((4, top // 2), title, "black", font, anchor="lm")
    left = image.width + size
    for number, (color, name, text) in enumerate(rows):
        middle = top + size // 2 + number * line + line // 2
        if color is not None:  # the color itself, not the one mixed with the image
            corners = (left, middle - swatch // 2, left + swatch, middle + swatch // 2)
            draw.rectangle(corners, fill=color, outline="black")
        draw.text((left + swatch + size // 2, middle), name, "black", font, anchor="lm")
        draw.text((width - size // 2, middle), text, "black", font, anchor="rm")
    return canvas


def _one_line(text: str) -> str:
    """Names come from elsewhere, and Pillow draws no control characters."""
    return printable(text).replace("\n", "\\n")


@functools.cache
def _font_file() -> str | None:
    """DejaVu Sans where matplotlib brings it, as it has most alphabets; None: Pillow's own font."""
    try:
        from matplotlib import get_data_path
    except ImportError:
        return None
    return f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf"


def _font(size: int) -> "ImageFont.FreeTypeFont | ImageFont.ImageFont":
    return ImageFont.truetype(file, size) if (file := _font_file()) else ImageFont.load_default(size)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %" if fraction >= 0.0005 else "<0.1 %"
