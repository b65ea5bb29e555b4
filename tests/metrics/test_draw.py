"""Drawings: colors that differ, what is drawn where, and a legend with every class of the image."""

import numpy as np
import pytest
from PIL import Image

from vitgraft.metrics.draw import IGNORED, draw_classes, draw_detections, overlay, palette, resized


def test_colors_differ_and_do_not_depend_on_the_number_of_classes():
    colors = palette(150).astype(int)
    distances = np.abs(colors[:, None] - colors[None]).sum(-1) + 1000 * np.eye(150, dtype=int)
    assert distances.min() > 12 and distances[:11, :11].min() > 80
    assert np.array_equal(palette(11), palette(150)[:11])
    assert np.abs(colors - IGNORED).sum(1).min() > 20
    assert len(palette(300)) == 300


def test_what_is_drawn_where():
    image = Image.new("RGB", (40, 20), (100, 100, 100))
    classes = np.zeros((20, 40), np.uint8)
    classes[:, 20:] = 1
    classes[10:, 20:] = 255
    drawn = np.asarray(overlay(image, classes, palette(2), alpha=0.6)).astype(float)
    expected = 100 * 0.4 + 0.6 * palette(2).astype(float)
    assert np.abs(drawn[5, 5] - expected[0]).max() < 1.5 and np.abs(drawn[5, 30] - expected[1]).max() < 1.5
    assert (drawn[15, 30] == 100).all()  # ignored: the image as it is
    assert (drawn[5, 19] < 0.5 * drawn[5, 5]).all()  # the line between two classes
    smaller = np.asarray(overlay(image, classes[::2, ::2], palette(2), alpha=0.6)).astype(float)
    assert np.abs(smaller[5, 30] - expected[1]).max() < 1.5
    assert overlay(image, np.full((20, 40), 255), palette(2)) == image


def has_color(image: Image.Image, color) -> bool:
    return bool((np.asarray(image) == np.asarray(color)).all(-1).any())


@pytest.mark.parametrize("size", [(64, 64), (480, 360), (3000, 40)])
def test_legends_name_the_classes_that_are_there(size):
    width, height = size
    classes = np.zeros((height, width), np.uint8)
    classes[: height // 2] = 2
    classes[0, 0] = 255
    image = Image.new("RGB", size, "black")
    shown = resized(image)
    drawn = draw_classes(image, classes, ["a", "b", "c", "d"], "title")
    legend = drawn.crop((shown.width, 0, drawn.width, drawn.height))
    colors = palette(4)
    assert has_color(legend, colors[0]) and has_color(legend, colors[2]) and has_color(legend, IGNORED)
    assert not has_color(legend, colors[1]) and not has_color(legend, colors[3])
    assert drawn.height >= shown.height and max(shown.size) <= 1600


def test_many_classes_are_summed_up_and_unusual_names_drawn():
    classes = np.arange(150, dtype=np.uint8).repeat(20).reshape(50, 60)
    names = [f"a long name of class {number}, with synonyms and 道路" for number in range(150)]
    image = Image.new("RGB", (60, 50))
    drawn = draw_classes(image, classes, names)
    legend = drawn.crop((resized(image).width, 0, drawn.width, drawn.height))
    assert has_color(legend, palette(150)[23]) and not has_color(legend, palette(150)[24])


def test_detections():
    image = Image.new("RGB", (100, 80), "black")
    masks = np.zeros((2, 80, 100), dtype=bool)
    masks[0, 20:60, 10:40] = True
    masks[1, 40:60, 10:40] = True  # below the first one, which has a higher score
    boxes = np.array([[10, 20, 40, 60], [60, 20, 90, 60]], dtype=np.float32)
    names = ["nut", "bolt"]
    drawn = draw_detections(image, boxes, [1, 2], names, [0.9, 0.8], masks)
    assert drawn.width > 600 and drawn.height == 480  # enlarged, with a legend
    pixels = np.asarray(drawn).astype(int)
    assert np.abs(pixels[6 * 50, 6 * 25] - 0.45 * palette(24)[0]).max() < 2  # inside the masks
    assert pixels[6 * 50, 6 * 75].sum() == 0  # a box without a mask is empty
    assert pixels[6 * 40, 6 * 60 : 6 * 60 + 3].sum() > 100  # its frame
    assert has_color(drawn.crop((360, 120, 540, 160)), palette(24)[1])  # the background of its name
    assert pixels[:, 605:].max() == 255 and (pixels[:, 605:] < 100).any()  # letters on white
    empty = np.asarray(draw_detections(image, np.zeros((0, 4)), [], ["nut"], []))
    assert empty[:, :600].max() == 0 and (empty[:, 605:] < 100).any()
    many = np.tile([[0, 0, 5, 5]], (1000, 1))
    assert draw_detections(image, many, [1] * 1000, ["nut"], [0.5] * 1000).size[1] == 480


def test_names_with_line_breaks_and_control_characters():
    """As names of folders may have them; Pillow refuses to draw either."""
    image, names = Image.new("RGB", (40, 40)), ["a\nb", "\x1b[31mc"]
    drawn = draw_classes(image, np.tile([0, 1], (40, 20)), names, "x\ny")
    boxes = draw_detections(image, np.array([[2, 2, 20, 20]] * 2), [1, 2], names, [0.9, 0.8], title="x\ny")
    assert drawn.width > 480 and boxes.width > 480
