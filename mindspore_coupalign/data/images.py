"""Reading image files: (h, w, 3) uint8 RGB.

cv2 decodes; Pillow reads the headers. Truncated files, whose missing part cv2 would fill with grey, are refused.
Transparent pixels keep colours that nobody sees (deleted backgrounds, for example), so images are composed on white.

EXIF orientation: the masks of a data set lie on the stored pixels, so its images are never turned (``check-data``,
``train``, ``evaluate``, ``show``); ``predict`` has no masks and turns a photograph upright.
"""

import io
import os
import re
import stat
import struct
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from mindspore_coupalign.errors import UserError, kind_of_file

cv2.setLogLevel(0)  # what cv2 says of a broken file stands in the error
cv2.setNumThreads(1)  # the data pipeline has its own threads; nested ones only fight for the cores
BACKGROUND = 255  # white, as browsers and paper show it
_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
_ORIENTATION = 0x0112  # the EXIF tag
_PNG_SIDE = 1_000_000  # libpng's limit
# Replaces the end marker of a JPEG: more bits than libjpeg reads ahead, fewer than a missing part would have.
_READ_AHEAD = bytes(10)
_SCAN, _END = b"\xff\xda", b"\xff\xd9"  # JPEG's markers; within compressed pixels, a zero follows every 0xFF
_TURNS = {2: (None, True), 3: (cv2.ROTATE_180, False), 4: (cv2.ROTATE_180, True),
          5: (cv2.ROTATE_90_CLOCKWISE, True), 6: (cv2.ROTATE_90_CLOCKWISE, False),
          7: (cv2.ROTATE_90_COUNTERCLOCKWISE, True), 8: (cv2.ROTATE_90_COUNTERCLOCKWISE, False)}
_CONVERT = "save it as PNG or JPEG"
_UNSUPPORTED = (  # first bytes, offset, what it is, remedy
    (b"GIF8", 0, "a GIF", f"{_CONVERT} (of an animation, one frame)"),
    (b"ftypavif", 4, "an AVIF file", _CONVERT), (b"ftypavis", 4, "an AVIF file", _CONVERT),
    (b"ftyphei", 4, "a HEIC photograph", _CONVERT), (b"ftypmif1", 4, "a HEIC photograph", _CONVERT),
    (b"ftyp", 4, "a video", "give one frame as PNG or JPEG"), (b"\0\0\x01\0", 0, "a Windows icon", _CONVERT),
    (b"\0\0\0\x0cJXL ", 0, "a JPEG XL file", _CONVERT), (b"\xff\x0a", 0, "a JPEG XL file", _CONVERT),
    (b"%PDF", 0, "a PDF", "save the page as PNG or JPEG"), (b"8BPS", 0, "a Photoshop file", _CONVERT),
    (b"II*\0", 0, "a TIFF (or raw photograph) of a kind that cannot be read", "save it as 8-bit PNG or JPEG"),
    (b"MM\0*", 0, "a TIFF (or raw photograph) of a kind that cannot be read", "save it as 8-bit PNG or JPEG"))


class MissingImage(UserError):
    """There is no such file."""


class WrongSize(UserError):
    """An image whose size is not the one of its annotations."""


def read_rgb(path: str | Path, upright: bool = False) -> np.ndarray:
    """(h, w, 3) uint8 RGB of a JPEG, PNG or other file that cv2 decodes; of an animation, the first frame.

    Args:
        upright: turn the image by its EXIF orientation. Off for data sets: their masks lie on the stored pixels.

    Raises:
        UserError: missing, truncated or undecodable file, or one beyond cv2's limit of 2^30 pixels.
    """
    return decode_rgb(read_bytes(path), path, upright)


def read_bytes(path: str | Path) -> bytes:
    """Raises UserError when the file cannot be read, MissingImage when there is none."""
    try:
        mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # reading a pipe could block for ever
            raise UserError(f"{str(path)[:300]}: not a regular file; give an image file")
        return Path(path).read_bytes()
    except FileNotFoundError as exc:
        raise MissingImage(f"{path}: no such image file; check the image folder") from exc
    except (OSError, ValueError) as exc:  # ValueError: a zero byte in the name
        raise UserError(f"{str(path)[:300]}: cannot be read ({getattr(exc, 'strerror', None) or exc})") from exc


def decode_rgb(data: bytes, path: str | Path, upright: bool = False) -> np.ndarray:
    """As ``read_rgb``, from a file's content; ``path`` is named in errors."""
    flags = cv2.IMREAD_COLOR if upright else cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    truncated = f"{path}: the image is truncated ({len(data)} bytes); download it again"
    if data.startswith(_JPEG):
        end, one_scan = _jpeg_end(data)
        if end < 0:
            raise UserError(truncated)
        if one_scan:  # a decoder that needs more data then fails; at an end marker it would fill up with grey
            bgr = _decode(data[:end] + _READ_AHEAD, path, flags)
            if bgr is None:
                raise UserError(f"{path}: the image is truncated or damaged ({len(data)} bytes with an end marker, but "
                                "its data end before the image does); download it again")
            return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
    elif data.startswith(_PNG) and b"IEND\xaeB`\x82" not in data[-4096:]:  # some writers append a little after it
        raise UserError(truncated)
    bgr = _decode(data, path, flags)
    if bgr is None:
        raise UserError(f"{path}: {_why_not_decoded(data)}")
    return _on_background(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), data, upright)


def _decode(data: bytes, path: str | Path, flags: int) -> np.ndarray | None:
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except (cv2.error, MemoryError) as exc:
        if isinstance(exc, MemoryError) or "MAX_IMAGE" in str(exc) or "Insufficient memory" in str(exc):
            raise UserError(f"{path}: too many pixels to decode; scale the image down or crop it") from exc
        return None


def read_annotated(path: str | Path, size: tuple[int, int]) -> tuple[np.ndarray, int]:
    """An image of a data set as stored, (h, w, 3) uint8 RGB, and its EXIF orientation (1 to 8, 1 is upright).

    Args:
        size: (h, w) of the image's annotations.

    Raises:
        WrongSize: the image has another size.
        UserError: as ``read_rgb``.
    """
    data = read_bytes(path)
    rgb, orientation = decode_rgb(data, path), exif_orientation(data)
    if rgb.shape[:2] != size:
        text = f"{path}: {rgb.shape[1]} x {rgb.shape[0]} pixels, not {size[1]} x {size[0]} as instances.json says"
        if orientation >= 5 and rgb.shape[1::-1] == size:
            raise WrongSize(f"{text}: the image is stored on its side (EXIF orientation {orientation}) and annotated "
                            "upright; masks must lie on the stored pixels, so store the image upright, for example "
                            "with `mogrify -auto-orient`")
        raise WrongSize(f"{text}; use the images that were annotated, or scale the annotations")
    return rgb, orientation


def _header(data: bytes) -> JpegImageFile | PngImageFile | None:
    """Pillow's view of a JPEG or PNG, nothing decoded; None for other files and damaged headers.

    ``Image.open`` would add a limit on pixels.
    """
    kind = JpegImageFile if data.startswith(_JPEG) else PngImageFile if data.startswith(_PNG) else None
    try:
        return kind(io.BytesIO(data)) if kind else None
    except (SyntaxError, OSError, ValueError):
        return None


def exif_orientation(data: bytes) -> int:
    """1 to 8 of a JPEG or PNG; 1 where the file has none."""
    header = _header(data)
    if header is None or "exif" not in header.info:
        return 1
    exif = Image.Exif()  # Image.getexif would take XMP's orientation too, which cv2 ignores
    try:
        exif.load(header.info["exif"])
        value = exif.get(_ORIENTATION)
    except (SyntaxError, OSError, ValueError, TypeError, KeyError, IndexError, struct.error):
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _jpeg_end(data: bytes) -> tuple[int, bool]:
    """Offset of a JPEG's end marker, -1 if the file is truncated; whether one Huffman-coded scan holds all planes (as
    in most photographs).

    A JPEG is, by its standard (ITU-T T.81, annex B), segments (0xFF, marker, two bytes of length, content) up to a
    start of scan, whose compressed pixels follow. A progressive file has several scans, each for some coefficients.
    """
    header = _header(data)
    if not isinstance(header, JpegImageFile) or header.fp is None:  # the decoder decides, if the file ends at all
        return data.find(_END), False
    pixels = header.fp.tell()  # where the first scan's begin
    end, scan = data.find(_END, pixels), data.rindex(_SCAN, 0, pixels)
    progressive = "progressive" in header.info
    if not progressive and data[scan + 4] == header.layers and b"\xff\xc9" not in data[:scan]:  # arithmetic coding
        return end, True
    missing = {(plane, k) for plane, *_ in header.layer for k in range(64)}  # coefficients whose last bit is to come
    for match in re.compile(_SCAN).finditer(data, scan, max(end, scan)):
        at = match.start() + 2
        content = data[at + 2:at + int.from_bytes(data[at:at + 2], "big")]
        if not content or len(content) != 2 * content[0] + 4:
            continue
        low, high, bits = content[-3:]
        span = range(low, high + 1) if progressive else range(64)
        if not progressive or bits & 15 == 0:
            missing -= {(plane, k) for plane in content[1:-3:2] for k in span}
    return -1 if missing else end, False


def compose(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """(h, w, 3) uint8 under (h, w) uint8 alpha -> (h, w, 3) uint8 on white."""
    if (alpha == 255).all():
        return rgb
    share = alpha[..., None].astype(np.uint16)
    return ((rgb * share + BACKGROUND * (255 - share) + 127) // 255).astype(np.uint8)  # at most 65,152


def _on_background(rgb: np.ndarray, data: bytes, upright: bool) -> np.ndarray:
    """The decoded colours (h, w, 3) uint8, which lack the file's transparency, composed on white.

    PNG (also by palette or by one transparent colour), WebP, TIFF, JPEG 2000; ``data`` is a file that cv2 decodes.
    """
    if data.startswith(_JPEG):
        return rgb
    header, is_png = _header(data), data.startswith(_PNG)
    key = header.info.get("transparency") if header else None
    if header and data[25] not in (4, 6) and key is None:  # most PNGs: no need to decode again
        return rgb
    stored = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    alpha = _alpha(stored, data, key)
    if alpha is None:
        return rgb
    if data.startswith((b"II", b"MM")) and stored.dtype == np.uint8:  # libtiff has multiplied the colours by it
        return rgb + np.minimum(BACKGROUND - alpha[..., None], 255 - rgb)
    if upright and is_png:  # of these formats, cv2 turns PNG on request, TIFF always and the others never
        alpha = _turn(alpha, exif_orientation(data))
    return compose(rgb, alpha)


def _alpha(stored: np.ndarray | None, data: bytes, key) -> np.ndarray | None:
    """(h, w) uint8, not turned; None where the file has none. ``key``: a PNG's transparent grey, if it has one."""
    if stored is None:  # a kind that cv2 reads as plain colours only
        return None
    if stored.ndim == 3 and stored.shape[2] == 4:
        return stored[..., 3] if stored.dtype == np.uint8 else (stored[..., 3] >> 8).astype(np.uint8)
    if isinstance(key, int) and stored.ndim == 2:  # which cv2 ignores
        depth = data[24]
        return np.where(stored == (key if depth >= 8 else key * 255 // (2**depth - 1)), 0, 255).astype(np.uint8)
    return None


def _why_not_decoded(data: bytes) -> str:
    """What the undecodable file is, and the remedy."""
    for magic, at, kind, remedy in _UNSUPPORTED:
        if data.startswith(magic, at):
            return f"{kind}; {remedy}"
    if data.startswith(_PNG):
        w, h = (int.from_bytes(data[i : i + 4], "big") for i in (16, 20))
        if max(w, h) > _PNG_SIDE:
            return f"{w:,} x {h:,} pixels, and a PNG's side may have {_PNG_SIDE:,}; scale it down or cut it"
        return "a PNG that is damaged; download it again"
    if data[:512].lstrip().startswith((b"<svg", b"<?xml")) and b"<svg" in data[:4096]:
        return f"an SVG drawing; {_CONVERT}"
    return kind_of_file(data[:512]) or "not an image that can be decoded; replace the file"


def _turn(plane: np.ndarray, orientation: int) -> np.ndarray:
    """EXIF's eight orientations: a rotation, then a flip from left to right."""
    rotation, mirrored = _TURNS.get(orientation, (None, False))
    if rotation is not None:
        plane = cv2.rotate(plane, rotation)
    return plane[:, ::-1] if mirrored else plane
