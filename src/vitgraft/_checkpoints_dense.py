"""Checkpoints of whole detectors and segmentation models: a backbone and heads, read into a model of both.

The backbone's part goes the way of `vitgraft.checkpoints`; the heads have their authors' names already. A checkpoint of
a backbone alone (ImageNet) fills the backbone and leaves the heads as they are.
"""

from typing import Any

import torch
from torch import nn

from vitgraft import checkpoints
from vitgraft.errors import CheckpointError
from vitgraft.models.dense import DenseFeatures

__all__ = ["load_whole"]


def load_whole(
    model: nn.Module,
    content: dict[str, Any],
    strict: bool = True,
    wrapper: str | None = None,
    new_classifier: bool = False,
) -> "checkpoints.LoadReport":
    """Loads into a model with `backbone` (DenseFeatures or a pyramid) and `heads`, the beginnings of the others' names.

    Classifiers (`conv_seg`) of another number of classes are an error if `strict`, and else left as they are; with
    `new_classifier` they and all of a missing head are left in any case.

    Raises:
        CheckpointError: As `load_official`; nothing is loaded then.
    """
    report = checkpoints.LoadReport()
    own = model.state_dict()
    source = checkpoints._strip_prefix(checkpoints._unwrap(content, wrapper, report), own)
    if set(source) == set(own) and all(value.shape == own[name].shape for name, value in source.items()):
        model.load_state_dict(source)
        report.loaded = list(own)
        return report
    heads = {name: value for name, value in source.items() if name.startswith(model.heads)}
    rest = {name: value for name, value in source.items() if name not in heads}
    if any(name.startswith("backbone.backbone.") for name in rest):  # this package's own names
        rest = {name.removeprefix("backbone."): value for name, value in rest.items()}
    problems = _fit_heads(heads, own, model.heads, strict and not new_classifier, report)
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
        inner = checkpoints.load_official(part, rest, strict, new_classifier=new_classifier)
        report.loaded += [prefix + name for name in inner.loaded]
        report.reshaped += [prefix + line for line in inner.reshaped]
        report.unexpected += inner.unexpected
        report.skipped += inner.skipped
    model.load_state_dict(heads, strict=False)
    report.loaded += list(heads)
    found = set(report.loaded)
    report.missing = [name for name in own if name not in found and not checkpoints.BUFFER.search(name)]
    return report


def _fit_heads(
    heads: dict[str, torch.Tensor],
    own: dict[str, torch.Tensor],
    prefixes: tuple[str, ...],
    strict: bool,
    report: "checkpoints.LoadReport",
) -> list[str]:
    """Takes out of `heads` what can't be loaded, and returns what is wrong with that."""
    problems = []
    missing = [name for name in own if heads and name.startswith(prefixes) and name not in heads]
    for name in list(heads):
        head = name.partition(".")[0]
        if name in own and heads[name].shape == own[name].shape:
            continue
        value = heads.pop(name)
        if not any(known.startswith(head + ".") for known in own):
            report.skipped.append(f"{name}: the model has no {head}")
        elif name not in own:
            report.unexpected.append(name)
        else:
            old, new = tuple(value.shape), tuple(own[name].shape)
            if ".conv_seg." not in name or old[1:] != new[1:]:
                problems.append(f"{name} is {old} in the checkpoint and {new} in the model: heads of other widths?")
            elif strict:
                problems.append(f"{name}: {old[0]} classes, the model has {new[0]}; strict=False leaves it as it is")
            else:
                report.skipped.append(f"{name}: {old[0]} classes, the model has {new[0]}")
    if strict and missing:
        problems.append(f"{len(missing)} tensors of the heads are missing ({checkpoints._some(missing)})")
    if strict and report.unexpected:
        names = checkpoints._some(report.unexpected)
        problems.append(f"{len(report.unexpected)} tensors of heads have no place in the model ({names})")
    return problems
