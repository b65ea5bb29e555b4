"""Names of the heads in checkpoints of whole detectors and segmentation models, which are their authors' already."""

import torch

from vitgraft.weights.load_report import LoadReport, some

__all__ = ["fit_heads"]


def fit_heads(
    heads: dict[str, torch.Tensor],
    own: dict[str, torch.Tensor],
    prefixes: tuple[str, ...],
    strict: bool,
    report: LoadReport,
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
        problems.append(f"{len(missing)} tensors of the heads are missing ({some(missing)})")
    if strict and report.unexpected:
        names = some(report.unexpected)
        problems.append(f"{len(report.unexpected)} tensors of heads have no place in the model ({names})")
    return problems
