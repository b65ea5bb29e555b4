"""`vitgraft validate` of a detector from its checkpoint alone: on the data that its run had."""

import json

import pytest

from vitgraft.errors import RecipeError
from vitgraft.report.plan import make_plan
from vitgraft.training.check_recipe import find_problems
from vitgraft.training.cli import with_data_of_run

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
    assert with_data_of_run(recipe, str(tmp_path / "elsewhere" / "best.ckpt")) == recipe


def test_a_set_without_a_label_rule_is_one_plain_line():
    data = {"class_path": "vitgraft.data.segmentation.SegmentationData", "init_args": {"root": "somewhere"}}
    (problem,) = find_problems({"data": data}, {}, {})
    assert problem.startswith("data.reduce_zero_label: say true")


def test_plan_refuses_what_it_would_cost_wrongly():
    with pytest.raises(RecipeError, match="classifiers, not a Detection"):
        make_plan("recipes/coco/mask_rcnn_graft_swin_tiny_1x_coco.yaml")
