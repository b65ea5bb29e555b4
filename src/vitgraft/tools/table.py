"""Tables of texts, for the terminal and as Markdown."""

from collections.abc import Iterable, Mapping, Sequence

from vitgraft.terminal import print_whole

__all__ = ["markdown_table", "print_table"]


def print_table(
    console,
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    left: int = 1,
    styles: Mapping[int, str] | None = None,
    max_widths: Mapping[int, int] | None = None,
) -> None:
    """Prints rows of texts through rich.

    Args:
        console: A `rich.console.Console`.
        headings: One for each column; a heading may have two lines.
        rows: As many texts each.
        left: Number of columns that are flush left; the others are flush right.
        styles: Of rows, by their number.
        max_widths: Of columns that may be wrapped, by their number.
    """
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for number, heading in enumerate(headings):
        width = (max_widths or {}).get(number)
        table.add_column(heading, justify="left" if number < left else "right", no_wrap=width is None, max_width=width)
    for number, row in enumerate(rows):
        table.add_row(*map(escape, row), style=(styles or {}).get(number, ""))
    print_whole(console, table)


def markdown_table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; lines of a heading are joined by a space."""
    headings = [heading.replace("\n", " ") for heading in headings]
    return "".join("| " + " | ".join(row) + " |\n" for row in (headings, ["---"] * len(headings), *rows))
