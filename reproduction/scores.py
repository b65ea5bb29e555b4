"""Measured scores of the paper's rows, from the files in `results/` (its README has the fields)."""

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitgraft.errors import CommandError
from vitgraft.models.sliding_window import MULTI_SCALE
from vitgraft.models.spec import ModelSpec

__all__ = ["Scores", "architecture_of", "read_scores"]

Scores = Mapping[tuple[str, str, str], float]
"""Percent by (task, spec of the architecture, name of the score)."""

IMAGENET_EPOCHS = (300, 310)
"""Of tables 1 and 2; CSWin's authors add ten at the lowest learning rate."""
SCHEDULES = {12: "1x", 36: "3x"}
"""Of table 3, by epochs."""
# options that change the training or the initial weights, not the architecture
_TRAINING = ("drop_rate", "drop_path_rate", "attn_drop_rate", "proj_drop_rate", "pos_drop_rate", "pretrained")


def architecture_of(spec: ModelSpec) -> str:
    """A spec without its pretrained tag and what only training depends on: by it, runs and rows find each other."""
    options = {key: value for key, value in spec.options.items() if key not in _TRAINING}
    if "graft" in options:
        graft = {key: value for key, value in options["graft"].items() if key != "init"}
        options = {**options, "graft": graft}
    return str(ModelSpec(spec.name.split(".")[0], options))


def read_scores(folder: Path) -> dict[tuple[str, str, str], float]:
    """The scores of the runs in a folder of result files, as the mean over the runs of one model.

    Counted are the paper's experiments: classification on "imagenet1k" from random weights for 300 epochs (top-1),
    detection on "coco" of 12 or 36 epochs (box and mask AP), and segmentation on "ade20k" (mIoU at one scale, or at
    the paper's six with flips). A score is of the weights at the end of a finished run, never the best of several
    evaluations; of the raw weights, but for CSWin, whose authors print those of the averaged ones.

    Raises:
        CommandError: A file is not JSON, a result of these kinds without its fields, or a score that is no percentage.
    """
    found: dict[tuple[str, str, str], list[float]] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            if result.get("kind") not in _READERS:
                continue
            dataset, reader = _READERS[result["kind"]]
            if result["dataset"] != dataset or not _is_finished(result):
                continue
            model = architecture_of(ModelSpec(result["model"], result.get("model_options", {})))
            for name, value in reader(result).items():
                key = (result["kind"], model, name)
                if not 0 <= float(value) <= 100:
                    raise CommandError(f"{path}: {name} of {value!r} is no percentage")
                found.setdefault(key, []).append(float(value))
        except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
            raise CommandError(f"{path}: not a result file as results/README.md describes it ({error!r})") from error
    return {key: statistics.fmean(values) for key, values in found.items()}


def _is_finished(result: dict[str, Any]) -> bool:
    """Whether the last evaluation in the run was that of its last epochs."""
    trainer, curve = result["recipe"].get("trainer", {}), result.get("curve")
    if not curve or trainer.get("max_epochs") is None:
        return True
    return curve[-1]["epoch"] + trainer.get("check_val_every_n_epoch", 1) >= trainer["max_epochs"]


def _classification(result: dict[str, Any]) -> dict[str, float]:
    recipe = result["recipe"]
    model = recipe.get("model", {})
    options = {**model.get("init_args", model), **result.get("model_options", {})}
    started = any(options.get(name) for name in ("pretrained", "checkpoint_path")) or "." in result["model"]
    if started or recipe["trainer"]["max_epochs"] not in IMAGENET_EPOCHS:
        return {}
    metrics = result["metrics"]
    return {"top-1": metrics.get("top1_ema", metrics["top1"]) if "cswin" in result["model"] else metrics["top1"]}


def _detection(result: dict[str, Any]) -> dict[str, float]:
    schedule = SCHEDULES.get(result["recipe"]["trainer"]["max_epochs"])
    if schedule is None:
        return {}
    names = {"box AP": "box_ap", "mask AP": "mask_ap"}
    return {f"{name} {schedule}": result["metrics"][key] for name, key in names.items() if key in result["metrics"]}


def _segmentation(result: dict[str, Any]) -> dict[str, float]:
    model = result["recipe"]["model"]
    last = [
        (one["inference"], one["metrics"])
        for name, one in result.get("evaluations", {}).items()
        if name.startswith("validate") and one["checkpoint"] == "last.ckpt" and one.get("weights", "raw") == "raw"
    ]
    names = {((1.0,), False): "mIoU ss", (MULTI_SCALE, True): "mIoU ms"}
    found: dict[str, float] = {}
    # that of the last weights first: within a run, the last evaluation may be some epochs before its end
    for inference, metrics in (*last, (model.get("init_args", model), result["metrics"])):
        how = (tuple(inference.get("scales") or [1.0]), bool(inference.get("flip")))
        if how in names:
            found.setdefault(names[how], metrics["miou"])
    return found


_READERS = {
    "classification": ("imagenet1k", _classification),
    "detection": ("coco", _detection),
    "segmentation": ("ade20k", _segmentation),
}
