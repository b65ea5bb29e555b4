"""Checkpoint files: whole or not at all, checked, unable to run code."""

import errno
import os
import pickle
import subprocess
import sys
import zipfile

import pytest
import torch

from vitgraft.errors import CheckpointError, TrainingError
from vitgraft.weights import files


def content(value):
    return {"state_dict": {"w": torch.full((300, 7), float(value))}, "epoch": value, "global_step": 10 * value}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "last.ckpt"


def saved_twice(path):
    files.write(content(1), path)
    files.write(content(2), path)


def test_what_was_written_is_read_by_us_torch_and_zip(path):
    files.write(content(3), path)
    assert files.read(path)["epoch"] == 3
    for mmap in (False, True):
        assert torch.equal(torch.load(path, weights_only=True, mmap=mmap)["state_dict"]["w"], torch.full((300, 7), 3.0))
    assert zipfile.ZipFile(path).testzip() is None
    assert os.listdir(path.parent) == ["last.ckpt"], "nothing else is left behind"


def test_the_one_before_is_kept(path):
    saved_twice(path)
    assert files.read(path)["epoch"] == 2
    assert files.read(files.previous(path))["epoch"] == 1
    files.write(content(3), path)
    assert files.read(files.previous(path))["epoch"] == 2


@pytest.mark.parametrize(
    "harm", ["empty", "cut", "cut by one", "cut to the comment", "flip first", "flip middle", "flip end", "gone"]
)
def test_damage_is_recognised_and_the_one_before_used(path, harm):
    saved_twice(path)
    data = bytearray(path.read_bytes())
    if harm == "gone":
        path.unlink()
    else:
        if harm == "empty":
            data = b""
        elif harm.startswith("cut"):
            data = data[: {"cut": len(data) // 2, "cut by one": -1, "cut to the comment": -files.COMMENT - 2}[harm]]
        else:
            at = {"flip first": 60, "flip middle": len(data) // 2, "flip end": len(data) - files.COMMENT - 30}[harm]
            data[at] ^= 16
        path.write_bytes(data)
        with pytest.raises(files.DamagedCheckpointError, match=r"last\.ckpt is"):
            files.read(path)
    told = []
    found, used = files.read_or_previous(path, tell=told.append)
    assert found["epoch"] == 1
    assert used.name == "last-previous.ckpt"
    assert len(told) == 1
    assert "last-previous.ckpt (epoch 1, step 10)" in told[0]


def test_every_single_bit_counts(path):
    files.write({"x": torch.ones(3)}, path)
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            files.read(path)
        except CheckpointError:
            continue
        pytest.fail(f"byte {at} of {len(whole)} was changed and nobody noticed")


def test_every_length_is_recognised(path):
    files.write({"x": torch.ones(3)}, path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 13):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            files.read(path)


def test_a_damaged_file_does_not_push_out_the_sound_one_before(path):
    saved_twice(path)
    path.write_bytes(path.read_bytes()[:-50])
    files.write(content(3), path)
    assert files.read(path)["epoch"] == 3
    assert files.read(files.previous(path))["epoch"] == 1


def test_both_damaged_is_an_error_that_names_both(path):
    saved_twice(path)
    path.write_bytes(b"")
    files.previous(path).write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"last.ckpt is empty.*last-previous.ckpt is cut short"):
        files.read_or_previous(path)


def test_files_of_other_programs_are_read_and_checked_by_their_archive(path):
    torch.save(content(5), path)
    assert files.read(path)["epoch"] == 5
    data = bytearray(path.read_bytes())
    data[data.index(torch.full((4,), 5.0).numpy().tobytes())] ^= 1
    path.write_bytes(data)
    with pytest.raises(files.DamagedCheckpointError, match="does not have its checksum"):
        files.read(path)


class Evil:
    def __reduce__(self):
        return os.system, ("touch ran-code",)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_would_run_code_is_refused(path, legacy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Evil()}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"refused: it holds posix.system.*run code"):
        files.read_or_previous(path)
    assert not (tmp_path / "ran-code").exists()


def test_an_evil_file_is_not_replaced_by_the_one_before(path):
    files.write(content(1), files.previous(path))
    torch.save({"x": Evil()}, path)
    with pytest.raises(CheckpointError, match="refused"):
        files.read_or_previous(path)


def test_text_is_no_checkpoint(path):
    path.write_text("hello world, hello world")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        files.read(path)


def test_full_disk_leaves_what_was_there(path, monkeypatch):
    saved_twice(path)
    before = {p.name: p.read_bytes() for p in path.parent.iterdir()}

    def full(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files._Hashing, "write", full)
    with pytest.raises(TrainingError, match=r"could not save .*last.ckpt: no space is left; .*saved before.*--resume"):
        files.write(content(3), path)
    assert {p.name: p.read_bytes() for p in path.parent.iterdir()} == before


def test_a_real_limit_of_the_system_on_writing(path):
    """RLIMIT_FSIZE stops the write in the middle of the file, as a full disk does."""
    files.write(content(1), path)
    code = f"""
import resource, signal, torch
from vitgraft.weights import files
from vitgraft.errors import TrainingError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    files.write({{"x": torch.zeros(100000)}}, {str(path)!r})
except TrainingError as error:
    print("refused:", error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "no space is left" in done.stdout, done.stderr
    assert files.read(path)["epoch"] == 1
    assert os.listdir(path.parent) == ["last.ckpt"]


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="could not save"):
        files.write(content(1), tmp_path / "file" / "last.ckpt")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("form", ["pickle", "legacy", "zip"])
def test_every_form_of_pickle_is_refused_in_the_same_words(path, form, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    harmful = {"state_dict": {"w": 1}, "more": Evil()}
    if form == "pickle":
        path.write_bytes(pickle.dumps(harmful, protocol))
    elif protocol < 2:
        return  # torch.save writes 2 and above
    else:
        torch.save(harmful, path, pickle_protocol=protocol, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(
        CheckpointError, match=r"refused: it holds posix.system, and loading that could run code"
    ) as caught:
        files.read(path)
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "ran-code").exists()


def test_what_is_neither_harmful_nor_a_checkpoint_is_not_said_to_be_readable_unsafely(path):
    path.write_bytes(pickle.dumps({"a": "b"}, 4)[:-5])
    with pytest.raises(files.DamagedCheckpointError, match="not a checkpoint, or damaged") as caught:
        files.read(path)
    assert "weights_only" not in str(caught.value)


def test_where_all_of_last_is_damaged_the_error_names_the_sound_best(path):
    saved_twice(path)
    path.write_bytes(b"")
    files.previous(path).write_bytes(b"")
    best = path.with_name("best.ckpt")
    files.write(content(1), best)
    with pytest.raises(CheckpointError) as caught:
        files.read_or_previous(path)
    assert f"--model.checkpoint_path {best} and another --out" in str(caught.value)
    best.write_bytes(b"")
    with pytest.raises(CheckpointError) as caught:
        files.read_or_previous(path)
    assert "best.ckpt" not in str(caught.value), "it is no help either"


def test_where_best_is_damaged_the_error_names_the_sound_last(path):
    best = path.with_name("best.ckpt")
    saved_twice(path)
    best.write_bytes(b"PK")
    with pytest.raises(files.DamagedCheckpointError) as caught:
        files.read_or_previous(best)
    assert f"{path} is sound: give that file instead" in str(caught.value)
    path.write_bytes(b"")
    with pytest.raises(files.DamagedCheckpointError, match=r"last-previous\.ckpt is sound"):
        files.read_or_previous(best)


def test_the_one_before_is_announced_in_a_plain_line(path, capsys):
    saved_twice(path)
    path.write_bytes(b"")
    files.read_or_previous(path)
    said = capsys.readouterr()
    assert said.err.startswith(f"warning: {path} is empty. Using the one before it") and said.err.count("\n") == 1
    assert not said.out
