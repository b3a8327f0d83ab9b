"""Finding and opening an import's files."""

import base64
import binascii
import re
from pathlib import Path

from mindspore_coupalign.data.annotations import as_key, read_json
from mindspore_coupalign.data.importers.records import BadRecord
from mindspore_coupalign.errors import UserError

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
        raise UserError(f"{path}: expected a list of {what}, found {type(content).__name__}; is this the right file "
                        "for this --format?")
    return content


def read_dict(path: Path, *keys: str) -> dict:
    """A JSON file that holds a dict with lists under these keys. Raises UserError."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a dict, found {type(content).__name__}; is this the right file for this "
                        "--format?")
    for key in keys:
        if not isinstance(content.get(key), list):
            raise UserError(f"{path}: has no list {key!r}; is this the right file for this --format?")
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


def from_base64(text: str, what: str) -> bytes:
    """Raises BadRecord."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise BadRecord(f"{what} is not complete base64 ({exc}); is the file truncated?") from exc
