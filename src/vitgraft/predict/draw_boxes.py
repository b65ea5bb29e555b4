"""Detections drawn on their image: masks, boxes, names and scores that a person can read."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from vitgraft.predict.draw_masks import label_font, palette, shortened

__all__ = ["draw_detections", "enlarged"]

SHORTEST_SIDE = 640  # pictures are enlarged to this, or the names would be larger than the objects
LONGEST_SIDE = 1600  # and shrunk to this
OPACITY = 0.45
COLOURS = 24  # detections beyond these take the colours from the first one on again
MOST_NAMED = 60  # of the surest detections; the others are drawn without their names
Rectangle = tuple[float, float, float, float]


def enlarged(picture: Image.Image) -> Image.Image:
    """A picture of a size to look at: small ones enlarged, very large ones shrunk."""
    factor = min(max(1.0, SHORTEST_SIDE / min(picture.size)), LONGEST_SIDE / max(picture.size))
    if factor == 1:
        return picture
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.resize(size, Image.Resampling.BICUBIC)


def draw_detections(
    image: Image.Image,
    boxes: np.ndarray,
    labels: Sequence[int],
    class_names: Sequence[str],
    scores: Sequence[float] | None = None,
    masks: np.ndarray | None = None,
    title: str = "",
) -> Image.Image:
    """The image with each detection in a colour of its own, and a line of what there is below.

    Args:
        image: RGB, of any size; the picture is enlarged or shrunk to one to look at.
        boxes: (N, 4), x0, y0, x1, y1 in pixels of the image.
        labels: of each, 1 to C.
        class_names: of the labels 1 to C.
        scores: of each, 0 to 1, falling; None for objects as annotated.
        masks: (N, H, W) of the image's size, or None.
        title: before that line.
    """
    picture = enlarged(image)
    factors = np.array([picture.width / image.width, picture.height / image.height] * 2)
    colours = palette(COLOURS)[np.arange(len(labels)) % COLOURS]
    if masks is not None and len(masks):
        picture = _with_masks(picture, masks, colours)
    draw = ImageDraw.Draw(picture)
    line = max(2, round(min(picture.size) / 400))
    font = label_font(int(np.clip(min(picture.size) / 45, 12, 22)))
    frames = [tuple(float(n) for n in box) for box in np.asarray(boxes, dtype=float).reshape(-1, 4) * factors]
    for frame, colour in zip(frames, colours, strict=True):
        x0, y0, x1, y1 = frame
        draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=tuple(colour.tolist()), width=line)
    taken: list[Rectangle] = []
    alone = len(class_names) == 1  # its name stands in the line below
    for number, (frame, label) in enumerate(zip(frames, labels, strict=True)):
        if number >= MOST_NAMED:
            break
        name = "" if alone and scores is not None else shortened(class_names[label - 1])
        text = " ".join(filter(None, [name, "" if scores is None else f"{100 * scores[number]:.0f} %"]))
        _write(draw, text, frame, tuple(colours[number].tolist()), font, picture.size, taken)
    return _with_line(picture, labels, class_names, title, font)


def _with_masks(picture: Image.Image, masks: np.ndarray, colours: np.ndarray) -> Image.Image:
    """Fills each mask and draws a line along its border; the surest one, which comes first, lies on top."""
    pixels = np.asarray(picture, dtype=np.float32).copy()
    for mask, colour in zip(masks[::-1], colours[::-1], strict=True):
        large = Image.fromarray(mask.astype(np.uint8) * 255).resize(picture.size, Image.Resampling.BILINEAR)
        inside = np.asarray(large) >= 128
        pixels[inside] = pixels[inside] * (1 - OPACITY) + colour * OPACITY
        border = np.zeros_like(inside)
        border[:-1] |= inside[:-1] != inside[1:]
        border[:, :-1] |= inside[:, :-1] != inside[:, 1:]
        pixels[border] = colour
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _write(
    draw, text: str, frame: Rectangle, colour: tuple[int, ...], font, size: tuple[int, int], taken: list
) -> None:
    """Writes a name on its colour, at the place round its box where it covers other names least."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font)
    width, height = right - left + 6, bottom - top + 6
    x0, y0, x1, y1 = frame
    places = [(x0, y0 - height), (x0, y1), (x0, y0), (x1 - width, y0 - height), (x1 - width, y1), (x1, y0)]
    options = []
    for number, (x, y) in enumerate(places):
        x, y = min(max(x, 0), max(0, size[0] - width)), min(max(y, 0), max(0, size[1] - height))
        covered = sum(_overlap((x, y, x + width, y + height), other) for other in taken)
        options.append((covered, number, x, y))
    _, _, x, y = min(options)
    taken.append((x, y, x + width, y + height))
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
    light = sum(share * part for share, part in zip((0.299, 0.587, 0.114), colour, strict=True))
    draw.text((x + 3 - left, y + 3 - top), text, "black" if light > 110 else "white", font)


def _overlap(one: Rectangle, other: Rectangle) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return width * height if width > 0 and height > 0 else 0.0


def _with_line(
    picture: Image.Image, labels: Sequence[int], class_names: Sequence[str], title: str, font
) -> Image.Image:
    """Adds a white strip with the number of each class, cut where it is too long."""
    counts = Counter(labels).most_common()
    parts = [f"{shortened(class_names[label - 1])} ({count})" for label, count in counts] or ["nothing found"]
    start = f"{title}: " if title else ""
    text = start + ", ".join(parts)
    while len(parts) > 1 and font.getlength(text) > picture.width - 12:
        parts.pop()
        text = start + ", ".join([*parts, f"... {len(counts) - len(parts)} more classes"])
    height = int(1.6 * font.size)
    sheet = Image.new("RGB", (picture.width, picture.height + height), "white")
    sheet.paste(picture, (0, 0))
    ImageDraw.Draw(sheet).text((6, picture.height + height // 2), text, "black", font, anchor="lm")
    return sheet
