"""A run starts from the checkpoint of another, whatever way its model got its grafts; what does not fit is reported."""

import json

import pytest
import timm
import torch

import vitgraft
from vitgraft.errors import CheckpointError

pytest.importorskip("pytorch_lightning")
pytest.importorskip("faster_coco_eval")
from small_tasks import HEADS, MODELS, SWIN, make

from vitgraft.predict.load import open_model
from vitgraft.tasks.classification import Classification
from vitgraft.tasks.detection import Detection
from vitgraft.tasks.segmentation import Segmentation
from vitgraft.weights.files import EMA_KEY

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

NAME, OPTIONS, _ = MODELS["a name and options"]


def save(task, path, **more):
    """What `vitgraft fit` saves, as far as reading weights needs it; `more` changes what it states about itself."""
    where = f"{type(task).__module__}.{type(task).__qualname__}"
    hyper_parameters = {**task.hparams, **more}
    torch.save({"task": where, "hyper_parameters": hyper_parameters, "state_dict": task.model.state_dict()}, path)


def classifier(**options):
    torch.manual_seed(7)
    return timm.create_model(NAME, num_classes=5, **{**OPTIONS, **options})


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("task", HEADS)
def test_from_a_checkpoint_of_the_same_model(tmp_path, capsys, task, kind):
    source = make(task, kind, seed=1)
    save(source, tmp_path / "last.ckpt")
    started = make(task, kind, seed=2, checkpoint_path=str(tmp_path))
    assert vitgraft.grafts(started.backbone_of(started.model))
    expected = source.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in started.model.state_dict().items())
    assert f"{len(expected)} tensors loaded" in capsys.readouterr().out


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("task", HEADS)
def test_layers_of_other_classes_are_new(tmp_path, capsys, task, kind):
    source = make(task, kind, seed=1)
    save(source, tmp_path / "last.ckpt")
    started = make(task, kind, classes=5, seed=2, checkpoint_path=str(tmp_path))
    text = capsys.readouterr().out
    assert ("3 classes, the model has 5" if task is Classification else "skipped") in text
    expected, own = source.model.state_dict(), started.model.state_dict()
    new = [name for name, value in own.items() if value.shape != expected[name].shape]
    # a weight and a bias of: the classifier; scores, boxes and masks; the head and the auxiliary head
    assert len(new) == {Classification: 2, Detection: 6, Segmentation: 4}[task]
    assert all(torch.equal(own[name], expected[name]) for name in own if name not in new)


def test_a_backbone_under_identity_grafts_computes_what_it_did(tmp_path):
    backbone = timm.create_model(NAME, num_classes=3, **OPTIONS).eval()
    torch.save(backbone.state_dict(), tmp_path / "backbone.pth")
    started = make(Classification, "a name and options", checkpoint_path=str(tmp_path / "backbone.pth"))
    image = torch.randn(1, 3, 32, 32)
    assert torch.equal(started.model.eval()(image), backbone(image))


def test_a_classifier_starts_a_detector(tmp_path, capsys):
    source = classifier().state_dict()
    torch.save({"state_dict": source}, tmp_path / "timm.pth")
    started = make(Detection, "a name and options", checkpoint_path=str(tmp_path / "timm.pth"))
    text = capsys.readouterr().out
    inner = started.backbone_of(started.model).state_dict()
    expected = {name: value for name, value in source.items() if not name.startswith(("head.", "norm."))}
    assert all(torch.equal(inner[name], value) for name, value in expected.items())
    assert f"{len(expected)} tensors loaded" in text and "new, of grafts" in text and "4 skipped" in text
    assert "rpn.head (6 tensors)" in text and "roi_heads.mask_head (2 tensors)" in text
    assert "backbone.features (" in text  # the pyramid


def test_weights_of_another_image_size_are_resized_and_reported(tmp_path, capsys):
    torch.save(classifier(img_size=48).state_dict(), tmp_path / "larger.pth")
    make(Detection, "a name and options", checkpoint_path=str(tmp_path / "larger.pth"))
    assert "pos_embed: (1, 145, 32) -> (1, 65, 32)" in capsys.readouterr().out


@pytest.mark.parametrize(("averaged", "prefix"), [(False, "model."), (True, "model."), (False, ""), (True, "")])
def test_averaged_weights_of_a_run_are_preferred(tmp_path, capsys, averaged, prefix):
    source, other = classifier().state_dict(), {name: value + 1 for name, value in classifier().state_dict().items()}
    state = {f"{prefix}{name}": value for name, value in source.items()}
    run = {"task": "x", "state_dict": state, "hyper_parameters": {}}
    if prefix:
        state["metrics.raw.n"] = torch.zeros(1)
    torch.save({**run, **({EMA_KEY: other} if averaged else {})}, tmp_path / "last.ckpt")
    started = make(Detection, "a name and options", checkpoint_path=str(tmp_path / "last.ckpt"))
    value = started.backbone_of(started.model).blocks[0].attn.qkv.weight
    assert torch.equal(value, (other if averaged else source)["blocks.0.attn.qkv.weight"])
    assert ("(averaged weights)" in capsys.readouterr().out) == averaged


def test_stages_of_swin_get_new_norms(tmp_path, capsys):
    source = timm.create_model("graft_swin_tiny_patch4_window7_224", graft={"levels": [1, 1, 0, 0]}, **SWIN)
    path = str(tmp_path / "swin.pth")
    torch.save(source.state_dict(), path)
    make(Detection, "a grafted name", checkpoint_path=path)
    text = capsys.readouterr().out
    assert "not in the checkpoint: norm0.weight" in text and "4 skipped" in text
    with pytest.raises(CheckpointError, match=r"checkpoint_path=.*\n.*looks like a Swin"):
        make(Detection, "a name and options", checkpoint_path=path)


def test_a_whole_segmenter_and_its_backbone_without_a_run(tmp_path, capsys):
    source = make(Segmentation, "a grafted name", classes=7, seed=1)
    first = source.backbone_of(source.model).state_dict()
    torch.save({"state_dict": source.model.state_dict()}, tmp_path / "whole.pth")
    torch.save({"model": first}, tmp_path / "backbone.pth")
    name = "patch_embed.proj.weight"
    for file in ("whole.pth", "backbone.pth"):
        started = make(Segmentation, "a grafted name", classes=4, seed=5, checkpoint_path=str(tmp_path / file))
        assert torch.equal(started.backbone_of(started.model).get_parameter(name), first[name])
        assert started.model.decode_head.conv_seg.weight.shape[0] == 4
        assert "tensors loaded" in capsys.readouterr().out
    torch.save({"model": {name: first[name]}}, tmp_path / "part.pth")
    for file, message in (("part.pth", "tensors of the model are missing"), ("none.pth", "no such file")):
        with pytest.raises(CheckpointError, match=message):
            make(Segmentation, "a grafted name", checkpoint_path=str(tmp_path / file))


@pytest.mark.parametrize(("one", "other", "name"), [
    (Detection, Segmentation, "detector"), (Segmentation, Detection, "segmenter"),
])  # fmt: skip
def test_a_detector_starts_a_segmenter_and_the_other_way_round(tmp_path, capsys, one, other, name):
    source = make(one, "a grafted name", seed=3)
    save(source, tmp_path / "last.ckpt")
    started = make(other, "a grafted name", seed=9, checkpoint_path=str(tmp_path / "last.ckpt"))
    assert f"a {name}'s without its heads" in capsys.readouterr().out
    expected = source.backbone_of(source.model).state_dict()
    own = started.backbone_of(started.model).state_dict()
    assert own.keys() == expected.keys() and all(torch.equal(value, expected[key]) for key, value in own.items())


def test_a_checkpoint_wins_over_pretrained_weights(tmp_path, monkeypatch):
    """Which are not even downloaded."""
    torch.save(classifier().state_dict(), tmp_path / "timm.pth")
    asked, build = [], Detection.build
    monkeypatch.setattr(
        Detection, "build", lambda task, pretrained=False, device=None: asked.append(pretrained) or build(task)
    )
    options = {"pretrained": True, "checkpoint_path": str(tmp_path / "timm.pth")}
    started = make(Detection, "a name and options", **options)
    assert asked == [False]
    value = started.backbone_of(started.model).blocks[0].attn.qkv.weight
    assert torch.equal(value, classifier().blocks[0].attn.qkv.weight)


@pytest.mark.parametrize("task", HEADS)
def test_grafts_that_the_model_does_not_have(tmp_path, task):
    source = make(task, "a name and options")
    torch.save(source.backbone_of(source.model).state_dict(), tmp_path / "backbone.pth")
    with pytest.raises(CheckpointError, match="Tensors of grafts: make the model with the same grafts"):
        make(task, "a name and options", graft=None, checkpoint_path=str(tmp_path / "backbone.pth"))


def _reports(text):
    assert "loading state_dict" not in text and "size mismatch" not in text
    assert "blocks.2." in text and "looks like a ViT or DeiT, with grafts" in text


@pytest.mark.parametrize("task", HEADS)
def test_weights_of_another_model_are_reported_by_name_on_every_way(tmp_path, task):
    source = make(task, "a name and options")
    smaller = {"model_kwargs": {**OPTIONS, "depth": 2}}
    other = make(task, "a name and options", **smaller)
    save(source, tmp_path / "other.ckpt", **smaller)
    with pytest.raises(CheckpointError) as predict:
        open_model(tmp_path / "other.ckpt")
    _reports(str(predict.value))
    with pytest.raises(CheckpointError) as resume:
        other.load_state_dict(source.state_dict())
    _reports(str(resume.value))
    with pytest.raises(CheckpointError) as start:
        make(task, "a name and options", **smaller, checkpoint_path=str(tmp_path / "other.ckpt"))
    assert "loading state_dict" not in str(start.value) and "blocks.2." in str(start.value)
    if task is not Classification:
        assert "another backbone; nothing was loaded" in str(start.value)


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
