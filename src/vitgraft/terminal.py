"""Where commands write: lines and tables in the terminal, files, Markdown, and a progress bar."""

import json
import re
import sys
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vitgraft.atomic import atomic_write
from vitgraft.errors import MissingExtraError

# Controls, formats such as the direction of writing, halves of characters, separators of lines and paragraphs
UNPRINTABLE = ("Cc", "Cf", "Cs", "Zl", "Zp")
KEPT = "\n\u200c\u200d"  # lines of our own texts; joiners inside words and emoji
_NOUNS = ("annotation", "error", "file", "image", "line", "name", "object", "row", "value", "warning")
_SINGULAR = {**{f"{noun}s": noun for noun in _NOUNS}, "classes": "class", "categories": "category"}
_SINGULAR_VERBS = {"are": "is", "fill": "fills", "have": "has", "hold": "holds", "lack": "lacks"}
FORMULA = re.compile(r"'*[=+\-@\t\r]")


def printable(text: str) -> str:
    """A text without what a terminal, a page or a reader would obey or hide: such characters are written as \\x1b.

    Names of files and classes come from elsewhere, and may hold escape sequences, or bytes that are not UTF-8.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        one.encode("unicode_escape").decode() if unicodedata.category(one) in UNPRINTABLE and one not in KEPT else one
        for one in text
    )


def number_of(number: int, words: str) -> str:
    """A number and what is counted, in the singular where it is one: "1 class has no object".

    Args:
        number: How many.
        words: In the plural; the first noun and the first verb are changed, but in "of 8 files".
    """
    start, colon, rest = words.partition(":")
    if number == 1 and not words.startswith("of "):
        for forms in (_SINGULAR, _SINGULAR_VERBS):
            start = re.sub(rf"\b({'|'.join(forms)})\b", lambda found, forms=forms: forms[found[0]], start, count=1)
    return f"{number} {start}{colon}{rest}"


def csv_cell(value: Any) -> Any:
    """A value for a CSV file. Spreadsheets compute text that begins like a formula: `'` before it makes it text.

    Text that begins so after `'` gets one too: taking one off gives back what it was.
    """
    return f"'{value}" if isinstance(value, str) and FORMULA.match(value) else value


def console(**options):
    """A rich console; `options` are those of `rich.console.Console`.

    Raises:
        MissingExtraError: rich is not installed.
    """
    try:
        from rich.console import Console
    except ImportError as error:
        raise MissingExtraError("rich", "report") from error
    return Console(**options)


def print_whole(out, table) -> None:
    """Prints a rich table or tree on a console without cutting or squeezing it: a narrower terminal wraps its lines."""
    from rich.measure import Measurement

    width = out.width
    out.width = max(width, Measurement.get(out, out.options.update(max_width=1000), table).maximum)
    out.print(table)
    out.width = width


def print_table(
    out,
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    left: Collection[int] = (0,),
    styles: Mapping[int, str] | None = None,
    max_widths: Mapping[int, int] | None = None,
    title: str | None = None,
) -> None:
    """Prints rows of texts through rich.

    Args:
        out: A `rich.console.Console`.
        headings: One for each column; a heading may have two lines.
        rows: As many texts each.
        left: Numbers of the columns that are flush left; the others are flush right.
        styles: Of rows, by their number.
        max_widths: Of columns that may be wrapped, by their number.
        title: A line above.
    """
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    title = escape(printable(title)) if title else None
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for number, heading in enumerate(headings):
        width = (max_widths or {}).get(number)
        justify = "left" if number in left else "right"
        table.add_column(heading, justify=justify, no_wrap=width is None, max_width=width)
    for number, row in enumerate(rows):
        table.add_row(*(escape(printable(text)) for text in row), style=(styles or {}).get(number, ""))
    print_whole(out, table)


def markdown_table(headings: Iterable[str], rows: Iterable[Iterable[str]], left: Collection[int] | None = None) -> str:
    """A Markdown table; lines of a heading are joined by a space.

    Args:
        headings: One for each column.
        rows: As many texts each.
        left: Numbers of the columns that are flush left; None: all.
    """
    headings = [heading.replace("\n", " ") for heading in headings]
    rules = ["---" if left is None or number in left else "---:" for number in range(len(headings))]
    cells = [[markdown_text(text).replace("|", "\\|") for text in row] for row in rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in (headings, rules, *cells))


def markdown_text(text: str) -> str:
    """A text for Markdown: `printable`, in which `<` begins no tag of HTML."""
    return re.sub(r"<(?=[A-Za-z!/?])", "&lt;", printable(text))


class Progress:
    """A progress bar on stderr: `with Progress(total) as step: step("what happens now")`.

    None is shown without rich, or where stderr is no terminal.
    """

    def __init__(self, total: int):
        self.total = total
        self.bar = None

    def __enter__(self) -> Callable[[str], None]:
        if not sys.stderr.isatty():
            return lambda text: None
        try:
            from rich import progress
        except ImportError:
            return lambda text: None
        times = (progress.TimeElapsedColumn(), progress.TextColumn("left"), progress.TimeRemainingColumn())
        columns = (progress.BarColumn(20), progress.MofNCompleteColumn(), *times)
        self.bar = progress.Progress(
            *columns, progress.TextColumn("{task.description}"), console=console(stderr=True), transient=True
        )
        self.bar.start()
        task = self.bar.add_task("", total=self.total)
        started = False

        def step(text: str) -> None:
            nonlocal started
            # called at the start of each piece of work: what is done is the one before
            self.bar.update(task, advance=1 if started else 0, description=printable(text).replace("[", "\\["))
            started = True

        return step

    def __exit__(self, *_) -> None:
        if self.bar is not None:
            self.bar.stop()


def short_name(name: str, longest: int | None = None) -> str:
    """The first of the synonyms that a class name of ImageNet or ADE20K lists, cut to `longest` characters."""
    name = name.split(",")[0].strip() or name
    return name if longest is None or len(name) <= longest else name[: longest - 1] + "…"


def write(path: Path | None, text: str) -> None:
    """Writes a text to a file, which is whole or as it was before, or to stdout."""
    if path is None:
        sys.stdout.write(text)
    elif path.exists() and not path.is_file():  # a device or a pipe, which can't be replaced
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    else:
        with atomic_write(path) as file:
            file.write(text)


def write_json(path: Path | None, values: Any) -> None:
    """Writes values as JSON to a file, or to stdout."""
    write(path, json.dumps(values, indent=1) + "\n")


def warn(text: str) -> None:
    """Prints "warning: text" to stderr, from every process that calls it."""
    print(printable(f"warning: {text}"), file=sys.stderr, flush=True)


def note(text: str) -> None:
    """Prints the text to stdout, from every process that calls it."""
    print(printable(text), flush=True)
