"""The command `vitgraft`. Each sub-command's `--help` shows what it does and examples that work as they stand.

PyTorch and everything above it is imported when a sub-command runs, not to print a help text.
"""

import argparse
import sys
from collections.abc import Sequence

from vitgraft._version import __version__
from vitgraft.commands import models, runs
from vitgraft.commands.common import MODEL_HELP, make_parser, run_command
from vitgraft.errors import MissingExtraError

# Commands that read a recipe; Lightning's command line takes all that follows them
RUNS = {
    "fit": "train a model from a recipe",
    "validate": "evaluate a checkpoint on the validation set",
    "test": "evaluate a checkpoint on the test set",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 0 done, 1 a check failed, 2 an invalid request.

    Args:
        argv: The arguments after the command's name; by default those of this process.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name that the terminal's encoding lacks must not end a run
            stream.reconfigure(errors="backslashreplace")
    if argv and argv[0] in RUNS:
        return _training(argv)
    return run_command(_parser(), argv)


def _parser() -> argparse.ArgumentParser:
    parser, commands = make_parser(
        "vitgraft",
        "Grafting Vision Transformers: train and evaluate grafted models, see what they cost and how fast\n"
        f"they are, and take them elsewhere.\n\n{MODEL_HELP}",
    )
    parser.add_argument("-V", "--version", action="version", version=f"vitgraft {__version__}")
    for name, summary in RUNS.items():
        commands.add_parser(name, help=summary, add_help=False)
    for add in (*runs.COMMANDS, *models.COMMANDS):
        add(commands)
    return parser


def _training(argv: list[str]) -> int:
    """fit, validate, test: their help needs no Lightning."""
    from vitgraft.training.help import asked, show_help

    if asked(argv):
        return show_help(argv)
    try:
        from vitgraft.training.lightning_cli import main
    except MissingExtraError as error:
        print(f"vitgraft {argv[0]}: error: {error}", file=sys.stderr)
        return 2
    return main(argv)
