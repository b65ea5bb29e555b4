"""`python -m reproduction tables|figures|results`: the paper's tables and figures, and finished runs side by side."""

import argparse
import sys
from collections.abc import Sequence

from reproduction.commands import add_commands
from vitgraft.commands.common import MODEL_HELP
from vitgraft.errors import VitgraftError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 0 done, 2 a wrong request.

    Args:
        argv: the words after the program's name; by default those of this process.
    """
    parser = argparse.ArgumentParser(
        prog="python -m reproduction",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=f"The paper's tables and figures beside what is counted and measured here.\n\n{MODEL_HELP}",
        epilog="python -m reproduction COMMAND --help says more and shows examples.",
    )
    add_commands(parser.add_subparsers(dest="command", metavar="COMMAND", title="commands"))
    args = parser.parse_args(argv)
    if not hasattr(args, "run"):
        parser.print_help()
        return 2
    try:
        return args.run(args) or 0
    except VitgraftError as error:
        print(f"python -m reproduction {args.command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
