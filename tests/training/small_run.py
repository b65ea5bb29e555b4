"""Whole training runs in miniature, each in a process of its own that can be killed: `python small_run.py JSON JSON ...`.

The same parts as `vitgraft fit`: Classification with stochastic depth and mixup, averaged weights, guards, checkpoints,
and images that are augmented in worker processes.
"""

import json
import os
import signal
import sys
import traceback
from typing import NamedTuple

import pytorch_lightning as pl
import timm
import torch
from torch.utils.data import DataLoader, Dataset

from vitgraft.data.sampling import EvalOrder, TrainOrder
from vitgraft.randomness import derive
from vitgraft.tasks.classification import Classification
from vitgraft.training.ema import AveragedWeights
from vitgraft.training.epoch_loss import EpochLoss
from vitgraft.training.guards import Guards
from vitgraft.training.progress import position
from vitgraft.training.checkpoints import Checkpoints

DEFAULTS = {
    "out": "",  # folder
    "resume": False,
    "epochs": 2,
    "images": 56,  # 14 batches of 4 in one process
    "val_images": 11,
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
    "bad_at": [],
    "max_unreadable": 100,
}


class Batch(NamedTuple):
    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    bad: list


class Noise(Dataset):
    """Class-dependent noise; the augmentation of a sample is a function of (epoch, index)."""

    def __init__(self, length, bad=()):
        self.length, self.bad = length, set(bad)

    def __len__(self):
        return self.length

    def __getitem__(self, draw):
        label = draw.index % 3
        random = torch.Generator().manual_seed(derive(1, "augment", draw.epoch, draw.index, draw.repeat))
        fixed = torch.Generator().manual_seed(derive(1, "image", draw.index))
        image = torch.randn(3, 16, 16, generator=fixed) + label + 0.3 * torch.randn(3, 16, 16, generator=random)
        return image, label, draw.index


def collate(samples):
    images, labels, indices = zip(*samples, strict=True)
    bad = [f"img{i}.png: cut short" for i in indices if i in COLLATE_BAD]
    return Batch(torch.stack(images), torch.tensor(labels), torch.tensor(indices), bad)


COLLATE_BAD = set()


class Sampler(TrainOrder):
    sampler = property(lambda self: self)  # where Lightning looks for set_epoch

    def set_epoch(self, epoch):
        if epoch != self.epoch:
            self.set_position(epoch, 0)


class Data(pl.LightningDataModule):
    def __init__(self, o):
        super().__init__()
        self.o, self.batch_size = o, o["batch_size"]

    def sample_name(self, index):
        return f"img{index}.png"

    def train_dataloader(self):
        o = self.o
        order = Sampler(o["images"], 5, o["batch_size"], self.trainer.world_size, self.trainer.global_rank)
        order.set_position(*position(self.trainer))
        return self.loader(o["images"], order)

    def val_dataloader(self):
        o = self.o
        return self.loader(
            o["val_images"],
            EvalOrder(o["val_images"], o["batch_size"], self.trainer.world_size, self.trainer.global_rank),
        )

    def loader(self, length, order):
        workers = self.o["workers"]
        return DataLoader(
            Noise(length), batch_sampler=order, collate_fn=collate, num_workers=workers, persistent_workers=workers > 0
        )


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


class Spoiled(Classification):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        number = self.trainer.fit_loop.total_batch_idx
        if number in OPTIONS["nan_at"] and self.global_rank == OPTIONS["nan_rank"]:
            loss = loss * float("nan")
        return loss


OPTIONS = {}


def run(**options):
    o = {**DEFAULTS, **options}
    OPTIONS.update(o)
    COLLATE_BAD.update(o["bad_at"])
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=3,
        drop_path_rate=0.3, proj_drop_rate=0.1,
    )  # fmt: skip
    task = Spoiled(model, 3, lr=3e-3, mixup=o["mixup"], cutmix=0.5 if o["mixup"] else 0.0, warmup_epochs=1)
    parts = [
        Checkpoints(every_n_steps=o["every_n_steps"]),
        AveragedWeights(decay=0.9),
        EpochLoss(),
        Guards(o["max_skipped"], o["max_unreadable"]),
        Incidents(o),
    ]
    trainer = pl.Trainer(
        max_epochs=o["epochs"],
        max_steps=o["max_steps"],
        accelerator="cpu",
        devices=o["devices"],
        strategy="ddp" if o["devices"] > 1 else "auto",
        default_root_dir=o["out"],
        callbacks=parts,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accumulate_grad_batches=o["accumulate"],
        val_check_interval=o["val_check_interval"],
        use_distributed_sampler=False,
        num_sanity_val_steps=1,
    )
    trainer.fit(task, datamodule=Data(o), ckpt_path=f"{o['out']}/last.ckpt" if o["resume"] else None)
    if trainer.is_global_zero:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        with open(f"{o['out']}/metrics.json", "w") as file:
            json.dump(metrics, file)
    return trainer, task


def in_own_process(options):
    """Runs in a fork, which saves the seconds of importing, and gives the exit code as a shell has it."""
    pid = os.fork()
    if pid == 0:
        code = 0
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


if __name__ == "__main__":
    print("exit codes", [in_own_process(json.loads(options)) for options in sys.argv[1:]])
