"""A printed table as text, for Markdown and for the terminal."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from vitgraft.terminal import markdown_table, print_table

__all__ = ["TextTable", "footnotes", "print_text_table", "to_markdown"]


@dataclass(frozen=True)
class TextTable:
    """A table of texts with a title and notes.

    Attributes:
        title: Above it.
        headings: Of its columns; a heading may have two lines.
        rows: As many cells each.
        notes: Under it.
        marked: Numbers of the rows to point at.
    """

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    marked: frozenset[int] = field(default_factory=frozenset)


def footnotes(notes: Iterable[str]) -> tuple[list[str], list[str]]:
    """The mark of each row ("" without a note), and the numbered notes; equal notes have one number."""
    numbered: list[str] = []
    marks = []
    for note in notes:
        if note and note not in numbered:
            numbered.append(note)
        marks.append(f" [{numbered.index(note) + 1}]" if note else "")
    return marks, [f"[{number}] {note}" for number, note in enumerate(numbered, 1)]


def to_markdown(table: TextTable) -> str:
    """Heading, table and notes; the first cell of rows to point at is bold."""
    rows = [
        [f"**{first}**" if number in table.marked else first, *others]
        for number, (first, *others) in enumerate(table.rows)
    ]
    notes = "\n".join(f"{note}  " for note in table.notes)
    return f"## {table.title}\n\n{markdown_table(table.headings, rows)}\n{notes}".rstrip() + "\n"


def print_text_table(table: TextTable, console) -> None:
    """Prints it through rich; rows to point at are yellow."""
    console.print(table.title, style="bold", highlight=False, soft_wrap=True)
    print_table(console, table.headings, table.rows, styles=dict.fromkeys(table.marked, "yellow"))
    for note in table.notes:
        console.print(note, style="dim", highlight=False, soft_wrap=True, markup=False)
    console.print()
