"""The detection task: from a recipe's options to a run and its checkpoint, and data without masks."""

import inspect

import pytest
import torch

from vitgraft.models.mask_rcnn import MaskRCNN

pytest.importorskip("pytorch_lightning")
pytest.importorskip("faster_coco_eval")
import pytorch_lightning as pl
from small_tasks import same, trainer

from vitgraft.data.detection import DetectionBatch, DetectionData
from vitgraft.tasks.detection import Detection, DetectorOptions
from vitgraft.training.callbacks.checkpoint import Checkpoints
from vitgraft.training.check_recipe import resolve
from vitgraft.weights.files import read_run

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

VIT = {"img_size": 64, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "dynamic_img_size": True}
HEADS = {"fpn_channels": 16, "box_channels": 32, "mask_channels": 16, "mask_convs": 1, "proposals": [40, 40]}
OPTIONS = {
    "model": "vit_tiny_patch16_224", "model_kwargs": {**VIT, "drop_path_rate": 0.3}, "graft": {"window_size": 4},
    "detector": HEADS, "lr": 3e-3, "warmup_steps": 2, "sched": "multistep",
    "sched_kwargs": {"decay_milestones": [1], "decay_rate": 0.1},
}  # fmt: skip


def test_a_run_and_its_checkpoint(tmp_path):
    """What it logs, and what it leaves to rebuild the detector; `callbacks/test_checkpoint.py` resumes one."""
    task = Detection(**OPTIONS)
    data = DetectionData(scenes=8, val_scenes=3, scene_size=64, batch_size=2, workers=0, seed=3)
    lightning = trainer(tmp_path, callbacks=[Checkpoints()], max_epochs=2, enable_checkpointing=True)
    lightning.fit(task, datamodule=data)
    logged = lightning.callback_metrics
    assert {"train/loss", "train/loss_mask", "val/box_ap", "val/mask_ap50", "lr"} <= set(logged)
    assert logged["train/loss"] == pytest.approx(
        sum(value for name, value in logged.items() if name.startswith("train/loss_") and "epoch" not in name).item()
    )
    assert logged["lr"] == pytest.approx(3e-4)  # dropped after epoch 1
    saved, _ = read_run(tmp_path / "last.ckpt")
    again = resolve(saved["task"], pl.LightningModule)(**saved["hyper_parameters"])
    again.configure_model()
    again.model.load_state_dict(saved["state_dict"])
    assert again.class_names == [str(i) for i in range(10)] and again.model.has_masks
    image = [torch.randn(3, 64, 64)]
    a, b = (model.eval()(image)[0] for model in (task.model, again.model))
    assert same(a, b)


class BoxesOnly(DetectionData):
    has_masks = False


def test_boxes_alone_train_a_faster_rcnn():
    task = Detection(**{**OPTIONS, "graft": None})
    data = BoxesOnly(scenes=4, val_scenes=2, scene_size=64, batch_size=2, workers=0)
    lightning = trainer(max_epochs=1)
    lightning.fit(task, datamodule=data)
    assert task.hparams.masks is False and not task.model.has_masks
    assert "val/box_ap" in lightning.callback_metrics and "val/mask_ap" not in lightning.callback_metrics


def test_a_batch_of_unreadable_images_is_left_out():
    task = Detection(**OPTIONS, num_classes=10)
    task.configure_model()
    metric = task.make_metric()
    task.evaluate(task.model, metric, DetectionBatch([], [], ["a.jpg: cut short"]))
    assert metric.report().numbers()["num_images"] == 0


def test_every_option_of_the_detector_has_a_type():
    own = {
        name
        for name in inspect.signature(MaskRCNN).parameters
        if name not in ("model", "num_classes", "masks", "pyramid")
    }
    assert set(DetectorOptions.__annotations__) == own
    defaults = {name: inspect.signature(MaskRCNN).parameters[name].default for name in own}
    assert Detection.option_errors({"detector": defaults}) == []


def test_what_does_not_decay():
    task = Detection(**OPTIONS, num_classes=3)
    task.configure_model()
    names = task.model.no_weight_decay()
    assert "backbone.features.backbone.pos_embed" in names
    assert names <= {name for name, _ in task.model.named_parameters()} | {
        f"backbone.features.backbone.{name}" for name in ("cls_token", "dist_token", "reg_token")
    }
