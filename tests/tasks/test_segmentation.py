import json

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

import vitgraft
from vitgraft.data.loader import Batch
from vitgraft.data.segmentation import SegmentationData
from vitgraft.errors import CheckpointError, RecipeError
from vitgraft.metrics.segmentation import SegmentationMetrics
from vitgraft.tasks.segmentation import Segmentation, pixel_loss
from vitgraft.training.check_recipe import recipe_errors

SWIN = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4, "img_size": 64}
SMALL = {
    "model": "graft_swin_tiny_patch4_window7_224",
    "model_kwargs": SWIN,
    "graft": {"window_size": 4, "levels": 1},
    "head_channels": 16,
    "aux_channels": 8,
}


def trainer(folder, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    saving = {"enable_checkpointing": False, "num_sanity_val_steps": 0}
    return pl.Trainer(default_root_dir=folder, accelerator="cpu", devices=1, **{**quiet, **saving, **options})


def scenes(**options):
    plain = {"scale": (1.0, 1.0), "cat_max_ratio": 1.0, "hflip": 0.0, "photometric": False}
    sizes = {"batch_size": 4, "workers": 0, "scenes": 16, "val_scenes": 3, "scene_size": 64, "crop_size": 64}
    return SegmentationData(**{**plain, **sizes, **options})


def test_loss_is_the_mean_over_all_pixels():
    logits, labels = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    labels[0, :2] = 255
    probability = logits.softmax(1)
    expected = [
        -probability[b, labels[b, y, x], y, x].log().item()
        for b in range(2)
        for y in range(4)
        for x in range(5)
        if labels[b, y, x] != 255
    ]
    assert pixel_loss(logits, labels).item() == pytest.approx(sum(expected) / labels.numel(), rel=1e-5)
    logits.requires_grad_()
    nothing = pixel_loss(logits, torch.full_like(labels, 255))
    nothing.backward()
    assert nothing.item() == 0 and not logits.grad.any()


def test_a_few_steps_on_digit_scenes(tmp_path):
    task, data = Segmentation(**SMALL, lr=1e-2), scenes()
    run = trainer(tmp_path, max_epochs=10, check_val_every_n_epoch=10)
    run.fit(task, data)
    found = {name: float(value) for name, value in run.callback_metrics.items()}
    assert found["train/loss"] == pytest.approx(found["train/loss_main"] + 0.4 * found["train/loss_aux"], rel=1e-5)
    assert found["train/loss_main"] < 1.5  # ln(11) = 2.4 at the start
    assert 0 < found["val/mIoU"] < found["val/acc"] < 1
    assert task.hparams.num_classes == 11 and task.class_names[:2] == ["background", "0"]
    report = task.reports["raw"]
    task.write_report(tmp_path / "test", report, "title", {"stage": "test"}, [])
    written = json.loads((tmp_path / "test" / "metrics.json").read_text())
    assert written["metrics"]["miou"] == pytest.approx(found["val/mIoU"])
    assert written["inference"] == {"window": None, "stride": None, "scales": [1.0], "flip": False}


def test_ground_truth_fed_back_is_perfect_and_labels_of_other_sizes_count():
    class Oracle(nn.Module):
        """Reads the class out of the image."""

        def forward(self, images):
            classes = images[:, 0].round().long().clamp(0, 4)
            return 50.0 * nn.functional.one_hot(classes, 5).movedim(-1, 1)

    task, metric = Segmentation(Oracle(), num_classes=5), SegmentationMetrics(5)
    labels = [torch.randint(0, 5, (9, 14)), torch.randint(0, 5, (20, 6))]
    labels[0][0] = 255
    images = [label.clamp(max=4).float().expand(3, -1, -1) for label in labels]
    task.evaluate(task.model, metric, Batch(images, labels, torch.arange(2), []))
    assert metric.report().numbers()["miou"] == 1.0
    blocks = torch.randint(0, 5, (6, 4)).repeat_interleave(8, 0).repeat_interleave(8, 1)
    for option in ({}, {"window": 16}, {"scales": (1.0, 2.0), "flip": True}):
        metric = SegmentationMetrics(5)
        task = Segmentation(Oracle(), num_classes=5, **option)
        small = blocks[::4, ::4].float().expand(3, -1, -1)  # a quarter of the label's size
        task.evaluate(task.model, metric, Batch([small], [blocks], torch.arange(1), []))
        assert metric.report().numbers()["pixel_accuracy"] > 0.6


def test_images_that_are_all_to_be_ignored_and_empty_batches():
    task, metric = Segmentation(nn.Conv2d(3, 4, 1), num_classes=4), SegmentationMetrics(4)
    task.evaluate(task.model, metric, Batch([], [], torch.arange(0), ["x.png: broken"]))
    label = torch.full((5, 5), 255)
    task.evaluate(task.model, metric, Batch([torch.zeros(3, 5, 5)], [label], torch.arange(1), []))
    report = metric.report()
    assert report.num_images == 1 and report.num_ignored == 25 and report.numbers()["num_absent"] == 4


def test_multi_scale_is_an_option_of_the_evaluation(tmp_path):
    sizes = []

    class Sizes(nn.Module):
        def forward(self, images):
            sizes.append(tuple(images.shape[2:]))
            return images.new_zeros(images.shape[0], 11, *images.shape[2:])

    task = Segmentation(Sizes(), num_classes=11, scales=[0.5, 1.0], flip=True)
    trainer(tmp_path).validate(task, scenes(val_scenes=1), verbose=False)
    assert sizes == [(32, 32)] * 2 + [(64, 64)] * 2
    files = task.write_report(tmp_path / "validate", task.reports["raw"], "title", {}, [])
    assert {file.parent for file in files} == {tmp_path / "validate_multi_scale"}
    task.hparams.update(scales=[0.5], flip=False)  # one, and not the plain one
    files = task.write_report(tmp_path / "validate", task.reports["raw"], "title", {}, [])
    assert {file.parent for file in files} == {tmp_path / "validate_multi_scale"}


def test_all_wrong_options_at_once():
    wrong = {"head_channels": 0, "aux_weight": -1, "dropout": 1, "window": 0, "scales": [], "layer_decay": 0.7, "lr": 0}
    with pytest.raises(RecipeError) as error:
        Segmentation("graft_swin_tiny_patch4_window7_224", **wrong)
    for name in wrong:
        assert f"model.{name}" in str(error.value), name
    with pytest.raises(RecipeError, match="stride=9: give 1 to 8"):
        Segmentation("graft_swin_tiny_patch4_window7_224", window=8, stride=9)


def test_recipes_are_checked_without_building():
    data = {"class_path": "SegmentationData", "init_args": {}}
    recipe = {
        "model": {"class_path": "Segmentation", "init_args": {"model": "resnet18", "head_chanels": 3}},
        "data": data,
    }
    text = "\n".join(recipe_errors(recipe, {}, {}, {}))
    assert "head_chanels" in text and "head_channels" in text
    assert Segmentation.build_errors({"model": "graft_swin_tiny_patch4_window7_224"}) == []
    (error,) = Segmentation.build_errors({"model": "volo_d1_224"})
    assert error.startswith("model:")


@pytest.mark.parametrize(
    ("name", "hint"),
    [("vit_tiny_patch16_224", "dynamic_img_size: true"), ("swin_tiny_patch4_window7_224", "graft_swin")],
)
def test_a_backbone_of_one_size_is_refused(name, hint):
    (error,) = Segmentation.build_errors({"model": name})
    assert "224 x 224 pixels only" in error and hint in error


def test_one_image_a_step_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"batch_size=1.*accumulate_grad_batches"):
        trainer(tmp_path, max_steps=1).fit(Segmentation(**SMALL), scenes(batch_size=1))


def test_start_weights(tmp_path, capsys):
    torch.manual_seed(1)
    source = Segmentation(**SMALL, num_classes=7)
    source.configure_model()
    torch.save({"state_dict": source.model.state_dict()}, tmp_path / "whole.pth")
    torch.save({"model": source.backbone_of(source.model).state_dict()}, tmp_path / "backbone.pth")
    name = "patch_embed.proj.weight"
    for file in ("whole.pth", "backbone.pth"):
        task = Segmentation(**SMALL, num_classes=4, seed=5, checkpoint_path=str(tmp_path / file))
        task.configure_model()
        backbone, start = task.backbone_of(task.model), source.backbone_of(source.model)
        assert torch.equal(backbone.get_parameter(name), start.get_parameter(name))
        assert task.model.decode_head.conv_seg.weight.shape[0] == 4
        assert "tensors loaded" in capsys.readouterr().out
    torch.save({"model": {name: start.get_parameter(name)}}, tmp_path / "part.pth")
    for file, message in (("part.pth", "tensors of the model are missing"), ("none.pth", "no such file")):
        with pytest.raises(CheckpointError, match=message):
            Segmentation(**SMALL, num_classes=4, checkpoint_path=str(tmp_path / file)).configure_model()


def test_start_weights_of_a_runs_folder(tmp_path, capsys):
    task = Segmentation(**SMALL, num_classes=3)
    task.configure_model()
    run = {"task": "x", "hyper_parameters": {}, "state_dict": task.model.state_dict()}
    (tmp_path / "runs/one").mkdir(parents=True)
    torch.save(run, tmp_path / "runs/one/last.ckpt")
    with pytest.raises(CheckpointError, match=r"checkpoint_path=.*runs: neither a run.*there are checkpoints in .*one"):
        Segmentation(**SMALL, num_classes=3, checkpoint_path=str(tmp_path / "runs")).configure_model()
    for name in ("last.ckpt", "best.ckpt"):  # the best where there is one
        torch.save(run, tmp_path / "runs/one" / name)
        started = Segmentation(**SMALL, num_classes=3, seed=9, checkpoint_path=str(tmp_path / "runs/one"))
        capsys.readouterr()
        started.configure_model()
        assert f"one/{name}" in capsys.readouterr().out
        assert torch.equal(started.model.decode_head.conv_seg.weight, task.model.decode_head.conv_seg.weight)


def test_a_detector_starts_a_segmenter_and_the_other_way_round(tmp_path, capsys):
    pytest.importorskip("faster_coco_eval")
    from vitgraft.tasks.detection import Detection

    same = {name: SMALL[name] for name in ("model", "model_kwargs", "graft")}
    heads = {"fpn_channels": 8, "box_channels": 8, "mask_channels": 8, "proposals": (20, 20)}
    tasks = {
        "detector": Detection(**same, detector=heads, num_classes=3),
        "segmenter": Segmentation(**SMALL, num_classes=3),
    }
    for name, task in tasks.items():
        torch.manual_seed(3)
        task.configure_model()
        run = {"task": name, "hyper_parameters": {}, "state_dict": task.model.state_dict()}
        torch.save(run, tmp_path / f"{name}.ckpt")
    path = str(tmp_path / "detector.ckpt")
    started = Segmentation(**SMALL, num_classes=3, seed=9, checkpoint_path=path)
    started.configure_model()
    assert "a detector's without its heads" in capsys.readouterr().out
    source = tasks["detector"].model.backbone.features.state_dict()
    assert all(torch.equal(value, source[name]) for name, value in started.model.backbone.state_dict().items())
    path = str(tmp_path / "segmenter.ckpt")
    started = Detection(**same, detector=heads, num_classes=3, seed=9, checkpoint_path=path)
    started.configure_model()
    assert "a segmenter's without its heads" in capsys.readouterr().out
    source = tasks["segmenter"].model.backbone.state_dict()
    assert all(torch.equal(value, source[name]) for name, value in started.model.backbone.features.state_dict().items())


def test_checkpoint_brings_the_task_back(tmp_path):
    from vitgraft.weights.files import read_run

    task = Segmentation(**SMALL, lr=1e-3)
    run = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    run.fit(task, scenes())
    run.save_checkpoint(tmp_path / "last.ckpt")
    saved, _ = read_run(tmp_path / "last.ckpt")
    options = saved["hyper_parameters"]
    assert saved["task"] == "vitgraft.tasks.segmentation.Segmentation"
    assert options["head_channels"] == 16 and options["class_names"][0] == "background"
    assert options["data_config"]["input_size"] == [3, 64, 64]


def test_grafts_alone_train(tmp_path):
    task = Segmentation(**SMALL, num_classes=3, train_grafts_only=True)
    task.configure_model()
    frozen = [name for name, p in task.backbone_of(task.model).named_parameters() if not p.requires_grad]
    assert frozen and not any(".graft." in name for name in frozen)
    assert vitgraft.is_grafted(task.backbone_of(task.model))
    assert task.model.decode_head.conv_seg.weight.requires_grad
