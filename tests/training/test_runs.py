"""`vitgraft fit | validate | test`: runs, what they print and write, and every mistake told at once."""

import json
import re
from pathlib import Path

import pytest
import torch

from vitgraft.cli import main

pytest.importorskip("pytorch_lightning")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def run(capsys, *words):
    """Exit code, stdout and stderr of the command line."""
    try:
        code = main([str(word) for word in words])
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def _checkpoint(out):
    return next(iter(sorted(out.rglob("last.ckpt")) or sorted(out.rglob("*.ckpt"))))


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_help_teaches_without_lightning(capsys, monkeypatch, command):
    monkeypatch.setitem(__import__("sys").modules, "pytorch_lightning", None)
    code, out, _ = run(capsys, command, "--help")
    assert code == 0 and out.startswith(f"vitgraft {command}: ")
    assert out.index(f"  vitgraft {command} --") < out.index("--trainer.OPTION")
    assert run(capsys, command)[0] == 2


def test_examples_name_recipes_that_exist():
    from vitgraft.training.help import HELP

    named = {name for text in HELP.values() for name in re.findall(r"recipes/\S+", text)}
    assert named and all((Path(__file__).resolve().parents[2] / name).is_file() for name in named)


def test_all_options_can_be_listed(capsys):
    code, out, _ = run(capsys, "fit", "--help-all")
    assert code == 0 and "--trainer.gradient_clip_val" in out and "--model CONFIG" in out


@pytest.mark.parametrize("with_recipe", [False, True])
def test_configuration_and_options_of_a_class_are_printed(capsys, recipe, with_recipe):
    given = ["--config", recipe] if with_recipe else []
    code, out, _ = run(capsys, "fit", *given, "--model.help", "Detection")
    assert code == 0 and "--model.detector" in out and "--model.warmup_steps" in out
    code, out, _ = run(capsys, "fit", *given, "--trainer.max_epochs", 7, "--print_config")
    assert code == 0 and "max_epochs: 7" in out and "max_skipped: 10" in out
    assert ("lr: 0.01" in out) == with_recipe and f"out: runs/{'tiny' if with_recipe else 'unnamed'}" in out


def test_missing_lightning_names_the_extra(capsys, monkeypatch):
    for name in ("vitgraft.training.lightning_cli", "vitgraft.tasks.classification"):
        monkeypatch.delitem(__import__("sys").modules, name, raising=False)
    monkeypatch.setitem(__import__("sys").modules, "pytorch_lightning", None)
    code, _, err = run(capsys, "fit", "--smoke")
    assert code == 2 and "vitgraft[train]" in err


def test_the_way_out_of_a_refused_resume(capsys, recipe, class_folders, tmp_path):
    """Another --out and the weights of the run, of a model that the recipe's options graft."""
    words = ["fit", "--config", recipe, "--data.root", class_folders, "--model.graft", "{window_size: 2}"]
    assert run(capsys, *words, "--out", tmp_path / "one")[0] == 0
    words += ["--model.lr", 1e-3]
    code, _, err = run(capsys, *words, "--out", tmp_path / "one", "--resume")
    assert code == 2 and "give another --out (and start from its weights by --model.checkpoint_path)" in err
    more = ["--out", tmp_path / "two", "--model.checkpoint_path", tmp_path / "one"]
    code, out, err = run(capsys, *words, *more)
    assert code == 0, err
    assert re.search(r"initial weights from .*one/best.ckpt: \d+ tensors loaded\n(?!  )", out)


def test_fit_then_validate_from_the_checkpoint_alone(capsys, recipe, class_folders, tmp_path):
    out = tmp_path / "run"
    more = ["--model.lr_batch", 32, "--model.graft", "{window_size: 2}", "--trainer.max_epochs", 2]
    code, printed, err = run(capsys, "fit", "--config", recipe, "--data.root", class_folders, "--out", out, *more)
    assert code == 0, err
    assert "learning rate 0.0025 = 0.01 x 8 / 32" in printed
    assert "2 epochs, 6 updates" in printed and "val/acc" in printed and f"written to {out}: " in printed
    assert {"config.yaml", "metrics.csv"} <= {path.name for path in out.iterdir()}
    path = _checkpoint(out)
    kept = torch.load(path, weights_only=True)["hyper_parameters"]
    assert kept["class_names"] == ["cat", "dog", "eel"] and kept["num_classes"] == 3
    assert kept["data_config"]["input_size"] == [3, 32, 32] and json.dumps(kept)
    metrics = printed[printed.rindex("fit: ") :].splitlines()[0]
    # no recipe: model and grafts come from the checkpoint
    code, printed, err = run(capsys, "validate", "--ckpt_path", path, "--data.root", class_folders)
    assert code == 0, err
    reached = printed[printed.rindex("validate: ") :].splitlines()[0].removeprefix("validate: ")
    assert reached.split(", ")[0] in metrics
    code, printed, err = run(capsys, "test", "--ckpt_path", path, "--data.root", class_folders, "--data.batch_size", 2)
    assert code == 0 and "test/acc" in printed, err


def test_the_saved_configuration_is_a_recipe(capsys, recipe, class_folders, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    words = ["--data.root", class_folders, "--model.opt", "sgd", "--seed_everything", 5]
    code, one, err = run(capsys, "fit", "--config", recipe, "--out", first, *words)
    assert code == 0, err
    code, two, err = run(capsys, "fit", "--config", first / "config.yaml", "--out", second)
    assert code == 0, err
    last = [text[text.rindex("fit: ") :].splitlines()[0] for text in (one, two)]
    assert last[0] == last[1]
    weights = [torch.load(_checkpoint(out), weights_only=True)["state_dict"] for out in (first, second)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_all_mistakes_at_once_and_nothing_written(capsys, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe.write_text(recipe.read_text().replace("lr: 1e-2", "lr: -1\n    mixup: lots\n    optt: sgd"))
    before = sorted(tmp_path.rglob("*"))
    words = ["--trainer.max_epoch", 3, "--data.batch_size", "x", "--model.graft", "{levles: 1}", "--outt", "a"]
    code, out, err = run(capsys, "fit", "--config", recipe, *words)
    assert code == 2 and out == "" and "Traceback" not in err
    assert "7 errors" in err
    for message in (
        "model.lr=-1: should be greater than 0",
        "model.mixup='lots': should be a valid number",
        "model.optt: Classification has no such option; did you mean 'opt'?",
        "trainer.max_epoch: Trainer has no such option; did you mean 'max_epochs'?",
        "data.batch_size='x': should be a valid integer",
        "unknown graft option 'levles' (did you mean 'levels'?)",
        "outt: no such option; did you mean 'out'?",
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
        (["--seed_everything", "a"], "seed_everything='a': should be a valid integer"),
        (["--trainer.precision", "8"], "trainer.precision=8: expected "),
        (["--model.train_grafts_only", "true"], "has no grafts; give graft: {}"),
        (["--model.num_classes", "4"], "num_classes=4"),
        (["--config", "none.yaml"], "none.yaml: No such file"),
        (["--model.model_kwargs", "{dpth: 3}"], "dpth"),
        (["--model.graft", "{blocks: 40}"], "blocks=40"),
        (["--model.mixup", "0.8", "--data.batch_size", "7"], "batch_size=7: mixup and cutmix mix pairs"),
    ],
)
def test_one_mistake(capsys, recipe, class_folders, tmp_path, words, message):
    out = tmp_path / "run"
    given = ["fit", "--config", recipe, "--data.root", class_folders, "--out", out, *words]
    code, _, err = run(capsys, *given)
    assert code == 2 and message in err and "Traceback" not in err
    assert not list(out.rglob("*.ckpt")) and not list(out.rglob("metrics.csv"))


def test_no_task_is_named(capsys, tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("model: {}\ndata: 3\nothers: {}\n")
    code, _, err = run(capsys, "fit", "--config", path)
    assert code == 2
    assert "model.class_path: which task?" in err and "data: 3 is not a mapping" in err and "others: no such" in err


def test_validate_needs_a_model(capsys, class_folders):
    code, _, err = run(capsys, "validate", "--data.root", class_folders)
    assert code == 2 and "--ckpt_path" in err


def test_checkpoint_that_is_not_there(capsys, class_folders, tmp_path):
    code, _, err = run(capsys, "validate", "--ckpt_path", tmp_path / "no.ckpt", "--data.root", class_folders)
    assert code == 2 and "no.ckpt" in err and "Traceback" not in err


def test_classes_of_the_data_must_be_those_of_the_checkpoint(capsys, recipe, class_folders, tmp_path):
    out = tmp_path / "run"
    assert run(capsys, "fit", "--config", recipe, "--data.root", class_folders, "--out", out)[0] == 0
    other = tmp_path / "other"
    for split in ("train", "val"):
        for name, new in (("cat", "ant"), ("dog", "dog"), ("eel", "eel")):
            (other / split / new).mkdir(parents=True)
            image = next((class_folders / split / name).iterdir())
            (other / split / new / image.name).write_bytes(image.read_bytes())
    code, _, err = run(capsys, "validate", "--ckpt_path", _checkpoint(out), "--data.root", other)
    assert code == 2 and "cat / ant" in err


def test_smoke_needs_nothing_and_leaves_nothing(capsys, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    code, out, err = run(capsys, "fit", "--config", recipe, "--smoke")
    assert code == 0, err
    assert "smoke: 2 steps" in out and sorted(tmp_path.rglob("*")) == before
