"""Base of all tasks: model by name, optimizer and schedule, seeded steps, evaluation of raw and averaged weights."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar, Literal

import torch
from PIL import Image
from torch import nn

from vitgraft.config import GraftOptions
from vitgraft.errors import MissingExtraError, RecipeError, VitgraftError
from vitgraft.grafting import train_grafts_only
from vitgraft.options import (
    BelowOne,
    Count,
    Model,
    ModelOptions,
    NonNegative,
    Optimizer,
    Positive,
    WholeNumber,
    run_errors,
    type_errors,
)
from vitgraft.randomness import derive, seed_all
from vitgraft.tasks._initial_weights import features_of, load_initial_weights, new_parts
from vitgraft.tasks._sharding import shard
from vitgraft.tasks.losses import class_weights_of, describe_weights
from vitgraft.tasks.optim import Schedule, make_optimizer, scale_learning_rates
from vitgraft.weights.create import data_config_of, is_graft_name
from vitgraft.weights.official import check_names_and_shapes

try:
    import pytorch_lightning as pl
    from pytorch_lightning.utilities import rank_zero_only
except ImportError as error:
    raise MissingExtraError("pytorch-lightning", "train") from error

__all__ = ["Mistake", "Task"]

Mistake = tuple[float, Any]
"""How large it is, 0 for none, and what drawing it needs of the prediction."""

print_once = rank_zero_only(print)  # also before there is a trainer, which `Task.print` needs


def freeze_backbone(model: nn.Module) -> str:
    """Freezes all but what `get_classifier` gives; what trains, in words."""
    heads = model.get_classifier()
    model.requires_grad_(False)
    for head in heads if isinstance(heads, tuple) else (heads,):
        head.requires_grad_(True)
    trains = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return f"training {trains:,} of {sum(p.numel() for p in model.parameters()):,} parameters, all but the backbone"


class Task(pl.LightningModule):
    """A model and how it is trained.

    Everything random in a training step is seeded by (seed, step, process), and the learning rate follows from the
    number of the step, so a resumed run needs no more than weights, optimizer and counters.

    `train/loss` and `lr` are logged every step, and at every validation the metrics of the task, with `_ema` behind
    their names for averaged weights. Fractions are 0 to 1.

    Subclasses define `build`, `make_metric`, `training_step` (which begins with `before_step`), `evaluate`, and the
    names of the metrics that they log.

    Args:
        model: Name of a timm model (vitgraft's are among them), or a module.
        num_classes: None takes those of the data.
        pretrained: Start from timm's weights of that name (`graft_...backbone`: the backbone's).
        checkpoint_path: Start from the weights of this file, or of a run's folder (its best.ckpt, else last.ckpt).
        model_kwargs: Options of timm.create_model: drop_path_rate, img_size, ...
        graft: Options of GraftConfig. A name that is not grafted already gets grafts by them; None: none.
        train_grafts_only: Freeze the backbone; grafts and head train.
        freeze_backbone: Freeze the backbone and its grafts; the head (of a detector or segmenter: all that is not the
            backbone) trains. Statistics of BatchNorm layers still move.
        freeze_epochs: Epochs after which what one of the two has frozen trains too; 0: never.
        grad_checkpointing: Save memory by computing the blocks' inside twice.
        opt: timm's name of the optimizer.
        lr: Peak learning rate.
        lr_batch: Total batch for which `lr` is meant: it is scaled linearly to the total batch of the run (images per
            process x processes x accumulated steps). None: `lr` as given.
        lr_scale: What is scaled: "lr", or "all": warmup_lr and min_lr as well.
        weight_decay: On all but vectors and what the model itself names (position embeddings, the grafts' tables).
        no_weight_decay: Name patterns of further parameters without it.
        decay_vectors: Vectors (biases, norms) decay as well, where no pattern names them, as with mmcv.
        betas: Of the optimizer; None leaves its own default.
        eps: Of the optimizer; None leaves its own default.
        momentum: Of the optimizer; None leaves its own default.
        opt_kwargs: Further options of the optimizer.
        layer_decay: Factor on the learning rate from one layer to the one before it; None: the same for all.
        sched: "cosine", "poly", "tanh", "multistep" or "constant".
        sched_on_updates: Whether the rate moves with every update (Swin) or once an epoch (DeiT, CSWin).
        sched_kwargs: Further options of timm's create_scheduler_v2.
        warmup_epochs: Length of the linear warm-up.
        warmup_steps: The same in updates, which wins where set.
        warmup_lr: Learning rate at the start of the warm-up.
        min_lr: Learning rate at the end.
        warmup_prefix: The decay starts after the warm-up instead of beneath it.
        cooldown_epochs: The last epochs of the run stay at `min_lr`.
        seed: Of initial weights and of everything random in a step.
        class_names: Filled from the data; travels with the checkpoint.
        data_config: Overrides of the model's input_size, mean, std, crop_pct, interpolation.

    Raises:
        RecipeError: Options out of range; the message names all of them.
    """

    LOGGED: ClassVar[Mapping[str, str]] = {}  # name after `val/` and `test/` -> name in `report.numbers()`
    MAIN: ClassVar[str] = ""  # the one of LOGGED in the progress bar
    DATA: ClassVar[str]  # class path of the data where a recipe names none

    def __init__(
        self,
        model: Model,
        num_classes: Count | None = None,
        pretrained: bool = False,
        checkpoint_path: str | None = None,
        model_kwargs: ModelOptions | None = None,
        graft: GraftOptions | None = None,
        train_grafts_only: bool = False,
        freeze_backbone: bool = False,
        freeze_epochs: WholeNumber = 0,
        grad_checkpointing: bool = False,
        opt: Optimizer = "adamw",
        lr: Positive = 1e-3,
        lr_batch: Count | None = None,
        lr_scale: Literal["lr", "all"] = "lr",
        weight_decay: NonNegative = 0.05,
        no_weight_decay: Sequence[str] = (),
        decay_vectors: bool = False,
        betas: tuple[BelowOne, BelowOne] | None = None,
        eps: NonNegative | None = None,
        momentum: NonNegative | None = None,
        opt_kwargs: dict[str, Any] | None = None,
        layer_decay: Positive | None = None,
        sched: Literal["cosine", "poly", "tanh", "multistep", "constant"] = "cosine",
        sched_on_updates: bool = True,
        sched_kwargs: dict[str, Any] | None = None,
        warmup_epochs: NonNegative = 0.0,
        warmup_steps: WholeNumber | None = None,
        warmup_lr: NonNegative = 0.0,
        min_lr: NonNegative = 0.0,
        warmup_prefix: bool = False,
        cooldown_epochs: NonNegative = 0.0,
        seed: WholeNumber = 0,
        class_names: list[str] | None = None,
        data_config: dict[str, Any] | None = None,
    ):
        super().__init__()
        ready = isinstance(model, nn.Module)
        self.save_hyperparameters(ignore=["model"] if ready else [])  # those of the task itself among them
        if errors := self.option_errors(dict(self.hparams)):
            raise RecipeError([f"model.{error}" for error in errors])
        self.model: nn.Module | None = None
        self._schedule: Any = None
        self.register_buffer("class_weights", None, persistent=False)  # float32 (num_classes,), known with the data
        self._frozen: list[nn.Parameter] = []  # until `freeze_epochs`
        self.averaged_model: nn.Module | None = None  # set by AveragedWeights, past nn.Module's list of children
        self.weights_suffix = ""  # "_ema" where `model` holds the averaged weights
        if ready:
            self.hparams.num_classes = num_classes or getattr(model, "num_classes", None)
            self.take(model)

    @classmethod
    def option_errors(cls, values: Mapping[str, Any]) -> list[str]:
        """All errors of these options, one line each: those of single options, by their types, and conflicts."""
        found = type_errors(cls, values)
        bad = {re.split(r"[.\[:=]", line)[0] for line in found}
        return found + cls.conflicts({name: value for name, value in values.items() if name not in bad})

    @classmethod
    def conflicts(cls, values: Mapping[str, Any]) -> list[str]:
        """Errors of options together that are valid one by one."""
        found = run_errors(values)
        if values.get("decay_vectors") and values.get("layer_decay") is not None:
            found.append("decay_vectors: not together with layer_decay, whose groups leave vectors out")
        if values.get("sched") == "multistep" and not (values.get("sched_kwargs") or {}).get("decay_milestones"):
            found.append("sched='multistep': needs sched_kwargs, such as {decay_milestones: [8, 11], decay_rate: 0.1}")
        model = values.get("model")
        named_plain = isinstance(model, str) and not is_graft_name(model)
        if values.get("train_grafts_only") and named_plain and values.get("graft") is None:
            found.append(f"train_grafts_only: {model!r} has no grafts; give graft: {{}} for the defaults")
        frozen = [name for name in ("train_grafts_only", "freeze_backbone") if values.get(name)]
        if len(frozen) == 2:
            found.append("freeze_backbone: not together with train_grafts_only, which trains the grafts")
        if values.get("freeze_epochs") and not frozen:
            found.append(
                f"freeze_epochs={values['freeze_epochs']}: nothing is frozen; give freeze_backbone: true or "
                "train_grafts_only: true too"
            )
        return found

    @classmethod
    def build_errors(cls, values: Mapping[str, Any]) -> list[str]:
        """Why no model can be built from options without errors; tried without making a tensor."""
        if not isinstance(values.get("model"), str) or ":" in values["model"]:
            return []
        classes = values.get("num_classes") or 2
        try:
            with torch.device("meta"):
                cls(**{**values, "num_classes": classes}).build(device="meta")
        except (VitgraftError, TypeError, ValueError) as error:
            return [f"model: {error}"]
        return []

    # what subclasses define

    def build(self, pretrained: bool = False, device: str | None = None) -> nn.Module:
        """The model of `num_classes` classes, from `self.hparams`; the generators are seeded.

        Args:
            pretrained: With timm's weights of the backbone.
            device: "meta" makes no tensors.
        """
        raise NotImplementedError

    def make_metric(self) -> Any:
        """A torchmetrics metric with `report()`, over all processes, whose result has `numbers()`."""
        raise NotImplementedError

    def evaluate(self, model: nn.Module, metric: Any, batch: Any) -> list[Mistake]:
        """Counts one batch of a validation or a test.

        Returns:
            Of each image how large the mistake is, 0 for none, and what `draw_mistake` needs of the prediction.
        """
        raise NotImplementedError

    def draw_mistake(self, loaded: Any, predicted: Any, title: str) -> Image.Image:
        """A picture of a mistake.

        Args:
            loaded: What the source of the data loads: the image, and in dense tasks its annotation.
            predicted: Of `evaluate`.
            title: A line above.
        """
        raise NotImplementedError

    # model

    def configure_model(self) -> None:
        """Builds the model once the number of classes is known; Lightning calls this after the data's setup."""
        if self.model is not None:
            return
        h = self.hparams
        if h.num_classes is None:
            raise RecipeError("num_classes: not given, and the data has no class names to count")
        seed_all(derive(h.seed, "init"))
        model = self.build(h.pretrained and not h.checkpoint_path)
        if h.checkpoint_path:
            print_once(load_initial_weights(model, h.checkpoint_path))
        elif h.pretrained and features_of(model) is not None:
            print_once(f"initial weights of the backbone: timm's of {h.model}; {new_parts(model)}")
        if h.grad_checkpointing:
            self.backbone_of(model).set_grad_checkpointing()
        self.take(model)
        h.data_config = self.data_config
        if self.device_mesh is not None:  # Lightning's ModelParallelStrategy
            shard(model, self.device_mesh)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch's; weights of another model are a `CheckpointError` that lists what differs."""
        if strict:
            check_names_and_shapes(self, state_dict)
        return super().load_state_dict(state_dict, strict, assign)

    def backbone_of(self, model: nn.Module) -> nn.Module:
        """The timm model inside the model of the task."""
        features = features_of(model)
        return model if features is None else features.backbone

    def take(self, model: nn.Module) -> None:
        """Makes a model the task's own; tasks with losses by the options extend it."""
        self.model = model
        self._freeze(model)
        # one each for the raw and the averaged weights
        self.metrics = nn.ModuleDict({weights: self.make_metric() for weights in ("raw", "ema")})

    def _freeze(self, model: nn.Module) -> None:
        h = self.hparams
        if h.train_grafts_only:
            print_once(train_grafts_only(model))
        if h.freeze_backbone:
            print_once(freeze_backbone(model))
        if h.freeze_epochs:
            # the optimizer and DistributedDataParallel take parameters that need gradients when they are made
            self._frozen = [p for p in model.parameters() if not p.requires_grad]
            model.requires_grad_(True)
            print_once(f"from epoch {h.freeze_epochs} on all of it trains")

    @property
    def data_config(self) -> dict[str, Any]:
        """timm's data configuration of the model: input_size, mean, std, crop_pct, interpolation; known before the
        model is built."""
        given = self.hparams.data_config or {}
        if self.model is not None:
            return {**data_config_of(self.backbone_of(self.model)), **given}
        return {**data_config_of(self.hparams.model, self.hparams.model_kwargs), **given}

    @property
    def class_names(self) -> list[str]:
        """Of all classes; numbered where the data has no names."""
        return list(self.hparams.class_names or [f"class {i}" for i in range(self.hparams.num_classes)])

    def setup(self, stage: str) -> None:
        """Takes the classes of the data, or refuses data of other classes than the model's."""
        h = self.hparams
        data = getattr(self.trainer, "datamodule", None)
        if hasattr(data, "preprocessing"):  # with the data's own options on top: the checkpoint keeps them
            used = asdict(data.preprocessing)
            plain = {name: list(value) if isinstance(value, tuple) else value for name, value in used.items()}
            h.data_config = {**plain, "input_size": [self.data_config["input_size"][0], *used["input_size"]]}
        self._take_classes(getattr(data, "class_names", None))
        if stage == "fit" and h.get("class_weights") is not None and h.num_classes:
            h.class_weights, counts = class_weights_of(data, h.class_weights, h.num_classes)
            print_once(describe_weights(h.class_weights, self.class_names, counts))
            self.class_weights = torch.tensor(h.class_weights)

    def _take_classes(self, names: Sequence[str] | None) -> None:
        h = self.hparams
        if not names:
            return
        if h.num_classes is None:
            h.num_classes = len(names)
        if h.class_names and list(h.class_names) != list(names):
            absent, unknown = (sorted(set(a) - set(b)) for a, b in ((h.class_names, names), (names, h.class_names)))
            differing = [f"{a} / {b}" for a, b in zip(h.class_names, names, strict=False) if a != b]
            raise RecipeError(
                f"the {len(h.class_names)} classes of the model are not the {len(names)} of the data, in their order: "
                f"only the model has {absent[:5]}, only the data {unknown[:5]}; model / data: {differing[:5]}"
            )
        if h.num_classes != len(names):
            raise RecipeError(
                f"num_classes={h.num_classes}, but the data has {len(names)} classes ({', '.join(names[:3])} ...): "
                "give num_classes: null to take those of the data"
            )
        h.class_names = list(names)

    def forward(self, images: Any) -> Any:
        """What the model makes of a batch of images."""
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
        if self.global_step:  # a resumed run: building the schedule has set the rate to that of its first step
            self._schedule.step(self.global_step - 1 if h.sched_on_updates else self.current_epoch)

    def before_step(self, batch_idx: int) -> None:
        """Seeds everything random in the step, and sets its learning rate."""
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
            h.decay_vectors,
            **options,
            **(h.opt_kwargs or {}),
        )

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Drops the gradients of what is frozen in the first epochs, without which no optimizer changes it."""
        if self.current_epoch < self.hparams.freeze_epochs:
            for parameter in self._frozen:
                parameter.grad = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Stores the class that rebuilds the model from the checkpoint's hyper-parameters."""
        checkpoint["task"] = f"{type(self).__module__}.{type(self).__qualname__}"

    # evaluation

    def evaluated_models(self) -> dict[str, nn.Module]:
        """The models to evaluate: "raw", and "ema", the averaged one where a callback has set it."""
        averaged = self.__dict__.get("averaged_model")
        if self.__dict__.get("weights_suffix"):  # the model itself has the averaged weights
            return {"ema": self.model}
        return {"raw": self.model} | ({} if averaged is None else {"ema": averaged})

    def on_validation_epoch_start(self) -> None:
        """Resets the metrics, for instance in the sanity check."""
        for metric in self.metrics.values():
            metric.reset()
        self.reports: dict[str, Any] = {}

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, list[Mistake]]:
        """Counts a batch; of each kind of weights the mistakes in it."""
        models = self.evaluated_models().items()
        return {weights: self.evaluate(model, self.metrics[weights], batch) for weights, model in models}

    def on_validation_epoch_end(self) -> None:
        """Logs the metrics of the whole dataset, each sample counted once."""
        self._log_evaluation("val")

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step

    def on_test_epoch_end(self) -> None:
        """As validation, under `test/`."""
        self._log_evaluation("test")

    def inference(self) -> tuple[list[str], dict[str, Any]]:
        """How the options of the task evaluate: parts of the report's name beyond a plain evaluation, and metadata."""
        return [], {}

    def _log_evaluation(self, stage: str) -> None:
        for weights in self.evaluated_models():
            report = self.reports[weights] = self.metrics[weights].report()
            numbers = report.numbers()
            for name, number in self.LOGGED.items():
                if numbers.get(number) is not None:  # a detector without masks has no numbers of them
                    # the same on all processes already; synchronizing it again keeps Lightning from warning
                    shown = f"{stage}/{name}" + ("_ema" if weights == "ema" else "")
                    self.log(shown, float(numbers[number]), prog_bar=shown == f"{stage}/{self.MAIN}", sync_dist=True)
