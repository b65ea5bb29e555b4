"""A printed table as text, for Markdown and for the terminal."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from vitgraft.terminal import print_whole

__all__ = ["Sheet", "footnotes", "print_sheet", "to_markdown"]


@dataclass(frozen=True)
class Sheet:
    """A table of texts.

    Attributes:
        title: Above it.
        headings: Of its columns; a heading may have two lines.
        rows: As many cells each.
        notes: Under it.
        odd: Numbers of the rows to point at.
    """

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    odd: frozenset[int] = field(default_factory=frozenset)


def footnotes(notes: Iterable[str]) -> tuple[list[str], list[str]]:
    """The mark of each row ("" without a note), and the numbered notes; equal notes share a number."""
    numbered: list[str] = []
    marks = []
    for note in notes:
        if note and note not in numbered:
            numbered.append(note)
        marks.append(f" [{numbered.index(note) + 1}]" if note else "")
    return marks, [f"[{number}] {note}" for number, note in enumerate(numbered, 1)]


def to_markdown(sheet: Sheet) -> str:
    """Heading, table and notes; the first cell of rows to point at is bold."""
    lines = [f"## {sheet.title}", "", _pipes(heading.replace("\n", " ") for heading in sheet.headings)]
    lines.append(_pipes(["---"] * len(sheet.headings)))
    for number, (first, *others) in enumerate(sheet.rows):
        lines.append(_pipes([f"**{first}**" if number in sheet.odd else first, *others]))
    return "\n".join([*lines, "", *(f"{note}  " for note in sheet.notes)]).rstrip() + "\n"


def print_sheet(sheet: Sheet, console) -> None:
    """Prints it through rich; rows to point at are yellow."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    console.print(sheet.title, style="bold", highlight=False, soft_wrap=True)
    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for index, heading in enumerate(sheet.headings):
        grid.add_column(heading, justify="right" if index else "left", no_wrap=True)
    for number, row in enumerate(sheet.rows):
        grid.add_row(*(escape(text) for text in row), style="yellow" if number in sheet.odd else "")
    print_whole(console, grid)
    for note in sheet.notes:
        console.print(escape(note), style="dim", highlight=False, soft_wrap=True)
    console.print()


def _pipes(texts: Iterable[str]) -> str:
    return "| " + " | ".join(texts) + " |"
