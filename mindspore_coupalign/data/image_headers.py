"""What the headers of an image file say that its decoder does not: EXIF orientation, and whether a JPEG is whole.

A JPEG is, after its standard (ITU-T T.81, annex B), segments (0xFF, marker, two bytes of length, content) up to a start
of scan, whose compressed pixels follow; a progressive file has several scans, each for some of the coefficients.
"""

import re
from dataclasses import dataclass, field
from typing import Literal

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
    components: int = 0  # planes of the picture
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
