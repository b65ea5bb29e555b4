"""What the sub-commands share."""

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path

from vitgraft.errors import CommandError
from vitgraft.terminal import show, write

FORMATS = ("terminal", "markdown", "json")

MODEL_HELP = """\
A MODEL is a name that timm knows, grafted or not, with options behind colons:
  graft_swin_tiny_patch4_window7_224                 the paper's model
  graft_deit_tiny_patch16_224:graft.levels=1         a graft option (a field of GraftConfig)
  graft_deit_tiny_patch16_224:graft.blocks=[4,8]     values are JSON, other text is text
  deit_tiny_patch16_224:drop_path_rate=0.1           any option of timm.create_model
"""


def add_command(commands, name: str, run: Callable, summary: str, text: str, examples: Iterable[str]):
    shown = "\n".join(f"  {example}" for example in examples)
    parser = commands.add_parser(
        name,
        help=summary,
        description=text,
        epilog=f"examples:\n{shown}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=FORMATS, help="default: by the ending of FILE, else terminal")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write to FILE (.md, .json, .txt), not the terminal"
    )


def print_as(args: argparse.Namespace, terminal: Callable, markdown: Callable, values: Callable) -> None:
    """Writes what a command found in the asked format, to the terminal or to the file."""
    suffixes = {".md": "markdown", ".json": "json"}
    chosen = args.format or (suffixes.get(args.output.suffix, "terminal") if args.output else "terminal")
    if chosen == "terminal":
        show(args.output, terminal)
    elif chosen == "markdown":
        write(args.output, markdown())
    else:
        write(args.output, json.dumps(values(), indent=1) + "\n")


def check_output(path: Path | None) -> None:
    """Before any work is done: a file can be written there."""
    if path is not None and not path.parent.is_dir():
        raise CommandError(f"{path}: the folder {path.parent} does not exist")
    if path is not None and path.is_dir():
        raise CommandError(f"{path} is a folder; name a file in it")


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: at least 1")
    return value
