"""Files of checkpoints: written whole or not at all, checked before they are read, and never able to run code.

A file is what `torch.save` writes, a zip archive, with the SHA-256 of all that precedes in the archive's comment. So it
stays one file that can be copied and renamed, and `torch.load` and every zip tool read it. A file is replaced by
renaming a complete one, and the one that it replaces is kept beside it as NAME-previous.
"""

import contextlib
import errno
import hashlib
import os
import pickle
import pickletools
import re
import shutil
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import torch

from vitgraft.errors import CheckpointError, TrainingError
from vitgraft.terminal import warn

__all__ = [
    "EMA_KEY",
    "DamagedCheckpointError",
    "MissingCheckpointError",
    "check",
    "copy",
    "located",
    "previous",
    "read",
    "read_hyper_parameters",
    "read_or_previous",
    "start_file",
    "write",
]

EMA_KEY = "state_dict_ema"
"""Of the averaged weights in a checkpoint, beside `state_dict`."""
OF_RUN = ("best.ckpt", "last.ckpt")  # of a run's folder, which is taken where it is given
MARK = b"vitgraft sha256 "
COMMENT = len(MARK) + 64
END = struct.pack("<H", COMMENT)  # the archive's last field before the comment: its length
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DamagedCheckpointError(CheckpointError):
    """The file is not what was written: empty, cut short or changed."""


class MissingCheckpointError(CheckpointError, FileNotFoundError):
    """There is no such file."""


def previous(path: str | Path) -> Path:
    """Where the file is kept that `path` replaced: last.ckpt -> last-previous.ckpt."""
    path = Path(path)
    return path.with_name(f"{path.stem}-previous{path.suffix}")


def located(path: str | Path) -> Path:
    """The file itself, or of a run's folder its best.ckpt, else last.ckpt, else its newest checkpoint.

    Raises:
        MissingCheckpointError: nothing there; of a folder of runs the message names some.
    """
    path = Path(path)
    if not path.is_dir():
        if not path.exists():
            raise MissingCheckpointError(f"{path}: no such file or folder")
        return path
    for name in OF_RUN:
        if (path / name).is_file():
            return path / name
    if others := sorted(path.glob("*.ckpt"), key=lambda file: file.stat().st_mtime):
        return others[-1]
    message = f"{path}: neither a run (no {' or '.join(OF_RUN)}) nor an exported model (no config.json)"
    if below := sorted({str(file.parent) for file in path.rglob("*.ckpt")}):
        message += f"; there are checkpoints in {', '.join(below[:5])}{', ...' if len(below) > 5 else ''}: name one"
    raise MissingCheckpointError(message)


def write(content: Any, path: str | Path) -> None:
    """Saves by `torch.save`; afterwards the file is there complete, or as it was before.

    Raises:
        TrainingError: No space, or the folder can't be written. What was there before is untouched.
    """

    def fill(file: IO[bytes]) -> None:
        stream = _Hashing(file)
        torch.save(content, stream)
        stream.close_archive()

    _replace(Path(path), fill)


def copy(source: str | Path, path: str | Path) -> None:
    """As `write`, with the bytes of another file (its own: later damage to one leaves the other sound)."""

    def fill(file: IO[bytes]) -> None:
        with open(source, "rb") as original:
            shutil.copyfileobj(original, file, 1 << 22)

    _replace(Path(path), fill)


def check(path: str | Path) -> None:
    """Compares the file with its checksum; one of other programs, which has none, with those of its zip archive.

    Raises:
        DamagedCheckpointError: It is empty, cut short or changed.
        FileNotFoundError: No such file.
    """
    path = Path(path)
    size = path.stat().st_size
    if size == 0:
        raise DamagedCheckpointError(f"{path} is empty")
    with open(path, "rb") as file:
        is_zip = file.read(2) == b"PK"
        file.seek(max(0, size - COMMENT - 2))
        tail = file.read()
        if tail.startswith(END + MARK):
            file.seek(0)
            if _digest(file, size - COMMENT - 2).encode() != tail[len(END + MARK) :]:
                raise DamagedCheckpointError(f"{path} is damaged: its contents do not have its checksum")
            return
    if not is_zip:
        return  # a file of PyTorch before 1.6, or no checkpoint at all: torch.load will tell
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
            # zipfile puts up with a comment that is cut short; and one as long as ours that is not ours was changed
            cut = len(archive.comment) == COMMENT or not _ends_with_comment(path, archive.comment)
    except (zipfile.BadZipFile, OSError, ValueError, EOFError) as error:
        raise DamagedCheckpointError(f"{path} is cut short ({size} bytes are left) or damaged: {error}") from error
    if cut:
        raise DamagedCheckpointError(f"{path} is cut short or damaged at its end")
    if broken:
        raise DamagedCheckpointError(f"{path} is damaged: {broken} does not have its checksum")


def read(path: str | Path, map_location: Any = "cpu") -> Any:
    """What a checkpoint holds, checked, and read as tensors and plain values alone (weights_only=True).

    Raises:
        DamagedCheckpointError: It is empty, cut short or changed.
        CheckpointError: It holds objects whose loading could run code, or is no checkpoint.
        MissingCheckpointError: No such file.
    """
    if not Path(path).is_file():
        raise MissingCheckpointError(f"no checkpoint at {path}")
    check(path)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # what can't be read is an error anyway
            return torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"(?:GLOBAL|global) ([\w.]+)", str(error))
        name = named[1] if named else _foreign_object(Path(path))
        if name:
            raise CheckpointError(
                f"{path} is refused: it holds {name}, and loading that could run code. Checkpoints of vitgraft "
                "hold tensors and plain values only"
            ) from error
        # not the error's own words: they advise weights_only=False
        raise DamagedCheckpointError(
            f"{path} is not a checkpoint, or damaged: it can't be read as tensors and plain values"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError) as error:
        raise DamagedCheckpointError(f"{path} is not a checkpoint, or damaged: {_first_line(error)}") from error


def read_or_previous(
    path: str | Path, map_location: Any = "cpu", tell: Callable[[str], None] = warn
) -> tuple[Any, Path]:
    """`read`, or if that file is damaged or missing the one that it replaced; and which of the two was read.

    Args:
        tell: Called with a message where it is the one before.

    Raises:
        CheckpointError: Neither is there or can be read, or the first one was refused.
    """
    before = previous(path)
    try:
        return read(path, map_location), Path(path)
    except (DamagedCheckpointError, MissingCheckpointError) as error:
        if not before.is_file():
            if way_out := _way_out(Path(path)):
                raise type(error)(f"{error}{way_out}") from error
            raise
        try:
            content = read(before, map_location)
        except CheckpointError as second:
            raise CheckpointError(
                f"{error}; and the one before it can't be used either: {second}{_way_out(Path(path))}"
            ) from error
        tell(f"{error}. Using the one before it: {before}{_where(content)}")
        return content, before


def read_hyper_parameters(path: str | Path) -> tuple[str, dict[str, Any]]:
    """Class path of the task and the options that rebuild it, without its start weights, which the checkpoint replaces.

    Raises:
        CheckpointError: Damaged, refused, or not of a vitgraft run.
        FileNotFoundError: No such file.
    """
    checkpoint, path = read_or_previous(path)
    if not isinstance(checkpoint, dict) or not {"task", "hyper_parameters"} <= checkpoint.keys():
        raise CheckpointError(f"{path}: no checkpoint of a vitgraft run: it names no task and no hyper-parameters")
    options = {**checkpoint["hyper_parameters"], "pretrained": False, "checkpoint_path": None}
    return checkpoint["task"], options


def start_file(path: str | Path) -> Path:
    """The file of start weights; of a run's folder, its best.ckpt, else last.ckpt.

    Raises:
        CheckpointError: nothing there.
    """
    try:
        return located(path)
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint_path={error}") from error


def is_sound(path: str | Path) -> bool:
    """Whether the file is there and passes `check`."""
    try:
        check(path)
    except (CheckpointError, OSError):
        return False
    return True


def _way_out(path: Path) -> str:
    """What else of the run can be used where `path` can't, to be added to a message; "" where nothing can."""
    other = path.with_name({"last": "best", "best": "last"}.get(path.stem, path.stem) + path.suffix)
    sound = next((one for one in (other, previous(other)) if other != path and is_sound(one)), None)
    if sound is None:
        return ""
    if path.stem == "best":
        return f". {sound} is sound: give that file instead"
    return (
        f". {sound} is sound: a new run can start from its weights, by --model.checkpoint_path {sound} and another "
        "--out; validate, predict and export can use it as it is"
    )


def _foreign_object(path: Path) -> str | None:
    """The first class or function that a pickle names and that is not of PyTorch's own files, without loading it."""
    with contextlib.suppress(Exception):  # not a pickle, from here on
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
                with archive.open(name) as file:
                    return next(_foreign_objects(file), None)
        with open(path, "rb") as file:
            return next(_foreign_objects(file), None)
    return None


def _foreign_objects(file: IO[bytes]) -> Iterator[str]:
    """Of the pickles that follow each other in the file: PyTorch's files before 1.6 have several."""
    while True:
        strings: list[str] = []
        for operation, argument, _ in pickletools.genops(file):
            if operation.name in ("GLOBAL", "INST"):
                name = ".".join(argument.split(" "))
            elif operation.name == "STACK_GLOBAL" and len(strings) > 1:
                name = ".".join(strings[-2:])
            else:
                strings = [*strings[-1:], argument] if isinstance(argument, str) else strings
                continue
            if not name.startswith(("torch.", "collections.OrderedDict")):
                yield name


class _Hashing:
    """A file for `torch.save` to write to. The last two bytes stay out of the digest: they are the length of the
    archive's comment, which changes when the comment is added."""

    def __init__(self, file: IO[bytes]):
        self.file, self.hash, self.kept = file, hashlib.sha256(), b""

    def write(self, data: Any) -> int:
        data = memoryview(data).cast("B")
        self.file.write(data)
        if len(data) >= 2:
            self.hash.update(self.kept)
            self.hash.update(data[:-2])
            self.kept = bytes(data[-2:])
        else:
            joined = self.kept + bytes(data)
            self.hash.update(joined[:-2])
            self.kept = joined[-2:]
        return len(data)

    def flush(self) -> None:
        self.file.flush()

    def close_archive(self) -> None:
        if self.kept != b"\0\0":
            raise TrainingError("torch.save wrote an archive with a comment; this version of PyTorch is not supported")
        self.file.seek(-2, os.SEEK_END)
        self.file.write(END + MARK + self.hash.hexdigest().encode())


def _digest(file: IO[bytes], size: int) -> str:
    found = hashlib.sha256()
    while size > 0:
        chunk = file.read(min(size, 1 << 22))
        if not chunk:
            break
        found.update(chunk)
        size -= len(chunk)
    return found.hexdigest()


def _ends_with_comment(path: Path, comment: bytes) -> bool:
    """Whether the archive's end says how long its comment is, and it is that long."""
    with open(path, "rb") as file:
        file.seek(-len(comment) - 2, os.SEEK_END)
        return file.read(2) == struct.pack("<H", len(comment))


def _replace(path: Path, fill: Callable[[IO[bytes]], None]) -> None:
    """Writes beside `path`, keeps what is at `path` as the previous one, and puts the new file there by renaming."""
    new = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(new, "wb") as file:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
            if is_sound(path):  # a damaged file must not push out the sound one before it
                _keep(path)
            os.replace(new, path)
        except BaseException:
            with contextlib.suppress(OSError):
                new.unlink()
            raise
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        # torch.save turns errors of the file into its own RuntimeError and leaves the cause in the context
        cause = _os_error(error)
        if cause is None:
            raise
        reason = "no space is left" if cause.errno in FULL else (cause.strerror or str(cause))
        kept = f"{path} is still the checkpoint saved before" if is_sound(path) else "no checkpoint was written"
        raise TrainingError(
            f"could not save {path}: {reason}; {kept}. Make room or writable, then continue the run with --resume"
        ) from error


def _keep(path: Path) -> None:
    """`path` stays where it is and is also the previous one, at every moment."""
    link = path.with_name(f".{path.name}.kept")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:  # a file system without hard links
        os.replace(path, previous(path))
    else:
        os.replace(link, previous(path))


def _sync_folder(folder: Path) -> None:
    """Makes renames survive a power cut, where the system can open folders."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _os_error(error: BaseException | None) -> OSError | None:
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def _where(content: Any) -> str:
    if isinstance(content, dict) and "global_step" in content:
        return f" (epoch {content.get('epoch')}, step {content['global_step']})"
    return ""
