"""Weights: official checkpoints, the files of runs, and models by name with their weights."""
