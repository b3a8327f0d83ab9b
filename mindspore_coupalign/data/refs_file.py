"""Reading a list of refs: REFER's pickle ``refs(X).p``, or the same list as JSON, ``refs(X).json``."""

import json
import reprlib
from pathlib import Path

from mindspore_coupalign.data.file_kinds import kind_of_file
from mindspore_coupalign.data.pickles import load_plain_pickle
from mindspore_coupalign.errors import UserError, one_line


def load_refs(path: Path):
    """What the file holds, whichever of the two forms it has; its records are left to ``read_refer``.

    Raises:
        UserError: a missing or damaged file.
    """
    return read_json(path) if path.suffix == ".json" else load_plain_pickle(path)


def annotations_of(ref: dict) -> list:
    """The ``ann_id`` values of a ref, unchecked: REFER's one, or gRefCOCO's list; none where it means nothing, which
    gRefCOCO writes as ``[-1]`` with ``no_target``.

    Raises:
        ValueError: the two fields contradict each other, or -1 stands beside others.
    """
    value, none = ref.get("ann_id"), ref.get("no_target")
    found = [-1 if one == "-1" else as_key(one) for one in (value if isinstance(value, list) else [value])]
    if isinstance(value, list) and len(found) > 1 and -1 in found:
        raise ValueError(f"field 'ann_id' has -1, which stands for no object, beside others: {reprlib.repr(value):.60}")
    if none is None:
        return [] if isinstance(value, list) and found in ([], [-1]) else found
    if not isinstance(none, bool):
        raise ValueError(f"field 'no_target' must be true or false; found {reprlib.repr(none):.60}")
    if none != (found in ([], [-1])):
        raise ValueError(f"fields 'no_target' ({none}) and 'ann_id' ({reprlib.repr(value):.60}) contradict each other")
    return [] if none else found


def as_key(value):
    """An id by which records find each other: 7, 7.0 (pandas writes it) and "7" are the same; "007" is another."""
    if isinstance(value, str):
        return int(value) if value.isdecimal() and value.isascii() and str(int(value[:19])) == value else value
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def read_json(path: Path, origin: str = "check the path", fault: str = "not complete JSON"):
    """The content of a JSON file.

    Args:
        origin: where a missing file comes from.
        fault: what a damaged one is called.

    Raises:
        UserError: a missing, empty or damaged file; it names what the file is instead.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as exc:
        raise UserError(f"{path}: no such file; {origin}") from exc
    except OSError as exc:
        raise UserError(f"{path}: cannot be read ({exc.strerror or exc}); expected a JSON file") from exc
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as exc:
        kind = kind_of_file(content[:64])
        raise UserError(f"{path}: {fault} but {kind}" if kind else
                        f"{path}: {fault} ({one_line(exc, 100)}); truncated? get it again") from exc
