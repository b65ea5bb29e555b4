"""The segmentation task: loss, evaluation at any size and scale, and the files of its evaluations."""

import json

import pytest
import torch
from torch import nn

from vitgraft.errors import RecipeError

pytest.importorskip("pytorch_lightning")
pytest.importorskip("faster_coco_eval")
from small_tasks import trainer

from vitgraft.data.loader import Batch
from vitgraft.data.segmentation import SegmentationData
from vitgraft.metrics.segmentation import SegmentationMetrics
from vitgraft.tasks.segmentation import Segmentation
from vitgraft.training.callbacks.evaluation_files import EvaluationFiles
from vitgraft.training.check_recipe import recipe_errors
from vitgraft.weights.files import read_run

SWIN = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4, "img_size": 64}
SMALL = {
    "model": "graft_swin_tiny_patch4_window7_224",
    "model_kwargs": SWIN,
    "graft": {"window_size": 4, "levels": 1},
    "head_channels": 16,
    "aux_channels": 8,
}


def scenes(**options):
    plain = {"scale": (1.0, 1.0), "cat_max_ratio": 1.0, "hflip": 0.0, "photometric": False}
    sizes = {"batch_size": 4, "workers": 0, "scenes": 16, "val_scenes": 3, "scene_size": 64, "crop_size": 64}
    return SegmentationData(**{**plain, **sizes, **options})


def test_loss_is_the_mean_over_all_pixels():
    pixel_loss = Segmentation(nn.Conv2d(3, 3, 1), num_classes=3).loss
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
    run = trainer(tmp_path, max_epochs=10, check_val_every_n_epoch=10, num_sanity_val_steps=0)
    run.fit(task, data)
    metrics = {name: float(value) for name, value in run.callback_metrics.items()}
    assert metrics["train/loss"] == pytest.approx(
        metrics["train/loss_main"] + 0.4 * metrics["train/loss_aux"], rel=1e-5
    )
    assert metrics["train/loss_main"] < 1.5  # ln(11) = 2.4 at the start
    assert 0 < metrics["val/mIoU"] < metrics["val/acc"] < 1
    assert task.hparams.num_classes == 11 and task.class_names[:2] == ["background", "0"]
    run.save_checkpoint(tmp_path / "last.ckpt")
    saved, _ = read_run(tmp_path / "last.ckpt")
    options = saved["hyper_parameters"]
    assert saved["task"] == "vitgraft.tasks.segmentation.Segmentation"
    assert options["head_channels"] == 16 and options["class_names"][0] == "background"
    assert options["data_config"]["input_size"] == [3, 64, 64]


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


class Sizes(nn.Module):
    """Notes the sizes of its images."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def forward(self, images):
        self.sizes.append(tuple(images.shape[2:]))
        return images.new_zeros(images.shape[0], 11, *images.shape[2:])


@pytest.mark.parametrize(
    ("options", "folder", "sizes"),
    [
        ({}, "validate", [64]),
        ({"scales": [0.5, 1.0], "flip": True}, "validate_multi_scale", [32, 32, 64, 64]),
        ({"scales": [0.5]}, "validate_multi_scale", [32]),  # one, and not the plain one
        ({"window": 32, "stride": 32}, "validate_sliding", [32] * 4),
    ],
)
def test_options_of_the_inference_and_the_folder_of_their_files(tmp_path, options, folder, sizes):
    model = Sizes()
    task = Segmentation(model, num_classes=11, **options)
    trainer(tmp_path, callbacks=[EvaluationFiles()]).validate(task, scenes(val_scenes=1), verbose=False)
    assert model.sizes == [(size, size) for size in sizes]
    (file,) = tmp_path.glob("*/metrics.json")
    written = json.loads(file.read_text())
    assert file.parent.name == folder
    assert written["metrics"]["miou"] == task.reports["raw"].miou
    assert written["inference"] == {"window": None, "stride": None, "scales": [1.0], "flip": False, **options}


def test_recipes_are_checked_without_building():
    data = {"class_path": "SegmentationData", "init_args": {}}
    recipe = {
        "model": {"class_path": "Segmentation", "init_args": {"model": "resnet18", "head_chanels": 3}},
        "data": data,
    }
    text = "\n".join(recipe_errors(recipe, {}, {}, {}))
    assert "head_chanels" in text and "head_channels" in text


def test_one_image_a_step_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"batch_size=1.*accumulate_grad_batches"):
        trainer(tmp_path, max_steps=1).fit(Segmentation(**SMALL), scenes(batch_size=1))
