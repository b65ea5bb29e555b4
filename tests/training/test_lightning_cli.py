"""`vitgraft fit | validate | test`: runs, what they print and write, and all errors at once, before any writing."""

import errno
import json
import os
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

pytest.importorskip("pytorch_lightning")
import pytorch_lightning as pl
from exports import labelimg_yolo
from small_run import difference

from vitgraft.training.check_recipe import recipe_errors, resolve
from vitgraft.training.lightning_cli import with_data_of_run
from vitgraft.weights.files import read_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


class Code:
    """Unpickling it would run code."""

    def __reduce__(self):
        return os.system, ("touch ran-code",)


@pytest.fixture
def fit(recipe, class_folders):
    """The words of a run."""
    return ["fit", "--config", recipe, "--data.root", class_folders]


@pytest.fixture
def refused(run_command, tmp_path, monkeypatch):
    """Runs what must be refused in a line or a few, without a traceback and without running code of a file."""
    monkeypatch.chdir(tmp_path)

    def run(*words, lines=4):
        code, _, err = run_command(*words)
        assert code == 2 and "Traceback" not in err and len(err.splitlines()) <= lines, err
        assert not Path("ran-code").exists()
        return err

    return run


# help


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_help_needs_no_lightning(run_command, monkeypatch, command):
    monkeypatch.setitem(__import__("sys").modules, "pytorch_lightning", None)
    code, out, _ = run_command(command, "--help")
    assert code == 0 and out.startswith(f"vitgraft {command}: ")
    assert out.index(f"  vitgraft {command} --") < out.index("--trainer.OPTION")
    assert run_command(command)[0] == 2


def test_examples_name_recipes_that_exist():
    from vitgraft.training.help import HELP

    named = {name for text in HELP.values() for name in re.findall(r"recipes/\S+", text)}
    assert named and all((Path(__file__).resolve().parents[2] / name).is_file() for name in named)


def test_all_options_can_be_listed(run_command):
    code, out, _ = run_command("fit", "--help-all")
    assert code == 0 and "--trainer.gradient_clip_val" in out and "--model CONFIG" in out


@pytest.mark.parametrize("with_recipe", [False, True])
def test_configuration_and_options_of_a_class_are_printed(run_command, recipe, with_recipe):
    given = ["--config", recipe] if with_recipe else []
    code, out, _ = run_command("fit", *given, "--model.help", "Detection")
    assert code == 0 and "--model.detector" in out and "--model.warmup_steps" in out
    code, out, _ = run_command("fit", *given, "--trainer.max_epochs", 7, "--print_config")
    assert code == 0 and "max_epochs: 7" in out and "max_skipped: 10" in out
    assert ("lr: 0.01" in out) == with_recipe and f"out: runs/{'tiny' if with_recipe else 'unnamed'}" in out


def test_missing_lightning_names_the_extra(run_command, monkeypatch):
    for name in ("vitgraft.training.lightning_cli", "vitgraft.tasks.classification"):
        monkeypatch.delitem(__import__("sys").modules, name, raising=False)
    monkeypatch.setitem(__import__("sys").modules, "pytorch_lightning", None)
    code, _, err = run_command("fit", "--smoke")
    assert code == 2 and "vitgraft[train]" in err


# runs


def test_fit_then_validate_from_the_checkpoint_alone(run_command, fit, class_folders, tmp_path):
    out = tmp_path / "run"
    more = ["--model.lr_batch", 32, "--model.graft", "{window_size: 2}", "--trainer.max_epochs", 2]
    code, printed, err = run_command(*fit, "--out", out, *more)
    assert code == 0, err
    assert "learning rate 0.0025 = 0.01 x 8 / 32" in printed
    assert "2 epochs, 6 updates" in printed and "val/acc" in printed and f"written to {out}: " in printed
    assert {"config.yaml", "metrics.csv"} <= {path.name for path in out.iterdir()}
    kept = torch.load(out / "last.ckpt", weights_only=True)["hyper_parameters"]
    assert kept["class_names"] == ["cat", "dog", "eel"] and kept["num_classes"] == 3
    assert kept["data_config"]["input_size"] == [3, 32, 32] and json.dumps(kept)
    metrics = printed[printed.rindex("fit: ") :].splitlines()[0]
    # no recipe: model and grafts come from the checkpoint
    code, printed, err = run_command("validate", "--ckpt_path", out / "last.ckpt", "--data.root", class_folders)
    assert code == 0, err
    measured = printed[printed.rindex("validate: ") :].splitlines()[0].removeprefix("validate: ")
    assert measured.split(", ")[0] in metrics


def test_the_saved_configuration_is_a_recipe(run_command, fit, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    code, one, err = run_command(*fit, "--out", first, "--model.opt", "sgd", "--seed_everything", 5)
    assert code == 0, err
    code, two, err = run_command("fit", "--config", first / "config.yaml", "--out", second)
    assert code == 0, err
    assert len({text[text.rindex("fit: ") :].splitlines()[0] for text in (one, two)}) == 1
    weights = [read_checkpoint(out / "last.ckpt")["state_dict"] for out in (first, second)]
    assert not difference(*weights)


def test_records_state_what_ran_and_evaluations_what_they_measured(run_command, refused, trained, class_folders):
    from reproduction.results import read_record

    record = read_record(trained)
    assert record["name"] == "tiny" and record["dataset"] == class_folders.name
    assert record["model_options"]["graft"] == {"window_size": 2}
    assert record["recipe"]["model"]["init_args"]["lr"] == 0.003 and "lr" not in record["recipe"]["model"]
    words = ["test", "--ckpt_path", trained / "best.ckpt", "--data.root", class_folders, "--data.batch_size", 2]
    code, out, err = run_command(*words)
    assert code == 0 and "test/acc" in out and "this measures the validation set, 'val'" in out, err
    assert json.loads((trained / "test" / "metrics.json").read_text())["split"] == "val"


def test_classes_of_the_data_must_be_those_of_the_checkpoint(refused, trained, class_folders, tmp_path):
    for folder, change, message in (
        ("other", lambda val: (val / "cat").rename(val / "ant"), "cat / ant"),
        ("fewer", lambda val: shutil.rmtree(val / "dog"), "only the model has ['dog']"),
    ):
        shutil.copytree(class_folders / "val", tmp_path / folder / "val")
        change(tmp_path / folder / "val")
        words = ["--ckpt_path", trained / "best.ckpt", "--data.root", tmp_path / folder]
        assert message in refused("validate", *words)


def test_smoke_needs_nothing_and_leaves_nothing(run_command, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    code, out, err = run_command("fit", "--config", recipe, "--smoke")
    assert code == 0, err
    assert "smoke: 2 steps" in out and sorted(tmp_path.rglob("*")) == before


# errors


def test_all_errors_at_once_and_nothing_written(refused, recipe, tmp_path):
    recipe.write_text(recipe.read_text().replace("lr: 1e-2", "lr: -1\n    mixup: lots\n    optt: sgd"))
    before = sorted(tmp_path.rglob("*"))
    words = ["--trainer.max_epoch", 3, "--data.batch_size", "x", "--model.graft", "{levles: 1}", "--outt", "a"]
    words += ["--trainer.strategy", "dpp", "--ema.decay", 3, "--guards.max_skipped", -3]
    err = refused("fit", "--config", recipe, *words, lines=11)
    assert "10 errors" in err
    for message in (
        "model.lr=-1: should be greater than 0",
        "model.mixup='lots': should be a valid number",
        "model.optt: Classification has no such option; did you mean 'opt'?",
        "trainer.max_epoch: Trainer has no such option; did you mean 'max_epochs'?",
        "trainer.strategy='dpp': did you mean 'ddp'?",
        "data.batch_size='x': should be a valid integer",
        "unknown graft option 'levles' (did you mean 'levels'?)",
        "outt: no such option; did you mean 'out'?",
        "ema.decay",
        "guards.max_skipped",
    ):
        assert message in err, message
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "Clasification"], "model.class_path: 'Clasification' cannot be imported; vitgraft has "),
        (["--model.model", "deit_tny_patch16_224"], "deit_tiny_patch16_224"),
        (["--model.opt", "adamv"], "model.opt='adamv': timm has no such optimizer: "),
        (["--model.lr", ".nan"], "model.lr=nan: should be a finite number"),
        (["--model.train_grafts_only", "true"], "has no grafts; give graft: {}"),
        (["--model.num_classes", 7], "num_classes=7"),
        (["--model.model_kwargs", "{dpth: 3}"], "dpth"),
        (["--model.graft", "{blocks: 40}"], "blocks=40"),
        (["--model.mixup", "0.8", "--data.batch_size", "7"], "batch_size=7: mixup and cutmix mix pairs"),
        (["--model.checkpoint_path", "absent.pth"], "checkpoint_path=absent.pth: no such file"),
        (["--model.checkpoint_path", "cut.pth"], "cut.pth: "),
        (["--model.checkpoint_path", "code.pth"], "could run code"),
        (["--seed_everything", "a"], "seed_everything='a': should be a valid integer"),
        (["--trainer.precision", "8"], "trainer.precision=8: expected "),
        (["--config", "none.yaml"], "none.yaml: No such file"),
        (["--data.batch_size", 128], "24 training images fill no batch; at most 24 would work"),
        (["--data.root", "nowhere"], "nowhere"),
        (["--out", "cut.pth/run"], "can't be written"),
    ],
)
def test_one_error(refused, fit, tmp_path, words, message):
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 and no more")
    torch.save({"state_dict": Code()}, tmp_path / "code.pth")
    out = tmp_path / "runs" / "one"
    assert message in refused(*fit, "--out", out, *words)
    assert not out.parent.exists()


def test_a_folder_keeps_what_was_in_it(refused, fit, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    refused(*fit, "--data.batch_size", 128, "--out", out)
    assert [path.name for path in out.iterdir()] == ["notes.txt"]


def test_sections_that_are_none(refused, tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("model: {}\ndata: 3\nothers: {}\n")
    err = refused("fit", "--config", path)
    assert "model.class_path: which task?" in err and "data: 3 is not a mapping" in err and "others: no such" in err


def test_validate_needs_a_checkpoint(refused, class_folders, tmp_path):
    assert "--ckpt_path" in refused("validate", "--data.root", class_folders)
    assert "no.ckpt" in refused("validate", "--ckpt_path", tmp_path / "no.ckpt", "--data.root", class_folders)


# folders of runs, and their checkpoints


def test_folder_of_a_run_is_refused_and_resumed(run_command, refused, fit, tmp_path):
    out = tmp_path / "run"
    fit += ["--model.graft", "{window_size: 2}", "--ema.decay", "0.9"]
    assert run_command(*fit, "--out", out)[0] == 0
    before = (out / "last.ckpt").read_bytes()
    err = refused(*fit, "--out", out)
    assert "holds a run already" in err and "--resume" in err
    assert run_command(*fit, "--out", out, "--resume")[0] == 0, "a finished run is finished"
    assert (out / "last.ckpt").read_bytes() == before
    fit += ["--model.lr", 0.5]
    err = refused(*fit, "--out", out, "--resume")
    assert "model.lr: 0.01 then, 0.5 now" in err
    # the way out: another --out, and the weights of the run, of a model that the recipe's options graft
    assert "give another --out (and start from its weights by --model.checkpoint_path)" in err
    code, printed, err = run_command(*fit, "--out", tmp_path / "two", "--model.checkpoint_path", out)
    assert code == 0, err
    assert re.search(r"initial weights from .*run/best.ckpt \(averaged weights\): \d+ tensors loaded\n(?!  )", printed)


def test_damaged_checkpoints_and_those_with_code(refused, fit, trained, class_folders, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    last = out / "last.ckpt"
    (out / "last-previous.ckpt").unlink(missing_ok=True)
    validate = ["validate", "--ckpt_path", last, "--data.root", class_folders]
    for damaged, message in ((b"", "is empty"), (last.read_bytes()[:5000], "cut short")):
        last.write_bytes(damaged)
        err = refused(*validate)
        assert message in err and "last.ckpt" in err
    torch.save({"task": "x", "hyper_parameters": {}, "state_dict": Code()}, last)
    resume = [*fit, "--model.graft", "{window_size: 2}", "--model.lr", 0.003, "--out", out, "--resume"]
    for words in (validate, resume, ["export", last, tmp_path / "exported"]):
        assert "could run code" in refused(*words)


def test_disk_full_while_saving(run_command, fit, tmp_path, monkeypatch):
    """The third save fails: the second is still there, and the run resumes from it."""
    out, whole = tmp_path / "run", tmp_path / "whole"
    fit += ["--ema.decay", "0.9", "--trainer.max_epochs", "3"]
    assert run_command(*fit, "--out", whole)[0] == 0
    save, saves = torch.save, []

    def full(content, file):
        saves.append(file)
        if len(saves) > 2:
            file.write(b"a part of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(content, file)

    monkeypatch.setattr(torch, "save", full)
    code, _, err = run_command(*fit, "--out", out)
    assert code == 1 and "no space is left" in err and "--resume" in err
    assert read_checkpoint(out / "last.ckpt")["global_step"] == 6
    assert not list(out.glob(".*")), "nothing half-written is left"
    monkeypatch.undo()
    assert run_command(*fit, "--out", out, "--resume")[0] == 0
    a, b = (read_checkpoint(folder / "last.ckpt") for folder in (whole, out))
    assert not difference(a["state_dict_ema"], b["state_dict_ema"]) and not difference(a["state_dict"], b["state_dict"])


def test_out_of_memory_names_what_to_try(run_command, fit, tmp_path, monkeypatch):
    from vitgraft.tasks.classification import Classification

    def full(self, batch, batch_idx):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(Classification, "training_step", full)
    code, _, err = run_command(*fit, "--out", tmp_path / "run")
    assert code == 1 and "Traceback" not in err
    assert "--data.batch_size 4 --trainer.accumulate_grad_batches 2" in err and "Tried to allocate 20.00 GiB" in err


# data of dense tasks, which a checkpoint alone does not define


def test_the_data_options_are_those_of_the_run(tmp_path, capsys):
    section = {"class_path": "DetectionData", "init_args": {"scenes": 8, "scene_size": 64}}
    (tmp_path / "run.json").write_text(json.dumps({"recipe": {"data": section}}))
    recipe = {"model": {"class_path": "vitgraft.tasks.detection.Detection", "init_args": {}}}
    checkpoint = str(tmp_path / "best.ckpt")
    assert with_data_of_run(recipe, checkpoint)["data"] == section
    assert "run.json" in capsys.readouterr().out
    own = {**recipe, "data": {"class_path": "DetectionData"}}
    assert with_data_of_run(own, checkpoint) == own  # a recipe that was given
    classifier = {"model": {"class_path": "vitgraft.tasks.classification.Classification"}}
    assert with_data_of_run(classifier, checkpoint)["data"] == section
    assert with_data_of_run(classifier, str(tmp_path / "elsewhere" / "best.ckpt")) == classifier


def test_validate_finds_the_data_of_the_run(run_command, trained, class_folders, tmp_path):
    code, one, err = run_command("validate", "--ckpt_path", trained)
    assert code == 0 and "data options: those of the run" in one, err
    code, two, err = run_command("validate", "--ckpt_path", trained, "--data.root", class_folders)
    assert code == 0 and len({text[text.rindex("validate: ") :].splitlines()[0] for text in (one, two)}) == 1, err


def test_a_run_without_a_validation_names_the_option(run_command, recipe, class_folders, tmp_path):
    words = ("--data.root", class_folders, "--trainer.max_epochs", 1, "--trainer.check_val_every_n_epoch", 5)
    code, out, err = run_command("fit", "--config", recipe, "--out", tmp_path / "run", *words)
    assert code == 0 and "check_val_every_n_epoch=5" in out, err
    assert not (tmp_path / "run" / "best.ckpt").exists()


def test_a_dataset_without_a_label_rule_is_one_error():
    data = {"class_path": "vitgraft.data.segmentation.SegmentationData", "init_args": {"root": "somewhere"}}
    (error,) = recipe_errors({"data": data}, {}, {})
    assert error.startswith("data.reduce_zero_label: set true")


SIZES = [
    ("detection.DetectionData", {"root": "set", "short_side": 64, "max_size": 96}),
    ("detection.DetectionData", {"root": "boxes", "augmentation": "native", "val_fraction": 0.4}),
    ("detection.DetectionData", {"root": None}),
    ("detection.DetectionData", {"root": None, "augmentation": "single", "short_side": 70, "max_size": 80}),
    ("segmentation.SegmentationData", {"root": "set", "reduce_zero_label": False, "short_side": 180}),
    ("segmentation.SegmentationData", {"root": "set", "reduce_zero_label": True, "long_side": 90, "antialias": False}),
]


@pytest.mark.parametrize(("name", "options"), SIZES)
def test_a_checkpoint_without_its_run_brings_the_image_sizes(name, options, tmp_path, capsys):
    """Moved, renamed or downloaded: what is measured are images as the run had them."""
    cls = resolve(f"vitgraft.data.{name}", pl.LightningDataModule)
    task = {"detection": "detection.Detection", "segmentation": "segmentation.Segmentation"}[name.partition(".")[0]]
    if options["root"] == "boxes":
        options = {**options, "root": str(labelimg_yolo(tmp_path / "boxes"))}
    data = cls(**options)
    saved = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(data.preprocessing).items()}
    saved["input_size"] = [3, *saved["input_size"]]  # as Task.setup stores it
    recipe = {"model": {"class_path": f"vitgraft.tasks.{task}", "init_args": {"data_config": saved}}}
    section = with_data_of_run(recipe, str(tmp_path / "moved.ckpt"))["data"]
    assert "no run.json beside" in capsys.readouterr().out
    assert resolve(section["class_path"], pl.LightningDataModule) is cls
    rest = {key: value for key, value in options.items() if key in ("root", "val_fraction", "reduce_zero_label")}
    again = cls(**{**section["init_args"], **rest}).preprocessing
    assert {**asdict(again), "input_size": 0} == {**asdict(data.preprocessing), "input_size": 0}
    if not saved.get("native") and name.startswith("detection"):
        assert again.input_size == data.preprocessing.input_size
