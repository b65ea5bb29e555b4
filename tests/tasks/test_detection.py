"""The detection task: from a recipe's options to a run that goes on, its initial weights, and data without masks."""

import inspect

import pytest
import timm
import torch

import vitgraft
from vitgraft.errors import CheckpointError, ModelSpecError, RecipeError
from vitgraft.models.mask_rcnn import MaskRCNN

pl = pytest.importorskip("pytorch_lightning")
pytest.importorskip("faster_coco_eval")
from vitgraft.data.detection import DetectionBatch, DetectionData  # noqa: E402
from vitgraft.tasks._initial_weights import load_initial_weights  # noqa: E402
from vitgraft.tasks.detection import Detection, DetectorOptions  # noqa: E402
from vitgraft.training.callbacks.checkpoint import Checkpoints  # noqa: E402
from vitgraft.training.check_recipe import resolve  # noqa: E402
from vitgraft.weights.create import build_backbone  # noqa: E402
from vitgraft.weights.files import EMA_KEY, read_run  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

VIT = {"img_size": 64, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "dynamic_img_size": True}
HEADS = {"fpn_channels": 16, "box_channels": 32, "mask_channels": 16, "mask_convs": 1, "proposals": [40, 40]}
OPTIONS = {
    "model": "vit_tiny_patch16_224", "model_kwargs": {**VIT, "drop_path_rate": 0.3}, "graft": {"window_size": 4},
    "detector": HEADS, "lr": 3e-3, "warmup_steps": 2, "sched": "multistep",
    "sched_kwargs": {"decay_milestones": [1], "decay_rate": 0.1},
}  # fmt: skip


class Crash(pl.Callback):
    """Ends the process's run before a batch."""

    def __init__(self, at):
        self.at = at

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.fit_loop.total_batch_idx == self.at:
            raise RuntimeError("killed")


def run(out, at=None, resume=False, scenes=8, **options):
    task = Detection(**{**OPTIONS, **options})
    data = DetectionData(scenes=scenes, val_scenes=3, scene_size=64, batch_size=2, workers=0, seed=3)
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, max_epochs=2, logger=False, enable_progress_bar=False, num_sanity_val_steps=1,
        enable_model_summary=False, callbacks=[Checkpoints(every_n_steps=2), Crash(at)], default_root_dir=out,
        use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(task, datamodule=data, ckpt_path=out / "last.ckpt" if resume else None)
    return trainer, task


def test_a_run_that_was_cut_off_ends_as_the_one_that_was_not(tmp_path):
    trainer, task = run(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path / "cut", at=5)
    run(tmp_path / "cut", resume=True)
    whole, cut = (torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("whole", "cut"))
    assert whole["global_step"] == 8 and set(whole["state_dict"]) == set(cut["state_dict"])
    assert [
        name for name, value in whole["state_dict"].items() if not torch.equal(value, cut["state_dict"][name])
    ] == []
    # what the run logs, and what it leaves to rebuild the detector
    logged = trainer.callback_metrics
    assert {"train/loss", "train/loss_mask", "val/box_ap", "val/mask_ap50", "lr"} <= set(logged)
    assert logged["train/loss"] == pytest.approx(
        sum(value for name, value in logged.items() if name.startswith("train/loss_") and "epoch" not in name).item()
    )
    assert logged["lr"] == pytest.approx(3e-4)  # dropped after epoch 1
    saved, _ = read_run(tmp_path / "whole" / "last.ckpt")
    again = resolve(saved["task"], pl.LightningModule)(**saved["hyper_parameters"])
    again.configure_model()
    again.model.load_state_dict(whole["state_dict"])
    assert again.class_names == [str(i) for i in range(10)] and again.model.has_masks
    image = [torch.randn(3, 64, 64)]
    a, b = (model.eval()(image)[0] for model in (task.model, again.model))
    assert all(torch.equal(a[name], b[name]) for name in a)


class BoxesOnly(DetectionData):
    has_masks = False


def test_boxes_alone_train_a_faster_rcnn():
    task = Detection(**{**OPTIONS, "graft": None})
    data = BoxesOnly(scenes=4, val_scenes=2, scene_size=64, batch_size=2, workers=0)
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, max_epochs=1, logger=False, enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(task, datamodule=data)
    assert task.hparams.masks is False and not task.model.has_masks
    assert "val/box_ap" in trainer.callback_metrics and "val/mask_ap" not in trainer.callback_metrics


def test_a_batch_of_unreadable_images_is_left_out():
    task = Detection(**OPTIONS, num_classes=10)
    task.configure_model()
    metric = task.make_metric()
    task.evaluate(task.model, metric, DetectionBatch([], [], ["a.jpg: cut short"]))
    assert metric.report().numbers()["num_images"] == 0


def test_errors_are_named_all_at_once():
    with pytest.raises(RecipeError) as error:
        Detection("vit_tiny_patch16_224", detector={"fpn_chanels": 8, "proposals": 100, "finest": 0, "detections": 0})
    for text in ("fpn_channels", "proposals=100: should be a list", "finest=0", "detections=0"):
        assert text in str(error.value)
    assert Detection.build_errors({"model": "graft_swin_tiny_patch4_window7_224"}) == []
    (error,) = Detection.build_errors({"model": "levit_128s"})
    assert "4, 8, 16 and 32" in error


def test_every_option_of_the_detector_has_a_type():
    own = {name for name in inspect.signature(MaskRCNN).parameters if name not in ("model", "num_classes", "masks")}
    assert set(DetectorOptions.__annotations__) == own
    defaults = {name: inspect.signature(MaskRCNN).parameters[name].default for name in own}
    assert Detection.option_errors({"detector": defaults}) == []


@pytest.mark.parametrize(
    ("name", "hint"),
    [("vit_tiny_patch16_224", "dynamic_img_size: true"), ("swin_tiny_patch4_window7_224", "graft_swin_tiny_patch4_wi")],
)
def test_models_of_one_size_say_what_would_work(name, hint):
    with pytest.raises(ModelSpecError, match=hint):
        build_backbone(name, device="meta")


def test_what_does_not_decay():
    task = Detection(**OPTIONS, num_classes=3)
    task.configure_model()
    names = task.model.no_weight_decay()
    assert "backbone.features.backbone.pos_embed" in names
    assert names <= {name for name, _ in task.model.named_parameters()} | {
        f"backbone.features.backbone.{name}" for name in ("cls_token", "dist_token", "reg_token")
    }


# initial weights


def detector(model=None, classes=3, **kwargs):
    model = model or vitgraft.graft(timm.create_model("vit_tiny_patch16_224", **{**VIT, **kwargs}), window_size=4)
    return MaskRCNN(model, classes, **{**HEADS, "proposals": (40, 40)})


def classifier(**kwargs):
    torch.manual_seed(7)
    return timm.create_model("vit_tiny_patch16_224", num_classes=5, **{**VIT, **kwargs})


def loaded(model, path):
    return load_initial_weights(model, model.backbone.features, path)


def test_a_classifiers_weights_go_into_the_backbone(tmp_path):
    source = classifier()
    torch.save({"state_dict": source.state_dict()}, tmp_path / "timm.pth")
    model = detector()
    text = loaded(model, tmp_path / "timm.pth")
    inner = model.backbone.features.backbone.state_dict()
    want = {name: value for name, value in source.state_dict().items() if not name.startswith(("head.", "norm."))}
    assert all(torch.equal(inner[name], value) for name, value in want.items())
    assert f"{len(want)} tensors loaded" in text and "new, of grafts" in text and "4 skipped" in text
    assert "rpn.head (6 tensors)" in text and "roi_heads.mask_head (2 tensors)" in text
    assert "backbone.features (" in text  # the pyramid


def test_weights_of_another_image_size_are_resized_and_reported(tmp_path):
    torch.save(classifier(img_size=96).state_dict(), tmp_path / "larger.pth")
    model = detector()
    assert "pos_embed: (1, 145, 16) -> (1, 65, 16)" in loaded(model, tmp_path / "larger.pth")


@pytest.mark.parametrize(("averaged", "prefix"), [(False, "model."), (True, "model."), (False, ""), (True, "")])
def test_a_vitgraft_run_as_a_start(tmp_path, averaged, prefix):
    source, other = classifier(), {name: value + 1 for name, value in classifier().state_dict().items()}
    state = {f"{prefix}{name}": value for name, value in source.state_dict().items()}
    run = {"task": "x", "state_dict": state, "hyper_parameters": {}}
    if prefix:
        state["metrics.raw.n"] = torch.zeros(1)
    torch.save({**run, **({EMA_KEY: other} if averaged else {})}, tmp_path / "last.ckpt")
    model = detector()
    text = loaded(model, tmp_path / "last.ckpt")
    value = model.backbone.features.backbone.state_dict()["blocks.0.attn.qkv.weight"]
    assert torch.equal(value, (other if averaged else source.state_dict())["blocks.0.attn.qkv.weight"])
    assert ("averaged" in text) == averaged


def test_a_detector_of_other_classes_as_a_start(tmp_path):
    source, model = detector(classes=3), detector(classes=7)
    run = {"task": "x", "state_dict": {f"model.{name}": value for name, value in source.state_dict().items()}}
    torch.save(run, tmp_path / "last.ckpt")
    text = loaded(model, tmp_path / "last.ckpt")
    assert torch.equal(model.rpn.head.conv[0][0].weight, source.rpn.head.conv[0][0].weight)
    assert "6 skipped: roi_heads.box_predictor.cls_score.weight: (4, 32), the model has (8, 32)" in text
    other = detector(timm.create_model("resnet10t"))
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(CheckpointError, match="another backbone"):
        loaded(other, tmp_path / "last.ckpt")
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_swin_stages_and_wrong_files(tmp_path):
    small = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8), "window_size": 4}
    source = timm.create_model("graft_swin_tiny_patch4_window7_224", graft={"levels": [1, 1, 0, 0]}, **small)
    torch.save(source.state_dict(), tmp_path / "swin.pth")
    model = detector(timm.create_model("graft_swin_tiny_patch4_window7_224", graft={"levels": [1, 1, 0, 0]}, **small))
    text = loaded(model, tmp_path / "swin.pth")
    assert "not in the checkpoint: norm0.weight" in text and "4 skipped" in text  # the norms are new, head and norm go
    with pytest.raises(CheckpointError, match=r"checkpoint_path=.*\n.*looks like a Swin"):
        loaded(detector(), tmp_path / "swin.pth")
    with pytest.raises(CheckpointError, match="no such file"):
        loaded(model, tmp_path / "none.pth")


def test_a_checkpoint_wins_over_pretrained_weights(tmp_path, monkeypatch):
    torch.save(classifier().state_dict(), tmp_path / "timm.pth")
    asked = []
    monkeypatch.setattr(
        "vitgraft.tasks.detection.build_backbone",
        lambda name, kwargs, graft, pretrained: asked.append(pretrained) or build_backbone(name, kwargs, graft),
    )
    task = Detection(**OPTIONS, num_classes=3, pretrained=True, checkpoint_path=str(tmp_path / "timm.pth"))
    task.configure_model()
    assert asked == [False]
    value = task.model.backbone.features.backbone.blocks[0].attn.qkv.weight
    assert torch.equal(value, classifier().blocks[0].attn.qkv.weight)


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "graft_swin_tiny_patch4_window7_224"])
def test_grafts_and_all_that_is_new_train(model, capsys):
    swin = {"embed_dim": 16, "depths": [1, 2, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 2}
    options = {"model_kwargs": VIT} if model.startswith("vit") else {"model_kwargs": swin}
    graft = {"window_size": 4} if model.startswith("vit") else {"window_size": 2}
    task = Detection(**{**OPTIONS, "model": model, **options, "graft": graft}, num_classes=3, train_grafts_only=True)
    task.configure_model()
    prefix = "backbone.features.backbone."
    trains = {name: p.requires_grad for name, p in task.model.named_parameters()}
    assert any(name.startswith(prefix) and ".graft." in name for name in trains)
    assert {name for name, on in trains.items() if not on} == {
        name for name in trains if name.startswith(prefix) and ".graft." not in name
    }
    assert "training " in capsys.readouterr().out
