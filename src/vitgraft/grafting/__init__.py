"""How grafts are put on a model, and taken off again."""

from vitgraft.grafting.api import TrainReport, graft, grafts, is_grafted, strip, train_grafts_only
from vitgraft.grafting.blocks import BlockSpec, register_block

__all__ = [
    "BlockSpec",
    "TrainReport",
    "graft",
    "grafts",
    "is_grafted",
    "register_block",
    "strip",
    "train_grafts_only",
]
