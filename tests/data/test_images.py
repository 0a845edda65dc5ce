"""load_image: every image file becomes the picture one expects, or one error that names it and the reason."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from lavit.data.images import ImageError, load_image


def encode(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pixels(image):
    assert image.mode == "RGB"
    return np.asarray(image)


def ramp(height=5, width=7, channels=3):
    values = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return values if channels > 1 else values[..., 0]


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def huge_png(width, height):
    """A valid header of width x height gray pixels over next to no data: a decompression bomb."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")


# What the pixels become


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP", "PPM", "WEBP", "TGA"])
def test_lossless_formats_keep_every_pixel(format, tmp_path):
    options = {"lossless": True} if format == "WEBP" else {}
    data = encode(Image.fromarray(ramp()), format, **options)
    path = tmp_path / f"a.{format.lower()}"
    path.write_bytes(data)
    for source in (data, path, str(path), Image.open(path)):
        assert (pixels(load_image(source)) == ramp()).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF"])
def test_exif_rotation_is_applied(orientation, format):
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :8] = 255  # one bright corner, top left
    stored = {  # how a camera held in each way stores that scene
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(np.ascontiguousarray(stored)), format, exif=exif)
    seen = pixels(load_image(data)).astype(int)
    assert seen.shape == upright.shape
    assert abs(seen - upright).max() < 64  # JPEG rings; a wrong corner would differ by 255


def test_broken_exif_does_not_lose_the_picture():
    data = encode(Image.fromarray(ramp()), "PNG", exif=b"Exif\0\0MM\0*\0\0\xff\xff\xff\xff")
    assert (pixels(load_image(data)) == ramp()).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 255), st.integers(0, 255))
def test_alpha_is_laid_over_white(gray, alpha):
    expected = (gray * alpha + 255 * (255 - alpha)) / 255
    for image in (Image.new("LA", (3, 2), (gray, alpha)), Image.new("RGBA", (3, 2), (gray, gray, gray, alpha))):
        for source in (image, encode(image, "PNG")):
            assert abs(pixels(load_image(source)) - expected).max() <= 0.5 + 1e-6


def test_transparent_colour_of_a_palette_is_white():
    image = Image.new("P", (4, 1))
    image.putpalette([200, 0, 0, 0, 200, 0])
    image.putdata([0, 1, 0, 1])
    for format in ("PNG", "GIF"):
        seen = pixels(load_image(encode(image, format, transparency=1)))
        assert seen.tolist() == [[[200, 0, 0], [255, 255, 255]] * 2]


@pytest.mark.parametrize("mode, key", [("1", 0), ("L", 0), ("RGB", (0, 0, 0))])
def test_transparent_colour_without_palette_is_white(mode, key):
    image = Image.new(mode, (2, 1), 0)
    assert (pixels(load_image(encode(image, "PNG", transparency=key))) == 255).all()
    assert (pixels(load_image(encode(image, "PNG"))) == 0).all()


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bit_gray_is_scaled_and_not_clipped(format):
    deep = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    seen = pixels(load_image(encode(Image.fromarray(deep), format)))
    assert (seen == (deep // 257)[..., None]).all()


def test_sixteen_bit_rounds_to_the_nearest():
    deep = np.random.default_rng(0).integers(0, 65536, (31, 33)).astype(np.uint16)
    seen = pixels(load_image(Image.fromarray(deep)))
    assert abs(seen[..., 0] - deep / 257).max() <= 0.5


def sixteen_bit_png(rows, color_type, extra=b""):
    """A PNG of big-endian 16-bit samples, which Pillow can read but not write. rows: (H, W, channels)."""
    header = struct.pack(">IIBBBBB", rows.shape[1], rows.shape[0], 16, color_type, 0, 0, 0)
    data = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    body = png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", zlib.compress(data)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_sixteen_bit_colour_and_alpha():
    rows = ramp(channels=3).astype(np.uint16) * 257
    assert (pixels(load_image(sixteen_bit_png(rows, 2))) == ramp(channels=3)).all()
    clear = np.zeros((2, 2, 4), np.uint16)
    assert (pixels(load_image(sixteen_bit_png(clear, 6))) == 255).all()
    gray = np.array([[[0], [65535], [500]]], np.uint16)
    keyed = sixteen_bit_png(gray, 0, png_chunk(b"tRNS", struct.pack(">H", 500)))
    assert pixels(load_image(keyed))[0, :, 0].tolist() == [0, 255, 255]
    keyed = sixteen_bit_png(rows, 2, png_chunk(b"tRNS", struct.pack(">HHH", 60000, 1, 2)))
    assert (pixels(load_image(keyed)) == ramp(channels=3)).all()


@pytest.mark.parametrize(
    "values, expected",
    [
        (np.array([[0, 65535]], np.int32), [0, 255]),
        (np.array([[-10, 0, 10]], np.int32), [0, 128, 255]),
        (np.array([[0, 2**30]], np.int32), [0, 255]),
        (np.array([[0.0, 0.2, 1.0]], np.float32), [0, 51, 255]),
        (np.array([[0.0, 51.0, 255.0]], np.float32), [0, 51, 255]),
        (np.array([[-1.0, 1.0]], np.float32), [0, 255]),
        (np.array([[0.5]], np.float32), [128]),
    ],
)
def test_thirty_two_bit_gray_is_scaled(values, expected):
    image = Image.fromarray(values)
    for source in (image, encode(image, "TIFF")):
        assert pixels(load_image(source))[0, :, 0].tolist() == expected


def test_nan_pixels_are_refused():
    with pytest.raises(ImageError, match="NaN"):
        load_image(Image.fromarray(np.array([[0.0, np.nan]], np.float32)))


@pytest.mark.parametrize("mode", "1 L P LA PA La RGBa RGBX CMYK YCbCr HSV I F I;16 I;16B".split())
@pytest.mark.parametrize("size", [(1, 1), (3, 2)])
def test_every_mode_gives_rgb_of_the_same_size(mode, size):
    result = load_image(Image.new(mode, size))
    assert result.mode == "RGB" and result.size == size


def test_cmyk_jpeg_keeps_its_colours():
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # red
    red, green, blue = pixels(load_image(encode(image, "JPEG")))[8, 8]
    assert red > 200 and green < 60 and blue < 60


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (4, 4), c) for c in ("red", "blue")]
    for format in ("GIF", "PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if format == "WEBP" else {}
        data = encode(frames[0], format, save_all=True, append_images=frames[1:], **options)
        assert (pixels(load_image(data)) == (255, 0, 0)).all(), format


def test_an_image_in_memory_is_left_as_it_is():
    image = Image.fromarray(ramp())
    result = load_image(image)
    result.putpixel((0, 0), (1, 2, 3))
    assert (np.asarray(image) == ramp()).all()


# What is refused


def test_not_an_image_names_file_and_reason(tmp_path):
    cases = {
        "text.jpg": (b"hello, this is not an image at all", "not an image"),
        "empty.png": (b"", "empty"),
        "bomb.png": (huge_png(20000, 20000), "20000 x 20000 pixels are more than the limit of 100000000"),
        "script.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    }
    for name, (data, reason) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ImageError, match=f"{name}: .*{reason}"):
            load_image(tmp_path / name)
    with pytest.raises(ImageError, match="lacking.png: no such file"):
        load_image(tmp_path / "lacking.png")
    with pytest.raises(ImageError, match="folder"):
        load_image(tmp_path)
    with pytest.raises(ImageError, match="photo 7: .*empty"):
        load_image(b"", name="photo 7")
    with pytest.raises(TypeError, match="source"):
        load_image(3)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "BMP", "GIF", "PPM", "WEBP"])
def test_truncated_file_is_refused_at_any_place(format, tmp_path):
    data = encode(Image.fromarray(ramp(40, 50)), format)
    for part in (0.02, 0.3, 0.6, 0.9):
        path = tmp_path / "cut.img"
        path.write_bytes(data[: int(part * len(data))])
        with pytest.raises(ImageError, match="cut.img: "):
            load_image(path)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "TIFF", "GIF", "WEBP", "BMP"]), st.data())
def test_damaged_bytes_give_a_picture_or_an_image_error(format, data):
    content = bytearray(encode(Image.fromarray(ramp(12, 13)), format))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own remarks on damaged metadata
        try:
            result = load_image(bytes(content), max_pixels=1_000_000)
        except ImageError:
            return
    assert result.mode == "RGB" and 1 <= result.width * result.height <= 1_000_000


# Large images


def test_large_jpeg_is_decoded_reduced():
    picture = np.zeros((400, 800, 3), np.uint8)
    picture[:200, :400] = 255
    data = encode(Image.fromarray(picture), "JPEG")
    assert load_image(data, max_pixels=400 * 800).size == (800, 400)
    half = load_image(data, max_pixels=400 * 800 - 1)
    assert half.size == (400, 200)
    assert pixels(half)[50, 100].min() > 240 and pixels(half)[150, 300].max() < 15
    assert load_image(data, max_pixels=50 * 100).size == (100, 50)
    with pytest.raises(ImageError, match="800 x 400 pixels are more than the limit of 4999 pixels"):
        load_image(data, max_pixels=50 * 100 - 1)


def test_large_progressive_jpeg_is_refused():
    # Its coefficients are held in full size whatever the reduction: no bounded memory.
    data = encode(Image.new("RGB", (200, 200)), "JPEG", progressive=True)
    with pytest.raises(ImageError, match="200 x 200"):
        load_image(data, max_pixels=39_999)


def test_twenty_thousand_pixels_square_in_bounded_memory(tmp_path):
    Image.new("L", (20000, 20000), 77).save(tmp_path / "large.jpg")
    code = (
        "import resource, sys; from lavit.data.images import load_image;"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "image = load_image(sys.argv[1]); assert image.size == (10000, 10000), image.size;"
        "assert abs(image.getpixel((5000, 5000))[0] - 77) < 3;"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    out = subprocess.run([sys.executable, "-c", code, tmp_path / "large.jpg"], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    # 100 million gray pixels and their RGB copy (Pillow holds 4 bytes each), plus 10 %; the full size would be 2 GB.
    assert int(out.stdout) * 1024 < 1.1 * (100e6 + 400e6)


def test_limits_and_settings_of_the_process_are_not_touched(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_image(encode(Image.fromarray(ramp()), "PNG")).size == (7, 5)
    assert Image.MAX_IMAGE_PIXELS == 4
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
