"""Batches for detectors: images, boxes and masks stay together, whatever the augmentation does."""

import json

import numpy as np
import pytest
import torch
from conftest import shared
from datasets_on_disk import coco_values, write_set
from PIL import Image

from vitgraft.data.detection import DetectionData
from vitgraft.data.detection_targets import Objects, encode_mask, to_target
from vitgraft.data.detection_transforms import (
    DetectionAugmentation,
    DetectionPreprocessing,
    eval_transform,
    train_transform,
)
from vitgraft.data.sampling import Draw
from vitgraft.data.segmentation import SegmentationData
from vitgraft.errors import DataError

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def painted(height=300, width=420):
    """Three rectangles, each in a color of its own, with box and mask; (image, target)."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    annotations = []
    for channel, (x, y, w, h) in enumerate([(20, 30, 80, 60), (200, 100, 150, 90), (380, 250, 40, 50)]):
        pixels[y : y + h, x : x + w, channel] = 255
        mask = pixels[..., channel] > 0
        annotations.append({"bbox": [x, y, w, h], "category_id": channel + 1, "segmentation": encode_mask(mask)})
    return Image.fromarray(pixels), to_target(Objects(annotations, (height, width), (1, 2, 3)))


@pytest.mark.parametrize("augmentation", ["multiscale", "single", "native"])
def test_image_box_and_mask_stay_together(augmentation):
    """The pixels of an object are known by their color: its mask covers them, its box encloses them."""
    image, target = painted()
    transform = train_transform(
        DetectionPreprocessing((240, 400), **PLAIN),
        DetectionAugmentation(augmentation, (160, 200), (180, 220), (100, 150), hflip=0.5, vflip=0.5),
    )
    sizes, numbers = set(), set()
    for seed in range(25):
        torch.manual_seed(seed)
        pixels, out = transform(image, target)
        sizes.add(tuple(pixels.shape[1:]))
        numbers.add(len(out["labels"]))
        assert type(pixels) is type(out["boxes"]) is torch.Tensor and pixels.dtype == torch.float32
        assert out["masks"].shape[1:] == pixels.shape[1:] and out["masks"].dtype == torch.uint8
        assert len(out["boxes"]) == len(out["masks"]) == len(out["labels"])
        assert ((out["boxes"][:, 2:] - out["boxes"][:, :2]) > 0).all()
        for label, box, mask in zip(out["labels"].tolist(), out["boxes"].tolist(), out["masks"], strict=True):
            ink = pixels[label - 1] > 0.5
            assert (ink ^ mask.bool()).sum() <= 0.05 * mask.sum() + 2 * sum(box[2:])  # a border of interpolation
            rows, columns = ink.nonzero().T
            assert abs(columns.min() - box[0]) <= 2 and abs(columns.max() + 1 - box[2]) <= 2
            assert abs(rows.min() - box[1]) <= 2 and abs(rows.max() + 1 - box[3]) <= 2
        for label in {1, 2, 3} - set(out["labels"].tolist()):
            assert not (pixels[label - 1] > 0.9).any()  # dropped only where nothing of it can be seen
    if augmentation == "multiscale":
        assert {(160, 224), (200, 280)} <= sizes and len(sizes) > 4 and min(numbers) < 3
    else:
        assert sizes == {(240, 336) if augmentation == "single" else (300, 420)} and numbers == {3}


def test_evaluation_resizes_and_standardizes():
    pixels = eval_transform(DetectionPreprocessing((100, 150), (0.5,) * 3, (0.25,) * 3))(Image.new("RGB", (80, 40)))
    assert pixels.shape == (3, 75, 150) and pixels.unique().tolist() == [-2.0]


def test_crop_of_swin_s_recipe():
    """Sides between 384 and 600 of what there is, then one of the short sides."""
    image, target = painted(700, 640)
    transform = train_transform(DetectionPreprocessing(), DetectionAugmentation("multiscale", hflip=0))
    shapes = set()
    for seed in range(30):
        torch.manual_seed(seed)
        shapes.add(tuple(transform(image, target)[0].shape[1:]))
    shorts, ratios = {min(shape) for shape in shapes}, {round(shape[0] / shape[1], 2) for shape in shapes}
    assert shorts <= set(range(480, 801, 32)) and len(shorts) > 5
    assert 1.09 in ratios and len(ratios) > 5  # uncropped, and crops of other shapes


def test_edge_cases():
    """No object, one of one pixel, a thousand."""
    transform = train_transform(
        DetectionPreprocessing((64, 96)), DetectionAugmentation("multiscale", (48,), (40,), (24, 32))
    )
    image = Image.new("RGB", (64, 64))
    pixel = np.zeros((64, 64), dtype=bool)
    pixel[10, 12] = True
    one = {"bbox": [12, 10, 1, 1], "category_id": 1, "segmentation": encode_mask(pixel)}
    for annotations in ([], [one], [one] * 1000):
        target = to_target(Objects(annotations, (64, 64), (1,)))
        assert len(target["boxes"]) == len(annotations)
        for seed in range(4):
            torch.manual_seed(seed)
            _, out = transform(image, target)
            assert len(out["boxes"]) in (0, len(annotations))
            assert ((out["boxes"][:, 2:] - out["boxes"][:, :2]) > 0).all()


@pytest.fixture
def root(tmp_path):
    write_set(tmp_path, coco_values())
    return write_set(tmp_path, coco_values(), "val", seed=1)


def test_images_without_objects_are_found_where_they_are_left_out(root):
    def kinds(split, **options):
        return {finding.kind for finding in DetectionData(str(root), **options).check(split).learnable()}

    assert "no objects" in kinds("train")
    assert "no objects" not in kinds("val") | kinds("train", keep_empty=True)


def test_images_of_their_own_size_have_that_of_the_largest(root):
    data = DetectionData(str(root), augmentation="native")
    heights, widths = np.array(data.source("train").sizes).T
    largest = (np.minimum(heights, widths).max(), np.maximum(heights, widths).max())
    assert data.preprocessing.native and data.preprocessing.input_size == largest


def test_batches_of_a_set(root):
    data = DetectionData(str(root), batch_size=2, workers=0, short_side=64, max_size=200, min_side=8)
    data.setup("fit")
    assert data.class_names == ("nut", "bolt") and data.category_ids == (3, 7) and data.has_masks
    batch = next(iter(data.train_dataloader()))
    assert len(batch.images) == 2 and batch.bad == []  # without the image that has no object
    assert {tuple(image.shape) for image in batch.images} == {(3, 64, 96), (3, 67, 64)}
    assert sorted(len(target["labels"]) for target in batch.targets) == [1, 2]
    seen = [target["image_id"] for batch in data.val_dataloader() for target in batch.targets]
    assert seen == [10, 4, 99]
    target = next(iter(data.val_dataloader())).targets[0]
    assert target["orig_size"] == (40, 60) and len(target["objects"].annotations) == 2
    assert len(DetectionData(str(root), keep_empty=True).samples("train", True)) == 3
    assert set(DetectionData(str(root), masks=False).samples("train", True)[0][1]) == {"boxes", "labels"}


def test_a_sample_is_a_function_of_its_draw(root):
    samples = DetectionData(str(root), augmentation="multiscale", short_sides=[64, 80]).samples("train", True)
    one, again, other = samples[Draw(3, 0)], samples[Draw(3, 0)], [samples[Draw(e, 0)] for e in range(4, 9)]
    assert torch.equal(one[0], again[0]) and torch.equal(one[1]["masks"], again[1]["masks"])
    assert any(one[0].shape != image.shape or not torch.equal(one[0], image) for image, _ in other)


def test_unreadable_images_are_replaced_or_left_out(root):
    (root / "val" / "a.png").write_bytes(b"no image")
    (root / "train" / "a.png").unlink()
    data = DetectionData(str(root), batch_size=3, workers=0, keep_empty=True, short_side=64, min_side=8)
    batch = next(iter(data.train_dataloader()))
    assert len(batch.images) == 3 and len(batch.bad) == 1 and "a.png: No such file" in batch.bad[0]
    batch = next(iter(data.val_dataloader()))
    assert [target["image_id"] for target in batch.targets] == [4, 99] and len(batch.bad) == 1


def test_sets_that_differ(root):
    values = coco_values()
    values["categories"] = [*values["categories"], {"id": 9, "name": "nail"}]
    write_set(root, values, "val")
    with pytest.raises(DataError, match=r"different classes .2 and 3.*: 9 nail"):
        DetectionData(str(root)).setup("fit")


def test_digit_scenes_are_the_default():
    data = DetectionData(workers=0, batch_size=4, scenes=20, val_scenes=6, scene_size=64)
    data.setup("fit")
    assert data.class_names == tuple("0123456789") and data.augmentation.hflip == 0
    batch = next(iter(data.train_dataloader()))
    assert batch.images[0].shape == (3, 64, 64) and batch.targets[0]["boxes"].shape == (9, 4)
    assert sum(len(batch.images) for batch in data.val_dataloader()) == 6
    assert not torch.equal(data.samples("val", False)[0][0], data.samples("test", False)[0][0])
    data.smoke(80)
    assert len(data.class_names) == 80 and len(data.train_dataloader()) >= 2


def test_all_wrong_options_at_once():
    with pytest.raises(ValueError) as caught:
        DetectionData(augmentation="big", hflip=2, short_sides=[], crop_sides=(9, 3), max_size=10, scene_size=30)
    for words in (
        "augmentation='big': should be 'multiscale'",
        "hflip=2",
        "short_sides=[]",
        "crop_sides=(9, 3)",
        "max_size=10",
    ):
        assert words in str(caught.value)
    assert "scene_size=30" in str(caught.value)


@pytest.mark.parametrize("crowds", [False, True])
def test_all_images_without_objects(root, crowds):
    values = coco_values()
    values["annotations"] = [{**one, "iscrowd": 1} for one in values["annotations"]] if crowds else []
    (root / "annotations/instances_train.json").write_text(json.dumps(values))
    data = DetectionData(str(root), workers=0, batch_size=2, masks=True, min_side=8)
    with pytest.raises(DataError, match=r"nothing to learn.*all 4 .* crowds" if crowds else "annotations is empty"):
        data.setup("fit")
    write_set(root, coco_values())
    with pytest.raises(DataError, match=r"no image to train on.*min_side"):
        DetectionData(str(root), workers=0, min_side=1000).setup("fit")


def test_real_images():
    data = DetectionData(
        str(shared("data", "coco_mini", "coco_mini.tar")), workers=0, augmentation="multiscale", batch_size=2
    )
    data.setup("fit")
    for batch, _ in zip(data.train_dataloader(), range(2), strict=False):
        for image, target in zip(batch.images, batch.targets, strict=True):
            assert image.shape[1:] == target["masks"].shape[1:] and max(image.shape[1:]) <= 1333
            assert all(1 <= label <= 80 for label in target["labels"].tolist())


def test_a_batch_names_its_images():
    """As the guards name them where a loss is not finite."""
    data = DetectionData(scenes=6, val_scenes=2, batch_size=2, workers=0)
    batch = next(iter(data.train_dataloader()))
    assert batch.indices.dtype == torch.int64
    assert [data.source("train").name(i) for i in batch.indices.tolist()]
    assert torch.equal(data.samples("val", False).__getitems__([Draw(0, 1), Draw(0, 0)]).indices, torch.tensor([1, 0]))


@pytest.mark.parametrize("data", [DetectionData, SegmentationData])
def test_runs_of_all_seeds_are_measured_on_the_same_digit_scenes(data):
    def first(split, seed):
        return np.asarray(data(scenes=2, val_scenes=2, seed=seed).source(split).load(0)[0])

    for split in ("val", "test"):
        assert np.array_equal(first(split, 0), first(split, 7))
    assert not np.array_equal(first("train", 0), first("train", 7))
    if data is DetectionData:
        assert not np.array_equal(first("val", 0), first("test", 0))
