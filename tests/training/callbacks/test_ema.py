"""Averaged weights: what they are, and under which names they are saved and evaluated."""

import pytest
import timm
import torch

pytest.importorskip("pytorch_lightning")
import pytorch_lightning as pl
from small_run import make_images, runs
from torch.utils.data import DataLoader, TensorDataset

from vitgraft.errors import CheckpointError
from vitgraft.training.callbacks.checkpoint import Checkpoints
from vitgraft.training.callbacks.ema import AveragedWeights, ChosenWeights
from vitgraft.weights.files import read_checkpoint


class Task(pl.LightningModule):
    """One weight whose gradient is 1, so that SGD takes it from 0 to -1, -2, ..."""

    def __init__(self):
        super().__init__()
        self.model = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(self.model.weight)
        self.averaged_model = None
        self.seen = []

    def training_step(self, batch, batch_idx):
        return self.model.weight.sum()

    def validation_step(self, batch, batch_idx):
        average = None if self.averaged_model is None else self.averaged_model.weight.item()
        self.seen.append((self.model.weight.item(), average))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def loader(batches):
    return DataLoader(TensorDataset(torch.zeros(batches, 1)), batch_size=1)


def trainer(folder, callback, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(accelerator="cpu", callbacks=[callback, Checkpoints(str(folder))], **quiet, **options)


def fit(tmp_path, batches=4, accumulate=1, **options):
    task = Task()
    limits = {"max_epochs": 1, "accumulate_grad_batches": accumulate}
    trainer(tmp_path, AveragedWeights(**options), **limits).fit(task, loader(batches), loader(1))
    return task, read_checkpoint(tmp_path / "last.ckpt")


def test_average_of_known_weights(tmp_path):
    task, saved = fit(tmp_path, decay=0.5)
    average = -1.0  # after the first update it is the weight, not a mean with the start
    for weight in (-2.0, -3.0, -4.0):
        average = 0.5 * average + 0.5 * weight
    assert saved["state_dict"]["weight"].item() == -4.0
    assert saved["state_dict_ema"]["weight"].item() == average
    assert task.seen[-1] == (-4.0, average), "validation saw both, and the raw weights as raw"
    assert not any("averaged" in name for name in task.state_dict())


def test_one_average_per_update_when_gradients_accumulate(tmp_path):
    _, saved = fit(tmp_path, batches=6, accumulate=3, decay=0.5)
    # two updates, each by the mean of three gradients
    assert saved["state_dict"]["weight"].item() == -2.0
    assert saved["state_dict_ema"]["weight"].item() == -1.5


def test_without_decay_nothing_is_averaged(tmp_path):
    task, saved = fit(tmp_path)
    assert "state_dict_ema" not in saved and task.averaged_model is None


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2])
def test_impossible_decay(decay):
    with pytest.raises(ValueError, match="decay"):
        AveragedWeights(decay=decay)


@pytest.mark.parametrize(
    ("weights", "expected"), [(None, (-4.0, -3.125)), ("raw", (-4.0, None)), ("ema", (-3.125, None))]
)
def test_chosen_weights(tmp_path, weights, expected):
    fit(tmp_path, decay=0.5)
    task = Task()
    evaluation = trainer(tmp_path, ChosenWeights(weights))
    evaluation.validate(task, loader(1), ckpt_path=str(tmp_path / "last.ckpt"), verbose=False)
    assert task.seen == [expected]


def test_averaged_weights_that_are_not_there(tmp_path):
    fit(tmp_path)
    with pytest.raises(CheckpointError, match="no averaged weights; weights=raw would work"):
        trainer(tmp_path, ChosenWeights("ema")).validate(Task(), loader(1), ckpt_path=str(tmp_path / "last.ckpt"))


@pytest.mark.slow
def test_timm_loads_the_checkpoint_of_a_run(tmp_path):
    """Plain names: the averaged weights by timm's own rule, which prefers them."""
    codes, text = runs({"root": str(make_images(tmp_path / "data")), "out": str(tmp_path / "run"), "epochs": 1})
    assert codes == [0], text
    path = tmp_path / "run" / "last.ckpt"
    saved = read_checkpoint(path)
    kwargs = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3}
    model = timm.create_model("vit_tiny_patch16_224", checkpoint_path=str(path), **kwargs)
    assert model.state_dict().keys() == saved["state_dict"].keys() == saved["state_dict_ema"].keys()
    assert all(torch.equal(value, saved["state_dict_ema"][name]) for name, value in model.state_dict().items())
