"""Every odd kind of image file: right, or an `ImageError` with name and reason."""

import io
import pickle
import struct
import zlib

import numpy as np
import pytest
from datasets_on_disk import image_bytes
from PIL import Image, ImageFile

from vitgraft.data.decode import decode_image
from vitgraft.errors import ImageError


def encoded(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pixels(data):
    image = decode_image(data, "x")
    assert image.mode == "RGB"
    return np.asarray(image)


def reference():
    """(32, 40, 3), exactly."""
    return np.asarray(Image.open(io.BytesIO(image_bytes(format="PNG"))))


def test_plain_images():
    assert (pixels(image_bytes(format="PNG")) == reference()).all()
    for format in ("BMP", "TIFF", "PPM"):
        assert (pixels(image_bytes(format=format)) == reference()).all()
    for format in ("JPEG", "WEBP"):
        assert np.abs(pixels(image_bytes(format=format, quality=95)).astype(int) - reference()).mean() < 4


def test_it_is_what_timm_decodes():
    data = image_bytes(7, size=(123, 77))
    assert (pixels(data) == np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))).all()


def test_gray_cmyk_and_one_bit():
    gray = np.asarray(Image.fromarray(reference()).convert("L"))
    assert (pixels(encoded(Image.fromarray(gray), "PNG")) == gray[..., None]).all()
    cmyk = encoded(Image.fromarray(reference()).convert("CMYK"), "JPEG", quality=95)
    assert Image.open(io.BytesIO(cmyk)).mode == "CMYK"
    assert np.abs(pixels(cmyk).astype(int) - reference()).mean() < 5
    bits = pixels(encoded(Image.fromarray(reference()).convert("1"), "PNG"))
    assert set(np.unique(bits)) == {0, 255}


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_gray_keeps_its_grays(format):
    ramp = np.linspace(0, 65535, 40 * 32).astype(np.uint16).reshape(32, 40)
    expected = (ramp >> 8).astype(int)[..., None]
    assert np.abs(pixels(encoded(Image.fromarray(ramp), format)).astype(int) - expected).max() <= 1


def test_16_bit_rgb():
    """A PNG written by hand: Pillow can't write one."""
    values = np.arange(4 * 5 * 3, dtype=np.uint16).reshape(4, 5, 3) * 1000

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 5, 4, 16, 2, 0, 0, 0))
    data += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert np.abs(pixels(data).astype(int) - (values >> 8)).max() <= 1


def test_palette_and_transparency():
    palette = Image.fromarray(reference()).quantize(16)
    assert (pixels(encoded(palette, "PNG")) == np.asarray(palette.convert("RGB"))).all()
    first = np.asarray(palette)[0, 0]
    shown = pixels(encoded(palette, "PNG", transparency=int(first)))
    hidden = np.asarray(palette) == first
    assert (shown[hidden] == 255).all() and (shown[~hidden] == np.asarray(palette.convert("RGB"))[~hidden]).all()
    by_alpha = np.dstack([reference(), np.full((32, 40), 255, np.uint8)])
    by_alpha[:10, :, 3] = 0
    by_alpha[10:20, :, 3] = 128
    shown = pixels(encoded(Image.fromarray(by_alpha), "PNG"))
    assert (shown[:10] == 255).all() and (shown[20:] == reference()[20:]).all()
    assert np.abs(shown[10:20] - (reference()[10:20] * 0.502 + 255 * 0.498)).max() <= 1
    gray_alpha = Image.fromarray(by_alpha).convert("LA")
    assert (pixels(encoded(gray_alpha, "PNG"))[:10] == 255).all()
    assert (pixels(encoded(Image.fromarray(reference()).convert("RGB"), "PNG", transparency=(1, 2, 3))) >= 0).all()


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation(format):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "green")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert (pixels(data) == [255, 0, 0]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "gray JPEG", "PNG", "TIFF"])
def test_turned_by_exif(kind, orientation):
    upright = reference()
    # what a camera stores: the inverse of what the orientation asks for
    turn = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(turn(upright)))
    if kind == "gray JPEG":
        stored, upright = stored.convert("L"), np.asarray(Image.fromarray(upright).convert("L"))[..., None]
    options = {"quality": 95} if "JPEG" in kind else {}
    shown = pixels(encoded(stored, kind.split()[-1], exif=exif, **options))
    assert shown.shape == (32, 40, 3) and np.abs(shown.astype(int) - upright).mean() < 4


def bomb():
    """A PNG of 30000 x 30000 pixels in 200 bytes."""
    data = bytearray(image_bytes(format="PNG", mode="L"))
    data[16:24] = struct.pack(">II", 30_000, 30_000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


JPEG = image_bytes(size=(200, 150))
BROKEN = {
    "zero-byte": (b"", r"empty file \(0 bytes\)"),
    "no image": (b"<html>not found</html>", "not an image that Pillow can read .starts with b'<html>no'"),
    "truncated JPEG": (JPEG[: len(JPEG) // 2], "truncated"),
    "JPEG without data": (JPEG[:200], "Truncated File Read"),
    "truncated PNG": (image_bytes(format="PNG")[:-200], "truncated|broken|incomplete"),
    "truncated WebP": (image_bytes(format="WEBP")[:-100], "WebP|decode|not an image|truncated"),
    "damaged PNG": (image_bytes(format="PNG")[:60] + b"\0" * 40 + image_bytes(format="PNG")[100:], "."),
    "huge": (bomb(), "too large: "),
    "floating point": (encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "mode F: "),
    "32-bit": (encoded(Image.fromarray(np.ones((4, 4), np.int32)), "TIFF"), "mode I: "),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_images(kind):
    data, reason = BROKEN[kind]
    with pytest.raises(ImageError, match=rf"^some/name\.jpg: .*({reason})") as caught:
        decode_image(data, "some/name.jpg")
    assert caught.value.name == "some/name.jpg" and caught.value.reason
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.name, copy.reason, str(copy)) == (caught.value.name, caught.value.reason, str(caught.value))


def test_truncated_images_are_found_whatever_other_libraries_set(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ImageError, match="truncated"):
        decode_image(JPEG[: len(JPEG) // 2], "a")
    assert ImageFile.LOAD_TRUNCATED_IMAGES


def test_the_limit_of_pixels():
    assert decode_image(JPEG, "a", max_pixels=30_000).size == (200, 150)
    with pytest.raises(ImageError, match="too large: 200 x 150 pixels, at most 29999"):
        decode_image(JPEG, "a", max_pixels=29_999)
