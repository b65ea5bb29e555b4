"""Learning rate, parameter groups and schedule, all from timm. Nothing here has a history: the learning rate of an
update follows from its number alone, so a resumed run needs no scheduler state."""

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.optim import (
    create_optimizer_v2,
    get_optimizer_info,
    param_groups_layer_decay,
    param_groups_weight_decay,
)
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.distributed.tensor import DTensor

__all__ = ["LearningRates", "Schedule", "make_optimizer", "scale_learning_rates"]


@dataclass(frozen=True)
class LearningRates:
    """The rates of a run after the batch rule, and how they came about in words."""

    lr: float
    warmup_lr: float
    min_lr: float
    text: str


def scale_learning_rates(
    lr: float,
    warmup_lr: float,
    min_lr: float,
    lr_batch: int | None,
    scale: str,
    batch_size: int,
    world_size: int,
    accumulate: int,
) -> LearningRates:
    """The linear rule: `lr` is meant for a total batch of `lr_batch`, and scaled to the batch there is.

    Args:
        lr, warmup_lr, min_lr: As the recipe gives them.
        lr_batch: Total batch that they are meant for; None leaves them alone.
        scale: "lr" scales the peak only (DeiT), "all" also the two ends (Swin).
        batch_size: Images per process and step.
        world_size: Processes.
        accumulate: Steps per update.
    """
    total = batch_size * world_size * accumulate
    batch = f"total batch {total} = {batch_size} images x {world_size} processes x {accumulate} accumulated"
    if lr_batch is None:
        return LearningRates(lr, warmup_lr, min_lr, f"learning rate {lr:g} as given ({batch})")
    factor = total / lr_batch
    ends = factor if scale == "all" else 1.0
    text = f"learning rate {lr * factor:g} = {lr:g} x {total} / {lr_batch} ({batch})"
    return LearningRates(lr * factor, warmup_lr * ends, min_lr * ends, text)


# PyTorch's optimizers that update all parameters in one kernel, on CPUs too
FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)


def make_optimizer(
    model: nn.Module,
    opt: str,
    lr: float,
    weight_decay: float,
    no_weight_decay: Sequence[str] = (),
    layer_decay: float | None = None,
    decay_vectors: bool = False,
    **options: Any,
) -> torch.optim.Optimizer:
    """timm's optimizer `opt` over the parameters that train, PyTorch's own in their fused form.

    Vectors and what the model's own `no_weight_decay()` names do not decay, nor what matches a pattern.

    Args:
        no_weight_decay: Further name patterns, `*` for anything.
        layer_decay: Factor from one layer to the one before it; None for one rate. A graft belongs to its block.
        decay_vectors: Vectors decay as well, unless they are named (mmcv's optimizer constructor, with which the Swin
            authors train detectors and segmenters).
        options: Of the optimizer (betas, eps, momentum ...).

    Raises:
        ValueError: `decay_vectors` together with `layer_decay`.
    """
    names = set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()
    names |= set(no_weight_decay)
    if decay_vectors:
        if layer_decay is not None:
            raise ValueError("decay_vectors: not together with layer_decay, whose groups leave vectors out")
        groups = _groups_by_name(model, weight_decay, names)
    elif layer_decay is None:
        groups = param_groups_weight_decay(model, weight_decay, no_weight_decay_list=names)
    else:
        groups = param_groups_layer_decay(model, weight_decay, no_weight_decay_list=names, layer_decay=layer_decay)
    # a fused update of sharded parameters is not registered for every optimizer
    sharded = any(isinstance(parameter, DTensor) for parameter in model.parameters())
    if fusible := get_optimizer_info(opt).opt_class in FUSED and not sharded:
        options.setdefault("fused", True)
    optimizer = create_optimizer_v2(groups, opt=opt, lr=lr, weight_decay=0.0, **options)
    if fusible:
        # a gradient scaler then unscales before the step, so that Lightning can clip in between
        optimizer._step_supports_amp_scaling = False
    return optimizer


def _groups_by_name(model: nn.Module, weight_decay: float, patterns: set[str]) -> list[dict[str, Any]]:
    """What matches a pattern in one group, without decay, and all else in the other."""
    decay, rest = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (rest if any(fnmatch.fnmatchcase(name, one) for one in patterns) else decay).append(parameter)
    return [{"params": rest, "weight_decay": 0.0}, {"params": decay, "weight_decay": weight_decay}]


@dataclass(frozen=True)
class Schedule:
    """Learning rate over a run: warm-up, decay, and perhaps a rest at the minimum.

    Args:
        sched: "cosine", "poly", "tanh", "multistep" or "constant".
        on_updates: The rate moves with every update (Swin); otherwise it stands still for an epoch (DeiT, CSWin).
        warmup_epochs: Length of the linear warm-up from `warmup_lr`.
        warmup_updates: The same in updates; wins where given.
        cooldown_epochs: Epochs at the minimum at the end of the run.
        warmup_prefix: The decay begins after the warm-up; otherwise it runs from the start and the warm-up covers its
            first part.
        options: Of timm's create_scheduler_v2: decay_rate is the power of "poly" and the factor of "multistep",
            decay_milestones the epochs at whose beginning "multistep" lowers the rate.
    """

    sched: str = "cosine"
    on_updates: bool = True
    warmup_epochs: float = 0.0
    warmup_updates: int | None = None
    warmup_lr: float = 0.0
    min_lr: float = 0.0
    cooldown_epochs: float = 0.0
    warmup_prefix: bool = False
    options: Mapping[str, Any] | None = None

    def build(self, optimizer: torch.optim.Optimizer, updates_per_epoch: int, total_updates: int) -> Scheduler:
        """timm's scheduler. Its `step(t)` sets the rates, t in updates or epochs, by `on_updates`."""
        unit = 1 if self.on_updates else updates_per_epoch  # updates in one t
        total = max(1, round(total_updates / unit))
        warmup = self.warmup_epochs * updates_per_epoch if self.warmup_updates is None else self.warmup_updates
        warmup = round(warmup / unit)
        decay = max(1, total - round(self.cooldown_epochs * updates_per_epoch / unit))
        if self.warmup_prefix:
            decay = max(1, decay - warmup)
        ends = {"warmup_epochs": warmup, "warmup_lr": self.warmup_lr, "warmup_prefix": self.warmup_prefix}
        if self.sched == "constant":
            scheduler, _ = create_scheduler_v2(optimizer, "step", decay, decay_epochs=total + 1, decay_rate=1.0, **ends)
        else:
            options = dict(self.options or {})
            if self.sched == "multistep" and self.on_updates:
                milestones = options.get("decay_milestones", ())
                options["decay_milestones"] = [round(epoch * updates_per_epoch) for epoch in milestones]
            scheduler, _ = create_scheduler_v2(optimizer, self.sched, decay, min_lr=self.min_lr, **ends, **options)
        return scheduler
