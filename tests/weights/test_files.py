"""Checkpoint files: found, whole or not at all, checked, unable to run code."""

import os
import pickle
import subprocess
import sys
import zipfile

import pytest
import torch
from safetensors.torch import save_file

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
    assert files.read_checkpoint(path)["epoch"] == 3
    for mmap in (False, True):
        assert torch.equal(torch.load(path, weights_only=True, mmap=mmap)["state_dict"]["w"], torch.full((300, 7), 3.0))
    assert os.listdir(path.parent) == ["last.ckpt"], "nothing else is left behind"


def test_files_with_a_comment_as_they_were_written_once(path):
    files.write(content(3), path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"vitgraft sha256 " + b"0" * 64
    assert files.read_checkpoint(path)["epoch"] == 3


def test_the_previous_one_is_kept(path):
    saved_twice(path)
    assert files.read_checkpoint(path)["epoch"] == 2
    assert files.read_checkpoint(files.previous(path))["epoch"] == 1
    files.copy(path, path)
    assert files.read_checkpoint(files.previous(path))["epoch"] == 2


@pytest.mark.parametrize("harm", ["empty", "cut", "flip", "gone"])
def test_damage_is_recognized_and_the_previous_one_used(path, harm, capsys):
    saved_twice(path)
    data = bytearray(path.read_bytes())
    if harm == "gone":
        path.unlink()
    else:
        data[len(data) // 2] ^= 16
        path.write_bytes({"empty": b"", "cut": data[:-1], "flip": data}[harm])
        with pytest.raises(files.DamagedCheckpointError, match=r"last\.ckpt is"):
            files.read_checkpoint(path)
    found, used = files.read_or_previous(path)
    assert found["epoch"] == 1
    assert used.name == "last-previous.ckpt"
    output = capsys.readouterr()
    assert output.err.startswith(f"warning: {path}") and output.err.count("\n") == 1 and not output.out
    assert "last-previous.ckpt (epoch 1, step 10)" in output.err


def test_every_bit_and_length_counts_or_changes_nothing(path):
    """What neither PyTorch nor a CRC looks at, such as padding and times, may differ."""
    written = torch.arange(3.0)
    files.write({"x": written}, path)
    whole = path.read_bytes()
    recognized = 0
    for at in range(0, len(whole), 3):
        for bit in (1, 16):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
            try:
                found = files.read_checkpoint(path)
            except CheckpointError:
                recognized += 1
            else:
                assert list(found) == ["x"] and torch.equal(found["x"], written), f"byte {at} of {len(whole)}"
    assert recognized > len(whole) // 3
    for length in range(0, len(whole), 13):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            files.read_checkpoint(path)


def test_an_entry_marked_as_a_folder_is_damage(path):
    """PyTorch reads it as empty, and its CRC is right."""
    files.write({"x": torch.ones(3)}, path)
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02")
    while b"data/0" not in data[entry : entry + 80]:
        entry = data.index(b"PK\x01\x02", entry + 1)
    data[entry + 38] ^= 16
    path.write_bytes(data)
    with pytest.raises(files.DamagedCheckpointError, match="data/0"):
        files.read_checkpoint(path)


def test_a_damaged_file_does_not_push_out_the_intact_previous_one(path):
    saved_twice(path)
    path.write_bytes(path.read_bytes()[:-50])
    files.write(content(3), path)
    assert files.read_checkpoint(path)["epoch"] == 3
    assert files.read_checkpoint(files.previous(path))["epoch"] == 1


def test_both_damaged_is_an_error_that_names_both(path):
    saved_twice(path)
    path.write_bytes(b"")
    files.previous(path).write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"last.ckpt is empty.*last-previous.ckpt is cut short"):
        files.read_or_previous(path)


class Evil:
    def __reduce__(self):
        return os.system, ("touch ran-code",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("form", ["pickle", "legacy", "zip"])
def test_a_pickle_that_would_run_code_is_refused(path, form, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files.write(content(1), files.previous(path))
    harmful = {"state_dict": {"w": 1}, "more": Evil()}
    if form == "pickle":
        path.write_bytes(pickle.dumps(harmful, protocol))
    elif protocol == 0:
        return  # torch.save writes 2 and above
    else:
        torch.save(harmful, path, pickle_protocol=protocol, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(CheckpointError) as caught:
        files.read_checkpoint(path)
    if form == "zip":
        assert "could run code" in str(caught.value) and "weights_only=False" in str(caught.value)
        assert ("posix.system" in str(caught.value)) == (protocol == 2)
        with pytest.raises(CheckpointError, match="refused"):  # not replaced by the previous one
            files.read_or_previous(path)
    assert not (tmp_path / "ran-code").exists()


@pytest.mark.parametrize("data", [b"hello world, hello world", pickle.dumps({"a": "b"}, 4)[:-5], b"PK"])
def test_what_is_no_checkpoint_is_not_said_to_be_readable_unsafely(path, data):
    path.write_bytes(data)
    with pytest.raises(files.DamagedCheckpointError, match=r"not a checkpoint|damaged") as caught:
        files.read_checkpoint(path)
    assert "weights_only" not in str(caught.value)


def test_a_real_limit_of_the_system_on_writing(path):
    """RLIMIT_FSIZE stops the write in the middle of the file, as a full disk does."""
    saved_twice(path)
    before = {p.name: p.read_bytes() for p in path.parent.iterdir()}
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
    assert "no space is left" in done.stdout and "saved before" in done.stdout, done.stderr
    assert "--resume" in done.stdout
    assert {p.name: p.read_bytes() for p in path.parent.iterdir()} == before


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="could not save"):
        files.write(content(1), tmp_path / "file" / "last.ckpt")


def test_where_all_of_last_is_damaged_the_error_names_the_intact_best(path):
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


def test_where_best_is_damaged_the_error_names_the_intact_last(path):
    best = path.with_name("best.ckpt")
    saved_twice(path)
    best.write_bytes(b"PK")
    with pytest.raises(files.DamagedCheckpointError) as caught:
        files.read_or_previous(best)
    assert f"{path} is intact: give that file instead" in str(caught.value)
    path.write_bytes(b"")
    with pytest.raises(files.DamagedCheckpointError, match=r"last-previous\.ckpt is intact"):
        files.read_or_previous(best)


# which file a path means


def test_a_run_s_folder_is_its_best_then_last_then_newest(tmp_path):
    def named():
        found = files.resolve_checkpoint(tmp_path)
        assert found.kind == "run" and found.run == tmp_path
        return found.path.name

    for name in ("epoch3.ckpt", "last.ckpt", "best.ckpt"):
        files.write(content(1), tmp_path / name)
        assert named() == name
    files.write(content(2), tmp_path / "best.ckpt")
    (tmp_path / "best.ckpt").unlink()
    assert named() == "best.ckpt", "the one that it replaced is still there"
    found = files.resolve_checkpoint(tmp_path / "best.ckpt")
    assert (found.path, found.run) == (tmp_path / "best.ckpt", tmp_path)


def test_what_is_no_run(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "weights.safetensors")
    found = files.resolve_checkpoint(tmp_path / "weights.safetensors")
    assert (found.kind, found.run) == ("weights", None)
    assert torch.equal(files.read_checkpoint(found.path)["w"], torch.ones(2))
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "config.json").write_text("{}")
    for given in (tmp_path / "exported", f"local-dir:{tmp_path / 'exported'}"):
        found = files.resolve_checkpoint(given, names=True)
        assert (found.kind, found.path) == ("export", tmp_path / "exported")
    for name in ("deit_tiny_patch16_224", "vit_tiny_patch16_224:checkpoint_path=a/b.pth", "hf-hub:timm/x"):
        assert files.resolve_checkpoint(name, names=True).kind == "name"
        with pytest.raises(files.MissingCheckpointError, match="no such file"):
            files.resolve_checkpoint(name)


def test_missing_files_are_named_with_the_option_and_what_is_there(tmp_path):
    (tmp_path / "one").mkdir()
    files.write(content(1), tmp_path / "one" / "best.ckpt")
    for given, message in (
        (tmp_path / "one" / "none.ckpt", r"none\.ckpt: no such file or folder; there are .*best\.ckpt"),
        (tmp_path, r"neither a run.*there are checkpoints in .*one"),
        (f"local-dir:{tmp_path}/nothing", "no such file or folder"),
    ):
        with pytest.raises(files.MissingCheckpointError, match=f"ckpt_path={given}.*{message}|{message}"):
            files.resolve_checkpoint(given, "ckpt_path", names=True)


def test_a_run_states_its_task_and_options(path):
    options = {"model": "vit_tiny_patch16_224", "pretrained": True, "checkpoint_path": "start.pth"}
    files.write({**content(1), "task": "a.Task", "hyper_parameters": options}, path)
    found, used = files.read_run(path.parent, trust=True)
    assert used == path and found["task"] == "a.Task"
    assert found["hyper_parameters"] == {**options, "pretrained": False, "checkpoint_path": None}
    for other in ("weights.pth", "other.ckpt"):
        torch.save(content(1), path.with_name(other))
        with pytest.raises(CheckpointError, match=f"not a checkpoint of a vitgraft run.*checkpoint_path=.*{other}"):
            files.read_run(path.with_name(other))


def test_a_model_for_another_program_names_it(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\x0a\x12\x07pytorch")
    with pytest.raises(CheckpointError, match="onnxruntime"):
        files.read_checkpoint(path)
