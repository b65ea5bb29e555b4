"""Initial weights of a task: a backbone's checkpoint into its backbone, or a whole model's into the whole."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitgraft.errors import CheckpointError
from vitgraft.models.dense import DenseFeatures
from vitgraft.models.feature_pyramid import SimpleFeaturePyramid
from vitgraft.weights.files import EMA_KEY, read_checkpoint, resolve_checkpoint
from vitgraft.weights.load_report import LoadReport
from vitgraft.weights.official import load_official

__all__ = ["features_of", "load_initial_weights", "new_parts"]

FEATURES = {"backbone.features.": "detector", "backbone.": "segmenter"}
"""What the names of a dense model's backbone begin with in this package's checkpoints, and what model that is."""


def features_of(model: nn.Module) -> DenseFeatures | SimpleFeaturePyramid | None:
    """What makes the maps of a dense model, around its backbone; None of a classifier."""
    return next((one for one in model.modules() if isinstance(one, DenseFeatures | SimpleFeaturePyramid)), None)


def load_initial_weights(model: nn.Module, path: str | Path) -> str:
    """Loads a file into a model, and reports what was loaded, resized, new and skipped.

    Args:
        model: The detector, segmenter, or classifier, which keeps its new head where the file has other classes.
        path: A run's folder (its best.ckpt, else last.ckpt), or a checkpoint: of a vitgraft run (one of the same task
            goes into the whole model; of a classifier or of another dense task, into the backbone; averaged weights
            where there are any), of timm, or as the authors published it, of their backbone or, for UperNet, of the
            whole.

    Raises:
        CheckpointError: No such file, damaged, or of another backbone; nothing was loaded.
    """
    path, features = resolve_checkpoint(path, "checkpoint_path").path, features_of(model)
    try:
        content = read_checkpoint(path)
        own, averaged = _of_run(content)
        kind = " (averaged weights)" if averaged else ""
        if features is None:
            report = load_official(model, content if own is None else own, new_classifier=True)
            return f"initial weights from {path}{kind}: {report}"
        place = next(name for name, module in model.named_modules() if module is features) + "."
        if own is not None:
            whole = next((f for f in FEATURES if any(name.startswith(f"{f}backbone.") for name in own)), "")
            if whole == place:
                return f"initial weights of the whole model from {path}{kind}: {_load_whole(model, own)}"
            if whole:
                own = {name.removeprefix(whole): value for name, value in own.items() if name.startswith(whole)}
                kind += f", a {FEATURES[whole]}'s without its heads"
        elif hasattr(model, "heads"):
            return f"initial weights from {path}: {load_official(model, content, new_classifier=True)}"
        inner = features
        if isinstance(features, SimpleFeaturePyramid):  # the same backbone in the form that the loader knows
            inner = DenseFeatures(features.backbone, (-1,), norm=False)
            if own is not None:  # another pyramid's layers are not this one's
                own = {name: value for name, value in own.items() if not name.startswith("levels.")}
        report = load_official(inner, content if own is None else own)
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint_path={path}: {error}") from error
    return f"initial weights of the backbone from {path}{kind}: {report}\n  {new_parts(model)}"


def new_parts(model: nn.Module) -> str:
    """What of a dense model is not the backbone's, and so starts new: number of parameters by part."""
    inside = {id(parameter) for parameter in features_of(model).backbone.parameters()}
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if id(parameter) not in inside:
            part = ".".join(name.split(".")[:2])
            counts[part] = counts.get(part, 0) + 1
    return "new, around the backbone: " + ", ".join(f"{part} ({count} tensors)" for part, count in counts.items())


def _of_run(content: Any) -> tuple[dict[str, torch.Tensor] | None, bool]:
    """The weights of a vitgraft run under the model's own names, and whether they are averaged; None: no such file."""
    if not isinstance(content, dict) or not {"task", "state_dict"} <= content.keys():
        return None, False
    if EMA_KEY in content:
        return dict(content[EMA_KEY]), True
    weights = content["state_dict"]
    if any(name.startswith("model.") for name in weights):  # of the whole task, as Lightning itself saves it
        weights = {name.removeprefix("model."): value for name, value in weights.items() if name.startswith("model.")}
    return dict(weights), False


def _load_whole(model: nn.Module, weights: dict[str, torch.Tensor]) -> LoadReport:
    """Every tensor of the same name and shape; other classes make other shapes, and new layers."""
    own = model.state_dict()
    report = LoadReport()
    for name, value in weights.items():
        if name not in own:
            report.unexpected.append(name)
        elif own[name].shape != value.shape:
            report.skipped.append(f"{name}: {tuple(value.shape)}, the model has {tuple(own[name].shape)}")
        else:
            report.loaded.append(name)
    report.missing = [name for name in own if name not in report.loaded]
    backbone = [name for name in (*report.missing, *report.unexpected) if name.startswith("backbone.")]
    if backbone:
        raise CheckpointError(
            f"the checkpoint is of another backbone; nothing was loaded. {len(backbone)} tensors differ, such as "
            f"{backbone[0]}. Give the same model, model_kwargs, graft and detector options"
        )
    model.load_state_dict({name: weights[name] for name in report.loaded}, strict=False)
    return report
