"""Evaluating classifiers: numbers, pictures, predictions. Nothing here needs Lightning."""
