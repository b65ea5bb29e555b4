"""`open_model`, which is `vitgraft.load`: a predictor from whatever names one: a run, a checkpoint, an exported folder,
a repository of the hub, a model's name."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import nn

from vitgraft.data.transforms import model_preprocessing
from vitgraft.errors import CheckpointError, ModelSpecError, VitgraftError
from vitgraft.models.spec import ModelSpec
from vitgraft.options import run_errors
from vitgraft.predict.base import Predictor
from vitgraft.predict.card import details_of_run
from vitgraft.predict.classification import Classifier
from vitgraft.predict.detection import Detector
from vitgraft.predict.exported import CARD, CONFIG, WEIGHTS, read_run_of_export
from vitgraft.predict.segmentation import Segmenter
from vitgraft.untrusted import check_class_paths
from vitgraft.weights import hub
from vitgraft.weights.create import create
from vitgraft.weights.files import EMA_KEY, check_trusted, read_run, resolve_checkpoint
from vitgraft.weights.official import load_exactly, short_reason

__all__ = ["from_pretrained", "open_model"]

FILES = (CONFIG, WEIGHTS, CARD)
LOCAL = "local-dir:"
PREDICTORS = {"Classification": Classifier, "Detection": Detector, "Segmentation": Segmenter}  # by the run's task


def open_model(
    source: str | Path, weights: str | None = None, task: str | None = None, trust: bool = False, **settings: Any
) -> Predictor:
    """Loads a model with all that its predictions need (`vitgraft.load`); Lightning is not needed for it.

    `vitgraft.load("runs/NAME").predict("a.jpg")` predicts; `.model`, `.task`, `.class_names`, `.preprocessing` and
    `.transform` are what it does it with, `.device` is where: `.model.to("cuda")` moves it.

    Args:
        source: The folder of a run (its best.ckpt, else last.ckpt), a checkpoint of a run, a folder with an export of
            `vitgraft export` or in timm's hub format (`local-dir:` before it is not needed), the same on the hub
            (`hf-hub:USER/NAME`), or a model's name with its options (`NAME:checkpoint_path=FILE:num_classes=10`), which
            takes timm's published weights where no file is given.
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
    elif resolved.kind == "export":
        found = _exported(resolved.path, trust)
    else:
        found = _named(text, trust)
    if task is not None and found.task != task:
        raise CheckpointError(f"{text}: a {found.noun}, where a model of {task} is needed")
    found.model.eval()
    return found.with_settings(**settings)


def _of_run(path: Path, weights: str | None, trust: bool) -> Predictor:
    checkpoint, path = read_run(path, trust=True)  # asked below, where trust would help
    options, kind = checkpoint["hyper_parameters"], checkpoint["task"].rsplit(".", 1)[-1]
    if kind not in PREDICTORS:
        raise CheckpointError(f"{path}: its task is {checkpoint['task']}; predictions need {', '.join(PREDICTORS)}")
    if not isinstance(model := options.get("model"), str):
        made = model.get("class_path", "a mapping") if isinstance(model, dict) else type(model).__name__
        raise CheckpointError(f"{path}: its model is {made}; predictions need one that was made by timm's name")
    check_trusted(checkpoint, path, trust)
    if errors := run_errors(options):
        raise CheckpointError(f"{path}: its options are damaged: {'; '.join(errors)}")
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
    predictor.details = details_of_run(path, checkpoint.get("global_step"), predictor.weights)
    return predictor


def from_pretrained(
    repo_id: str, revision: str | None = None, task: str | None = None, trust: bool = False, **options: Any
) -> Predictor:
    """Loads what `push_to_hub` or `vitgraft export` made of a run, from the Hugging Face hub or a folder.

    Args:
        repo_id: `USER/NAME`, or a folder.
        revision: Branch, tag or commit; None: the newest.
        task: As of `vitgraft.load`.
        trust: As of `vitgraft.load`.
        **options: `token`, `cache_dir`, `local_files_only`, `force_download`; and settings of the predictor, as of
            `vitgraft.load`.

    Raises:
        CheckpointError: No such repository, no connection, or not an export.
    """
    known = ("token", "cache_dir", "local_files_only", "force_download")
    of_hub = {name: options.pop(name) for name in known if name in options}
    if Path(repo_id).is_dir():
        return open_model(repo_id, task=task, trust=trust, **options)
    folder = hub.download(repo_id, FILES, revision, **of_hub)
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{repo_id}: has no {CONFIG}; vitgraft.load_grafts loads grafts alone")
    return replace(open_model(folder, task=task, trust=trust, **options), source=repo_id)


def _exported(folder: Path, trust: bool) -> Predictor:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not a JSON object")
        check_class_paths(str(folder / CONFIG), config, trust)
        section = config.get("vitgraft")
        if isinstance(section, dict) and isinstance(section.get("options"), dict):
            kinds = {kind.task: kind for kind in PREDICTORS.values()}
            if section.get("task") not in kinds:
                raise ValueError(f"task={section.get('task')!r} is none of {', '.join(kinds)}")
            return read_run_of_export(kinds[section["task"]], folder, section)
        model = create(ModelSpec(f"{LOCAL}{folder}"), pretrained=True)
    except VitgraftError:
        raise
    except Exception as error:  # timm raises what a damaged configuration makes it stumble on
        what = "neither an export of vitgraft nor a model in timm's hub format"
        raise CheckpointError(f"{folder}: {what}: {short_reason(error)}") from error
    return _classifier(model, {**config, **config.get("pretrained_cfg", {})}, str(folder), "pretrained")


def _named(text: str, trust: bool) -> Predictor:
    spec = ModelSpec.parse(text)
    if spec.name.startswith(hub.PREFIX) and not spec.options:
        path = hub.download(spec.name, [CONFIG]) / CONFIG
        if path.is_file() and '"vitgraft"' in path.read_text(encoding="utf-8"):  # others are timm's to load
            return from_pretrained(spec.name, trust=trust)
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
