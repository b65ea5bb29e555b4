"""Measurements of the training loop, the loader and memory; from a checkout, not in the wheel."""
