"""Training and `check-data` recognize a dataset by the same rules, and say what else is there."""

import pytest
from datasets_on_disk import coco_values, write_folder, write_pairs, write_set, write_tar

from vitgraft.data.check import open_checks
from vitgraft.data.classification import ImageData
from vitgraft.data.detection import DetectionData
from vitgraft.data.findings import SPLITS_NEEDED, Options
from vitgraft.data.layout import layouts_of
from vitgraft.data.segmentation import SegmentationData
from vitgraft.errors import DataError


@pytest.fixture
def roots(tmp_path):
    both = write_pairs(write_set(tmp_path / "both", coco_values()))
    return {
        "coco": write_set(tmp_path / "coco", coco_values()),
        "semantic": write_pairs(tmp_path / "semantic"),
        "images": write_folder(tmp_path / "images" / "train", {"cat": 2, "dog": 2}).parent,
        "both": both,
    }


def test_layouts(roots, tmp_path):
    found = {name: list(layouts_of(root)) for name, root in roots.items()}
    assert found == {"coco": ["coco"], "semantic": ["semantic"], "images": [], "both": ["coco", "semantic"]}
    for name, root in roots.items():
        assert list(layouts_of(write_tar(tmp_path / f"{name}.tar", root))) == found[name]
    assert layouts_of(tmp_path / "nowhere") == {}
    (tmp_path / "other" / "annotations").mkdir(parents=True)
    (tmp_path / "other" / "annotations" / "instances.json").write_text("{}")
    assert layouts_of(tmp_path / "other") == {}


def test_data_of_another_layout_is_named_with_the_class_that_reads_it(roots):
    detection = {"root": str(roots["semantic"]), "min_side": 1}
    for data, words in (
        (ImageData(str(roots["coco"])), "annotations/instances_train.json: COCO's .*DetectionData.*format=folder"),
        (ImageData(str(roots["semantic"])), "images and annotations: ADE20K's .*SegmentationData"),
        (DetectionData(**detection), "no annotations of 'train'.*: ADE20K's .*SegmentationData"),
        (DetectionData(str(roots["images"])), "there is no json file.*ImageData"),
        (SegmentationData(str(roots["coco"]), reduce_zero_label=True, num_classes=3), "instances_train.*DetectionData"),
        (SegmentationData(str(roots["images"]), reduce_zero_label=True, num_classes=3), "no images in .*ImageData"),
    ):
        with pytest.raises(DataError, match=words):
            data.source("train")
    assert len(ImageData(str(roots["images"])).source("train")) == 4
    (roots["coco"] / "train" / "cat").mkdir()
    (roots["coco"] / "train" / "a.png").rename(roots["coco"] / "train" / "cat" / "a.png")
    assert len(ImageData(str(roots["coco"]), format="folder").source("train")) == 1


def test_each_module_takes_its_own_of_two_layouts_and_check_data_says_which(roots):
    assert len(DetectionData(str(roots["both"])).source("train")) == 3
    assert len(SegmentationData(str(roots["both"]), reduce_zero_label=True).source("train")) == 3
    checks, (warning, splits) = open_checks([str(roots["both"])], Options())
    assert type(checks[0]).__name__ == "CocoCheck" and splits.kind == SPLITS_NEEDED
    assert (warning.level, warning.kind) == ("warning", "layout") and "passed over: semantic" in warning.message
    _, findings = open_checks([str(roots["coco"]), str(roots["semantic"])], Options())
    assert ("error", "layout", str(roots["semantic"])) in [(one.level, one.kind, one.where) for one in findings]
