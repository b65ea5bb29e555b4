"""`vitgraft convert`: the same objects in COCO's layout, and nothing written where something is wrong."""

import json

import pytest
from exports import SPLIT_EXPORTS, found, labelimg, labelimg_yolo, polygon, roboflow_voc, truth, ultralytics

from vitgraft.data.detection import DetectionData


@pytest.mark.parametrize("export", SPLIT_EXPORTS)
def test_what_is_converted_is_the_same(tmp_path, export, run_command):
    root, out = export(tmp_path / "set"), tmp_path / "out"
    code, text, err = run_command("convert", root, out, "--to", "coco")
    assert code == 0, err
    assert f"{out}/annotations/instances_train.json: 4 images, 5 objects of 2 classes" in text
    data, before = DetectionData(str(out)), DetectionData(str(root))
    for split in ("train", "val"):
        assert found(data.source(split)) == found(before.source(split)) == truth(split)
    assert data.class_names == ("bolt", "nut") and data.category_ids == before.category_ids
    assert run_command("check-data", out)[0] == 0
    assert (out / "train" / "a.jpg").read_bytes() == next(root.rglob("a.jpg")).read_bytes()
    assert all(
        isinstance(one["id"], int)
        for one in json.loads((out / "annotations/instances_val.json").read_text())["annotations"]
    )


def test_polygons_and_a_validation_part(tmp_path, run_command):
    root, out = ultralytics(tmp_path / "set", polygon), tmp_path / "out"
    assert run_command("convert", root, out, "--to", "coco")[0] == 0
    assert DetectionData(str(out)).source("train").has_masks
    whole = labelimg_yolo(tmp_path / "whole")
    code, _, err = run_command("convert", whole, tmp_path / "parts", "--to", "coco", "--val-fraction", 0.3, "--link")
    assert code == 0, err
    data, run = DetectionData(str(tmp_path / "parts")), DetectionData(str(whole), val_fraction=0.3)
    assert [found(data.source(split)) for split in ("train", "val")] == [found(run.source(s)) for s in ("train", "val")]
    linked = next((tmp_path / "parts").rglob("a.jpg"))
    assert linked.samefile(whole / "a.jpg")


def test_sizes_that_xml_lacks_are_those_of_the_images(tmp_path, run_command):
    root = roboflow_voc(tmp_path / "set")
    path = root / "train" / "a.xml"
    path.write_text(path.read_text().replace("<width>64</width>", ""))
    assert run_command("convert", root, tmp_path / "out", "--to", "coco")[0] == 0
    assert found(DetectionData(str(tmp_path / "out")).source("train")) == truth("train")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--val-fraction", 1.5], "--val-fraction 1.5: must be above 0 and below 1"),
        (["--val-fraction", 0.2], "has splits already: train, val"),
        (["--data-format", "yolo"], "nothing of YOLO's text files"),
    ],
)
def test_requests_that_can_not_be(tmp_path, words, message, run_command):
    code, _, err = run_command("convert", roboflow_voc(tmp_path / "set"), tmp_path / "out", "--to", "coco", *words)
    assert code == 2 and message in err and not (tmp_path / "out").exists()


def test_nothing_is_written_where_something_is_wrong(tmp_path, run_command):
    out = tmp_path / "out"
    root = labelimg(tmp_path / "missing")
    (root / "b.jpg").unlink()
    code, _, err = run_command("convert", root, out, "--to", "coco")
    assert code == 2 and "1 of 6 images are missing" in err and not out.exists()
    root = ultralytics(tmp_path / "outside")
    (root / "labels" / "val" / "d.txt").write_text("0 1.5 0.5 0.2 0.2")
    code, _, err = run_command("convert", root, out, "--to", "coco")
    assert code == 2 and "coordinates outside of 0 to 1" in err and not out.exists()
    code, _, err = run_command("convert", tmp_path / "nowhere", out, "--to", "coco")
    assert code == 2 and "no such file or folder" in err
    (out / "annotations").mkdir(parents=True)
    code, _, err = run_command("convert", labelimg(tmp_path / "set"), out, "--to", "coco")
    assert code == 2 and "is there already, and not empty" in err
