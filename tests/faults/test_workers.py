"""Loader processes and processes of a distributed run that die or block: a sentence within a time limit, no hang."""

import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("pytorch_lightning")
from vitgraft.data import check, loader
from vitgraft.data.findings import Options
from vitgraft.data.loader import Loader, Samples
from vitgraft.data.sampling import EvalOrder
from vitgraft.errors import TrainingError
from vitgraft.training.callbacks.guards import lost_process

ENV = {**os.environ, "OMP_NUM_THREADS": "1"}
FIT = [sys.executable, "-W", "ignore", "-m", "vitgraft", "fit", "--config"]


class Faulty(Samples):
    """Eight samples; the worker that prepares the sixth does what it should not."""

    def __init__(self, fault):
        source = SimpleNamespace(load=lambda index: index, name=lambda index: f"sample {index}")
        super().__init__(source)
        self.fault = fault

    def __len__(self):
        return 8

    def prepare(self, loaded, index):
        if index == 5 and os.getpid() != TEST:
            self.fault()
        return torch.full((64, 64), index)

    def collate(self, samples, indices, bad):
        return torch.stack(samples)


TEST = os.getpid()


def kill(number):
    return lambda: os.kill(os.getpid(), number)


def small_files():
    """What a worker shares from now on is refused, as by a full /dev/shm."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (kill(signal.SIGKILL), "was killed, as the system does where memory runs out: fewer workers"),
        (kill(signal.SIGSEGV), r"ended \(killed by signal: Segmentation fault\): workers 0 loads in the main process"),
        (kill(signal.SIGBUS), r"could not hand over a batch in shared memory.*docker run --shm-size"),
        (lambda: os._exit(3), r"ended \((exit code:? 3|why is not known)\)"),
        (lambda: time.sleep(600), r"no batch came .* within 1 s \(data.timeout=1\).*a larger timeout"),
        (small_files, r"could not hand over a batch in shared memory \(/dev/shm: .* MB are free\). Fewer workers"),
    ],
    ids=["killed", "segfault", "bus error", "exit", "sleeps", "full shared memory"],
)
def test_worker_that_dies_or_blocks(fault, message):
    batches = Loader(Faulty(fault), EvalOrder(8, 2), workers=2, timeout=1 if "lambda" in fault.__name__ else 60)
    start = time.monotonic()
    with pytest.raises(TrainingError, match=f"(?is){message}"):
        list(batches)
    assert time.monotonic() - start < 20
    assert batches.batches._iterator is None, "the other workers are ended"


class Broken:
    """A torch loader whose connection to a worker ends while a batch is received."""

    def __init__(self, error, code):
        self.error = error
        worker = multiprocessing.get_context("fork").Process(target=lambda: (time.sleep(0.3), os._exit(code)))
        worker.start()
        self._iterator = SimpleNamespace(_workers=[worker], _shutdown_workers=lambda: None)

    def __iter__(self):
        raise self.error


@pytest.mark.parametrize(
    "error", [ConnectionResetError(104, "reset"), EOFError(), multiprocessing.AuthenticationError()]
)
def test_worker_that_dies_while_its_batch_is_received(error):
    batches = Loader(Faulty(lambda: None), EvalOrder(8, 2))
    batches.batches = Broken(error, loader.NOT_SHARED)
    with pytest.raises(TrainingError, match="could not hand over a batch in shared memory"):
        list(batches)


def test_errors_of_the_dataset_are_not_taken_for_a_death(monkeypatch):
    monkeypatch.setattr(loader, "DEATH", 0)
    batches = Loader(Faulty(lambda: None), EvalOrder(8, 2))
    for error in (OSError("Caught OSError in DataLoader worker process 0."), ValueError("another")):
        batches.batches = Broken(error, 0)
        with pytest.raises(type(error), match=str(error)):
            list(batches)


def test_sound_workers_are_not_disturbed():
    batches = Loader(Faulty(lambda: None), EvalOrder(8, 2), workers=2, timeout=60)
    for _ in range(2):
        assert [int(batch[0, 0, 0]) for batch in batches] == [0, 2, 4, 6]
    batches.shut_down()


def test_a_parent_that_gave_up_is_no_error_of_a_worker(capsys, monkeypatch):
    """multiprocessing's thread in a worker prints so where nobody takes a batch, as after another worker's death."""
    monkeypatch.setattr(sys, "__excepthook__", lambda *error: print(error[1], file=sys.stderr))
    for error in (EOFError(), ConnectionResetError(), BrokenPipeError(), multiprocessing.AuthenticationError("digest")):
        loader.unless_gone(type(error), error, None)
    assert not capsys.readouterr().err
    loader.unless_gone(ValueError, ValueError("another"), None)
    assert "another" in capsys.readouterr().err


def test_small_shared_memory_is_noticed_before_the_start(monkeypatch, capsys):
    usage = SimpleNamespace(free=64 << 10, total=64 << 10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    dataset = Faulty(lambda: None)
    assert loader.workers_that_fit(dataset, 2, 2) == 0  # 2 workers x 2 batches x 2 samples of 32 kB
    err = capsys.readouterr().err
    assert "warning: workers=2: their batches take about 0.3 MB" in err and "0.1 of 0.1 MB are free" in err
    usage.free = 1 << 20
    assert loader.workers_that_fit(dataset, 2, 2) == 2 and not capsys.readouterr().err
    usage.free = 0
    assert loader.workers_that_fit(dataset, 2, 0) == 0 and not capsys.readouterr().err


def test_processes_of_check_data_that_die(class_folders, monkeypatch):
    def examine(self, index):
        if os.getpid() != TEST:
            os._exit(9)
        return original(self, index)

    original = check.ImageCheck.examine
    monkeypatch.setattr(check.ImageCheck, "examine", examine)
    checks, _ = check.open_checks([str(class_folders / "val")], Options())
    with pytest.raises(TrainingError, match=r"--workers 2: a worker process of the loader"):
        check.check(checks, 2)


def test_predict_with_a_worker_that_is_killed(run_command, trained, class_folders, tmp_path, monkeypatch):
    def decode(data, name):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr("vitgraft.predict.run.decode_image", decode)
    out = tmp_path / "out.csv"
    code, _, err = run_command("predict", "--ckpt", trained, class_folders / "val", "--workers", 1, "--output", out)
    assert code == 1 and "vitgraft predict: stopped: a worker process of the loader was killed" in err
    assert not out.exists()


def test_other_errors_are_not_taken_for_lost_processes():
    assert lost_process(RuntimeError("shapes do not match")) is None
    assert loader.worker_failure(RuntimeError("Caught RuntimeError in DataLoader worker process 0.")) is None
    assert loader.worker_failure(ValueError("DataLoader timed out after 3 seconds")) is None
    assert "--resume" in lost_process(RuntimeError("[gloo/transport/tcp/pair.cc:545] Connection closed by peer"))


# real runs


def begun(command, out, file="last.ckpt"):
    """The process of a run that has saved."""
    log = open(f"{out}.log", "w")  # noqa: SIM115 the process writes to it
    process = subprocess.Popen(list(map(str, command)), env=ENV, stdout=log, stderr=log)
    wait_for(lambda: (out / file).exists() or process.poll() is not None)
    return process


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def children(pid):
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def ended(process, out, seconds=60):
    """Exit code and output."""
    try:
        return process.wait(seconds), Path(f"{out}.log").read_text()
    finally:
        process.kill()


@pytest.mark.slow
def test_run_with_a_worker_that_is_killed(recipe, class_folders, tmp_path):
    out = tmp_path / "run"
    words = [*FIT, recipe, "--data.root", class_folders, "--out", out, "--trainer.max_epochs", 5000]
    process = begun([*words, "--data.workers", 2], out)
    os.kill(children(process.pid)[0], signal.SIGKILL)
    code, text = ended(process, out)
    assert code == 1 and "vitgraft fit: stopped: a worker process of the loader was killed" in text, text
    assert "Traceback" not in text and (out / "last.ckpt").exists()


@pytest.mark.slow
def test_run_with_a_file_that_never_answers(waiting, recipe, class_folders, tmp_path):
    needs, out = waiting("train"), tmp_path / "run"
    words = [*FIT, recipe, "--data.root", class_folders, "--out", out, "--data.workers", 2, "--data.timeout", 2]
    words = [*map(str, words), *needs.words]
    done = subprocess.run(words, env=needs.env, capture_output=True, text=True, timeout=90)
    assert done.returncode == 1 and "within 2 s (data.timeout=2)" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not (out / "last.ckpt").exists()


def test_a_pipe_among_the_images_is_not_read(run_command, recipe, class_folders, tmp_path):
    root, out = shutil.copytree(class_folders, tmp_path / "data"), tmp_path / "run"
    (root / "train" / "cat" / "0.png").unlink()
    os.mkfifo(root / "train" / "cat" / "0.png")
    code, text, err = run_command("fit", "--config", recipe, "--data.root", root, "--out", out)
    assert code == 0 and "a folder, pipe or device, not a file" in text, (text, err)


@pytest.mark.slow
def test_run_with_64_kb_of_shared_memory(recipe, class_folders, tmp_path):
    """As in a container: images are loaded in the main process, to the same weights."""
    mount = "mount -t tmpfs -o size=64k tmpfs /dev/shm && "
    if subprocess.run(["unshare", "-rm", "sh", "-c", f"{mount} true"], capture_output=True).returncode:
        pytest.skip("needs the right to mount a /dev/shm of its own")
    out = tmp_path / "run"
    words = [*FIT, recipe, "--data.root", class_folders, "--out", out, "--data.workers", 2, "--data.timeout", 20]
    command = ["unshare", "-rm", "sh", "-c", f'{mount} exec "$@"', "sh", *map(str, words)]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "warning: workers=2: their batches take" in done.stderr, done.stderr
    assert (out / "last.ckpt").exists()


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["first", "second"])
def test_process_of_a_distributed_run_that_is_killed(lost, recipe, class_folders, tmp_path):
    out = tmp_path / "run"
    words = [*FIT, recipe, "--data.root", class_folders, "--out", out, "--trainer.max_epochs", 5000]
    process = begun([*words, "--trainer.devices", 2, "--trainer.strategy", "ddp"], out)
    other = children(process.pid)[0]
    os.kill(process.pid if lost == "first" else other, signal.SIGKILL)
    code, text = ended(process, out)
    wait_for(lambda: not Path(f"/proc/{other}").exists(), 60)
    text = Path(f"{out}.log").read_text()
    assert "Traceback" not in text and (out / "last.ckpt").exists()
    if lost == "second" and code == -9:  # Lightning looks every 5 seconds and kills all when it is before the others
        assert "terminated with code -9. Forcefully terminating all other processes" in text
        return
    assert code == (-9 if lost == "first" else 1), text
    assert "vitgraft fit: stopped: another process of this run ended" in text and "--resume" in text
