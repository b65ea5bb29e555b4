"""Batches from any batch of any epoch on: `Samples`, a dataset of whole batches, and `Loader`, its worker processes."""

from __future__ import annotations

import atexit
import signal
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from vitgraft.data.readers.base import Source
from vitgraft.data.sampling import Draw, EvalOrder, TrainOrder
from vitgraft.errors import ImageError
from vitgraft.randomness import derive, preserve_rng, seed_all

# So many unreadable images in a row are no accident: the disk is gone, or the files are no images.
MOST_IN_A_ROW = 64


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
            the batches.
        pin_memory: Put batches into page-locked memory, from which copies to a GPU are fast.
        position: -> (epoch, batch) to start an iteration at; without it each iteration of a `TrainOrder` is the next
            epoch, from `order.set_position(...)` on.
    """

    def __init__(
        self,
        dataset: Samples,
        order: TrainOrder | EvalOrder,
        workers: int = 0,
        pin_memory: bool = False,
        position: Callable[[], tuple[int, int]] | None = None,
    ):
        self.dataset, self.order, self.position = dataset, order, position
        self.batches = DataLoader(
            dataset,
            batch_sampler=order,
            num_workers=workers,
            collate_fn=_whole,
            pin_memory=pin_memory,
            persistent_workers=workers > 0,
            worker_init_fn=_leave_signals_to_the_parent,
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
        yield from self.batches
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


def _shut_down(batches: DataLoader) -> None:
    _open.discard(batches)
    iterator, batches._iterator = batches._iterator, None
    if iterator is None or not hasattr(iterator, "_workers"):
        return
    iterator._shutdown_workers()
    for worker in iterator._workers:
        if worker.is_alive():
            worker.kill()


@atexit.register
def _shut_down_all() -> None:
    for batches in list(_open):
        _shut_down(batches)


def _leave_signals_to_the_parent(worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach every process of the group: the parent saves first, and then ends us."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
