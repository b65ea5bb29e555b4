"""Runs of `vitgraft fit` as records for `results/`, and seeds side by side: `python -m reproduction results`."""

import csv
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitgraft.terminal import print_whole
from vitgraft.training.recipe import with_init_args

__all__ = ["print_terminal", "read_record", "read_records", "summarize", "to_markdown"]


@dataclass(frozen=True)
class Kind:
    """What a task's results are called.

    Attributes:
        kind: Of the record.
        metrics: Names in metrics.csv behind `val/` -> names in the record; the first is the one that counts.
        headings: Of these in the printed table.
    """

    kind: str
    metrics: Mapping[str, str]
    headings: tuple[str, ...]

    @property
    def main(self) -> str:
        return next(iter(self.metrics))


# By the class name of the task
KINDS = {
    "Classification": Kind(
        "classification", {"acc": "top1", "acc5": "top5", "ece": "ece"}, ("top-1 %", "top-5 %", "ECE %")
    ),
    "Detection": Kind(
        "detection",
        {name: name for name in ("box_ap50", "box_ap", "mask_ap50", "mask_ap")},
        ("box AP50", "box AP", "mask AP50", "mask AP"),
    ),
    "Segmentation": Kind(
        "segmentation",
        {"mIoU": "miou", "acc": "pixel_accuracy", "acc_class": "mean_class_accuracy"},
        ("mIoU %", "pixel accuracy %", "mean class accuracy %"),
    ),
}


def read_record(folder: str | Path, dataset: str | None = None) -> dict[str, Any]:
    """The record of one run, from the files that `vitgraft fit` leaves in its folder.

    Args:
        folder: The run's folder, with metrics.csv and run.json.
        dataset: Name of the data; None takes the last part of the data's path.

    Returns:
        JSON values: kind, name, dataset, model, model_options, seed, metrics (of the last evaluation; all but losses in
        per cent), curve (one entry for each evaluation), evaluations (of checkpoints, by the folder that `vitgraft
        validate` and `test` wrote: metrics, weights, split, and how it was inferred), recipe, and what run.json says
        of versions, commit and hardware.

    Raises:
        ValueError: It is no folder of a run, or nothing was evaluated in it.
    """
    folder = Path(folder)
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        recipe = record["recipe"]
        recipe = {**recipe, "model": with_init_args(recipe["model"]), "data": with_init_args(recipe["data"])}
        options, data = recipe["model"]["init_args"], recipe["data"].get("init_args", {})
        kind = KINDS[recipe["model"].get("class_path", "Classification").rpartition(".")[2]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder}: not the folder of a run that vitgraft fit made ({error})") from error
    curve = [_evaluation(row, kind.metrics) for row in rows if row.get(f"val/{kind.main}")]
    if not curve:
        raise ValueError(f"{folder}: nothing was evaluated yet; run it for an epoch at least")
    model_options = {**(options.get("model_kwargs") or {})}
    if options.get("graft") is not None:
        model_options["graft"] = options["graft"]
    known = {"recipe", "recipe_name"}
    return {
        "kind": kind.kind,
        "name": record.get("recipe_name") or re.sub(r"[-_](seed)?\d+$", "", folder.name),
        "dataset": dataset or _dataset(data),
        "model": options["model"],
        "model_options": model_options,
        "seed": recipe.get("seed_everything", 0),
        "metrics": {name: value for name, value in curve[-1].items() if name not in ("epoch", "step")},
        "curve": curve,
        **_evaluations(folder, kind),
        **{name: value for name, value in record.items() if name not in known},
        "recipe": _portable(recipe),
    }


def _evaluations(folder: Path, kind: Kind) -> dict[str, Any]:
    """What `vitgraft validate` and `vitgraft test` left in a run's folder; a part of a set does not count."""
    found = {}
    for path in sorted([*folder.glob("validate*/metrics.json"), *folder.glob("test*/metrics.json")]):
        values = json.loads(path.read_text(encoding="utf-8"))
        if "limited" not in values:
            metrics = {
                name: 100 * values["metrics"][name] for name in kind.metrics.values() if name in values["metrics"]
            }
            known = {name: values[name] for name in ("weights", "split", "inference") if name in values}
            found[path.parent.name] = {"metrics": metrics, "checkpoint": Path(values["checkpoint"]).name, **known}
    return {"evaluations": found} if found else {}


def _dataset(data: Mapping[str, Any]) -> str:
    """The name of the data's folder or tar, without its ending; that of what is taken where there is none."""
    path = data.get("root") or data.get("train")
    return Path(str(path)).name.split(".")[0] if path else "digits"


def _evaluation(row: Mapping[str, str], names: Mapping[str, str]) -> dict[str, float]:
    """One evaluation of metrics.csv; all but losses, which lie there as 0 to 1, in per cent."""
    found: dict[str, float] = {"epoch": int(row["epoch"]), "step": int(row["step"])}
    for key, value in row.items():
        if key.startswith("val/") and value:
            name, _, suffix = key.removeprefix("val/").partition("_ema")
            name = names.get(name, name) + ("_ema" if "_ema" in key else "") + suffix
            found[name] = float(value) * (1 if name.startswith("loss") else 100)
    return found


def read_records(folders: Sequence[str | Path], dataset: str | None = None) -> list[dict[str, Any]]:
    """The records of several runs.

    Raises:
        ValueError: One of them is no run; all that are none are named.
    """
    records, problems = [], []
    for folder in folders:
        try:
            records.append(read_record(folder, dataset))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n  ".join(problems))
    return records


def summarize(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Runs that differ in nothing but their seed, as one: mean, sample standard deviation and the single values.

    Returns:
        One dict for each recipe, in the order of the first runs: name, kind, dataset, seeds, and for each metric of
        its kind (per cent) "values", "mean" and "spread" (None for one run); in "evaluations" the same of the main
        metric for each further evaluation (such as "validate_multi_scale") that all of the runs have.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        same = [record["dataset"], record["model"], record["model_options"], _without_seed(record["recipe"])]
        groups.setdefault(json.dumps(same, sort_keys=True, default=str), []).append(record)
    summaries = []
    for runs in groups.values():
        runs = sorted(runs, key=lambda run: run["seed"])
        kind = next(kind for kind in KINDS.values() if kind.kind == runs[0]["kind"])
        summary = {name: runs[0][name] for name in ("name", "kind", "dataset")}
        summary["seeds"] = [run["seed"] for run in runs]
        for metric in kind.metrics.values():
            values = [run["metrics"][metric] for run in runs if metric in run["metrics"]]
            if values:
                summary[metric] = _over_seeds(values)
        main = next(iter(kind.metrics.values()))
        places = [{name: one["metrics"][main] for name, one in run.get("evaluations", {}).items()} for run in runs]
        common = [name for name in places[0] if name != "validate" and all(name in one for one in places)]
        summary["evaluations"] = {name: _over_seeds([one[name] for one in places]) for name in common}
        summaries.append(summary)
    return summaries


def _over_seeds(values: list[float]) -> dict[str, Any]:
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"values": values, "mean": statistics.fmean(values), "spread": spread}


# Where a run was made, not what it is
_PLACE = {"root", "cache_dir", "workers", "seed", "default_root_dir", "enable_progress_bar", "accelerator"}


def _portable(recipe: Any) -> Any:
    """The recipe without the folders of the machine that it ran on."""
    if isinstance(recipe, Mapping):
        places = {"out", "default_root_dir", "cache_dir", "save_dir"}
        return {key: _portable(value) for key, value in recipe.items() if key not in places}
    if isinstance(recipe, str) and Path(recipe).is_absolute():
        return Path(recipe).name
    return recipe


def _without_seed(recipe: Any) -> Any:
    if isinstance(recipe, Mapping):
        drop = _PLACE | {"seed_everything", "out"}
        return {key: _without_seed(value) for key, value in recipe.items() if key not in drop}
    return recipe


def _texts(summary: Mapping[str, Any], kind: Kind, evaluations: Sequence[str] = ()) -> list[str]:
    def shown(metric: str) -> str:
        values = summary.get(metric) or summary["evaluations"].get(metric)
        if values is None:
            return "-"
        return f"{values['mean']:.2f}" + ("" if values["spread"] is None else f" ± {values['spread']:.2f}")

    main, *others = kind.metrics.values()
    single = ", ".join(f"{value:.2f}" for value in summary[main]["values"])
    return [summary["name"], summary["dataset"], shown(main), single, *map(shown, (*others, *evaluations))]


def _headings(kind: Kind, evaluations: Sequence[str]) -> list[str]:
    main, *others = kind.headings
    return ["recipe", "data", main, "each seed", *others, *(f"{main}, {name}" for name in evaluations)]


def _further(group: Sequence[Mapping[str, Any]]) -> list[str]:
    """The further evaluations of some summaries, in a fixed order."""
    return sorted({name for summary in group for name in summary["evaluations"]}, reverse=True)


def _by_kind(summaries: Sequence[Mapping[str, Any]]) -> list[tuple[Kind, list[Mapping[str, Any]]]]:
    groups = [(kind, [one for one in summaries if one["kind"] == kind.kind]) for kind in KINDS.values()]
    return [(kind, group) for kind, group in groups if group]


def to_markdown(summaries: Sequence[Mapping[str, Any]]) -> str:
    """The summaries as Markdown tables, one for each kind."""
    tables = []
    for kind, group in _by_kind(summaries):
        further = _further(group)
        headings = _headings(kind, further)
        lines = ["| " + " | ".join(headings) + " |", "|---|---|" + "---:|" * (len(headings) - 2)]
        lines += ["| " + " | ".join(_texts(summary, kind, further)) + " |" for summary in group]
        tables.append("\n".join(lines) + "\n")
    return "\n".join(tables)


def print_terminal(summaries: Sequence[Mapping[str, Any]], console: Any) -> None:
    """Prints the summaries as tables, one for each kind."""
    from rich import box
    from rich.table import Table

    for kind, group in _by_kind(summaries):
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
        further = _further(group)
        for number, heading in enumerate(_headings(kind, further)):
            table.add_column(heading, justify="left" if number < 2 else "right", no_wrap=True)
        for summary in group:
            table.add_row(*_texts(summary, kind, further))
        print_whole(console, table)
    console.print("mean ± sample standard deviation over seeds, of the last evaluation of each run", style="dim")
