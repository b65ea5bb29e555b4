"""GrafT, the multi-scale add-on of *Grafting Vision Transformers*, for any vision transformer."""

import sys
from pathlib import Path

from vitgraft._version import __version__


def _only_prints_help() -> bool:
    """Whether this process is `vitgraft --help`, `vitgraft COMMAND --help` or `vitgraft --version`."""
    started = Path(sys.argv[0]).stem == "vitgraft" or sys.orig_argv[1:3] == ["-m", "vitgraft"]
    return started and len(sys.argv) <= 3 and sys.argv[-1] in ("-h", "--help", "-V", "--version")


# importing torch takes seconds, and no help text needs it
if not (sys.argv and _only_prints_help()):
    from vitgraft.config import GraftConfig
    from vitgraft.errors import (
        CheckpointError,
        FrozenModelError,
        GraftError,
        MissingExtraError,
        NoGraftPointError,
        VitgraftError,
    )
    from vitgraft.grafting import graft, grafts, is_grafted, register_block, strip, train_grafts_only
    from vitgraft.layers.graft import GrafT
    from vitgraft.models import cswin as _cswin  # noqa: F401  importing registers the models with timm
    from vitgraft.models import generic as _generic  # noqa: F401
    from vitgraft.models import hybrid as _hybrid  # noqa: F401
    from vitgraft.models import swin as _swin  # noqa: F401
    from vitgraft.models import vit as _vit  # noqa: F401
    from vitgraft.models.adapters import register_smp_encoder
    from vitgraft.models.dense import DenseFeatures
    from vitgraft.models.feature_pyramid import pyramid
    from vitgraft.models.frozen import freeze
    from vitgraft.models.zoo import pvt as _pvt  # noqa: F401
    from vitgraft.models.zoo import regionvit as _regionvit  # noqa: F401
    from vitgraft.models.zoo import t2t_vit as _t2t_vit  # noqa: F401
    from vitgraft.models.zoo import vil as _vil  # noqa: F401
    from vitgraft.predict.load import from_pretrained
    from vitgraft.predict.load import open_model as load
    from vitgraft.weights.graft_files import load_grafts, save_grafts
    from vitgraft.weights.load_report import LoadReport
    from vitgraft.weights.official import load_official

__all__ = [
    "CheckpointError",
    "DenseFeatures",
    "FrozenModelError",
    "GrafT",
    "GraftConfig",
    "GraftError",
    "LoadReport",
    "MissingExtraError",
    "NoGraftPointError",
    "VitgraftError",
    "__version__",
    "freeze",
    "from_pretrained",
    "graft",
    "grafts",
    "is_grafted",
    "load",
    "load_grafts",
    "load_official",
    "pyramid",
    "register_block",
    "register_smp_encoder",
    "save_grafts",
    "strip",
    "train_grafts_only",
]
