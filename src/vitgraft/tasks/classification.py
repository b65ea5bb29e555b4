"""Training a classifier through pytorch-lightning: timm's models, mixup, losses, optimisers and schedules.

This module needs the `train` extra and is imported by what trains, never by `import vitgraft`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import torch
from timm.data import Mixup
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import nn

import vitgraft
from vitgraft.errors import GraftError, MissingExtraError, ModelSpecError, RecipeError
from vitgraft.evaluation.metrics import ClassificationMetrics, EvaluationReport
from vitgraft.randomness import derive, seed_all
from vitgraft.tasks._checks import problems_of
from vitgraft.tasks._models import build_model, data_config_of
from vitgraft.tasks._sharding import shard
from vitgraft.training.optimization import Schedule, make_optimizer, scale_learning_rates

try:
    import pytorch_lightning as pl
except ImportError as error:
    raise MissingExtraError("pytorch-lightning", "train") from error

__all__ = ["Classification"]


class Classification(pl.LightningModule):
    """A classifier and how it is trained.

    Logs `train/loss` and `lr` every step, and at every validation `val/acc` (top-1, 0 to 1), `val/acc5`,
    `val/acc_class` (mean of the classes), `val/ece` and `val/loss`, with `_ema` behind them for averaged weights.
    Everything random in a training step is seeded by (seed, step, process), and the learning rate follows from the
    number of the step, so a resumed run needs no more than weights, optimizer and counters.

    Args:
        model: Name of a timm model (vitgraft's are among them), or a module: images (B, 3, H, W) -> logits.
        num_classes: None takes those of the data.
        pretrained: Start from timm's weights of that name (`graft_...backbone`: the backbone's).
        checkpoint_path: Start from the weights of this file.
        model_kwargs: Options of timm.create_model: drop_path_rate, img_size, ...
        graft: Options of GraftConfig. A name that is not grafted already gets grafts by them; None: none.
        train_grafts_only: Freeze the backbone; grafts and head train.
        grad_checkpointing: Save memory by computing the blocks' inside twice.
        loss: "cross_entropy", or "bce" (binary for each class, as in DeiT III).
        smoothing: Share of the target that is spread over all classes.
        bce_target_thresh: Targets above it become 1 (loss "bce").
        mixup, cutmix: Alpha of their Beta distributions; 0: off.
        mixup_prob, mixup_switch_prob, mixup_mode: timm's: share of batches mixed, share of cutmix where both are on,
            and one lambda per "batch", "pair" or "elem".
        mixup_off_epoch: Epoch from which nothing is mixed any more; 0: never.
        opt: timm's name of the optimizer.
        lr: Peak learning rate.
        lr_batch: Total batch for which `lr` is meant: it is scaled linearly to the total batch of the run (images per
            process x processes x accumulated steps). None: `lr` as given.
        lr_scale: What is scaled: "lr", or "all": warmup_lr and min_lr as well.
        weight_decay: On all but vectors and what the model itself names (position embeddings, the grafts' tables).
        no_weight_decay: Name patterns of further parameters without it.
        betas, eps, momentum: Of the optimizer; None leaves its own default.
        opt_kwargs: Further options of the optimizer.
        layer_decay: Factor on the learning rate from one layer to the one before it; None: the same for all.
        sched: "cosine", "poly", "tanh" or "constant".
        sched_on_updates: Whether the rate moves with every update (Swin) or once an epoch (DeiT, CSWin).
        sched_kwargs: Further options of timm's create_scheduler_v2.
        warmup_epochs, warmup_steps: Linear warm-up in epochs, or in updates, which wins.
        warmup_lr, min_lr: Learning rate at the start of the warm-up and at the end.
        warmup_prefix: The decay starts after the warm-up instead of beneath it.
        cooldown_epochs: The last epochs of the run stay at `min_lr`.
        seed: Of start weights, mixup, stochastic depth and dropout.
        class_names: Filled from the data; travels with the checkpoint.
        data_config: Overrides of the model's input_size, mean, std, crop_pct, interpolation.

    Raises:
        RecipeError: Options out of range; the message names all of them.
    """

    def __init__(
        self,
        model: str | nn.Module,
        num_classes: int | None = None,
        pretrained: bool = False,
        checkpoint_path: str | None = None,
        model_kwargs: dict[str, Any] | None = None,
        graft: dict[str, Any] | None = None,
        train_grafts_only: bool = False,
        grad_checkpointing: bool = False,
        loss: Literal["cross_entropy", "bce"] = "cross_entropy",
        smoothing: float = 0.0,
        bce_target_thresh: float | None = None,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mixup_prob: float = 1.0,
        mixup_switch_prob: float = 0.5,
        mixup_mode: Literal["batch", "pair", "elem"] = "batch",
        mixup_off_epoch: int = 0,
        opt: str = "adamw",
        lr: float = 1e-3,
        lr_batch: int | None = None,
        lr_scale: Literal["lr", "all"] = "lr",
        weight_decay: float = 0.05,
        no_weight_decay: Sequence[str] = (),
        betas: tuple[float, float] | None = None,
        eps: float | None = None,
        momentum: float | None = None,
        opt_kwargs: dict[str, Any] | None = None,
        layer_decay: float | None = None,
        sched: Literal["cosine", "poly", "tanh", "constant"] = "cosine",
        sched_on_updates: bool = True,
        sched_kwargs: dict[str, Any] | None = None,
        warmup_epochs: float = 0.0,
        warmup_steps: int | None = None,
        warmup_lr: float = 0.0,
        min_lr: float = 0.0,
        warmup_prefix: bool = False,
        cooldown_epochs: float = 0.0,
        seed: int = 0,
        class_names: list[str] | None = None,
        data_config: dict[str, Any] | None = None,
    ):
        super().__init__()
        ready = isinstance(model, nn.Module)
        self.save_hyperparameters(ignore=["model"] if ready else [])
        problems = self.problems(dict(self.hparams))
        if problems:
            raise RecipeError([f"model.{problem}" for problem in problems])
        self.model: nn.Module | None = None
        self._schedule: Any = None
        self.averaged_model: nn.Module | None = None  # set by AveragedWeights, past nn.Module's list of children
        self.weights_suffix = ""  # "_ema" where `model` holds the averaged weights
        if ready:
            self.hparams.num_classes = num_classes or getattr(model, "num_classes", None)
            self._take(model)

    @classmethod
    def problems(cls, values: Mapping[str, Any]) -> list[str]:
        """What is out of range among these options (all of them, each with its name)."""
        return problems_of(values)

    @classmethod
    def build_problems(cls, values: Mapping[str, Any]) -> list[str]:
        """Why a model cannot be built from options that are fine one by one; tried without making a tensor."""
        if not isinstance(values.get("model"), str) or ":" in values["model"]:
            return []
        try:
            build_model(
                values["model"],
                values.get("num_classes") or 2,
                values.get("model_kwargs"),
                values.get("graft"),
                device="meta",
            )
        except (ModelSpecError, GraftError) as error:
            return [f"model: {error}"]
        return []

    # the model

    def configure_model(self) -> None:
        """Builds the model once the number of classes is known; Lightning calls this after the data's setup."""
        if self.model is not None:
            return
        h = self.hparams
        if h.num_classes is None:
            raise RecipeError("num_classes: not given, and the data has no class names to count")
        seed_all(derive(h.seed, "init"))
        model = build_model(h.model, h.num_classes, h.model_kwargs, h.graft, h.pretrained, h.checkpoint_path)
        if h.train_grafts_only:
            vitgraft.train_grafts_only(model)
        if h.grad_checkpointing:
            model.set_grad_checkpointing()
        self._take(model)
        h.data_config = self.data_config
        if self.device_mesh is not None:  # Lightning's ModelParallelStrategy
            shard(model, self.device_mesh)

    def _take(self, model: nn.Module) -> None:
        h = self.hparams
        self.model = model
        self.make_metrics()
        self.mix = None
        if h.mixup > 0 or h.cutmix > 0:
            self.mix = Mixup(
                mixup_alpha=h.mixup,
                cutmix_alpha=h.cutmix,
                prob=h.mixup_prob,
                switch_prob=h.mixup_switch_prob,
                mode=h.mixup_mode,
                label_smoothing=h.smoothing,
                num_classes=h.num_classes,
            )
        if h.loss == "bce":
            smoothing = 0.0 if self.mix else h.smoothing  # mixed targets are smoothed already
            self.loss = BinaryCrossEntropy(smoothing, h.bce_target_thresh)
        elif self.mix:
            self.loss = SoftTargetCrossEntropy()
        else:
            self.loss = LabelSmoothingCrossEntropy(h.smoothing) if h.smoothing else nn.CrossEntropyLoss()

    def make_metrics(self) -> None:
        """Makes what validation and test measure: one metric each for the raw and the averaged weights."""
        classes = self.hparams.num_classes
        self.metrics = nn.ModuleDict({suffix: ClassificationMetrics(classes) for suffix in ("raw", "ema")})

    @property
    def data_config(self) -> dict[str, Any]:
        """timm's data configuration of the model: input_size, mean, std, crop_pct, interpolation; known before the
        model is built."""
        given = self.hparams.data_config or {}
        if self.model is not None:
            return {**data_config_of(self.model), **given}
        return {**data_config_of(self.hparams.model, self.hparams.model_kwargs), **given}

    def setup(self, stage: str) -> None:
        """Takes the classes of the data, or refuses data of other classes than the model's."""
        h = self.hparams
        data = getattr(self.trainer, "datamodule", None)
        if hasattr(data, "preprocessing"):  # with the data's own options on top: what the checkpoint must keep
            used = asdict(data.preprocessing)
            plain = {name: list(value) if isinstance(value, tuple) else value for name, value in used.items()}
            h.data_config = {**plain, "input_size": [self.data_config["input_size"][0], *used["input_size"]]}
        names = getattr(data, "class_names", None)
        size = getattr(data, "batch_size", 0)
        if stage == "fit" and (h.mixup > 0 or h.cutmix > 0) and size % 2:
            raise RecipeError(
                f"batch_size={size}: mixup and cutmix mix pairs; give an even number of images per process"
            )
        if not names:
            return
        if h.num_classes is None:
            h.num_classes = len(names)
        if h.class_names and len(h.class_names) != len(names):
            absent, unknown = (sorted(set(a) - set(b)) for a, b in ((h.class_names, names), (names, h.class_names)))
            raise RecipeError(
                f"the model knows {len(h.class_names)} classes, the data has {len(names)}; only the model has "
                f"{absent[:5]}, only the data {unknown[:5]}. An evaluation needs images of the model's "
                "classes, in folders of the same names"
            )
        if h.num_classes != len(names):
            raise RecipeError(
                f"num_classes={h.num_classes}, but the data has {len(names)} classes ({', '.join(names[:3])} ...): "
                "give num_classes: null to take those of the data"
            )
        if h.class_names and list(h.class_names) != list(names):
            wrong = [f"{a} / {b}" for a, b in zip(h.class_names, names, strict=True) if a != b]
            raise RecipeError(
                f"the model was trained for other classes than those of the data, or in another order: {wrong[:5]} "
                "(model / data)"
            )
        h.class_names = list(names)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> logits (B, num_classes)"""
        return self.model(images)

    # training

    def on_train_start(self) -> None:
        """Builds the schedule, now that the length of an epoch is known."""
        trainer, h = self.trainer, self.hparams
        batches = trainer.num_training_batches
        updates = max(1, -(-batches // trainer.accumulate_grad_batches)) if batches != float("inf") else 0
        total = trainer.max_steps if trainer.max_steps > 0 else trainer.max_epochs * updates
        if updates and trainer.max_epochs and trainer.max_epochs > 0:
            total = min(total, trainer.max_epochs * updates)
        self._schedule = Schedule(
            h.sched,
            h.sched_on_updates,
            h.warmup_epochs,
            h.warmup_steps,
            self._rates.warmup_lr,
            self._rates.min_lr,
            h.cooldown_epochs,
            h.warmup_prefix,
            h.sched_kwargs,
        ).build(trainer.optimizers[0], updates or total, total)
        if self.global_step:  # a run that goes on: building the schedule has set the rate to that of its beginning
            self._schedule.step(self.global_step - 1 if h.sched_on_updates else self.current_epoch)

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> torch.Tensor:
        """Loss of one batch (images, labels, ...)."""
        images, labels = batch[0], batch[1]
        self.before_step(batch_idx)
        if self.mix is not None:
            self.mix.mixup_enabled = not (0 < self.hparams.mixup_off_epoch <= self.current_epoch)
            images, labels = self.mix(images, labels)
        loss = self.loss(self(images), labels)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def before_step(self, batch_idx: int) -> None:
        """Seeds all that the step draws, and sets its learning rate."""
        h = self.hparams
        seed_all(derive(h.seed, "step", self.global_step, batch_idx, self.global_rank))
        self._schedule.step(self.global_step if h.sched_on_updates else self.current_epoch)
        self.log("lr", max(group["lr"] for group in self.trainer.optimizers[0].param_groups))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """timm's optimizer; the rates after the batch rule, which is printed."""
        h = self.hparams
        trainer = self._trainer
        batch_size = getattr(getattr(trainer, "datamodule", None), "batch_size", None)
        if h.lr_batch is not None and batch_size is None:
            raise RecipeError("lr_batch: needs a data module that knows its batch_size; give lr_batch: null")
        processes, accumulate = (trainer.world_size, trainer.accumulate_grad_batches) if trainer else (1, 1)
        self._rates = scale_learning_rates(
            h.lr, h.warmup_lr, h.min_lr, h.lr_batch, h.lr_scale, batch_size or 1, processes, accumulate
        )
        if batch_size is not None:
            self.print(self._rates.text)
        options = {name: h[name] for name in ("betas", "eps", "momentum") if h[name] is not None}
        return make_optimizer(
            self.model,
            h.opt,
            self._rates.lr,
            h.weight_decay,
            h.no_weight_decay,
            h.layer_decay,
            **options,
            **(h.opt_kwargs or {}),
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Says which class rebuilds the model from the checkpoint's hyper-parameters."""
        checkpoint["task"] = f"{type(self).__module__}.{type(self).__qualname__}"

    # evaluation

    def evaluated_models(self) -> dict[str, nn.Module]:
        """What an evaluation measures: "raw" the model, "ema" the averaged one where a callback has set it."""
        averaged = self.__dict__.get("averaged_model")
        if self.__dict__.get("weights_suffix"):  # the model itself has the averaged weights
            return {"ema": self.model}
        return {"raw": self.model} | ({} if averaged is None else {"ema": averaged})

    def on_validation_epoch_start(self) -> None:
        """Forgets what was counted before, for instance in the sanity check."""
        for metrics in self.metrics.values():
            metrics.reset()
        self.reports: dict[str, EvaluationReport] = {}

    def validation_step(self, batch: Sequence[Any], batch_idx: int) -> None:
        """Counts a batch."""
        images, labels = batch[0], batch[1]
        if len(labels):  # unreadable images are left out
            for name, model in self.evaluated_models().items():
                self.metrics[name].update(model(images), labels)

    def on_validation_epoch_end(self) -> None:
        """Logs the numbers of the whole set, each sample counted once."""
        self._log_evaluation("val")

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step

    def on_test_epoch_end(self) -> None:
        """As validation, under `test/`."""
        self._log_evaluation("test")

    def _log_evaluation(self, stage: str) -> None:
        names = {"acc": "top1", "acc5": "top5", "acc_class": "mean_class_accuracy", "ece": "ece", "loss": "loss"}
        for weights in self.evaluated_models():
            report = self.reports[weights] = self.metrics[weights].report()
            numbers = report.numbers()
            for name, number in names.items():
                if numbers[number] is not None:
                    # the same on all processes already; synchronising it again keeps Lightning from warning
                    name = f"{stage}/{name}" + ("_ema" if weights == "ema" else "")
                    self.log(name, numbers[number], prog_bar=name == f"{stage}/acc", sync_dist=True)

    def predict_step(self, batch: Sequence[Any], batch_idx: int) -> torch.Tensor:
        """Probabilities (B, num_classes)."""
        return self(batch[0]).softmax(1)
