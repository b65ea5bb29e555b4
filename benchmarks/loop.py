"""`python -m benchmarks.loop`: what a step through `vitgraft fit` costs above the bare model step.

The run is a real one: parser, LightningCLI, its callbacks, logger and bar; only the data is one batch again and again.
After each of its steps a bare step (forward, loss, backward, clip, update) of a copy of the model is timed in the same
process on the same batch, so the two take turns and a machine whose speed drifts slows both.
"""

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from vitgraft.machine import record
from vitgraft.terminal import write_json

__all__ = ["BareSteps", "SameBatch", "measure"]

WARM_UP = 5
times: dict[str, list[float]] = {"cli": [], "bare": []}


class _Same(Dataset):
    def __init__(self, batch: tuple[torch.Tensor, torch.Tensor], length: int):
        self.batch, self.length = batch, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.batch


class SameBatch(pl.LightningDataModule):
    """One batch of noise, `steps` times.

    Args:
        img_size: Side of the images in pixels.
        num_classes: Of the labels.
        batch_size: Images.
        steps: Batches.
    """

    def __init__(self, img_size: int = 32, num_classes: int = 10, batch_size: int = 32, steps: int = 60):
        super().__init__()
        self.batch_size = batch_size
        self.class_names = tuple(f"class {number}" for number in range(num_classes))
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(batch_size, 3, img_size, img_size, generator=generator)
        labels = torch.randint(num_classes, (batch_size,), generator=generator)
        self.batches = _Same((images, labels), steps)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.batches, batch_size=None)


class BareSteps(pl.Callback):
    """Times the run's step, and then a bare one of a copy of its model."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.model = copy.deepcopy(pl_module.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        for name in times:
            times[name].clear()
        self.since = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        start = time.perf_counter()
        times["cli"].append(start - self.since)
        self._step(batch, trainer.gradient_clip_val, pl_module.loss)
        self.since = time.perf_counter()
        times["bare"].append(self.since - start)

    def _step(self, batch: Any, clip: float | None, loss: torch.nn.Module) -> None:
        images, labels = batch
        self.optimizer.zero_grad()
        loss(self.model(images), labels).backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        self.optimizer.step()


def measure(recipe: str, batch_size: int, steps: int, img_size: int) -> dict[str, Any]:
    """Runs a recipe on one batch; seconds of a step through the command line and bare, and their ratio.

    Args:
        recipe: A recipe without mixup, which a bare step would lack.

    Returns:
        Medians in seconds ("cli", "bare"), "ratio" of the medians, and the quartiles of the ratio of neighbors.
    """
    from vitgraft.training.lightning_cli import main as train

    here = "benchmarks.loop"
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["fit", "--config", recipe, "--data", f"{here}.SameBatch", "--data.batch_size", str(batch_size)]
        arguments += ["--data.steps", str(steps + WARM_UP), "--data.img_size", str(img_size)]
        arguments += ["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--trainer.devices", "1"]
        arguments += ["--out", f"{folder}/run"]
        callbacks = [{"class_path": f"{here}.BareSteps"}]
        code = train([*arguments, "--trainer.callbacks", json.dumps(callbacks)])
    if code:
        raise SystemExit(code)
    from benchmarks import loop as bench_loop  # the module that the run has imported, also where this one is __main__

    taken = {name: values[WARM_UP:] for name, values in bench_loop.times.items()}
    medians = {name: statistics.median(values) for name, values in taken.items()}
    pairs = [cli / bare for cli, bare in zip(taken["cli"], taken["bare"], strict=True)]
    return {**medians, "ratio": medians["cli"] / medians["bare"], "quartiles": statistics.quantiles(pairs, n=4)}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; prints both times and their ratio."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loop", description=__doc__)
    parser.add_argument("--config", default="recipes/cifar10/vit_micro_graft.yaml", help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--img-size", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=60, help="default: %(default)s")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the numbers there too")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    found = measure(args.config, args.batch_size, args.steps, args.img_size)
    low, _, high = found["quartiles"]
    print(
        f"step through the command line {found['cli'] * 1e3:.1f} ms, bare {found['bare'] * 1e3:.1f} ms, "
        f"ratio {found['ratio']:.3f} (quartiles of neighbors {low:.3f} to {high:.3f})"
    )
    if args.output:
        options = {"config": args.config, "batch_size": args.batch_size, "steps": args.steps}
        write_json(args.output, record("bench_loop", "cpu", **options, **found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
