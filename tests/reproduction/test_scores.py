"""Measured scores from result files, found by what the model is."""

import json

import pytest

from reproduction.paper import TABLES
from reproduction.scores import architecture_of, read_scores
from vitgraft.models.sliding_window import MULTI_SCALE
from vitgraft.models.spec import ModelSpec

DEIT, SWIN = "graft_deit_tiny_patch16_224", "graft_swin_tiny_patch4_window7_224"


def _write(folder, **record):
    (folder / f"{len(list(folder.iterdir()))}.json").write_text(json.dumps(record))


def test_classification_is_the_mean_of_the_papers_experiment(tmp_path):
    recipe = {"trainer": {"max_epochs": 300}, "model": {"init_args": {"pretrained": False}}}
    run = {"kind": "classification", "dataset": "imagenet1k", "model": DEIT, "recipe": recipe}
    _write(tmp_path, **run, metrics={"top1": 75.0})
    _write(tmp_path, **run, model_options={"drop_path_rate": 0.1}, metrics={"top1": 76.0})
    _write(tmp_path, **run, model_options={"graft": {"blocks": 8}}, metrics={"top1": 74.0})
    # other experiments: other data, from weights that exist, a shorter training
    _write(tmp_path, **{**run, "dataset": "cifar10"}, metrics={"top1": 99.0})
    for more in ({"pretrained": True}, {"checkpoint_path": "some.pth"}):
        _write(tmp_path, **{**run, "recipe": {**recipe, "model": {"init_args": more}}}, metrics={"top1": 81.9})
    _write(tmp_path, **{**run, "model": f"{DEIT}.backbone"}, metrics={"top1": 81.9})
    _write(tmp_path, **{**run, "recipe": {**recipe, "trainer": {"max_epochs": 1}}}, metrics={"top1": 1.9})
    _write(tmp_path, kind="bench")
    assert read_scores(tmp_path) == {
        ("classification", DEIT, "top-1"): 75.5,
        ("classification", f"{DEIT}:graft.blocks=8", "top-1"): 74.0,
    }
    _write(tmp_path, **run, metrics={"top1": 810.5})
    with pytest.raises(ValueError, match=r"top-1 of 810.5 is no percentage"):
        read_scores(tmp_path)


def test_detection_by_schedule_and_segmentation_by_scales(tmp_path):
    run = {"kind": "detection", "dataset": "coco", "model": f"{SWIN}.backbone", "model_options": {"graft": {}}}
    for epochs, ap in ((12, 43.0), (36, 47.0), (1, 5.0)):
        metrics = {"box_ap": ap, "mask_ap": ap - 3}
        _write(tmp_path, **run, metrics=metrics, recipe={"trainer": {"max_epochs": epochs}})
    run = {"kind": "segmentation", "dataset": "ade20k", "model": SWIN, "model_options": {"graft": {"blocks": []}}}
    for scales, flip, miou in (([1.0], False, 44.0), (list(MULTI_SCALE), True, 45.5), ([1.0, 2.0], False, 99.0)):
        recipe = {"model": {"init_args": {"scales": scales, "flip": flip}}}
        _write(tmp_path, **run, metrics={"miou": miou}, recipe=recipe)
    several = {
        "metrics": {"miou": 45.75},
        "checkpoint": "last.ckpt",
        "inference": {"scales": list(MULTI_SCALE), "flip": True},
    }
    recipe = {"model": {"init_args": {}}}
    _write(tmp_path, **run, metrics={"miou": 44.1}, recipe=recipe, evaluations={"validate_multi_scale": several})
    plain = f"{SWIN}:graft.blocks=[]"
    assert read_scores(tmp_path) == {
        ("detection", SWIN, "box AP 1x"): 43.0,
        ("detection", SWIN, "mask AP 1x"): 40.0,
        ("detection", SWIN, "box AP 3x"): 47.0,
        ("detection", SWIN, "mask AP 3x"): 44.0,
        ("segmentation", plain, "mIoU ss"): 44.05,
        ("segmentation", plain, "mIoU ms"): 45.625,
    }
    names = {name for table in (TABLES["3"], TABLES["4"]) for name in table.scores}
    assert {key[2] for key in read_scores(tmp_path)} == names


def test_a_score_is_of_the_end_of_a_run_not_the_best_of_its_evaluations(tmp_path):
    at_one, at_six = {"scales": [1.0], "flip": False}, {"scales": list(MULTI_SCALE), "flip": True}
    run = {"kind": "segmentation", "dataset": "ade20k", "model": SWIN, "recipe": {"model": {"init_args": {}}}}
    evaluations = {
        "validate": {"metrics": {"miou": 46.0}, "checkpoint": "best.ckpt", "inference": at_one},
        "validate_last": {"metrics": {"miou": 44.5}, "checkpoint": "last.ckpt", "inference": at_one},
        "validate_no_flip": {
            "metrics": {"miou": 46.5},
            "checkpoint": "last.ckpt",
            "inference": {**at_six, "flip": False},
        },
        "validate_six": {"metrics": {"miou": 45.0}, "checkpoint": "last.ckpt", "inference": at_six},
        "validate_six_best": {"metrics": {"miou": 47.0}, "checkpoint": "best.ckpt", "inference": at_six},
        "test": {"metrics": {"miou": 48.0}, "checkpoint": "last.ckpt", "inference": at_one},
    }
    _write(tmp_path, **run, metrics={"miou": 44.0}, evaluations=evaluations)
    assert read_scores(tmp_path) == {
        ("segmentation", SWIN, "mIoU ss"): 44.5,
        ("segmentation", SWIN, "mIoU ms"): 45.0,
    }


@pytest.mark.parametrize(
    ("epoch", "every", "counts"), [(299, 1, True), (36, 1, False), (294, 5, False), (293, 7, True)]
)
def test_a_run_that_has_not_ended_does_not_count(tmp_path, epoch, every, counts):
    recipe = {"trainer": {"max_epochs": 300, "check_val_every_n_epoch": every}, "model": {}}
    run = {"kind": "classification", "dataset": "imagenet1k", "model": DEIT, "recipe": recipe}
    _write(tmp_path, **run, metrics={"top1": 75.0}, curve=[{"epoch": epoch, "top1": 75.0}])
    assert bool(read_scores(tmp_path)) == counts


def test_the_printed_accuracy_of_cswin_is_that_of_averaged_weights(tmp_path):
    for model, epochs in (("graft_cswin_tiny_224", 310), (DEIT, 300)):
        recipe = {"trainer": {"max_epochs": epochs}, "model": {}}
        run = {"kind": "classification", "dataset": "imagenet1k", "model": model, "recipe": recipe}
        _write(tmp_path, **run, metrics={"top1": 70.0, "top1_ema": 80.0})
    assert read_scores(tmp_path) == {
        ("classification", "graft_cswin_tiny_224", "top-1"): 80.0,
        ("classification", DEIT, "top-1"): 70.0,
    }


def test_what_only_training_depends_on_does_not_count():
    spec = ModelSpec(f"{SWIN}.in1k", {"drop_path_rate": 0.2, "img_size": 64, "graft": {"init": "paper"}})
    assert architecture_of(spec) == f"{SWIN}:img_size=64"


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"kind": "classification"}', '{"kind": "detection", "dataset": "coco", "model": "m", "metrics": {}}'],
)
def test_a_broken_result_file_is_named(tmp_path, text):
    (tmp_path / "broken.json").write_text(text)
    with pytest.raises(ValueError, match=r"broken\.json: not a result file"):
        read_scores(tmp_path)
