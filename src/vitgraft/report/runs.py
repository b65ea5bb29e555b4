"""`vitgraft results`: finished runs of `vitgraft fit` as records for `results/`, and seeds side by side."""

import csv
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitgraft.training.recipe import with_init_args

__all__ = ["print_terminal", "read_run", "read_runs", "summarize", "to_markdown"]

# What the printed table shows of a run's last evaluation; per cent of 1
METRICS = {"acc": "top1", "acc5": "top5", "ece": "ece"}


def read_run(folder: str | Path, dataset: str | None = None) -> dict[str, Any]:
    """The record of one run, from the files that `vitgraft fit` leaves in its folder.

    Args:
        folder: The run's folder, with metrics.csv and run.json.
        dataset: Name of the data; None takes the last part of the data's path.

    Returns:
        JSON values: kind, name, dataset, model, model_options, seed, metrics (of the last evaluation; top1, top5 and
        ece in per cent), curve (one entry for each evaluation), recipe, and what run.json says of
        versions, commit and hardware.

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
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder}: not the folder of a run that vitgraft fit made ({error})") from error
    curve = [_evaluation(row) for row in rows if row.get("val/acc")]
    if not curve:
        raise ValueError(f"{folder}: nothing was evaluated yet; run it for an epoch at least")
    model_options = {**(options.get("model_kwargs") or {})}
    if options.get("graft") is not None:
        model_options["graft"] = options["graft"]
    known = {"recipe", "recipe_name"}
    return {
        "kind": "classification",
        "name": record.get("recipe_name") or re.sub(r"[-_](seed)?\d+$", "", folder.name),
        "dataset": dataset or Path(str(data.get("root") or data.get("train"))).name,
        "model": options["model"],
        "model_options": model_options,
        "seed": recipe.get("seed_everything", 0),
        "metrics": {name: value for name, value in curve[-1].items() if name not in ("epoch", "step")},
        "curve": curve,
        **{name: value for name, value in record.items() if name not in known},
        "recipe": _portable(recipe),
    }


def _evaluation(row: Mapping[str, str]) -> dict[str, float]:
    """One evaluation of metrics.csv; accuracies and calibration errors, which lie there as 0 to 1, in per cent."""
    found: dict[str, float] = {"epoch": int(row["epoch"]), "step": int(row["step"])}
    for key, value in row.items():
        if key.startswith("val/") and value:
            name, _, suffix = key.removeprefix("val/").partition("_ema")
            name = METRICS.get(name, name) + ("_ema" if "_ema" in key else "") + suffix
            found[name] = float(value) * (1 if name.startswith("loss") else 100)
    return found


def read_runs(folders: Sequence[str | Path], dataset: str | None = None) -> list[dict[str, Any]]:
    """The records of several runs.

    Raises:
        ValueError: One of them is no run; all that are none are named.
    """
    records, problems = [], []
    for folder in folders:
        try:
            records.append(read_run(folder, dataset))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n  ".join(problems))
    return records


def summarize(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Runs that differ in nothing but their seed, as one: mean, sample standard deviation and the single values.

    Returns:
        One dict for each recipe, in the order of the first runs: name, dataset, seeds, and for each of top1, top5 and
        ece (per cent) "values", "mean" and "spread" (None for one run).
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        same = [record["dataset"], record["model"], record["model_options"], _without_seed(record["recipe"])]
        groups.setdefault(json.dumps(same, sort_keys=True, default=str), []).append(record)
    summaries = []
    for runs in groups.values():
        runs = sorted(runs, key=lambda run: run["seed"])
        summary = {"name": runs[0]["name"], "dataset": runs[0]["dataset"], "seeds": [run["seed"] for run in runs]}
        for metric in METRICS.values():
            values = [run["metrics"][metric] for run in runs if metric in run["metrics"]]
            if values:
                spread = statistics.stdev(values) if len(values) > 1 else None
                summary[metric] = {"values": values, "mean": statistics.fmean(values), "spread": spread}
        summaries.append(summary)
    return summaries


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


def _texts(summary: Mapping[str, Any]) -> list[str]:
    def shown(metric: str) -> str:
        values = summary.get(metric)
        if values is None:
            return "-"
        return f"{values['mean']:.2f}" + ("" if values["spread"] is None else f" ± {values['spread']:.2f}")

    single = ", ".join(f"{value:.2f}" for value in summary["top1"]["values"])
    return [summary["name"], summary["dataset"], shown("top1"), single, shown("top5"), shown("ece")]


HEADINGS = ("recipe", "data", "top-1 %", "each seed", "top-5 %", "ECE %")


def to_markdown(summaries: Sequence[Mapping[str, Any]]) -> str:
    """The summaries as a Markdown table."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|---|---|" + "---:|" * (len(HEADINGS) - 2)]
    lines += ["| " + " | ".join(_texts(summary)) + " |" for summary in summaries]
    return "\n".join(lines) + "\n"


def print_terminal(summaries: Sequence[Mapping[str, Any]], console: Any) -> None:
    """Prints the summaries as a table."""
    from rich import box
    from rich.table import Table

    from vitgraft.report.terminal import print_whole

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for number, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if number < 2 else "right", no_wrap=True)
    for summary in summaries:
        table.add_row(*_texts(summary))
    print_whole(console, table)
    console.print("mean ± sample standard deviation over seeds, of the last evaluation of each run", style="dim")
