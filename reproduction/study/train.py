"""One training run of the study: a plain loop over images in memory, on one thread, resumable.

What a step draws depends on (seed, step) alone, so that a resumed run computes what an uninterrupted one does.
"""

import math
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.optim import param_groups_weight_decay
from torch import nn

from reproduction.study.data import Images, Split, permutation
from vitgraft.atomic import atomic_write
from vitgraft.randomness import derive, seed_all

__all__ = ["evaluate", "train"]


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """Linear warm-up over a fraction of the steps, then a half cosine to zero."""
    first = max(1, round(warmup * steps))
    if step < first:
        return peak * (step + 1) / first
    return peak * 0.5 * (1 + math.cos(math.pi * (step - first) / max(1, steps - first)))


def batch_rows(seed: int, step: int, length: int, batch_size: int) -> torch.Tensor:
    """Rows of a step: each epoch is a permutation, of which the last incomplete batch is left out."""
    epoch, place = divmod(step, length // batch_size)
    return permutation(length, seed, "order", epoch)[place * batch_size : (place + 1) * batch_size]


@torch.no_grad()
def evaluate(model: nn.Module, split: Split, prepare: Any, batch_size: int = 250) -> float:
    """Accuracy in percent."""
    model.eval()
    right = 0
    for images, labels in zip(split.images.split(batch_size), split.labels.split(batch_size), strict=True):
        right += int((model(prepare(images, None)).argmax(1) == labels).sum())
    model.train()
    return 100 * right / len(split.labels)


def _optimizer(model: nn.Module, options: Mapping[str, Any]) -> torch.optim.Optimizer:
    kept = getattr(model, "no_weight_decay", set)()
    groups = param_groups_weight_decay(model, options["weight_decay"], kept)
    return torch.optim.AdamW(groups, betas=tuple(options.get("betas", (0.9, 0.999))), fused=True)


def _seconds(device: torch.device) -> float:
    """CPU seconds of this process; on a GPU seconds on the clock."""
    return time.process_time() if device.type == "cpu" else time.perf_counter()


def train(
    model: nn.Module,
    data: Images,
    options: Mapping[str, Any],
    seed: int,
    peak: float,
    state: Path,
    deadline: float = math.inf,
    device: str = "cpu",
) -> dict[str, Any] | None:
    """Trains a model and evaluates it.

    Args:
        model: It is changed.
        data: Images in memory.
        options: Those of the grid: steps, batch_size, weight_decay, smoothing, warmup, clip, evaluations, curve_images.
        seed: Of order and augmentation.
        peak: The learning rate.
        state: File that an unfinished run is kept in; it is resumed from it.
        deadline: Time of `time.monotonic` at which it stops.
        device: Where.

    Returns:
        accuracy, area (mean of the curve), curve (step, accuracy, seconds of training so far), seconds, step_seconds
        (median); None where the deadline came first.
    """
    place = torch.device(device)
    model, steps = model.to(place).train(), options["steps"]
    training, test = data.train.to(place), data.test.to(place)
    part = test.rows(permutation(len(test.labels), 0, "curve")[: options["curve_images"]].to(place))
    points = {round(steps * (i + 1) / options["evaluations"]) for i in range(options["evaluations"])}
    optimizer = _optimizer(model, options)
    start, curve, times = 0, [], []
    if state.exists():
        saved = torch.load(state, map_location=place, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        start, curve, times = saved["step"], saved["curve"], saved["times"]

    def save(step: int) -> None:
        values = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "curve": curve, "times": times}
        with atomic_write(state, "wb") as file:
            torch.save({**values, "step": step}, file)

    for step in range(start, steps):
        if time.monotonic() > deadline:
            save(step)
            return None
        begin = _seconds(place)
        seed_all(derive(seed, "step", step))
        rows = batch_rows(seed, step, len(training.labels), options["batch_size"]).to(place)
        images = data.prepare(training.images[rows], torch.Generator().manual_seed(derive(seed, "augment", step)))
        loss = F.cross_entropy(model(images), training.labels[rows], label_smoothing=options["smoothing"])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), options["clip"])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak, options["warmup"])
        optimizer.step()
        times.append(_seconds(place) - begin)
        if step + 1 in points and step + 1 < steps:
            accuracy = evaluate(model, part, data.prepare)
            curve.append([step + 1, round(accuracy, 3), round(sum(times), 2)])
            save(step + 1)
    accuracy = evaluate(model, test, data.prepare)
    curve.append([steps, round(accuracy, 3), round(sum(times), 2)])
    return {
        "accuracy": round(accuracy, 3),
        "area": round(statistics.fmean(point[1] for point in curve), 3),
        "curve": curve,
        "seconds": round(sum(times), 2),
        "step_seconds": round(statistics.median(times), 5),
    }
