"""Overlays of segmentations: classes as colours on the image, with a legend that a person can read."""

import colorsys
import functools
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

__all__ = [
    "colour_map",
    "draw_side_by_side",
    "enlarged",
    "label_font",
    "overlay",
    "palette",
    "shortened",
    "with_legend",
]

OPACITY = 0.6
SHORTEST_SIDE = 320  # pictures are enlarged to this, or the legend would be larger than the picture
LONGEST_SIDE = 1600  # and shrunk to this
MOST_NAMED = 24  # classes in a legend; the others are summed up in one line
LONGEST_NAME = 26
IGNORED = (160, 160, 160)
FIRST = 2 * 72 + 36 + 21  # of the candidates: a quiet blue, as class 0 often is the background, wall or sky


@functools.lru_cache(maxsize=4)
def palette(num_classes: int) -> np.ndarray:
    """A colour for each class, uint8 (C, 3): each as far as can be from those before it, so the first ones differ most.

    Class k has the same colour whatever the number of classes.
    """
    candidates = [
        colorsys.hls_to_rgb(hue / 36, light, saturation)
        for light in (0.5, 0.35, 0.65, 0.8)
        for saturation in (0.85, 0.5)
        for hue in range(36)
    ]
    colours = np.array(candidates) * 255
    perceived = _perceived(colours)
    chosen = [FIRST]
    distances = np.linalg.norm(perceived - perceived[FIRST], axis=1)
    while len(chosen) < min(num_classes, len(colours)):
        chosen.append(int(distances.argmax()))
        distances = np.minimum(distances, np.linalg.norm(perceived - perceived[chosen[-1]], axis=1))
    places = [chosen[number % len(chosen)] for number in range(num_classes)]
    return colours[places].round().astype(np.uint8)


def _perceived(colours: np.ndarray) -> np.ndarray:
    """RGB (N, 3) of 0 to 255 in Oklab (Ottosson 2020), where equal distances look about equally different."""
    linear = np.where(colours <= 10.31475, colours / 3294.6, ((colours / 255 + 0.055) / 1.055) ** 2.4)
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


def colour_map(classes: np.ndarray, num_classes: int) -> np.ndarray:
    """A class for each pixel, (H, W), as colours, uint8 (H, W, 3); what is no class is grey."""
    colours = np.tile(np.array(IGNORED, dtype=np.uint8), (256, 1))
    colours[:num_classes] = palette(num_classes)
    values = np.where((classes >= 0) & (classes < num_classes), classes, 255).astype(np.uint8)
    return colours[values]


def overlay(image: Image.Image, classes: np.ndarray, num_classes: int, opacity: float = OPACITY) -> Image.Image:
    """The image with the colour of its class on each pixel, and a dark line where two classes meet.

    Args:
        image: RGB, of any size.
        classes: (H, W), of any size: stretched over the image without mixing classes.
        num_classes: C; other values (255) are left as they are in the image.
        opacity: of the colours.
    """
    if classes.shape != (image.height, image.width):
        classes = np.asarray(Image.fromarray(classes.astype(np.uint8)).resize(image.size, Image.Resampling.NEAREST))
    pixels = np.asarray(image, dtype=np.float32)
    colours = colour_map(classes, num_classes)
    labelled = ((classes >= 0) & (classes < num_classes))[..., None]
    mixed = np.where(labelled, pixels * (1 - opacity) + colours * opacity, pixels)
    mixed[_borders(classes)] *= 0.35
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))


def _borders(classes: np.ndarray) -> np.ndarray:
    """bool (H, W): the pixels that differ from the one to their right or below."""
    borders = np.zeros(classes.shape, dtype=bool)
    borders[:, :-1] |= classes[:, :-1] != classes[:, 1:]
    borders[:-1] |= classes[:-1] != classes[1:]
    return borders


def with_legend(picture: Image.Image, classes: np.ndarray, class_names: Sequence[str], title: str = "") -> Image.Image:
    """A picture with a column beside it: colour, name and share of the area of each class in it, the largest first.

    Args:
        picture: what the classes were drawn on.
        classes: (H, W), that the areas are counted in.
        class_names: of classes 0 to C - 1.
        title: a line above.
    """
    counts = np.bincount(classes.reshape(-1), minlength=256)
    total = max(1, classes.size)
    shown = [int(number) for number in np.argsort(-counts[: len(class_names)], kind="stable") if counts[number]]
    colours = palette(len(class_names))
    rows = [(tuple(colours[i].tolist()), shortened(class_names[i]), counts[i] / total) for i in shown[:MOST_NAMED]]
    if len(shown) > MOST_NAMED:
        rest = int(counts[shown[MOST_NAMED:]].sum())
        rows.append((None, f"{len(shown) - MOST_NAMED} more classes", rest / total))
    if rest := int(counts[len(class_names) :].sum()):
        rows.append((IGNORED, "ignored", rest / total))
    return _beside([picture], rows, [title] if title else [])


def draw_side_by_side(
    image: Image.Image, labels: np.ndarray, predicted: np.ndarray, class_names: Sequence[str]
) -> Image.Image:
    """Image, labels and prediction beside each other, with one legend: the share of each class in both.

    Args:
        image: RGB.
        labels: (H, W), 255 where there is none.
        predicted: (H, W).
        class_names: of classes 0 to C - 1.
    """
    classes = len(class_names)
    found = [np.bincount(values.reshape(-1), minlength=256)[:classes] for values in (labels, predicted)]
    order = [int(i) for i in np.argsort(-(found[0] + found[1]), kind="stable") if found[0][i] + found[1][i]]
    colours = palette(classes)
    shares = [counts / max(1, values.size) for counts, values in zip(found, (labels, predicted), strict=True)]
    rows = [
        (tuple(colours[i].tolist()), shortened(class_names[i]), (shares[0][i], shares[1][i]))
        for i in order[:MOST_NAMED]
    ]
    image = enlarged(image)  # before the lines between the classes are drawn: they stay thin
    pictures = [image, overlay(image, labels, classes), overlay(image, predicted, classes)]
    return _beside(pictures, rows, ["image", "labels", "prediction", "share of labels / prediction"])


def _beside(pictures: list[Image.Image], rows: list, titles: list[str]) -> Image.Image:
    """Pictures in a row, each with its title, and a legend of (colour, name, share or shares) at the right.

    A title more than pictures is the legend's.
    """
    pictures = [enlarged(picture) for picture in pictures]
    height = pictures[0].height
    # a legend of all rows must fit beside the picture, in letters that can be read
    size = int(np.clip(height / 24, 14, 28))
    font, line = label_font(size), int(size * 1.5)
    texts = [(name, " / ".join(_percent(share) for share in np.atleast_1d(shares))) for _, name, shares in rows]
    name_width = int(max([font.getlength(name) for name, _ in texts], default=0))
    share_width = int(max([font.getlength(share) for _, share in texts], default=0))
    margin, swatch = size, int(size * 1.1)
    legend_width = 3 * margin + swatch + name_width + share_width
    if len(titles) > len(pictures):
        legend_width = max(legend_width, int(font.getlength(titles[-1])) + 2 * margin)
    top = line + margin // 2 if titles else 0
    gap = margin // 2 if len(pictures) > 1 else 0
    width = sum(picture.width + gap for picture in pictures) - gap + legend_width
    sheet = Image.new("RGB", (width, max(top + height, len(rows) * line + margin + top)), "white")
    draw = ImageDraw.Draw(sheet)
    left = 0
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (left, top))
        if number < len(titles):
            draw.text((left + 4, top // 2), _fitting(titles[number], font, picture.width), "black", font, anchor="lm")
        left += picture.width + gap
    left += margin - gap
    if len(titles) > len(pictures):
        draw.text((width - margin // 2, top // 2), titles[-1], "black", font, anchor="rm")
    for number, ((colour, _, _), (name, share)) in enumerate(zip(rows, texts, strict=True)):
        middle = top + margin // 2 + number * line + line // 2
        if colour is not None:
            # the colour itself, not the one mixed with the image: a line round it, as light ones lie on white
            box = (left, middle - swatch // 2, left + swatch, middle + swatch // 2)
            draw.rectangle(box, fill=colour, outline="black")
        draw.text((left + swatch + margin // 2, middle), name, "black", font, anchor="lm")
        draw.text((width - margin // 2, middle), share, "black", font, anchor="rm")
    return sheet


def enlarged(picture: Image.Image) -> Image.Image:
    """A picture of a size to look at: small ones enlarged, very large ones shrunk."""
    factor = max(1, SHORTEST_SIDE / picture.height)
    factor = min(factor, LONGEST_SIDE / max(picture.size)) if max(picture.size) * factor > LONGEST_SIDE else factor
    if factor == 1:
        return picture
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.resize(size, Image.Resampling.NEAREST if factor >= 2 else Image.Resampling.BICUBIC)


@functools.lru_cache(maxsize=4)
def label_font(size: int) -> "ImageFont.FreeTypeFont | ImageFont.ImageFont":
    """DejaVu Sans where matplotlib brings it, as it has most alphabets; otherwise Pillow's own."""
    try:
        from matplotlib import get_data_path

        return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)
    except (ImportError, OSError):
        return ImageFont.load_default(size)


def shortened(name: str) -> str:
    """ADE20K's names list synonyms: the first of them, cut where it is still too long."""
    name = name.split(",")[0].strip() or name
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def _fitting(text: str, font, width: int) -> str:
    while len(text) > 4 and font.getlength(text) > width - 8:
        text = "…" + text[2:]
    return text


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.0005 or share == 0 else "<0.1 %"
