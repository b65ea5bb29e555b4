"""`python -m reproduction tables`: the paper's tables with three columns that are never mixed: paper, here, difference.

Parameters and MAC are counted when the command runs. images/s come from a file of
`python -m reproduction tables --speed`, scores from the files in `results/` (`results/README.md` has the
fields); what was not measured is marked so.
"""

import functools
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from reproduction.paper import TABLES, PaperRow, PaperTable, StructureRow, StructureTable
from reproduction.scores import Scores, architecture_of
from reproduction.speed import Speed
from reproduction.structure import Structure, structure_of
from reproduction.systems import build_system
from reproduction.text_table import TextTable, footnotes, print_text_table
from reproduction.text_table import to_markdown as table_to_markdown
from vitgraft import __version__
from vitgraft.models.spec import ModelSpec
from vitgraft.tools.count import count_macs, count_params

NOT_MEASURED = "not measured"

PARAMS_TOLERANCE = 0.01
"""Of the printed value, beyond what its rounding explains: "29" stands for 28.5 to 29.5."""
MACS_TOLERANCE = 0.05
"""Of the printed value."""
UNIT = {"params": 1e6, "macs": 1e9}


@dataclass(frozen=True)
class Cost:
    """What a model costs: parameters, and MAC of one image."""

    params: int
    macs: int


@dataclass(frozen=True)
class Measured:
    """What was measured before the tables are made.

    Attributes:
        scores: From `read_scores`.
        speeds: From `speeds_of`.
        where: What `speeds` were measured on.
    """

    scores: Scores = field(default_factory=dict)
    speeds: Mapping[tuple[str, str], Speed] = field(default_factory=dict)
    where: str = ""


@dataclass(frozen=True)
class Row:
    """A row of the paper with our counts.

    Attributes:
        paper: What is printed.
        cost: What was counted.
        scores: What was measured for each of the table's scores, in percent.
        speed: images/s, and their ratio to the table's base.
    """

    paper: PaperRow
    cost: Cost
    scores: tuple[float | None, ...] = ()
    speed: float | None = None
    ratio: float | None = None

    def difference(self, name: str) -> float:
        """Ours minus the paper's, as a part of the paper's. `name` is "params" or "macs"."""
        return getattr(self.cost, name) / UNIT[name] / float(getattr(self.paper, name)) - 1

    @property
    def within_tolerance(self) -> bool:
        """Whether both counts agree with the print: parameters beyond its rounding, MAC as they are."""
        printed = self.paper.params
        rounding = 0.5 * 10.0 ** -len(printed.partition(".")[2])
        miss = abs(self.cost.params / UNIT["params"] - float(printed)) - rounding
        return miss <= PARAMS_TOLERANCE * float(printed) and abs(self.difference("macs")) <= MACS_TOLERANCE


@dataclass(frozen=True)
class StructureHere:
    """A row of table 8, and what is read off the model's modules."""

    paper: StructureRow
    here: Structure

    @property
    def printed(self) -> Structure:
        """What the paper prints."""
        return Structure(self.paper.structure, self.paper.scales, self.paper.fusion)

    @property
    def within_tolerance(self) -> bool:
        """Whether both are the same."""
        return self.here == self.printed


@functools.cache
def _cost(task: str, spec_text: str) -> Cost:
    """Counts a model once per process."""
    model, size = build_system(task, ModelSpec.parse(spec_text), "meta")
    return Cost(count_params(model), count_macs(model, size))


def count_table(
    table: PaperTable | StructureTable, measured: Measured | None = None, progress: Callable = iter
) -> list[Row] | list[StructureHere]:
    """The rows of a table with what is counted or found here.

    Args:
        table: One of `TABLES`.
        measured: Scores and speeds.
        progress: Wraps the rows, e.g. in a progress bar.
    """
    if isinstance(table, StructureTable):
        models = (build_system("classification", row.spec, "meta")[0] for row in table.rows)
        rows = zip(progress(table.rows), models, strict=True)
        return [StructureHere(row, structure_of(model)) for row, model in rows]
    measured = measured or Measured()
    rows = []
    for row in progress(table.rows):
        key = architecture_of(row.spec)
        scores = tuple(measured.scores.get((table.task, key, name)) for name in table.scores)
        mine, base = (measured.speeds.get((table.task, str(spec))) for spec in (row.spec, table.base_of(row)))
        ratio = mine.ratio_to(base) if mine and base else None
        rows.append(Row(row, _cost(table.task, str(row.spec)), scores, mine.median if mine else None, ratio))
    return rows


def to_text_table(table: PaperTable | StructureTable, rows: list, where: str = "") -> TextTable:
    """A table as texts; the rows out of tolerance are pointed at."""
    marks, notes = footnotes(row.paper.note for row in rows)
    marked = frozenset(number for number, row in enumerate(rows) if not row.within_tolerance)
    title = f"Table {table.number}: {table.caption}"
    if isinstance(table, StructureTable):
        names = {"structure": "vertical structure", "scales": "scales per layer", "fusion": "fusion per layer"}
        texts = [[getattr(source, name) for name in names for source in (row.paper, row.here)] for row in rows]
        heads = [f"{name}\n{whose}" for name in names.values() for whose in ("paper", "here")]
        body = [[row.paper.label + mark, *cells] for row, mark, cells in zip(rows, marks, texts, strict=True)]
        return TextTable(title, ["model", *heads], body, notes, marked)
    units = {"params": "params (M)", "macs": "MAC (G)"}
    heads = ["model", *table.columns]
    heads += [f"{unit}\n{column}" for unit in units.values() for column in ("paper", "here", "diff")]
    scored = any(score is not None for row in rows for score in row.scores)
    timed = any(row.speed is not None for row in rows)
    printed = any(row.paper.speed for row in rows)
    if scored:
        heads += [f"{name}\n{whose}" for name in table.scores for whose in ("paper", "here")]
    else:  # one column for all
        heads += [f"{name}\npaper" for name in table.scores]
        heads.append(f"{table.scores[0] if len(table.scores) == 1 else 'all scores'}\nhere")
    heads += ["images/s\npaper", "ratio\npaper"] if printed else []
    heads += ["images/s\nhere", "ratio\nhere"] if timed else ["images/s\nhere"]
    body = [
        [row.paper.label + mark, *_cells(table, row, scored, printed, timed)]
        for row, mark in zip(rows, marks, strict=True)
    ]
    if timed:
        paper = "; paper: on the authors' machine" if printed else ""
        ratio = f"ratio (median over rounds in turns): to {_base_label(table)}"
        notes = [f"images/s here: {_setting(table, where)}{paper}; {ratio}", *notes]
    return TextTable(title, heads, body, notes, marked)


def _cells(table: PaperTable, row: Row, scored: bool, printed: bool, timed: bool) -> list[str]:
    texts = list(row.paper.setting)
    for name, unit in UNIT.items():
        texts += [getattr(row.paper, name), f"{getattr(row.cost, name) / unit:.3f}", f"{row.difference(name):+.1%}"]
    if scored:
        here = (NOT_MEASURED if score is None else f"{score:.1f}" for score in row.scores)
        texts += [text for pair in zip(row.paper.scores, here, strict=True) for text in pair]
    else:
        texts += [*row.paper.scores, NOT_MEASURED]
    if printed:
        base = next(float(other.speed) for other in table.rows if other.spec == table.base)
        texts += [row.paper.speed, f"{float(row.paper.speed) / base:.2f}"]
    texts.append(NOT_MEASURED if row.speed is None else f"{row.speed:.3g}")
    return texts + (["-" if row.ratio is None else f"{row.ratio:.2f}"] if timed else [])


def _setting(table: PaperTable, where: str) -> str:
    """What the speeds of a table were measured with."""
    if table.task == "classification":
        return where
    return where.rpartition(", batch")[0] + ", one image"


def _base_label(table: PaperTable) -> str:
    if table.own_base:
        return "each row's own backbone"
    # table 7 has no row of its base
    tables = [
        table,
        *(other for other in TABLES.values() if isinstance(other, PaperTable) and other.task == table.task),
    ]
    label = next(row.label for other in tables for row in other.rows if row.spec == table.base)
    own = any(table.base_of(row) != table.base for row in table.rows)
    return label.removeprefix("(b) ") + (", of a grafted model to its own backbone" if own else "")


PREFACE = """\
# The paper's tables

What the paper prints, what is counted or measured here, and the difference. MAC are the paper's FLOPs, counted for one
image of the model's size. A model in bold is out of tolerance (parameters: 1 % of the print beyond its rounding;
MAC: 5 %), and its note gives the reason, or that no reading of the paper explains it. Scores are measured where
`results/` has runs of the model as the paper trains it (several: their mean),
images/s in `results/bench_tables.json`. Made by `python -m reproduction tables --output docs/tables.md`.

"""


def to_markdown(counted: Mapping[str, list], where: str = "") -> str:
    """All tables as one Markdown text; `where` is what the speeds were measured on."""
    tables = (to_text_table(TABLES[number], rows, where) for number, rows in counted.items())
    return PREFACE + "\n".join(map(table_to_markdown, tables))


def print_terminal(counted: Mapping[str, list], console, where: str = "") -> None:
    """Prints the tables through rich; a row out of tolerance is yellow."""
    for number, rows in counted.items():
        table = to_text_table(TABLES[number], rows, where)
        short = [heading.replace(" (M)", "").replace(" (G)", "") for heading in table.headings]
        print_text_table(replace(table, headings=short), console)
    line = "params in 10^6, MAC in 10^9 (the paper's FLOPs), scores in %; yellow: out of tolerance, see the note"
    console.print(line, style="dim", highlight=False, soft_wrap=True)


def to_json(counted: Mapping[str, list], where: str = "") -> dict[str, Any]:
    """All tables as JSON values, with the versions they were counted by."""
    import timm
    import torch

    tables = []
    for number, rows in counted.items():
        table = TABLES[number]
        record = _structure_record if isinstance(table, StructureTable) else functools.partial(_record, table)
        tables.append({"table": number, "caption": table.caption, "rows": [record(row) for row in rows]})
    versions = {"vitgraft": __version__, "torch": torch.__version__, "timm": timm.__version__}
    return {
        "kind": "tables",
        "tolerance": {"params": PARAMS_TOLERANCE, "macs": MACS_TOLERANCE},
        "versions": {**versions, "python": platform.python_version()},
        "speed": where or NOT_MEASURED,
        "tables": tables,
    }


def _record(table: PaperTable, row: Row) -> dict[str, Any]:
    paper = row.paper
    return {
        "label": paper.label,
        **dict(zip(table.columns, paper.setting, strict=True)),
        "task": table.task,
        "model": str(paper.spec),
        "paper": {
            "params_m": paper.params,
            "macs_g": paper.macs,
            **dict(zip(table.scores, paper.scores, strict=True)),
            **({"images_per_second": paper.speed} if paper.speed else {}),
        },
        "here": {
            "params": row.cost.params,
            "macs": row.cost.macs,
            **dict(zip(table.scores, row.scores, strict=True)),
            "images_per_second": row.speed,
            "ratio_to_base": row.ratio,
        },
        "base": str(table.base_of(paper)),
        "difference": {name: row.difference(name) for name in UNIT},
        "within_tolerance": row.within_tolerance,
        "note": paper.note,
    }


def _structure_record(row: StructureHere) -> dict[str, Any]:
    paper = row.paper
    return {
        "label": paper.label,
        "model": str(paper.spec),
        "paper": asdict(row.printed),
        "here": asdict(row.here),
        "within_tolerance": row.within_tolerance,
        "note": paper.note,
    }
