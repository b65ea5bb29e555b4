"""Label files: which values mean what, what is refused, and what the histogram of a set tells."""

import re

import numpy as np
import pytest
from datasets_on_disk import blocks, image_bytes, label_bytes
from PIL import Image

from vitgraft.data.label_maps import LabelHistogram, LabelRule, decode_labels
from vitgraft.errors import DataError, ImageError


def test_rules_map_values_to_classes():
    values = np.array([[0, 1, 2, 255]])
    assert LabelRule(3).apply(values, "a").tolist() == [[0, 1, 2, 255]]
    assert LabelRule(2, reduce_zero_label=True).apply(values, "a").tolist() == [[255, 0, 1, 255]]
    assert LabelRule(2, ignore_index=2).apply(values[:, :3], "a").tolist() == [[0, 1, 255]]
    wide = LabelRule(3, ignore_index=65535).apply(np.array([[0, 65535]]), "a")
    assert wide.tolist() == [[0, 255]] and wide.dtype == np.uint8


def test_a_wrong_value_names_file_value_and_what_is_meant():
    with pytest.raises(DataError, match=r"b\.png: label value 7 \(2 pixels\); 0 to 2 are the 3 classes, 255 is ignore"):
        LabelRule(3).apply(np.array([[0, 7, 7]]), "b.png")
    with pytest.raises(DataError, match=r"label value 255 \(1 pixels\)"):
        LabelRule(3, ignore_index=None).apply(np.array([[0, 255]]), "b.png")


@pytest.mark.parametrize(
    "options, words",
    [
        ({"num_classes": 256}, "1 to 255"),
        ({"num_classes": 0}, "1 to 255"),
        ({"num_classes": 3, "ignore_index": 2}, "is the value of a class"),
        ({"num_classes": 3, "ignore_index": 3, "reduce_zero_label": True}, "is the value of a class"),
    ],
)
def test_rules_that_can_not_be(options, words):
    with pytest.raises(ValueError, match=words):
        LabelRule(**options)


def test_kinds_of_label_files():
    values = blocks(0)
    palette = Image.fromarray(values, "L")
    for data in (
        label_bytes(values),
        label_bytes(values.astype(np.uint16)),
        label_bytes(values, "TIFF"),
        label_bytes(values, "BMP"),
    ):
        assert np.array_equal(decode_labels(data, "a"), values)
    palette.putpalette([value for color in range(256) for value in (color, 255 - color, 7)])
    assert np.array_equal(decode_labels(label_bytes(palette), "a"), values)
    assert decode_labels(label_bytes(values > 1, mode="1"), "a").max() == 1


def test_label_files_that_are_refused():
    with pytest.raises(DataError, match=r"c\.png: a label file in RGB, .* convert each colour"):
        decode_labels(image_bytes(1, format="PNG"), "c.png")
    with pytest.raises(DataError, match="channels are all the same: save one"):
        decode_labels(label_bytes(blocks(0), mode="RGB"), "c.png")
    with pytest.raises(DataError, match="in JPEG, whose compression changes the values"):
        decode_labels(label_bytes(blocks(0), "JPEG"), "c.jpg")
    for broken in (b"", b"no image at all", label_bytes(blocks(0, size=(400, 300)))[:-40]):
        with pytest.raises(ImageError):
            decode_labels(broken, "c.png")


@pytest.mark.parametrize(
    ("rule", "maps", "kind", "words"),
    [
        (
            LabelRule(3),
            ([[0, 1]], [[0, 1, 2, 3]]),
            "values",
            r"0: 33.3 %.*=true with ignore_index=255 would fit.*1\.png: 3",
        ),
        (LabelRule(3, True), ([[1, 5]],), "values", "there would have to be 5 classes"),
        (LabelRule(3), ([[255]], [[255]]), "ignored", "not one pixel of a class in 2 label files"),
        (LabelRule(3), ([[255]], [[0, 1, 2]]), "ignored", "1 label files have ignored pixels only; the first: 0.png"),
        (LabelRule(3, True), ([[0, 1, 2]],), "numbering", "if 0 is a class, reduce_zero_label must be false"),
    ],
)
def test_what_a_histogram_finds(rule, maps, kind, words):
    """With value, file and repair; ignored pixels only are an error for a set and a warning for a file."""
    histogram = LabelHistogram(rule)
    for number, values in enumerate(maps):
        histogram.add(*np.unique(values, return_counts=True), f"{number}.png")
    finding = next(histogram.findings("set"))
    assert finding.kind == kind and re.search(words, finding.line())
    assert finding.level == ("error" if kind == "values" or "not one" in words else "warning")


def test_a_histogram_of_a_good_set_finds_nothing():
    histogram = LabelHistogram(LabelRule(3, reduce_zero_label=True))
    histogram.add(np.arange(4), np.ones(4, int), "0.png")
    assert not list(histogram.findings("set"))
