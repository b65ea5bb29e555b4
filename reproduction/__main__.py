"""`python -m reproduction`: the paper's tables and figures, records of runs, the page of the zoo, and the study."""

import sys
from collections.abc import Sequence

from reproduction.commands import COMMANDS
from vitgraft.commands.common import MODEL_HELP, make_parser, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 0 done, 2 an invalid request.

    Args:
        argv: The arguments after the program's name; by default those of this process.
    """
    text = f"The paper's tables and figures beside what is counted and measured here.\n\n{MODEL_HELP}"
    parser, commands = make_parser("python -m reproduction", text)
    for add in COMMANDS:
        add(commands)
    return run_command(parser, argv)


if __name__ == "__main__":
    sys.exit(main())
