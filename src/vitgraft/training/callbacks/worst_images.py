"""The images on which a model was most wrong, drawn."""

import heapq
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch

from vitgraft.errors import ImageError
from vitgraft.tasks.base import Mistake

__all__ = ["WorstImages"]

LONGEST_SIDE = 1200  # of a picture, pixels


class WorstImages(pl.Callback):
    """Keeps the largest mistakes of a validation or test, and draws them from the files of the images.

    Args:
        count: How many; 0 keeps none.
    """

    def __init__(self, count: int = 8):
        self.count = count
        self._kept: dict[str, list[tuple[float, int, Any]]] = {}  # heaps of (size, -index, prediction), by weights
        self._split = "val"

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._kept, self._split = {}, "val"

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._kept, self._split = {}, "test"

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        indices = getattr(batch, "indices", None)
        if indices is not None and outputs:
            self.add(outputs, indices.tolist())

    on_test_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.world_size > 1:
            parts: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(parts, self._kept)
            self._kept = {}
            for part in parts:
                for weights, kept in part.items():
                    self._push(weights, kept)

    on_test_end = on_validation_end

    def add(self, mistakes: Mapping[str, Sequence[Mistake]], indices: Sequence[int]) -> None:
        """Takes in a batch.

        Args:
            mistakes: Of each kind of weights those of its images (`Task.evaluate`).
            indices: Of the images in their source.
        """
        for weights, found in mistakes.items():
            sized = zip(found, indices, strict=True)
            self._push(weights, [(size, -index, predicted) for (size, predicted), index in sized if size > 0])

    def _push(self, weights: str, entries: Iterable[tuple[float, int, Any]]) -> None:
        kept = self._kept.setdefault(weights, [])
        for entry in entries:
            if len(kept) < self.count:
                heapq.heappush(kept, entry)
            elif kept and entry[:2] > kept[0][:2]:
                heapq.heapreplace(kept, entry)

    def drawn(self, trainer: pl.Trainer, pl_module: pl.LightningModule, weights: str) -> dict[str, bytes]:
        """PNG files by name, the largest mistake first. Images that can't be read any more are left out."""
        files: dict[str, bytes] = {}
        if not self._kept.get(weights) or not hasattr(trainer.datamodule, "source"):
            return files
        source = trainer.datamodule.source(self._split)
        for _, number, predicted in sorted(self._kept[weights], key=lambda entry: entry[:2], reverse=True):
            try:
                loaded = source.load(-number)
            except ImageError:
                continue
            picture = pl_module.draw_mistake(loaded, predicted, source.name(-number))
            picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
            file = io.BytesIO()
            picture.save(file, format="PNG")
            files[f"worst_{len(files) + 1}.png"] = file.getvalue()
        return files
