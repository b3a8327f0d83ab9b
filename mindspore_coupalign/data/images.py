"""Reading image files: (h, w, 3) uint8 RGB. Truncated files are refused, which cv2 would fill with grey; transparent
pixels are composed on white."""

from pathlib import Path

import cv2
import numpy as np

from mindspore_coupalign.data.image_formats import on_background, why_not_decoded
from mindspore_coupalign.errors import UserError

cv2.setLogLevel(0)  # what cv2 says of a broken file stands in the error
cv2.setNumThreads(1)  # the data pipeline has its own threads; nested ones only fight for the cores


def read_rgb(path: str | Path, upright: bool = False) -> np.ndarray:
    """(h, w, 3) uint8 RGB of a JPEG, PNG or other file that cv2 decodes; of an animation, the first frame.

    Grey and CMYK become RGB, 16 bits become 8, transparency is composed on white (``image_formats.BACKGROUND``).

    Args:
        upright: turn the picture as its EXIF orientation says. Off for data sets: their masks lie on the stored pixels.

    Raises:
        UserError: missing, truncated or undecodable file, or one beyond cv2's limit of 2^30 pixels.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as exc:
        raise UserError(f"{path}: no such image file; check the image folder") from exc
    except (OSError, ValueError) as exc:  # ValueError: a zero byte in the name
        raise UserError(f"{path}: cannot be read ({getattr(exc, 'strerror', None) or exc})") from exc
    if _is_truncated(data):
        raise UserError(f"{path}: the image is truncated ({len(data)} bytes); download it again")
    rgb, too_large = None, False
    try:
        rgb = _decode(data, upright)
    except (cv2.error, MemoryError) as exc:
        too_large = isinstance(exc, MemoryError) or "MAX_IMAGE" in str(exc) or "Insufficient memory" in str(exc)
    if rgb is None:
        reason = "too many pixels to decode; scale the picture down or cut it" if too_large else why_not_decoded(data)
        raise UserError(f"{path}: {reason}")
    return rgb


def _decode(data: bytes, upright: bool) -> np.ndarray | None:
    flags = cv2.IMREAD_COLOR if upright else cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    return None if bgr is None else on_background(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), data, upright)


def _is_truncated(data: bytes) -> bool:
    """Whether a JPEG lacks its end-of-image marker or a PNG its last chunk; False for anything else."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return b"IEND\xaeB`\x82" not in data[-4096:]  # some writers append a little after it
    if not data.startswith(b"\xff\xd8"):
        return False
    # Walk the header's segments up to the scan: an embedded thumbnail has an end-of-image marker of its own.
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF or data[at + 1] == 0xFF:  # padding, or bytes that no segment owns: decoders skip both
            at += 1
        elif data[at + 1] == 0xDA:  # start of scan
            return data.find(b"\xff\xd9", at) < 0
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return True
