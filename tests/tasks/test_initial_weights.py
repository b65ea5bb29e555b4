"""A run starts from the checkpoint of another, whatever way its model got its grafts; what does not fit is reported."""

import json

import pytest
import timm
import torch

import vitgraft
from vitgraft.errors import CheckpointError

pytest.importorskip("pytorch_lightning")
from vitgraft.predict.load import open_model
from vitgraft.tasks.classification import Classification
from vitgraft.tasks.detection import Detection
from vitgraft.tasks.segmentation import Segmentation

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

VIT = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 2}
SWIN = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8), "window_size": 4}
MODELS = {
    "a name and options": ("vit_tiny_patch16_224", {**VIT, "dynamic_img_size": True}, {"init": "identity"}),
    "a name and attention in windows": (
        "vit_tiny_patch16_224",
        {**VIT, "class_token": False, "global_pool": "avg", "dynamic_img_size": True},
        {"backbone_attention": "window", "window_size": 4},
    ),
    "a grafted name": ("graft_swin_tiny_patch4_window7_224", SWIN, {"levels": [1, 1, 0, 0]}),
}
HEADS = {
    Classification: {},
    Detection: {"detector": {"fpn_channels": 8, "box_channels": 8, "mask_channels": 8}},
    Segmentation: {"head_channels": 8, "aux_channels": 8},
}


def make(task, kind, classes=3, **kwargs):
    name, options, graft = MODELS[kind]
    made = task(name, classes, model_kwargs=options, graft=graft, **HEADS[task], **kwargs)
    made.configure_model()
    return made


def save(task, path, **more):
    """What `vitgraft fit` saves, as far as reading weights needs it; `more` changes what it states about itself."""
    where = f"{type(task).__module__}.{type(task).__qualname__}"
    hyper_parameters = {**task.hparams, **more}
    torch.save({"task": where, "hyper_parameters": hyper_parameters, "state_dict": task.model.state_dict()}, path)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("task", HEADS)
def test_from_a_checkpoint_of_the_same_model(tmp_path, capsys, task, kind):
    source = make(task, kind, seed=1)
    save(source, tmp_path / "last.ckpt")
    started = make(task, kind, seed=2, checkpoint_path=str(tmp_path))
    assert vitgraft.grafts(started.backbone_of(started.model))
    wanted = source.model.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in started.model.state_dict().items())
    assert f"{len(wanted)} tensors loaded" in capsys.readouterr().out


@pytest.mark.parametrize("kind", MODELS)
def test_a_classifier_of_other_classes_is_new(tmp_path, capsys, kind):
    source = make(Classification, kind, seed=1)
    save(source, tmp_path / "last.ckpt")
    started = make(Classification, kind, classes=5, seed=2, checkpoint_path=str(tmp_path))
    text = capsys.readouterr().out
    assert "3 classes, the model has 5" in text
    wanted = source.model.state_dict()
    new = [name for name, value in started.model.state_dict().items() if value.shape != wanted[name].shape]
    assert {name.rpartition(".")[2] for name in new} == {"weight", "bias"} and len(new) == 2
    own = started.model.state_dict()
    assert all(torch.equal(own[name], wanted[name]) for name in own if name not in new)


def test_a_backbone_under_identity_grafts_computes_what_it_did(tmp_path):
    name, options, _ = MODELS["a name and options"]
    backbone = timm.create_model(name, num_classes=3, **options).eval()
    torch.save(backbone.state_dict(), tmp_path / "backbone.pth")
    started = make(Classification, "a name and options", checkpoint_path=str(tmp_path / "backbone.pth"))
    image = torch.randn(1, 3, 32, 32)
    assert torch.equal(started.model.eval()(image), backbone(image))


@pytest.mark.parametrize("task", HEADS)
def test_grafts_that_the_model_does_not_have(tmp_path, task):
    source = make(task, "a name and options")
    torch.save(source.backbone_of(source.model).state_dict(), tmp_path / "backbone.pth")
    name, options, _ = MODELS["a name and options"]
    started = task(name, 3, model_kwargs=options, **HEADS[task], checkpoint_path=str(tmp_path / "backbone.pth"))
    with pytest.raises(CheckpointError, match="Tensors of grafts: make the model with the same grafts"):
        started.configure_model()


def _reports(text):
    assert "loading state_dict" not in text and "size mismatch" not in text
    assert "blocks.2." in text and "looks like a ViT or DeiT, with grafts" in text


@pytest.mark.parametrize("task", HEADS)
def test_weights_of_another_model_are_reported_by_name_on_every_way(tmp_path, task):
    source = make(task, "a name and options")
    kwargs = {**source.hparams.model_kwargs, "depth": 2}
    other = task(source.hparams.model, 3, model_kwargs=kwargs, graft={"init": "identity"}, **HEADS[task])
    other.configure_model()
    save(source, tmp_path / "other.ckpt", model_kwargs=kwargs)
    with pytest.raises(CheckpointError) as predict:
        open_model(tmp_path / "other.ckpt")
    _reports(str(predict.value))
    with pytest.raises(CheckpointError) as resume:
        other.load_state_dict(source.state_dict())
    _reports(str(resume.value))
    other.hparams.checkpoint_path = str(tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError) as start:
        other.build()
    assert "loading state_dict" not in str(start.value) and "blocks.2." in str(start.value)


def test_weights_of_another_model_by_name(tmp_path):
    source = make(Classification, "a name and options").model
    torch.save({"state_dict": source.state_dict()}, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError) as named:
        open_model(f"vit_tiny_patch16_224:checkpoint_path={tmp_path / 'last.ckpt'}:num_classes=3")
    assert "loading state_dict" not in str(named.value) and "looks like a ViT or DeiT, with grafts" in str(named.value)


def test_weights_of_another_model_in_an_exported_folder(tmp_path):
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 3, "pretrained_cfg": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save(make(Classification, "a name and options").model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="the weights do not fit the model: ") as exported:
        open_model(tmp_path)
    assert "loading state_dict" not in str(exported.value)
