"""Files of checkpoints: found by what a user gives, written whole or not at all, checked and read without running code.

A checkpoint is what `torch.save` writes: a zip archive with a CRC of each tensor, which `torch.load` alone does not
compare. The file that a new one replaces is kept beside it as NAME-previous.

`read_checkpoint` reads files of weights everywhere, official and initial ones too. It looks for all damage that
shows in the file (`check_file`) and in the weights (`_check_values`). safetensors have no checksum: a changed bit of a
weight that stays finite can't be noticed there.
"""

import argparse
import contextlib
import json
import os
import pickle
import re
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NoReturn

import torch
from safetensors.torch import load_file

from vitgraft.atomic import FULL, atomic_write, flush
from vitgraft.errors import CheckpointError, TrainingError
from vitgraft.terminal import warn
from vitgraft.untrusted import check_class_paths, not_the_file

__all__ = [
    "EMA_KEY",
    "Checkpoint",
    "DamagedCheckpointError",
    "MissingCheckpointError",
    "check_file",
    "check_trusted",
    "copy",
    "is_intact",
    "previous",
    "read_checkpoint",
    "read_or_previous",
    "read_run",
    "resolve_checkpoint",
    "write",
]

EMA_KEY = "state_dict_ema"
"""Of the averaged weights in a checkpoint, beside `state_dict`."""
HUB_PREFIX = "local-dir:"
RUN_FILES = ("best.ckpt", "last.ckpt")
# endings of models without weights that could be loaded here
FOR_OTHERS = {
    ".onnx": "onnxruntime",
    ".pt2": "torch.export.load",
    ".engine": "TensorRT",
    ".tflite": "TensorFlow Lite",
    ".h5": "Keras",
    ".keras": "Keras",
    ".pdparams": "PaddlePaddle",
}
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".npz")
# Of masks, which hold -inf by design
MASK = re.compile(r"(^|[._])att[e]?n?_?mask\w*$|(^|[._])mask$")
# no format of weights begins so: pickles, zips and lengths of headers have bytes that are no letters
TEXT = re.compile(rb"[\t\r\n -~]{16}")
AGAIN = "copy or download it again"
LARGEST_HEADER = 100_000_000  # bytes: the limit of the safetensors library


class DamagedCheckpointError(CheckpointError):
    """The file is not what was written: empty, cut short or changed."""


class MissingCheckpointError(CheckpointError, FileNotFoundError):
    """There is no such file."""


@dataclass(frozen=True)
class Checkpoint:
    """What a path given by a user means.

    Attributes:
        path: The file; the folder of an exported model; the text itself of a model's name.
        kind: "run" (a checkpoint of a run), "weights" (a file of weights alone, by its suffix), "export" (a folder in
            timm's hub format) or "name" (no path: the name of a model).
        run: Folder of the run, None for other kinds.
    """

    path: Path
    kind: Literal["run", "weights", "export", "name"]
    run: Path | None = None


def resolve_checkpoint(given: str | Path, option: str = "", names: bool = False) -> Checkpoint:
    """The checkpoint that a path means.

    Of a run's folder that is its best.ckpt, else last.ckpt, else its newest checkpoint. A file that is missing counts
    as there while the one that it replaced is.

    Args:
        given: A run's folder, a checkpoint, a file of weights, or an exported model (`local-dir:` is optional).
        option: Name of the option it was given to, for error messages.
        names: Whether models' names are allowed; they are what cannot be a path.

    Raises:
        MissingCheckpointError: Nothing there; for a folder of runs the message names some.
    """
    text = str(given)
    path = Path(text.removeprefix(HUB_PREFIX))
    named = f"{option}={text}" if option else text
    if (path / "config.json").is_file():
        return Checkpoint(path, "export")
    if path.is_dir():
        return Checkpoint(_of_run_folder(path, named), "run", path)
    if path.is_file() or previous(path).is_file():
        weights = path.suffix in WEIGHT_SUFFIXES
        return Checkpoint(path, "weights" if weights else "run", None if weights else path.parent)
    is_path = path.suffix == ".ckpt" or (path.parent.is_dir() and len(path.parts) > 1)
    if names and not text.startswith(HUB_PREFIX) and (":" in text or not is_path):
        return Checkpoint(path, "name")
    others = sorted(str(one) for one in path.parent.glob("*.ckpt"))
    raise MissingCheckpointError(
        f"{named}: no such file or folder" + (f"; there are {', '.join(others[:5])}" if others else "")
    )


def previous(path: str | Path) -> Path:
    """Where the file is kept that `path` replaced: last.ckpt -> last-previous.ckpt."""
    path = Path(path)
    return path.with_name(f"{path.stem}-previous{path.suffix}")


def write(content: Any, path: str | Path) -> None:
    """Saves by `torch.save`; afterwards the file is there complete, or as it was before.

    Raises:
        TrainingError: No space, or the folder cannot be written. What was there before is untouched.
    """
    with _replacing(Path(path)) as file:
        torch.save(content, file)


def copy(source: str | Path, path: str | Path) -> None:
    """As `write`, with the bytes of another file, so that later damage to one leaves the other intact."""
    with _replacing(Path(path)) as file, open(source, "rb") as original:
        shutil.copyfileobj(original, file, 1 << 22)


def read_checkpoint(path: str | Path, map_location: Any = "cpu", finite: bool = True) -> Any:
    """What a .safetensors file or a file of `torch.save` holds, checked, and read as tensors and plain values alone.

    Args:
        path: The file.
        map_location: As of `torch.load`.
        finite: Whether weights that are NaN or infinite are damage.

    Raises:
        DamagedCheckpointError: It is empty, cut short, changed, or no checkpoint; or its weights are not finite.
        CheckpointError: It holds objects whose loading could run code.
        MissingCheckpointError: No such file.
    """
    path = Path(path)
    is_zip = check_file(path)
    content = (
        _load_safetensors(path, map_location) if path.suffix == ".safetensors" else _load(path, map_location, is_zip)
    )
    if finite:
        _check_values(content, path)
    return content


def _load_safetensors(path: Path, map_location: Any) -> dict[str, torch.Tensor]:
    try:
        return load_file(path, device=str(map_location))
    except Exception as error:
        raise DamagedCheckpointError(f"{path} is not a safetensors file, or damaged: {error}; {AGAIN}") from error


def _load(path: Path, map_location: Any, is_zip: bool) -> Any:
    try:
        # timm's training script stores its arguments beside the weights
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # what cannot be read is an error anyway
            return torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        # the error itself advises weights_only=False for damaged files too
        named = re.search(r"(?:GLOBAL|global) ([\w.]+)", str(error))
        if named or is_zip:
            what = named[1] if named else "more than tensors and plain values"
            raise CheckpointError(
                f"{path} is refused: it holds {what}, and loading that could run code. If you trust its source, read "
                "it by torch.load(path, weights_only=False) and give load_official what that returns"
            ) from error
        raise DamagedCheckpointError(
            f"{path} is not a checkpoint, or damaged: it cannot be read as tensors and plain values; {AGAIN}"
        ) from error
    except Exception as error:  # torch raises what it likes
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise DamagedCheckpointError(f"{path} is not a checkpoint, or damaged: {reason}; {AGAIN}") from error


def read_or_previous(
    path: str | Path, map_location: Any = "cpu", warn: Callable[[str], None] = warn
) -> tuple[Any, Path]:
    """`read_checkpoint`, or if that file is damaged or missing the one that it replaced; and which of the two was read.

    Args:
        path: The file.
        map_location: As of `torch.load`.
        warn: Called with a message where it is the previous one.

    Raises:
        CheckpointError: Neither is there or can be read, or the first one was refused.
    """
    path, before = Path(path), previous(path)
    try:
        return read_checkpoint(path, map_location), path
    except (DamagedCheckpointError, MissingCheckpointError) as error:
        if not before.is_file():
            raise type(error)(f"{error}{_way_out(path)}") from error
        try:
            content = read_checkpoint(before, map_location)
        except CheckpointError as second:
            raise CheckpointError(
                f"{error}; and the one before it can't be used either: {second}{_way_out(path)}"
            ) from error
        where = ""
        if isinstance(content, dict) and "global_step" in content:
            where = f" (epoch {content.get('epoch')}, step {content['global_step']})"
        reason = str(error).removesuffix(f"; {AGAIN}")
        warn(f"{reason}. Using the one before it: {before}{where}")
        return content, before


def read_run(given: str | Path, trust: bool = False, known: Any = None) -> tuple[dict[str, Any], Path]:
    """The checkpoint of a vitgraft run, from the run's folder or the file itself, and the file that was read.

    Its `task` is the class path of the task, and its `hyper_parameters` rebuild that, without the initial weights that
    the checkpoint replaces.

    Args:
        given: A run's folder, or a checkpoint.
        trust: Whether it may name classes that are not vitgraft's.
        known: A recipe of the user's; the classes that it names may be named here too.

    Raises:
        CheckpointError: Nothing there, damaged, refused, or not of a vitgraft run.
        UntrustedError: It names a class that is not vitgraft's.
    """
    found = resolve_checkpoint(given)
    content, path = (None, found.path) if found.kind != "run" else read_or_previous(found.path)
    kinds = {"task": str, "hyper_parameters": dict, "state_dict": dict}
    if not isinstance(content, dict) or not all(isinstance(content.get(key), kind) for key, kind in kinds.items()):
        raise CheckpointError(
            f"{path}: not a checkpoint of a vitgraft run, which states its task and options. As weights of a model you "
            f"name: MODELNAME:checkpoint_path={path} to predict and export, --model.checkpoint_path {path} to train"
        )
    if not content["state_dict"]:
        raise DamagedCheckpointError(f"{path} can't be used: it holds no weights; {AGAIN}")
    check_trusted(content, path, trust, known)
    options = {**content["hyper_parameters"], "pretrained": False, "checkpoint_path": None}
    return {**content, "hyper_parameters": options}, path


def check_trusted(content: Any, path: str | Path, trust: bool = False, known: Any = None) -> None:
    """Refuses a run's checkpoint whose task or options name classes that are not vitgraft's.

    Args:
        content: Of the file.
        path: The file, for the message.
        trust: Whether it may name them.
        known: A recipe of the user's; the classes that it names may be named here too.

    Raises:
        UntrustedError: It names one.
    """
    if isinstance(content, dict) and not trust:
        check_class_paths(f"{path}: task", {"class_path": content.get("task", "Classification")}, known=known)
        check_class_paths(f"{path}: hyper_parameters", content.get("hyper_parameters"), known=known)


def is_intact(path: str | Path) -> bool:
    """Whether the file is there and its contents have their checksums."""
    try:
        check_file(Path(path))
    except (CheckpointError, OSError):
        return False
    return True


def _of_run_folder(folder: Path, named: str) -> Path:
    for name in RUN_FILES:
        if (folder / name).is_file() or previous(folder / name).is_file():
            return folder / name
    if others := sorted(folder.glob("*.ckpt"), key=lambda file: file.stat().st_mtime):
        return others[-1]
    if (folder / "graft_config.json").is_file():
        raise MissingCheckpointError(
            f"{named}: grafts alone, without a backbone: vitgraft.load_grafts(model, {str(folder)!r}) puts them on one"
        )
    message = f"{named}: neither a run (no {' or '.join(RUN_FILES)}) nor an exported model (no config.json)"
    if below := sorted({str(file.parent) for file in folder.rglob("*.ckpt")}):
        message += f"; there are checkpoints in {', '.join(below[:5])}{', ...' if len(below) > 5 else ''}: name one"
    raise MissingCheckpointError(message)


def check_file(path: str | Path) -> bool:
    """Looks for damage of a file of weights without loading it; whether it is a zip archive.

    Of zip archives (`torch.save` since PyTorch 1.6, .npz) the CRC of all that they hold is compared, of safetensors
    the header with the length of the file.

    Raises:
        DamagedCheckpointError: It is empty, cut short, changed, or another file in its place.
        CheckpointError: It is a model for another program, by its ending.
        MissingCheckpointError: No such file.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingCheckpointError(f"{path}: no such file")
    if program := FOR_OTHERS.get(path.suffix.lower()):
        raise CheckpointError(f"{path} is a file for {program}: give the run or checkpoint it was made of")
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(1024)
    if instead := not_the_file(head):
        raise DamagedCheckpointError(f"{path} {instead}")
    if text := TEXT.match(head):
        raise DamagedCheckpointError(f"{path} is a text file ({text[0].decode()!r} ...), not a checkpoint; {AGAIN}")
    is_zip = head.startswith(b"PK")
    if path.suffix == ".safetensors":
        if is_zip:
            raise DamagedCheckpointError(
                f"{path} is not a safetensors file, but one of torch.save or another zip archive: name it .pth"
            )
        _check_safetensors(path, size)
        return False
    if not is_zip:
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if path.suffix != ".npz":
                _refuse_bombs(path, entries, size)
            # PyTorch reads an entry that is marked as a folder as empty, whatever its CRC
            folders = (entry.filename for entry in entries if entry.external_attr & 0x10)
            broken = archive.testzip() or next(folders, None)
    except CheckpointError:
        raise
    except Exception as error:  # zipfile raises what a damaged header makes it stumble on
        raise DamagedCheckpointError(
            f"{path} is cut short ({size} bytes are left) or damaged: {error}; {AGAIN}"
        ) from error
    if broken:
        raise DamagedCheckpointError(f"{path} is damaged: {broken} does not have its checksum; {AGAIN}")
    return True


def _refuse_bombs(path: Path, entries: list[zipfile.ZipInfo], size: int) -> None:
    """`torch.save` stores tensors as they are: a file that unpacks to more than its size is not of it."""
    packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    if packed or sum(entry.file_size for entry in entries) > size:
        what = f"{packed[0]} is compressed" if packed else "it claims to hold more than its length"
        raise DamagedCheckpointError(f"{path} is not a file of torch.save, or damaged: {what}; {AGAIN}")


def _check_safetensors(path: Path, size: int) -> None:
    """Compares the length that the header of a safetensors file announces with the file's."""

    def refuse(why: str) -> NoReturn:
        raise DamagedCheckpointError(f"{path} is not a safetensors file, or damaged: {why}; {AGAIN}")

    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, LARGEST_HEADER):
            refuse(f"its header of {length} bytes does not fit into its {size}")
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            whole = 8 + length + max(ends, default=0)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
            refuse(f"its header can't be read ({type(error).__name__}: {error})")
    if whole != size:
        refuse(f"it is cut short, {size} of {whole} bytes" if size < whole else f"{size - whole} bytes follow its end")


def _check_values(content: Any, path: Path) -> None:
    """Raises `DamagedCheckpointError` where weights are NaN, infinite, no real numbers or all the same, or claim more
    values than the file holds.

    Weights are the tensors at the top and those of a mapping at the top, such as `state_dict`; the state of an
    optimizer lies deeper.
    """
    if not isinstance(content, dict):
        return
    weights: dict[int, tuple[str, torch.Tensor]] = {}  # by memory: averaged weights may be the raw ones
    for key, value in content.items():
        inside = value.items() if isinstance(value, dict) else ((key, value),)
        for name, tensor in inside:
            if isinstance(tensor, torch.Tensor) and not MASK.search(str(name)):
                weights.setdefault(id(tensor), (str(name), tensor))
    values = [(name, value) for name, tensor in weights.values() if (value := _values(name, tensor, path)) is not None]
    bad = [name for name, value in values if not torch.isfinite(value).all()]
    matrices = [(name, value) for name, value in values if value.dim() > 1 and value.numel() > 1]
    unreal = [(name, value.dtype) for name, value in values if value.is_complex()]
    if not any(value.is_floating_point() for _, value in matrices):
        unreal += [(name, value.dtype) for name, value in matrices if not value.is_complex()]
    if unreal:
        raise DamagedCheckpointError(
            f"{path} can't be used: {len(unreal)} of its {len(values)} tensors are no real numbers, such as "
            f"{unreal[0][0]} ({unreal[0][1]}). Save the weights as float32"
        )
    if len(matrices) > 1 and not any((value != value.flatten()[0]).any() for _, value in matrices):
        raise DamagedCheckpointError(
            f"{path} can't be used: each of its {len(matrices)} matrices holds one value alone, such as "
            f"{matrices[0][0]}. The model was never initialized before it was saved, or the file is damaged"
        )
    if bad:
        raise DamagedCheckpointError(
            f"{path} can't be used: {len(bad)} of its {len(weights)} tensors hold NaN or infinite values, such as "
            f"{bad[0]}. Training went wrong before it was saved, or the file was damaged: use a checkpoint from before "
            "that, or get the file again"
        )


def _values(name: str, tensor: torch.Tensor, path: Path) -> torch.Tensor | None:
    """The values of a tensor, those that are repeated in memory once; None where they can't be looked at."""
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or tensor.numel() == 0:
        return None
    once = tensor[tuple(slice(0, 1) if step == 0 else slice(None) for step in tensor.stride())]
    if once.numel() * once.element_size() > once.untyped_storage().nbytes():
        raise DamagedCheckpointError(f"{path} is damaged: {name} claims {tensor.numel()} values and has fewer; {AGAIN}")
    if once.is_floating_point() and once.element_size() == 1:  # float8, for which PyTorch lacks operators
        return once.to(torch.float32)
    return once


def _way_out(path: Path) -> str:
    """What else of the run can be used where `path` cannot, to be added to a message; "" where nothing can."""
    other = path.with_name({"last": "best", "best": "last"}.get(path.stem, path.stem) + path.suffix)
    intact = next((one for one in (other, previous(other)) if other != path and _is_usable(one)), None)
    if intact is None:
        return ""
    if path.stem == "best":
        return f". {intact} is intact: give that file instead"
    return (
        f". {intact} is intact: a new run can start from its weights, by --model.checkpoint_path {intact} and another "
        "--out; validate, predict and export can use it as it is"
    )


def _is_usable(path: Path) -> bool:
    try:
        read_checkpoint(path)
    except (CheckpointError, OSError):
        return False
    return True


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """`atomic_write` that keeps the previous file, with errors of the disk as `TrainingError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, "wb") as file:
            yield file
            flush(file)
            if is_intact(path):  # a damaged file must not push out the intact one before it
                _keep(path)
    except (OSError, RuntimeError) as error:
        # torch.save turns errors of the file into its own RuntimeError and leaves the cause in the context
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        reason = "no space is left" if cause.errno in FULL else (cause.strerror or str(cause))
        kept = f"{path} is still the checkpoint saved before" if is_intact(path) else "no checkpoint was written"
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
