"""What an image file's bytes say that cv2 does not: transparency, and why a file cannot be decoded.

``data`` is the whole file; alpha (h, w) uint8, 0 transparent, 255 opaque. Transparent pixels keep colours that nobody
sees (deleted backgrounds, for example), so pictures are composed on a background: ``BACKGROUND``, white.
"""

import cv2
import numpy as np

from mindspore_coupalign.data.file_kinds import kind_of_file
from mindspore_coupalign.data.image_headers import PNG, exif_orientation, png_chunks

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
