"""Images and sentences as users hand them over (files, arrays, PIL images): converted, or refused by name."""

import io
import re
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from mindspore_coupalign.data.images import read_rgb
from mindspore_coupalign.data.inputs import shorten, to_rgb, to_sentences
from mindspore_coupalign.errors import UserError

RANDOM = np.random.default_rng(0)
RGBA = RANDOM.integers(0, 256, (5, 7, 4), np.uint8)
RGBA[:2, :, 3], RGBA[2, :, 3] = 0, 255
RGB = np.ascontiguousarray(RGBA[..., :3])
ORIENTATION = 0x0112


def on_white(rgba) -> np.ndarray:
    share = rgba[..., 3:].astype(float) / 255
    return np.floor(rgba[..., :3] * share + 255 * (1 - share) + 0.5).astype(np.uint8)


def saved(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags


def png(path: Path, width: int, height: int, depth: int, colour: int, rows: bytes, **chunks) -> Path:
    """A PNG by hand, for what no library writes."""
    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    extra = b"".join(chunk(name.encode(), body) for name, body in chunks.items())
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra
                     + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    return path


def refused(call, *arguments, match) -> str:
    with pytest.raises(UserError, match=match) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name, options", [
    ("a.png", {}), ("a.tif", {}), ("a.webp", {"lossless": True, "exact": True}), ("a.jp2", {"irreversible": False})])
def test_transparent_pixels_of_a_file_become_white(tmp_path, name, options):
    path = saved(tmp_path / name, Image.fromarray(RGBA), **options)
    found = read_rgb(path)
    assert abs(found.astype(int) - on_white(RGBA)).max() <= (name == "a.tif")  # libtiff rounds once more
    assert (found[:2] == 255).all() and found[2].tolist() == RGB[2].tolist()
    np.testing.assert_array_equal(to_rgb(path), found)
    np.testing.assert_array_equal(to_rgb(str(path)), found)


def test_every_kind_of_transparency_of_a_png(tmp_path):
    red_green = bytes([255, 0, 0, 0, 255, 0])
    white_green = [[[255] * 3, [0, 255, 0]]]
    two = tmp_path / "two.png"
    png(two, 2, 1, 8, 3, b"\0\0\1", PLTE=red_green, tRNS=bytes([0, 255]))  # by palette
    assert read_rgb(two).tolist() == white_green
    png(two, 2, 1, 8, 2, b"\0" + red_green, tRNS=struct.pack(">3H", 255, 0, 0))  # red is transparent
    assert read_rgb(two).tolist() == white_green
    png(two, 2, 1, 8, 4, bytes([0, 7, 0, 9, 255]))  # grey and alpha
    assert read_rgb(two)[0, :, 0].tolist() == [255, 9]
    png(two, 2, 1, 8, 0, bytes([0, 7, 200]), tRNS=struct.pack(">H", 7))  # one grey is transparent
    assert read_rgb(two)[0, :, 1].tolist() == [255, 200]
    png(two, 2, 1, 1, 0, bytes([0, 0b01000000]), tRNS=struct.pack(">H", 0))
    assert read_rgb(two)[0, :, 2].tolist() == [255, 255]
    png(two, 2, 1, 4, 0, bytes([0, 0x36]), tRNS=struct.pack(">H", 6))
    assert read_rgb(two)[0, :, 0].tolist() == [51, 255]
    png(two, 2, 1, 16, 0, b"\0" + struct.pack(">2H", 0x1234, 0xFF00), tRNS=struct.pack(">H", 0x1234))
    assert read_rgb(two)[0, :, 0].tolist() == [255, 0xFF]
    png(two, 2, 1, 16, 6, b"\0" + struct.pack(">8H", 0xFFFF, 0, 0, 0, 0x8000, 0, 0, 0xFFFF))
    assert read_rgb(two).tolist() == [[[255] * 3, [0x80, 0, 0]]]


def test_other_kinds_of_files(tmp_path):
    np.testing.assert_array_equal(read_rgb(saved(tmp_path / "a.png", Image.fromarray(RGB))), RGB)
    np.testing.assert_array_equal(read_rgb(saved(tmp_path / "b.bmp", Image.fromarray(RGB))), RGB)
    deep = RANDOM.integers(0, 2**16, (4, 6), np.uint16)
    grey = read_rgb(saved(tmp_path / "c.png", Image.fromarray(deep)))
    np.testing.assert_array_equal(grey, (deep >> 8)[..., None].repeat(3, 2))
    smooth = Image.fromarray(cv2.resize(RGB, (40, 30)))
    cmyk = saved(tmp_path / "d.jpg", smooth.convert("CMYK"), quality=98)
    assert abs(read_rgb(cmyk).astype(int) - np.asarray(smooth).astype(int)).max() < 24
    plain = saved(tmp_path / "e.jpg", smooth.convert("L"), quality=98)
    assert abs(read_rgb(plain).astype(int) - np.asarray(smooth.convert("L"))[..., None]).max() < 24
    dot = read_rgb(saved(tmp_path / "f.png", Image.new("RGBA", (1, 1), (255, 0, 0, 0))))
    assert dot.tolist() == [[[255, 255, 255]]]
    frames = [Image.new("RGB", (6, 4), (level,) * 3) for level in (10, 200)]
    for name in ("g.png", "g.webp"):  # animations: the first frame
        path = saved(tmp_path / name, frames[0], save_all=True, append_images=frames[1:], lossless=True)
        assert (read_rgb(path) == 10).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_transparency_is_turned_with_its_picture(tmp_path, orientation):
    path = saved(tmp_path / "a.png", Image.fromarray(RGBA), exif=exif(orientation))
    upright = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    np.testing.assert_array_equal(read_rgb(path, upright=True), on_white(upright))
    np.testing.assert_array_equal(read_rgb(path), on_white(RGBA))  # data sets: stored pixels
    np.testing.assert_array_equal(to_rgb(Image.open(path)), on_white(upright))
    plain = saved(tmp_path / "b.png", Image.fromarray(RGB), exif=exif(orientation))
    np.testing.assert_array_equal(to_rgb(plain), upright[..., :3])


@pytest.mark.parametrize("content, match", [
    (b"GIF89a" + bytes(40), "a GIF; save it as PNG or JPEG .*one frame"),
    (b"\0\0\0\x18ftypheic" + bytes(40), "a HEIC photograph; save it as"), (b"", "an empty file: download"),
    (b"\0\0\0\x1cftypavif" + bytes(40), "an AVIF"), (b"\0\0\0\x1cftypisom" + bytes(40), "a video; give one frame"),
    (b"  <!DOCTYPE html><html>", "a web page"), (b'<?xml version="1.0"?><svg width="3">', "an SVG drawing"),
    (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer.*git lfs pull"),
    (b"PK\x03\x04" + bytes(40), "a zip archive"), (b"%PDF-1.7", "a PDF"), (bytes(100), "not an image"),
    (b"P6\n70000 70000\n255\n" + bytes(40), "too many pixels")])
def test_files_that_cannot_be_decoded_say_what_they_are(tmp_path, content, match):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    assert refused(read_rgb, path, match=match).startswith(f"{path}: ")


def test_a_png_beyond_the_limits(tmp_path):
    refused(read_rgb, png(tmp_path / "a.png", 70000, 70000, 8, 2, b"\0"), match="too many pixels")
    refused(read_rgb, png(tmp_path / "a.png", 2**21, 1, 8, 2, b"\0"), match="2,097,152 x 1 pixels, .*1,000,000")
    refused(read_rgb, tmp_path, match="cannot be read")
    refused(read_rgb, "a\0b.png", match="cannot be read")
    refused(read_rgb, "a" * 5000, match="cannot be read")


def test_a_32_bit_tiff_is_refused(tmp_path):
    path = saved(tmp_path / "a.tif", Image.fromarray(RANDOM.random((3, 4)).astype(np.float32)))
    refused(read_rgb, path, match="a TIFF .*8-bit PNG")


def test_arrays_with_one_meaning_are_converted():
    grey = RGB[..., 0]
    for picture in (grey, grey[..., None]):
        np.testing.assert_array_equal(to_rgb(picture), grey[..., None].repeat(3, 2))
    np.testing.assert_array_equal(to_rgb(RGBA), on_white(RGBA))
    np.testing.assert_array_equal(to_rgb(np.stack([grey, RGBA[..., 3]], 2)),
                                  on_white(np.dstack([grey, grey, grey, RGBA[..., 3]])))
    for picture in (RGB, np.asfortranarray(RGB), RGB[..., ::-1][..., ::-1], np.ma.array(RGB)):
        found = to_rgb(picture)
        assert found.flags.c_contiguous and type(found) is np.ndarray
        np.testing.assert_array_equal(found, RGB)
    assert to_rgb(RGB[:1, :1]).shape == (1, 1, 3) and to_rgb(np.zeros((3, 9, 3), np.uint8)).shape == (3, 9, 3)


@pytest.mark.parametrize("image, match", [
    (RGB.transpose(2, 0, 1), r"shape \(3, 5, 7\) has its channels first; give image.transpose\(1, 2, 0\)"),
    (RGB[None], r"shape \(1, 5, 7, 3\) is a batch"), (RGB[0, 0], "is no image"), (RGB[:0], "is no image"),
    (np.zeros((5, 7, 5), np.uint8), "has 5 channels; give 1"),
    (RGB / 255, r"float64 with values 0.* to .*, not uint8; give it as it was before"),
    (RGB.astype(np.float32), "float32 with values .*0..255"),
    (RGB / 127.5 - 1, "before it was normalised"), (RGB.astype(np.int64), "int64 .*uint8"),
    (RGB.astype(np.uint16) * 257, "uint16 with values .*not uint8"), (RGB > 99, "bool looks like a mask"),
    (np.full((5, 7, 3), np.nan), "non-finite"), (np.full((5, 7), "x"), "<U1 is no image"),
    (None, "NoneType of shape"), (3, "int of shape"), (b"\x89PNG", "bytes of shape"),
    ([[1, 2], [3]], "list cannot become an array")])
def test_other_arrays_are_refused_by_name(image, match):
    assert refused(to_rgb, image, match=match).startswith("image: ")


def test_pil_images_of_every_mode(tmp_path):
    rgba = Image.fromarray(RGBA)
    np.testing.assert_array_equal(to_rgb(rgba), on_white(RGBA))
    for mode in ("RGB", "L", "1", "P", "CMYK", "YCbCr", "HSV", "RGBX"):
        image = Image.fromarray(RGB).convert(mode)
        np.testing.assert_array_equal(to_rgb(image), np.asarray(image.convert("RGB")))
    for image in (rgba.convert("LA"), rgba.quantize(8), rgba.convert("RGBa")):
        np.testing.assert_array_equal(to_rgb(image), on_white(np.asarray(image.convert("RGBA"))))
    deep = Image.fromarray(RANDOM.integers(0, 2**16, (4, 6), np.uint16))
    np.testing.assert_array_equal(to_rgb(deep), (np.asarray(deep) >> 8)[..., None].repeat(3, 2))
    for path in (png(tmp_path / "a.png", 2, 1, 8, 0, bytes([0, 7, 200]), tRNS=struct.pack(">H", 7)),
                 png(tmp_path / "b.png", 2, 1, 8, 3, b"\0\0\1", PLTE=bytes(6), tRNS=bytes([0, 255]))):
        np.testing.assert_array_equal(to_rgb(Image.open(path)), read_rgb(path))  # as from the file
    for mode in ("I", "F"):
        refused(to_rgb, Image.new(mode, (3, 4)), match=f"mode '{mode}' has no known range")
    refused(to_rgb, Image.new("RGB", (0, 4)), match="0 x 4 pixels")
    data = io.BytesIO()
    Image.fromarray(RGB).save(data, "PNG")
    refused(to_rgb, Image.open(io.BytesIO(data.getvalue()[:60])), match="PIL cannot decode it")


def test_sentences():
    assert to_sentences("red cup") == ["red cup"]
    for given in (["a", "b"], ("a", "b"), np.array(["a", "b"]), (letter for letter in "ab")):
        found = to_sentences(given)
        assert found == ["a", "b"] and all(type(text) is str for text in found)
    for given, match in ((b"red", "found bytes"), (None, "found NoneType"), ({"a": 1}, "found dict"), (3, "found int"),
                         ([], "list is empty"), (["a", 3], r"sentences\[1\]: found int"),
                         (["a", ["b"]], r"sentences\[1\]: found list")):
        refused(to_sentences, given, match=match)
    refused(to_sentences, "caf\udce9", match=re.escape(r"'caf\udce9': byte 0xe9 at character 4 is not UTF-8"))
    refused(to_sentences, ["\ud83d"], match="half a character")
    assert len(shorten("x" * 10**6)) < 100 and shorten("red\n") == r"'red\n'"
