"""Label maps: layouts, pairs, meaning of values, what is refused, what a histogram finds, and CamVid as it is."""

import re

import numpy as np
import pytest
from conftest import shared
from datasets_on_disk import SIZE, blocks, image_bytes, label_bytes, write_pairs, write_tar
from PIL import Image

from vitgraft.data.check import open_checks
from vitgraft.data.check_semantic import PairCheck
from vitgraft.data.findings import Options
from vitgraft.data.label_maps import LabelHistogram, LabelRule, decode_labels, find_pairs, read_class_names
from vitgraft.data.learnable import look
from vitgraft.data.readers.folder_or_tar import Files
from vitgraft.errors import DataError, ImageError

RULE = LabelRule(3, reduce_zero_label=True)
NAMES = ("cat", "dog", "eel")


def test_ade20k_layout_in_a_folder_a_tar_and_one_folder_down(tmp_path):
    root = write_pairs(tmp_path / "set")
    packed = write_tar(tmp_path / "set.tar", root)
    deeper = write_tar(tmp_path / "deeper.tar", root, prefix="ADEChallengeData2016/")
    for place in (root, packed, deeper, tmp_path):
        source = find_pairs(place, "training").source(RULE, NAMES)
        assert len(source) == 3 and len(find_pairs(place, "validation").source(RULE, NAMES)) == 2
        image, labels = source.load(1)
        assert image.size == SIZE and labels.dtype == np.uint8
        assert np.array_equal(labels, np.where(blocks(1, (0, 1, 2, 3)) == 0, 255, blocks(1, (0, 1, 2, 3)) - 1))
        assert read_class_names(Files(place)) == list(NAMES)
    assert source.name(1).endswith("set/images/training/1.jpg")


def test_folder_pairs_with_suffixes_and_subfolders(tmp_path):
    (tmp_path / "left" / "ulm").mkdir(parents=True)
    (tmp_path / "fine" / "ulm").mkdir(parents=True)
    (tmp_path / "left" / "ulm" / "1_left.png").write_bytes(image_bytes(0, SIZE, "PNG"))
    (tmp_path / "fine" / "ulm" / "1_ids.png").write_bytes(label_bytes(blocks(0)))
    (tmp_path / "fine" / "ulm" / "1_color.png").write_bytes(image_bytes(0, SIZE, "PNG"))
    for root, split in ((tmp_path, ["left", "fine"]), (None, [str(tmp_path / "left"), str(tmp_path / "fine")])):
        source = find_pairs(root, split, "_left", "_ids").source(RULE, NAMES)
        assert len(source) == 1 and set(np.unique(source.load(0)[1])) == {0, 1, 2}
    packed = write_tar(tmp_path / "city.tar", tmp_path / "left", prefix="left/")
    with pytest.raises(DataError, match=r"1 of 1 images have no label file.*1_left\.png \(looked for .*1_ids\.png\)"):
        find_pairs(packed, ["left", "fine"], "_left", "_ids").source(RULE, NAMES)


def test_missing_partners_are_counted_and_named(tmp_path):
    root = write_pairs(tmp_path)
    (root / "annotations" / "training" / "1.png").rename(root / "annotations" / "training" / "one.png")
    with pytest.raises(DataError) as caught:
        find_pairs(root, "training").source(RULE, NAMES)
    text = str(caught.value)
    assert "1 of 3 images have no label file" in text and "images/training/1.jpg" in text
    assert "1 label file has no image" in text and "one.png" in text
    with pytest.raises(DataError, match="there is training, validation"):
        find_pairs(root, "test").source(RULE, NAMES)


def test_what_a_pair_must_not_be(tmp_path):
    root = write_pairs(tmp_path, {"training": 5})
    labels = root / "annotations" / "training"
    (labels / "0.png").write_bytes(label_bytes(blocks(0, size=(20, 32))))
    (labels / "1.png").write_bytes(label_bytes(blocks(0, (1, 9))))
    (labels / "2.png").write_bytes(label_bytes(blocks(0))[:-30])
    (root / "images" / "training" / "3.jpg").write_bytes(b"")
    (labels / "4.png").write_bytes(image_bytes(0, SIZE, "PNG"))
    source = find_pairs(root, "training").source(RULE, NAMES)
    with pytest.raises(DataError, match=r"0\.png: labels of 20 x 32 pixels for an image of 40 x 32"):
        source.load(0)
    with pytest.raises(DataError, match=r"1\.png: label value 9"):
        source.load(1)
    for index in (2, 3):
        with pytest.raises(ImageError):
            source.load(index)
    with pytest.raises(DataError, match="in RGB"):
        source.load(4)


def test_class_names_of_ade20k(tmp_path):
    lines = ["Idx\tRatio\tTrain\tVal\tStuff\tName", "1\t0.1\t11\t1\t1\twall", "2\t0.1\t11\t1\t1\tbuilding, edifice"]
    (tmp_path / "objectInfo150.txt").write_text("\n".join(lines))
    assert read_class_names(Files(tmp_path)) == ["wall", "building, edifice"]
    (tmp_path / "classes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="no text in UTF-8"):
        read_class_names(Files(tmp_path))


def test_camvid_as_it_is():
    root = shared("data", "camvid", "camvid.tar")
    files = Files(root)
    names = read_class_names(files)
    rule = LabelRule(len(names), reduce_zero_label=True)
    train = find_pairs(files, "training").source(rule, names)
    val = find_pairs(files, "validation").source(rule, names)
    assert (len(train), len(val), len(names), names[0]) == (367, 101, 11, "sky")
    image, labels = train.load(0)
    assert image.size == (480, 360) and labels.shape == (360, 480)
    check = PairCheck(find_pairs(files, "validation"), names, Options())
    check.rule = rule
    look(check, len(val), None)
    histogram = check.histogram
    assert not list(histogram.findings("camvid"))
    shares = histogram.classes() / histogram.pixels.total()
    # validation column of the data's README, per cent
    published = [9.18, 25.96, 0.56, 28.95, 8.72, 16.34, 0.89, 3.08, 1.75, 0.65, 2.22]
    assert np.allclose(100 * shares, published, atol=0.006)
    check.rule = LabelRule(len(names))
    error = next(check.histogram.findings("camvid"))
    assert "reduce_zero_label=true with ignore_index=255 would fit" in error.message


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("labeled", ["stored", "upright"])
def test_images_turned_by_exif(tmp_path, orientation, labeled):
    """The size of the labels tells how they see the image; where both sizes are theirs, upright."""
    root = write_pairs(tmp_path, {"training": 1})
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(root / "images" / "training" / "0.png", exif=exif)
    (root / "images" / "training" / "0.jpg").unlink()
    upright = np.rot90(np.asarray(picture), 2 if orientation == 3 else -1)
    size = SIZE if labeled == "stored" else upright.shape[1::-1]
    (root / "annotations" / "training" / "0.png").write_bytes(label_bytes(blocks(0, size=size)))
    image, labels = find_pairs(root, "training").source(RULE, NAMES).load(0)
    stored = labeled == "stored" and orientation == 6
    assert np.array_equal(np.asarray(image), np.asarray(picture) if stored else upright)
    assert labels.shape == (image.height, image.width)
    (check,), _ = open_checks([str(root)], Options())
    assert not check[0].errors


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
    with pytest.raises(DataError, match=r"c\.png: a label file in RGB, .* convert each color"):
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
        (LabelRule(3), ([[255]], [[0, 1, 2]]), "ignored", "1 label file has ignored pixels only; the first: 0.png"),
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
