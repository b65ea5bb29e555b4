"""Boxes in Pascal VOC's and YOLO's layouts, as the largest tools export them: the same objects as in COCO's json, and
each fault named before a run."""

import numpy as np
import pytest
from datasets_on_disk import check_data, write_tar
from exports import (
    BOXES,
    HEIGHT,
    SPLIT_EXPORTS,
    WHOLE_EXPORTS,
    WIDTH,
    cvat_voc,
    found,
    labelimg,
    labelstudio_yolo,
    polygon,
    roboflow_voc,
    roboflow_yolo,
    truth,
    ultralytics,
    voc2007,
    write_image,
)
from PIL import Image

from vitgraft.data.classification import ImageData
from vitgraft.data.detection import DetectionData
from vitgraft.data.layout import layouts_of
from vitgraft.errors import DataError


def opened(root, split="train", **options):
    return DetectionData(str(root), **options).source(split)


@pytest.mark.parametrize("kind", ["folder", "tar", "below"])
@pytest.mark.parametrize("export", SPLIT_EXPORTS)
def test_exports_with_splits(tmp_path, export, kind, capsys):
    root = export(tmp_path / "one" / "set")
    if kind == "tar":
        root = write_tar(tmp_path / "set.tar", root)
    elif kind == "below":  # an archive that was unpacked into a folder of its own
        root = root.parent
    data = DetectionData(str(root))
    assert (found(data.source("train")), found(data.source("val"))) == (truth("train"), truth("val"))
    assert data.class_names == ("bolt", "nut") and not data.has_masks
    assert data.source("train").load(0)[0].size == (WIDTH, HEIGHT)
    code, report, findings = check_data(capsys, root)
    assert code == 0 and {one["images"] for one in report["sets"]} == {4, 2}
    assert {kind for _, kind in findings} <= {"no objects", "unlabeled"}


@pytest.mark.parametrize("export", WHOLE_EXPORTS)
def test_exports_without_splits(tmp_path, export, capsys):
    root = WHOLE_EXPORTS[export](tmp_path / "set")
    with pytest.raises(DataError, match=r"not split|there is"):
        opened(root)
    with pytest.raises(DataError, match=r"data\.val_fraction=0\.1"):
        opened(root, "val")
    data = DetectionData(str(root), val_fraction=0.3)
    parts = [found(data.source(split)) for split in ("train", "val")]
    assert parts[0] | parts[1] == truth("all") and not parts[0].keys() & parts[1].keys() and all(parts)
    assert check_data(capsys, root)[0] == 0


def test_recognition(tmp_path):
    assert list(layouts_of(roboflow_voc(tmp_path / "voc"))) == ["voc"]
    assert list(layouts_of(ultralytics(tmp_path / "yolo"))) == ["yolo"]
    with pytest.raises(DataError, match=r"ImageSets/Main/train\.txt: Pascal VOC's layout, which DetectionData reads"):
        ImageData(str(cvat_voc(tmp_path / "cvat"))).source("train")
    captions = tmp_path / "captions"
    for name in "ab":
        write_image(captions / "train" / f"{name}.jpg")
        (captions / "train" / f"{name}.txt").write_text("a photo of a bolt\n")
    (captions / "other.xml").write_text("<html/>")
    assert layouts_of(captions) == {}


def test_polygons_become_masks(tmp_path):
    source = opened(ultralytics(tmp_path / "set", polygon))
    assert source.has_masks and found(source) == truth("train")
    assert source.objects(0).annotations[0]["segmentation"] == [pytest.approx([4, 6, 24, 6, 24, 26, 4, 26], abs=1e-3)]
    assert source.objects(0).annotations[0]["area"] == pytest.approx(400, abs=0.01)


def test_keypoints_are_passed_over(tmp_path):
    root = ultralytics(tmp_path / "set")
    (root / "data.yaml").write_text((root / "data.yaml").read_text() + "kpt_shape: [2, 3]\n")
    path = root / "labels" / "train" / "b.txt"
    path.write_text(path.read_text() + " 0.5 0.5 2 0.4 0.4 1")
    source = opened(root)
    assert found(source) == truth("train") and "keypoints: their boxes are read alone" in source.findings[0].message


def test_an_image_that_exif_turns_has_the_size_in_which_it_is_shown(tmp_path):
    root = ultralytics(tmp_path / "set")
    exif = Image.Exif()
    exif[0x0112] = 6
    write_image(root / "images" / "train" / "a.jpg", size=(HEIGHT, WIDTH), exif=exif)
    source = opened(root)
    assert found(source) == truth("train") and source.load(0)[0].size == (WIDTH, HEIGHT)


def test_an_image_that_is_no_image_is_named_when_it_is_read(tmp_path, capsys):
    root = ultralytics(tmp_path / "set")
    (root / "images" / "train" / "a.jpg").write_bytes(b"no image")
    assert len(opened(root)) == 4
    code, _, findings = check_data(capsys, root)
    assert code == 1 and findings["error", "unreadable"]["items"][0].startswith(str(root / "images/train/a.jpg"))


def test_lists_of_images_in_a_yaml(tmp_path):
    root = ultralytics(tmp_path / "set")
    for split, names in (("train", "abcf"), ("val", "de")):
        (root / f"{split}.txt").write_text("".join(f"./images/{split}/{name}.jpg\n" for name in names))
    (root / "data.yaml").write_text("train: train.txt\nval: val.txt\nnames: [bolt, nut]\n")
    data = DetectionData(str(root))
    assert (found(data.source("train")), found(data.source("val"))) == (truth("train"), truth("val"))


def test_files_with_other_names_than_their_xml(tmp_path):
    root = labelimg(tmp_path / "set" / "train")
    (root / "a.xml").rename(root / "z.xml")
    assert found(opened(root.parent)) == truth("all")


def test_difficult_objects_are_named(tmp_path):
    root = roboflow_voc(tmp_path / "set")
    path = root / "train" / "a.xml"
    path.write_text(path.read_text().replace("<difficult>0<", "<difficult>1<"))
    source = opened(root)
    assert found(source) == truth("train")
    assert [one.message for one in source.findings if one.kind == "difficult"] == [
        "2 objects are marked difficult: they are learned like others"
    ]


# faults

YOLO_FAULTS = {
    "outside": (
        "0 1.4 0.5 0.2 0.2",
        r"1 line has coordinates outside of 0 to 1.*divide pixels by them.*a.txt line 1",
    ),
    "pixels": ("0 14 20 10 12", "outside of 0 to 1"),
    "nan": ("0 nan 0.5 0.2 0.2", "outside of 0 to 1"),
    "class": ("2 0.5 0.5 0.2 0.2", r"1 line has a class beyond the 2 \(0 to 1\) of data.yaml: name it there"),
    "negative": ("-1 0.5 0.5 0.2 0.2", "a class beyond the 2"),
    "score": ("0 0.5 0.5 0.2 0.2 0.9", "6 numbers, as predictions with a score"),
    "few": ("0 0.5 0.5 0.2", "none of YOLO's, a class and 4 numbers"),
    "odd": ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "none of YOLO's"),
    "words": ("bolt 0.5 0.5 0.2 0.2", "none of YOLO's"),
}


@pytest.mark.parametrize("fault", YOLO_FAULTS)
def test_faults_of_text_files(tmp_path, fault, capsys):
    text, words = YOLO_FAULTS[fault]
    root = ultralytics(tmp_path / "set")
    (root / "labels" / "train" / "a.txt").write_text(text)
    with pytest.raises(DataError, match=words):
        opened(root)
    code, _, findings = check_data(capsys, root)
    kind = {"outside": "fractions", "pixels": "fractions", "nan": "fractions", "class": "class", "negative": "class"}
    assert code == 1 and findings["error", {**kind, "score": "scores"}.get(fault, "numbers")]["items"][0].startswith(
        "labels/train/a.txt line 1"
    )


def test_a_line_twice_is_taken_once(tmp_path):
    root = ultralytics(tmp_path / "set")
    path = root / "labels" / "train" / "b.txt"
    path.write_text(f"{path.read_text()}\n{path.read_text()}\n")
    source = opened(root)
    assert found(source) == truth("train") and "1 line is twice in their file" in source.findings[0].message


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("names:\n  0: bolt\n  1: nut\n", "names: [bolt, nut]\nnc: 3\n", "data.yaml: nc is 3, but names has 2"),
        ("  1: nut", "  4: nut", r"names has the numbers \[0, 4\], not 0 to C - 1"),
        ("names:\n  0: bolt\n  1: nut\n", "names: []\n", "a list of the names"),
    ],
)
def test_faults_of_the_yaml(tmp_path, old, new, words):
    root = ultralytics(tmp_path / "set")
    (root / "data.yaml").write_text((root / "data.yaml").read_text().replace(old, new))
    with pytest.raises(DataError, match=words):
        opened(root)


def test_classes_without_names(tmp_path):
    root = labelstudio_yolo(tmp_path / "set")
    (root / "classes.txt").unlink()
    with pytest.raises(DataError, match=r"put data.yaml \(names: \[cat, dog\]\) or classes.txt"):
        opened(root, val_fraction=0.5)


def test_faults_of_xml(tmp_path, capsys):
    root = roboflow_voc(tmp_path / "set")
    for name, old, new, words in (
        ("a", "<size>", "<no>", "1 XML file has no <size>.*convert IN OUT --to coco.*a.xml"),
        ("b", "<width>64", "<width>0", "1 XML file has no <size>"),
        ("c", "<annotation>", "<annotation", "1 XML file can't be read.*c.xml is no XML"),
        ("a", "<annotation>", "<!DOCTYPE x><annotation>", "has a DOCTYPE"),
        ("a", "<name>bolt</name>", "", "1 object has no name of a class.*a.xml object 1"),
    ):
        path = root / "train" / f"{name}.xml"
        text = path.read_text()
        path.write_text(text.replace(old, new).replace("</size>", "</no>" if new == "<no>" else "</size>"))
        with pytest.raises(DataError, match=words):
            opened(root)
        assert check_data(capsys, root)[0] == 1
        path.write_text(text)
    assert found(opened(root)) == truth("train")


def test_boxes_that_are_impossible_are_left_out_like_those_of_coco(tmp_path):
    root = roboflow_voc(tmp_path / "set")
    path = root / "train" / "a.xml"
    path.write_text(path.read_text().replace("<xmax>24", "<xmax>3").replace("<ymin>8", "<ymin>eight"))
    source = opened(root)
    assert source.left_out == {"box without area": 1, "box not finite": 1}
    assert all(item.startswith("annotation train/a.xml object") for one in source.findings[:2] for item in one.items)


def test_a_class_that_the_list_lacks(tmp_path):
    root = cvat_voc(tmp_path / "set")
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\nbolt:1,1,1::\n")
    with pytest.raises(DataError, match=r"2 objects have no name of a class, or one that the list.*'nut'"):
        opened(root)


def test_several_formats_in_one_folder(tmp_path, capsys):
    root = roboflow_yolo(roboflow_voc(tmp_path / "set"))
    words = r"objects in several formats: Pascal VOC's XML \(train\), YOLO's text files .*Set data.format to one of voc"
    with pytest.raises(DataError, match=words):
        opened(root)
    code, _, findings = check_data(capsys, root)
    assert code == 1 and "several formats" in findings["error", "set"]["message"]
    for name in ("voc", "yolo"):
        assert found(opened(root, format=name)) == truth("train")
        assert check_data(capsys, root, "--data-format", name)[0] == 0
    with pytest.raises(DataError, match="no annotations of 'train'"):
        opened(root, format="coco")


def test_images_that_are_missing_are_counted(tmp_path, capsys):
    root = voc2007(tmp_path / "set")
    (root / "VOCdevkit" / "VOC2007" / "JPEGImages" / "b.jpg").unlink()
    assert len(opened(root).missing) == 1
    code, _, findings = check_data(capsys, root)
    assert code == 1 and "1 of 4 image files are missing" in findings["error", "missing"]["message"]


def test_the_sizes_of_ten_thousand_images_take_seconds(tmp_path):
    """Headers are read, no pixels: a thousand of them well below a second."""
    import time

    from vitgraft.data.image_sizes import sizes_of
    from vitgraft.data.readers.folder_or_tar import Files

    data = write_image(tmp_path / "0.jpg", size=(640, 480)).read_bytes()
    for number in range(1, 500):
        (tmp_path / f"{number}.jpg").write_bytes(data)
    files = Files(tmp_path)
    start = time.perf_counter()
    assert set(sizes_of(files, files.names)) == {(480, 640)}
    assert time.perf_counter() - start < 5
    assert np.sum([len(one) for one in BOXES.values()]) == 8
