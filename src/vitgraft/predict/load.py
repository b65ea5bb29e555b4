"""A classifier to predict with, from whatever names one: a run, a checkpoint, an exported folder, a model's name."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import timm
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import nn

from vitgraft.data.transforms import Preprocessing, Transform, eval_transform, model_preprocessing
from vitgraft.errors import CheckpointError, ModelSpecError
from vitgraft.models.spec import ModelSpec
from vitgraft.weights.create import build_model, create
from vitgraft.weights.files import read_run, resolve_checkpoint
from vitgraft.weights.official import load_exactly, short_reason

__all__ = ["Classifier", "load_weights", "open_classifier", "task_of_run"]

LOCAL = "local-dir:"
# What a run leaves, in the order in which it is wanted


@dataclass(frozen=True)
class Classifier:
    """A model with all that its predictions need.

    Attributes:
        model: in eval mode: images (B, 3, H, W) -> logits (B, C).
        preprocessing: what it expects of its images.
        class_names: of each of the C classes.
        source: where it comes from, in words.
        weights: "raw", "ema" (averaged), or "pretrained".
    """

    model: nn.Module
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    source: str
    weights: str

    @property
    def transform(self) -> Transform:
        """RGB image -> float32 (3, H, W), as in the model's evaluation."""
        return eval_transform(self.preprocessing)

    def facts(self) -> dict[str, Any]:
        """What a file of predictions says of its origin."""
        return {"model": self.source, "weights": self.weights, "preprocessing": asdict(self.preprocessing)}


def open_classifier(what: str, weights: str | None = None) -> Classifier:
    """Finds out what is meant, and loads it.

    Args:
        what: the folder of a run (its best.ckpt, else last.ckpt), a checkpoint of a run, a folder with an export in
            timm's hub format (`local-dir:` before it is not needed), or a model's name with its options
            (`NAME:checkpoint_path=FILE:num_classes=10`), which takes timm's published weights where no file is given.
        weights: "raw" or "ema" of a run's checkpoint; None takes the averaged ones where there are any.

    Raises:
        CheckpointError: nothing there, damaged, or not of a classifier.
        ModelSpecError: a name that timm doesn't know, or that has no weights.
    """
    if weights not in (None, "raw", "ema"):
        raise ValueError(f"weights={weights!r}: 'raw' or 'ema'")
    source = resolve_checkpoint(what, names=True)
    if source.kind in ("run", "weights"):
        return _of_run(source.path, weights)
    found = _exported(source.path) if source.kind == "export" else _named(what)
    if weights is not None:
        raise CheckpointError(f"weights={weights}: {what} has one set of weights only; leave the option out")
    return found


def task_of_run(what: str) -> str:
    """Name of the task's class, such as "Segmentation", where `what` is a run or its checkpoint; "" for all else."""
    if resolve_checkpoint(what, names=True).kind != "run":
        return ""
    return read_run(what)[0]["task"].rsplit(".", 1)[-1]


def load_weights(model: nn.Module, checkpoint: Mapping[str, Any], path: Path, weights: str | None) -> str:
    """Loads a run's weights into its model; "raw" or "ema", whichever they are.

    Args:
        model: the run's model.
        checkpoint: its content.
        path: what to call it.
        weights: "raw" or "ema"; None takes the averaged ones where there are any.

    Raises:
        CheckpointError: there are no averaged weights, or they do not fit.
    """
    states = {"raw": checkpoint["state_dict"], "ema": checkpoint.get("state_dict_ema")}
    weights = weights or ("raw" if states["ema"] is None else "ema")
    if states[weights] is None:
        raise CheckpointError(f"{path}: weights=ema: the run kept no averaged weights; weights=raw would work")
    _load(model, states[weights], path)
    return weights


def _read(path: Path) -> tuple[dict[str, Any], Path]:
    """The checkpoint of a classifier, and the file that it was read from."""
    checkpoint, path = read_run(path)
    options = checkpoint["hyper_parameters"]
    if not checkpoint["task"].endswith(".Classification") or not isinstance(options.get("model"), str):
        raise CheckpointError(
            f"{path}: of a run of {checkpoint['task']}, which is no classifier made by a model's name"
        )
    return checkpoint, path


def _of_run(path: Path, weights: str | None) -> Classifier:
    checkpoint, path = _read(path)
    options = checkpoint["hyper_parameters"]
    model = build_model(options["model"], options["num_classes"], options.get("model_kwargs"), options.get("graft"))
    weights = load_weights(model, checkpoint, path, weights)
    names = options.get("class_names") or [f"class {i}" for i in range(options["num_classes"])]
    known = {field.name for field in fields(Preprocessing)}
    config = {name: value for name, value in (options.get("data_config") or {}).items() if name in known}
    size = config.pop("input_size", None)
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in config.items()}
    preprocessing = model_preprocessing(model, tuple(size[-2:]) if size else None, **given)
    return Classifier(model.eval(), preprocessing, tuple(names), f"{options['model']} of {path}", weights)


def _load(model: nn.Module, state: Mapping[str, Any], path: Path) -> None:
    # Lightning's own files have the task's names
    if state and all(name.startswith("model.") for name in state):
        state = {name.removeprefix("model."): value for name, value in state.items()}
    try:
        load_exactly(model, state)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _exported(folder: Path) -> Classifier:
    try:
        model = create(ModelSpec(f"{LOCAL}{folder}"), pretrained=True)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, RuntimeError, KeyError, json.JSONDecodeError, AssertionError) as error:
        raise CheckpointError(f"{folder}: not a model in timm's hub format: {short_reason(error)}") from error
    given = {**config, **config.get("pretrained_cfg", {})}
    names = given.get("label_names")
    if isinstance(names, dict):
        names = list(names.values())
    descriptions = given.get("label_descriptions")
    if names and isinstance(descriptions, dict):  # WordNet ids and what they mean
        names = [descriptions.get(name, name) for name in names]
    return Classifier(model.eval(), model_preprocessing(model), _names(model, names), str(folder), "pretrained")


def _named(what: str) -> Classifier:
    spec = ModelSpec.parse(what)
    own_file = "checkpoint_path" in spec.options
    config = timm.get_pretrained_cfg(spec.name) if ":" not in spec.name else None
    if "pretrained" not in spec.options and not own_file and config is not None and not config.has_weights:
        raise ModelSpecError(
            f"model {spec.name!r} has no published weights, and predictions of random ones mean nothing: give "
            f"{spec.name}:checkpoint_path=FILE, or a run's folder ({spec.name}:pretrained=false takes random ones)"
        )
    try:
        model = create(spec, pretrained=not own_file)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{what}: timm's published weights can't be loaded: {short_reason(error)}") from error
    config = getattr(model, "pretrained_cfg", None) or {}
    weights = "pretrained" if own_file or spec.options.get("pretrained", True) else "random"
    return Classifier(model.eval(), model_preprocessing(model), _names(model, config.get("label_names")), what, weights)


def _names(model: nn.Module, names: "list[str] | None") -> tuple[str, ...]:
    """The given names, those of ImageNet where the number of classes is one of its subsets', or numbers."""
    classes = model.num_classes
    if classes < 1:
        raise ModelSpecError("the model has no classes (num_classes=0): it gives features, not predictions")
    if names and len(names) == classes:
        return tuple(map(str, names))
    subset = infer_imagenet_subset(model)
    if subset:
        info = ImageNetInfo(subset)
        return tuple(info.index_to_description(i) for i in range(classes))
    return tuple(f"class {i}" for i in range(classes))
