"""COCO sets as they are published: what is read, what is left out, and what is refused with which words."""

import json
import tarfile

import numpy as np
import pytest
from conftest import shared
from datasets_on_disk import annotation, coco_values, disc, write_set
from PIL import Image

from vitgraft.data.coco import open_coco
from vitgraft.data.detection_targets import DigitObjects, to_target
from vitgraft.data.readers.base import check_same_classes
from vitgraft.errors import DataError, ImageError


@pytest.fixture
def root(tmp_path):
    return write_set(tmp_path / "set", coco_values())


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
    grey, objects = source.load(1)
    assert grey.mode == "RGB" and to_target(objects)["labels"].tolist() == [1]  # without the crowd
    assert objects.annotations[1]["iscrowd"] == 1
    empty = to_target(source.load(2)[1])
    assert empty["boxes"].shape == (0, 4) and empty["masks"].shape == (0, 40, 40)
    assert source.to_learn().tolist() == [0, 1]
    assert source.to_learn(keep_empty=True).tolist() == [0, 1, 2]
    assert source.to_learn(min_side=45).tolist() == [1]
    assert source.warning() == ""


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
        (lambda v: v["annotations"][2].pop("bbox"), r"annotations\[2\] lacks bbox"),
        (lambda v: v["images"].append(dict(v["images"][0])), "image ids that are there twice: .10"),
        (lambda v: v["categories"].append({"id": 3, "name": "x"}), "category ids that are there twice: .3"),
        (lambda v: v["images"].clear(), "no images in it"),
        (lambda v: v["images"].insert(0, 3), r"images\[0\] is no mapping but 3"),
    ],
)
def test_what_cannot_be_used(root, change, words):
    values = coco_values()
    values["categories"] = list(values["categories"])
    change(values)
    (root / "annotations/instances_train.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match=words):
        open_coco(root, "train")


def test_unusable_annotations_are_left_out_and_counted(root):
    values = coco_values()
    values["annotations"] += [
        annotation(20, 77, 3, [1, 1, 5, 5], []),
        annotation(21, 10, 5, [1, 1, 5, 5], []),
        annotation(22, 10, 3, [1, 1, 0.5, 5], [[1, 1, 2, 1, 2, 6]]),  # less than a pixel wide
        annotation(23, 10, 3, [1, float("nan"), 5, 5], [[1, 1, 2, 1, 2, 6]], area=1),
        annotation(24, 10, 3, [1, 1, 5, 5], [[1, 1, 2, 1]]),  # two points
        annotation(25, 10, 3, [70, 1, 5, 5], [[70, 1, 75, 1, 75, 6]]),  # beside the image
        annotation(26, 10, 3, [0, 0, 1, 1], [[0, 0, 1, 0, 1, 1, 0, 1]]),  # one pixel: an object
    ]
    (root / "annotations/instances_train.json").write_text(json.dumps(values))
    source = open_coco(root, "train")
    assert "1 of an unknown image, 1 of an unknown category, 4 without a usable box or mask" in source.warning()
    target = to_target(source.objects(0))
    assert target["boxes"].tolist() == [[22, 12, 39, 29], [2, 3, 12, 23], [0, 0, 1, 1]]
    assert target["masks"][2].sum() == 1


def test_boxes_alone(root):
    values = coco_values()
    for one in values["annotations"]:
        del one["segmentation"]
    (root / "annotations/instances_train.json").write_text(json.dumps(values))
    source = open_coco(root, "train")
    assert not source.has_masks
    target = to_target(source.objects(0), masks=False)
    assert set(target) == {"boxes", "labels"} and len(target["boxes"]) == 2


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
    """As their own README says: annotations, crowds, images without objects."""
    nuclei = open_coco(shared("data", "nuclei", "nuclei.tar"), "val")
    assert len(nuclei) == 94 and nuclei.counts.sum(0).tolist() == [2358, 2358]
    coco = open_coco(shared("data", "coco_mini", "coco_mini.tar"), "train")
    assert len(coco) == 100 and coco.counts[:, 1].sum() == 746 and len(coco.to_learn()) == 98
    assert len(coco.class_names) == 80 and max(coco.category_ids) == 90
    grey = next(i for i in range(100) if coco.name(i).endswith("train/000000000086.jpg"))
    assert coco.load(grey)[0].mode == "RGB"
