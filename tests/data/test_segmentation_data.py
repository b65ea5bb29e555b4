"""SegmentationData: digit scenes, pairs of files, batches as functions of (seed, epoch, step), and clear refusals."""

import json

import numpy as np
import pytest
import torch
from conftest import shared
from datasets_on_disk import SIZE, blocks, label_bytes, write_pairs, write_tar

from vitgraft.data.segmentation import SegmentationData
from vitgraft.errors import DataError
from vitgraft.training import lightning_cli
from vitgraft.training.check_recipe import parameters_of

FILES = {"reduce_zero_label": True, "workers": 0, "batch_size": 2, "crop_size": 32}


def batches(loader):
    return list(loader)


def test_digit_scenes_are_the_default():
    data = SegmentationData(scenes=6, val_scenes=3, batch_size=2, workers=0, crop_size=64, scale=(1.0, 1.0))
    data.setup("fit")
    assert data.class_names == ("background", *map(str, range(10)))
    train = batches(data.train_dataloader())
    assert len(train) == 3 and train[0].images.shape == (2, 3, 64, 64) and train[0].labels.dtype == torch.int64
    val = batches(data.val_dataloader())
    assert len(val) == 3 and val[0].images[0].shape == (3, 64, 64) and val[0].labels[0].shape == (64, 64)
    assert sorted(int(index) for batch in val for index in batch.indices) == [0, 1, 2]
    larger = SegmentationData(scenes=1, val_scenes=1, scene_size=128, workers=0, batch_size=1)
    assert larger.source("train").load(0)[0].size == (128, 128)


def test_pixels_of_the_classes_are_counted_in_the_training_part(tmp_path):
    data = SegmentationData(root=str(write_pairs(tmp_path / "set")), **FILES)
    source = data.source("train")
    labels = np.concatenate([source.load(index)[1].reshape(-1) for index in range(len(source))])
    assert (labels == 255).any()
    counts = data.class_counts()
    assert counts.tolist() == [(labels == number).sum() for number in range(len(data.class_names))]
    (tmp_path / "set" / source.labels.name(0).split("set/")[1]).write_bytes(b"no label file")
    assert 0 < data.class_counts().sum() < counts.sum()


def test_files_in_a_folder_and_a_tar_give_the_same(tmp_path):
    root = write_pairs(tmp_path / "set")
    packed = write_tar(tmp_path / "set.tar", root)
    found = []
    for place in (root, packed):
        data = SegmentationData(root=str(place), **FILES)
        data.prepare_data()
        data.setup("fit")
        found.append(batches(data.train_dataloader()) + batches(data.val_dataloader()))
        assert data.class_names == ("cat", "dog", "eel")
    for one, other in zip(*found, strict=True):
        assert all(map(torch.equal, one.images, other.images)) and all(map(torch.equal, one.labels, other.labels))
    assert set(torch.cat([batch.labels.reshape(-1) for batch in found[0][:1]]).tolist()) == {0, 1, 2, 255}


def test_batches_depend_on_seed_and_epoch_only(tmp_path):
    root = write_pairs(tmp_path)

    def first(seed=0, epoch=0, workers=0):
        data = SegmentationData(root=str(root), **{**FILES, "workers": workers}, seed=seed)
        loader = data.train_dataloader()
        loader.order.set_position(epoch, 0)
        found = next(iter(loader))
        data.teardown("fit")
        return found.images

    assert torch.equal(first(), first()) and torch.equal(first(), first(workers=1))
    assert not torch.equal(first(), first(seed=1)) and not torch.equal(first(), first(epoch=1))


def test_unreadable_files_are_left_out_and_named(tmp_path):
    root = write_pairs(tmp_path, {"training": 4, "validation": 3})
    (root / "images" / "training" / "2.jpg").write_bytes(b"")
    (root / "annotations" / "validation" / "1.png").write_bytes(label_bytes(blocks(0))[:-30])
    data = SegmentationData(root=str(root), **FILES)
    data.setup("fit")
    train, val = batches(data.train_dataloader()), batches(data.val_dataloader())
    assert all(len(batch.images) == 2 for batch in train)
    assert [name for batch in train for name in batch.bad] == [f"{root}/images/training/2.jpg: empty file (0 bytes)"]
    assert [len(batch.images) for batch in val] == [1, 0, 1] and "1.png" in val[1].bad[0]


def test_the_check_at_the_start(tmp_path, capsys):
    root = write_pairs(tmp_path / "a")
    (root / "annotations" / "validation" / "1.png").write_bytes(label_bytes(blocks(0, (1, 200))))
    with pytest.raises(DataError, match=r"no class; .* the first: .*validation/1\.png: 200"):
        SegmentationData(root=str(root), **FILES).setup("fit")
    SegmentationData(root=str(root), train="training", val="training", **FILES).setup("fit")
    (line,) = capsys.readouterr().out.splitlines()
    assert "the images are those of training" in line
    root = write_pairs(tmp_path / "b", values=(0, 1, 2))
    SegmentationData(root=str(root), **FILES).setup("validate")
    assert "reduce_zero_label must be false" in capsys.readouterr().out
    root = write_pairs(tmp_path / "c")
    (root / "annotations" / "training" / "0.png").write_bytes(label_bytes(np.full(SIZE, 1, np.uint8)))
    with pytest.raises(DataError, match="labels of 32 x 40 pixels for an image of 40 x 32"):
        SegmentationData(root=str(root), **FILES).setup("fit")


@pytest.mark.parametrize(
    "options, words",
    [
        ({"root": "x"}, "reduce_zero_label: set true"),
        ({"train": ["a", "b"]}, "reduce_zero_label: set true"),
        ({"train": ["a"]}, "two folders"),
        ({"crop_size": 0}, "crop_size=0: .*greater than"),
        ({"num_classes": 3, "class_names": ["a"]}, "1 class_names are given"),
        ({"num_classes": 3, "ignore_index": 1}, "is the value of a class"),
        ({"scene_size": 30}, "scene_size=30"),
        ({"scale": (0.0, 1.0)}, "smallest and the largest"),
        ({"scale": (2.0, 0.5), "cat_max_ratio": 0.0, "hflip": 1.5}, "smallest.*cat_max_ratio=0.0.*hflip=1.5"),
    ],
)
def test_options_that_can_not_be(options, words):
    with pytest.raises(ValueError, match=words):
        SegmentationData(**options)


def test_classes_that_are_unknown_or_others(tmp_path):
    root = write_pairs(tmp_path, names=None)
    with pytest.raises(DataError, match=r"data\.class_names, data\.num_classes"):
        _ = SegmentationData(root=str(root), **FILES).class_names
    assert SegmentationData(root=str(root), num_classes=3, **FILES).class_names == ("class_0", "class_1", "class_2")
    (root / "classes.txt").write_text("a\nb\n")
    with pytest.raises(DataError, match=r"num_classes=3: the data has 2 classes \(a, b"):
        _ = SegmentationData(root=str(root), num_classes=3, **FILES).class_names


def test_smoke_needs_no_files():
    data = SegmentationData(root="/nowhere", reduce_zero_label=True, crop_size=32)
    data.smoke(150)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch.images.shape == (4, 3, 32, 32) and len(data.class_names) == 150
    assert next(iter(data.val_dataloader())).images[0].shape == (3, 64, 64)


def test_camvid():
    root = shared("data", "camvid", "camvid.tar")
    data = SegmentationData(root=str(root), reduce_zero_label=True, batch_size=3, workers=0, crop_size=128)
    data.setup("fit")
    assert len(data.class_names) == 11 and data.steps_per_epoch() == 122
    batch = next(iter(data.train_dataloader()))
    assert batch.images.shape == (3, 3, 128, 128) and set(batch.labels.unique().tolist()) <= {*range(11), 255}
    batch = next(iter(data.val_dataloader()))
    assert batch.images[0].shape == (3, 360, 480) and batch.labels[0].shape == (360, 480) and not batch.bad


def test_a_recipe_takes_no_defaults_of_other_data():
    """ImageData has options of the same names: jsonargparse once carried its values of `train` and `scale` over."""
    options = {"class_path": "SegmentationData", "init_args": {"root": "x", "reduce_zero_label": True}}
    recipe = {"model": {"class_path": "Segmentation", "init_args": {"model": "swin_tiny"}}, "data": options}

    class Parsed(lightning_cli.VitgraftCLI):
        def instantiate_classes(self) -> None:
            self.model = self.datamodule = self.trainer = None

    recipe = lightning_cli.with_class_paths(recipe, {"data": lightning_cli.DATA})
    parsed = vars(Parsed(["fit", "--config", json.dumps(recipe)]).config.fit.data.init_args)
    own = parameters_of(SegmentationData)
    assert (parsed["train"], parsed["scale"], parsed["batch_size"]) == ("training", (0.5, 2.0), 16)
    differ = {name for name in parsed if parsed[name] != own[name].default}
    assert differ == {"root", "reduce_zero_label"}
