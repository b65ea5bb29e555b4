"""A printed table as text, for Markdown and for the terminal."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from vitgraft.terminal import markdown_table, print_table

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
    """The mark of each row ("" without a note), and the numbered notes; equal notes have one number."""
    numbered: list[str] = []
    marks = []
    for note in notes:
        if note and note not in numbered:
            numbered.append(note)
        marks.append(f" [{numbered.index(note) + 1}]" if note else "")
    return marks, [f"[{number}] {note}" for number, note in enumerate(numbered, 1)]


def to_markdown(sheet: Sheet) -> str:
    """Heading, table and notes; the first cell of rows to point at is bold."""
    rows = [
        [f"**{first}**" if number in sheet.odd else first, *others]
        for number, (first, *others) in enumerate(sheet.rows)
    ]
    notes = "\n".join(f"{note}  " for note in sheet.notes)
    return f"## {sheet.title}\n\n{markdown_table(sheet.headings, rows)}\n{notes}".rstrip() + "\n"


def print_sheet(sheet: Sheet, console) -> None:
    """Prints it through rich; rows to point at are yellow."""
    console.print(sheet.title, style="bold", highlight=False, soft_wrap=True)
    print_table(console, sheet.headings, sheet.rows, styles=dict.fromkeys(sheet.odd, "yellow"))
    for note in sheet.notes:
        console.print(note, style="dim", highlight=False, soft_wrap=True, markup=False)
    console.print()
