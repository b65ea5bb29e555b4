"""`vitgraft validate` of a detector from its checkpoint alone: on the data that its run had."""

import json
from dataclasses import asdict

import pytest
import pytorch_lightning as pl

from vitgraft.training.check_recipe import recipe_errors, resolve
from vitgraft.training.lightning_cli import with_data_of_run

DETECTION = "vitgraft.tasks.detection.Detection"


def test_the_data_options_are_those_of_the_run(tmp_path, capsys):
    section = {"class_path": "DetectionData", "init_args": {"scenes": 8, "scene_size": 64}}
    (tmp_path / "run.json").write_text(json.dumps({"recipe": {"data": section}}))
    recipe = {"model": {"class_path": DETECTION, "init_args": {}}}
    checkpoint = str(tmp_path / "best.ckpt")
    assert with_data_of_run(recipe, checkpoint)["data"] == section
    assert "run.json" in capsys.readouterr().out
    own = {**recipe, "data": {"class_path": "DetectionData"}}
    assert with_data_of_run(own, checkpoint) == own  # a recipe that was given
    classifier = {"model": {"class_path": "vitgraft.tasks.classification.Classification"}}
    assert with_data_of_run(classifier, checkpoint) == classifier


def test_a_set_without_a_label_rule_is_one_plain_line():
    data = {"class_path": "vitgraft.data.segmentation.SegmentationData", "init_args": {"root": "somewhere"}}
    (error,) = recipe_errors({"data": data}, {}, {})
    assert error.startswith("data.reduce_zero_label: set true")


SIZES = [
    ("detection.DetectionData", {"root": "set", "short_side": 64, "max_size": 96}),
    ("detection.DetectionData", {"root": "set", "augmentation": "native"}),
    ("detection.DetectionData", {"root": None}),
    ("detection.DetectionData", {"root": None, "augmentation": "single", "short_side": 70, "max_size": 80}),
    ("segmentation.SegmentationData", {"root": "set", "reduce_zero_label": False, "short_side": 180}),
    ("segmentation.SegmentationData", {"root": "set", "reduce_zero_label": True, "long_side": 90, "antialias": False}),
]


@pytest.mark.parametrize(("name", "options"), SIZES)
def test_a_checkpoint_without_its_run_brings_the_image_sizes(name, options, tmp_path, capsys):
    """Moved, renamed or downloaded: what is measured are images as the run had them."""
    cls = resolve(f"vitgraft.data.{name}", pl.LightningDataModule)
    task = {"detection": "detection.Detection", "segmentation": "segmentation.Segmentation"}[name.partition(".")[0]]
    data = cls(**options)
    saved = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(data.preprocessing).items()}
    saved["input_size"] = [3, *saved["input_size"]]  # as Task.setup stores it
    recipe = {"model": {"class_path": f"vitgraft.tasks.{task}", "init_args": {"data_config": saved}}}
    section = with_data_of_run(recipe, str(tmp_path / "moved.ckpt"))["data"]
    assert "no run.json beside" in capsys.readouterr().out
    assert resolve(section["class_path"], pl.LightningDataModule) is cls
    rest = {key: value for key, value in options.items() if key in ("root", "reduce_zero_label")}
    again = cls(**{**section["init_args"], **rest}).preprocessing
    assert {**asdict(again), "input_size": 0} == {**asdict(data.preprocessing), "input_size": 0}
    if not saved.get("native") and name.startswith("detection"):
        assert again.input_size == data.preprocessing.input_size
