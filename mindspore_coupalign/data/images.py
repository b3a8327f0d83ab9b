"""Reading image files: (h, w, 3) uint8 RGB. Truncated files are refused, which cv2 would fill with grey; transparent
pixels are composed on white.

One rule for EXIF's orientation: a data set's masks lie on the stored pixels, so its pictures are never turned
(``check-data``, ``train``, ``evaluate``, ``show``); ``predict`` has no masks and turns a photograph upright.
"""

import os
import stat
from pathlib import Path

import cv2
import numpy as np

from mindspore_coupalign.data.image_formats import on_background, why_not_decoded
from mindspore_coupalign.data.image_headers import PNG, exif_orientation, read_jpeg_header
from mindspore_coupalign.errors import UserError

cv2.setLogLevel(0)  # what cv2 says of a broken file stands in the error
cv2.setNumThreads(1)  # the data pipeline has its own threads; nested ones only fight for the cores
# Takes the place of a JPEG's end marker: more bits than libjpeg reads ahead, fewer than a missing part would have.
_READ_AHEAD = bytes(10)


def read_rgb(path: str | Path, upright: bool = False) -> np.ndarray:
    """(h, w, 3) uint8 RGB of a JPEG, PNG or other file that cv2 decodes; of an animation, the first frame.

    Args:
        upright: turn the picture as its EXIF orientation says. Off for data sets: their masks lie on the stored pixels.

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
                                "its data end before the picture does); download it again")
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
            raise UserError(f"{path}: too many pixels to decode; scale the picture down or cut it") from exc
        return None


def read_annotated(path: str | Path, size: tuple[int, int]) -> tuple[np.ndarray, int]:
    """A data set's picture as stored, (h, w, 3) uint8 RGB, and its EXIF orientation (1 to 8, 1 is upright).

    Args:
        size: (h, w) of the picture's annotations.

    Raises:
        WrongSize: the picture has another size.
        UserError: as ``read_rgb``.
    """
    data = read_bytes(path)
    rgb, orientation = decode_rgb(data, path), exif_orientation(data)
    if rgb.shape[:2] != size:
        text = f"{path}: {rgb.shape[1]} x {rgb.shape[0]} pixels, not {size[1]} x {size[0]} as instances.json says"
        if orientation >= 5 and rgb.shape[1::-1] == size:
            raise WrongSize(f"{text}: the picture is stored on its side (EXIF orientation {orientation}) and annotated "
                            "upright; masks must lie on the stored pixels, so store the picture upright, for example "
                            "with `mogrify -auto-orient`")
        raise WrongSize(f"{text}; use the pictures that were annotated, or scale the annotations")
    return rgb, orientation


class MissingImage(UserError):
    """There is no such file."""


class WrongSize(UserError):
    """A picture that is not as large as its annotations say."""
