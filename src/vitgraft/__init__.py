"""GrafT, the multi-scale add-on of *Grafting Vision Transformers*, for any vision transformer."""

from vitgraft._version import __version__

__all__ = ["__version__"]
