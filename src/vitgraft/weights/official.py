"""Checkpoints as the authors of the backbones published them, read into this package's models and timm's.

`load_official` knows how they are wrapped and named: Swin (classification, detection, segmentation), CSWin (the same
two), DeiT, the models of `vitgraft.models.zoo`, and every other whose names are its authors' own. Everything is checked
before the model changes.
"""

import argparse
import pickle
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table
from timm.models._features import FeatureDictNet, FeatureGetterNet, FeatureHookNet
from torch import nn

from vitgraft.errors import CheckpointError
from vitgraft.models.dense import DenseFeatures
from vitgraft.weights.dense_names import fit_heads
from vitgraft.weights.load_report import LoadReport, some

__all__ = [
    "check_names_and_shapes",
    "load_exactly",
    "load_official",
    "read_checkpoint",
    "short_reason",
]

# In this order: where timm's training script stored averaged weights beside the raw ones, the published accuracy is
# theirs; the scripts with a "model_ema" (DeiT, PVT, RegionViT) evaluate "model".
WRAPPERS = ("state_dict_ema", "state_dict", "model", "model_ema", "net")
TABLE = "relative_position_bias_table"
# Computed from sizes, so never loaded: relative_position_index, attn_mask, atten_mask_matrix, relative_coords_table
BUFFER = re.compile(r"(^|\.)(relative_position_index|relative_coords_table|att[e]?n_mask\w*)$")
HEADS = ("head.", "head_dist.", "fc.", "classifier.")
CLASSIFIER = r"(head|head\.fc|fc|classifier)\.weight$"
WRAPPED = (nn.DataParallel, nn.parallel.DistributedDataParallel)
# timm's features_only: the first two flatten the model that they keep a part of, the last holds it
FLATTENED = (FeatureDictNet, FeatureHookNet)
TensorDict = dict[str, torch.Tensor]

# What to do with a checkpoint of others
_TIMM = "the same weights under timm's names would fit: timm.create_model(NAME, pretrained=True)"
_BACKBONE = "the checkpoint of a backbone alone, or of one under the names of its authors, would fit"
PEFT = r"\.(lora_\w+|base_layer|modules_to_save)\."
# Patterns that names of the checkpoint have, each one of them; what it is; what would work instead
FAMILIES: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (
        (PEFT,),
        "a PEFT adapter, which is not merged",
        "load it onto its base model with PEFT and save the state_dict of merge_and_unload()",
    ),
    (
        (r"\.attn\.w_msa\.",),
        "a Swin under the own names of mmdetection or mmsegmentation",
        "the Swin authors' file that it was converted from would fit",
    ),
    ((r"\bencoder\.layers?\.\d+\..*attention\.",), "a model of Hugging Face transformers", _TIMM),
    ((r"^features\.\d+\.\d+\.attn\.",), "a Swin of torchvision", _TIMM),
    ((r"^stage1_conv_embed\.",), "a CSWin", ""),
    ((TABLE, r"^layers\.0\.downsample"), "a Swin, named as its authors do", ""),
    ((TABLE, r"^layers\."), "a Swin", ""),
    ((r"^patch_embed1\.", r"^pos_embed1$"), "a PVT v1", ""),
    ((r"^tokens_to_token\.attention1\.w$",), "a T2T-ViT", ""),
    ((r"^tokens_to_token\.",), "a T2T-ViT_t", ""),
    ((r"^cls_token\.proj\.weight$",), "a RegionViT", ""),
    ((r"^layer1\.1\.attn\.query\.weight$", r"x_pos_embed"), "a Vision Longformer with absolute positions", ""),
    ((r"^layer1\.1\.attn\.query\.weight$",), "a Vision Longformer with relative position bias", ""),
    ((r"^pos_embed$", r"^blocks\.0\.attn\.qkv\.weight$"), "a ViT or DeiT", ""),
    ((r"(^|\.)layer1\.0\.conv1\.weight$",), "a ResNet", ""),
    ((r"^(neck|rpn|rpn_head|roi_heads?|bbox_head|mask_head)\.",), "a detector", _BACKBONE),
    ((r"^(decode_head|auxiliary_head)\.",), "a segmentation model", _BACKBONE),
)


def load_official(
    model: nn.Module,
    state_dict_or_path: dict[str, Any] | str | Path,
    strict: bool = True,
    wrapper: str | None = None,
    new_classifier: bool = False,
) -> LoadReport:
    """Loads a checkpoint of a backbone's authors, grafted models, DenseFeatures and UperNet included.

    Args:
        model: Not changed unless everything fits. UperNet takes mmsegmentation's names, or a backbone's weights alone.
            Models that are compiled, parallel or timm's `features_only` are filled inside; what `features_only` cut
            off a model is listed under `skipped`.
        state_dict_or_path: A .safetensors file, a file of torch.save (read with weights_only=True), or what it holds.
        strict: Every tensor of the checkpoint has a place and every parameter of the backbone a value, or it is an
            error. Always allowed to be missing: all tensors of grafts, all norms of DenseFeatures. Without it, tensors
            that are missing, left over, or of a classifier with other classes are listed instead; but if fewer than
            half of the model's tensors and of the checkpoint's fit, it is an error all the same.
        wrapper: Key of the weights to take; None takes the first of `state_dict_ema`, `state_dict`, `model`,
            `model_ema`, `net`.
        new_classifier: The model's classifier stays as it is where the checkpoint has none or one of other classes.

    Raises:
        CheckpointError: The file holds no weights, or those of another model; the message names them.
        FileNotFoundError: No such file.
    """
    content = read_checkpoint(state_dict_or_path) if isinstance(state_dict_or_path, str | Path) else state_dict_or_path
    model, levels = _inside(model)
    if hasattr(model, "heads"):  # a backbone with more around it
        return _load_whole(model, content, strict, wrapper, new_classifier)
    report = LoadReport()
    own = model.state_dict()
    if any(value.is_meta for value in own.values()):
        raise CheckpointError("the model is on the meta device and has no memory to load into: model.to_empty() first")
    weights = _unwrap(content, wrapper, report)
    looks = _describe(weights, report.wrapper)
    if any(re.search(PEFT, name) for name in weights) and not any(re.search(PEFT, name) for name in own):
        raise CheckpointError(f"the checkpoint does not fit this {type(model).__name__}; nothing was loaded.\n{looks}")
    source = _take_backbone(_strip_prefix(weights, own), report)
    _drop_buffers(source, report)

    renamed = _rename(source, own, model)
    if isinstance(model, FLATTENED):
        renamed = _flatten_names(renamed, model)
    _drop_second_names(renamed, own, model, looks, report)
    _skip_what_has_no_place(renamed, own, report, levels)
    _fit_shapes(renamed, own, model, strict and not new_classifier, looks, report)

    report.loaded = [name for name in own if name in renamed]
    report.unexpected = [name for name in renamed if name not in own]
    report.missing = [name for name in own if name not in renamed and not BUFFER.search(name)]
    wanted = [name for name in own if ".graft." not in name and not BUFFER.search(name)]
    few = 2 * len(report.loaded) < min(len(wanted), len(renamed))
    problems = _problems(report, model, renamed, few, new_classifier)
    if few or not report.loaded or (strict and problems):
        if few or not report.loaded:
            problems.insert(0, f"{len(report.loaded)} of the checkpoint's {len(weights)} tensors have a place in it")
            prefix, fitting = _best_prefix(weights, own)
            if prefix and fitting > len(report.loaded):
                problems.append(f"{fitting} names begin with {prefix!r} and are the model's behind it: give them alone")
        raise CheckpointError(
            f"the checkpoint does not fit this {type(model).__name__}; nothing was loaded.\n"
            + "\n".join(f"  - {problem}" for problem in problems)
            + f"\n{looks}"
        )
    model.load_state_dict({name: renamed[name] for name in report.loaded}, strict=False)
    return report


def _load_whole(
    model: nn.Module,
    content: dict[str, Any],
    strict: bool = True,
    wrapper: str | None = None,
    new_classifier: bool = False,
) -> LoadReport:
    """Loads into a model with `backbone` (DenseFeatures or a pyramid) and `heads`, the beginnings of the others' names.

    The backbone's part goes the way of every backbone; the heads have their authors' names already. A checkpoint of a
    backbone alone (ImageNet) fills the backbone and leaves the heads as they are.

    Classifiers (`conv_seg`) of another number of classes are an error if `strict`, and else left as they are; with
    `new_classifier` they and all of a missing head are left in any case.

    Raises:
        CheckpointError: As `load_official`; nothing is loaded then.
    """
    report = LoadReport()
    own = model.state_dict()
    source = _strip_prefix(_unwrap(content, wrapper, report), own)
    if set(source) == set(own) and all(value.shape == own[name].shape for name, value in source.items()):
        model.load_state_dict(source)
        report.loaded = list(own)
        return report
    heads = {name: value for name, value in source.items() if name.startswith(model.heads)}
    rest = {name: value for name, value in source.items() if name not in heads}
    if any(name.startswith("backbone.backbone.") for name in rest):  # this package's own names
        rest = {name.removeprefix("backbone."): value for name, value in rest.items()}
    problems = fit_heads(heads, own, model.heads, strict and not new_classifier, report)
    if strict and not rest:
        problems.append("it has heads and no backbone; strict=False loads the heads alone")
    if problems:
        raise CheckpointError(
            f"the checkpoint does not fit this {type(model).__name__}; nothing was loaded.\n"
            + "\n".join(f"  - {problem}" for problem in problems)
        )
    if rest:
        # a pyramid on a plain ViT has new layers behind the ViT, which no backbone's checkpoint holds
        dense = isinstance(model.backbone, DenseFeatures)
        part, prefix = (model.backbone, "backbone.") if dense else (model.backbone.backbone, "backbone.backbone.")
        inner = load_official(part, rest, strict, new_classifier=new_classifier)
        report.loaded += [prefix + name for name in inner.loaded]
        report.reshaped += [prefix + line for line in inner.reshaped]
        report.unexpected += inner.unexpected
        report.skipped += inner.skipped
    model.load_state_dict(heads, strict=False)
    report.loaded += list(heads)
    found = set(report.loaded)
    report.missing = [name for name in own if name not in found and not BUFFER.search(name)]
    return report


def load_exactly(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """`model.load_state_dict(weights)` after `check_names_and_shapes`."""
    check_names_and_shapes(model, weights)
    model.load_state_dict(weights)


def check_names_and_shapes(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Whether weights under the model's own names would load.

    Raises:
        CheckpointError: Names or shapes differ; the message lists which.
    """
    own = model.state_dict()
    missing, unexpected = [name for name in own if name not in weights], [name for name in weights if name not in own]
    shapes = [
        f"{name} is {tuple(weights[name].shape)} in the checkpoint and {tuple(own[name].shape)} in the model"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    if missing or unexpected or shapes:
        lines = (
            ("tensors of the model are missing", missing),
            ("tensors have no place in the model", unexpected),
            ("shapes differ", shapes),
        )
        raise CheckpointError(
            f"the weights do not fit the model, a {type(model).__name__}; nothing was loaded.\n"
            + "\n".join(f"  - {len(names)} {label}: {some(names)}" for label, names in lines if names)
            + f"\n{_describe(weights)}"
        )


def short_reason(error: BaseException) -> str:
    """An error's first line; of torch's on a state_dict, which says nothing, the first of those behind it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if lines[0].startswith("Error(s) in loading state_dict") and len(lines) > 1:
        more = f" (and {len(lines) - 2} more)" if len(lines) > 2 else ""
        return f"the weights do not fit the model: {lines[1][:200]}{more}"
    return lines[0]


def _inside(model: nn.Module) -> tuple[nn.Module, int]:
    """The model without what wraps it and puts a name before all others; and how many levels it had before
    features_only cut it, 0 where it did not."""
    levels = 0
    while True:
        if isinstance(model, (FeatureGetterNet, *FLATTENED)):
            levels = levels or len(model.feature_info.info)
        if isinstance(model, FeatureGetterNet):
            model = model.model
        elif isinstance(model, WRAPPED):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod
        else:
            return model, levels


def _is_cut(name: str, own: TensorDict, levels: int) -> bool:
    """Whether features_only takes a part of that name off a model: a stage or block behind the last that is left, or
    what comes after all of them."""
    indexed = re.match(r"(\w*?[a-z])[._](\d+)\.", name)
    if indexed is None:
        return (
            re.match(r"(norm|fc_norm|norm_head|head\w*|conv_head|bn2|final_\w+|attn_pool|pre_logits)\.", name)
            is not None
        )
    stem, index = indexed[1], int(indexed[2])
    left = [int(found[1]) for found in (re.match(rf"{stem}[._](\d+)\.", kept) for kept in own) if found]
    return bool(left) and max(left) < index < levels


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """What a .safetensors file or a file of torch.save holds; nothing in it can run code.

    Raises:
        FileNotFoundError: No such file.
        CheckpointError: Damaged, or it holds more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except Exception as error:
            raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
    try:
        # timm's training script, which CSWin and T2T-ViT used, stores its arguments beside the weights
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if isinstance(error, pickle.UnpicklingError) and "Unsupported global" in str(error):
            reason = "it holds more than weights, and loading that could run code"
        raise CheckpointError(
            f"{path} could not be read as tensors alone ({reason}). If you trust the file, load it with "
            "torch.load(path, weights_only=False) and give the dictionary to load_official"
        ) from error


def _is_weights(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(v, torch.Tensor) for v in value.values())


def _unwrap(content: Any, wrapper: str | None, report: LoadReport) -> TensorDict:
    if not isinstance(content, dict):
        raise CheckpointError(f"a checkpoint is a dictionary of tensors, not a {type(content).__name__}")
    found = [key for key in WRAPPERS if _is_weights(content.get(key))]
    if wrapper is not None:
        if not _is_weights(content.get(wrapper)):
            have = ", ".join(map(repr, found)) or f"none of them; its keys are {some(list(content))}"
            raise CheckpointError(f"wrapper={wrapper!r}: the checkpoint has weights under {have}")
        report.wrapper = wrapper
    elif found:
        report.wrapper = found[0]
    elif not _is_weights(content):
        if "param_groups" in content or any("optimizer" in str(key) for key in content):
            raise CheckpointError(
                f"the file holds the state of an optimizer and no weights (its keys are {some(list(content))}): give "
                "the file of the same run that holds the model"
            )
        raise CheckpointError(
            f"no weights found, neither at the top nor under {', '.join(WRAPPERS)}; its keys are {some(list(content))}"
        )
    report.passed_over = [key for key in found if key != report.wrapper]
    weights = content[report.wrapper] if report.wrapper else content
    foreign = [str(name) for name, value in weights.items() if not isinstance(value, torch.Tensor)]
    report.skipped += [f"{name}: not a tensor" for name in foreign]
    return {name: value for name, value in weights.items() if isinstance(value, torch.Tensor)}


def _best_prefix(source: TensorDict, own: TensorDict) -> tuple[str, int]:
    """What has to be taken off the checkpoint's names for most of them to be the model's, and how many are then."""
    known = {*own, *(name.removeprefix("backbone.") for name in own)}
    fitting: Counter[str] = Counter()
    for name in source:
        starts = [0, *(dot.end() for dot in re.finditer(r"\.", name))]
        fitting.update(name[:start] for start in starts if name[start:] in known)
    return max(fitting.items(), key=lambda item: (item[1], -len(item[0])), default=("", 0))


def _strip_prefix(source: TensorDict, own: TensorDict) -> TensorDict:
    # of DataParallel, torch.compile, Lightning's modules, PEFT, detectors, in whatever order
    best, _ = _best_prefix(source, own)
    for prefix in (best, best.removesuffix("backbone.")):
        if all(name.startswith(prefix) for name in source):
            return {name.removeprefix(prefix): value for name, value in source.items()}
    return source


def _take_backbone(source: TensorDict, report: LoadReport) -> TensorDict:
    if any(name.startswith("backbone.") for name in source):
        # DenseFeatures keeps its norms beside the backbone; a whole detector has necks and heads there
        inside = {name.removeprefix("backbone."): v for name, v in source.items() if name.startswith("backbone.")}
        for name, value in source.items():
            if re.match(r"norm\d+\.", name):
                inside[name] = value
            elif not name.startswith("backbone."):
                report.skipped.append(f"{name}: not of the backbone")
        source = inside
    return source


def _drop_buffers(source: TensorDict, report: LoadReport) -> None:
    for name in [name for name in source if BUFFER.search(name)]:
        report.skipped.append(f"{name}: computed, not loaded")
        del source[name]


def _drop_second_names(renamed: TensorDict, own: TensorDict, model: nn.Module, looks: str, report: LoadReport) -> None:
    """Leaves out what the authors store under two names (`second_names` of the zoo's models), or without values."""
    inner = model.backbone if isinstance(model, DenseFeatures) else model
    for name in [name for name in renamed if name not in own]:
        first = next(
            (name.replace(second, f) for second, f in getattr(inner, "second_names", ()) if second in name), ""
        )
        if first in renamed:
            if not torch.equal(renamed[name], renamed[first]):
                raise CheckpointError(
                    f"{name} and {first} differ in the checkpoint, and are one tensor in {type(inner).__name__}; "
                    f"nothing was loaded. It was trained with options that this model does not have.\n{looks}"
                )
            report.skipped.append(f"{name}: the same tensor as {first}")
        elif renamed[name].numel() == 0:
            report.skipped.append(f"{name}: empty")
        else:
            continue
        del renamed[name]


def _rename(source: TensorDict, own: TensorDict, model: nn.Module) -> TensorDict:
    """The authors' names to the model's; names that are the same, or unknown, stay."""
    dense = isinstance(model, DenseFeatures)
    prefix = "backbone." if dense else ""
    # The authors merge at the end of a stage, timm at the start of the next.
    merge_at_end = any(re.match(r"layers\.0\.downsample\.", name) for name in source)
    # (features_only writes layers_1)
    merge_at_start = any(re.match(rf"{prefix}layers[._]1\.downsample\.", name) for name in own)
    # CSWin's segmentation backbone counts its norms from 1.
    from_one = "norm4.weight" in source and "norm0.weight" not in source

    renamed = {}
    for name, value in source.items():
        norm = re.match(r"norm(\d+)\.(.+)", name)
        if dense and norm:
            name = f"norm{int(norm[1]) - from_one}.{norm[2]}"
        else:
            if merge_at_end and merge_at_start:
                name = re.sub(r"^layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) + 1}.downsample.", name)
            name = prefix + name
            with_fc = re.sub(r"^head\.(weight|bias)$", r"head.fc.\1", name)
            if name not in own and with_fc in own:
                name = with_fc
        renamed[name] = value
    return renamed


def _flatten_names(renamed: TensorDict, model: nn.Module) -> TensorDict:
    """Names of a model to those that features_only gives its parts: `stages.0.` to `stages_0.`"""
    parts = {name: name for name, _ in model.named_children()}
    for part in list(parts):
        inside, _, index = part.rpartition("_")
        if inside and not any(name.startswith(f"{part}.") for name in renamed):
            parts[f"{inside}.{index}"] = parts.pop(part)
    flat = {}
    for name, value in renamed.items():
        old = next((part for part in parts if name.startswith(f"{part}.")), "")
        flat[parts[old] + name.removeprefix(old) if old else name] = value
    return flat


def _skip_what_has_no_place(renamed: TensorDict, own: TensorDict, report: LoadReport, levels: int) -> None:
    """Leaves out what a model without classifier, final norm or class token does not have."""
    headless = not any(name.startswith(HEADS) for name in own)
    dense = any(name.startswith("backbone.") for name in own)
    for name in [name for name in renamed if name not in own]:
        bare = name.removeprefix("backbone.")
        if headless and bare.startswith(HEADS):
            reason = "the model has no classifier"
        elif dense and bare in ("norm.weight", "norm.bias"):
            reason = "maps for dense tasks have norms of their own"
        elif bare == "cls_token" and name.replace("cls_token", "pos_embed") in own:
            reason = "the model has no class token"
        elif levels and _is_cut(bare, own, levels):
            reason = "features_only cut it off"
        else:
            continue
        report.skipped.append(f"{name}: {reason}")
        del renamed[name]


def _fit_shapes(
    renamed: TensorDict, own: TensorDict, model: nn.Module, strict: bool, looks: str, report: LoadReport
) -> None:
    """Resizes tables in `renamed`; other differences are errors."""
    wrong, classes = [], []
    inner = model.backbone if isinstance(model, DenseFeatures) else model
    fitted: TensorDict = {}
    if hasattr(inner, "fit_tensors"):  # its own rules
        try:
            fitted = inner.fit_tensors(
                {name.removeprefix("backbone."): renamed[name] for name in renamed if name in own}
            )
        except ValueError as error:
            raise CheckpointError(f"{error}; nothing was loaded.\n{looks}") from error
    for name in [name for name in renamed if name in own]:
        value, want = renamed[name], own[name].shape
        old = tuple(value.shape)
        bare = name.removeprefix("backbone.")
        renamed[name] = fitted.get(bare, value)
        if value.shape == want and renamed[name] is value:
            continue
        if ".graft." in bare:
            wrong.append(
                f"{name} is {old} in the checkpoint and {tuple(want)} in the model: another graft configuration"
            )
            continue
        window = getattr(model.get_submodule(name.rpartition(".")[0]), "window_size", None)
        if renamed[name] is not value:
            pass
        elif bare.endswith(TABLE) and value.ndim == 2 and old[1] == want[1] and window is not None:
            try:
                renamed[name] = resize_rel_pos_bias_table(value, new_window_size=window, new_bias_shape=tuple(want))
            except ValueError as error:  # of a window that is not square, whose sides the table does not tell
                wrong.append(f"{name} is {old} in the checkpoint and {tuple(want)} in the model ({error})")
                continue
        elif bare == "pos_embed" and value.ndim == 3 and old[2] == want[2]:
            renamed[name] = _fit_pos_embed(value, model, own, name)
        elif bare.startswith(HEADS) and value.shape[1:] == want[1:]:
            classes.append((name, old, tuple(want)))
            continue
        if renamed[name].shape == want:
            report.reshaped.append(f"{name}: {old} -> {tuple(want)}")
        else:
            wrong.append(f"{name} is {old} in the checkpoint and {tuple(want)} in the model")
    if wrong:
        raise CheckpointError(
            f"shapes differ; nothing was loaded. {some(wrong)}. Was the model made with the same widths, depths, "
            f"heads, patch size, in_chans and graft options?\n{looks}"
        )
    if classes and strict:
        name, old, want = classes[0]
        raise CheckpointError(
            f"{name} is {old} in the checkpoint and {want} in the model: {old[0]} classes against {want[0]}; nothing "
            f"was loaded. Make the model with num_classes={old[0]}, load, then model.reset_classifier({want[0]}); or "
            f"pass strict=False to leave the classifier as it is.\n{looks}"
        )
    for name, old, want in classes:
        report.skipped.append(f"{name}: {old[0]} classes, the model has {want[0]}")
        del renamed[name]


def _fit_pos_embed(value: torch.Tensor, model: nn.Module, own: TensorDict, name: str) -> torch.Tensor:
    """(1, P + N, C) to the model's prefix tokens and grid; the class token's row goes if the model has none."""
    vit = model.backbone if isinstance(model, DenseFeatures) else model
    grid = getattr(getattr(vit, "patch_embed", None), "grid_size", None)
    if grid is None:
        return value
    prefix = own[name].shape[1] - grid[0] * grid[1]
    tokens = value.shape[1]
    stored = next((p for p in (prefix, 1, 2, 0) if round((tokens - p) ** 0.5) ** 2 == tokens - p), None)
    if stored is None or stored < prefix:
        return value
    value = value[:, stored - prefix :]
    return resample_abs_pos_embed(value, new_size=list(grid), num_prefix_tokens=prefix)


def _problems(report: LoadReport, model: nn.Module, renamed: TensorDict, few: bool, new_classifier: bool) -> list[str]:
    """What strict loading does not allow, each with a way out; `few`: so little fits that strict=False is none."""
    other = "Is it of another size or family?"
    problems = []
    grafts_stored = any(".graft." in name for name in renamed)
    grafts = [name for name in report.missing if ".graft." in name]
    norms = {name for name in report.missing if isinstance(model, DenseFeatures) and re.match(r"norm\d+\.", name)}
    norms_stored = any(re.match(r"norm\d+\.", name) for name in renamed)
    if grafts and grafts_stored:
        problems.append(
            f"{len(grafts)} tensors of grafts are missing ({some(grafts)}), others are there: the checkpoint is of "
            "another graft configuration. Make the model with that one"
        )
    missing = [name for name in report.missing if ".graft." not in name and (name not in norms or norms_stored)]
    if new_classifier:
        missing = [name for name in missing if not name.startswith(HEADS)]
    if missing:
        heads = all(name.startswith(HEADS) for name in missing)
        hint = (
            "Make the model with num_classes=0, or pass strict=False to keep its new classifier"
            if heads
            else other + ("" if few else " strict=False loads the rest")
        )
        problems.append(f"{len(missing)} tensors of the model are missing ({some(missing)}). {hint}")
    unexpected = report.unexpected
    if unexpected:
        hint = other + ("" if few else " strict=False leaves them out")
        if any(".graft." in name for name in unexpected):
            hint = (
                "Tensors of grafts: make the model with the same grafts. blocks=(...) names blocks, among them a last "
                "one whose patch tokens nothing reads, which was grafted by default once"
            )
        elif any(re.match(r"norm\d+\.", name) for name in unexpected):
            hint = "Norms of a dense-task backbone: load into vitgraft.DenseFeatures(model)"
        problems.append(f"{len(unexpected)} tensors have no place in the model ({some(unexpected)}). {hint}")
    return problems


def _describe(source: Mapping[str, torch.Tensor], wrapper: str | None = None) -> str:
    """One sentence on what the checkpoint seems to be, and one on what would work, where that is known."""
    outer = r"^((module|_orig_mod|(base_)?model|backbone(\.features)?)\.)+"
    names = [re.sub(outer, "", name) for name in source]
    family, advice = next(
        (
            (family, advice)
            for patterns, family, advice in FAMILIES
            if all(any(re.search(pattern, name) for name in names) for pattern in patterns)
        ),
        ("a model of a family this loader has no rules for", ""),
    )
    if any(".graft." in name for name in source):
        family += ", with grafts"
    heads = [source[full] for full, name in zip(source, names, strict=True) if re.match(CLASSIFIER, name)]
    head = f"a classifier of {heads[0].shape[0]} classes" if heads else "no classifier"
    where = f" under '{wrapper}'" if wrapper else ""
    names = some(list(source))
    text = f"The checkpoint looks like {family}: {len(source)} tensors{where}, {head}, names like {names}."
    return f"{text} {advice[0].upper()}{advice[1:]}." if advice else text
