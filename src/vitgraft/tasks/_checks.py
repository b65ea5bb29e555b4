"""Ranges of the options of the tasks: everything that is wrong at once, each with its name and what would work."""

import difflib
import math
from collections.abc import Mapping
from typing import Any

from vitgraft.errors import GraftError
from vitgraft.tasks._models import is_graft_name

POSITIVE = ("lr", "layer_decay")
AT_LEAST_ZERO = (
    "weight_decay", "mixup", "cutmix", "mixup_off_epoch", "warmup_epochs", "warmup_steps", "warmup_lr", "min_lr",
    "cooldown_epochs", "eps", "momentum", "seed",
)  # fmt: skip
SHARES = ("mixup_prob", "mixup_switch_prob", "bce_target_thresh")
COUNTS = ("num_classes", "lr_batch")
ONE_OF = {
    "loss": ("cross_entropy", "bce"),
    "mixup_mode": ("batch", "pair", "elem"),
    "lr_scale": ("lr", "all"),
    "sched": ("cosine", "poly", "tanh", "constant"),
}


def problems_of(values: Mapping[str, Any]) -> list[str]:
    """What is wrong with the values of these options; those that are None or not there are fine."""
    found = []
    given = {name: value for name, value in values.items() if value is not None}
    for name, value in given.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if name in POSITIVE and not (number and 0 < value < math.inf):
            found.append(f"{name}={value!r} must be a number above 0")
        elif name in AT_LEAST_ZERO and not (number and 0 <= value < math.inf):
            found.append(f"{name}={value!r} must be a number from 0 up")
        elif name in SHARES and not (number and 0 <= value <= 1):
            found.append(f"{name}={value!r} must be a number from 0 to 1")
        elif name in COUNTS and not (number and value >= 1):
            found.append(f"{name}={value!r} must be a whole number from 1 up")
        elif name in ONE_OF and value not in ONE_OF[name]:
            found.append(f"{name}={value!r} is not one of {', '.join(ONE_OF[name])}")
        elif name == "smoothing" and not (number and 0 <= value < 1):
            found.append(f"smoothing={value!r} must be a number from 0 up and below 1")
        elif name == "betas" and not all(0 <= beta < 1 for beta in value):
            found.append(f"betas={value!r} must be two numbers from 0 up and below 1")
    return found + _names(given)


def _names(given: Mapping[str, Any]) -> list[str]:
    """Wrong names of optimizer, model and graft options."""
    from timm import list_models
    from timm.optim import list_optimizers

    import vitgraft

    found = []
    opt, model = given.get("opt"), given.get("model")
    if opt is not None and opt not in (known := list_optimizers()):
        close = ", ".join(difflib.get_close_matches(str(opt), known)) or "timm.optim.list_optimizers() names all"
        found.append(f"opt={opt!r} is no optimizer that timm knows: {close}")
    if isinstance(model, str) and ":" not in model and model.split(".")[0] not in (known := list_models()):
        close = ", ".join(difflib.get_close_matches(model, known, 5)) or "timm.list_models() names all"
        found.append(f"model={model!r} is no model that timm knows: {close}")
    try:
        vitgraft.GraftConfig.make(given.get("graft"))
    except (GraftError, TypeError) as error:
        found.append(f"graft: {error}")
    kwargs = given.get("model_kwargs") or {}
    if "num_classes" in kwargs:
        found.append("model_kwargs: num_classes is an option of its own, beside model_kwargs")
    grafted = not isinstance(model, str) or is_graft_name(model) or given.get("graft") is not None
    if given.get("train_grafts_only") and not grafted:
        found.append(f"train_grafts_only: {model!r} has no grafts; give graft: {{}} for the defaults")
    return found
