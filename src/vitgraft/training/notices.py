"""Lines that a run says to its user, plain, without the source line that `warnings.warn` adds."""

import sys

__all__ = ["note", "warn"]


def warn(text: str) -> None:
    """Prints "warning: text" to stderr, from every process that calls it."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def note(text: str) -> None:
    """Prints the text to stdout, from every process that calls it."""
    print(text, flush=True)
