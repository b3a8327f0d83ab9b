"""Reading a list of refs: REFER's pickle ``refs(X).p``, or the same list as JSON, ``refs(X).json``.

A ref means one object here. gRefCOCO's refs have a list of annotations, or none: a list of one is taken as that one,
anything else is refused.
"""

import json
import reprlib
from pathlib import Path

from mindspore_coupalign.data.file_kinds import kind_of_file
from mindspore_coupalign.data.pickles import load_plain_pickle
from mindspore_coupalign.errors import UserError, one_line


def load_refs(path: Path):
    """What the file holds, whichever of the two forms it has; its records are left to ``read_refer``.

    Raises:
        UserError: a missing or damaged file, or a ref that means several objects or none.
    """
    refs = read_json(path) if path.suffix == ".json" else load_plain_pickle(path)
    if isinstance(refs, list):
        for i, ref in enumerate(refs):
            if isinstance(ref, dict) and (isinstance(ref.get("ann_id"), list) or ref.get("no_target")):
                refs[i] = _of_one_object(ref, path, i)
    return refs


def _of_one_object(ref: dict, path: Path, number: int) -> dict:
    ann_ids = ref["ann_id"] if isinstance(ref.get("ann_id"), list) else [ref.get("ann_id")]
    if ref.get("no_target") or len(ann_ids) != 1 or ann_ids == [-1]:
        what = "no object" if ref.get("no_target") or ann_ids in ([], [-1]) else f"{len(ann_ids)} objects"
        name = reprlib.repr(ref.get("ref_id", f"number {number}"))
        raise UserError(f"{path}: ref {name} means {what}, and this task has one object per sentence; import the file "
                        "with `import-data --format grefcoco --objects unite`, which unites the objects of a sentence "
                        "and leaves out sentences that mean none")
    category = ref.get("category_id")
    one = category[0] if isinstance(category, list) and category else category
    return {**ref, "ann_id": ann_ids[0], "category_id": one}


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
