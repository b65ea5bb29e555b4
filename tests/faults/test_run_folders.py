"""Folders of runs and outputs: locks, writing that is refused, data and records that changed, names not in UTF-8."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("pytorch_lightning")
from test_learnable import coco, maps, packed

from reproduction.__main__ import main as reproduction
from vitgraft.data.coco import open_coco
from vitgraft.data.detection_targets import decode_mask, to_rle
from vitgraft.data.readers.folder_or_tar import Files
from vitgraft.data.readers.imagenet import open_imagenet_val
from vitgraft.data.readers.shards import open_shards
from vitgraft.data.segmentation import SegmentationData
from vitgraft.errors import DataError, RunFolderError
from vitgraft.terminal import write_json
from vitgraft.training.lightning_cli import with_data_of_run
from vitgraft.training.run_folder import LOCK, fcntl, locked

# A file system that nobody can write to, not even root
READ_ONLY = Path("/proc")
needs_proc = pytest.mark.skipif(not READ_ONLY.is_dir(), reason="needs /proc")


@pytest.fixture
def fit(recipe, class_folders, tmp_path):
    """The words of a run in tmp_path/run, of data that may be changed."""
    root = shutil.copytree(class_folders, tmp_path / "data")
    return ["fit", "--config", recipe, "--data.root", root, "--out", tmp_path / "run"]


# locks


@contextmanager
def process_with_lock(folder):
    """A process with a child (as a loader worker is) that holds the lock of a folder."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            with locked(folder):
                worker = os.fork()
                if worker:
                    os.write(write, str(worker).encode())
                time.sleep(60)
        finally:
            os._exit(0)
    worker = int(os.read(read, 20))
    try:
        yield pid
    finally:
        for one in (pid, worker):
            os.kill(one, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_folder_that_is_in_use_is_refused_until_its_process_is_dead(run_command, fit, tmp_path):
    folder = tmp_path / "run"
    with process_with_lock(folder) as pid:
        for more in ([], ["--resume"]):
            code, _, err = run_command(*fit, *more)
            assert code == 2 and err.count("\n") == 1, err
            assert f"is in use by a run that is running (process {pid} on " in err and "another --out" in err
        assert os.listdir(folder) == [LOCK]
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with locked(folder):  # though its child lives on
            pass
    assert os.listdir(folder) == []
    with locked(tmp_path / "new" / "run"):
        assert (tmp_path / "new" / "run" / LOCK).exists()
    assert not (tmp_path / "new").exists(), "what was made for the lock alone is removed"


def test_file_systems_without_locks(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with locked(tmp_path):
        assert "No locks available), so a second run into this folder would not be refused" in capsys.readouterr().err


def test_only_the_first_process_locks(tmp_path, monkeypatch):
    monkeypatch.setattr("vitgraft.training.run_folder.rank_zero_only.rank", 1)
    with locked(tmp_path):
        assert os.listdir(tmp_path) == []


# outputs that can't be written


OUTPUTS = {
    "fit": "fit --config {recipe} --data.root {data} --out /proc/run",
    "validate": "validate --ckpt_path {run} --data.root {data} --out /proc/run",
    "test": "test --ckpt_path {run} --data.root {data} --out /proc/run",
    "predict, csv": "predict --ckpt {run} {data} --output /proc/out.csv",
    "predict, html": "predict --ckpt {run} {data} --html /proc/out.html",
    "predict, visualize": "predict --ckpt {run} {data} --visualize /proc/out",
    "export": "export {run} /proc/out",
    "export, onnx": "export {run} /proc/out.onnx",
    "bench": "bench vit_tiny_patch16_224 --output /proc/out.json",
    "families": "families --output /proc/out.md",
    "check-data": "check-data {data} --output /proc/out.json",
    "demo": "demo --out /proc/out",
}


@needs_proc
@pytest.mark.parametrize("command", OUTPUTS)
def test_outputs_that_cannot_be_written_are_found_before_the_work(
    command, run_command, recipe, class_folders, trained, monkeypatch
):
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("an image was read"))
    words = OUTPUTS[command].format(recipe=recipe, data=class_folders, run=trained / "best.ckpt").split()
    code, out, err = run_command(*words)
    assert code == 2 and "output folder /proc" in err and "can't be written" in err, (out, err)
    assert err.count("\n") == 1


@needs_proc
@pytest.mark.parametrize("words", ["results {run} --output /proc/out", "figures --out /proc/out"])
def test_outputs_of_reproduction_that_cannot_be_written(words, trained, capsys):
    assert reproduction(words.format(run=trained).split()) == 2
    assert "output folder /proc/out: can't be written" in capsys.readouterr().err


@contextmanager
def files_no_longer_than(size):
    """The system refuses to write more into a file, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("words", "size", "sentence"),
    [
        ("predict --ckpt {run} {data}/val --output {out}/a.csv", 64, "stopped: could not write: File too large"),
        ("predict --ckpt {run} {data}/val --html {out}/a.html", 64, "stopped: could not write: File too large"),
        ("export {run} {out}/exported", 4096, "stopped: could not write: File too large"),
        ("check-data {data} --output {out}/a.json", 4, "stopped: could not write: File too large"),
        (
            "validate --ckpt_path {copy} --data.root {data} --data.workers 0",
            64,
            "stopped: could not write: File too large. Make",
        ),
        ("fit --config {recipe} --data.root {data} --out {out}/run", 3000, "stopped: could not "),
    ],
)
def test_disk_that_fills_in_the_middle(
    words, size, sentence, run_command, recipe, class_folders, trained, tmp_path_factory
):
    out = tmp_path_factory.mktemp("out")
    copy = shutil.copytree(trained, tmp_path_factory.mktemp("copy") / "run") / "best.ckpt"
    words = words.format(run=trained, copy=copy, data=class_folders, out=out, recipe=recipe)
    with files_no_longer_than(size):
        code, _, err = run_command(*words.split())
    assert code == 1 and sentence in err and "Traceback" not in err, err
    assert not [name for name in os.listdir(out) if name != "run"], "nothing half written"


@pytest.mark.parametrize(
    "words",
    [
        ("fit", "--config", "{recipe}", "--data.root", "{long}"),
        ("fit", "--config", "{recipe}", "--data.root", "{set}", "--out", "{long}"),
        ("validate", "--ckpt_path", "{long}"),
        ("predict", "--ckpt", "{run}", "{long}"),
        ("predict", "--ckpt", "{long}", "{set}"),
        ("export", "{run}", "{long}"),
        ("check-data", "{long}"),
        ("init", "{long}"),
    ],
)
def test_paths_that_the_system_refuses(run_command, recipe, class_folders, trained, tmp_path, words):
    paths = {"recipe": recipe, "set": class_folders, "run": trained, "long": tmp_path / ("a" * 300)}
    code, _, err = run_command(*(word.format(**paths) for word in words))
    assert code == 2 and "File name too long" in err and "Traceback" not in err, err


def test_an_output_folder_that_is_a_broken_link(run_command, trained, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "missing")
    code, _, err = run_command("export", trained, tmp_path / "link")
    assert code == 2 and f"{tmp_path / 'link'}: File exists" in err and "Traceback" not in err, err


def test_a_folder_without_permissions(run_command, monkeypatch, tmp_path):
    def refuse(path, *_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "is_dir", refuse)
    code, _, err = run_command("check-data", tmp_path)
    assert code == 2 and f"{tmp_path}: Permission denied" in err, err


@pytest.mark.parametrize("out", ["/dev/full", "/dev/full/run"])
def test_an_output_folder_that_is_a_file(run_command, fit, out):
    code, _, err = run_command(*fit, "--out", out)
    assert code == 2 and err.count("\n") == 1 and "can't be written, /dev/full is no folder" in err, err


def test_a_file_that_was_there_survives_a_full_disk(tmp_path):
    path = tmp_path / "bench.json"
    write_json(path, [1])
    with files_no_longer_than(64), pytest.raises(OSError):
        write_json(path, list(range(100)))
    assert json.loads(path.read_text()) == [1] and os.listdir(tmp_path) == ["bench.json"]
    write_json(Path("/dev/null"), [1])
    assert Path("/dev/null").is_char_device()


def test_devices_that_are_not_there(run_command, trained, class_folders):
    for device in ["banana"] if torch.cuda.is_available() else ["cuda", "cuda:3", "banana"]:
        code, _, err = run_command("predict", "--ckpt", trained, class_folders / "val", "--device", device)
        assert code == 2 and err.count("\n") == 1 and f"--device {device}: " in err and "--device cpu works" in err


# records and data that changed


def test_changed_data_is_noticed_on_resume(run_command, fit, tmp_path):
    root, run = tmp_path / "data", tmp_path / "run"
    assert run_command(*fit, "--trainer.max_steps", 2, "--trainer.max_epochs", 4)[0] == 0
    kept = json.loads((run / "run.json").read_text())["data"]
    assert kept["train"]["images"] == 24 and kept["val"]["classes"] == ["cat", "dog", "eel"]
    resume = [*fit, "--trainer.max_steps", 2, "--trainer.max_epochs", 4, "--resume"]

    def refused(*lines):
        code, _, err = run_command(*resume)
        assert code == 2 and all(line in err for line in lines), err
        return err

    moved = shutil.copytree(root, tmp_path / "moved")
    code, _, err = run_command(*resume, "--data.root", moved)
    assert code == 0 and "changed" not in err, err
    (root / "train" / "cat" / "0.png").rename(root / "train" / "cat" / "new.png")
    refused("train: as many images, 24, but with other names", "--guards.allow_changed_data true")
    (root / "train" / "cat" / "new.png").unlink()
    (root / "val" / "dog" / "0.png").rename(root / "val" / "eel" / "dog.png")
    err = refused("train: 24 images then, 23 now", "val: as many images, 9, but with other names")
    assert err.count("\n") == 4 and json.loads((run / "run.json").read_text())["data"] == kept
    code, _, err = run_command(*resume, "--guards.allow_changed_data", "true")
    assert code == 0 and "train: 24 images then, 23 now" in err, err
    assert run_command(*resume)[0] == 0, "what is there now is the run's data from then on"
    for split in ("train", "val"):
        (root / split / "eel").rename(root / split / "emu")
    for more in ([], ["--guards.allow_changed_data", "true"]):
        code, _, err = run_command(*resume, *more)
        assert code == 2 and "train: classes only then: eel" in err and "train: classes only now: emu" in err
        assert "A run can't go on with other classes" in err


def contents_of(source):
    return {kind: value for kind, value in source.fingerprint().items() if kind in ("files", "annotations")}


def test_changed_pixels_of_the_same_size_are_noticed_on_resume(run_command, fit, tmp_path):
    root, run = tmp_path / "data", tmp_path / "run"
    assert run_command(*fit)[0] == 0
    path = root / "train" / "cat" / "0.png"
    path.write_bytes(path.read_bytes()[:-20] + bytes(20))
    code, _, err = run_command(*fit, "--resume")
    assert code == 2 and "train: images of the same names, but other files: their size or content changed" in err, err
    assert "val:" not in err and "--guards.allow_changed_data true" in err
    record = json.loads((run / "run.json").read_text())
    for split in record["data"].values():  # as before this was recorded
        del split["files"], split["annotations"]
    (run / "run.json").write_text(json.dumps(record))
    assert run_command(*fit, "--resume")[0] == 0
    assert "files" in json.loads((run / "run.json").read_text())["data"]["train"]


def test_changed_annotations_and_masks_change_what_is_compared(tmp_path):
    root = coco(tmp_path / "coco")
    before = [contents_of(open_coco(place, "train")) for place in (root, packed(root))]
    assert before[0] == before[1] and set(before[0]) == {"files", "annotations"}
    path = root / "annotations" / "instances_train.json"
    path.write_text(path.read_text().replace('"category_id": 1, "bbox": [4,', '"category_id": 1, "bbox": [5,'))
    after = contents_of(open_coco(root, "train"))
    assert after["files"] == before[0]["files"] and after["annotations"] != before[0]["annotations"]
    path.write_text(json.dumps(json.loads(path.read_text()), indent=1))
    assert contents_of(open_coco(root, "train")) == after, "the layout of the json does not count"

    root, options = maps(tmp_path / "maps"), {"reduce_zero_label": False}
    before = contents_of(SegmentationData(str(root), **options).source("train"))
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(root / "annotations" / "training" / "3.png")
    after = contents_of(SegmentationData(str(root), **options).source("train"))
    assert after["files"] == before["files"] and after["annotations"] != before["annotations"]


def change_checkpoint(run, change):
    for path in run.glob("*.ckpt"):
        content = torch.load(path, weights_only=True)
        change(content)
        torch.save(content, path)
    return run


def spoil_momentum(content):
    for values in content["optimizer_states"][0]["state"].values():
        values["exp_avg"].fill_(torch.nan)


RESUMED = {
    "loops": lambda one: one.pop("loops"),
    "loops of another kind": lambda one: one["loops"]["fit_loop"].update(epoch_progress=5),
    "optimizer_states": lambda one: one["optimizer_states"].clear(),
    "optimizer_states (NaN or infinite)": spoil_momentum,
    "callbacks": lambda one: one.update(callbacks=5),
    "epoch, global_step": lambda one: one.update(epoch=-1, global_step="two"),
    "state_dict": lambda one: one["state_dict"].clear(),
}


@pytest.mark.parametrize("case", RESUMED)
def test_a_checkpoint_without_what_a_run_is_resumed_from(run_command, fit, trained, tmp_path, case):
    run = change_checkpoint(shutil.copytree(trained, tmp_path / "run"), RESUMED[case])
    (run / "run.json").unlink()
    code, _, err = run_command(*fit, "--resume")
    assert code == 2 and err.count("\n") == 1 and "last.ckpt can't be resumed: it has no usable" in err, err
    assert all(name in err for name in case.removesuffix(" of another kind").split(", ")), err
    assert ("--model.checkpoint_path" in err) == (case != "state_dict")


OPTIONS = {
    "class_names: 1 names for num_classes=3": {"class_names": ["cat"]},
    "class_names='cat': should be a valid": {"class_names": "cat"},
    "data_config.mean='gray'": {"data_config": {"mean": "gray"}},
    "data_config.std[1]=0": {"data_config": {"std": [0.1, 0, 0.1]}},
    "data_config.input_size": {"data_config": {"input_size": [3, -1, 32]}},
}


@pytest.mark.parametrize("words", OPTIONS)
def test_damaged_options_in_a_checkpoint(run_command, trained, class_folders, tmp_path, words):
    run = shutil.copytree(trained, tmp_path / "run")
    change_checkpoint(run, lambda one: one["hyper_parameters"].update(OPTIONS[words]))
    for command in (["predict", "--ckpt", run, class_folders / "val"], ["export", run, tmp_path / "exported"]):
        code, _, err = run_command(*command)
        assert code == 2 and "its options are damaged" in err and words in err and "Traceback" not in err, err
    code, _, err = run_command("validate", "--ckpt_path", run, "--data.root", class_folders)
    assert code == 2 and words in err and "Traceback" not in err, err


@pytest.mark.parametrize("text", ['{"recipe": {', "{}", "[1]", '{"recipe": 5}', '{"data": []}', "\x00", "[" * 9999])
def test_broken_record(text, run_command, fit, trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "run.json").write_text(text)
    code, _, err = run_command(*fit, "--resume")
    assert code == 2 and err.count("\n") == 1 and "run.json can't be read (" in err and "delete it" in err, err
    with pytest.raises(RunFolderError, match=r"run\.json can't be read"):
        with_data_of_run({"model": {"class_path": "Segmentation", "init_args": {}}}, str(run / "best.ckpt"))


def test_without_its_record_a_run_is_resumed(run_command, fit, trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "run.json").unlink()
    code, out, err = run_command(*fit, "--resume", "--model.graft", "{window_size: 2}")
    assert code == 0 and "already finished" in out and (run / "run.json").exists(), err


def test_results_of_a_run_with_boxes_alone(tmp_path, capsys):
    data = {"class_path": "DetectionData", "init_args": {"root": "/data/set"}}
    recipe = {"model": {"class_path": "Detection", "init_args": {"model": "a_model"}}, "data": data}
    (tmp_path / "run.json").write_text(json.dumps({"recipe": recipe}))
    (tmp_path / "metrics.csv").write_text("epoch,step,val/box_ap50,val/box_ap\n0,5,0.5,0.25\n")
    metrics = {"box_ap": 0.25, "box_ap50": 0.5, "mask_ap": None, "mask_ap50": None}
    for stage, checkpoint in (("validate", "/x/best.ckpt"), ("test", None)):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "metrics.json").write_text(json.dumps({"checkpoint": checkpoint, "metrics": metrics}))
    assert reproduction(["results", str(tmp_path)]) == 0
    assert "50.00" in capsys.readouterr().out
    (tmp_path / "test" / "metrics.json").write_text('{"metr')
    assert reproduction(["results", str(tmp_path)]) == 2
    assert "test/metrics.json: not the metrics of an evaluation" in capsys.readouterr().err


# names and lists


def test_lists_of_class_names_that_are_damaged(tmp_path):
    import tarfile

    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    (tmp_path / "0.cls").write_text("2")
    with tarfile.open(tmp_path / "train-0.tar", "w") as tar:
        for name in ("0.png", "0.cls"):
            tar.add(tmp_path / name, name)
    for content, message in ((b"caf\xe9\nb\nc\n", "no text in UTF-8"), (b"a\nb\n", "label 2, but 2 class names")):
        (tmp_path / "classes.txt").write_bytes(content)
        with pytest.raises(DataError, match=message):
            open_shards([str(tmp_path / "train-0.tar")], cache_dir=tmp_path / "cache")
    flat = tmp_path / "flat"
    flat.mkdir()
    shutil.copy(tmp_path / "0.png", flat / "ILSVRC2012_val_00000001.JPEG")
    head = b"ImageId,PredictionString\n"
    for content in (b"ImageId,Wrong\nILSVRC2012_val_00000001,n01\n", b"\xff\xfe\n", head + b"x,n01 1\n"):
        (flat / "LOC_val_solution.csv").write_bytes(content)
        with pytest.raises(DataError, match=r"LOC_val_solution\.csv is damaged"):
            open_imagenet_val(flat)


SCRIPT = """
import os, sys
from vitgraft.cli import main
root, recipe, out = sys.argv[1:]
def run(*words):
    print("$", *words[:1], flush=True)
    assert main(list(words)) == 0, words
run("fit", "--config", recipe, "--data.root", root, "--out", out)
run("validate", "--ckpt_path", out, "--data.root", root)
os.remove(f"{root}/val/dog/" + os.fsdecode(b"caf\\xe9-cut.png"))
os.rename(root, root + os.fsdecode(b"\\xff"))
root += os.fsdecode(b"\\xff")
run("check-data", root, "--output", f"{out}/check.json")
run("check-data", root, "--output", f"{out}/check.md")
run("predict", "--ckpt", out, f"{root}/val")
files = ["--output", f"{out}/p.csv", "--output", f"{out}/p.json", "--html", f"{out}/p.html"]
run("predict", "--ckpt", out, f"{root}/val", *files)
run("export", out, f"{out}/exported")
"""


@pytest.mark.slow
def test_names_that_are_not_utf_8_cost_no_results(recipe, class_folders, tmp_path):
    root, out = shutil.copytree(class_folders, tmp_path / "data"), tmp_path / "run"
    odd = os.fsdecode(b"caf\xe9")
    for split in ("train", "val"):
        (root / split / "cat").rename(root / split / odd)
        (root / split / "dog" / "0.png").rename(root / split / "dog" / f"{odd}.png")
    (root / "val" / "dog" / f"{odd}-cut.png").write_bytes(b"")
    script = [sys.executable, "-W", "ignore", "-c", SCRIPT, root, recipe, out]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(script, env=env, capture_output=True, timeout=240)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-3000:]
    assert "caf\\udce9" in (out / "validate" / "classes.csv").read_text(encoding="utf-8")
    metrics = json.loads((out / "validate" / "metrics.json").read_text(encoding="utf-8"))
    assert "caf\\udce9" in metrics["class_names"] and f"{odd}-cut.png" in metrics["unreadable"][0]


def test_paths_of_a_run_that_are_not_utf_8_are_refused(run_command, fit, tmp_path):
    """Recipes are YAML, which can't hold them."""
    root = tmp_path / os.fsdecode(b"caf\xe9")
    code, _, err = run_command(*fit, "--data.root", root)
    assert code == 2 and err.count("\n") == 1 and "data.root=" in err and "caf\\udce9': not in UTF-8" in err, err


@pytest.mark.slow
def test_predictions_of_names_that_are_not_utf_8(run_command, trained, class_folders, tmp_path):
    folder = tmp_path / os.fsdecode(b"f\xfclder")
    folder.mkdir()
    odd = os.fsdecode(b"caf\xe9.png")
    shutil.copy(class_folders / "val" / "cat" / "0.png", folder / odd)
    files = [word for suffix in ("csv", "json") for word in ("--output", tmp_path / f"p.{suffix}")]
    code, _, err = run_command("predict", "--ckpt", trained, folder, *files, "--html", tmp_path / "p.html")
    assert code == 0, err
    assert odd in json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))["images"][0]["image"]
    assert "f\\udcfclder/caf\\udce9.png" in (tmp_path / "p.csv").read_text(encoding="utf-8")
    assert "caf" in (tmp_path / "p.html").read_text(encoding="utf-8")
    env = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    words = [sys.executable, "-W", "ignore", "-m", "vitgraft", "predict", "--ckpt", trained, folder]
    done = subprocess.run(list(map(str, words)), env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "caf\\udce9.png" in done.stdout, done.stderr


def test_symlink_loops_are_followed_once(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("a/1.png", "a/b/2.png"):
        (tmp_path / name).write_bytes(b"")
    for link, target in (("a/up", ".."), ("a/self", "."), ("a/b/back", "../../a"), ("c", "a"), ("gone", "nothing")):
        (tmp_path / link).symlink_to(target)
    expected = ["a/1.png", "a/b/2.png", "c/1.png", "c/b/2.png"]
    assert Files(tmp_path).images() == expected
    for link, target in (("round", "about"), ("about", "round")):
        (tmp_path / link).symlink_to(target)
    assert Files(tmp_path).folders() == ["a", "c"] and Files(tmp_path).images() == expected
    (tmp_path.parent / "link").unlink(missing_ok=True)
    (tmp_path.parent / "link").symlink_to(tmp_path)
    assert Files(tmp_path.parent / "link").images() == expected, "through a link to the root, too"


def test_polygons_that_go_far_beyond_the_image_cost_nothing():
    start, y = time.monotonic(), np.mgrid[:64, :64][0] + 0.5
    x = np.mgrid[:64, :64][1] + 0.5

    def mask(*polygon):
        return decode_mask(to_rle([list(polygon)], (64, 64))).astype(bool)

    for far in (1e4, 1e9):
        assert mask(0, 0, far, 0, far, far, 0, far).all()
        assert (mask(-far, 10, far, 10, far, 20, -far, 20) == ((y > 10) & (y < 20))).all()
        assert (mask(0, 0, far, far / 2, 0, far) == (y >= x / 2)).all()
        assert to_rle([[far, far, 2 * far, far, 2 * far, 2 * far]], (64, 64)) is None
    assert time.monotonic() - start < 2
