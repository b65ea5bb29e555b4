"""Bytes of an image file to upright 8-bit RGB, or an `ImageError` that names the file and its error.

What is done with images that are not plain RGB:

| image | becomes |
|---|---|
| gray, palette, CMYK, YCbCr, 1-bit | RGB, by Pillow's conversion |
| transparent (alpha channel, or palette with transparent entries) | laid on white |
| 16-bit gray | its upper 8 bits (Pillow's conversion would clip all above 255 to white) |
| 16-bit RGB | 8-bit, by Pillow's decoder |
| animated (GIF, WebP, APNG) | its first frame |
| turned by its EXIF entry | upright |
| truncated, empty, no image, floating-point, over `MAX_PIXELS` | `ImageError` |
"""

import io
import warnings

from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from vitgraft.errors import ImageError

__all__ = ["MAX_PIXELS", "ImageError", "decode_annotated", "decode_image", "to_rgb"]

# Where Pillow itself gives up by default (twice its MAX_IMAGE_PIXELS): 0.5 GB as RGB.
MAX_PIXELS = 178_956_970
_EXIF_ORIENTATION = 0x0112
_PLAIN = ("L", "CMYK", "YCbCr", "1", "LAB", "HSV")


def decode_image(data: bytes, name: str, max_pixels: int = MAX_PIXELS, upright: bool = True) -> Image.Image:
    """Decodes an image file.

    Args:
        data: The file's content.
        name: The file's name in errors.
        max_pixels: Images with more are refused before they are decoded; a few kB can unpack to many GB.
        upright: Turn it by its EXIF entry; otherwise it stays as it is stored.

    Returns:
        An RGB image, loaded.

    Raises:
        ImageError: The file is broken, or cannot be shown as 8-bit RGB.
    """
    image = open_image(data, name, max_pixels)
    try:
        with warnings.catch_warnings():
            # Damaged EXIF entries make Pillow warn and read on, which is right here.
            warnings.simplefilter("ignore")
            truncated_are_loaded, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
            try:
                image.load()
            finally:
                ImageFile.LOAD_TRUNCATED_IMAGES = truncated_are_loaded
            rgb = to_rgb(image, name)
            return _upright(rgb, image) if upright else rgb
    except ImageError:
        raise
    except MemoryError:
        raise ImageError(name, f"no memory for {image.width} x {image.height} pixels") from None
    # Pillow's plugins let many kinds of exceptions through for damaged files: OSError, SyntaxError, ValueError,
    # struct.error, EOFError, IndexError, KeyError, zlib.error ...
    except Exception as error:
        raise ImageError(name, str(error) or type(error).__name__) from error


def open_image(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Reads an image's header: size, mode and format are known, pixels are not decoded yet.

    Args:
        data: The file's content.
        name: The file's name in errors.
        max_pixels: Images with more are refused.

    Raises:
        ImageError: The file is empty, no image, or too large.
    """
    if not data:
        raise ImageError(name, "empty file (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the size is checked below
            image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        raise ImageError(name, f"not an image that Pillow can read (starts with {data[:8]!r})") from None
    except Image.DecompressionBombError as error:
        raise ImageError(name, f"too large: {error}") from None
    except Exception as error:
        raise ImageError(name, str(error) or type(error).__name__) from error
    if image.width * image.height > max_pixels:
        raise ImageError(name, f"too large: {image.width} x {image.height} pixels, at most {max_pixels} are decoded")
    return image


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """An image of any mode as 8-bit RGB, as the table above has it; RGB without transparency comes back as it is.

    Args:
        image: The image.
        name: Its name in errors.

    Raises:
        ImageError: A floating-point image.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("RGBA", "LA", "La", "RGBa", "PA") or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        # Pillow before 10 and its PNG reader call 16-bit gray "I"
        return image.convert("I").point(lambda value: value * (1 / 256)).convert("L").convert("RGB")
    if image.mode == "P" or image.mode in _PLAIN:
        return image.convert("RGB")
    raise ImageError(name, f"mode {image.mode}: the value of white is unknown; save it as 8-bit or 16-bit")


def decode_annotated(data: bytes, name: str, size: tuple[int, int]) -> Image.Image:
    """Decodes an image file as its annotations, of (height, width) pixels, see it: upright, or as it is stored where
    only that has their size. Some tools annotate the image as it is stored, not as its EXIF entry turns it.

    Raises:
        ImageError: As `decode_image`. Images of another size than their annotations come back upright.
    """
    upright = decode_image(data, name)
    if upright.size[::-1] == tuple(size):
        return upright
    stored = decode_image(data, name, upright=False)
    return stored if stored.size[::-1] == tuple(size) else upright


def _upright(rgb: Image.Image, image: Image.Image) -> Image.Image:
    """Turns the image by the EXIF orientation of `image`, the file's; files without one cost nothing."""
    if "exif" not in image.info and image.format not in ("TIFF", "PNG", "MPO", "WEBP"):
        return rgb
    if image.getexif().get(_EXIF_ORIENTATION, 1) == 1:
        return rgb
    if rgb is not image:
        rgb.getexif()[_EXIF_ORIENTATION] = image.getexif()[_EXIF_ORIENTATION]
    return ImageOps.exif_transpose(rgb)
