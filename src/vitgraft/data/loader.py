"""Batches from any batch of any epoch on: `Samples`, a dataset of whole batches, and `Loader`, its worker processes."""

from __future__ import annotations

import atexit
import multiprocessing.connection
import multiprocessing.queues
import os
import re
import shutil
import signal
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils.signal_handling import _remove_worker_pids

from vitgraft.data.readers.base import Source
from vitgraft.data.sampling import Draw, EvalOrder, TrainOrder
from vitgraft.errors import ImageError, TrainingError
from vitgraft.randomness import derive, preserve_rng, seed_all
from vitgraft.terminal import warn

# So many unreadable images in a row are no accident: the disk is gone, or the files are no images.
MOST_IN_A_ROW = 64
# Seconds that a batch may take to come from a worker process: as long as PyTorch's processes wait for each other
TIMEOUT = 600
# Where batches of worker processes lie; with so many bytes free, it is not asked how many a batch takes
SHARED_MEMORY, PLENTY = Path("/dev/shm"), 4 << 30
PREFETCHED = 2  # batches of each worker, torch's default
DEATH = 5  # seconds until the system reports a worker that ended its connection
NOT_SHARED = 77  # exit code of a worker that can't hand over a batch


class Batch(NamedTuple):
    """What a loader of images with labels yields.

    Attributes:
        images: float32 (B, 3, H, W); a list of B (3, H, W) where a segmenter is evaluated, as each has its own size.
        labels: int64 (B,), -1 where an image has none. Of segmentation int64 (B, H, W), 255 where a pixel is ignored;
            in evaluation a list of B (H', W'), of the label files' own sizes.
        indices: int64 (B,), of the images in their source.
        bad: "name: reason" of each image that was to be in the batch and can't be read. In training the next readable
            image of the source took its place; in evaluation it is left out, so B may be smaller, even 0.
    """

    images: torch.Tensor | list[torch.Tensor]
    labels: torch.Tensor | list[torch.Tensor]
    indices: torch.Tensor
    bad: list[str]


class Samples(Dataset):
    """A source as a dataset: each sample is a function of (seed, epoch, index), unreadable ones are named.

    Indexed with `Draw`s; a list of them gives a batch. Subclasses define `prepare` and `collate`.

    Args:
        source: Where the images are.
        seed: The run's seed; what `prepare` draws is a function of it and of the draw.
        train: Whether an unreadable image is replaced (training) or left out (evaluation).
    """

    def __init__(self, source: Source, seed: int = 0, train: bool = False):
        self.source, self.seed, self.train = source, seed, train

    def __len__(self) -> int:
        return len(self.source)

    def name(self, index: int) -> str:
        """Name of a sample in messages."""
        return self.source.name(index)

    def load(self, index: int) -> Any:
        """A sample as it lies on the disk, decoded.

        Raises:
            ImageError: It can't be read.
        """
        return self.source.load(index)

    def prepare(self, loaded: Any, index: int) -> Any:
        """The input of a model; may draw from the global generators of Python, numpy and PyTorch in training."""
        raise NotImplementedError

    def collate(self, samples: list[Any], indices: list[int], bad: list[str]) -> Any:
        """A batch, even of no samples.

        Args:
            samples: As `prepare` returned them.
            indices: Of the samples in the dataset.
            bad: "name: reason" of each unreadable sample, the attribute `bad` of the batch.
        """
        raise NotImplementedError

    def __getitem__(self, draw: Draw | int) -> Any:
        """One prepared sample. A plain number is the draw of epoch 0.

        Raises:
            ImageError: It can't be read.
        """
        draw = draw if isinstance(draw, Draw) else Draw(0, draw)
        with preserve_rng(cuda=False):
            return self._sample(draw, self.load(draw.index))

    def __getitems__(self, draws: Sequence[Draw]) -> Any:
        """A batch, which torch's DataLoader takes at once. Draws nothing from the caller's generators."""
        samples, indices, bad = [], [], []
        with preserve_rng(cuda=False):
            for draw in draws:
                readable = self._readable(draw, bad)
                if readable is not None:
                    samples.append(self._sample(*readable))
                    indices.append(readable[0].index)
        return self.collate(samples, indices, bad)

    def _sample(self, draw: Draw, loaded: Any) -> Any:
        if self.train:
            seed_all(derive(self.seed, "augment", *draw))
        try:
            return self.prepare(loaded, draw.index)
        except Exception as error:
            size = f", {loaded.width} x {loaded.height}" if hasattr(loaded, "width") else ""
            error.add_note(f"while {self.name(draw.index)} was prepared{size}, {draw}")
            raise

    def _readable(self, draw: Draw, bad: list[str]) -> tuple[Draw, Any] | None:
        """The draw and its sample; in training, those of the next readable sample; in evaluation, None."""
        first = None
        for step in range(min(MOST_IN_A_ROW, len(self)) if self.train else 1):
            index = (draw.index + step) % len(self)
            try:
                return draw._replace(index=index), self.load(index)
            except ImageError as error:
                bad.append(str(error))
                first = first or error
        if self.train:
            raise ImageError(first.name, f"{first.reason}; nor can the {step} images after it be read")
        return None


class Loader:
    """An iterable of batches, with a length.

    It is no torch DataLoader but has one, so that Lightning does not replace its sampler. Nothing happens before the
    first batch is asked for; then `position` is called, and the iteration starts there, without decoding what comes
    before.

    Args:
        dataset: Gives the batches.
        order: Which samples make up which batch.
        workers: Worker processes; 0 loads in the calling one. They live as long as the loader, and change nothing in
            the batches. Where their batches do not fit into /dev/shm, there are none, with a warning.
        pin_memory: Put batches into page-locked memory, from which copies to a GPU are fast.
        position: -> (epoch, batch) to start an iteration at; without it each iteration of a `TrainOrder` is the next
            epoch, from `order.set_position(...)` on.
        timeout: Seconds to wait for a batch of the workers; 0 waits for ever.
    """

    def __init__(
        self,
        dataset: Samples,
        order: TrainOrder | EvalOrder,
        workers: int = 0,
        pin_memory: bool = False,
        position: Callable[[], tuple[int, int]] | None = None,
        timeout: int = TIMEOUT,
    ):
        self.dataset, self.order, self.position = dataset, order, position
        workers = workers_that_fit(dataset, order.batch_size, workers)
        self.batches = DataLoader(
            dataset,
            batch_sampler=order,
            num_workers=workers,
            collate_fn=_whole,
            pin_memory=pin_memory,
            persistent_workers=workers > 0,
            worker_init_fn=begin_worker,
            timeout=timeout if workers else 0,
            # it draws a seed for the workers, which is not to come from the global generator
            generator=torch.Generator(),
        )
        _open.add(self.batches)
        weakref.finalize(self, _shut_down, self.batches)

    def __len__(self) -> int:
        """Batches of a whole epoch, wherever an iteration starts."""
        return len(self.order)

    def __iter__(self) -> Iterator[Any]:
        if isinstance(self.order, TrainOrder) and self.position is not None:
            self.order.set_position(*self.position())
        try:
            try:
                yield from self.batches
            except RuntimeError:
                raise
            except Exception as error:  # EOFError, ConnectionResetError, AuthenticationError, UnpicklingError, ...
                workers = getattr(self.batches._iterator, "_workers", ())
                if not workers or str(error).startswith("Caught "):  # an error of the dataset
                    raise
                # a worker that dies while its batch is received ends the connection first; torch raises its own error
                # as soon as the system reports the death, here if it is not too late
                ended = multiprocessing.connection.wait([worker.sentinel for worker in workers], DEATH)
                for worker in workers:
                    if worker.sentinel in ended:
                        worker.join(DEATH)
                if not ended:
                    raise
                raise RuntimeError("DataLoader worker (pid unknown) exited unexpectedly") from error
        except RuntimeError as error:
            _forget(self.batches._iterator)
            workers = getattr(self.batches._iterator, "_workers", ())
            if reason := worker_failure(error, [worker.exitcode for worker in workers]):
                _shut_down(self.batches, failed=True)
                raise TrainingError(reason) from error
            raise
        if isinstance(self.order, TrainOrder):
            self.order.set_position(self.order.epoch + 1)

    def state_dict(self) -> dict:
        """Empty: where an iteration starts is known from outside. Lightning asks resumable loaders for it."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Nothing to restore."""

    def shut_down(self) -> None:
        """Ends the worker processes; another iteration starts new ones."""
        _shut_down(self.batches)
        _open.add(self.batches)


# Those that may have workers. At exit they are ended before multiprocessing's own handler, registered earlier, would
# wait for ever for workers that ignore SIGTERM.
_open: set[DataLoader] = set()


def _whole(batch: Any) -> Any:
    """The dataset gives whole batches already."""
    return batch


def _forget(iterator: Any) -> None:
    """Or torch raises an error for each worker that ends from now on, and again for the one that has ended, wherever
    the main process is at the time."""
    if getattr(iterator, "_worker_pids_set", False):
        _remove_worker_pids(id(iterator))
        iterator._worker_pids_set = False


def _shut_down(batches: DataLoader, failed: bool = False) -> None:
    """Ends the workers. Those of a loader that failed are not asked first: each that blocks would take 5 seconds."""
    _open.discard(batches)
    iterator, batches._iterator = batches._iterator, None
    if iterator is None or not hasattr(iterator, "_workers"):
        return
    if failed:
        for worker in iterator._workers:
            worker.kill()
    iterator._shutdown_workers()
    for worker in iterator._workers:
        if worker.is_alive():
            worker.kill()


@atexit.register
def _shut_down_all() -> None:
    for batches in list(_open):
        _shut_down(batches)


def begin_worker(worker: int) -> None:
    """What a worker process does first.

    Ctrl-C and a scheduler's SIGTERM reach every process of the group: the parent saves first, and then ends us. A batch
    that can't be handed over ends the worker: multiprocessing itself drops it, and the parent would wait for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end_worker)
    sys.excepthook = unless_gone


def unless_gone(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Prints an error, but for a connection that the parent gave up, as it does where another worker died.

    multiprocessing's thread that hands over batches prints its errors so.
    """
    if not issubclass(kind, EOFError | OSError | multiprocessing.AuthenticationError):
        sys.__excepthook__(kind, error, trace)


def _end_worker(error: BaseException, batch: Any) -> None:
    os.write(2, f"loader worker: a batch can't be handed over: {error}\n".encode(errors="backslashreplace"))
    os._exit(NOT_SHARED)


def worker_failure(error: BaseException, exit_codes: Sequence[int | None] = ()) -> str | None:
    """What happened to a loader's worker processes and what to try; None where the error is of something else.

    Args:
        error: As torch raises it: where a batch is asked for, or anywhere in the main thread when a worker dies.
        exit_codes: Of the workers, where they are known.
    """
    if not isinstance(error, RuntimeError) or not re.match(r"DataLoader (timed out|worker \(pid)", str(error)):
        return None
    texts = [str(error)]
    if isinstance(error.__cause__, RuntimeError):  # the one that torch raised when the worker died
        texts.insert(0, str(error.__cause__))
    texts += [f"killed by signal: {signal.strsignal(-code)}" for code in exit_codes if code and code < 0]
    text = "\n".join(texts)
    here = "workers 0 loads in the main process, which names the cause"
    if found := re.search(r"timed out after (\d+)", text):
        return (
            f"no batch came from the loader's worker processes within {found[1]} s (data.timeout={found[1]}): they "
            f"block, or the disk or network does not answer. A larger timeout waits longer, 0 for ever; {here}"
        )
    if "Bus error" in text or f"code: {NOT_SHARED}" in text or NOT_SHARED in exit_codes:
        return (
            f"a worker process of the loader could not hand over a batch in shared memory{_room()}. Fewer workers or "
            "images in a batch need less, workers 0 needs none; docker run --shm-size=8g gives more"
        )
    if "Killed" in text:
        return (
            "a worker process of the loader was killed, as the system does where memory runs out: fewer workers or "
            f"images in a batch need less; {here}"
        )
    how = re.search(r"killed by signal: [\w ]+|exit code:? -?\d+", text)
    return f"a worker process of the loader ended ({how[0].strip() if how else 'why is not known'}): {here}"


def workers_that_fit(dataset: Dataset, batch_size: int, workers: int) -> int:
    """The number of worker processes, 0 with a warning where their batches do not fit into /dev/shm.

    torch's other way of sharing, `file_system`, puts them there too. A sample is prepared to know the size only where
    little is free.

    Args:
        dataset: Indexed with a number.
        batch_size: Samples in a batch.
        workers: The number asked for.
    """
    if not workers or not SHARED_MEMORY.is_dir() or shutil.disk_usage(SHARED_MEMORY).free >= PLENTY or not len(dataset):
        return workers
    try:
        needed = workers * PREFETCHED * batch_size * _bytes_of(dataset[0])
    except ImageError:
        return workers
    if needed <= shutil.disk_usage(SHARED_MEMORY).free:
        return workers
    warn(
        f"workers={workers}: their batches take about {needed / 1e6:,.1f} MB of shared memory{_room()}; images are "
        "loaded in the main process instead, as with workers 0. docker run --shm-size=8g gives more"
    )
    return 0


def _room() -> str:
    if not SHARED_MEMORY.is_dir():
        return ""
    usage = shutil.disk_usage(SHARED_MEMORY)
    return f" ({SHARED_MEMORY}: {usage.free / 1e6:,.1f} of {usage.total / 1e6:,.1f} MB are free)"


def _bytes_of(sample: Any) -> int:
    """Of all tensors in a sample."""
    if isinstance(sample, torch.Tensor):
        return sample.numel() * sample.element_size()
    if isinstance(sample, Mapping):
        sample = list(sample.values())
    elif hasattr(sample, "__dict__"):
        sample = list(vars(sample).values())
    return sum(map(_bytes_of, sample)) if isinstance(sample, list | tuple) else 0
