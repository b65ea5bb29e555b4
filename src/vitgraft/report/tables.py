"""`vitgraft tables`: the paper's tables with three columns that are never mixed: paper, here, difference.

Parameters and MAC are counted when the command runs. An accuracy is "not measured" until a file in `results/` holds
it (`results/README.md` has the fields); a row whose model is not in the library says so.
"""

import functools
import json
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vitgraft.errors import ModelSpecError
from vitgraft.report.count import count_macs, count_params
from vitgraft.report.paper import TABLES, PaperRow, PaperTable
from vitgraft.report.spec import ModelSpec, create, input_size_of
from vitgraft.report.terminal import print_whole

NOT_MEASURED = "not measured"
NOT_AVAILABLE = "not available yet"

PARAMS_TOLERANCE = 0.01
"""Of the printed value, beyond what its rounding explains: "29" stands for 28.5 to 29.5."""
MACS_TOLERANCE = 0.05
"""Of the printed value."""


@dataclass(frozen=True)
class Cost:
    """What a model costs: parameters, and MAC of one image of its own input size."""

    params: int
    macs: int


@dataclass(frozen=True)
class Row:
    """A row of the paper with our counts; `cost` is None where the model is not available."""

    paper: PaperRow
    cost: Cost | None
    top1: float | None

    def difference(self, name: str) -> float | None:
        """Ours minus the paper's, as a part of the paper's. `name` is "params" or "macs"."""
        if self.cost is None:
            return None
        printed = float(getattr(self.paper, name))
        return getattr(self.cost, name) / _UNIT[name] / printed - 1

    @property
    def within_tolerance(self) -> bool | None:
        """Whether both counts agree with the print: parameters after its rounding, MAC as they are."""
        if self.cost is None:
            return None
        printed = self.paper.params
        rounding = 0.5 * 10.0 ** -len(printed.partition(".")[2])
        miss = abs(self.cost.params / _UNIT["params"] - float(printed)) - rounding
        return miss <= PARAMS_TOLERANCE * float(printed) and abs(self.difference("macs")) <= MACS_TOLERANCE


_UNIT = {"params": 1e6, "macs": 1e9}


@functools.cache
def _cost(spec_text: str) -> Cost | None:
    spec = ModelSpec.parse(spec_text)
    import timm

    import vitgraft  # noqa: F401  registers the grafted models with timm

    if not timm.is_model(spec.name):
        return None
    try:
        model = create(spec, device="meta")
    except (NotImplementedError, RuntimeError):  # a constructor that reads values needs real tensors
        model = create(spec)
    return Cost(count_params(model), count_macs(model, input_size_of(model)))


def cost_of(row: PaperRow) -> Cost | None:
    """Counts the row's model; None when the library has none for it. Counted once per process.

    Raises:
        GraftError: an option of the row is not possible.
    """
    return _cost(str(spec_of(row))) if row.model else None


def spec_of(row: PaperRow) -> ModelSpec:
    """The model of a row as it is written on a command line."""
    if row.model is None:
        raise ModelSpecError(f"{row.label} has no model here")
    return ModelSpec(row.model, {"graft": dict(row.graft)} if row.graft else {})


def read_top1(folder: Path) -> dict[str, float]:
    """ImageNet-1K top-1 of the runs in a folder of result files, by the model's spec. The best run of a model counts.

    Raises:
        ValueError: a file is not JSON, or a classification result without its fields.
    """
    found: dict[str, float] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            result = json.loads(path.read_text())
            if result.get("kind") != "classification" or result["dataset"] != "imagenet1k":
                continue
            spec = str(ModelSpec(result["model"], result.get("model_options", {})))
            found[spec] = max(found.get(spec, 0.0), float(result["metrics"]["top1"]))
        except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: not a result file as results/README.md describes it ({error!r})") from error
    return found


def count_table(table: PaperTable, top1: Mapping[str, float] | None = None, progress: Callable = iter) -> list[Row]:
    """The rows of a table with our counts.

    Args:
        table: one of `TABLES`.
        top1: measured accuracies by model spec, from `read_top1`.
        progress: wraps the rows, e.g. in a progress bar.
    """
    measured = top1 or {}
    return [
        Row(row, cost_of(row), measured.get(str(spec_of(row))) if row.model else None) for row in progress(table.rows)
    ]


def headings(table: PaperTable) -> list[str]:
    """Column headings, in the order of `cells`."""
    groups = [f"{what} {column}" for what in ("params (M)", "MAC (G)") for column in ("paper", "here", "diff")]
    return ["model", *table.columns, *groups, "top-1 paper", "top-1 here"]


def cells(row: Row, mark: str = "") -> list[str]:
    """One row as text; `mark` is the mark of its footnote."""
    texts = [row.paper.label + mark, *row.paper.setting]
    for name in _UNIT:
        texts.append(getattr(row.paper, name))
        if row.cost is None:
            texts += [NOT_AVAILABLE, "-"]
        else:
            texts += [f"{getattr(row.cost, name) / _UNIT[name]:.3f}", f"{row.difference(name):+.1%}"]
    return [*texts, row.paper.top1, NOT_MEASURED if row.top1 is None else f"{row.top1:.1f}"]


def footnotes(rows: Iterable[Row]) -> tuple[list[str], list[str]]:
    """The mark of each row ("" without a note), and the numbered notes; equal notes share a number."""
    notes: list[str] = []
    marks = []
    for row in rows:
        if not row.paper.note:
            marks.append("")
            continue
        if row.paper.note not in notes:
            notes.append(row.paper.note)
        marks.append(f" [{notes.index(row.paper.note) + 1}]")
    return marks, [f"[{number}] {note}" for number, note in enumerate(notes, 1)]


def to_markdown(counted: Mapping[str, list[Row]]) -> str:
    """All tables as one Markdown text."""
    parts = []
    for number, rows in counted.items():
        table = TABLES[number]
        marks, notes = footnotes(rows)
        head = headings(table)
        lines = [f"### Table {number}: {table.caption}", "", _pipes(head), _pipes(["---"] * len(head))]
        lines += [_pipes(cells(row, mark)) for row, mark in zip(rows, marks, strict=True)]
        parts.append("\n".join([*lines, "", *(f"{note}  " for note in notes)]).rstrip())
    return "\n\n".join(parts) + "\n"


def to_json(counted: Mapping[str, list[Row]]) -> dict[str, Any]:
    """All tables as JSON values, with the versions they were counted by."""
    import timm
    import torch

    from vitgraft import __version__

    tables = []
    for number, rows in counted.items():
        records = []
        for row in rows:
            record = {
                key: value for key, value in asdict(row.paper).items() if key not in ("model", "graft", "setting")
            }
            records.append(
                {
                    "label": record.pop("label"),
                    **dict(zip(TABLES[number].columns, row.paper.setting, strict=False)),
                    "model": str(spec_of(row.paper)) if row.paper.model else None,
                    "available": row.cost is not None,
                    "paper": {"params_m": record["params"], "macs_g": record["macs"], "top1": record["top1"]},
                    "here": {
                        "params": row.cost and row.cost.params,
                        "macs": row.cost and row.cost.macs,
                        "top1": row.top1,
                    },
                    "difference": {name: row.difference(name) for name in _UNIT},
                    "within_tolerance": row.within_tolerance,
                    "note": row.paper.note,
                }
            )
        tables.append({"table": number, "caption": TABLES[number].caption, "rows": records})
    versions = {"vitgraft": __version__, "torch": torch.__version__, "timm": timm.__version__}
    return {
        "kind": "tables",
        "tolerance": {"params": PARAMS_TOLERANCE, "macs": MACS_TOLERANCE},
        "versions": {**versions, "python": platform.python_version()},
        "tables": tables,
    }


def print_terminal(counted: Mapping[str, list[Row]], console) -> None:
    """Prints the tables through rich; a count out of tolerance is yellow, a row without a model here grey."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    for number, rows in counted.items():
        table = TABLES[number]
        marks, notes = footnotes(rows)
        console.print(f"Table {number}: {table.caption}", style="bold", highlight=False, soft_wrap=True)
        grid = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
        for index, heading in enumerate(headings(table)):
            # two lines: what, and whose it is
            what = heading.replace("params (M) ", "params\n").replace("MAC (G) ", "MAC\n").replace("top-1 ", "top-1\n")
            grid.add_column(what, justify="right" if index else "left", no_wrap=True)
        for row, mark in zip(rows, marks, strict=True):
            style = "dim" if row.cost is None else ("" if row.within_tolerance else "yellow")
            texts = ("not yet" if text == NOT_AVAILABLE else text for text in cells(row, mark))
            grid.add_row(*(escape(text) for text in texts), style=style)
        print_whole(console, grid)
        if any(row.cost is None for row in rows):
            notes = ["not yet: there is no model here for this row", *notes]
        notes = ["params in 10^6, MAC in 10^9 (the paper's FLOPs), top-1 in % on ImageNet-1K", *notes]
        for note in notes:
            console.print(escape(note), style="dim", highlight=False, soft_wrap=True)
        console.print()


def _pipes(texts: Iterable[str]) -> str:
    return "| " + " | ".join(texts) + " |"
