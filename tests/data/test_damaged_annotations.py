"""Annotations that can't be used are left out, counted, and never end a run: in training and in evaluation."""

import json
import re

import pytest
from datasets_on_disk import coco_values, disc, write_set

from vitgraft.data.check import open_checks
from vitgraft.data.coco import open_coco
from vitgraft.data.detection import DetectionData
from vitgraft.data.detection_targets import check_segmentation, encode_mask, to_rle
from vitgraft.data.findings import Options
from vitgraft.errors import DataError
from vitgraft.metrics.detection import DetectionMetrics

SIZE = (40, 60)
SEGMENTATIONS = {
    "text": {"size": list(SIZE), "counts": "@@@~~~garbage"},
    "sum": {"size": list(SIZE), "counts": [10, 5, 3]},
    "no counts": {"size": list(SIZE)},
    "size": encode_mask(disc(10, 10, 5, 5, 3)),
    "not nested": [2, 3, 12, 3, 12, 23],
    "words": [["a", "b", "c", "d", "e", "f"]],
    "outside": [[100, 100, 120, 100, 120, 130]],
    "nothing": [],
}


@pytest.mark.parametrize("kind", SEGMENTATIONS)
def test_a_mask_that_cannot_be_used_is_left_out(kind, tmp_path, capsys):
    assert to_rle(SEGMENTATIONS[kind], SIZE) is None
    if kind not in ("outside", "nothing"):
        assert check_segmentation(SEGMENTATIONS[kind], SIZE)
    values = coco_values()
    values["annotations"][1]["segmentation"] = SEGMENTATIONS[kind]
    write_set(tmp_path, values, "train")
    write_set(tmp_path, values, "val")
    data = DetectionData(str(tmp_path), min_side=1, short_side=40, hflip=0, batch_size=1, workers=0)
    samples = data.samples("train", True)
    (first,) = [s for s in (samples[i] for i in range(len(samples))) if len(s[1]["boxes"]) and s[0].shape[2] == 60]
    assert first[1]["labels"].tolist() == [2] and len(first[1]["masks"]) == 1  # the other object of the image
    metric = DetectionMetrics(data.class_names, masks=True)
    for batch in data.val_dataloader():
        metric.update([_truth(target) for target in batch.targets], batch.targets)
    numbers = metric.report().numbers()
    assert numbers["box_ap"] == 1.0  # the object still has its box
    assert numbers["num_objects"] == 3


def _truth(target):
    """The boxes of an image's objects as detections, without masks that could be right."""
    import torch

    objects = [one for one in target["objects"].annotations if not one["iscrowd"]]
    boxes = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in (one["bbox"] for one in objects)]).float()
    labels = torch.tensor([1 + sorted([7, 3]).index(one["category_id"]) for one in objects]).long()
    height, width = target["orig_size"]
    masks = torch.zeros(len(objects), height, width, dtype=torch.bool)
    return {"boxes": boxes.reshape(-1, 4), "labels": labels, "scores": torch.ones(len(objects)), "masks": masks}


def test_an_object_beside_its_image_is_none_to_learn(tmp_path):
    values = coco_values()
    values["annotations"][2]["bbox"] = [48, 5, 10, 10]  # the only one of its image, 48 wide
    source = open_coco(write_set(tmp_path, values), "train")
    assert source.to_learn(8).tolist() == [0] and "1 without a usable box" in source.warning()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("id", "a10", r"images\[0\] has id \"a10\" .*valid integer"),
        ("file_name", None, r"has file_name null .*valid string"),
        ("height", 0, r"has height 0 .*greater than 0"),
    ],
)
def test_entries_of_a_wrong_kind(name, value, words, tmp_path):
    values = coco_values()
    root = write_set(tmp_path, values)
    values["images"][0] = {**values["images"][0], name: value}
    (root / "annotations" / "instances_train.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match=words):
        open_coco(root, "train")
    _, findings = open_checks([str(root)], Options())
    assert any(re.search(words, item) for finding in findings for item in finding.items)


@pytest.mark.parametrize("box", [[1, 2, 3], None, ["a", 1, 2, 3], [1, 2, float("nan"), 4], "box"])
def test_a_box_that_is_none_is_left_out_and_counted(box, tmp_path):
    values = coco_values()
    values["annotations"][1]["bbox"] = box
    source = open_coco(write_set(tmp_path, values), "train")
    nan = isinstance(box, list) and len(box) == 4 and box[0] == 1
    why = "1 without a usable box or mask" if nan else "1 with values of a wrong kind"
    assert why in source.warning()
    assert len(source.load(0)[1].annotations) == 1


def test_empty_segmentations_are_a_set_of_boxes(tmp_path):
    values = coco_values()
    for one in values["annotations"]:
        one["segmentation"] = []
    write_set(tmp_path, values, "train")
    data = DetectionData(str(tmp_path), val="train", min_side=1, workers=0, batch_size=1)
    assert not data.has_masks and len(data.samples("train", True)) == 2
