"""Everything that can be wrong with a COCO set is found, named, and counted as an error or a warning."""

import json
import re

import pytest
from datasets_on_disk import annotation, coco_values, write_set
from PIL import Image

from vitgraft.cli import main
from vitgraft.data.check import check, open_checks
from vitgraft.data.coco import open_coco
from vitgraft.data.findings import Options


@pytest.fixture
def root(tmp_path):
    return write_set(tmp_path / "set", coco_values())


def checked(root, values=None):
    if values is not None:
        (root / "annotations/instances_train.json").write_text(json.dumps(values))
    checks, findings = open_checks([str(root)], Options("coco"))
    report = check(checks)
    return {finding.kind: finding for finding in [*findings, *report.findings]}, report


def test_a_good_set(root):
    found, report = checked(root)
    assert set(found) == {"no objects"} and report.ok
    assert found["no objects"].items == ["empty.png"]
    assert report.sets[0].per_class == {"nut": 2, "bolt": 1} and report.sets[0].images == 3
    assert report.sets[0].counted == "objects"


BOX = [1, 1, 5, 5]
SQUARE = [[2, 3, 12, 3, 12, 23, 2, 23]]


@pytest.mark.parametrize(
    ("kind", "level", "entry", "words"),
    [
        ("unknown image", "error", annotation(50, 5, 3, [1, 1, 5, 5], SQUARE), "image 5"),
        ("unknown category", "error", annotation(50, 10, 8, [2, 3, 10, 20], SQUARE), "category 8"),
        ("box not finite", "error", annotation(50, 10, 3, [1, float("nan"), 5, 5], SQUARE, area=1), "nan"),
        ("box without area", "error", annotation(50, 10, 3, [1, 1, 0, 5], SQUARE), "annotation 50"),
        ("box outside", "error", annotation(50, 10, 3, [61, 1, 5, 5], SQUARE), "in 60 x 40"),
        ("box over the border", "warning", annotation(50, 10, 3, [55, 1, 9, 5], [[55, 1, 64, 1, 64, 6]]), "60 x 40"),
        ("small box", "warning", annotation(50, 10, 3, [5, 1, 0.5, 5], [[5, 1, 5.5, 1, 5.5, 6]]), "0.5"),
        ("segmentation", "error", annotation(50, 10, 3, [1, 1, 5, 5], [[1, 1, 6, 6]]), "polygon of 2 points"),
        ("segmentation", "error", annotation(50, 10, 3, [1, 1, 5, 5], [[1, 1, 6, 6, 2]]), "5 numbers"),
        ("segmentation", "error", annotation(50, 10, 3, [1, 1, 5, 5], [[1, 1, 6, 6, 2, float("inf")]]), "infinity"),
        (
            "segmentation",
            "error",
            annotation(50, 10, 3, [1, 1, 5, 5], {"size": [9, 9], "counts": "a"}),
            r"has \(40, 60",
        ),
        (
            "segmentation",
            "error",
            annotation(50, 10, 3, [1, 1, 5, 5], {"size": [40, 60], "counts": [7]}),
            "of 7 pixels",
        ),
        ("segmentation", "error", annotation(50, 10, 3, BOX, {"size": [40, 60], "counts": [2400]}), "without"),
        ("no segmentation", "error", annotation(50, 10, 3, [1, 1, 5, 5], []), "none"),
        ("box and mask", "warning", annotation(50, 10, 3, [30, 3, 10, 20], SQUARE), "around the mask"),
        ("ids", "error", annotation(5, 10, 3, [2, 3, 10, 20], SQUARE), "annotations id 5: 2 times"),
        (
            "keys",
            "error",
            {"id": 50, "image_id": 10, "bbox": [1, 1, 2]},
            r"annotations\[4\] lacks category_id and has bbox \[1, 1, 2\]",
        ),
    ],
)
def test_every_kind_of_annotation(root, kind, level, entry, words):
    values = coco_values()
    found, report = checked(root, {**values, "annotations": [*values["annotations"], entry]})
    assert set(found) == {kind, "no objects"}  # nothing else is blamed
    assert found[kind].level == level and re.search(words, found[kind].items[0]), found[kind].items
    assert report.ok == (level == "warning") or kind == "keys"


WRONG_KINDS = [
    ({"id": [5]}, r"annotations\[4\] has id \[5\] "),
    ({"image_id": [0]}, r"has image_id \[0\] .*integer"),
    ({"category_id": {"a": 1}}, r"has category_id \{.a.: 1\} .*integer"),
    ({"area": "large"}, "has area .large. .*number"),
    ({"area": -1}, "has area -1 .*greater than or equal to 0"),
    ({"iscrowd": "no"}, "has iscrowd .no. "),
    ({"bbox": {"x": 1}}, "has bbox .*list"),
    ({"area": [2], "iscrowd": 7}, "has iscrowd 7.* and has area \\[2\\]"),
]


@pytest.mark.parametrize(("change", "words"), WRONG_KINDS, ids=[" ".join(change) for change, _ in WRONG_KINDS])
def test_values_of_a_wrong_kind_are_named_here_and_left_out_in_training(root, change, words):
    values = coco_values()
    values["annotations"].append({**annotation(50, 10, 3, BOX, SQUARE), **change})
    found, _ = checked(root, values)
    assert set(found) == {"keys", "no objects"} and re.search(words, found["keys"].items[0]), found["keys"].items
    source = open_coco(root, "train")
    assert "annotations that training leaves out: 1 with values of a wrong kind" in source.warning()
    assert len(source.objects(0).annotations) == 2


def test_null_is_absent_and_ids_of_annotations_may_be_text(root):
    values = coco_values()
    values["annotations"].append({**annotation("a1", 10, 3, BOX, SQUARE), "area": None, "iscrowd": None})
    found, _ = checked(root, values)
    assert set(found) == {"no objects", "box and mask"}
    source = open_coco(root, "train")
    assert source.warning() == "" and len(source.objects(0).annotations) == 3
    assert "area" not in source.objects(0).annotations[2]  # the box's area is taken


def test_images(root):
    values = coco_values()
    values["images"] += [{"id": 4, "file_name": "gone.png", "height": 5, "width": 5}, {"id": 8, "file_name": "x.png"}]
    Image.new("RGB", (9, 9)).save(root / "train/a.png")
    (root / "train/b.jpg").write_bytes(b"text")
    found, report = checked(root, values)
    assert found["missing"].items[0].endswith("gone.png: No such file or directory")
    assert "9 x 9, the json has 60 x 40" in found["size"].items[0] and "b.jpg" in found["unreadable"].items[0]
    assert found["ids"].items == ["images id 4: 2 times"] and found["keys"].items == ["images[4] lacks height, width"]
    assert not report.ok


def test_what_is_no_json(root):
    (root / "annotations/instances_train.json").write_text("{")
    assert "not a readable json" in checked(root)[0]["json"].message
    assert "lacks annotations" in checked(root, {"images": [], "categories": []})[0]["json"].message
    assert "no images in it" in checked(root, {"images": [], "categories": [], "annotations": []})[0]["json"].message


def test_two_splits_are_compared(root):
    values = coco_values()
    values["categories"] = [{"id": 3, "name": "nut"}, {"id": 7, "name": "screw"}]
    write_set(root, values, "val")  # the same pixels
    found, report = checked(root)
    assert "7: bolt / screw" in found["classes"].message
    assert "3 images are in" in found["duplicate"].message and not report.ok


def test_command_finds_out_what_it_is(root, tmp_path, capsys):
    assert main(["check-data", str(root), "--workers", "2"]) == 0
    assert "instances_train.json: 3 images, 2 classes" in capsys.readouterr().out
    assert main(["check-data", str(root / "annotations/instances_train.json"), "--strict"]) == 1
    assert "1 images have no object" in capsys.readouterr().out
    (root / "train/a.png").unlink()
    output = tmp_path / "check.json"
    assert main(["check-data", str(root), "--data-format", "coco", "--output", str(output)]) == 1
    values = json.loads(output.read_text())
    assert not values["ok"] and "missing" in {one["kind"] for one in values["findings"]}
