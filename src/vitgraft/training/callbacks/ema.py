"""Averaged weights: an exponential moving average (EMA) of the model's, kept, saved and evaluated beside them.

Raw and averaged weights have the model's own names in a checkpoint, under `state_dict` and `state_dict_ema` (timm's
words, so that `timm.create_model(..., checkpoint_path="best.ckpt")` loads the averaged ones).
"""

from typing import Any, Literal

import pytorch_lightning as pl
from pydantic import validate_call
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.rank_zero import rank_zero_info
from timm.utils import ModelEmaV3
from torch import nn

from vitgraft.errors import CheckpointError, TrainingError
from vitgraft.options import BelowOne, Positive
from vitgraft.weights.files import EMA_KEY
from vitgraft.weights.official import load_exactly

__all__ = ["AveragedWeights", "ChosenWeights"]


class AveragedWeights(pl.Callback):
    """Averages the weights of `pl_module.model` after every update, by timm's ModelEmaV3.

    The average is the task's `averaged_model`, in eval mode and no child of the task; the task evaluates it beside the
    raw weights, as `val/acc_ema` beside `val/acc`. It starts as the weights after the first update, not as the random
    ones before it.

    Args:
        decay: Fraction of the average that is kept at an update, such as 0.9998; None: nothing is averaged.
        warmup: Let the decay grow from 0 to `decay`: 1 - (1 + updates / gamma) ** -power.
        warmup_gamma: Updates after which the decay has grown to 1 - 2 ** -power.
        warmup_power: Exponent of that growth.
        device: Where the average is kept; None: with the model. "cpu" saves memory of the accelerator, and then only
            the raw weights are evaluated during training.
    """

    @validate_call
    def __init__(
        self,
        decay: BelowOne | None = None,
        warmup: bool = False,
        warmup_gamma: Positive = 1.0,
        warmup_power: Positive = 2 / 3,
        device: str | None = None,
    ):
        self.decay, self.warmup, self.device = decay, warmup, device
        self.warmup_gamma, self.warmup_power = warmup_gamma, warmup_power
        self.ema: ModelEmaV3 | None = None
        self._updates = 0
        self._restored: dict[str, Any] | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Makes the average once the model is built and on its device, from the checkpoint if the run is resumed."""
        if self.decay is None:
            return
        if any(hasattr(parameter, "to_local") for parameter in pl_module.model.parameters()):
            raise TrainingError(
                "ema.decay: averaging needs whole weights in each process, and this strategy spreads them (FSDP): use "
                "trainer.strategy ddp, or ema.decay null"
            )
        self.ema = ModelEmaV3(
            pl_module.model,
            decay=self.decay,
            use_warmup=self.warmup,
            warmup_gamma=self.warmup_gamma,
            warmup_power=self.warmup_power,
            device=self.device,
        )
        self.ema.module.requires_grad_(False)
        if self._restored is not None:
            load_exactly(self.ema.module, self._restored)
            self._restored = None
        if self.device is None:
            set_averaged_model(pl_module, self.ema.module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._updates = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any, **__: Any) -> None:
        if self.ema is not None and trainer.global_step > self._updates:  # not while gradients accumulate
            self._updates = trainer.global_step
            self.ema.update(pl_module.model, step=self._updates)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self.ema is not None:
            checkpoint[EMA_KEY] = self.ema.module.state_dict()

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn != TrainerFn.FITTING or self.decay is None:
            return
        if EMA_KEY not in checkpoint:
            raise CheckpointError("the run was trained without averaged weights and can't be resumed with them")
        self._restored = checkpoint[EMA_KEY]


class ChosenWeights(pl.Callback):
    """Which weights of a checkpoint `validate`, `test` and `predict` use; prints which.

    Args:
        weights: "raw" or "ema" (then metrics end in `_ema`). None: for predictions the averaged ones where there are
            any; for validate and test both, each under its name.
    """

    @validate_call
    def __init__(self, weights: Literal["raw", "ema"] | None = None):
        self.weights = weights

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Called after the raw weights have been loaded."""
        averaged = checkpoint.get(EMA_KEY)
        if self.weights == "ema" and averaged is None:
            raise CheckpointError("weights=ema: the checkpoint has no averaged weights; weights=raw would work")
        use = self.weights or ("raw" if averaged is None else "ema" if trainer.predicting else "both")
        if use == "ema":
            load_exactly(pl_module.model, averaged)
            pl_module.__dict__["weights_suffix"] = "_ema"
        elif use == "both":
            copy = ModelEmaV3(pl_module.model).module
            load_exactly(copy, averaged)
            set_averaged_model(pl_module, copy)
        rank_zero_info({"raw": "raw weights", "ema": "averaged weights (ema)", "both": "raw and averaged weights"}[use])


def set_averaged_model(pl_module: pl.LightningModule, model: nn.Module | None) -> None:
    """Gives the task the averaged model as an attribute, not as a child whose weights would be saved and trained."""
    pl_module.__dict__["averaged_model"] = model
