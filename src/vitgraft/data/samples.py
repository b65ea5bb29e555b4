"""A dataset of batches: each sample a function of (seed, epoch, index), those that can't be read named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils.data import Dataset

from vitgraft.data.sampling import Draw
from vitgraft.errors import ImageError
from vitgraft.randomness import derive, preserve_rng, seed_all

# So many images in a row that can't be read are no accident: the disk is gone, or the set is no set of images.
MOST_IN_A_ROW = 64


class Samples(Dataset):
    """Indexed with `Draw`s; a list of them gives a batch.

    A dataset of its own gives `__len__`, `name`, `load`, `prepare` and `collate`.

    Args:
        seed: the run's seed; what `prepare` draws is a function of it and of the draw.
        train: whether an unreadable image is replaced (training) or left out (evaluation).
    """

    def __init__(self, seed: int = 0, train: bool = False):
        self.seed, self.train = seed, train

    def __len__(self) -> int:
        raise NotImplementedError

    def name(self, index: int) -> str:
        """Of a sample, for messages."""
        raise NotImplementedError

    def load(self, index: int) -> Any:
        """A sample as it lies on the disk, decoded.

        Raises:
            ImageError: it can't be read.
        """
        raise NotImplementedError

    def prepare(self, loaded: Any, index: int) -> Any:
        """What is fed to a model; may draw from the global generators of Python, numpy and PyTorch in training."""
        raise NotImplementedError

    def collate(self, samples: list[Any], indices: list[int], bad: list[str]) -> Any:
        """A batch, even of no samples.

        Args:
            samples: as `prepare` returned them.
            indices: of the samples in the set.
            bad: "name: reason" of each sample that can't be read; the batch has it as its attribute `bad`.
        """
        raise NotImplementedError

    def __getitem__(self, draw: Draw | int) -> Any:
        """One prepared sample. A plain number is the draw of epoch 0.

        Raises:
            ImageError: it can't be read.
        """
        draw = draw if isinstance(draw, Draw) else Draw(0, draw)
        with preserve_rng(cuda=False):
            return self._sample(draw, self.load(draw.index))

    def __getitems__(self, draws: Sequence[Draw]) -> Any:
        """A batch; torch's DataLoader asks for it at once. Draws nothing from the caller's generators."""
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


def collate(batch: Any) -> Any:
    """A loader's `collate_fn`: the dataset gives whole batches already."""
    return batch
