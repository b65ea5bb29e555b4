"""Ranges of the options of the tasks: everything that is wrong at once, each with its name and what would work."""

import difflib
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

from vitgraft.config import GraftConfig
from vitgraft.errors import GraftError
from vitgraft.models.mask_rcnn import MaskRCNN
from vitgraft.weights.create import is_graft_name

POSITIVE = ("lr", "layer_decay")
AT_LEAST_ZERO = (
    "weight_decay", "warmup_epochs", "warmup_steps", "warmup_lr", "min_lr", "cooldown_epochs", "eps", "momentum",
    "seed",
)  # fmt: skip
COUNTS = ("num_classes", "lr_batch")
ONE_OF = {"lr_scale": ("lr", "all"), "sched": ("cosine", "poly", "tanh", "multistep", "constant")}


def ranges(
    values: Mapping[str, Any],
    positive: Sequence[str] = (),
    at_least_zero: Sequence[str] = (),
    shares: Sequence[str] = (),
    counts: Sequence[str] = (),
    one_of: Mapping[str, Sequence[Any]] | None = None,
) -> list[str]:
    """What is out of range; values that are None or not there are fine.

    Args:
        values: Options by name.
        positive, at_least_zero: Names of finite numbers.
        shares: Of numbers from 0 to 1.
        counts: Of whole numbers from 1 up.
        one_of: Names with the values that they may have.
    """
    found = []
    for name, value in values.items():
        if value is None:
            continue
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if name in positive and not (number and 0 < value < math.inf):
            found.append(f"{name}={value!r} must be a number above 0")
        elif name in at_least_zero and not (number and 0 <= value < math.inf):
            found.append(f"{name}={value!r} must be a number from 0 up")
        elif name in shares and not (number and 0 <= value <= 1):
            found.append(f"{name}={value!r} must be a number from 0 to 1")
        elif name in counts and not (number and value >= 1):
            found.append(f"{name}={value!r} must be a whole number from 1 up")
        elif name in (one_of or {}) and value not in one_of[name]:
            found.append(f"{name}={value!r} is not one of {', '.join(map(str, one_of[name]))}")
    return found


def problems_of(values: Mapping[str, Any]) -> list[str]:
    """What is wrong with the options that all tasks have."""
    given = {name: value for name, value in values.items() if value is not None}
    found = ranges(given, POSITIVE, AT_LEAST_ZERO, (), COUNTS, ONE_OF)
    if "betas" in given and not all(0 <= beta < 1 for beta in given["betas"]):
        found.append(f"betas={given['betas']!r} must be two numbers from 0 up and below 1")
    if given.get("decay_vectors") and "layer_decay" in given:
        found.append("decay_vectors: not together with layer_decay, whose groups leave vectors out")
    if given.get("sched") == "multistep" and not (given.get("sched_kwargs") or {}).get("decay_milestones"):
        found.append("sched='multistep': at which epochs? sched_kwargs: {decay_milestones: [8, 11], decay_rate: 0.1}")
    return found + _names(given)


def classification_problems(values: Mapping[str, Any]) -> list[str]:
    """What is wrong with the options of a classifier's training."""
    found = ranges(
        values,
        at_least_zero=("mixup", "cutmix", "mixup_off_epoch"),
        shares=("mixup_prob", "mixup_switch_prob", "bce_target_thresh"),
        one_of={"loss": ("cross_entropy", "bce"), "mixup_mode": ("batch", "pair", "elem")},
    )
    smoothing = values.get("smoothing")
    if smoothing is not None and not 0 <= smoothing < 1:
        found.append(f"smoothing={smoothing!r} must be a number from 0 up and below 1")
    return found


def detector_problems(options: Mapping[str, Any]) -> list[str]:
    """What is wrong with the options of `MaskRCNN` that a recipe gives under `detector`."""
    known = [name for name in inspect.signature(MaskRCNN).parameters if name not in ("model", "num_classes", "masks")]
    found = []
    for name in options:
        if name not in known:
            close = ", ".join(difflib.get_close_matches(name, known)) or f"there are {', '.join(known)}"
            found.append(f"{name}: the detector has no such option; {close}")
    counts = ("fpn_channels", "box_channels", "mask_channels", "anchors_sampled", "boxes_sampled", "detections")
    found += ranges(options, ("anchor_scale", "finest"), ("mask_convs",), ("score_threshold", "nms_threshold"), counts)
    for name in ("proposals", "proposals_before"):
        value = options.get(name, (1, 1))
        if not isinstance(value, Sequence) or len(value) != 2 or not all(isinstance(n, int) and n > 0 for n in value):
            found.append(f"{name}={value!r} must be two whole numbers from 1 up: in training and in evaluation")
    return [f"detector.{problem}" for problem in found]


def _names(given: Mapping[str, Any]) -> list[str]:
    """Wrong names of optimizer, model and graft options."""
    from timm import list_models
    from timm.optim import list_optimizers

    found = []
    opt, model = given.get("opt"), given.get("model")
    if opt is not None and opt not in (known := list_optimizers()):
        close = ", ".join(difflib.get_close_matches(str(opt), known)) or "timm.optim.list_optimizers() names all"
        found.append(f"opt={opt!r} is no optimizer that timm knows: {close}")
    if isinstance(model, str) and ":" not in model and model.split(".")[0] not in (known := list_models()):
        close = ", ".join(difflib.get_close_matches(model, known, 5)) or "timm.list_models() names all"
        found.append(f"model={model!r} is no model that timm knows: {close}")
    try:
        GraftConfig.make(given.get("graft"))
    except (GraftError, TypeError) as error:
        found.append(f"graft: {error}")
    kwargs = given.get("model_kwargs") or {}
    if "num_classes" in kwargs:
        found.append("model_kwargs: num_classes is an option of its own, beside model_kwargs")
    grafted = not isinstance(model, str) or is_graft_name(model) or given.get("graft") is not None
    if given.get("train_grafts_only") and not grafted:
        found.append(f"train_grafts_only: {model!r} has no grafts; give graft: {{}} for the defaults")
    return found
