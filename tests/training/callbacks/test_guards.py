"""What a run tolerates, and what ends it."""

import re
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("pytorch_lightning")
import pytorch_lightning as pl
from pytorch_lightning.plugins import MixedPrecision
from small_run import assert_same_run, make_images, runs

from vitgraft.data.classification import ImageData
from vitgraft.errors import TrainingError
from vitgraft.tasks.classification import Classification
from vitgraft.training.callbacks.guards import Guards, advice_on_memory, is_out_of_memory
from vitgraft.weights.files import read_checkpoint


def updates(guards, losses, epoch_length=7, begin=0):
    """Gives the guards the losses of a run, as a trainer does; those of its epochs from update `begin` on."""
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight])
    trainer = SimpleNamespace(
        accumulate_grad_batches=1, world_size=1, current_epoch=0, global_step=0, datamodule=None,
        precision_plugin=None, global_rank=0,
    )  # fmt: skip
    for number, loss in enumerate(losses, begin):
        trainer.global_step, trainer.current_epoch = number, number // epoch_length
        if number % epoch_length == 0:
            guards.on_train_epoch_start(trainer, None)
        guards.on_before_backward(trainer, None, torch.tensor(float(loss)))
        weight.grad = torch.ones(2)
        guards.on_before_optimizer_step(trainer, None, optimizer)
        assert (weight.grad is None) == (loss != loss)
        if number % epoch_length == epoch_length - 1:
            guards.on_train_epoch_end(trainer, None)
    return trainer


NAN, FINE = float("nan"), 1.0


def test_a_run_that_has_diverged_stops_in_its_first_epoch(capsys):
    with pytest.raises(TrainingError, match=r"5 of the 7 updates of epoch 0 were skipped.*diverged"):
        updates(Guards(), [FINE] * 2 + [NAN] * 19)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5 and all(line.startswith("warning: step ") for line in lines), "no source lines"


def test_skips_in_a_row_are_counted_over_epochs_and_checkpoints():
    # 8 at the end of one epoch of 20 and 3 at the start of the next: within the limits of each
    losses = [FINE] * 12 + [NAN] * 11
    with pytest.raises(TrainingError, match=r"step 22 .*\n.*update 11 in a row"):
        updates(Guards(max_skipped=100), losses, 20)
    first, second = Guards(max_skipped=100), Guards(max_skipped=100)
    updates(first, losses[:17], 20)
    second.load_state_dict(first.state_dict())
    with pytest.raises(TrainingError, match=r"step 22 .*\n.*update 11 in a row"):
        updates(second, losses[17:], 20, begin=17)
    updates(Guards(max_skipped=100), [*losses[:20], FINE, *losses[20:]], 20)  # one between them was made
    with pytest.raises(TrainingError, match="update 3 of this epoch"):
        updates(Guards(max_skipped=2), [NAN, FINE] * 5, 20)


def test_a_run_must_not_end_with_a_skipped_update():
    guards = Guards()
    trainer = updates(guards, [FINE] * 6 + [NAN])
    with pytest.raises(TrainingError, match="the last update of the run"):
        guards.on_fit_end(trainer, None)
    guards = Guards()
    guards.on_fit_end(updates(guards, [FINE, FINE, NAN, FINE, NAN, NAN, FINE]), None)


def test_counts_of_older_checkpoints():
    guards = Guards()
    guards.load_state_dict({"skipped": 2, "unreadable": {}})
    assert guards.state_dict() == {"skipped": 2, "updates": 0, "in_a_row": 0, "unreadable": {}}


def test_an_overflow_of_fp16_lowers_the_scale_and_counts_as_no_skipped_update(class_folders, tmp_path):
    """The scaler begins too high, as on a GPU: the updates whose gradients overflow are part of its work."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    guards = Guards()
    trainer = pl.Trainer(
        default_root_dir=tmp_path,
        plugins=[MixedPrecision("16-mixed", "cpu", scaler)],
        max_epochs=12,
        callbacks=[guards],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        accelerator="cpu",
        devices=1,
    )
    model = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    task = Classification("vit_tiny_patch16_224", num_classes=3, model_kwargs=model, lr=1e-3)
    trainer.fit(task, ImageData(class_folders, batch_size=8, workers=0))
    assert 1.0 <= scaler.get_scale() < 2.0**36 and guards.state_dict()["skipped"] == 0
    assert all(torch.isfinite(weight).all() for weight in task.state_dict().values())
    made = {state["step"].item() for state in trainer.optimizers[0].state.values()}
    assert len(made) == 1 and 0 < made.pop() < trainer.global_step


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "name"),
    [("classification", "data/train/class"), ("detection", "digits/train/"), ("segmentation", "digits/train/")],
)
def test_loss_that_is_not_finite_is_skipped_and_named(task, name, tmp_path):
    if task == "detection":
        pytest.importorskip("faster_coco_eval")
    root, out = str(make_images(tmp_path / "data")), tmp_path / "run"
    codes, text = runs({"task": task, "root": root, "out": str(out), "nan_at": [3, 4], "epochs": 1})
    assert codes == [0], text
    assert re.search(
        rf"step 3 \(epoch 0\): the loss \(nan\) is not finite, the update is skipped. Samples: .*{name}", text
    )
    last = read_checkpoint(out / "last.ckpt")
    assert last["global_step"] == 14 and last["callbacks"]["Guards"]["skipped"] == 2
    assert all(torch.isfinite(w).all() for w in last["state_dict"].values())
    assert max(s["step"].item() for s in last["optimizer_states"][0]["state"].values()) == 12.0, "12 updates were made"


@pytest.mark.slow
def test_past_the_limit_the_run_stops_and_its_checkpoint_is_sound(tmp_path):
    root = str(make_images(tmp_path / "data"))
    out = tmp_path / "run"
    codes, text = runs({"root": root, "out": str(out), "nan_at": [4, 6, 8], "max_skipped": 2, "every_n_steps": 3})
    assert codes == [1], text
    assert "TrainingError: step 8 (epoch 0): the loss (nan) is not finite" in text
    assert "max_skipped=2" in text and "trainer.gradient_clip_val" in text
    assert read_checkpoint(out / "last.ckpt")["global_step"] == 6


@pytest.mark.slow
def test_skipped_updates_and_kills(tmp_path):
    """The count of skipped updates is resumed, with accumulated gradients too: one bad batch spoils its update."""
    options = {"root": str(make_images(tmp_path / "data")), "nan_at": [2, 9], "accumulate": 2, "every_n_steps": 1}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    codes, text = runs(
        {**options, "out": str(whole)},
        {**options, "out": str(cut), "at": ["train", 8]},
        {**options, "out": str(cut), "resume": True},
    )
    assert codes == [0, 137, 0], text
    assert_same_run(whole, cut)
    last = read_checkpoint(cut / "last.ckpt")
    assert {s["step"].item() for s in last["optimizer_states"][0]["state"].values()} == {12.0}, "14 updates, 2 skipped"


@pytest.mark.slow
def test_all_processes_skip_together(tmp_path):
    """Only the second of two processes sees the loss that is not finite."""
    out = tmp_path / "run"
    options = {"root": str(make_images(tmp_path / "data")), "devices": 2, "epochs": 1, "nan_at": [2], "nan_rank": 1}
    codes, text = runs({**options, "out": str(out)})
    assert codes == [0], text
    assert "step 2 (epoch 0): the loss (nan) is not finite" in text
    last = read_checkpoint(out / "last.ckpt")
    assert {s["step"].item() for s in last["optimizer_states"][0]["state"].values()} == {last["global_step"] - 1.0}
    assert all(torch.isfinite(w).all() for w in last["state_dict"].values())


@pytest.mark.slow
def test_unreadable_images_within_and_past_the_limit(tmp_path):
    broken = {"train/class1/03.png", "train/class2/00.png", "val/class0/01.png"}
    root = str(make_images(tmp_path / "data", broken=broken))
    codes, text = runs(
        {"root": root, "out": str(tmp_path / "a"), "epochs": 2, "max_unreadable": 3},
        {"root": root, "out": str(tmp_path / "b"), "epochs": 2, "max_unreadable": 1},
    )
    assert codes == [0, 1], text
    for name in broken:
        assert name.split("/", 1)[1] in text
    assert "(3 so far)" in text and "(4 so far)" not in text, "each image counts once, in two epochs too"
    assert "images can't be read, more than max_unreadable=1" in text
    kept = read_checkpoint(tmp_path / "a" / "last.ckpt")["callbacks"]["Guards"]["unreadable"]
    assert len(kept) == 3


def test_advice_keeps_the_total_batch():
    text = advice_on_memory(256, 2)
    assert "--data.batch_size 128 --trainer.accumulate_grad_batches 4" in text and "the same" in text
    assert "--data.batch_size 5 --trainer.accumulate_grad_batches 2 " in advice_on_memory(10)
    assert "--data.batch_size 24 --trainer.accumulate_grad_batches 3 (images per update and process: 72 instead of 50)"\
        in advice_on_memory(50)  # fmt: skip
    assert "grad_checkpointing" in advice_on_memory(1)
    assert "grad_checkpointing" in advice_on_memory(None)


def test_what_counts_as_out_of_memory():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert is_out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 52)  # more than any machine has
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
