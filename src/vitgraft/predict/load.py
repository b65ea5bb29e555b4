"""`open_model`: a predictor from whatever names one: a run, a checkpoint, an exported folder, a model's name."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import nn

from vitgraft.data.transforms import model_preprocessing
from vitgraft.errors import CheckpointError, ModelSpecError, VitgraftError
from vitgraft.models.spec import ModelSpec
from vitgraft.predict.base import Predictor
from vitgraft.predict.classification import Classifier
from vitgraft.predict.detection import Detector
from vitgraft.predict.segmentation import Segmenter
from vitgraft.weights.create import create
from vitgraft.weights.files import EMA_KEY, check_trusted, read_run, resolve_checkpoint
from vitgraft.weights.official import load_exactly, short_reason

__all__ = ["open_model"]

LOCAL = "local-dir:"
PREDICTORS = {"Classification": Classifier, "Detection": Detector, "Segmentation": Segmenter}  # by the run's task


def open_model(
    source: str | Path, weights: str | None = None, task: str | None = None, trust: bool = False, **settings: Any
) -> Predictor:
    """Loads a model with all that its predictions need; Lightning is not needed for it.

    `open_model("runs/NAME").predict(["a.jpg"])` predicts; `.model`, `.task`, `.class_names`, `.preprocessing` and
    `.transform` are what it does it with.

    Args:
        source: The folder of a run (its best.ckpt, else last.ckpt), a checkpoint of a run, a folder with an export in
            timm's hub format (`local-dir:` before it is not needed), or a model's name with its options
            (`NAME:checkpoint_path=FILE:num_classes=10`), which takes timm's published weights where no file is given.
        weights: "raw" or "ema" of a run's checkpoint; None takes the averaged ones where there are any.
        task: "classification", "detection" or "segmentation", where no other will do.
        trust: Whether a checkpoint may name classes that are not vitgraft's.
        **settings: Fields of the task's predictor: `top`; `score`; `window`, `stride`, `scales`, `flip`, `full_size`.

    Returns:
        A `Classifier`, `Detector` or `Segmenter`, on the CPU.

    Raises:
        CheckpointError: Nothing there, damaged, or of another task.
        UntrustedError: It names a class that is not vitgraft's.
        ModelSpecError: A name that timm does not know, or that has no weights.
        ValueError: A setting that the task does not have, or out of range.
    """
    if weights not in (None, "raw", "ema"):
        raise ValueError(f"weights={weights!r}: 'raw' or 'ema'")
    text = str(source)
    resolved = resolve_checkpoint(text, names=True)
    if resolved.kind in ("run", "weights"):
        found = _of_run(resolved.path, weights, trust)
    elif weights is not None:
        raise CheckpointError(f"weights={weights}: {text} has one set of weights only; leave the option out")
    else:
        found = _exported(resolved.path) if resolved.kind == "export" else _named(text)
    if task is not None and found.task != task:
        raise CheckpointError(f"{text}: a {found.noun}, where a model of {task} is needed")
    found.model.eval()
    return found.with_settings(**settings)


def _of_run(path: Path, weights: str | None, trust: bool) -> Predictor:
    checkpoint, path = read_run(path, trust=True)  # asked below, where trust would help
    options, kind = checkpoint["hyper_parameters"], checkpoint["task"].rsplit(".", 1)[-1]
    if kind not in PREDICTORS or not isinstance(options.get("model"), str):
        raise CheckpointError(
            f"{path}: of a run of {checkpoint['task']}; predictions need a task of {', '.join(PREDICTORS)} whose model "
            "was made by its name"
        )
    check_trusted(checkpoint, path, trust)
    predictor = PREDICTORS[kind].of_run(options)
    states = {"raw": checkpoint["state_dict"], "ema": checkpoint.get(EMA_KEY)}
    predictor.weights = weights or ("raw" if states["ema"] is None else "ema")
    state = states[predictor.weights]
    if state is None:
        raise CheckpointError(f"{path}: weights=ema: the run kept no averaged weights; weights=raw would work")
    if state and all(name.startswith("model.") for name in state):  # Lightning's own files have the task's names
        state = {name.removeprefix("model."): value for name, value in state.items()}
    try:
        load_exactly(predictor.model, state)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    predictor.source = f"{options['model']} of {path}"
    return predictor


def _exported(folder: Path) -> Classifier:
    try:
        model = create(ModelSpec(f"{LOCAL}{folder}"), pretrained=True)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except VitgraftError:
        raise
    except Exception as error:  # timm raises what a damaged configuration makes it stumble on
        raise CheckpointError(f"{folder}: not a model in timm's hub format: {short_reason(error)}") from error
    return _classifier(model, {**config, **config.get("pretrained_cfg", {})}, str(folder), "pretrained")


def _named(text: str) -> Classifier:
    spec = ModelSpec.parse(text)
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
        raise CheckpointError(f"{text}: timm's published weights can't be loaded: {short_reason(error)}") from error
    weights = "pretrained" if own_file or spec.options.get("pretrained", True) else "random"
    return _classifier(model, getattr(model, "pretrained_cfg", None) or {}, text, weights)


def _classifier(model: nn.Module, config: Mapping[str, Any], source: str, weights: str) -> Classifier:
    """A timm model with the class names of its configuration, of ImageNet where it has as many classes, or numbers."""
    if model.num_classes < 1:
        raise ModelSpecError("the model has no classes (num_classes=0): it gives features, not predictions")
    names: Sequence[str] | Mapping[Any, str] = config.get("label_names") or ()
    names = list(names.values()) if isinstance(names, Mapping) else list(names)
    if isinstance(descriptions := config.get("label_descriptions"), dict):  # WordNet ids and what they mean
        names = [descriptions.get(name, name) for name in names]
    if len(names) != model.num_classes:
        subset = infer_imagenet_subset(model)
        info = ImageNetInfo(subset) if subset else None
        names = [info.index_to_description(i) if info else f"class {i}" for i in range(model.num_classes)]
    return Classifier(model, model_preprocessing(model), tuple(map(str, names)), source, weights)
