"""What `predict` takes for an image: a path, a PIL image, an array, a tensor; and lists and batches of them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from vitgraft.data.decode import decode_image, to_rgb
from vitgraft.errors import ImageError

__all__ = ["ImageLike", "read_image", "split"]

ImageLike = str | Path | Image.Image | np.ndarray | Tensor


def split(images: Any) -> tuple[list[ImageLike], bool]:
    """The images of an argument, and whether it was a single one.

    Args:
        images: One image, an iterable of them, or an array or tensor with a batch axis in front.

    Raises:
        ImageError: Neither.
    """
    if isinstance(images, (np.ndarray, Tensor)):
        return (list(images), False) if images.ndim == 4 else ([images], True)
    if isinstance(images, (str, Path, Image.Image)):
        return [images], True
    if isinstance(images, Iterable) and not isinstance(images, (bytes, dict)):
        return list(images), False
    raise ImageError(
        f"{type(images).__name__}",
        "not an image: give a path, a PIL image, an array (H, W, 3), a tensor (3, H, W), or a list of them",
    )


def read_image(image: ImageLike, name: str = "image") -> Image.Image:
    """One image as 8-bit RGB.

    Args:
        image: A file; a PIL image of any mode; an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), as PIL and
            matplotlib have them; a tensor (H, W), (1, H, W), (3, H, W) or (4, H, W), as torchvision reads them. Both
            hold uint8, or floats of 0 to 1, which are rounded to 8 bits. They are not normalized.
        name: Of images that are not files, in errors.

    Raises:
        ImageError: A file that is missing, no image or damaged; an array or tensor of another shape, dtype or range.
    """
    if isinstance(image, (str, Path)):
        return _read_file(Path(image))
    if isinstance(image, Image.Image):
        return to_rgb(image, name)
    if isinstance(image, Tensor):
        pixels = image.detach().cpu()
        pixels = pixels.float().numpy() if pixels.is_floating_point() else pixels.numpy()
        return _from_array(np.moveaxis(pixels, 0, -1) if pixels.ndim == 3 else pixels, name, image, "(3, H, W)")
    if isinstance(image, np.ndarray):
        return _from_array(image, name, image, "(H, W, 3)")
    raise ImageError(name, f"{type(image).__name__} is no path, PIL image, array or tensor")


def _read_file(path: Path) -> Image.Image:
    try:
        return decode_image(path.read_bytes(), str(path))
    except IsADirectoryError as error:
        raise ImageError(
            str(path), "a folder; give a list of its images, such as sorted(Path(FOLDER).glob('*.jpg'))"
        ) from error
    except OSError as error:
        raise ImageError(str(path), error.strerror or str(error)) from error


def _from_array(pixels: np.ndarray, name: str, given: Any, form: str) -> Image.Image:
    """(H, W) or (H, W, channels) to RGB."""
    kind, shape = type(given).__name__, tuple(given.shape)
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4)) or 0 in pixels.shape:
        raise ImageError(name, f"a {kind} of shape {shape}: give {form}, or (H, W) for gray")
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * 255
    elif np.issubdtype(pixels.dtype, np.floating):
        if not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1):
            raise ImageError(
                name, f"a {kind} of floats beyond 0 to 1: give the image itself, not normalized; uint8 has 0 to 255"
            )
        pixels = np.rint(pixels * 255).astype(np.uint8)
    elif pixels.dtype != np.uint8:
        raise ImageError(name, f"a {kind} of {given.dtype}: give uint8 (0 to 255), or floats of 0 to 1")
    pixels = pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    return to_rgb(Image.fromarray(np.ascontiguousarray(pixels)), name)
