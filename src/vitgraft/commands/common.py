"""What the sub-commands have in common."""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from vitgraft.atomic import check_writable, disk_error, path_error
from vitgraft.errors import CommandError, TrainingError, VitgraftError
from vitgraft.terminal import console, printable, write, write_json

FORMATS = ("terminal", "markdown", "json")
REPORTS = (".md", ".json", ".txt")  # endings of the files that `print_as` writes

MODEL_HELP = """\
A MODEL is a name that timm knows, grafted or not, with options behind colons:
  graft_swin_tiny_patch4_window7_224                 the paper's model
  graft_deit_tiny_patch16_224:graft.levels=1         a graft option (a field of GraftConfig)
  graft_deit_tiny_patch16_224:graft.blocks=[4,8]     values are JSON, other text is text
  deit_tiny_patch16_224:drop_path_rate=0.1           any option of timm.create_model
"""


def make_parser(prog: str, text: str):
    """The parser of a program, and its sub-commands, to which `add_command` adds."""
    parser = argparse.ArgumentParser(
        prog=prog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=text,
        epilog=f"{prog} COMMAND --help shows more, and examples.",
    )
    return parser, parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")


def run_command(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    """Runs the sub-command that the arguments name; returns its exit code, 2 for an invalid request."""
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        from vitgraft.options import close, closest

        own = parser if args.command is None else args.parser
        misspelt, options = unknown[0].partition("=")[0], own._option_string_actions
        hint = f"; {close(misspelt, [*options])}" if closest(misspelt, [*options], 1) else ""
        own.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    if args.command is None:
        parser.print_help()
        return 2
    try:
        return args.run(args) or 0
    except VitgraftError as error:
        print(printable(f"{parser.prog} {args.command}: error: {error}"), file=sys.stderr)
        return 1 if isinstance(error, TrainingError) else 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        from vitgraft.data.loader import worker_failure

        if unusable := path_error(error):
            print(printable(f"{parser.prog} {args.command}: error: {unusable}"), file=sys.stderr)
            return 2
        refused = disk_error(error)
        reason = f"could not write: {refused}" if refused else worker_failure(error)
        if reason is None:
            raise
        print(f"{parser.prog} {args.command}: stopped: {reason}", file=sys.stderr)
        return 1


def add_command(commands, name: str, run: Callable, summary: str, text: str, examples: Iterable[str]):
    """Adds a sub-command and returns its parser; `run` takes the parsed arguments and returns an exit code."""
    shown = "\n".join(f"  {example}" for example in examples)
    parser = commands.add_parser(
        name,
        help=summary,
        description=text,
        epilog=f"examples:\n{shown}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run, parser=parser)
    return parser


def add_format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=FORMATS, help="default: by the ending of FILE, else terminal")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write to FILE (.md, .json, .txt), not the terminal"
    )


def add_trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust",
        action="store_true",
        help="the checkpoint may name classes that are not vitgraft's (default: an error, since that is code)",
    )


def print_as(args: argparse.Namespace, terminal: Callable, markdown: Callable, values: Callable) -> None:
    """Writes the results of a command in the format that is set, to the terminal or to the file."""
    suffixes = {".md": "markdown", ".json": "json"}
    chosen = args.format or (suffixes.get(args.output.suffix, "terminal") if args.output else "terminal")
    if chosen == "terminal" and args.output:
        with args.output.open("w", encoding="utf-8", errors="backslashreplace") as file:
            terminal(console(file=file, width=120))
    elif chosen == "terminal":
        terminal(console())
    elif chosen == "markdown":
        write(args.output, markdown())
    else:
        write_json(args.output, values())


def check_output(path: Path | None, suffixes: Sequence[str] = ()) -> None:
    """Refuses a file that can't be written, before any work is done.

    Args:
        path: The file; None checks nothing.
        suffixes: What its name may end in; empty is anything.

    Raises:
        CommandError: Its folder does not exist, it is a folder, or its name has another ending.
        RunFolderError: Its folder can't be written.
    """
    if path is not None and not path.parent.is_dir():
        raise CommandError(f"{path}: the folder {path.parent} does not exist")
    if path is not None and path.is_dir():
        raise CommandError(f"{path} is a folder; name a file in it")
    if path is not None and suffixes and path.suffix not in suffixes:
        raise CommandError(f"{path}: the name must end in {' or '.join(suffixes)}")
    if path is not None and (path.is_file() or not path.exists()):
        check_writable(path.parent)


def check_report(args: argparse.Namespace) -> None:
    """`check_output` of the options that `add_format` adds."""
    check_output(args.output, () if args.format else REPORTS)


def check_new_folder(path: Path) -> None:
    """Refuses a folder that holds something, or can't be made, before any work is done.

    Raises:
        CommandError: It is a file, or not empty, or the folder that it would be in does not exist.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise CommandError(f"{path} is there already, and not empty: name a new folder")
    if not path.absolute().parent.is_dir():
        raise CommandError(f"{path}: the folder {path.parent} does not exist")


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return value
