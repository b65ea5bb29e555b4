"""What a run puts up with, and what ends it."""

import pytest
import torch

pytest.importorskip("pytorch_lightning")
from runs import assert_same_run, make_images, runs

from vitgraft.training import checkpoint_files
from vitgraft.training.guards import advice_on_memory, is_out_of_memory


@pytest.mark.slow
def test_loss_that_is_not_finite_is_skipped_and_named(tmp_path):
    root = str(make_images(tmp_path / "data"))
    out = tmp_path / "run"
    codes, text = runs({"root": root, "out": str(out), "nan_at": [3, 4], "epochs": 1})
    assert codes == [0], text
    assert "step 3 (epoch 0): the loss (nan) is not finite, the update is skipped. Samples: " in text
    assert "class0/" in text, "samples are named by their files"
    last = checkpoint_files.read(out / "last.ckpt")
    assert last["global_step"] == 14
    assert all(torch.isfinite(w).all() for w in last["state_dict"].values())
    assert {s["step"].item() for s in last["optimizer_states"][0]["state"].values()} == {12.0}, "12 updates were made"
    assert last["callbacks"]["Guards"]["skipped"] == 2


@pytest.mark.slow
def test_past_the_limit_the_run_stops_and_its_checkpoint_is_sound(tmp_path):
    root = str(make_images(tmp_path / "data"))
    out = tmp_path / "run"
    codes, text = runs({"root": root, "out": str(out), "nan_at": [4, 6, 8], "max_skipped": 2, "every_n_steps": 3})
    assert codes == [1], text
    assert "TrainingError: step 8 (epoch 0): the loss (nan) is not finite" in text
    assert "max_skipped=2" in text and "trainer.gradient_clip_val" in text
    assert checkpoint_files.read(out / "last.ckpt")["global_step"] == 6


@pytest.mark.slow
def test_skipped_updates_and_kills(tmp_path):
    """The count of skipped updates goes on, with accumulated gradients too: one bad batch spoils its update."""
    options = {"root": str(make_images(tmp_path / "data")), "nan_at": [2, 9], "accumulate": 2, "every_n_steps": 1}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    codes, text = runs(
        {**options, "out": str(whole)},
        {**options, "out": str(cut), "at": ["train", 8]},
        {**options, "out": str(cut), "resume": True},
    )
    assert codes == [0, 137, 0], text
    assert_same_run(whole, cut)
    last = checkpoint_files.read(cut / "last.ckpt")
    assert {s["step"].item() for s in last["optimizer_states"][0]["state"].values()} == {12.0}, "14 updates, 2 skipped"


@pytest.mark.slow
def test_all_processes_skip_together(tmp_path):
    """Only the second of two processes sees the loss that is not finite."""
    out = tmp_path / "run"
    options = {"root": str(make_images(tmp_path / "data")), "devices": 2, "epochs": 1, "nan_at": [2], "nan_rank": 1}
    codes, text = runs({**options, "out": str(out)})
    assert codes == [0], text
    assert "step 2 (epoch 0): the loss (nan) is not finite" in text
    last = checkpoint_files.read(out / "last.ckpt")
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
    kept = checkpoint_files.read(tmp_path / "a" / "last.ckpt")["callbacks"]["Guards"]["unreadable"]
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
