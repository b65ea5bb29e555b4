"""Exported folders: config.json, model.safetensors and a model card, as they stand on the Hugging Face hub.

`vitgraft.load(DIR)` reads them. Those of classifiers are in timm's hub format too:
`timm.create_model("local-dir:DIR", pretrained=True)` loads them in any process that has imported vitgraft. Section
`vitgraft` of config.json holds the options that make the model again.
"""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import nn

from vitgraft._version import __version__
from vitgraft.data.transforms import Preprocessing
from vitgraft.errors import CheckpointError
from vitgraft.predict.card import model_card
from vitgraft.weights.create import check_export
from vitgraft.weights.files import read_checkpoint
from vitgraft.weights.official import load_exactly

__all__ = [
    "CARD",
    "CONFIG",
    "WEIGHTS",
    "HubExport",
    "architecture_of",
    "export_hub",
    "new_folder",
    "read_run_of_export",
    "save_run",
]

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
# What an option of the model may not be where it comes with a file: it would read other files than the export's
ELSEWHERE = ("pretrained", "checkpoint_path", "pretrained_cfg", "cache_dir")


@dataclass(frozen=True)
class HubExport:
    """What was written.

    Attributes:
        path: The folder.
        architecture: timm's name of the model.
        weights: "raw", "ema", or what else they are.
        num_classes: Of the model.
        task: "classification", "detection" or "segmentation".
    """

    path: Path
    architecture: str
    weights: str
    num_classes: int
    task: str = "classification"


def save_run(run: Any, folder: str | Path, license: str | None = None) -> HubExport:
    """Exports what `vitgraft.load` returned.

    Args:
        run: Of a run, or of an export.
        folder: Made; must not hold anything. It is there complete or not at all.
        license: Of the weights, as the hub names it ("apache-2.0"), for the card; None: that of an export before.

    Raises:
        CheckpointError: The model was neither of a run nor of an export, or an option has no form in JSON; the folder
            is not empty; or what is loaded from it is not the same model.
    """
    options = _options_of(run)
    details = {**run.details, **({"license": license} if license else {})}
    if run.task == "classification":
        name, arguments = architecture_of(options["model"], options.get("model_kwargs"), options.get("graft"))
        given = (run.preprocessing, run.class_names, run.weights, options, details)
        return export_hub(run.model, folder, name, arguments, *given)
    section = {"version": __version__, "weights": run.weights, "task": run.task, "options": options, "details": details}
    config = {
        "architecture": options["model"],
        "task": run.task,
        "num_classes": len(run.class_names),
        "label_names": list(run.class_names),
        "vitgraft": section,
    }
    with new_folder(folder) as new:
        (new / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        tensors = run.model.state_dict()
        _untie(run.model, tensors, "", None)
        save_file(tensors, new / WEIGHTS, metadata={"format": "pt"})
        given = (run.task, options["model"], run.class_names, run.weights, details)
        _write_card(new, Path(folder).absolute().name, *given)
        again = read_run_of_export(type(run), new, section)
        if not _same_weights(run.model, again.model):
            raise CheckpointError(
                "what is loaded from the export differs. Was the model made with options that are not in its recipe?"
            )
    return HubExport(Path(folder), options["model"], run.weights, len(run.class_names), run.task)


def _same_weights(model: nn.Module, again: nn.Module) -> bool:
    own, loaded = model.state_dict(), again.state_dict()
    return own.keys() == loaded.keys() and all(
        torch.equal(value.cpu(), loaded[name]) and value.dtype == loaded[name].dtype for name, value in own.items()
    )


def _options_of(run: Any) -> dict[str, Any]:
    """The options that make the predictor again, as JSON has them."""
    given = run.hyper_parameters
    if given is None:
        raise CheckpointError(f"{run.source}: neither a run nor an export of vitgraft; use timm.models.save_for_hf")
    now = {name: getattr(run, name) for name in run.options if name in run.settings}
    options = {name: now.get(name, given.get(name)) for name in run.options if name in now or name in given}
    options |= {"class_names": run.class_names, "data_config": asdict(run.preprocessing)}
    if ":" in options["model"]:
        raise CheckpointError(
            f"{run.source}: model={options['model']!r} is made from files elsewhere, so the export would not be whole"
        )
    try:
        return json.loads(json.dumps(options))
    except TypeError as error:
        raise CheckpointError(f"{run.source}: an option of the model has no form in JSON: {error}") from error


def read_run_of_export(kind: type, folder: Path, section: Mapping[str, Any]) -> Any:
    """The predictor of an exported folder.

    Args:
        kind: Class of the predictor.
        folder: With the weights.
        section: The entry `vitgraft` of config.json.

    Raises:
        CheckpointError: The options or weights are damaged, do not fit, or name files elsewhere.
        VitgraftError: The model cannot be made with the options.
    """
    options = section["options"]
    if not isinstance(options.get("model"), str) or not isinstance(options.get("num_classes"), int):
        raise CheckpointError(f"{folder / CONFIG}: vitgraft.options: no model, or no num_classes")
    arguments = options.get("model_kwargs") or {}
    names = [name for name in ELSEWHERE if name in arguments]
    if names or ":" in options["model"] or ":" in str(arguments.get("backbone", "")):
        what = names[0] if names else options["model"]
        raise CheckpointError(f"{folder / CONFIG}: vitgraft.options: {what!r} leads to files elsewhere")
    run = kind.of_run(options)
    load_exactly(run.model, read_checkpoint(folder / WEIGHTS))
    run.weights = str(section.get("weights"))
    run.details = section["details"] if isinstance(section.get("details"), dict) else {}
    run.source = str(folder)
    return run


def architecture_of(
    model: str, model_kwargs: Mapping[str, Any] | None = None, graft: Mapping[str, Any] | None = None
) -> tuple[str, dict[str, Any]]:
    """(timm's name, arguments of timm.create_model) that make a model of the classification task again."""
    name, arguments = model.split(".")[0], dict(model_kwargs or {})
    if graft is None:
        return name, arguments
    if name.startswith("graft_"):
        return name, {**arguments, "graft": {**arguments.get("graft", {}), **graft}}
    return "grafted", {**arguments, "backbone": name, "graft": dict(graft)}


def export_hub(
    model: nn.Module,
    folder: str | Path,
    architecture: str,
    arguments: Mapping[str, Any],
    preprocessing: Preprocessing,
    class_names: Sequence[str] = (),
    weights: str = "raw",
    options: Mapping[str, Any] | None = None,
    details: Mapping[str, Any] | None = None,
) -> HubExport:
    """Writes a classifier, loads it as timm does, and compares the outputs.

    Args:
        model: Made by timm.create_model; in eval mode afterwards.
        folder: Made; must not hold anything. It is there complete or not at all.
        architecture: Registered name.
        arguments: Of timm.create_model, beside num_classes; values that JSON has.
        preprocessing: What the model expects of its images.
        class_names: Of each class; none where they are unknown.
        weights: What they are, for config.json.
        options: Those that make the model of a run again.
        details: For the card, as `model_card` takes them.

    Raises:
        CheckpointError: The folder is not empty, or what timm loads is not the same model.
    """
    model.eval()
    if getattr(model, "graft_config", None) is not None and model.graft_config.img_size is not None:
        # levels and E_aa stay those of the image size that the model was made for
        graft = {**arguments.get("graft", {}), "img_size": list(model.graft_config.img_size)}
        arguments = {**arguments, "graft": graft}
    with new_folder(folder) as new:
        config = _config(model, architecture, preprocessing, class_names, weights)
        if options is not None:
            config["vitgraft"] |= {"task": "classification", "options": dict(options), "details": dict(details or {})}
        untie = model.register_state_dict_post_hook(_untie)
        try:
            save_for_hf(model, new, model_config=config, model_args=dict(arguments), safe_serialization=True)
        finally:
            untie.remove()
        backbone = (options or {}).get("model", architecture)
        names = tuple(class_names) or tuple(f"class {i}" for i in range(model.num_classes))
        _write_card(new, Path(folder).absolute().name, "classification", backbone, names, weights, details or {})
        _compare(model, new, preprocessing)
    return HubExport(Path(folder), architecture, weights, model.num_classes)


def _write_card(folder: Path, name: str, *given: Any) -> None:
    (folder / CARD).write_text(model_card(name, *given), encoding="utf-8")


@contextlib.contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """A folder to fill, which is at `folder` when the block is done, complete or not at all.

    Raises:
        CheckpointError: The folder is there already and not empty.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists and is not empty; export into another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        new = Path(scratch) / folder.name
        new.mkdir()
        yield new
        for file in new.glob("*.safetensors"):
            # safetensors makes its file for the owner alone; others may read it as they may the one beside it
            shutil.copymode(next(new.glob("*.json")), file)
        if folder.exists():
            folder.rmdir()
        shutil.move(new, folder)


def _untie(module: nn.Module, tensors: dict[str, torch.Tensor], prefix: str, metadata: Any) -> None:
    """Copies what safetensors refuses: a tensor that another one shares memory with, or that is not contiguous."""
    stored: set[int] = set()
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        if storage in stored or not tensor.is_contiguous():
            tensors[name] = tensor.clone(memory_format=torch.contiguous_format)
        stored.add(storage)


def _config(
    model: nn.Module, architecture: str, preprocessing: Preprocessing, class_names: Sequence[str], weights: str
) -> dict[str, Any]:
    """The entries of timm's config.json that are ours; `data_config` of `save_for_hf` is newer than timm 1.0.29."""
    own = getattr(model, "pretrained_cfg", None) or {}
    channels = getattr(model, "in_chans", None) or own.get("input_size", (3,))[0]
    data = {**asdict(preprocessing), "input_size": (channels, *preprocessing.input_size)}
    return {
        "architecture": architecture,
        "label_names": list(class_names),
        "pretrained_cfg": {
            **{name: own.get(name) for name in ("first_conv", "classifier", "fixed_input_size")},
            **{"tag": "vitgraft", "custom_load": False, "num_classes": model.num_classes},
            **data,
        },
        "vitgraft": {"version": __version__, "weights": weights},
    }


def _compare(model: nn.Module, folder: Path, preprocessing: Preprocessing) -> None:
    """Raises `CheckpointError` where what timm loads from the export is not the same model."""
    check_export(folder)
    try:
        loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    except Exception as error:
        raise CheckpointError(f"timm can't load the export: {error}") from error
    device = next(model.parameters()).device
    shape = (2, loaded.pretrained_cfg["input_size"][0], *preprocessing.input_size)
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        difference = (model(images.to(device)).cpu() - loaded(images)).abs().max().item()
    if not (difference == 0.0 or (device.type != "cpu" and difference < 1e-3)):
        raise CheckpointError(
            f"the model that timm loads from the export differs: outputs by {difference:.1e}. Was the model made with "
            "options that are not in its recipe?"
        )
