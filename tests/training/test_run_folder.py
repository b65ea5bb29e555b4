"""Who may use a run's folder, and where a run is resumed."""

import json
import os
import re

import pytest
import torch

pytest.importorskip("pytorch_lightning")
from vitgraft.atomic import check_writable
from vitgraft.errors import CheckpointError, RunFolderError
from vitgraft.training.run_folder import RunLogger, begin
from vitgraft.weights import files as checkpoint_files

RECIPE = {
    "model": {"class_path": "x.Classification", "init_args": {"model": "vit", "lr": 0.1}},
    "data": {"root": "/a", "workers": 4, "batch_size": 8},
    "trainer": {"max_epochs": 3},
    "out": "somewhere",
}


def changed(section, **options):
    return {**RECIPE, section: {**RECIPE[section], **options}}


def write_checkpoint(path, step, epoch=0, processed=0):
    """What a run is resumed from, as far as its folder looks at it."""
    loops = {"fit_loop": {"epoch_progress": {"current": {"processed": processed}}}}
    rest = {"state_dict": {"w": torch.ones(1)}, "optimizer_states": [{}], "lr_schedulers": [], "callbacks": {}}
    checkpoint_files.write({"global_step": step, "epoch": epoch, "loops": loops, **rest}, path)


@pytest.fixture
def run(tmp_path):
    """A run that has saved twice."""
    folder = tmp_path / "run"
    assert begin(folder, RECIPE) is None
    for step in (5, 10):
        write_checkpoint(folder / "last.ckpt", step)
    (folder / "metrics.csv").write_text("epoch,step,loss\n0,3,1.0\n0,9,0.5\n0,12,0.4\n")
    return folder


def test_new_run_and_its_record(tmp_path):
    assert begin(tmp_path / "a" / "b", RECIPE) is None
    record = json.loads((tmp_path / "a" / "b" / "run.json").read_text())
    assert record["recipe"] == RECIPE and "torch" in record["versions"]
    assert begin(tmp_path / "empty", RECIPE, resume=True) is None


def test_folder_that_holds_a_run_is_refused(run):
    before = sorted(os.listdir(run))
    with pytest.raises(RunFolderError, match=r"holds a run already \(.*last\.ckpt.*--resume.*another --out"):
        begin(run, RECIPE)
    assert sorted(os.listdir(run)) == before


@pytest.mark.parametrize("name", ["epoch_3.pth", "model_best.pth.tar", "config.yaml", "lightning_logs"])
def test_runs_of_other_programs_are_refused_too(tmp_path, name):
    (tmp_path / name).write_text("")
    for resume in (False, True):
        with pytest.raises(RunFolderError, match="holds a run already"):
            begin(tmp_path, RECIPE, resume)


def test_resume_drops_what_will_be_logged_again(run):
    assert begin(run, RECIPE, resume=True) == run / "last.ckpt"
    assert (run / "metrics.csv").read_text().split() == ["epoch,step,loss", "0,3,1.0", "0,9,0.5"]
    logger = RunLogger(run)
    logger.log_metrics({"loss": 0.3, "acc": 1.0}, step=10)
    logger.save()
    rows = (run / "metrics.csv").read_text().split()
    assert len(rows) == 4 and rows[0].split(",")[0] == "acc" and rows[1] == ",0,1.0,3" and rows[3].endswith(",0.3,10")


def test_resume_of_a_damaged_run(run, capsys):
    (run / "last.ckpt").write_bytes(b"")
    assert begin(run, RECIPE, resume=True) == run / "last-previous.ckpt"
    out, err = capsys.readouterr()
    assert re.match(r"warning: .*last\.ckpt is empty. Using the one before it.*step 5\)$", err)
    assert "resuming from" in out and "last-previous.ckpt (epoch 0, step 5)" in out
    checkpoint_files.previous(run / "last.ckpt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="the one before it can't be used either"):
        begin(run, RECIPE, resume=True)


def test_another_run_is_refused_by_what_differs(run):
    other = changed("trainer", max_epochs=4)
    other["model"] = {"class_path": "x.Classification", "lr": 0.2, "model": "vit"}  # without init_args between
    with pytest.raises(RunFolderError) as caught:
        begin(run, other, resume=True)
    text = str(caught.value)
    assert "model.lr: 0.1 then, 0.2 now" in text and "trainer.max_epochs: 3 then, 4 now" in text
    assert "class_path" not in text and "data" not in text


def test_what_may_differ(run):
    assert begin(run, changed("data", root="/b", workers=0), resume=True)
    assert begin(run, {**RECIPE, "checkpoints": {"every_n_steps": 7}, "ckpt_path": "x"}, resume=True)


def test_run_that_saved_nothing_is_started_anew(tmp_path):
    begin(tmp_path, RECIPE)
    assert begin(tmp_path, changed("trainer", max_epochs=9)) is None
    assert json.loads((tmp_path / "run.json").read_text())["recipe"]["trainer"] == {"max_epochs": 9}


def test_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="can't be written"):
        begin(tmp_path / "file" / "run", RECIPE)

    def read_only(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    with pytest.raises(RunFolderError, match=r"can't be written \(Read-only file system\)"):
        check_writable(tmp_path / "x")


def test_resume_reports_the_step_or_that_the_run_is_finished(run, capsys):
    begin(run, RECIPE, resume=True)
    assert capsys.readouterr().out == f"resuming from {run / 'last.ckpt'} (epoch 0, step 10)\n"
    for processed, words in ((2, "resuming from"), (3, "already finished:")):
        write_checkpoint(run / "last.ckpt", 30, 2, processed)
        begin(run, RECIPE, resume=True)
        assert capsys.readouterr().out == f"{words} {run / 'last.ckpt'} (epoch 2, step 30)\n"


def test_only_the_first_process_reports_it(run, capsys, monkeypatch):
    monkeypatch.setattr("vitgraft.training.run_folder.rank_zero_only.rank", 1)
    assert begin(run, RECIPE, resume=True) == run / "last.ckpt"
    assert capsys.readouterr().out == ""
