"""Weights of classes, and the losses by their formulas."""

import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torchvision.ops import sigmoid_focal_loss

from vitgraft.errors import RecipeError

pytest.importorskip("pytorch_lightning")
from small_tasks import make, trainer

from vitgraft.data.classification import ImageData
from vitgraft.data.segmentation import SegmentationData
from vitgraft.tasks.classification import Classification
from vitgraft.tasks.losses import balanced_weights, cross_entropy, dice_loss, focal_loss
from vitgraft.tasks.segmentation import Segmentation

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 0.0])


def test_balanced_weights_are_those_of_scikit_learn():
    counts = [50, 3, 0, 7]
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    one, two, three = compute_class_weight("balanced", classes=torch.tensor([0, 1, 3]).numpy(), y=labels)
    weights = balanced_weights(counts)
    assert weights == pytest.approx([one, two, 1.0, three], rel=1e-5)
    mean = sum(weight * count for weight, count in zip(weights, counts, strict=True)) / sum(counts)
    assert mean == pytest.approx(1.0, rel=1e-5)


def test_weighted_cross_entropy_by_its_formula():
    logits, labels = torch.randn(9, 4), torch.randint(4, (9,))
    logs = logits.log_softmax(1)
    expected = -sum(WEIGHTS[label] * log[label] for log, label in zip(logs, labels, strict=True)) / 9
    torch.testing.assert_close(cross_entropy(logits, labels, WEIGHTS), expected)
    soft = torch.rand(9, 4)  # mixed labels
    torch.testing.assert_close(cross_entropy(logits, soft, WEIGHTS), -(WEIGHTS * soft * logs).sum() / 9)
    hard = torch.nn.functional.one_hot(labels, 4).float()
    torch.testing.assert_close(cross_entropy(logits, hard, WEIGHTS), cross_entropy(logits, labels, WEIGHTS))
    pixels, map_of = torch.randn(2, 4, 3, 5), torch.randint(4, (2, 3, 5))
    map_of[0, 0] = 255
    each = [cross_entropy(pixels[b, :, y, x][None], map_of[b, y, x][None], WEIGHTS)
            for b in range(2) for y in range(3) for x in range(5) if map_of[b, y, x] != 255]  # fmt: skip
    torch.testing.assert_close(cross_entropy(pixels, map_of, WEIGHTS, ignore_index=255), sum(each) / 30)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_of_two_classes_is_torchvisions(gamma):
    logits, labels = torch.randn(7, 2), torch.randint(2, (7,))
    weight = torch.tensor([0.75, 0.25])  # 1 - alpha, alpha
    expected = sigmoid_focal_loss(logits[:, 1] - logits[:, 0], labels.float(), 0.25, gamma, "mean")
    torch.testing.assert_close(focal_loss(logits, labels, weight, gamma), expected)
    if gamma == 0:
        torch.testing.assert_close(focal_loss(logits, labels, weight, 0.0), cross_entropy(logits, labels, weight))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_loss_of_pixels_and_certain_ones(gamma):
    logits, labels = torch.randn(2, 4, 3, 5, dtype=torch.float64, requires_grad=True), torch.randint(4, (2, 3, 5))
    labels[0, 0] = 255
    probability = logits.detach().softmax(1)
    each = [
        -WEIGHTS[labels[b, y, x]] * (1 - p) ** gamma * p.log()
        for b in range(2) for y in range(3) for x in range(5)
        if labels[b, y, x] != 255 for p in [probability[b, labels[b, y, x], y, x]]
    ]  # fmt: skip
    torch.testing.assert_close(
        focal_loss(logits, labels, WEIGHTS, gamma, 255).double(), sum(each) / 30, rtol=1e-5, atol=1e-7
    )
    certain = torch.tensor([[60.0, 0.0], [0.0, 60.0]], requires_grad=True)
    focal_loss(certain, torch.tensor([0, 0]), gamma=gamma).backward()
    focal_loss(logits, torch.full_like(labels, 255), gamma=gamma, ignore_index=255).backward()
    assert certain.grad.isfinite().all() and not logits.grad.any()


def test_dice_loss_is_that_of_segmentation_models_pytorch():
    """Which divides by the number of all classes, here by that of the classes in the batch."""
    losses = pytest.importorskip("segmentation_models_pytorch.losses")
    logits, labels = torch.randn(2, 5, 6, 7, requires_grad=True), torch.randint(4, (2, 6, 7))
    labels[1, :3] = 255
    theirs = losses.DiceLoss("multiclass", ignore_index=255)
    ours, expected = dice_loss(logits, labels, 255), theirs(logits, labels) * 5 / 4
    torch.testing.assert_close(ours, expected)
    gradients = [torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (ours, expected)]
    torch.testing.assert_close(*gradients)
    perfect = 50.0 * torch.nn.functional.one_hot(labels.where(labels != 255, 0), 5).movedim(-1, 1)
    assert dice_loss(perfect, labels, 255).item() == pytest.approx(0, abs=1e-6)
    dice_loss(logits, torch.full_like(labels, 255), 255).backward()
    assert not logits.grad.any()


@pytest.mark.parametrize("loss", ["focal", "dice", "cross_entropy+dice", "focal+dice"])
def test_losses_of_a_segmenter(loss):
    weights = {} if loss == "dice" else {"class_weights": [0.5, 2.0, 1.0, 1.0]}
    task = Segmentation(torch.nn.Conv2d(3, 4, 1), num_classes=4, loss=loss, focal_gamma=1.0, **weights)
    task.class_weights = torch.tensor(weights["class_weights"]) if weights else None
    logits, labels = torch.randn(2, 4, 3, 5), torch.randint(4, (2, 3, 5))
    parts = {
        "cross_entropy": cross_entropy(logits, labels, task.class_weights),
        "focal": focal_loss(logits, labels, task.class_weights, 1.0),
        "dice": dice_loss(logits, labels),
    }
    torch.testing.assert_close(task.loss(logits, labels), sum(parts[name] for name in loss.split("+")))


@pytest.mark.parametrize("world_size", [1, 3])
def test_the_gradient_of_a_batch_is_the_mean_of_its_parts(world_size):
    """As the processes of a run and accumulated steps make it."""
    logits, labels = torch.randn(6, 4, requires_grad=True), torch.tensor([0, 0, 1, 2, 2, 2])
    cross_entropy(logits, labels, WEIGHTS).backward()
    whole, logits.grad = logits.grad, None
    for rank in range(world_size):
        (cross_entropy(logits[rank::world_size], labels[rank::world_size], WEIGHTS) / world_size).backward()
    torch.testing.assert_close(logits.grad, whole)


@pytest.fixture
def uneven(class_folders, tmp_path):
    """8 cats, 2 dogs and 4 eels to train on."""
    import shutil

    shutil.copytree(class_folders, tmp_path / "uneven")
    for name, kept in (("dog", 2), ("eel", 4)):
        for file in sorted((tmp_path / "uneven/train" / name).iterdir())[kept:]:
            file.unlink()
    return tmp_path / "uneven"


def test_balanced_weights_of_images_are_printed_and_recorded(run_command, recipe, uneven, tmp_path):
    import json

    from vitgraft.weights.files import read_checkpoint

    out = tmp_path / "run"
    words = ["fit", "--config", recipe, "--data.root", uneven, "--data.batch_size", 4, "--out", out]
    code, printed, err = run_command(*words, "--model.class_weights", "balanced")
    assert code == 0, err
    assert "class weights: cat 0.5833 (of 8), dog 2.333 (of 2), eel 1.167 (of 4)" in printed
    named = {"cat": 0.583333, "dog": 2.33333, "eel": 1.16667}
    assert json.loads((out / "run.json").read_text())["class_weights"] == named
    assert read_checkpoint(out / "last.ckpt")["hyper_parameters"]["class_weights"] == list(named.values())
    assert "class_weights" not in read_checkpoint(out / "last.ckpt")["state_dict"]
    code, printed, err = run_command("validate", "--ckpt_path", out)
    assert code == 0 and "class weights" not in printed, err
    code, _, err = run_command(*words, "--model.class_weights", "balanced", "--resume")
    assert code == 0, err


def test_weights_reach_the_loss(uneven):
    task = make(Classification, "a name and options", class_weights="balanced", mixup=0.5)
    data = ImageData(str(uneven), batch_size=4, workers=0, input_size=32)
    trainer(max_steps=1).fit(task, data)
    assert task.class_weights.tolist() == pytest.approx(balanced_weights([8, 2, 4]))
    logits, soft = torch.randn(4, 3), torch.rand(4, 3)
    torch.testing.assert_close(task.loss(logits, soft), cross_entropy(logits, soft, task.class_weights))


def test_balanced_weights_of_pixels(capsys):
    task = make(Segmentation, "a grafted name", 11, class_weights="balanced", model_kwargs={"depths": (1, 1, 1, 1),
                "embed_dim": 16, "num_heads": (1, 2, 4, 8), "window_size": 4}, graft={"blocks": []})  # fmt: skip
    data = SegmentationData(scenes=6, val_scenes=2, scene_size=64, crop_size=64, batch_size=2, workers=0)
    trainer(max_steps=1, limit_val_batches=0).fit(task, data)
    source = data.source("train")
    labels = torch.cat([torch.from_numpy(source.load(index)[1]).flatten() for index in range(6)])
    assert task.class_weights.tolist() == pytest.approx(balanced_weights(labels.bincount(minlength=11).tolist()))
    assert "class weights: background " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.class_weights", "even"], "model.class_weights='even'"),
        (["--model.class_weights", "[1, 2]"], "2 weights for 3 classes"),
        (["--model.class_weights", "[1, -2, 1]"], "model.class_weights"),
        (["--model.class_weights", "[0, 2, 0]"], "class_weights=[0.0, 2.0, 0.0]"),
        (["--model.class_weights", "balanced", "--model.loss", "bce"], "class_weights: not with loss='bce'"),
        (["--model.class_weights", "balanced", "--data.sampler", "balanced"], "data.sampler=balanced"),
        (["--model.loss", "dice"], "model.loss='dice'"),
        (
            ["--model.loss", "focal", "--model.mixup", "0.5", "--model.smoothing", "0.1"],
            "mixup=0.5: not with loss='focal'",
        ),
        (
            [
                "--model",
                "Segmentation",
                "--data",
                "SegmentationData",
                "--model.loss",
                "dice",
                "--data.reduce_zero_label",
                "true",
                "--model.class_weights",
                "balanced",
            ],
            "class_weights: not with loss='dice'",
        ),
        (["--model", "Detection", "--model.loss", "focal"], "model.loss: Detection has no such"),
        (["--data.sampler", "even"], "data.sampler='even'"),
        (["--model", "Detection", "--model.class_weights", "balanced"], "model.class_weights: Detection has no such"),
    ],
)
def test_weights_that_cannot_be(run_command, recipe, uneven, tmp_path, words, message):
    out = tmp_path / "runs" / "one"
    code, _, err = run_command("fit", "--config", recipe, "--data.root", uneven, "--data.batch_size", 4, "--out", out,
                               *words)  # fmt: skip
    assert code == 2 and message in err and "Traceback" not in err, err
    assert not out.parent.exists()


def test_data_that_does_not_count_its_classes():
    class Uncounted:
        pass

    from vitgraft.tasks.losses import class_weights_of

    with pytest.raises(RecipeError, match="Uncounted does not count its classes"):
        class_weights_of(Uncounted(), "balanced", 3)


def test_weights_in_a_smoke_run(run_command, recipe):
    code, out, err = run_command("fit", "--config", recipe, "--model.class_weights", "[1, 2, 3]", "--smoke")
    assert code == 0 and "class weights: class_0 1, " in out, err
