"""Which samples make up which batch: functions of (seed, epoch), for one process or many.

A sampler yields `Draw`s, and a dataset is indexed with them: the augmentation depends on the `Draw` alone, so workers
need no state, and an epoch can begin at any batch without touching the ones before.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from vitgraft.errors import DataError
from vitgraft.randomness import derive
from vitgraft.terminal import number_of

# floor(len / 256) * 256 samples an epoch with repeated augmentation: facebookresearch/deit samplers.py
REPEATS_ROUND = 256


class Draw(NamedTuple):
    """One sample of one epoch.

    Attributes:
        epoch: Counted from 0; evaluation has epoch 0.
        index: Of the sample in its source.
        repeat: Which of its draws in this epoch, counted from 0.
    """

    epoch: int
    index: int
    repeat: int = 0


class TrainOrder:
    """Batches of a training epoch, for one of several processes.

    Batch k of all processes together is a run of `batch_size * world_size` draws of the epoch's order, of which the
    process takes every `world_size`-th: with the same total batch, 1 process and 8 train on the same batches. What is
    left at the end and fills no batch is not drawn in this epoch.

    A balanced order, of `labels`, has as many draws, and all classes equally often: in rounds, each with one draw of
    every class, by chance which first. The draws of a class go through its samples, shuffled, and again where they are
    few; each time a sample comes again in an epoch, its draw has another `repeat`, and so another augmentation.

    Repeated augmentation is DeiT's: every sample `repeats` times in a row, so that the draws fall to different
    processes, and no more than floor(length / 256) * 256 draws an epoch in all (`length` in a dataset of under 256).

    Args:
        length: Samples in the dataset.
        seed: The run's seed.
        batch_size: Samples in a batch of one process.
        world_size: Number of processes.
        rank: Which of them this is, counted from 0.
        repeats: How often a sample is drawn in a row; 1 is no repeated augmentation.
        blocks: Sizes of the shards that hold the samples, in order; their sum is `length`. Shards are then shuffled,
            and samples among `blocks_at_once` successive ones, so that few shards are in use at a time.
        blocks_at_once: How many shards are shuffled together.
        labels: Of each sample, for a balanced order; those with a label below 0 are not drawn. Not with `blocks`.

    Raises:
        ValueError: Numbers that make no batch.
    """

    def __init__(
        self,
        length: int,
        seed: int,
        batch_size: int,
        world_size: int = 1,
        rank: int = 0,
        repeats: int = 1,
        blocks: Sequence[int] | None = None,
        blocks_at_once: int = 8,
        labels: np.ndarray | None = None,
    ):
        for name, value in (("batch_size", batch_size), ("world_size", world_size), ("repeats", repeats)):
            if value < 1:
                raise ValueError(f"{name}={value}: at least 1")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank}: 0 to {world_size - 1} for world_size={world_size}")
        if blocks is not None and sum(blocks) != length:
            raise ValueError(f"blocks: they hold {sum(blocks)} samples together, the dataset holds {length}")
        if blocks is not None and labels is not None:
            raise ValueError("labels: a balanced order reads all shards at once; not with blocks")
        drawn = length if repeats == 1 else (length // REPEATS_ROUND * REPEATS_ROUND or length)
        self.num_batches = drawn // (batch_size * world_size)
        if self.num_batches == 0:
            processes = f" in each of {world_size} processes" if world_size > 1 else ""
            raise DataError(
                f"batch_size={batch_size}: {number_of(length, 'training images fill no batch')}{processes}; "
                f"at most {drawn // world_size} would work"
            )
        self.length, self.seed, self.batch_size = length, seed, batch_size
        self.world_size, self.rank, self.repeats = world_size, rank, repeats
        self.blocks = None if blocks is None else np.asarray(blocks, dtype=np.int64)
        self.blocks_at_once = blocks_at_once
        self.members = None
        if labels is not None:
            self.members = [np.flatnonzero(labels == label) for label in np.unique(labels[labels >= 0])]
        self.epoch, self.start = 0, 0

    def __len__(self) -> int:
        """Batches of a whole epoch, wherever the next iteration starts."""
        return self.num_batches

    def set_position(self, epoch: int, start: int = 0) -> None:
        """The next iteration is epoch `epoch`, from batch `start` on."""
        self.epoch, self.start = epoch, start

    def order(self, epoch: int) -> np.ndarray:
        """The samples in the order of an epoch, int64 (length,); the same in every process."""
        # RandomState's streams are frozen by numpy's compatibility policy, those of Generator are not
        seed = derive(self.seed, "order", epoch)
        rng = np.random.RandomState(np.array([seed >> 32, seed & 0xFFFFFFFF], dtype=np.uint32))
        if self.members is not None:
            rounds = -(-self.length // len(self.members))
            draws = np.stack([_in_cycles(members, rounds, rng) for members in self.members], axis=1)
            first = rng.random_sample(draws.shape).argsort(axis=1, kind="stable")
            return np.take_along_axis(draws, first, axis=1).reshape(-1)[: self.length]
        if self.blocks is None:
            return rng.permutation(self.length)
        ends = np.cumsum(self.blocks)
        shuffled = rng.permutation(len(self.blocks))
        groups = [shuffled[at : at + self.blocks_at_once] for at in range(0, len(shuffled), self.blocks_at_once)]
        return np.concatenate(
            [rng.permutation(np.concatenate([np.arange(ends[b] - self.blocks[b], ends[b]) for b in g])) for g in groups]
        )

    def __iter__(self) -> Iterator[list[Draw]]:
        epoch, total = self.epoch, self.batch_size * self.world_size
        order = self.order(epoch)
        before = None if self.members is None else _times_before(order)
        for number in range(self.start, self.num_batches):
            draws = []
            for place in range(number * total + self.rank, (number + 1) * total, self.world_size):
                at, repeat = divmod(place, self.repeats)
                repeat += 0 if before is None else self.repeats * int(before[at])
                draws.append(Draw(epoch, int(order[at]), repeat))
            yield draws


def _in_cycles(members: np.ndarray, count: int, rng: np.random.RandomState) -> np.ndarray:
    """`count` of the members: all of them shuffled, and again in another order, int64 (count,)."""
    cycles = -(-count // len(members))
    return members[rng.random_sample((cycles, len(members))).argsort(axis=1, kind="stable").reshape(-1)[:count]]


def _times_before(order: np.ndarray) -> np.ndarray:
    """How often the sample of each place stands before it, int64 (length,)."""
    by_sample = order.argsort(kind="stable")
    _, starts, counts = np.unique(order[by_sample], return_index=True, return_counts=True)
    before = np.empty_like(by_sample)
    before[by_sample] = np.arange(len(order)) - np.repeat(starts, counts)
    return before


class EvalOrder:
    """Batches of an evaluation: over all processes every sample exactly once, none padded, none twice.

    Process r has the samples r, r + world_size, ...; where a process has one sample fewer and thereby one batch fewer
    than the others, its last batch is split in two. So all have equally many batches, and a collective operation in a
    step can't hang, unless there are fewer samples than processes, or batches of 1.

    Args:
        length: Samples in the dataset.
        batch_size: Samples in a batch of one process.
        world_size: Number of processes.
        rank: Which of them this is, counted from 0.

    Raises:
        ValueError: A number out of range.
    """

    def __init__(self, length: int, batch_size: int, world_size: int = 1, rank: int = 0):
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: at least 1")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank}: 0 to {world_size - 1} for world_size={world_size}")
        self.batch_size = batch_size
        own = range(rank, length, world_size)
        self.batches = [list(own[at : at + batch_size]) for at in range(0, len(own), batch_size)]
        most = -(-len(range(0, length, world_size)) // batch_size)
        if 0 < len(self.batches) < most and len(self.batches[-1]) > 1:
            last = self.batches.pop()
            self.batches += [last[:-1], last[-1:]]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Draw]]:
        for indices in self.batches:
            yield [Draw(0, index) for index in indices]
