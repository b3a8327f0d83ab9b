"""Reading image files: (h, w, 3) uint8 RGB.

Truncated files are refused, which cv2 would fill with grey; transparent pixels are composed on white, since they keep
colours that nobody sees (deleted backgrounds, for example).

One rule for EXIF's orientation: a data set's masks lie on the stored pixels, so its images are never turned
(``check-data``, ``train``, ``evaluate``, ``show``); ``predict`` has no masks and turns an image upright.

JPEG and PNG headers are read here because Pillow and OpenCV accept a JPEG that was cut and given an end marker. A JPEG
consists (ITU-T T.81, annex B) of segments (0xFF, marker, two bytes of length, content) up to a start of scan, which the
compressed pixels follow; a progressive file has several scans, each for some of the coefficients.

``data`` is a whole file; alpha is (h, w) uint8, 0 transparent, 255 opaque.
"""

import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from mindspore_coupalign.errors import UserError, kind_of_file

cv2.setLogLevel(0)  # what cv2 says of a broken file stands in the error
cv2.setNumThreads(1)  # the data pipeline has its own threads; nested ones only fight for the cores
# Takes the place of a JPEG's end marker: more bits than libjpeg reads ahead, fewer than a missing part would have.
_READ_AHEAD = bytes(10)


def read_rgb(path: str | Path, upright: bool = False) -> np.ndarray:
    """(h, w, 3) uint8 RGB of a JPEG, PNG or other file that cv2 decodes; of an animation, the first frame.

    Args:
        upright: turn the image as its EXIF orientation says. Off for data sets: their masks lie on the stored pixels.

    Raises:
        UserError: missing, truncated or undecodable file, or one beyond cv2's limit of 2^30 pixels.
    """
    return decode_rgb(read_bytes(path), path, upright)


def read_bytes(path: str | Path) -> bytes:
    """Raises UserError when the file cannot be read, of kind MissingImage when there is none."""
    try:
        mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # a pipe would be waited for without an end
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
    if data.startswith(b"\xff\xd8"):
        header = read_jpeg_header(data)
        if header.end < 0 or header.frame and not header.one_scan and header.lacks_scans:
            raise UserError(truncated)
        if header.one_scan:  # a decoder that needs more then fails, where it would fill up with grey at an end marker
            bgr = _decode(data[:header.end] + _READ_AHEAD, path, flags)
            if bgr is None:
                raise UserError(f"{path}: the image is truncated or damaged ({len(data)} bytes with an end marker, but "
                                "its data end before the image does); download it again")
            return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
    elif data.startswith(PNG) and b"IEND\xaeB`\x82" not in data[-4096:]:  # some writers append a little after it
        raise UserError(truncated)
    bgr = _decode(data, path, flags)
    if bgr is None:
        raise UserError(f"{path}: {why_not_decoded(data)}")
    return on_background(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), data, upright)


def _decode(data: bytes, path: str | Path, flags: int) -> np.ndarray | None:
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except (cv2.error, MemoryError) as exc:
        if isinstance(exc, MemoryError) or "MAX_IMAGE" in str(exc) or "Insufficient memory" in str(exc):
            raise UserError(f"{path}: too many pixels to decode; scale the image down or cut it") from exc
        return None


def read_annotated(path: str | Path, size: tuple[int, int]) -> tuple[np.ndarray, int]:
    """A data set's image as stored, (h, w, 3) uint8 RGB, and its EXIF orientation (1 to 8, 1 is upright).

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


class MissingImage(UserError):
    """There is no such file."""


class WrongSize(UserError):
    """An image that is not as large as its annotations say."""


BACKGROUND = 255  # white, as browsers and paper show it
_PNG_SIDE = 1_000_000  # libpng's limit
_TURNS = {2: (None, True), 3: (cv2.ROTATE_180, False), 4: (cv2.ROTATE_180, True),
          5: (cv2.ROTATE_90_CLOCKWISE, True), 6: (cv2.ROTATE_90_CLOCKWISE, False),
          7: (cv2.ROTATE_90_COUNTERCLOCKWISE, True), 8: (cv2.ROTATE_90_COUNTERCLOCKWISE, False)}
_PICTURE = "save it as PNG or JPEG"
_OTHERS = (  # first bytes, offset, what it is, remedy
    (b"GIF8", 0, "a GIF", f"{_PICTURE} (of an animation, one frame)"),
    (b"ftypavif", 4, "an AVIF file", _PICTURE), (b"ftypavis", 4, "an AVIF file", _PICTURE),
    (b"ftyphei", 4, "a HEIC photograph", _PICTURE), (b"ftypmif1", 4, "a HEIC photograph", _PICTURE),
    (b"ftyp", 4, "a video", "give one frame as PNG or JPEG"), (b"\0\0\x01\0", 0, "a Windows icon", _PICTURE),
    (b"\0\0\0\x0cJXL ", 0, "a JPEG XL file", _PICTURE), (b"\xff\x0a", 0, "a JPEG XL file", _PICTURE),
    (b"%PDF", 0, "a PDF", "save the page as PNG or JPEG"), (b"8BPS", 0, "a Photoshop file", _PICTURE),
    (b"II*\0", 0, "a TIFF (or raw photograph) of a kind that cannot be read", "save it as 8-bit PNG or JPEG"),
    (b"MM\0*", 0, "a TIFF (or raw photograph) of a kind that cannot be read", "save it as 8-bit PNG or JPEG"))


def compose(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """(h, w, 3) uint8 under (h, w) uint8 alpha -> (h, w, 3) uint8 on white."""
    if (alpha == 255).all():
        return rgb
    share = alpha[..., None].astype(np.uint16)
    return ((rgb * share + BACKGROUND * (255 - share) + 127) // 255).astype(np.uint8)  # at most 65,152


def on_background(rgb: np.ndarray, data: bytes, upright: bool) -> np.ndarray:
    """``images.read_rgb``'s colours (h, w, 3) uint8, which lack the file's transparency, composed on white.

    PNG (also by palette or by one transparent colour), WebP, TIFF, JPEG 2000; ``data`` is a file that cv2 decodes.
    """
    if data.startswith(b"\xff\xd8"):  # a JPEG has none
        return rgb
    chunks = png_chunks(data) if data.startswith(PNG) else None
    if chunks and data[25] not in (4, 6) and b"tRNS" not in chunks:  # not decoded twice: most PNGs
        return rgb
    stored = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    alpha = _alpha(stored, data, chunks)
    if alpha is None:
        return rgb
    if data.startswith((b"II", b"MM")) and stored.dtype == np.uint8:  # libtiff has multiplied the colours with it
        return rgb + np.minimum(BACKGROUND - alpha[..., None], 255 - rgb)
    if upright and chunks:  # of these formats, cv2 turns PNG on request, TIFF always and the others never
        alpha = _turn(alpha, exif_orientation(data))
    return compose(rgb, alpha)


def _alpha(stored: np.ndarray | None, data: bytes, chunks: dict | None) -> np.ndarray | None:
    """(h, w) uint8, not turned; None where the file has none."""
    if stored is None:  # a kind that cv2 reads as plain colours only
        return None
    if stored.ndim == 3 and stored.shape[2] == 4:
        return stored[..., 3] if stored.dtype == np.uint8 else (stored[..., 3] >> 8).astype(np.uint8)
    if chunks and stored.ndim == 2:  # one grey is transparent, which cv2 does not heed
        depth, grey = data[24], int.from_bytes(chunks[b"tRNS"][:2], "big")
        key = grey if depth >= 8 else grey * 255 // (2**depth - 1)
        return np.where(stored == key, 0, 255).astype(np.uint8)
    return None


def why_not_decoded(data: bytes) -> str:
    """What the undecodable file is, and the remedy."""
    for magic, at, kind, remedy in _OTHERS:
        if data[at:].startswith(magic) if at == 0 else data[at : at + len(magic)] == magic:
            return f"{kind}; {remedy}"
    if data.startswith(PNG):
        w, h = (int.from_bytes(data[i : i + 4], "big") for i in (16, 20))
        if max(w, h) > _PNG_SIDE:
            return f"{w:,} x {h:,} pixels, and a PNG's side may have {_PNG_SIDE:,}; scale it down or cut it"
        return "a PNG that is damaged; download it again"
    if data[:512].lstrip().startswith((b"<svg", b"<?xml")) and b"<svg" in data[:4096]:
        return f"an SVG drawing; {_PICTURE}"
    return kind_of_file(data[:512]) or "not an image that can be decoded; replace the file"


def _turn(plane: np.ndarray, orientation: int) -> np.ndarray:
    """EXIF's eight orientations: a rotation, then a flip from left to right."""
    rotation, mirrored = _TURNS.get(orientation, (None, False))
    if rotation is not None:
        plane = cv2.rotate(plane, rotation)
    return plane[:, ::-1] if mirrored else plane


PNG = b"\x89PNG\r\n\x1a\n"
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # start of frame: the size, and how the pixels are coded
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
_HUFFMAN_ONE_PASS = {0xC0, 0xC1}
_BYTE_ORDERS: dict[bytes, Literal["little", "big"]] = {b"II": "little", b"MM": "big"}  # TIFF's
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # within compressed pixels: neither a stuffed 0xFF nor a restart


@dataclass
class Jpeg:
    """A JPEG's header: places are offsets in the file."""

    orientation: int = 1  # EXIF: 1 upright, 2 to 4 mirrored or upside down, 5 to 8 on its side
    frame: int = 0  # marker of the start of frame; 0: there is none
    components: int = 0  # planes of the image
    scan: int = 0  # place of the first start of scan; 0: the file ends before it
    end: int = -1  # place of the end-of-image marker behind it; -1: there is none
    scans: list = field(default_factory=list)  # content of each start of scan

    @property
    def one_scan(self) -> bool:
        """Whether all planes lie in one Huffman-coded scan, as most photographs' do."""
        all_planes = [content[0] == self.components for content in self.scans]
        return self.frame in _HUFFMAN_ONE_PASS and all_planes == [True]

    @property
    def lacks_scans(self) -> bool:
        """Whether coefficients of a progressive or many-scan file never come, or not down to their last bit."""
        sent: dict[tuple[int, int], int] = {}  # (plane, coefficient): its lowest bit that came
        for content in self.scans:
            planes = content[1:1 + 2 * content[0]:2]
            low, high, bits = content[-3:]
            span = range(low, high + 1) if self.frame in _PROGRESSIVE else range(64)
            sent |= {(plane, k): bits & 15 if self.frame in _PROGRESSIVE else 0 for plane in planes for k in span}
        return sum(bits == 0 for bits in sent.values()) < 64 * self.components


def read_jpeg_header(data: bytes, pixels: bool = True) -> Jpeg:
    """Walk over the segments: an embedded thumbnail has markers of its own, which are not this file's.

    Args:
        pixels: look for the scans and their end as well, which takes as long as all the rest.
    """
    found, at = Jpeg(), 2
    while at + 4 <= len(data):
        marker = data[at + 1]
        if data[at] != 0xFF or marker == 0xFF:  # padding, or bytes that no segment owns: decoders skip both
            at += 1
            continue
        length = int.from_bytes(data[at + 2:at + 4], "big")
        content = data[at + 4:at + 2 + length]
        if marker in _FRAMES and len(content) >= 6:
            found.frame, found.components = marker, content[5]
        elif marker == 0xE1 and content.startswith(b"Exif\0\0") and found.orientation == 1:
            found.orientation = _orientation(content[6:])
        elif marker == 0xDA:
            found.scan = at
            if not pixels:
                return found
            found.end = data.find(b"\xff\xd9", at)
            found.scans = _scans(data, at, found)
            return found
        at += 2 + length
    return found


def _scans(data: bytes, at: int, found: Jpeg) -> list:
    starts = [at]
    if found.frame not in _HUFFMAN_ONE_PASS or data[at + 4:at + 5] != bytes([found.components]):
        starts = [match.start() for match in _MARKER.finditer(data, at, max(found.end, at))
                  if data[match.start() + 1] == 0xDA]
    scans = [data[s + 4:s + 2 + int.from_bytes(data[s + 2:s + 4], "big")] for s in starts]
    return [content for content in scans if content and len(content) == 2 * content[0] + 4]


def exif_orientation(data: bytes) -> int:
    """1 to 8 of a JPEG or PNG; 1 where nothing is said."""
    if data.startswith(b"\xff\xd8"):
        return read_jpeg_header(data, pixels=False).orientation
    if data.startswith(PNG):
        return _orientation(png_chunks(data).get(b"eXIf", b""))
    return 1


def png_chunks(data: bytes) -> dict[bytes, bytes]:
    """The small chunks of a PNG by name, of two the first; pixels are left out."""
    chunks: dict[bytes, bytes] = {}
    at = len(PNG)
    while at + 8 <= len(data):
        size, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if name != b"IDAT":
            chunks.setdefault(name, data[at + 8 : at + 8 + size])
        at += 12 + size
    return chunks


def _orientation(tiff: bytes) -> int:
    """Tag 0x0112 of the first directory of EXIF's TIFF data."""
    order = _BYTE_ORDERS.get(tiff[:2])
    if order is None:
        return 1
    at = int.from_bytes(tiff[4:8], order)
    for entry in range(int.from_bytes(tiff[at:at + 2], order)):
        record = tiff[at + 2 + 12 * entry:at + 14 + 12 * entry]
        if len(record) == 12 and int.from_bytes(record[:2], order) == 0x0112:
            value = int.from_bytes(record[8:10], order)
            return value if 1 <= value <= 8 else 1
    return 1
