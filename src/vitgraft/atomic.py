"""Files that are written whole or not at all, and errors of the disk that they are on."""

import contextlib
import errno
import os
import re
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from vitgraft.errors import RunFolderError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNUSABLE = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "w", unique: bool = False, **options: Any) -> Iterator[IO]:
    """`with atomic_write(path) as file`: the file is at `path` when the block is done, or what was there before.

    Args:
        path: File to write, in a folder that exists.
        mode: "w" or "wb".
        unique: Other processes may write the same file at the same time, and the last one wins. Without it, what a
            killed process leaves behind is overwritten by the next one.
        **options: Of `open`; text is UTF-8 by default, with what UTF-8 can't hold (file names of other encodings) as
            `\\udc..`, which is also JSON's escape.
    """
    path = Path(path)
    new = path.with_name(f".{path.name}.{uuid.uuid4().hex}.new" if unique else f".{path.name}.new")
    if "b" not in mode:
        options = {"encoding": "utf-8", "errors": "backslashreplace", **options}
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


def check_writable(folder: str | Path) -> None:
    """Makes the folder where it is missing and tries it by writing a file.

    Raises:
        RunFolderError: It can't be made or written.
    """
    if file := next((one for one in (Path(folder), *Path(folder).parents) if one.exists() and not one.is_dir()), None):
        raise RunFolderError(f"output folder {folder}: can't be written, {file} is no folder; name another")
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        raise RunFolderError(f"output folder {folder}: can't be written ({error.strerror or error})") from error


def disk_error(error: BaseException) -> str | None:
    """What the disk refused, where an error is of a full, read-only or broken one; None for other errors.

    Libraries wrap what the system reports: PyTorch's is in the context, that of safetensors in the text.
    """
    cause: BaseException | None = error
    while cause is not None:
        found = re.search(r"\(os error (\d+)\)", str(cause))
        number = cause.errno if isinstance(cause, OSError) else int(found[1]) if found else None
        if number in (*FULL, errno.EROFS, errno.EIO):
            name = getattr(cause, "filename", None)
            return f"{f'{name}: ' if name else ''}{os.strerror(number)}"
        cause = cause.__cause__ or cause.__context__
    return None


def path_error(error: BaseException) -> str | None:
    """Which path cannot be used and why, where an error is of its permissions, length or kind; None for others."""
    if isinstance(error, OSError) and error.errno in UNUSABLE and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {os.strerror(error.errno)}"
    return None
