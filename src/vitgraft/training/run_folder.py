"""The folder of a run: which run may use it, what is recorded, and where a run is resumed.

run.json            the recipe as it was run, versions, commit, hardware, data, class weights; `begin` and `check_data`
                    compare
.lock               while the run is running
last.ckpt           and last-previous.ckpt, best.ckpt: see `Checkpoints`
metrics.csv         what was logged; a resumed run appends
"""

import csv
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from vitgraft.atomic import atomic_write, check_writable
from vitgraft.errors import CheckpointError, RunFolderError
from vitgraft.machine import describe, source_commit
from vitgraft.terminal import note, warn
from vitgraft.weights import files as checkpoint_files

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = [
    "LOCK",
    "RunLogger",
    "add_to_record",
    "begin",
    "check_data",
    "flat",
    "locked",
    "nothing_half_written",
    "read_record",
]

RECORD = "run.json"
LOCK = ".lock"
# Marker files of a run, ours or another program's
RUN_FILES = (RECORD, "*.ckpt", "*.pth", "*.pth.tar", "*.safetensors", "config.yaml", "metrics.csv", "lightning_logs")
# What may differ when a run is resumed: it changes neither the weights nor what they are measured on
FREE = (
    "out", "ckpt_path", "weights", "verbose", "logger", "worst_images", "guards",
    "checkpoints.every_n_steps", "checkpoints.early_stopping", "checkpoints.handle_signals",
    "data.root", "data.workers", "data.timeout", "data.cache", "data.cache_dir", "data.cache_gb",
    "data.eval_batch_size",
    "trainer.accelerator", "trainer.logger", "trainer.profiler", "trainer.log_every_n_steps", "trainer.max_time",
    "trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.num_sanity_val_steps",
    "trainer.default_root_dir", "trainer.callbacks", "model.checkpoint_path", "model.class_names",
)  # fmt: skip
# What a run is resumed from, in its checkpoint
RESUMED = {
    "epoch": int,
    "global_step": int,
    "state_dict": dict,
    "loops": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "callbacks": dict,
}
SECTIONS = ("recipe", "versions", "data")  # of run.json
PACKAGES = ("vitgraft", "torch", "torchvision", "timm", "pytorch-lightning")


def begin(
    folder: str | Path,
    recipe: Mapping[str, Any],
    resume: bool = False,
    recipe_name: str | None = None,
    trust: bool = False,
) -> Path | None:
    """Takes the folder for a run, and finds the checkpoint to resume from.

    Args:
        folder: Made where it is missing.
        recipe: All options of the run, as plain values.
        resume: Resume the run in the folder, if there is one.
        recipe_name: Recorded too.
        trust: Whether the checkpoint may name classes that are neither vitgraft's nor the recipe's.

    Returns:
        The checkpoint to resume from, None to start.

    Raises:
        RunFolderError: It can't be written; it holds a run and `resume` was not asked for; or the run it holds is
            another one: the message names what differs.
        CheckpointError: Its checkpoints are damaged, all of them.
        UntrustedError: The one to resume from names a class that is neither vitgraft's nor the recipe's.
    """
    folder, last = Path(folder), Path(folder) / "last.ckpt"
    held = any(path.is_file() for path in (last, checkpoint_files.previous(last)))
    if rank_zero_only.rank:  # the first process does the rest
        return last if resume and held else None
    check_writable(folder)
    record = read_record(folder)
    if resume and held:
        differing = _differences(record.get("recipe", {}), recipe)
        if record and differing:
            raise RunFolderError(
                f"{folder} holds another run, which can't be resumed with these options:\n  "
                + "\n  ".join(differing)
                + "\nTake the options back, or give another --out (and start from its weights by "
                "--model.checkpoint_path)"
            )
        _warn_of_versions(record)
        content, last = checkpoint_files.read_or_previous(last)
        checkpoint_files.check_trusted(content, last, trust, recipe)
        _check_resumable(content, last)
        step = _number(content, "global_step")
        where = f"{last} (epoch {_number(content, 'epoch')}, step {step})"
        note(f"already finished: {where}" if _is_finished(content, recipe) else f"resuming from {where}")
        _drop_metrics_from(folder / "metrics.csv", step)
    elif held or (not record and _run_files(folder)):
        raise RunFolderError(
            f"{folder} holds a run already ({', '.join(_run_files(folder))}): continue it with --resume, or give "
            "another --out"
        )
    else:  # nothing there, or a run that ended before it saved anything
        _drop_metrics_from(folder / "metrics.csv", 0)
    if not held or not record:
        device = "cuda" if torch.cuda.is_available() and flat(recipe).get("trainer.accelerator") != "cpu" else "cpu"
        made_with = {"versions": _versions(), "commit": source_commit(), "machine": describe(torch.device(device))}
        _write_record(folder / RECORD, {"recipe": recipe, "recipe_name": recipe_name, **made_with})
    return last if resume and held else None


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Keeps other runs out of the folder while the block runs. A process that dies keeps nothing locked.

    The first process of a run locks for all of them. A lock of `lockf` is not inherited by loader workers, which may
    outlive the process that they belong to, and holds over NFS.

    Args:
        folder: Made where it is missing, and removed again where nothing is in it afterwards.

    Raises:
        RunFolderError: It can't be written, or another run is running in it.
    """
    folder, path = Path(folder), Path(folder) / LOCK
    if rank_zero_only.rank:
        yield
        return
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    check_writable(folder)
    descriptor = _lock(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)
        _remove_empty(missing)


def _lock(path: Path) -> int:
    """The descriptor of the lock file, which is locked until it is closed."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if fcntl is None:
                raise OSError("not on this system")
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            holder = os.read(descriptor, 200).decode(errors="replace").strip()
            os.close(descriptor)
            raise RunFolderError(
                f"{path.parent} is in use by a run that is running ({holder or 'which'}): wait for its end, stop it, "
                "or give another --out"
            ) from error
        except OSError as error:
            warn(f"{path}: files can't be locked here ({error}), so a second run into this folder would not be refused")
            return descriptor
        try:
            current = os.stat(path).st_ino == os.fstat(descriptor).st_ino
        except FileNotFoundError:
            current = False
        if current:
            os.truncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
            return descriptor
        os.close(descriptor)  # another run ended and removed it in between


def _remove_empty(folders: list[Path]) -> None:
    for one in folders:
        if one.is_dir() and not any(one.iterdir()):
            one.rmdir()


@contextmanager
def nothing_half_written(folder: str | Path) -> Iterator[None]:
    """A run that ends by an error before its first save or logged value leaves the folder as it found it."""
    folder = Path(folder)
    before = set(folder.rglob("*")) if folder.is_dir() else set()
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        new = set(folder.rglob("*")) - before if folder.is_dir() and not rank_zero_only.rank else set()
        if not any(path.suffix == ".ckpt" or path.name == "metrics.csv" for path in new):
            for path in sorted(new, reverse=True):  # what is inside a folder before the folder
                path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
            _remove_empty(missing)
        raise


class RunLogger(CSVLogger):
    """Lightning's CSVLogger, with metrics.csv directly in the run's folder, appended to the one that is there.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: str | Path):
        super().__init__(save_dir=str(folder), name="", version="")

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """The writer of the file."""
        if self._experiment is None:
            os.makedirs(self.root_dir, exist_ok=True)
            self._experiment = _AppendingWriter(log_dir=self.log_dir)
        return self._experiment


class _AppendingWriter(ExperimentWriter):
    def _check_log_dir_exists(self) -> None:
        """Takes over the columns of the file, which Lightning's would delete."""
        path = Path(self.metrics_file_path)
        if path.is_file():
            with open(path, newline="") as file:
                self.metrics_keys = next(csv.reader(file), [])


def check_data(folder: str | Path, source: Callable[[str], Any], allow_changed: bool = False) -> None:
    """Compares the data with what the record of the run in the folder holds of it; records it for a new run.

    Args:
        folder: The run's; nothing is compared or written without a run.json in it.
        source: "train" or "val" -> the source of its images.
        allow_changed: Warn of other images and record them, where they are of the same classes.

    Raises:
        RunFolderError: The run would be resumed on other images, or on other classes.
    """
    folder = Path(folder)
    record = read_record(folder)
    if not record:
        return
    now = {split: source(split).fingerprint() for split in ("train", "val")}
    then = record.get("data")
    last = folder / "last.ckpt"
    if isinstance(then, dict) and any(path.is_file() for path in (last, checkpoint_files.previous(last))):
        changed = [line for split in now if split in then for line in _changes(split, then[split], now[split])]
        listed = f"the data of {folder} changed since the run began:\n  " + "\n  ".join(changed)
        if any(then[split]["classes"] != now[split]["classes"] for split in now if split in then):
            raise RunFolderError(
                f"{listed}\nA run can't go on with other classes: bring the data back, or start another run (--out) "
                "from its weights (--model.checkpoint_path)"
            )
        if changed and not allow_changed:
            raise RunFolderError(
                f"{listed}\nBring the data back, or go on with what is there now by --guards.allow_changed_data true, "
                "which is no exact resume"
            )
        if changed:
            rank_zero_only(warn)(listed)
    if then != now and not rank_zero_only.rank:
        _write_record(folder / RECORD, {**record, "data": now})


def add_to_record(folder: str | Path, **values: Any) -> None:
    """Adds sections to the record of the run in the folder, where there is one; the first process does."""
    if not rank_zero_only.rank and (record := read_record(folder)):
        _write_record(Path(folder) / RECORD, {**record, **values})


def _changes(split: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    if then["images"] != now["images"]:
        yield f"{split}: {then['images']:,} images then, {now['images']:,} now"
    elif then["names"] != now["names"]:
        yield f"{split}: as many images, {now['images']:,}, but with other names"
    else:
        for kind, words in (
            ("files", "other files: their size or content changed"),
            ("annotations", "other annotations"),
        ):
            if then.get(kind, now.get(kind)) != now.get(kind):  # older records have neither
                yield f"{split}: images of the same names, but {words}"
    if then["classes"] != now["classes"]:
        for when, one, other in (("then", then, now), ("now", now, then)):
            if only := [name for name in one["classes"] if name not in set(other["classes"])]:
                yield f"{split}: classes only {when}: {', '.join(only[:8])}{' ...' if len(only) > 8 else ''}"
        if set(then["classes"]) == set(now["classes"]):
            yield f"{split}: the same classes in another order"


def _check_resumable(content: Any, path: Path) -> None:
    """Refuses a checkpoint that lacks what a run is resumed from.

    Args:
        content: Of the file.
        path: The file, for the message.

    Raises:
        CheckpointError: It lacks something, or has it of a wrong kind; or the optimizer's state is NaN or infinite.
    """
    content = content if isinstance(content, dict) else {}
    bad = [name for name, kind in RESUMED.items() if not isinstance(content.get(name), kind)]
    bad += [name for name in ("epoch", "global_step") if name not in bad and content[name] < 0]
    bad += [name for name in ("state_dict", "optimizer_states") if name not in bad and not content[name]]
    if "loops" not in bad and not isinstance(_epochs_done(content), int):
        bad.append("loops")
    if not bad and not all(map(_is_finite, _tensors(content["optimizer_states"]))):
        bad.append("optimizer_states (NaN or infinite)")
    if bad:
        more = f". A new run can start from its weights, by --model.checkpoint_path {path} and another --out"
        raise CheckpointError(
            f"{path} can't be resumed: it has no usable {', '.join(bad)}{more * ('state_dict' not in bad)}"
        )


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, dict | list | tuple):
        for one in values.values() if isinstance(values, dict) else values:
            yield from _tensors(one)


def _is_finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _epochs_done(content: Any) -> Any:
    """The epochs that a checkpoint's run has finished; None where that is not in it."""
    try:
        return content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    except (KeyError, TypeError):
        return None


def _drop_metrics_from(path: Path, step: int) -> None:
    """Drops the rows that will be logged again."""
    if not path.is_file():
        return
    with open(path, newline="") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        rows = [row for row in reader if (row.get("step") or "").isdigit() and int(row["step"]) < step]
    if not rows:
        path.unlink()
        return
    with atomic_write(path, newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def _number(content: Any, key: str) -> int:
    return content.get(key, 0) if isinstance(content, dict) else 0


def _is_finished(content: Any, recipe: Mapping[str, Any]) -> bool:
    """Whether the checkpoint is at the end of the epochs or steps that the recipe asks for."""
    options = flat(recipe)
    epochs, steps = (options.get(f"trainer.{name}") for name in ("max_epochs", "max_steps"))
    done = _epochs_done(content) or 0
    return (isinstance(epochs, int) and 0 < epochs <= done) or (
        isinstance(steps, int) and 0 < steps <= _number(content, "global_step")
    )


def _run_files(folder: Path) -> list[str]:
    return sorted({found.name for pattern in RUN_FILES for found in folder.glob(pattern)})


def read_record(folder: str | Path) -> dict[str, Any]:
    """The run.json of a run's folder; empty where there is none.

    Raises:
        RunFolderError: It is damaged.
    """
    path = Path(folder) / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        sections = record.keys() & {*SECTIONS} if isinstance(record, dict) else ()
        if "recipe" not in sections or not all(isinstance(record[key], dict) for key in sections):
            raise ValueError(f"not an object with {', '.join(SECTIONS)}")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise RunFolderError(
            f"{path} can't be read ({error}). It is the record of the run's options; without it (delete it) they are "
            "not compared when the run is resumed"
        ) from error
    return record


def _write_record(path: Path, record: Mapping[str, Any]) -> None:
    try:
        with atomic_write(path) as file:
            file.write(json.dumps(record, indent=1, default=str) + "\n")
    except OSError as error:
        raise RunFolderError(f"output folder {path.parent}: can't be written ({error.strerror})") from error


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Lines "option: then -> now" of what matters; by the values as JSON has them."""
    old, new = flat(old), flat(json.loads(json.dumps(new, default=str)))
    absent = "(not given)"
    return [
        f"{key}: {old.get(key, absent)!r} then, {new.get(key, absent)!r} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, absent) != new.get(key, absent) and not f"{key}.".startswith(tuple(f"{free}." for free in FREE))
    ]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Options by their dotted names, without `init_args`."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            inner = f"{prefix}{key}." if key != "init_args" else prefix  # the same with and without init_args between
            found.update(flat(value, inner))
        else:
            found[f"{prefix}{key}"] = value  # keys of `label_values` are numbers
    return found


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed as a package"
    return found


def _warn_of_versions(record: Mapping[str, Any]) -> None:
    then, now = record.get("versions", {}), _versions()
    changed = [f"{name} {old} -> {now.get(name)}" for name, old in then.items() if old != now.get(name)]
    if changed:
        warn(f"the run was started with other versions: {', '.join(changed)}; it may not resume bit for bit")
