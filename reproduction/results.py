"""`python -m reproduction results`: runs of `vitgraft fit` as records for `results/`, and seeds side by side."""

import csv
import json
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from vitgraft.errors import CommandError
from vitgraft.terminal import markdown_table, print_table
from vitgraft.training.recipe import with_init_args

__all__ = ["print_terminal", "read_record", "read_records", "summarize", "to_markdown"]


METRICS: dict[str, dict[str, tuple[str, str]]] = {
    "classification": {"acc": ("top1", "top-1 %"), "acc5": ("top5", "top-5 %"), "ece": ("ece", "ECE %")},
    "detection": {name: (name, name.replace("_ap", " AP")) for name in ("box_ap50", "box_ap", "mask_ap50", "mask_ap")},
    "segmentation": {
        "mIoU": ("miou", "mIoU %"),
        "acc": ("pixel_accuracy", "pixel accuracy %"),
        "acc_class": ("mean_class_accuracy", "mean class accuracy %"),
    },
}
"""Of each task: column of metrics.csv behind `val/` -> name in the record, heading; the first is the main metric."""


def read_record(folder: str | Path, dataset: str | None = None) -> dict[str, Any]:
    """The record of one run, from the files that `vitgraft fit` leaves in its folder.

    Args:
        folder: The run's folder, with metrics.csv and run.json.
        dataset: Name of the data; None takes the last part of the data's path.

    Returns:
        JSON values: kind, name, dataset, model, model_options, seed, metrics (of the last evaluation; all but losses in
        per cent), curve (one entry for each evaluation), evaluations (of checkpoints, by the folder that `vitgraft
        validate` and `test` wrote: metrics, weights, split, and how it was inferred), recipe, and the versions, commit
        and hardware of run.json.

    Raises:
        CommandError: It is no folder of a run, or nothing was evaluated in it.
    """
    folder = Path(folder)
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        recipe = record["recipe"]
        recipe = {**recipe, "model": with_init_args(recipe["model"]), "data": with_init_args(recipe["data"])}
        options, data = recipe["model"]["init_args"], recipe["data"].get("init_args", {})
        kind = recipe["model"].get("class_path", "Classification").rpartition(".")[2].lower()
        columns = METRICS[kind]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CommandError(f"{folder}: not the folder of a run that vitgraft fit made ({error})") from error
    main = next(iter(columns))
    curve = [_evaluation(row, columns) for row in rows if row.get(f"val/{main}")]
    if not curve:
        raise CommandError(f"{folder}: nothing was evaluated yet; run it for an epoch at least")
    graft = {} if options.get("graft") is None else {"graft": options["graft"]}
    return {
        "kind": kind,
        "name": record.get("recipe_name") or re.sub(r"[-_](seed)?\d+$", "", folder.name),
        "dataset": dataset or _dataset(data),
        "model": options["model"],
        "model_options": {**(options.get("model_kwargs") or {}), **graft},
        "seed": recipe.get("seed_everything", 0),
        "metrics": {name: value for name, value in curve[-1].items() if name not in ("epoch", "step")},
        "curve": curve,
        **_evaluations(folder, kind),
        **{name: value for name, value in record.items() if name not in ("recipe", "recipe_name")},
        "recipe": _portable(recipe),
    }


def _evaluations(folder: Path, kind: str) -> dict[str, Any]:
    """The evaluations of `vitgraft validate` and `vitgraft test` in a run, without those of a part of the data."""
    found = {}
    for path in sorted([*folder.glob("validate*/metrics.json"), *folder.glob("test*/metrics.json")]):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            measured = {name: values["metrics"].get(name) for name, _ in METRICS[kind].values()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CommandError(f"{path}: not the metrics of an evaluation ({error}); evaluate again") from error
        if "limited" not in values:
            known = {name: values[name] for name in ("weights", "split", "inference") if name in values}
            metrics = {name: 100 * value for name, value in measured.items() if value is not None}
            checkpoint = values.get("checkpoint")  # None where it was evaluated as it was built
            found[path.parent.name] = {"metrics": metrics, "checkpoint": checkpoint and Path(checkpoint).name, **known}
    return {"evaluations": found} if found else {}


def _dataset(data: Mapping[str, Any]) -> str:
    """The name of the data's folder or tar, without its ending; that of what is taken where there is none."""
    path = data.get("root") or data.get("train")
    return Path(str(path)).name.split(".")[0] if path else "digits"


def _evaluation(row: Mapping[str, str], columns: Mapping[str, tuple[str, str]]) -> dict[str, float]:
    """One evaluation of metrics.csv; all but losses, which are fractions there, in per cent."""
    found: dict[str, float] = {"epoch": int(row["epoch"]), "step": int(row["step"])}
    for key, value in row.items():
        if key.startswith("val/") and value:
            name, _, suffix = key.removeprefix("val/").partition("_ema")
            name = columns.get(name, (name,))[0] + ("_ema" if "_ema" in key else "") + suffix
            found[name] = float(value) * (1 if name.startswith("loss") else 100)
    return found


def read_records(folders: Sequence[str | Path], dataset: str | None = None) -> list[dict[str, Any]]:
    """The records of several runs.

    Raises:
        CommandError: Some of them are no runs; all of these are named.
    """
    records, errors = [], []
    for folder in folders:
        try:
            records.append(read_record(folder, dataset))
        except CommandError as error:
            errors.append(str(error))
    if errors:
        raise CommandError("\n  ".join(errors))
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
        same = [record["dataset"], record["model"], record["model_options"], _portable(record["recipe"], _PLACE)]
        groups.setdefault(json.dumps(same, sort_keys=True, default=str), []).append(record)
    summaries = []
    for runs in groups.values():
        runs = sorted(runs, key=lambda run: run["seed"])
        summary = {name: runs[0][name] for name in ("name", "kind", "dataset")}
        summary["seeds"] = [run["seed"] for run in runs]
        names = [name for name, _ in METRICS[summary["kind"]].values()]
        for name in names:
            values = [run["metrics"][name] for run in runs if name in run["metrics"]]
            if values:
                summary[name] = _over_seeds(values)
        places = [{name: one["metrics"][names[0]] for name, one in run.get("evaluations", {}).items()} for run in runs]
        common = [name for name in places[0] if name != "validate" and all(name in one for one in places)]
        summary["evaluations"] = {name: _over_seeds([one[name] for one in places]) for name in common}
        summaries.append(summary)
    return summaries


def _over_seeds(values: list[float]) -> dict[str, Any]:
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"values": values, "mean": statistics.fmean(values), "spread": spread}


# Where a run was made, not what it is
_FOLDERS = {"out", "default_root_dir", "cache_dir", "save_dir"}
_PLACE = _FOLDERS | {"root", "workers", "seed", "seed_everything", "enable_progress_bar", "accelerator"}


def _portable(recipe: Any, drop: Set[str] = _FOLDERS) -> Any:
    """The recipe without the folders of the machine that it ran on."""
    if isinstance(recipe, Mapping):
        return {key: _portable(value, drop) for key, value in recipe.items() if key not in drop}
    if isinstance(recipe, str) and Path(recipe).is_absolute():
        return Path(recipe).name
    return recipe


def _tables(summaries: Sequence[Mapping[str, Any]]) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Headings and rows, for each kind that there is."""
    for kind, columns in METRICS.items():
        group = [one for one in summaries if one["kind"] == kind]
        further = sorted({name for one in group for name in one["evaluations"]}, reverse=True)
        (main, heading), *others = columns.values()
        headings = ["recipe", "data", heading, "each seed", *(other for _, other in others)]
        headings += [f"{heading}, {name}" for name in further]
        rows = []
        for one in group:
            texts = [_text(one.get(name)) for name, _ in others] + [
                _text(one["evaluations"].get(name)) for name in further
            ]
            single = ", ".join(f"{value:.2f}" for value in one[main]["values"])
            rows.append([one["name"], one["dataset"], _text(one[main]), single, *texts])
        if rows:
            yield headings, rows


def _text(values: Mapping[str, Any] | None) -> str:
    if values is None:
        return "-"
    return f"{values['mean']:.2f}" + ("" if values["spread"] is None else f" ± {values['spread']:.2f}")


def to_markdown(summaries: Sequence[Mapping[str, Any]]) -> str:
    """The summaries as Markdown tables, one for each kind."""
    return "\n".join(markdown_table(headings, rows) for headings, rows in _tables(summaries))


def print_terminal(summaries: Sequence[Mapping[str, Any]], console: Any) -> None:
    """Prints the summaries as tables, one for each kind."""
    for headings, rows in _tables(summaries):
        print_table(console, headings, rows, left=(0, 1))
    console.print("mean ± sample standard deviation over seeds, of the last evaluation of each run", style="dim")
