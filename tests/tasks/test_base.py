"""What all tasks have in common: checks of options, the model from a name, what trains."""

import importlib
import sys

import pytest
import torch

import vitgraft
from vitgraft.errors import MissingExtraError, RecipeError

pytest.importorskip("pytorch_lightning")
pytest.importorskip("faster_coco_eval")
from small_tasks import HEADS, make, same

from vitgraft.tasks._initial_weights import features_of
from vitgraft.tasks.classification import Classification
from vitgraft.tasks.detection import Detection
from vitgraft.tasks.segmentation import Segmentation

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

INVALID = [
    (
        Classification,
        {"lr": -1.0, "mixup": -0.1, "smoothing": 1.0, "opt": "adamv", "betas": (0.9, 1.0), "sched": "cosin",
         "warmup_epochs": -1},
        ["model.lr=-1.0: should be greater than 0", "model.mixup", "model.smoothing", "model.opt", "model.betas[1]",
         "model.sched", "model.warmup_epochs"],
    ),
    (
        Detection,
        {"detector": {"fpn_chanels": 8, "proposals": 100, "finest": 0, "detections": 0}},
        ["fpn_channels", "proposals=100: should be a list", "finest=0", "detections=0"],
    ),
    (
        Segmentation,
        dict(head_channels=0, aux_weight=-1, dropout=1, window=0, scales=[], layer_decay=0.7, lr=0),
        [f"model.{name}" for name in ("head_channels", "aux_weight", "dropout", "window", "scales", "layer_decay",
                                      "lr")],
    ),
    (Segmentation, {"window": 8, "stride": 9}, ["stride=9: give 1 to 8"]),
    (Segmentation, {"decay_vectors": True, "layer_decay": 0.7}, ["decay_vectors: not", "layer_decay: UperNet"]),
    (Detection, {"sched": "multistep"}, ["sched='multistep': needs sched_kwargs"]),
]  # fmt: skip


@pytest.mark.parametrize(("task", "options", "messages"), INVALID)
def test_all_errors_at_once(task, options, messages):
    with pytest.raises(RecipeError) as caught:
        task("graft_swin_tiny_patch4_window7_224", **options)
    assert len(caught.value.errors) == len(messages)
    for message in messages:
        assert message in str(caught.value), message


@pytest.mark.parametrize(
    ("task", "model", "message"),
    [
        (Detection, "levit_128s", "strides=(4, 8, 16, 32)"),
        (Segmentation, "volo_d1_224", "model:"),
        (Segmentation, "beit_base_patch16_224", "model_kwargs: {img_size: ...}"),
    ],
)
def test_a_model_that_cannot_be_built(task, model, message):
    (error,) = task.build_errors({"model": model})
    assert message in error and ("4, 8" in error or "volo" in model or "224 x 224 pixels only" in error)
    # ViTs and Swins take any size without an option
    for good in ("graft_swin_tiny_patch4_window7_224", "swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"):
        assert task.build_errors({"model": good}) == []


@pytest.mark.parametrize("kind", ["a name and options", "a grafted name"])
@pytest.mark.parametrize("task", HEADS)
def test_grafts_and_new_parts_train_alone(task, kind, capsys):
    made = make(task, kind, train_grafts_only=True)
    frozen = {name for name, parameter in made.model.named_parameters() if not parameter.requires_grad}
    inside = {id(p): name for name, p in made.backbone_of(made.model).named_parameters()}
    assert frozen == {
        name
        for name, parameter in made.model.named_parameters()
        if id(parameter) in inside and ".graft." not in name and not inside[id(parameter)].startswith("head.")
    }
    assert vitgraft.is_grafted(made.model) and "training " in capsys.readouterr().out


@pytest.mark.parametrize("task", HEADS)
def test_rebuilt_from_hyper_parameters(task):
    made = make(task, "a name and options")
    again = task(**dict(made.hparams))
    again.configure_model()
    assert not same(made.model.state_dict(), make(task, "a name and options", seed=1).model.state_dict())
    again.load_state_dict(made.state_dict())
    assert same(made.model.state_dict(), again.model.state_dict())


def test_initial_weights_depend_on_the_seed_alone():
    first = make(Classification, "a grafted name", seed=3).model.state_dict()
    torch.rand(17)
    assert same(first, make(Classification, "a grafted name", seed=3).model.state_dict())
    assert not same(first, make(Classification, "a grafted name", seed=4).model.state_dict())


def test_no_classes():
    with pytest.raises(RecipeError, match="num_classes: not given"):
        Classification("vit_tiny_patch16_224").configure_model()


def test_missing_lightning_names_the_extra(monkeypatch):
    for name in ("base", "classification"):
        monkeypatch.delitem(sys.modules, f"vitgraft.tasks.{name}")
    monkeypatch.setitem(sys.modules, "pytorch_lightning", None)
    with pytest.raises(MissingExtraError, match=r"pytorch-lightning .*vitgraft\[train\]"):
        importlib.import_module("vitgraft.tasks.classification")


@pytest.mark.parametrize("task", [Detection, Segmentation])
def test_options_of_the_pyramid(task):
    """A graft's levels do not depend on what the last block does after its attention."""
    images = torch.randn(1, 3, 64, 64)
    for source in ("last", "levels"):
        made = make(task, "a name and attention in windows", pyramid={"source": source})
        features = features_of(made.model).eval()
        coarsest = features(images)[3]
        features.backbone.blocks[-1].mlp.fc2.weight.data.mul_(9)
        assert torch.equal(features(images)[3], coarsest) == (source == "levels")
    options = {"model": "graft_swin_tiny_patch4_window7_224", "pyramid": {"source": "levels"}}
    assert "hierarchical" in task.build_errors(options)[0]
    assert "pyramid.sorce" in task.option_errors({"pyramid": {"sorce": "levels"}})[0]
