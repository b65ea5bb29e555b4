"""Batches from worker processes, from any batch of any epoch on."""

from __future__ import annotations

import atexit
import signal
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from vitgraft.data.samples import Samples, collate
from vitgraft.data.sampling import EvalOrder, TrainOrder


class Loader:
    """An iterable of batches, with a length.

    It is no torch DataLoader but has one, so that nobody swaps its order for another (Lightning would, in distributed
    runs and in predict). Nothing happens before the first batch is asked for; then `position` is called, and the
    iteration starts there, without decoding what comes before.

    Args:
        dataset: what the batches are made of.
        order: which samples make up which batch.
        workers: worker processes; 0 loads in the calling one. They live as long as the loader, and change nothing in
            the batches.
        pin_memory: put batches into page-locked memory, from which copies to a GPU are fast.
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
        if workers < 0:
            raise ValueError(f"workers={workers}: 0 or more")
        self.dataset, self.order, self.position = dataset, order, position
        self.batches = DataLoader(
            dataset,
            batch_sampler=order,
            num_workers=workers,
            collate_fn=collate,
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
        """Nothing to restore, see `state_dict`."""

    def shut_down(self) -> None:
        """Ends the worker processes; another iteration starts new ones."""
        _shut_down(self.batches)
        _open.add(self.batches)


# Those that may have workers. At exit they are ended before multiprocessing's own handler, registered earlier, would
# wait for ever for workers that ignore SIGTERM.
_open: set[DataLoader] = set()


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
