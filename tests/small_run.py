"""Whole training runs in miniature, each in a process of its own that can be killed, and the comparison of their files.

`runs(options, ...)` starts them through one server process (`python small_run.py`), which imports once. It reads
requests, a line each: {"runs": [options, ...], "log": file for what they print}, and answers each with a line of the
runs' exit codes.

The same parts as `vitgraft fit`: a task (Classification with stochastic depth and mixup, or a detector or segmenter of
digit scenes), averaged weights, guards, checkpoints, and images that are augmented in worker processes.
"""

import functools
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import timm
import torch
from PIL import Image

from vitgraft.data.classification import ImageData
from vitgraft.tasks.classification import Classification
from vitgraft.training.callbacks.checkpoint import Checkpoints
from vitgraft.training.callbacks.ema import AveragedWeights
from vitgraft.training.callbacks.epoch_loss import EpochLoss
from vitgraft.training.callbacks.guards import Guards
from vitgraft.weights import files as checkpoint_files

SRC = Path(__file__).parents[1] / "src"

DEFAULTS = {
    "task": "classification",
    "root": "",  # images of classification
    "out": "",  # folder of the run
    "resume": False,
    "epochs": 2,
    "batch_size": 4,
    "workers": 0,
    "every_n_steps": 3,
    "accumulate": 1,
    "devices": 1,
    "val_check_interval": 1.0,
    "max_steps": -1,
    "mixup": 0.8,
    "at": None,  # [place, number]: where the process gets a signal: "train"/"val" and how many batches before
    "signal": "SIGKILL",
    "nan_at": [],  # batches of the whole run with a loss that is not finite
    "nan_rank": 0,
    "max_skipped": 10,
    "max_unreadable": 100,
    "freeze_epochs": 0,  # of a segmenter
}


class Incidents(pl.Callback):
    """Sends the process its signal, and spoils losses."""

    def __init__(self, o):
        self.o, self.seen, self.seen_val = o, -1, -1

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.hit("train", trainer.fit_loop.total_batch_idx)

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        if not trainer.sanity_checking:
            self.seen_val += 1
            self.hit("val", self.seen_val)

    def hit(self, place, number):
        if self.o["at"] == [place, number]:
            os.kill(os.getpid(), getattr(signal, self.o["signal"]))


class Spoiling:
    """Mixed into a task."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        number = self.trainer.fit_loop.total_batch_idx
        if number in OPTIONS["nan_at"] and self.global_rank == OPTIONS["nan_rank"]:
            loss = loss * float("nan")
        return loss


def spoiled(task):
    """The task with losses that are not finite where the options ask for it."""

    class Spoiled(Spoiling, task):
        pass

    return Spoiled


OPTIONS = {}


def classification(o):
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=3,
        drop_path_rate=0.3, proj_drop_rate=0.1,
    )  # fmt: skip
    task = spoiled(Classification)(
        model, 3, lr=3e-3, mixup=o["mixup"], cutmix=0.5 if o["mixup"] else 0.0, warmup_epochs=1
    )
    data = ImageData(
        o["root"], batch_size=o["batch_size"], workers=o["workers"], seed=5, input_size=16, reprob=0.25,
        auto_augment="rand-m9-mstd0.5",
    )  # fmt: skip
    return task, data


DENSE = {
    "model": "vit_tiny_patch16_224",
    "model_kwargs": {
        "img_size": 64, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "dynamic_img_size": True,
        "drop_path_rate": 0.3,
    },
    "graft": {"window_size": 4},
    "lr": 3e-3,
    "warmup_steps": 2,
}  # fmt: skip


def detection(o):
    from vitgraft.data.detection import DetectionData
    from vitgraft.tasks.detection import Detection

    heads = {"fpn_channels": 16, "box_channels": 32, "mask_channels": 16, "mask_convs": 1, "proposals": [40, 40]}
    data = DetectionData(scenes=28, val_scenes=3, scene_size=64, batch_size=2, workers=o["workers"], seed=5)
    return spoiled(Detection)(**DENSE, detector=heads), data


def segmentation(o):
    from vitgraft.data.segmentation import SegmentationData
    from vitgraft.tasks.segmentation import Segmentation

    data = SegmentationData(
        scenes=28, val_scenes=3, scene_size=64, crop_size=64, batch_size=2, eval_batch_size=1, workers=o["workers"],
        seed=5,
    )  # fmt: skip
    frozen = {"freeze_backbone": o["freeze_epochs"] > 0, "freeze_epochs": o["freeze_epochs"]}
    return spoiled(Segmentation)(**DENSE, **frozen, head_channels=16, aux_channels=8), data


TASKS = {one.__name__: one for one in (classification, detection, segmentation)}


def run(**options):
    o = {**DEFAULTS, **options}
    OPTIONS.update(o)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(0)
    task, data = TASKS[o["task"]](o)
    parts = [
        Checkpoints(every_n_steps=o["every_n_steps"]),
        AveragedWeights(decay=0.9),
        EpochLoss(),
        Guards(o["max_skipped"], o["max_unreadable"]),
        Incidents(o),
    ]
    trainer = pl.Trainer(
        accelerator="cpu", devices=o["devices"], strategy="ddp" if o["devices"] > 1 else "auto",
        max_epochs=o["epochs"], max_steps=o["max_steps"], accumulate_grad_batches=o["accumulate"],
        val_check_interval=o["val_check_interval"], num_sanity_val_steps=1, use_distributed_sampler=False,
        default_root_dir=o["out"], callbacks=parts, logger=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    last = f"{o['out']}/last.ckpt"
    trainer.fit(task, datamodule=data, ckpt_path=last if o["resume"] and os.path.exists(last) else None)
    if trainer.is_global_zero:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        with open(f"{o['out']}/metrics.json", "w") as file:
            json.dump(metrics, file)
    return trainer, task


def in_own_process(options, log):
    """Runs in a fork, which saves the seconds of importing, and gives the exit code as a shell has it."""
    pid = os.fork()
    if pid == 0:
        code = 0
        file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.argv = [sys.argv[0], json.dumps(options)]  # what Lightning starts further processes with
        try:
            run(**options)
        except SystemExit as error:
            code = error.code
        except BaseException:
            traceback.print_exc()
            code = 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    status = os.waitpid(pid, 0)[1]
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


# in the process of the tests


def make_images(root, train=19, val=4, broken=()):
    """A folder of 3 classes of small noise: 57 training and 12 validation images; those in `broken` are cut short."""
    random = np.random.RandomState(0)
    for split, count in (("train", train), ("val", val)):
        for label in range(3):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = random.randint(0, 150, (20, 20, 3)) + 50 * label
                path = folder / f"{i:02}.png"
                Image.fromarray(pixels.astype(np.uint8)).save(path)
                if f"{split}/class{label}/{path.name}" in broken:
                    path.write_bytes(path.read_bytes()[:60])
    return root


@functools.cache
def _server():
    """The process that starts the runs; it ends when its input does."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore::UserWarning:torch", __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SRC)},
    )


def runs(*options, timeout=300):
    """Exit codes of the runs, one after the other, and what they printed."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        server = _server()
        server.stdin.write(json.dumps({"runs": options, "log": str(log)}) + "\n")
        server.stdin.flush()
        ready, _, _ = select.select([server.stdout], [], [], timeout)
        answer = server.stdout.readline() if ready else ""
        text = log.read_text() if log.exists() else ""
        if not answer:
            server.kill()
            _server.cache_clear()
        assert answer, f"no answer within {timeout} s, or the server ended:\n{text}"
        return json.loads(answer), text


def difference(a, b, where=""):
    """Every place where two checkpoints differ, and by how much."""
    if isinstance(a, torch.Tensor):
        if a.shape != b.shape or a.dtype != b.dtype:
            return [f"{where}: {a.shape} {a.dtype} / {b.shape} {b.dtype}"]
        largest = (a.double() - b.double()).abs().max().item() if a.numel() else 0.0
        return [] if torch.equal(a, b) else [f"{where}: {largest}"]
    if isinstance(a, dict):
        found = [f"{where}.{key}: only in one" for key in a.keys() ^ b.keys()]
        return found + [d for key in a.keys() & b.keys() for d in difference(a[key], b[key], f"{where}.{key}")]
    if isinstance(a, list | tuple):
        found = [] if len(a) == len(b) else [f"{where}: lengths {len(a)} and {len(b)}"]
        return found + [
            d for i, (x, y) in enumerate(zip(a, b, strict=False)) for d in difference(x, y, f"{where}[{i}]")
        ]
    return [] if a == b else [f"{where}: {a!r} / {b!r}"]


def assert_same_run(whole, resumed, names=("last.ckpt", "best.ckpt")):
    """Everything in the checkpoints is equal: weights, averages, optimizer, counters, sums, best score."""
    for name in names:
        found = difference(
            checkpoint_files.read_checkpoint(whole / name), checkpoint_files.read_checkpoint(resumed / name), name
        )
        assert not found, "\n".join(found)
    a, b = (json.loads((folder / "metrics.json").read_text()) for folder in (whole, resumed))
    assert b, "the last process trained nothing"
    assert {name: a[name] for name in b} == b, "metrics of the last process"


if __name__ == "__main__":
    if "LOCAL_RANK" in os.environ:  # a further process of a run
        run(**json.loads(sys.argv[1]))
        sys.exit()
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps([in_own_process(options, request["log"]) for options in request["runs"]]), flush=True)
