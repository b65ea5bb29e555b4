"""Overlays: colours that differ, what is drawn where, and a legend with every class of the picture."""

import numpy as np
import pytest
from PIL import Image

from vitgraft.predict.draw_masks import (
    IGNORED,
    OPACITY,
    colour_map,
    draw_side_by_side,
    enlarged,
    overlay,
    palette,
    with_legend,
)


def test_colours_differ_and_do_not_depend_on_the_number_of_classes():
    colours = palette(150).astype(int)
    distances = np.abs(colours[:, None] - colours[None]).sum(-1) + 1000 * np.eye(150, dtype=int)
    assert distances.min() > 12 and distances[:11, :11].min() > 80
    assert np.array_equal(palette(11), palette(150)[:11])
    assert np.abs(colours - IGNORED).sum(1).min() > 20
    assert len(palette(300)) == 300


def test_what_is_drawn_where():
    image = Image.new("RGB", (40, 20), (100, 100, 100))
    classes = np.zeros((20, 40), np.uint8)
    classes[:, 20:] = 1
    classes[10:, 20:] = 255
    drawn = np.asarray(overlay(image, classes, 2)).astype(float)
    expected = 100 * (1 - OPACITY) + OPACITY * palette(2).astype(float)
    assert np.abs(drawn[5, 5] - expected[0]).max() < 1.5 and np.abs(drawn[5, 30] - expected[1]).max() < 1.5
    assert (drawn[15, 30] == 100).all()  # ignored: the image as it is
    assert (drawn[5, 19] < 0.5 * drawn[5, 5]).all()  # the line between two classes
    smaller = np.asarray(overlay(image, classes[::2, ::2], 2)).astype(float)
    assert np.abs(smaller[5, 30] - expected[1]).max() < 1.5
    assert np.array_equal(colour_map(np.array([[0, 1, 255]]), 2)[0], [*palette(2).tolist(), list(IGNORED)])


def has_colour(picture: Image.Image, colour) -> bool:
    return bool((np.abs(np.asarray(picture).astype(int) - np.asarray(colour, dtype=int)).sum(-1) == 0).any())


@pytest.mark.parametrize("size", [(64, 64), (480, 360), (3000, 40)])
def test_legends_name_the_classes_that_are_there(size):
    width, height = size
    classes = np.zeros((height, width), np.uint8)
    classes[: height // 2] = 2
    classes[0, 0] = 255
    image = enlarged(Image.new("RGB", size, "black"))
    sheet = with_legend(overlay(image, classes, 4), classes, ["a", "b", "c", "d"], "title")
    beside = sheet.crop((image.width, 0, sheet.width, sheet.height))
    colours = palette(4)
    assert has_colour(beside, colours[0]) and has_colour(beside, colours[2]) and has_colour(beside, IGNORED)
    assert not has_colour(beside, colours[1]) and not has_colour(beside, colours[3])
    assert sheet.height >= image.height and max(image.size) <= 1600


def test_many_classes_are_summed_up_and_odd_names_drawn():
    classes = np.arange(150, dtype=np.uint8).repeat(20).reshape(50, 60)
    names = [f"a long name of class {number}, with synonyms and 道路" for number in range(150)]
    sheet = with_legend(Image.new("RGB", (60, 50)), classes, names)
    beside = sheet.crop((sheet.width - 300, 0, sheet.width, sheet.height))
    assert has_colour(beside, palette(150)[23]) and not has_colour(beside, palette(150)[24])


def test_image_labels_and_prediction_beside_each_other():
    image = Image.new("RGB", (64, 48), "gray")
    labels = np.zeros((48, 64), np.uint8)
    predicted = labels.copy()
    predicted[:24] = 1
    sheet = draw_side_by_side(image, labels, predicted, ["wall", "floor", "sky"])
    shown = enlarged(image)
    assert sheet.width > 3 * shown.width and sheet.height > shown.height
    right = sheet.crop((2 * shown.width + 20, 40, 3 * shown.width, sheet.height))
    middle = sheet.crop((shown.width + 20, 40, 2 * shown.width, sheet.height))
    # one colour and white below where the legend is longer than the picture
    assert len(set(middle.getdata())) < len(set(right.getdata()))
