"""Early stopping, what is frozen for some epochs, and loggers by name."""

import csv
import json

import pytest
import torch

pytest.importorskip("pytorch_lightning")
import pytorch_lightning as pl

from vitgraft.training import loggers
from vitgraft.weights.files import read_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture
def fit(run_command, recipe, class_folders, tmp_path):
    """Runs a fit of several epochs at a constant rate, which must end with the exit code; its output and folder."""

    def run(*words, epochs=6, name="run", code=0):
        begin = ["fit", "--config", recipe, "--data.root", class_folders, "--out", tmp_path / name]
        found, out, err = run_command(*begin, "--trainer.max_epochs", epochs, "--model.sched", "constant", *words)
        assert found == code, err
        return out + err, tmp_path / name

    return run


def epochs_of(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return [int(row["epoch"]) for row in csv.DictReader(file) if row["val/acc"]]


STILL = ("--model.lr", "1e-12", "--checkpoints.early_stopping")  # the first validation remains the best


def test_a_run_ends_after_validations_that_bring_nothing_better(fit):
    text, folder = fit(*STILL, 2)
    assert epochs_of(folder) == [0, 1, 2] and "early stopping after 3 epochs" in text


def test_a_stopped_run_is_not_resumed_but_with_more_patience(fit):
    fit(*STILL, 1)
    before = read_checkpoint(fit(*STILL, 1, "--resume")[1] / "last.ckpt")
    assert before["epoch"] == 1
    _, folder = fit(*STILL, 3, "--resume")
    assert epochs_of(folder) == [0, 1, 2, 3]


def test_it_waits_for_the_least_number_of_epochs(fit):
    assert epochs_of(fit(*STILL, 1, "--trainer.min_epochs", 4)[1]) == [0, 1, 2, 3]


def test_a_run_that_improves_goes_on(fit):
    _, folder = fit("--checkpoints.early_stopping", 1, "--checkpoints.monitor", "val/loss", "--checkpoints.mode", "min")
    assert len(epochs_of(folder)) > 2


def weights(folder):
    return read_checkpoint(folder / "last.ckpt")["state_dict"]


def same(one, other, part):
    names = [name for name in one if name.startswith("head.") == (part == "head")]
    return all(torch.equal(one[name], other[name]) for name in names)


def test_a_backbone_that_is_frozen_for_an_epoch(fit):
    frozen = ("--model.freeze_backbone", "true", "--model.freeze_epochs")
    one = weights(fit(*frozen, 1, epochs=1, name="one")[1])
    both = weights(fit(*frozen, 2, epochs=2, name="both")[1])
    then = weights(fit(*frozen, 1, epochs=2, name="then")[1])
    assert same(one, both, "backbone") and not same(one, both, "head")
    assert not same(one, then, "backbone") and not same(one, then, "head")
    always = weights(fit(*frozen[:2], epochs=2, name="always")[1])
    assert same(both, always, "backbone") and same(both, always, "head")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.freeze_epochs", "2"], "give freeze_backbone: true or train_grafts_only: true"),
        (["--model.freeze_backbone", "true", "--model.train_grafts_only", "true"], "not together with"),
        (["--checkpoints.early_stopping", "-1"], "checkpoints.early_stopping"),
        (["--logger", "tensorbord"], "logger"),
    ],
)
def test_options_that_do_not_fit(fit, words, message):
    assert message in fit(*words, code=2)[0]


def test_one_logger_alone(fit):
    _, folder = fit("--logger", "csv", epochs=1)
    assert not list(folder.glob("events.*")) and epochs_of(folder) == [0]


def test_a_logger_that_is_not_installed(fit, monkeypatch):
    def missing(**_):
        raise ModuleNotFoundError("No module named 'wandb'")

    monkeypatch.setattr(loggers, "WandbLogger", missing)
    assert "pip install 'vitgraft[wandb]'" in fit("--logger", "wandb", code=2)[0]


def test_a_resumed_run_continues_at_the_service(fit, monkeypatch):
    """Weights & Biases as far as Lightning's loggers are: the name that it gives a run comes back on resuming."""

    given = []

    class Service(pl.loggers.CSVLogger):
        def __init__(self, save_dir, id, **_):
            given.append(id)
            super().__init__(save_dir, name="service", version=id or "a-run")

    monkeypatch.setattr(loggers, "WandbLogger", Service)
    monkeypatch.setitem(loggers.SERVICES, "wandb", Service)
    words = ("--logger", "[wandb,csv]", *STILL)
    _, folder = fit(*words, 1)
    assert json.loads((folder / "run.json").read_text())["loggers"] == {"wandb": "a-run"}
    fit(*words, 2, "--resume")
    assert given == [None, "a-run"]
    assert "val/acc" in (folder / "service" / "a-run" / "metrics.csv").read_text()


def test_tensorboard(fit):
    pytest.importorskip("tensorboard")
    _, folder = fit("--logger", "tensorboard", epochs=1)
    assert list(folder.glob("events.*"))
