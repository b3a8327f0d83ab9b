"""Data leakage: which images two lists share, and which images a checkpoint was trained on.

COCO images are recognised by the number in their name (``COCO_train2014_000000581857.jpg``, ``000000581857.jpg``),
which is unique within COCO. Other names prove nothing (every folder has a 0001.jpg): such images are the same if their
files are equal, byte by byte. Only files of equal size are read. An image that was encoded again under another name is
not recognised.

A checkpoint keeps the hashes of its training images as text in ``progress["seen_images"]``.
"""

import base64
import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath

import numpy as np

from mindspore_coupalign.data.refer import ReferData
from mindspore_coupalign.errors import UserError

_COCO = re.compile(r"(?:COCO_(?:train|val|test)20\d\d_)?(\d{12})(?:_\d+)?", re.IGNORECASE)
_START = 1 << 14  # bytes of a file that stand for its content, with its size, in a hash


def coco_id(name: str | PurePath) -> int:
    """COCO's number of an image by its file's name, -1 where it has none."""
    found = _COCO.fullmatch(PurePath(name).stem)
    return int(found.group(1)) if found else -1


def shared(first: Sequence[Path], second: Sequence[Path]) -> np.ndarray:
    """Which images of the first list are in the second too, (n,) bool. A file that cannot be read is in neither."""
    ids, others = (np.array([coco_id(path) for path in paths], np.int64) for paths in (first, second))
    same = np.isin(ids, others[others >= 0])
    if not len(first) or not len(second) or min(ids.min(), others.min()) >= 0:
        return same
    named = {str(path) for path in second}
    same |= np.array([str(path) in named for path in first])
    by_size: dict[int, list] = {}
    for path, number in zip(second, others, strict=True):
        by_size.setdefault(_size(path), []).append((path, number))
    by_size.pop(-1, None)
    digests: dict[Path, bytes] = {}
    for i in np.flatnonzero(~same):
        rivals = [path for path, number in by_size.get(_size(first[i]), ()) if ids[i] < 0 or number < 0]
        if rivals and (own := _digest(first[i], digests)):
            same[i] = any(_digest(path, digests) == own for path in rivals)
    return same


def _size(path: Path) -> int:
    try:
        return path.stat().st_size or -1
    except (OSError, ValueError):
        return -1


def _digest(path: Path, known: dict[Path, bytes]) -> bytes:
    if path not in known:
        try:
            known[path] = hashlib.blake2b(path.read_bytes(), digest_size=16).digest()
        except OSError:
            known[path] = b""
    return known[path]


def image_hashes(paths: Iterable[Path]) -> np.ndarray:
    """The distinct 64-bit hashes of images, (n,) uint64, sorted: of COCO's number, else of the file's size and its
    first 16 KiB. Files that cannot be read have none."""
    found = {value for path in paths if (value := _hash(path)) is not None}
    return np.array(sorted(found), "<u8")


def _hash(path: Path) -> int | None:
    number = coco_id(path)
    content = b"coco %d" % number
    if number < 0:
        try:
            with path.open("rb") as file:
                content = b"%d " % _size(path) + file.read(_START)
        except (OSError, ValueError):
            return None
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def hashes_to_text(hashes: np.ndarray) -> str:
    return base64.b64encode(hashes.astype("<u8").tobytes()).decode()


def hashes_from_text(text: str, source: str) -> np.ndarray:
    """Raises UserError where the text is none of ``hashes_to_text``."""
    try:
        return np.frombuffer(base64.b64decode(text, validate=True), "<u8")
    except (ValueError, TypeError) as exc:
        raise UserError(f"{source}: its list of training images (seen_images) is damaged; use another "
                        "checkpoint") from exc


KEY = "seen_images"  # in a checkpoint's progress


def seen_with(paths: Iterable[Path], progress: dict | None = None, source: str = "") -> str:
    """The text for a checkpoint that was trained on these images.

    Args:
        progress, source: of the checkpoint that the training started from, whose images it has seen too.

    Raises:
        UserError: that checkpoint's own text is damaged.
    """
    hashes = image_hashes(paths)
    if before := (progress or {}).get(KEY):
        hashes = np.union1d(hashes, hashes_from_text(before, source))
    return hashes_to_text(hashes)


def seen_images(progress: dict, source: str, data: ReferData, splits: Iterable[str]) -> dict | None:
    """Of each split, {"seen": its images that a checkpoint was trained on, "images": all}; None where the checkpoint,
    of an earlier version, does not know.

    Raises:
        UserError: a damaged text, or no such split.
    """
    if KEY not in progress:
        return None
    trained, found = set(hashes_from_text(progress[KEY], source).tolist()), {}
    for split in splits:
        own = [image_hashes([path]).tolist() for path in image_paths(data, split)]
        found[split] = {"seen": sum(not trained.isdisjoint(hashes) for hashes in own), "images": len(own)}
    return found


def warnings_of(seen: dict | None) -> list[str]:
    """A line for each split of which the checkpoint has seen an image."""
    return [f"warning: {split}: the checkpoint was trained on {counts['seen']:,} of this split's {counts['images']:,} "
            "images; its scores say little about images that it has not seen"
            for split, counts in (seen or {}).items() if counts["seen"]]


def image_paths(data: ReferData, split: str) -> list[Path]:
    """The images of a split's refs, each once."""
    return [data.image_dir / str(data.image_files[i]) for i in np.unique(data.ref_image[data.refs_of(split)])]
