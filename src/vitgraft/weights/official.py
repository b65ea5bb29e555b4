"""Checkpoints as the authors of the backbones published them, loaded into this package's models and timm's.

`load_official` chooses a dictionary of the file (`_choose_weights`), gives a Swin of mmdetection or mmsegmentation its
authors' names (`_from_open_mmlab`), takes off a prefix that all names share (`_strip_prefix`), gives the backbone's
tensors the model's names (`_rename`), leaves out what need not be loaded (`_skip`) and resizes tables (`_fit_shapes`).
The model changes only when all of that fits.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table
from timm.models._features import FeatureDictNet, FeatureGetterNet, FeatureHookNet
from torch import nn

from vitgraft.errors import CheckpointError
from vitgraft.models.dense import DenseFeatures
from vitgraft.weights.files import read_checkpoint
from vitgraft.weights.load_report import LoadReport, some
from vitgraft.weights.recognize import PEFT, TABLE, describe

__all__ = ["check_names_and_shapes", "load_exactly", "load_official", "short_reason"]

# In this order: where timm's training script stored averaged weights beside the raw ones, the published accuracy is
# theirs; the scripts with a "model_ema" (DeiT, PVT, RegionViT) evaluate "model".
WRAPPERS = ("state_dict_ema", "state_dict", "model", "model_ema", "net")
# Computed from sizes, so never loaded: relative_position_index, attn_mask, atten_mask_matrix, relative_coords_table
BUFFER = re.compile(r"(^|\.)(relative_position_index|relative_coords_table|att[e]?n_mask\w*)$")
NORM = re.compile(r"norm(\d+)\.(.+)")  # of DenseFeatures and the authors' backbones for dense tasks
HEADS = ("head.", "head_dist.", "fc.", "classifier.")
# What features_only cuts off behind the stages
BEHIND = re.compile(r"(norm|fc_norm|norm_head|head\w*|conv_head|bn2|final_\w+|attn_pool|pre_logits)\.")
# What mmdetection 3 (mmdet/models/backbones/swin.py, swin_converter) and mmsegmentation 1 make of the authors' names
OPEN_MMLAB = (
    (r"(^|backbone\.)stages\.", r"\1layers."),
    (r"\.attn\.w_msa\.", ".attn."),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
    (r"patch_embed\.projection\.", "patch_embed.proj."),
)
PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)
# timm's features_only: the first two flatten the model that they keep a part of, the last holds it
FLATTENED = (FeatureDictNet, FeatureHookNet)
TensorDict = dict[str, torch.Tensor]


def load_official(
    model: nn.Module,
    state_dict_or_path: dict[str, Any] | str | Path,
    strict: bool = True,
    wrapper: str | None = None,
    new_classifier: bool = False,
) -> LoadReport:
    """Loads a checkpoint of a backbone's authors, grafted models, DenseFeatures and UperNet included.

    Swin is read under the names of mmdetection and mmsegmentation too, whose patch merging orders its inputs otherwise.

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
        CheckpointError: The file holds no weights, or those of another model; the message names them. A file that is
            missing is a FileNotFoundError as well.
    """
    content = read_checkpoint(state_dict_or_path) if isinstance(state_dict_or_path, str | Path) else state_dict_or_path
    model, levels = _unwrap_model(model)
    own = model.state_dict()
    if any(value.is_meta for value in own.values()):
        raise CheckpointError("the model is on the meta device and has no memory to load into: model.to_empty() first")
    report = LoadReport()
    weights = _from_open_mmlab(_choose_weights(content, wrapper, report))
    source = _strip_prefix(weights, own)
    if hasattr(model, "heads"):  # a backbone with more around it
        return _load_whole(model, own, source, strict, new_classifier, report)
    looks = describe(weights, report.wrapper)
    if any(map(PEFT.search, weights)) and not any(map(PEFT.search, own)):
        raise _misfit(model, [], looks)

    renamed = _rename(_backbone_of(source, report), own, model)
    _skip(renamed, own, model, levels, report)
    differing, other_classes = _fit_shapes(renamed, own, model, report)
    if differing:
        raise CheckpointError(
            f"shapes differ; nothing was loaded. {some(differing)}. Was the model made with the same widths, depths, "
            f"heads, patch size, in_chans and graft options?\n{looks}"
        )
    report.loaded = [name for name in own if name in renamed]
    report.unexpected = [name for name in renamed if name not in own]
    report.missing = [name for name in own if name not in renamed and not BUFFER.search(name)]
    wanted = [name for name in own if ".graft." not in name and not BUFFER.search(name)]
    few = not report.loaded or 2 * len(report.loaded) < min(len(wanted), len(renamed))
    errors = []
    if few:
        errors.append(f"{len(report.loaded)} of the checkpoint's {len(weights)} tensors have a place in it")
    if few or strict:
        errors += _misplaced(report, model, few, new_classifier)
    if strict and not new_classifier and other_classes:
        name, old, new = other_classes[0]
        errors.append(
            f"{name}: {old} classes against {new} of the model. Make the model with num_classes={old}, load, then "
            f"model.reset_classifier({new})" + ("" if few else "; or pass strict=False to leave it as it is")
        )
    if few:
        prefix, fitting = _best_prefix(weights, own)
        if prefix and fitting > len(report.loaded):
            errors.append(f"{fitting} names begin with {prefix!r} and are the model's behind it: give them alone")
    if errors:
        raise _misfit(model, errors, looks)
    model.load_state_dict({name: renamed[name] for name in report.loaded}, strict=False)
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
    lines = {
        "tensors of the model are missing": [name for name in own if name not in weights],
        "tensors have no place in the model": [name for name in weights if name not in own],
        "shapes differ": [
            _shapes(name, weights[name], own)
            for name in own
            if name in weights and weights[name].shape != own[name].shape
        ],
    }
    errors = [f"{len(names)} {label}: {some(names)}" for label, names in lines.items() if names]
    if errors:
        raise _misfit(model, errors, describe(weights))


def short_reason(error: BaseException) -> str:
    """An error's first line; of torch's on a state_dict, whose first line is the same for all, the next one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if lines[0].startswith("Error(s) in loading state_dict") and len(lines) > 1:
        more = f" (and {len(lines) - 2} more)" if len(lines) > 2 else ""
        return f"the weights do not fit the model: {lines[1][:200]}{more}"
    return lines[0]


def _misfit(model: nn.Module, errors: Sequence[str], looks: str = "") -> CheckpointError:
    head = f"the weights do not fit the model, a {type(model).__name__}; nothing was loaded."
    return CheckpointError("\n".join([head, *(f"  - {error}" for error in errors), *([looks] if looks else [])]))


def _load_whole(
    model: nn.Module, own: TensorDict, source: TensorDict, strict: bool, new_classifier: bool, report: LoadReport
) -> LoadReport:
    """Loads into a model with `backbone` (DenseFeatures or a pyramid) and `heads`, the beginnings of the others' names.

    The backbone's part goes the way of every backbone; the heads have their authors' names already. A checkpoint of a
    backbone alone (ImageNet) fills the backbone and leaves the heads as they are.
    """
    if set(source) == set(own) and all(value.shape == own[name].shape for name, value in source.items()):
        model.load_state_dict(source)
        report.loaded = list(own)
        return report
    heads = {name: value for name, value in source.items() if name.startswith(model.heads)}
    rest = {name: value for name, value in source.items() if name not in heads}
    if any(name.startswith("backbone.backbone.") for name in rest):  # this package's own names
        rest = {name.removeprefix("backbone."): value for name, value in rest.items()}
    missing = [name for name in own if heads and name.startswith(model.heads) and name not in heads]
    strict_heads = strict and not new_classifier
    errors = _fit_heads(heads, own, strict_heads, report)
    if strict_heads and missing:
        errors.append(f"{len(missing)} tensors of the heads are missing ({some(missing)})")
    if strict_heads and report.unexpected:
        errors.append(f"{len(report.unexpected)} tensors of heads have no place in it ({some(report.unexpected)})")
    if strict and not rest:
        errors.append("it has heads and no backbone; strict=False loads the heads alone")
    if errors:
        raise _misfit(model, errors)
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


def _fit_heads(heads: TensorDict, own: TensorDict, strict: bool, report: LoadReport) -> list[str]:
    """Takes out of `heads` what cannot be loaded; what is an error in that."""
    errors = []
    for name in list(heads):
        head = name.partition(".")[0]
        if name in own and heads[name].shape == own[name].shape:
            continue
        value = heads.pop(name)
        if not any(known.startswith(f"{head}.") for known in own):
            report.skipped.append(f"{name}: the model has no {head}")
        elif name not in own:
            report.unexpected.append(name)
        elif ".conv_seg." not in name or value.shape[1:] != own[name].shape[1:]:
            errors.append(f"{_shapes(name, value, own)}: heads of other widths?")
        elif strict:
            errors.append(f"{_classes(name, value, own)}; strict=False leaves it as it is")
        else:
            report.skipped.append(_classes(name, value, own))
    return errors


def _unwrap_model(model: nn.Module) -> tuple[nn.Module, int]:
    """The model without what wraps it and puts a name before all others; and how many levels it had before
    features_only cut it, 0 where it did not."""
    levels = 0
    while True:
        if isinstance(model, (FeatureGetterNet, *FLATTENED)):
            levels = levels or len(model.feature_info.info)
        if isinstance(model, FeatureGetterNet):
            model = model.model
        elif isinstance(model, PARALLEL):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod
        else:
            return model, levels


def _choose_weights(content: Any, wrapper: str | None, report: LoadReport) -> TensorDict:
    """The tensors of a file, from its top or one of `WRAPPERS`."""

    def is_weights(value: Any) -> bool:
        return isinstance(value, dict) and any(isinstance(v, torch.Tensor) for v in value.values())

    if not isinstance(content, dict):
        raise CheckpointError(f"a checkpoint is a dictionary of tensors, not a {type(content).__name__}")
    keys = some(list(content))
    found = [key for key in WRAPPERS if is_weights(content.get(key))]
    report.wrapper = wrapper or next(iter(found), None)
    weights = content.get(report.wrapper) if report.wrapper else content
    if not is_weights(weights):
        if wrapper is not None:
            have = ", ".join(map(repr, found)) or f"none of them; its keys are {keys}"
            raise CheckpointError(f"wrapper={wrapper!r}: the checkpoint has weights under {have}")
        if "param_groups" in content or any("optimizer" in str(key) for key in content):
            raise CheckpointError(
                f"the file holds the state of an optimizer and no weights (its keys are {keys}): give the file of the "
                "same run that holds the model"
            )
        raise CheckpointError(
            f"no weights found, neither at the top nor under {', '.join(WRAPPERS)}; its keys are {keys}"
        )
    report.passed_over = [key for key in found if key != report.wrapper]
    report.skipped += [f"{name}: not a tensor" for name, v in weights.items() if not isinstance(v, torch.Tensor)]
    return {name: value for name, value in weights.items() if isinstance(value, torch.Tensor)}


def _from_open_mmlab(weights: TensorDict) -> TensorDict:
    """A Swin of mmdetection or mmsegmentation as its authors' checkpoints have it; others stay as they are."""
    if not any(".attn.w_msa." in name for name in weights):
        return weights
    renamed = {}
    for name, value in weights.items():
        for theirs, authors in OPEN_MMLAB:
            name = re.sub(theirs, authors, name)
        if ".downsample." in name:
            # theirs: the four pixels of a channel side by side, row by row; the authors': pixel by pixel, by columns
            value = value.unflatten(-1, (-1, 4)).transpose(-1, -2)[..., [0, 2, 1, 3], :].flatten(-2)
        renamed[name] = value
    return renamed


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


def _backbone_of(source: TensorDict, report: LoadReport) -> TensorDict:
    """The backbone's part of a whole detector, without buffers; DenseFeatures keeps its norms beside the backbone."""
    whole = any(name.startswith("backbone.") for name in source)
    inside = {}
    for name, value in source.items():
        bare = name.removeprefix("backbone.")
        if whole and bare == name and not NORM.match(name):
            report.skipped.append(f"{name}: not of the backbone")
        elif BUFFER.search(name):
            report.skipped.append(f"{bare}: computed, not loaded")
        else:
            inside[bare] = value
    return inside


def _rename(source: TensorDict, own: TensorDict, model: nn.Module) -> TensorDict:
    """The authors' names to the model's; names that are the same, or unknown, stay."""
    dense = isinstance(model, DenseFeatures)
    prefix = "backbone." if dense else ""
    # The Swin authors merge at the end of a stage, timm at the start of the next (features_only writes layers_1)
    later = any(re.match(r"layers\.0\.downsample\.", name) for name in source) and any(
        re.match(rf"{prefix}layers[._]1\.downsample\.", name) for name in own
    )
    # CSWin's segmentation backbone counts its norms from 1
    from_one = "norm4.weight" in source and "norm0.weight" not in source
    renamed = {}
    for name, value in source.items():
        if dense and (norm := NORM.match(name)):
            name = f"norm{int(norm[1]) - from_one}.{norm[2]}"
        else:
            if later:
                name = re.sub(r"^layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) + 1}.downsample.", name)
            name = prefix + name
            with_fc = re.sub(r"^head\.(weight|bias)$", r"head.fc.\1", name)
            if name not in own and with_fc in own:
                name = with_fc
        renamed[name] = value
    if not isinstance(model, FLATTENED):
        return renamed
    parts = {name: name for name, _ in model.named_children()}
    for part in list(parts):  # stages.0 is stages_0 there
        inside, _, index = part.rpartition("_")
        if inside and not any(name.startswith(f"{part}.") for name in renamed):
            parts[f"{inside}.{index}"] = parts.pop(part)
    flat = {}
    for name, value in renamed.items():
        old = next((part for part in parts if name.startswith(f"{part}.")), "")
        flat[parts[old] + name.removeprefix(old) if old else name] = value
    return flat


def _skip(renamed: TensorDict, own: TensorDict, model: nn.Module, levels: int, report: LoadReport) -> None:
    """Takes out of `renamed` what need not be loaded, with the reason."""
    inner = model.backbone if isinstance(model, DenseFeatures) else model
    dense = any(name.startswith("backbone.") for name in own)
    headless = not any(name.startswith(HEADS) for name in own)
    seconds = getattr(inner, "second_names", ())  # what the authors of a zoo's model store under two names

    def reason(name: str) -> str | None:
        bare = name.removeprefix("backbone.")
        if name in own:
            return None
        first = next((name.replace(second, first) for second, first in seconds if second in name), "")
        if first in renamed:
            if not torch.equal(renamed[name], renamed[first]):
                error = f"{name} and {first} differ, and are one tensor in it: was it trained with other options?"
                raise _misfit(inner, [error], describe(renamed))
            return f"the same tensor as {first}"
        if renamed[name].numel() == 0:
            return "empty"
        if headless and bare.startswith(HEADS):
            return "the model has no classifier"
        if dense and bare in ("norm.weight", "norm.bias"):
            return "maps for dense tasks have norms of their own"
        if bare == "cls_token" and name.replace("cls_token", "pos_embed") in own:
            return "the model has no class token"
        return "features_only cut it off" if levels and _is_cut(bare, own, levels) else None

    reasons = {name: why for name in renamed if (why := reason(name))}
    for name, why in reasons.items():
        report.skipped.append(f"{name}: {why}")
        del renamed[name]


def _is_cut(name: str, own: TensorDict, levels: int) -> bool:
    """Whether features_only takes a part of that name off a model: a stage or block behind the last that is left, or
    what comes after all of them."""
    indexed = re.match(r"(\w*?[a-z])[._](\d+)\.", name)
    if indexed is None:
        return BEHIND.match(name) is not None
    stem, index = indexed[1], int(indexed[2])
    left = [int(found[1]) for found in (re.match(rf"{stem}[._](\d+)\.", kept) for kept in own) if found]
    return bool(left) and max(left) < index < levels


def _fit_shapes(
    renamed: TensorDict, own: TensorDict, model: nn.Module, report: LoadReport
) -> tuple[list[str], list[tuple[str, int, int]]]:
    """Resizes tables in `renamed`, and takes out classifiers of other classes.

    Returns:
        Shapes that differ otherwise, and (name, number of classes in the checkpoint, in the model) of the classifiers.
    """
    inner = model.backbone if isinstance(model, DenseFeatures) else model
    common = [name for name in renamed if name in own]
    fitted: TensorDict = {}
    if hasattr(inner, "fit_tensors"):  # its own rules
        try:
            fitted = inner.fit_tensors({name.removeprefix("backbone."): renamed[name] for name in common})
        except ValueError as error:
            return [str(error)], []
    errors, classes = [], []
    for name in common:
        value, want = renamed[name], own[name].shape
        bare = name.removeprefix("backbone.")
        new, note = fitted.get(bare, value), ""
        if new is value:
            if value.shape == want:
                continue
            if bare.startswith(HEADS) and value.shape[1:] == want[1:]:
                classes.append((name, value.shape[0], want[0]))
                report.skipped.append(_classes(name, value, own))
                del renamed[name]
                continue
            if ".graft." in bare:
                note = ": another graft configuration"
            elif bare.endswith(TABLE) and value.ndim == 2 and value.shape[1] == want[1]:
                window = getattr(model.get_submodule(name.rpartition(".")[0]), "window_size", None)
                try:
                    new = value if window is None else resize_rel_pos_bias_table(value, window, tuple(want))
                except ValueError as error:  # a window that is not square: the table does not hold its sides
                    note = f" ({error})"
            elif bare == "pos_embed" and value.ndim == 3 and value.shape[2] == want[2]:
                new = _fit_pos_embed(value, inner, want[1])
        renamed[name] = new
        if new.shape == want:
            report.reshaped.append(f"{name}: {tuple(value.shape)} -> {tuple(want)}")
        else:
            errors.append(_shapes(name, value, own) + note)
    return errors, classes


def _fit_pos_embed(value: torch.Tensor, vit: nn.Module, tokens: int) -> torch.Tensor:
    """(1, P + N, C) to the model's prefix tokens and grid; the class token's row goes if the model has none."""
    grid = getattr(getattr(vit, "patch_embed", None), "grid_size", None)
    if grid is None:
        return value
    prefix = tokens - grid[0] * grid[1]
    given = value.shape[1]
    stored = next((p for p in (prefix, 1, 2, 0) if round((given - p) ** 0.5) ** 2 == given - p), None)
    if stored is None or stored < prefix:
        return value
    return resample_abs_pos_embed(value[:, stored - prefix :], new_size=list(grid), num_prefix_tokens=prefix)


def _misplaced(report: LoadReport, model: nn.Module, few: bool, new_classifier: bool) -> list[str]:
    """What is missing and what is left over, each with a way out; `few`: so little fits that strict=False is none."""
    other = "Is it of another size or family?"
    names = [*report.loaded, *report.unexpected]
    norms_missing = isinstance(model, DenseFeatures) and not any(map(NORM.match, names))
    grafts = [name for name in report.missing if ".graft." in name]
    missing = [
        name
        for name in report.missing
        if name not in grafts
        and not (norms_missing and NORM.match(name))
        and not (new_classifier and name.startswith(HEADS))
    ]
    errors = []
    renamed_grafts = _renamed_grafts(grafts, report.unexpected, model)
    if renamed_grafts:
        errors.append(renamed_grafts)
    elif grafts and any(".graft." in name for name in names):
        errors.append(
            f"{len(grafts)} tensors of grafts are missing ({some(grafts)}), others are there: the checkpoint is of "
            "another graft configuration. Make the model with that one"
        )
    if missing:
        hint = other + ("" if few else " strict=False loads the rest")
        if all(name.startswith(HEADS) for name in missing):
            hint = "Make the model with num_classes=0, or pass strict=False to keep its new classifier"
        errors.append(f"{len(missing)} tensors of the model are missing ({some(missing)}). {hint}")
    if report.unexpected:
        hint = other + ("" if few else " strict=False leaves them out")
        if any(".graft." in name for name in report.unexpected) and not renamed_grafts:
            hint = (
                "Tensors of grafts: make the model with the same grafts. blocks=(...) names blocks, among them a last "
                "one whose patch tokens nothing reads, which was grafted by default once"
            )
        elif any(map(NORM.match, report.unexpected)):
            hint = "Norms of a dense-task backbone: load into vitgraft.DenseFeatures(model)"
        errors.append(
            f"{len(report.unexpected)} tensors have no place in the model ({some(report.unexpected)}). {hint}"
        )
    return errors


def _renamed_grafts(missing: Sequence[str], unexpected: Sequence[str], model: nn.Module) -> str:
    """The error where the grafts of a transformers model have blocks of other names, not numbers; "" elsewhere."""

    def blocks(names: Sequence[str]) -> list[str]:
        return list(dict.fromkeys(name.partition(".graft.")[0] for name in names if ".graft." in name))

    def patterns(names: Sequence[str]) -> set[str]:
        return {re.sub(r"\d+", "N", name) for name in blocks(names)}

    stored = patterns(unexpected)
    if not hasattr(model, "save_pretrained") or not missing or not stored or patterns(missing) & stored:
        return ""
    return (
        f"its grafts are in blocks of other names: {some(blocks(unexpected))}; the model's are in "
        f"{some(blocks(missing))}. The save_pretrained of transformers renames parameters. Save by "
        "model.save_pretrained(DIR, save_original_format=False) and load by vitgraft.load_official("
        "vitgraft.graft(model, ...), DIR + '/model.safetensors'), with the options that it was grafted with"
    )


def _shapes(name: str, value: torch.Tensor, own: TensorDict) -> str:
    return f"{name} is {tuple(value.shape)} in the checkpoint and {tuple(own[name].shape)} in the model"


def _classes(name: str, value: torch.Tensor, own: TensorDict) -> str:
    return f"{name}: {value.shape[0]} classes, the model has {own[name].shape[0]}"
