"""What importers share: finding and opening source files, checking fields, and the refs that every record becomes.

h, w image size in pixels. Boxes are x, y, width, height; polygons flat lists x0, y0, x1, y1, ...
"""

import base64
import binascii
import json
import math
import re
import reprlib
from dataclasses import dataclass, field
from pathlib import Path

from mindspore_coupalign.data.annotations import as_key, read_json
from mindspore_coupalign.data.masks import polygon_points, rle_area, segmentation_to_rle
from mindspore_coupalign.errors import UserError

MISSING = object()


class BadRecord(Exception):
    """A record that cannot be placed: the text names the field, the cause and, where it is not plain, the remedy."""


@dataclass
class Sentence:
    sent: str
    raw: str = ""  # as it was typed, empty where the form has no such wording
    sent_id: int | None = None


@dataclass
class Target:
    """One object."""

    segmentation: list | dict  # polygons, an RLE dict or a list of RLE dicts, as masks.segmentation_to_rle takes them
    ann_id: int | None = None
    category_id: int | None = None


@dataclass
class Ref:
    image: str  # the image's file name below the image folder
    size: tuple[int, ...] | None  # h, w; None: the image is opened
    targets: list[Target]  # more than one, or none at all, where the form allows it
    sentences: list[Sentence]
    split: str
    ref_id: int | None = None
    image_id: int | None = None
    rles: list[bytes] = field(default_factory=list)  # one per target, compressed; the job makes them


def take(record, key: str, kind, default=MISSING):
    """``record[key]``, of type ``kind`` (a type or a tuple of them; int takes whole floats and digits as text as well).

    Raises:
        BadRecord: missing without a default, or of another type.
    """
    if not isinstance(record, dict):
        raise BadRecord(f"expected a dict, found {type(record).__name__}")
    value = record.get(key)
    if value is None:
        if default is not MISSING:
            return default
        raise BadRecord(f"field {key!r} is missing")
    if kind is int:
        return whole(value, key)
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(_NAMES.get(k, k.__name__) for k in kinds)
        raise BadRecord(f"field {key!r} must be {wanted}; found {shown(value)}")
    return value


def whole(value, key: str) -> int:
    """An id as number: 7, 7.0 and "7" are the same."""
    try:
        if isinstance(value, bool) or (isinstance(value, str) and not value.strip().lstrip("-").isdigit()):
            raise ValueError
        number = int(value)
        if number != float(value):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise BadRecord(f"field {key!r} must be a whole number; found {shown(value)}") from None
    return number


def texts(record, key: str) -> list[str]:
    """A sentence or a list of sentences, as list. Raises BadRecord for anything else, or an empty list."""
    value = take(record, key, (str, list))
    found = [value] if isinstance(value, str) else value
    if not found or not all(isinstance(text, str) for text in found):
        raise BadRecord(f"field {key!r} must be a sentence or a list of sentences; found {shown(value)}")
    return found


def sentences(record, key: str = "sentences") -> list[Sentence]:
    """REFER's sentences: dicts with ``sent``, ``raw`` or both, and perhaps ``sent_id``; plain text is taken as well."""
    found = []
    for entry in take(record, key, list):
        entry = {"sent": entry} if isinstance(entry, str) else entry
        raw = take(entry, "raw", str, "")
        sent = take(entry, "sent", str, "") if raw else take(entry, "sent", str)
        found.append(Sentence(sent or raw, raw, take(entry, "sent_id", int, None)))
    return found


def size_of(record, height: str = "height", width: str = "width") -> tuple[int, int]:
    """(h, w) of a record with two fields."""
    size = take(record, height, int), take(record, width, int)
    if min(size) < 1:
        raise BadRecord(f"fields {height!r} and {width!r} must be positive; found {size[0]} and {size[1]}")
    return size


def box_polygon(box, key: str) -> list:
    """The polygons of a box x, y, width, height."""
    numbers = box if isinstance(box, list) and len(box) == 4 and all(map(is_number, box)) else None
    if numbers is None or numbers[2] <= 0 or numbers[3] <= 0:
        raise BadRecord(f"field {key!r}: a box is x, y, width, height with a positive size; found {shown(box)}")
    x, y, w, h = map(float, numbers)
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def polygons(value, key: str) -> list:
    """One polygon as numbers or as points [x, y], or a list of such polygons -> lists of numbers, which ``checked``
    will check."""
    if not isinstance(value, list) or not value:
        raise BadRecord(f"field {key!r} must be polygons; found {shown(value)}")
    if all(map(is_number, value)) or all(map(_is_point, value)):
        value = [value]
    return [[number for point in polygon for number in point]
            if isinstance(polygon, list) and all(map(_is_point, polygon)) else polygon for polygon in value]


def checked(segmentation, size: tuple[int, int], key: str) -> tuple[list | dict, bytes]:
    """A segmentation without polygons of fewer than three points (which enclose nothing), and its compressed RLE.

    Raises:
        BadRecord: it is none of an image of this size, or covers no pixel.
    """
    try:
        rle = segmentation_to_rle(segmentation, *size).union
    except ValueError as exc:
        raise BadRecord(f"field {key!r}: {exc}") from exc
    if isinstance(segmentation, list):
        segmentation = [part for part in segmentation if isinstance(part, dict) or len(polygon_points(part)) >= 3]
    if not rle_area(rle, *size):
        raise BadRecord(f"field {key!r} is an empty mask: no pixel of the image ({size[1]} x {size[0]}) is in it")
    return segmentation, rle


def shown(value) -> str:
    """A value as it is quoted in a message: short."""
    return f"{reprlib.repr(value):.60}"


def is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_point(value) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(is_number, value))


_NAMES = {str: "text", list: "a list", dict: "a dict", bool: "true or false", bytes: "bytes", float: "a number"}


SPLITS = ("train", "validation", "valid", "val", "testA", "testB", "testC", "test", "miniv", "minival", "dev")
_SPLIT = re.compile(rf"(?<![A-Za-z])({'|'.join(sorted(SPLITS, key=len, reverse=True))})(?![A-Za-z])")


def files(source: Path, pattern: str) -> list[Path]:
    """The source itself, or the files in it (or one folder deeper) that match the pattern, sorted.

    Raises:
        UserError: there is none.
    """
    if source.is_file():
        return [source]
    if not source.exists():
        raise UserError(f"{source}: no such file or folder; check the path")
    found = sorted(source.glob(pattern)) or sorted(source.glob(f"*/{pattern}"))
    if not found:
        raise UserError(f"{source}: holds no {pattern}; name the file, or the folder it lies in")
    return found


def split_of(path: Path) -> str:
    """The split that a file's name tells, empty where it tells none."""
    found = _SPLIT.findall(path.stem)
    return found[-1] if found else ""


def read_list(path: Path, what: str) -> list:
    """A JSON file that holds a list. Raises UserError."""
    content = read_json(path)
    if not isinstance(content, list):
        raise UserError(f"{path}: expected a list of {what}, found {type(content).__name__}; is this the right file?")
    return content


def by_id(records: list, path: Path, name: str) -> dict:
    """Records by their ``id``. Raises UserError for a record without one and for two that share one."""
    found: dict[int | str, dict] = {}
    for i, record in enumerate(records):
        key = record.get("id") if isinstance(record, dict) else None
        if type(key) not in (int, str):
            raise UserError(f"{path}: {name} number {i}: field 'id' must be a number or text")
        key = as_key(key)
        if key in found and found[key] != record:
            raise UserError(f"{path}: two {name} have the id {key}; give each its own")
        found[key] = record
    return found


def found(records: dict, key: int | str, name: str) -> dict:
    """The record of an id that another record names. Raises BadRecord."""
    if key not in records:
        raise BadRecord(f"its {name} {key} is in none of the files; do they belong together?")
    return records[key]


def parse_json(text: str):
    """Raises BadRecord."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise BadRecord(f"not complete JSON ({str(exc)[:80]}); truncated?") from exc


def from_base64(text: str, what: str) -> bytes:
    """Raises BadRecord."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise BadRecord(f"{what} is not complete base64 ({exc}); is the file truncated?") from exc
