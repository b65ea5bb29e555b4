"""Files that are written whole or not at all."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "w", unique: bool = False, **options: Any) -> Iterator[IO]:
    """`with atomic_write(path) as file`: the file is at `path` when the block is done, or what was there before.

    Args:
        path: File to write, in a folder that exists.
        mode: "w" or "wb".
        unique: Other processes may write the same file at the same time, and the last one wins. Without it, what a
            killed process leaves behind is overwritten by the next one.
        **options: Of `open`; text is UTF-8 by default.
    """
    path = Path(path)
    new = path.with_name(f".{path.name}.{uuid.uuid4().hex}.new" if unique else f".{path.name}.new")
    if "b" not in mode:
        options.setdefault("encoding", "utf-8")
    try:
        with open(new, mode, **options) as file:
            yield file
            flush(file)
        os.replace(new, path)
    except BaseException:
        with contextlib.suppress(OSError):
            new.unlink()
        raise
    with contextlib.suppress(OSError):  # makes the renaming survive a power cut, where the system can open folders
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def flush(file: IO) -> None:
    """Writes to the disk what is buffered."""
    file.flush()
    os.fsync(file.fileno())
