"""Scenes of digits: a function of (seed, split, index), with labels, boxes and masks that agree with the contents."""

import sys

import numpy as np
import pytest
import torch

from vitgraft.data import digits
from vitgraft.data.digits import DigitScenePixels, DigitScenes, digit_instances, make_scene, to_tensor
from vitgraft.errors import MissingExtraError

pytest.importorskip("sklearn")
SIZES = [64, 96]


def _same(one: digits.Scene, other: digits.Scene) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_scene_depends_on_seed_split_and_index_alone():
    first = make_scene(7, seed=3)
    np.random.seed(0)
    make_scene(8, seed=3)
    assert _same(first, make_scene(7, seed=3))
    assert _same(first, DigitScenes(10, seed=3).scene(7))
    for other in (make_scene(8, seed=3), make_scene(7, seed=4), make_scene(7, seed=3, split="test")):
        assert not np.array_equal(first.image, other.image)


def test_splits_share_no_scan_and_hold_every_class():
    train, test = (digit_instances(split) for split in ("train", "test"))
    assert not set(np.concatenate(train)) & set(np.concatenate(test))
    assert len(np.concatenate(train)) + len(np.concatenate(test)) == 1797
    assert all(len(of_class) > 20 for of_class in (*train, *test))


@pytest.mark.parametrize("split, other", [("train", "test"), ("test", "train")])
def test_scenes_never_read_a_scan_of_the_other_split(monkeypatch, split, other):
    before = [make_scene(i, split=split) for i in range(20)]
    scans, classes = digits._digit_scans()
    spoilt = scans.copy()
    spoilt[np.concatenate(digit_instances(other))] = np.nan
    monkeypatch.setattr(digits, "_digit_scans", lambda: (spoilt, classes))
    assert all(_same(scene, make_scene(i, split=split)) for i, scene in enumerate(before))


@pytest.mark.parametrize("size", SIZES)
def test_boxes_are_tight_masks_are_apart_and_the_semantic_map_agrees(size):
    for index in range(40):
        scene = make_scene(index, size=size)
        assert scene.image.shape == (size, size, 3) and scene.image.dtype == np.uint8
        assert len(scene.boxes) == len(scene.masks) == len(scene.category_ids) == 9
        assert scene.masks.sum(0).max() == 1
        semantic = np.zeros_like(scene.semantic_mask)
        for box, mask, category in zip(scene.boxes, scene.masks, scene.category_ids, strict=True):
            rows, columns = np.nonzero(mask)
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            semantic[mask] = 1 + category
        assert np.array_equal(semantic, scene.semantic_mask)


def test_ink_is_brighter_than_the_canvas_about_it():
    for index in range(20):
        scene = make_scene(index)
        assert scene.image[scene.semantic_mask > 0].mean() > scene.image[scene.semantic_mask == 0].mean() + 40


@pytest.mark.parametrize("size", SIZES)
def test_the_label_is_the_class_on_the_side_that_the_large_digit_names(size):
    sides, labels = set(), set()
    for index in range(150):
        scene = make_scene(index, size=size)
        areas = (scene.boxes[:, 2] - scene.boxes[:, 0]) * (scene.boxes[:, 3] - scene.boxes[:, 1])
        assert areas.argmax() == 0
        on_right = (scene.boxes[:, 0] + scene.boxes[:, 2]) / 2 > size / 2
        left, right = (set(scene.category_ids[1:][on_right[1:] == side].tolist()) for side in (False, True))
        assert len(left) == len(right) == 1 and left != right
        assert {scene.label} == (right if scene.category_ids[0] == 1 else left)
        sides.add(int(scene.category_ids[0]))
        labels.add(scene.label)
    assert sides == {0, 1} and labels == set(range(10))


def test_dataset_gives_the_same_with_and_without_cache_one_by_one_or_in_batches():
    drawn, cached = DigitScenes(6, seed=1), DigitScenes(6, seed=1, cache=True)
    for dataset in (drawn, cached):
        assert len(dataset) == len(list(dataset)) == 6
        for (image, label), index in zip(dataset.__getitems__([4, 0]), (4, 0), strict=True):
            assert torch.equal(image, to_tensor(make_scene(index, seed=1).image))
            assert torch.equal(image, dataset[index][0])
            assert label == dataset[index][1] == make_scene(index, seed=1).label
    with pytest.raises(IndexError, match="6 scenes"):
        drawn[6]


def test_standardized_images():
    image = to_tensor(make_scene(0).image)
    assert image.shape == (3, 64, 64) and image.dtype == torch.float32
    torch.testing.assert_close(image.mean((1, 2)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(image.std(), torch.tensor(1.0))
    assert to_tensor(np.full((8, 8, 3), 9, np.uint8)).abs().max() == 0  # a blank one does not divide by zero


def test_bad_calls_are_refused():
    with pytest.raises(ValueError, match="'val': choose one of train, test"):
        DigitScenes(3, split="val")
    with pytest.raises(ValueError, match="length=0"):
        DigitScenes(0)
    with pytest.raises(ValueError, match="index=-1"):
        make_scene(-1)
    for size in (62, 20):
        with pytest.raises(ValueError, match=f"size={size}: give a multiple of 4, at least 24"):
            DigitScenes(1, size=size)


def test_a_missing_scikit_learn_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r"vitgraft\[train\]"):
        digits._digit_scans.__wrapped__()


def test_digit_scenes_have_eleven_classes_and_labels_that_fit():
    scenes = DigitScenePixels(20, split="test")
    image, labels = scenes.load(3)
    assert image.size == (64, 64) and labels.shape == (64, 64) and scenes.class_names[:2] == ("background", "0")
    assert labels.max() <= 10 and labels.min() == 0
    ink = np.asarray(image).astype(int).mean(2)
    assert ink[labels > 0].mean() > ink[labels == 0].mean() + 50
