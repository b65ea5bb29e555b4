"""Model cards of exports, and what a run's folder has for them: data, metrics, options."""

import csv
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

import yaml

from vitgraft.terminal import markdown_text

__all__ = ["details_of_run", "model_card"]

PIPELINES = {
    "classification": "image-classification",
    "detection": "object-detection",
    "segmentation": "image-segmentation",
}
RESULTS = {
    "classification": "a dict: `label`, `probability`, and `probabilities` in the order of `run.class_names`",
    "detection": "torchvision's dict: `boxes`, `scores`, `labels` (from 1 up) and `masks` where the model has them",
    "segmentation": "the class map, uint8 (H, W): indices of `run.class_names`",
}
MOST_CLASSES = 30  # named in a card
USAGE = """\
```python
import vitgraft

run = vitgraft.load(DIR)  # this folder, or hf-hub:USER/NAME
run.predict("image.jpg")
```
"""


def details_of_run(checkpoint: Path, step: int | None, weights: str) -> dict[str, Any]:
    """What the folder of a run has about a checkpoint: `data`, `metrics`, `recipe`. What is missing or damaged is left
    out, and of paths only the last part is kept.

    Args:
        checkpoint: A file in the folder.
        step: Optimizer steps that the checkpoint was saved after.
        weights: "raw" or "ema".
    """
    folder, details = checkpoint.parent, {}
    record = _read_json(folder / "run.json")
    recipe = record.get("recipe")
    if isinstance(recipe, dict):
        details["recipe"] = _without_places({name: value for name, value in recipe.items() if name != "out"})
        init = (recipe.get("data") or {}).get("init_args") if isinstance(recipe.get("data"), dict) else None
        name = Path(str((init or {}).get("root") or "generated digits")).name
        parts = record.get("data") if isinstance(record.get("data"), dict) else {}
        images = {split: part["images"] for split, part in parts.items() if isinstance(part, dict) and "images" in part}
        details["data"] = {"name": name, "images": images}
    if metrics := _evaluated(folder, checkpoint, weights) or _logged(folder / "metrics.csv", step, weights):
        details["metrics"] = metrics
    return details


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _evaluated(folder: Path, checkpoint: Path, weights: str) -> dict[str, float]:
    """Of the last whole evaluation of the checkpoint in the run's folder."""
    for stage in ("validate", "test"):
        path = folder / f"{stage}{'_ema' if weights == 'ema' else ''}" / "metrics.json"
        values = _read_json(path)
        of = values.get("checkpoint")
        is_of_it = isinstance(of, str) and Path(of).name == checkpoint.name and values.get("weights") == weights
        if is_of_it and path.stat().st_mtime >= checkpoint.stat().st_mtime and isinstance(values.get("metrics"), dict):
            split = "val" if stage == "validate" else "test"
            return {f"{split}/{name}": value for name, value in values["metrics"].items() if isinstance(value, float)}
    return {}


def _logged(path: Path, step: int | None, weights: str) -> dict[str, float]:
    """Of the last validation up to the step, as it was logged during training."""
    found: dict[str, float] = {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if step is not None and int(row.get("step") or 0) >= step:
                    continue
                values = {name: float(value) for name, value in row.items() if str(name).startswith("val/") and value}
                found = values or found
    except (OSError, ValueError, TypeError, csv.Error):
        return {}
    averaged = {name.removesuffix("_ema"): value for name, value in found.items() if name.endswith("_ema")}
    raw = {name: value for name, value in found.items() if not name.endswith("_ema")}
    return {**raw, **averaged} if weights == "ema" else raw


def _without_places(value: Any) -> Any:
    """Values with absolute paths cut down to their last part: the rest is of one machine."""
    if isinstance(value, Mapping):
        return {str(name): _without_places(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_places(one) for one in value]
    if isinstance(value, str) and (os.path.isabs(value) or value.startswith("~") or re.match(r"[A-Za-z]:[\\/]", value)):
        return PureWindowsPath(value).name if "\\" in value else Path(value).name
    return value


def model_card(
    name: str, task: str, model: str, class_names: tuple[str, ...], weights: str, details: Mapping[str, Any]
) -> str:
    """The README.md of an export, with the hub's metadata in front.

    Args:
        name: Title.
        task: "classification", "detection" or "segmentation".
        model: Name of the timm model, the backbone of the dense tasks.
        class_names: Of each class.
        weights: "raw" or "ema", or what else they are.
        details: `data`, `metrics` and `recipe` as `details_of_run` has them, and `license`; any may be missing.
    """
    from huggingface_hub import EvalResult, ModelCardData

    data, metrics = details.get("data") or {}, details.get("metrics") or {}
    measured = [
        EvalResult(PIPELINES[task], data.get("name", "unknown"), data.get("name", "unknown"), metric, value)
        for metric, value in metrics.items()
    ]
    metadata = ModelCardData(
        license=details.get("license"),
        library_name="vitgraft",
        pipeline_tag=PIPELINES[task],
        tags=["vitgraft", "timm", "vision-transformer"],
        model_name=name if measured else None,
        eval_results=measured or None,
    )
    shown = ", ".join(markdown_text(one) for one in class_names[:MOST_CLASSES])
    more = f" and {len(class_names) - MOST_CLASSES} more (config.json)" if len(class_names) > MOST_CLASSES else ""
    images = ", ".join(f"{count:,} of {split}" for split, count in (data.get("images") or {}).items())
    averaged = {"ema": ", averaged (EMA) weights", "raw": ", weights as trained"}.get(weights, f", weights: {weights}")
    lines = [
        f"---\n{metadata.to_yaml()}\n---\n",
        f"# {markdown_text(name)}\n",
        f"A model for {task}: `{model}`{averaged}. Exported by vitgraft.\n",
        USAGE,
        f"`predict` returns {RESULTS[task]}.\n",
        f"- Classes ({len(class_names)}): {shown}{more}",
        f"- Data: {markdown_text(data.get('name', 'not recorded'))}{f' ({images} images)' if images else ''}",
        f"- License: {details.get('license') or 'none was given at the export; ask whoever trained the model'}",
    ]
    if metrics:
        lines += ["\n## Metrics\n", "| metric | value |", "|---|---|"]
        lines += [f"| {markdown_text(metric)} | {value:.4f} |" for metric, value in metrics.items()]
    if recipe := details.get("recipe"):
        text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
        lines += [
            "\n## Training\n",
            "`vitgraft fit --config recipe.yaml --data.root DATA --out RUN`, with this recipe.yaml:\n",
            f"```yaml\n{text}```",
        ]
    return "\n".join(lines) + "\n"
