"""Inference of segmentation models: whole images or sliding windows, one or several scales, with and without flips.

As mmsegmentation and so the Swin authors do it (mmseg/models/segmentors/encoder_decoder.py): logits of overlapping
windows are averaged, resized to the wanted size, turned into probabilities, and these are averaged over scales and
flips. A difference: their test scales resize the image file anew, ours the float tensor that the model would be given.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitgraft.models.dense import resize

__all__ = ["MULTI_SCALE", "infer", "infer_rows", "window_errors", "window_starts"]

MULTI_SCALE = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
"""The authors' scales of a multi-scale test."""

# K classes, H x W the image that the model is given, h x w the wanted size


def infer(
    model: nn.Module,
    image: Tensor,
    window: int | None = None,
    stride: int | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Class probabilities of one image.

    Args:
        model: In evaluation mode: images (B, 3, H, W) of any size -> logits (B, K, H, W).
        image: (B, 3, H, W), normalized; one image, or several of one size.
        window: Side of the windows in pixels of the scaled image; None: the whole image at once.
        stride: From one window to the next; None: two thirds of a window, as the authors' configurations have it.
        scales: Factors on the image's sides; probabilities are averaged.
        flip: Average with the mirrored image at every scale.
        size: (h, w) of the result; None: that of the image.

    Returns:
        (B, K, h, w) float32 probabilities.

    Raises:
        ValueError: A window, stride or scale out of range.
    """
    _check(window, stride, scales)
    size = tuple(size or image.shape[2:])
    total = None
    for scale in scales:
        scaled = resize(image, [max(1, round(side * scale)) for side in image.shape[2:]])
        for mirrored in (False, True) if flip else (False,):
            logits = _logits(model, scaled.flip(3) if mirrored else scaled, window, stride)
            probabilities = resize(logits, size).softmax(1)
            del logits
            if mirrored:
                probabilities = probabilities.flip(3)
            total = probabilities if total is None else total.add_(probabilities)
    return total.div_(len(scales) * (2 if flip else 1))


def window_errors(window: int | None, stride: int | None, scales: Sequence[float]) -> list[str]:
    """The errors in these options of `infer`, one line each."""
    errors = []
    if window is not None and window < 1:
        errors.append(f"window={window}: give 1 pixel or more, or None for the whole image")
    if stride is not None and window is None:
        errors.append(f"stride={stride}: only with a window")
    elif stride is not None and window is not None and not 1 <= stride <= window:
        errors.append(f"stride={stride}: give 1 to {window}; a larger one would leave gaps between the windows")
    if not scales or any(not 0 < scale < float("inf") for scale in scales):
        errors.append(f"scales={list(scales)}: give one or more factors above 0")
    return errors


def _check(window: int | None, stride: int | None, scales: Sequence[float]) -> None:
    if errors := window_errors(window, stride, scales):
        raise ValueError("; ".join(errors))


def window_starts(side: int, window: int, stride: int | None = None) -> list[int]:
    """Where the windows along one side begin; the last one is moved back to end with the image.

    >>> window_starts(100, 40, 30)
    [0, 30, 60]
    >>> window_starts(30, 40)
    [0]
    """
    step = stride or max(1, window * 2 // 3)
    count = max(side - window + step - 1, 0) // step + 1
    return [max(0, min(i * step, side - window)) for i in range(count)]


def _logits(model: nn.Module, image: Tensor, window: int | None, stride: int | None) -> Tensor:
    """(B, 3, H, W) to float32 logits (B, K, H, W), those of several windows averaged."""
    if window is None:
        return model(image).float()
    return torch.cat([rows.float() for _, rows in _window_rows(model, image, window, stride)], 2)


def _window_rows(model: nn.Module, image: Tensor, window: int, stride: int | None) -> Iterator[tuple[int, Tensor]]:
    """Averaged logits from top to bottom: (first row, (B, K, rows, W)) as soon as no further window overlaps the rows.

    Only as many rows as a window is high are kept, whatever the height of the image.
    """
    height, width = image.shape[2:]
    tops, lefts = window_starts(height, window, stride), window_starts(width, window, stride)
    done = 0  # rows that have been yielded
    summed = counts = None  # of the rows from `done` on
    for number, top in enumerate(tops):
        bottom = min(top + window, height)
        for left in lefts:
            right = min(left + window, width)
            logits = model(image[:, :, top:bottom, left:right]).float()
            if summed is None:
                summed = logits.new_zeros((*logits.shape[:2], 0, width))
                counts = logits.new_zeros((1, 1, 0, width))
            if summed.shape[2] < bottom - done:
                more = (0, 0, 0, bottom - done - summed.shape[2])
                summed, counts = F.pad(summed, more), F.pad(counts, more)
            summed[:, :, top - done : bottom - done, left:right] += logits
            counts[:, :, top - done : bottom - done, left:right] += 1
        ready = (tops[number + 1] if number + 1 < len(tops) else height) - done
        if ready > 0:
            yield done, summed[:, :, :ready] / counts[:, :, :ready]
            summed, counts, done = summed[:, :, ready:].clone(), counts[:, :, ready:].clone(), done + ready


def infer_rows(model: nn.Module, image: Tensor, window: int, stride: int | None = None) -> Iterator[tuple[int, Tensor]]:
    """Class probabilities of a large image by sliding windows, strip by strip.

    The memory does not depend on the image's height: besides the image there are the logits of `window` rows.
    All strips together are `infer(model, image, window, stride)`.

    Args:
        model: In evaluation mode: images (B, 3, H, W) of any size -> logits (B, K, H, W).
        image: (B, 3, H, W), normalized.
        window: Side of the windows in pixels.
        stride: From one window to the next; None: two thirds of a window.

    Yields:
        First row, and probabilities (B, K, rows, W).

    Raises:
        ValueError: A window or stride out of range.
    """
    _check(window, stride, (1.0,))
    for top, logits in _window_rows(model, image, window, stride):
        yield top, logits.softmax(1)
