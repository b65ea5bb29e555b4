"""Where commands write: the terminal through rich or as plain lines, files, and a progress bar."""

import sys
from collections.abc import Callable
from pathlib import Path

from vitgraft.errors import MissingExtraError


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
            # told at the start of each piece of work, so that the one before is what is done
            self.bar.update(task, advance=1 if started else 0, description=text.replace("[", "\\["))
            started = True

        return step

    def __exit__(self, *_) -> None:
        if self.bar is not None:
            self.bar.stop()


def show(path: Path | None, printer: Callable, width: int = 120) -> None:
    """Calls `printer(console)` for the terminal, or for a text file of lines of `width`."""
    if path is None:
        printer(console())
        return
    with path.open("w", encoding="utf-8") as file:
        printer(console(file=file, width=width))


def write(path: Path | None, text: str) -> None:
    """Writes a text to a file, or to stdout."""
    if path is None:
        sys.stdout.write(text)
    else:
        path.write_text(text, encoding="utf-8")


def warn(text: str) -> None:
    """Prints "warning: text" to stderr, from every process that calls it."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def note(text: str) -> None:
    """Prints the text to stdout, from every process that calls it."""
    print(text, flush=True)
