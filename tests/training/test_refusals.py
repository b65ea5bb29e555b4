"""What cannot run is refused in a line or a few, with exit code 2, and the folder is left as it was."""

import json
import shutil

import pytest
import torch

from vitgraft.cli import main

pytest.importorskip("pytorch_lightning")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


class _Code:
    def __reduce__(self):
        return print, ("code of a checkpoint ran",)


def refused(capsys, *words):
    """What a refused command said."""
    capsys.readouterr()
    try:
        code = main([str(word) for word in words])
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    assert code == 2 and "Traceback" not in err, err
    assert "code of a checkpoint ran" not in out
    return err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.batch_size", 128], "24 training images fill no batch; at most 24 would work"),
        (["--trainer.strategy", "dpp"], "trainer.strategy='dpp': did you mean 'ddp'?"),
        (["--ema.decay", 3], "ema.decay"),
        (["--guards.max_skipped", -3], "max_skipped"),
        (["--data.root", "nowhere"], "nowhere"),
        (["--model.num_classes", 7], "num_classes=7"),
        (["--model.checkpoint_path", "absent.pth"], "checkpoint_path=absent.pth: no such file"),
    ],
)
def test_a_refused_fit_writes_nothing(capsys, recipe, class_folders, tmp_path, words, message):
    out = tmp_path / "runs" / "one"
    err = refused(capsys, "fit", "--config", recipe, "--data.root", class_folders, "--out", out, *words)
    assert message in err and len(err.splitlines()) < 5
    assert not out.exists() and not out.parent.exists()


def test_range_errors_of_all_sections_at_once(capsys, recipe, tmp_path):
    words = ["--trainer.strategy", "dpp", "--ema.decay", 3, "--guards.max_skipped", -3, "--model.lr", -1]
    err = refused(capsys, "fit", "--config", recipe, "--out", tmp_path / "run", *words)
    assert "4 errors" in err
    assert all(name in err for name in ("trainer.strategy", "ema.decay", "max_skipped", "model.lr"))


def test_weights_to_start_from_that_are_none(capsys, recipe, class_folders, tmp_path):
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 and no more")
    torch.save({"state_dict": _Code()}, tmp_path / "code.pth")
    for name, message in (("cut.pth", "cut.pth: "), ("code.pth", "could run code")):
        words = ["--model.checkpoint_path", tmp_path / name, "--out", tmp_path / "run"]
        err = refused(capsys, "fit", "--config", recipe, "--data.root", class_folders, *words)
        assert message in err and not (tmp_path / "run").exists()


def test_a_folder_keeps_what_was_in_it(capsys, recipe, class_folders, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    words = ["--data.batch_size", 128, "--out", out]
    refused(capsys, "fit", "--config", recipe, "--data.root", class_folders, *words)
    assert [path.name for path in out.iterdir()] == ["notes.txt"]


def test_records_say_what_ran_and_evaluations_what_they_measured(capsys, recipe, class_folders, tmp_path):
    from reproduction.results import read_record

    out = tmp_path / "run"
    words = ["--data.root", class_folders, "--model.graft", "{window_size: 2}", "--model.lr", 0.003]
    assert main([str(word) for word in ["fit", "--config", recipe, "--out", out, *words]]) == 0
    record = read_record(out)
    assert record["name"] == "tiny" and record["dataset"] == class_folders.name
    assert record["model_options"]["graft"] == {"window_size": 2}
    assert record["recipe"]["model"]["init_args"]["lr"] == 0.003 and "lr" not in record["recipe"]["model"]

    capsys.readouterr()
    assert main(["test", "--ckpt_path", str(out / "best.ckpt"), "--data.root", str(class_folders)]) == 0
    assert "this measures the validation set, 'val'" in capsys.readouterr().out
    metadata = json.loads((out / "test" / "metrics.json").read_text())
    assert metadata["split"] == "val"

    fewer = tmp_path / "fewer"
    shutil.copytree(class_folders / "val", fewer / "val")
    shutil.rmtree(fewer / "val" / "dog")
    err = refused(capsys, "validate", "--ckpt_path", out / "best.ckpt", "--data.root", fewer)
    assert "only the model has ['dog']" in err
