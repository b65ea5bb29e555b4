"""COCO sets as they are published: what is read, and what is wrong with them, in training and by `check-data`."""

import json
import re
import tarfile

import numpy as np
import pytest
import torch
from conftest import shared
from datasets_on_disk import annotation, coco_values, disc, write_set
from PIL import Image

from vitgraft.cli import main
from vitgraft.data.check import check, open_checks
from vitgraft.data.coco import open_coco, to_learn
from vitgraft.data.detection import DetectionData
from vitgraft.data.detection_targets import REASONS, DigitObjects, encode_mask, to_rle, to_target
from vitgraft.data.findings import SPLITS_NEEDED, Options
from vitgraft.data.readers.base import check_same_classes
from vitgraft.errors import DataError, ImageError
from vitgraft.metrics.detection import DetectionMetrics
from vitgraft.terminal import number_of


@pytest.fixture
def root(tmp_path):
    return write_set(tmp_path / "set", coco_values())


def rewrite(root, values):
    (root / "annotations/instances_train.json").write_text(json.dumps(values))


def checked(root, values=None):
    """The findings of `check-data`, the first of each kind, and its report; that of the missing split is left out."""
    if values is not None:
        rewrite(root, values)
    checks, findings = open_checks([str(root)], Options("coco"))
    report = check(checks)
    found = {finding.kind: finding for finding in [*findings, *report.findings][::-1]}
    assert found.pop(SPLITS_NEEDED, None) is None or not (root / "annotations/instances_val.json").exists()
    return found, report


def test_a_good_set(root):
    found, report = checked(root)
    assert set(found) == {"no objects", "crowd"} and report.ok
    assert found["no objects"].items == ["empty.png"]
    assert report.sets[0].per_class == {"nut": 2, "bolt": 1} and report.sets[0].images == 3
    assert report.sets[0].counted == "objects"


def test_everything_that_coco_has(root):
    source = open_coco(root, "train")
    assert (source.class_names, source.category_ids) == (("nut", "bolt"), (3, 7))  # in the order of the ids
    assert [source.image_id(i) for i in range(len(source))] == [10, 4, 99]
    image, objects = source.load(0)
    assert image.size == (60, 40) and objects.size == (40, 60)
    target = to_target(objects)
    assert target["labels"].tolist() == [2, 1]
    assert target["boxes"].tolist() == [[22, 12, 39, 29], [2, 3, 12, 23]]
    assert (target["masks"][0].numpy() == disc(40, 60, 20, 30, 8)).all()  # compressed code
    polygon = np.zeros((40, 60), dtype=np.uint8)
    polygon[3:23, 2:12] = 1
    assert (target["masks"][1].numpy() == polygon).all()
    gray, objects = source.load(1)
    assert gray.mode == "RGB" and to_target(objects)["labels"].tolist() == [1]  # without the crowd
    assert objects.annotations[1]["iscrowd"] == 1
    empty = to_target(source.load(2)[1])
    assert empty["boxes"].shape == (0, 4) and empty["masks"].shape == (0, 40, 40)
    assert to_learn(source).tolist() == [0, 1]
    assert to_learn(source, keep_empty=True).tolist() == [0, 1, 2]
    assert to_learn(source, min_side=45).tolist() == [1]
    assert source.left_out == {"crowd": 1}


def test_a_tar_is_read_in_place(root, tmp_path):
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        for path in sorted(root.rglob("*")):
            if path.is_file():
                tar.add(path, path.relative_to(root))
    folder, tar = open_coco(root, "train"), open_coco(tmp_path / "set.tar", "train")
    for i in range(3):
        assert folder.load(i)[0].tobytes() == tar.load(i)[0].tobytes()
        assert folder.objects(i).annotations == tar.objects(i).annotations


def test_names_of_the_published_set(root):
    (root / "annotations/instances_train.json").rename(root / "annotations/instances_train2017.json")
    (root / "train").rename(root / "train2017")
    assert len(open_coco(root, "train")) == 3
    (root / "train2017").rename(root / "elsewhere")
    with pytest.raises(DataError, match=r"'a.png', are not in .*name their folder"):
        open_coco(root, "train")
    assert open_coco(root, "train", "elsewhere").load(0)[0].size == (60, 40)
    assert open_coco(root, "annotations/instances_train2017.json", "elsewhere").load(0)[0].size == (60, 40)
    with pytest.raises(DataError, match=r"no annotations of 'val' .*there is annotations/instances_train2017.json"):
        open_coco(root, "val")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v.pop("categories"), "lacks categories"),
        (lambda v: v["images"][1].pop("height"), r"images\[1\] lacks height"),
        (lambda v: v["images"][0].update(id="a10"), r"images\[0\] has id \"a10\" .*valid integer"),
        (lambda v: v["images"][0].update(file_name=None), r"has file_name null .*valid string"),
        (lambda v: v["images"][0].update(height=0), r"has height 0 .*greater than 0"),
        (lambda v: v["annotations"][2].pop("bbox"), r"annotations\[2\] lacks bbox"),
        (lambda v: v["images"].append(dict(v["images"][0])), "images id 10: 2 times"),
        (lambda v: v["categories"].append({"id": 3, "name": "x"}), "categories id 3: 2 times"),
        (lambda v: v["images"].clear(), "no images in it"),
        (lambda v: v["images"].insert(0, 3), r"images\[0\] is no mapping but 3"),
    ],
)
def test_what_cannot_be_used(root, change, words):
    values = coco_values()
    values["categories"] = list(values["categories"])
    change(values)
    rewrite(root, values)
    with pytest.raises(DataError, match=words):
        open_coco(root, "train")
    findings = checked(root)[0].values()
    assert any(re.search(words, text) for finding in findings for text in (finding.message, *finding.items))


BOX = [1, 1, 5, 5]
SQUARE = [[2, 3, 12, 3, 12, 23, 2, 23]]
CODE = {"size": [40, 60]}


@pytest.mark.parametrize(
    ("reason", "entry", "words"),
    [
        ("unknown image", annotation(50, 5, 3, BOX, SQUARE), "image 5"),
        ("unknown category", annotation(50, 10, 8, [2, 3, 10, 20], SQUARE), "category 8"),
        ("box not finite", annotation(50, 10, 3, [1, float("nan"), 5, 5], SQUARE, area=1), "nan"),
        ("box without area", annotation(50, 10, 3, [1, 1, 0, 5], SQUARE), "annotation 50"),
        ("box outside", annotation(50, 10, 3, [61, 1, 5, 5], SQUARE), "in 60 x 40"),
        ("box over the border", annotation(50, 10, 3, [55, 1, 9, 5], [[55, 1, 64, 1, 64, 6]]), "60 x 40"),
        ("small box", annotation(50, 10, 3, [5, 1, 0.5, 5], [[5, 1, 5.5, 1, 5.5, 6]]), "0.5"),
        ("segmentation", annotation(50, 10, 3, BOX, [[1, 1, 6, 6]]), "polygon of 2 points"),
        ("segmentation", annotation(50, 10, 3, BOX, [[1, 1, 6, 6, 2]]), "5 numbers"),
        ("segmentation", annotation(50, 10, 3, BOX, [[1, 1, 6, 6, 2, float("inf")]]), "infinity"),
        ("segmentation", annotation(50, 10, 3, BOX, [["a", "b", "c", "d", "e", "f"]]), "what is no number"),
        ("segmentation", annotation(50, 10, 3, BOX, [1, 1, 6, 1, 6, 6]), "this one has no numbers"),
        ("segmentation", annotation(50, 10, 3, BOX, {"size": [9, 9], "counts": "a"}), r"has \(40, 60"),
        ("segmentation", annotation(50, 10, 3, BOX, {**CODE, "counts": [7]}), "of 7 pixels"),
        ("segmentation", annotation(50, 10, 3, BOX, {**CODE, "counts": [2400]}), "without"),
        ("segmentation", annotation(50, 10, 3, BOX, {**CODE, "counts": "@@@~~~garbage"}), "malformed"),
        ("segmentation", annotation(50, 10, 3, BOX, CODE), "with size and counts"),
        ("polygon", annotation(50, 10, 3, [2, 3, 10, 20], [*SQUARE, [1, 1, 6, 6]]), "polygon of 2 points"),
        ("no segmentation", annotation(50, 10, 3, BOX, []), "none"),
        ("box and mask", annotation(50, 10, 3, [30, 3, 10, 20], SQUARE), "around the mask"),
    ],
)
def test_every_reason(root, reason, entry, words):
    """It is found by `check-data`, and left out or not in training, by the same count."""
    values = coco_values()
    found, report = checked(root, {**values, "annotations": [*values["annotations"], entry]})
    level, left_out, meaning, remedy = REASONS[reason]
    assert set(found) == {reason, "no objects", "crowd"}  # nothing else is blamed
    assert found[reason].level == level and report.ok == (level == "warning")
    assert found[reason].message.startswith(number_of(1, f"annotations {meaning}")) and remedy in found[reason].message
    assert (": training leaves them out" in found[reason].message) == left_out <= bool(remedy)
    assert re.search(words, found[reason].items[0])
    source = open_coco(root, "train")
    assert source.left_out == ({reason: 1} if left_out else {}) | {"crowd": 1} and source.total == 5
    assert source.counts[:, 0].tolist() == [2 + (not left_out), 1, 0]
    assert len(to_target(source.objects(0))["labels"]) == 2 + (not left_out)


def test_one_pixel_is_an_object(root):
    values = coco_values()
    values["annotations"].append(annotation(26, 10, 3, [0, 0, 1, 1], [[0, 0, 1, 0, 1, 1, 0, 1]]))
    rewrite(root, values)
    target = to_target(open_coco(root, "train").objects(0))
    assert target["boxes"][2].tolist() == [0, 0, 1, 1] and target["masks"][2].sum() == 1


@pytest.mark.parametrize("box", [[48, 5, 10, 10], [30, 5, 0.5, 10]])
def test_images_without_an_object_to_learn(root, box):
    """The only object of the second image, 48 pixels wide, is beside it, or too narrow."""
    values = coco_values()
    values["annotations"][2]["bbox"] = box
    found, _ = checked(root, values)
    assert found["no objects"].items == ["b.jpg", "empty.png"]
    assert to_learn(open_coco(root, "train"), 8).tolist() == [0]


WRONG_KINDS = [
    ({"id": [5]}, r"annotations\[4\] has id \[5\] "),
    ({"image_id": [0]}, r"has image_id \[0\] .*integer"),
    ({"category_id": {"a": 1}}, r"has category_id \{.a.: 1\} .*integer"),
    ({"area": "large"}, "has area .large. .*number"),
    ({"area": -1}, "has area -1 .*greater than or equal to 0"),
    ({"iscrowd": "no"}, "has iscrowd .no. "),
    ({"area": [2], "iscrowd": 7}, "has iscrowd 7.* and has area \\[2\\]"),
    *(({"bbox": box}, "has bbox ") for box in ({"x": 1}, [1, 2, 3], None, ["a", 1, 2, 3], "box")),
]


@pytest.mark.parametrize(("change", "words"), WRONG_KINDS)
def test_values_of_a_wrong_kind_are_named_here_and_left_out_in_training(root, change, words):
    values = coco_values()
    values["annotations"].append({**annotation(50, 10, 3, BOX, SQUARE), **change})
    found, _ = checked(root, values)
    assert set(found) == {"keys", "no objects", "crowd"}
    assert re.search(words, found["keys"].items[0]), found["keys"].items
    source = open_coco(root, "train")
    assert source.left_out == {"crowd": 1, "keys": 1}
    assert len(source.objects(0).annotations) == 2


def test_null_is_absent_and_ids_of_annotations_may_be_text(root):
    values = coco_values()
    values["annotations"].append({**annotation("a1", 10, 3, BOX, SQUARE), "area": None, "iscrowd": None})
    found, _ = checked(root, values)
    assert set(found) == {"no objects", "box and mask", "crowd"}
    source = open_coco(root, "train")
    assert source.left_out == {"crowd": 1} and len(source.objects(0).annotations) == 3
    assert "area" not in source.objects(0).annotations[2]  # the box's area is taken


SEGMENTATIONS = {
    "text": {**CODE, "counts": "@@@~~~garbage"},
    "cut": {**CODE, "counts": encode_mask(disc(40, 60, 20, 30, 8))["counts"][:10]},
    "sum": {**CODE, "counts": [10, 5, 3]},
    "size": encode_mask(disc(10, 10, 5, 5, 3)),
    "outside": [[100, 100, 120, 100, 120, 130]],
    "nothing": [],
}


@pytest.mark.parametrize("kind", SEGMENTATIONS)
def test_a_mask_that_cannot_be_used_is_left_out_in_training_and_evaluation(kind, root):
    assert to_rle(SEGMENTATIONS[kind], (40, 60)) is None
    values = coco_values()
    values["annotations"][1]["segmentation"] = SEGMENTATIONS[kind]
    write_set(root, values, "train")
    write_set(root, values, "val")
    assert checked(root)[0].keys() & {"segmentation", "no segmentation", "box and mask"}
    data = DetectionData(str(root), min_side=1, short_side=40, hflip=0, batch_size=1, workers=0)
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
    objects = [one for one in target["objects"].annotations if not one["iscrowd"]]
    boxes = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in (one["bbox"] for one in objects)]).float()
    labels = torch.tensor([1 + sorted([7, 3]).index(one["category_id"]) for one in objects]).long()
    height, width = target["orig_size"]
    masks = torch.zeros(len(objects), height, width, dtype=torch.bool)
    return {"boxes": boxes.reshape(-1, 4), "labels": labels, "scores": torch.ones(len(objects)), "masks": masks}


@pytest.mark.parametrize("absent", [{}, {"segmentation": []}])
def test_boxes_alone(root, absent):
    values = coco_values()
    for one in values["annotations"]:
        del one["segmentation"]
        one.update(absent)
    rewrite(root, values)
    data = DetectionData(str(root), val="train", min_side=1, workers=0, batch_size=1)
    assert not data.has_masks and len(data.samples("train", True)) == 2
    target = to_target(data.source("train").objects(0), masks=False)
    assert set(target) == {"boxes", "labels"} and len(target["boxes"]) == 2


def test_images_and_ids(root):
    values = coco_values()
    values["images"] += [{"id": 4, "file_name": "gone.png", "height": 5, "width": 5}, {"id": 8, "file_name": "x.png"}]
    Image.new("RGB", (9, 9)).save(root / "train/a.png")
    (root / "train/b.jpg").write_bytes(b"text")
    found, _ = checked(root, values)
    items = {kind: finding.items for kind, finding in found.items()}
    assert items["missing"][0].endswith("gone.png: No such file or directory")
    assert "9 x 9, the json has 60 x 40" in items["size"][0] and "b.jpg" in items["unreadable"][0]
    assert items["ids"] == ["images id 4: 2 times"] and items["keys"] == ["images[4] lacks height, width"]
    found, report = checked(root, {**coco_values(), "annotations": [annotation(5, 10, 3, [2, 3, 10, 20], SQUARE)] * 2})
    assert found["ids"].items == ["annotations id 5: 2 times"] and not report.ok


def test_what_is_no_json(root):
    (root / "annotations/instances_train.json").write_text("{")
    assert "not a readable json" in checked(root)[0]["json"].message
    found, _ = checked(root, {**coco_values(), "images": [{"id": 1}], "annotations": []})
    assert set(found) == {"keys", "nothing to learn"}  # no finding about no images


def test_another_size_than_annotated_is_an_image_error(root):
    Image.new("RGB", (30, 30)).save(root / "train/a.png")
    source = open_coco(root, "train")
    with pytest.raises(ImageError, match=r"a.png: is 30 x 30, its annotations are for 60 x 40"):
        source.load(0)
    # annotated as it is stored, not as its EXIF entry turns it
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (48, 50)).save(root / "train/b.jpg", exif=exif)
    assert source.load(1)[0].size == (48, 50)


def test_categories_must_be_the_same(root, tmp_path):
    values = coco_values()
    values["categories"] = [{"id": 3, "name": "nut"}, {"id": 7, "name": "screw"}]
    other = open_coco(write_set(tmp_path / "other", values), "train")
    with pytest.raises(DataError, match=r"only in .*set.*: 7 bolt; only in .*other.*: 7 screw"):
        check_same_classes(open_coco(root, "train"), other)
    write_set(root, values, "val")  # the same pixels
    found, report = checked(root)
    assert "7: bolt / screw" in found["classes"].message
    assert "3 images are in" in found["duplicate"].message and not report.ok


def test_command_finds_out_what_it_is(root, tmp_path, capsys):
    assert main(["check-data", str(root), "--workers", "2"]) == 0
    assert "instances_train.json: 3 images, 2 classes" in capsys.readouterr().out
    assert main(["check-data", str(root / "annotations/instances_train.json"), "--strict"]) == 1
    assert "1 image has no object" in capsys.readouterr().out
    (root / "train/a.png").unlink()
    output = tmp_path / "check.json"
    assert main(["check-data", str(root), "--data-format", "coco", "--output", str(output)]) == 1
    values = json.loads(output.read_text())
    assert not values["ok"] and "missing" in {one["kind"] for one in values["findings"]}


def test_digit_scenes_as_objects():
    source = DigitObjects(2, size=128)
    image, objects = source.load(1)
    assert image.size == (128, 128) and len(objects.annotations) == 9
    target = to_target(objects)
    for box, mask in zip(target["boxes"].tolist(), target["masks"].numpy(), strict=True):
        rows, columns = np.nonzero(mask)
        assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert max(DigitObjects(1, num_classes=3).load(0)[1].category_ids) == 3


def test_real_sets():
    """As in their own README: annotations, crowds, images without objects."""
    nuclei = open_coco(shared("data", "nuclei", "nuclei.tar"), "val")
    assert len(nuclei) == 94 and nuclei.counts.sum(0).tolist() == [2358, 2358]
    coco = open_coco(shared("data", "coco_mini", "coco_mini.tar"), "train")
    assert len(coco) == 100 and coco.counts[:, 1].sum() == 746 and len(to_learn(coco)) == 98
    assert len(coco.class_names) == 80 and max(coco.category_ids) == 90
    gray = next(i for i in range(100) if coco.name(i).endswith("train/000000000086.jpg"))
    assert coco.load(gray)[0].mode == "RGB"
