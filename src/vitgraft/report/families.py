"""`vitgraft families` for the terminal; the survey itself is in `vitgraft.models.families`."""

from collections.abc import Sequence

from vitgraft.models.families import FamilyResult
from vitgraft.report.terminal import print_whole


def print_terminal(results: Sequence[FamilyResult], console) -> None:
    """One line per family: how many blocks carry a graft, or why none does."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("library")
    table.add_column("file")
    table.add_column("tried with")
    table.add_column("grafts", justify="right")
    table.add_column("result", max_width=60)
    for result in results:
        outcome = "grafted" if result.ok else f"no: {result.reason}"
        count = f"{result.grafts} of {result.blocks}" if result.ok else "-"
        row = (result.library, result.family, result.model, count, escape(outcome))
        table.add_row(*row, style="" if result.ok else "dim")
    print_whole(console, table)
    grafted = sum(result.ok for result in results)
    console.print(f"{grafted} of {len(results)} families grafted", highlight=False)
