"""``data.cache``: images at the network's input size, kept in a folder, so that they are decoded and resized once.

S is the input's side. An entry is ``FOLDER/<S>/<key>``: a header, then (S, S, 3) uint8 RGB. Its key is a hash of the
image's path, size and time of change, of its annotated size and of the rule that resizes. A file gets its name when
it is complete, so that a run may be killed at any time and several may share a folder; one that a power cut has damaged
is found by its sum and made again. At the bound nothing more is added: an order that passes through all images again
and again gains nothing from giving up old ones for new ones.
"""

import contextlib
import hashlib
import os
import struct
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mindspore_coupalign.errors import UserError

RULE = "area-linear-1"  # of ImageTransform.resize; a new one makes new entries
_HEADER = struct.Struct("<8sIIQ")  # magic, S, EXIF orientation, sum of the pixels as 64-bit numbers
_MAGIC = b"COUPALN1"
_RECOUNTED = 256  # entries of this process between two looks at what others have added
_FORGOTTEN = 3600  # seconds after which a temporary file is of a run that was killed
Picture = tuple[np.ndarray, int]


class ImageCache:
    """A folder of images at one size, bounded over all sizes in it.

    Args:
        folder: made where it is missing.
        gigabytes: bound of the whole folder, in 10^9 bytes.
        size: S.

    Raises:
        UserError: the folder cannot be made or read.
    """

    def __init__(self, folder: str | Path, gigabytes: float, size: int):
        self.root, self.folder, self.size = Path(folder), Path(folder) / str(size), size
        self.limit = int(gigabytes * 1e9)
        self.lock, self.added, self.writes = threading.Lock(), 0, True
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._clear_up()
            self.used = self._count()
        except OSError as exc:
            raise UserError(f"data.cache={folder}: cannot be used ({exc.strerror}); name another folder, or none") \
                from exc

    def entry_bytes(self, size: int) -> int:
        return _HEADER.size + 3 * size * size

    def note(self, pictures: int) -> str:
        """A line for the user: how full the folder is, and whether so many images fit."""
        room = max(0, self.limit - self.used) // self.entry_bytes(self.size)
        held = sum(1 for _ in os.scandir(self.folder))
        lacking = max(0, pictures - held - room)
        line = (f"data.cache: {self.root} holds {self.used / 1e9:.1f} of {self.limit / 1e9:g} GB, {held:,} images at "
                f"{self.size} x {self.size}")
        return line + (f"; {lacking:,} of the {pictures:,} of this data will not fit: raise data.cache_gb, or delete "
                       "the folder if it holds other data" if lacking else "")

    def get(self, path: Path, shape: tuple[int, int], make: Callable[[], Picture]) -> Picture:
        """An image as (S, S, 3) uint8 RGB and its EXIF orientation, from the folder or else from ``make``, which
        raises what is wrong with it; then it is added."""
        try:
            about = os.stat(path)
        except (OSError, ValueError):  # make says it better
            return make()
        key = hashlib.blake2b(repr((RULE, os.path.abspath(path), about.st_size, about.st_mtime_ns, shape)).encode(),
                              digest_size=16).hexdigest()
        picture = self._read(self.folder / key)
        if picture is None:
            picture = make()
            self._add(self.folder / key, picture)
        return picture

    def _read(self, entry: Path) -> Picture | None:
        try:
            content = np.fromfile(entry, np.uint8)
        except OSError:
            return None
        if len(content) == self.entry_bytes(self.size):
            magic, size, orientation, total = _HEADER.unpack(content[:_HEADER.size].tobytes())
            pixels = content[_HEADER.size:]
            if (magic, size, total) == (_MAGIC, self.size, _sum(pixels)):
                return pixels.reshape(size, size, 3), orientation
        with contextlib.suppress(OSError):
            entry.unlink()
        return None

    def _add(self, entry: Path, picture: Picture):
        length = self.entry_bytes(self.size)
        with self.lock:
            if self.added % _RECOUNTED == _RECOUNTED - 1:
                with contextlib.suppress(OSError):
                    self.used = self._count()
            if not self.writes or self.used + length > self.limit:
                return
            self.used, self.added = self.used + length, self.added + 1
        temporary = entry.with_name(f".{uuid.uuid4().hex}.tmp")
        pixels = np.ascontiguousarray(picture[0])
        try:
            with temporary.open("wb") as file:
                file.write(_HEADER.pack(_MAGIC, self.size, picture[1], _sum(pixels.reshape(-1))))
                file.write(pixels.data)
            os.replace(temporary, entry)
        except OSError:  # a full disk, or a folder of somebody else's: the run goes on without adding
            self.writes = False
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _count(self) -> int:
        """Bytes of all entries, of every size: those of a size are equally long."""
        return sum(self.entry_bytes(int(sub.name)) * sum(1 for _ in os.scandir(sub))
                   for sub in os.scandir(self.root) if sub.name.isdecimal() and sub.is_dir())

    def _clear_up(self):
        for path in self.folder.glob(".*.tmp"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _FORGOTTEN:
                    path.unlink()


def _sum(pixels: np.ndarray) -> int:
    """A checksum of (n,) uint8 that costs next to nothing; n is a multiple of 8, S being one of 32."""
    return int(pixels.view(np.uint64).sum(dtype=np.uint64))
