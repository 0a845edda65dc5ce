"""Any image file to an 8-bit RGB picture, or one error that names the file and what is wrong with it."""

from __future__ import annotations

import io
import os
import struct
from contextlib import nullcontext
from pathlib import Path
from typing import IO, cast

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

MAX_PIXELS = 100_000_000
"""Default limit of `load_image`: 10 000 x 10 000, 300 MB as RGB."""

BLACKENED = "blackened"
"""In the ``info`` of an image drawn: a safety checker has put black in its place."""

# Pillow decodes EPS by starting Ghostscript on the file: not for files of unknown origin.
REFUSED_FORMATS = frozenset({"EPS"})

_ORIENTATION_TAG = 0x0112
_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# round(v / 257): the 16-bit value 257 * b is the 8-bit value b.
_SIXTEEN_TO_EIGHT = ((np.arange(65536) + 128) // 257).astype(np.uint8)


class ImageError(ValueError):
    """An image that cannot be used; the message is its name, if it has one, and the ``reason``."""

    def __init__(self, reason: str, name: str = "") -> None:
        super().__init__(f"{name}: {reason}" if name else reason)
        self.reason = reason


def load_image(
    source: str | os.PathLike[str] | bytes | Image.Image, *, max_pixels: int = MAX_PIXELS, name: str | None = None
) -> Image.Image:
    """An image as 8-bit RGB, the way it is meant to be looked at.

    The EXIF rotation is applied; transparency is laid over white; of an animation the first frame is taken. Gray
    values of more than 8 bits are scaled, not clipped: 16-bit from 0..65535; 32-bit integers likewise if they fit
    there, floats from 0..1 or else 0..255 if they fit there; what does not fit is stretched from its lowest to its
    highest value. Embedded colour profiles are not applied, as is usual where vision encoders are trained.

    source: a path, the bytes of a file, or an image that Pillow has opened or made (it is left as it is).
    max_pixels: larger images are refused before their pixels are decoded, so that a small file cannot take all memory;
        except JPEG files that can be decoded at 1/2, 1/4 or 1/8 of the size without ever holding the whole: those
        come reduced. PIL's own global limit plays no part.
    name: what to call the image in errors; by default its path.

    Returns a new image, at least 1 x 1. Raises ImageError (a ValueError) for everything that is wrong with the image.
    """
    if not isinstance(source, str | os.PathLike | bytes | Image.Image):
        raise TypeError(f"source: expected a path, bytes or a PIL image, got {type(source).__name__}")
    name = name or _name(source)
    try:
        if isinstance(source, Image.Image):
            return _to_rgb(source, max_pixels)
        with _opened(source) as file:
            return _to_rgb(_identify(file), max_pixels)
    except Exception as error:  # Pillow's decoders raise whatever a broken file leads them to
        raise ImageError(_reason(error), name) from error


def image_size(source: str | os.PathLike[str] | bytes, *, name: str | None = None) -> tuple[int, int]:
    """(height, width) of the image in a file, the way it is meant to be looked at, from the file's header alone.

    Raises ImageError where there is none; what `load_image` refuses for other reasons passes here.
    """
    try:
        with _opened(source) as file:
            image = _identify(file)
            turned = _orientation(image) >= 5
            return (image.width, image.height) if turned else (image.height, image.width)
    except Exception as error:
        raise ImageError(_reason(error), name or _name(source)) from error


def _name(source: str | os.PathLike[str] | bytes | Image.Image) -> str:
    if isinstance(source, Image.Image):
        return getattr(source, "filename", "") or f"{source.mode} image of {_size(source)} pixels"
    if isinstance(source, bytes):
        return f"image of {len(source)} bytes"
    return os.fspath(source)


def _reason(error: Exception) -> str:
    if isinstance(error, ImageError):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    text = " ".join(str(error).split()) or type(error).__name__
    return text if "truncated" in text else f"cannot be decoded ({text})"


def _opened(source: str | os.PathLike[str] | bytes):
    if isinstance(source, bytes):
        if not source:
            raise ImageError("is empty")
        return nullcontext(io.BytesIO(source))
    path = Path(source)
    if path.is_dir():
        raise ImageError("is a folder, not an image file")
    if path.exists() and not path.is_file():
        raise ImageError("is not a regular file")
    if path.stat().st_size == 0:
        raise ImageError("the file is empty")
    return open(path, "rb")


def _identify(file: IO[bytes]) -> Image.Image:
    """Image.open without its check against a process-wide number of pixels: ours comes with the size in the message."""
    Image.init()
    prefix = file.read(16)
    broken = None
    for format in tuple(Image.ID):
        factory, accepts = Image.OPEN[format]
        verdict = format not in REFUSED_FORMATS and (accepts is None or accepts(prefix))
        if isinstance(verdict, str):  # recognised, but this Pillow was built without the decoder
            broken = broken or verdict
        if verdict is False or isinstance(verdict, str):
            continue
        file.seek(0)
        try:
            return factory(file, "")
        except (SyntaxError, IndexError, TypeError, struct.error) as error:  # how plugins say "not mine, or broken"
            broken = broken or (f"broken {format} file ({' '.join(str(error).split())})" if accepts else None)
    raise ImageError(broken or "not an image of a known format")


def _size(image: Image.Image) -> str:
    return f"{image.width} x {image.height}"


def _to_rgb(image: Image.Image, max_pixels: int) -> Image.Image:
    _bound(image, max_pixels)
    image.load()
    if min(image.size) < 1:
        raise ImageError(f"has no pixels ({_size(image)})")
    orientation = _orientation(image)
    image = _flatten(image)
    return image.transpose(_ORIENTATION[orientation]) if orientation in _ORIENTATION else image


def _bound(image: Image.Image, max_pixels: int) -> None:
    full = _size(image)
    if image.width * image.height <= max_pixels:
        return
    if isinstance(image, JpegImageFile) and image.tile and _decodes_in_rows(image):
        for scale in (2, 4, 8):
            if -(-image.width // scale) * -(-image.height // scale) <= max_pixels or scale == 8:
                image.draft(None, (max(1, image.width // scale), max(1, image.height // scale)))
                break
        if image.width * image.height <= max_pixels:
            return
    raise ImageError(f"{full} pixels are more than the limit of {max_pixels} pixels")


def _decodes_in_rows(image: JpegImageFile) -> bool:
    """Whether the whole JPEG is one sequential scan. Of any other (progressive, one scan per channel) libjpeg keeps the
    coefficients of the full size in memory, whatever the size asked for."""
    file = cast("IO[bytes]", image.fp)
    position = file.tell()
    try:
        file.seek(2)
        channels = None
        while True:
            marker, code = file.read(1), file.read(1)
            while code == b"\xff":  # fill bytes
                code = file.read(1)
            if marker != b"\xff" or not code:
                return False
            (length,) = struct.unpack(">H", file.read(2))
            body = file.read(length - 2)
            if code in (b"\xc0", b"\xc1"):  # SOF0, SOF1: sequential
                channels = body[5]
            elif code == b"\xda":  # SOS
                return body[0] == channels
    except (struct.error, IndexError):
        return False
    finally:
        file.seek(position)


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # a broken EXIF block is no reason to lose the picture
        return 1


def _flatten(image: Image.Image) -> Image.Image:
    """A new RGB image: deep gray scaled, transparency over white, everything else converted."""
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_eight_bit(image)).convert("RGB")
    if image.mode in ("La", "RGBa"):  # premultiplied
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    flat = Image.new("RGB", image.size, "white")
    flat.paste(image, mask=image.getchannel("A"))
    return flat


def _eight_bit(image: Image.Image) -> np.ndarray:
    values = np.asarray(image)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ImageError("has NaN or infinite pixels")
    low, high = values.min(), values.max()
    if values.dtype.kind == "f":
        if low < 0 or high > 255:
            bottom, top = float(low), float(high)
        else:
            bottom, top = 0.0, (1.0 if high <= 1 else 255.0)
    elif low >= 0 and high <= 65535:
        gray = _SIXTEEN_TO_EIGHT[values]
        transparent = image.info.get("transparency")
        if isinstance(transparent, int):
            gray[values == transparent] = 255
        return gray
    else:
        bottom, top = float(low), float(high)
    return np.rint((values.astype(np.float64) - bottom) * (255 / (top - bottom))).astype(np.uint8)
