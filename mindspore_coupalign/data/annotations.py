"""REFER's two annotation files -> the columns of a ``ReferData`` (its names and shapes: refer.py).

The list of refs is the pickle ``refs(X).p`` or the same list as JSON, ``refs(X).json``. Errors name an invalid record
by file and id, or by its position where it has none. Ids may be whole numbers or text; a text of digits (``"1"``) and a
whole float (``1.0``, pandas writes them) are the number. A ref has one target object or, in gRefCOCO's format (a list
``ann_id``, ``no_target``), several or none; of several, crowds (``iscrowd``) are left out, as its own loader does
(henghuiding/ReLA, gres_model/data/datasets/grefcoco.py).
"""

import json
import reprlib
from pathlib import Path

import numpy as np

from mindspore_coupalign.data.masks import Region, segmentation_to_rle, united
from mindspore_coupalign.data.pickles import load_plain_pickle
from mindspore_coupalign.errors import UserError, kind_of_file, one_line

LARGEST_SIDE = 65535  # pixels, JPEG's limit
_ID = (int, str, float)
_TYPE_NAMES = {int: "a whole number", str: "text", list: "a list", dict: "a dict", float: "a whole number"}


def read_annotations(refs_file: Path, instances_file: Path) -> dict:
    """The columns by name.

    Raises:
        UserError: a file that is missing, damaged or of another kind, a missing or mistyped field, a ref whose
            annotation or image instances.json does not have or has twice, a segmentation that is none.
    """
    refs = load_refs(refs_file)
    columns, keys = _read_refs(refs, refs_file)
    del refs  # before the larger file is read
    return columns | _join_instances(keys, instances_file, refs_file)


def _read_refs(refs: list, source: Path) -> tuple[dict, list]:
    """The columns that refs(*).p alone gives, and per ref the keys (ref_id, its ann_ids, image_id)."""
    keys, splits = [], []
    owners, sentence_ids, kinds, texts, typed, starts = [], [], [], [], [], [0]
    for i, ref in enumerate(refs):
        ref_id, image_id = (_id(ref, key, source, "ref number", i) for key in ("ref_id", "image_id"))
        keys.append((ref_id, _ann_ids(ref, source, i), image_id))
        splits.append(_field(ref, "split", (str,), source, "ref number", i))
        for sentence in _field(ref, "sentences", (list,), source, "ref number", i):
            where = (source, "a sentence of ref", keys[-1][0])
            sentence_ids.append(_id(sentence, "sent_id", *where))
            sent, raw = _wordings(sentence, where)
            texts.append(sent)
            typed.append(b"" if raw == sent else raw)
            kinds.append(_field(sentence, "kind", (str,), *where) if "kind" in sentence else None)
            owners.append(i)
        starts.append(len(owners))
    split_names, ref_split = _codes(splits)
    kind_names, sentence_kind = _codes(kinds)
    return {
        "ref_ids": np.array([key[0] for key in keys]),
        "ref_split": ref_split, "split_names": split_names, "ref_sentences": np.array(starts, np.int64),
        "sentence_ref": np.array(owners, np.int32), "sentence_ids": np.array(sentence_ids),
        "sentence_kind": sentence_kind, "kind_names": kind_names, "text": b"".join(texts), "text_at": _offsets(texts),
        "raw": b"".join(typed), "raw_at": _offsets(typed),
    }, keys


def _ann_ids(ref: dict, source: Path, number: int) -> list:
    """The annotation ids of a ref; none without a target."""
    try:
        values = annotations_of(ref)
    except ValueError as exc:
        raise UserError(f"{source}: ref {ref['ref_id']}: {exc}") from exc
    found = [_id({"ann_id": value}, "ann_id", source, "ref number", number) for value in values]
    if len(set(found)) != len(found):
        raise UserError(f"{source}: ref {ref['ref_id']}: field 'ann_id' names an annotation twice: {found}")
    return found


def _wordings(sentence, where: tuple) -> tuple[bytes, bytes]:
    """``sent`` and ``raw`` of a sentence; where one is missing or blank, the other."""
    has_raw = isinstance(sentence, dict) and sentence.get("raw") is not None
    raw = _field(sentence, "raw", (str,), *where) if has_raw else ""
    has_sent = not has_raw or sentence.get("sent") is not None  # asked for where there is neither
    sent = _field(sentence, "sent", (str,), *where) if has_sent else ""
    return ((sent if sent.strip() else raw or sent).encode("utf-8", "replace"),
            (raw if raw.strip() else sent).encode("utf-8", "replace"))


def _join_instances(keys: list, source: Path, refs_file: Path) -> dict:
    """The columns of images and masks that instances.json gives for the refs with these keys."""
    instances = read_dict(source, "images", "annotations")
    images, annotations = _Records(instances, "images", source), _Records(instances, "annotations", source)
    files: list[str] = []
    index, sizes, ref_image, regions, meant, crowds = {}, [], [], [], [], 0
    for ref_id, ann_ids, image_id in keys:
        named = f"annotation {', '.join(map(str, ann_ids))}" if ann_ids else "no target"
        image = images.of(image_id, f"which ref {ref_id} ({named}) of {refs_file.name} names")
        found = _objects(annotations, ann_ids, image_id, ref_id, refs_file)
        if image_id not in index:
            index[image_id] = len(files)
            files.append(_field(image, "file_name", (str,), source, "image", image_id))
            sizes.append(_size(image, source, image_id))
        size = sizes[index[image_id]]
        ref_image.append(index[image_id])
        parts = [_region(annotation, size, source, ann_id, ref_id) for ann_id, annotation in found.items()]
        regions.append(parts[0] if len(parts) == 1 else united(parts, *size))
        meant.append(list(found))
        crowds += len(ann_ids) - len(found)
    unions, singles, outside, left_out = zip(*regions, strict=True)
    return {
        "ann_ids": np.array([ann_id for ids in meant for ann_id in ids] or np.zeros(0, np.int64)),
        "ref_objects": _offsets(meant),
        "image_files": np.array(files), "image_sizes": np.array(sizes, np.int32),
        "ref_image": np.array(ref_image, np.int32), "ref_outside": np.array(outside, bool),
        "ref_left_out": np.array(left_out, np.int32),
        "rle": b"".join(unions), "rle_at": _offsets(unions),
        "single": b"".join(singles), "single_at": _offsets(singles), "annotations": len(annotations.found),
        "notes": (f"note: {crowds:,} crowd annotations (iscrowd) of refs with several targets are left out of the "
                  "masks, as gRefCOCO's loader does it",) if crowds else (),
        "unnamed": len(annotations.found) - len({ann_id for _, ann_ids, _ in keys for ann_id in ann_ids}),
    }


def _objects(annotations: "_Records", ann_ids: list, image_id, ref_id, refs_file: Path) -> dict:
    """A ref's target annotations by id; of several, without crowds."""
    found = {}
    for ann_id in ann_ids:
        annotation = annotations.of(ann_id, f"which ref {ref_id} (annotation {ann_id}) of {refs_file.name} names")
        lies_on = _id(annotation, "image_id", annotations.source, "annotation", ann_id)
        if lies_on != image_id:
            raise UserError(f"{annotations.source}: annotation {ann_id} lies on image {lies_on}, but ref {ref_id} of "
                            f"{refs_file.name} says image {image_id}; do the two files belong together?")
        if len(ann_ids) == 1 or not annotation.get("iscrowd"):
            found[ann_id] = annotation
    if ann_ids and not found:
        raise UserError(f"{annotations.source}: all annotations of ref {ref_id} of {refs_file.name} are crowds "
                        f"({', '.join(map(str, ann_ids))}), which are no objects; leave the ref out")
    return found


class _Records:
    """The records of one list of instances.json by id."""

    def __init__(self, instances: dict, key: str, source: Path):
        self.name, self.source = key, source
        self.found: dict[int, tuple[int, dict]] = {}  # id -> its place in the list, the record
        self.twice: dict[int, tuple[int, int]] = {}  # id -> the places of two that differ
        for number, record in enumerate(instances[key]):
            record_id = _id(record, "id", source, f"{key} number", number)
            first = self.found.setdefault(record_id, (number, record))
            if first[1] is not record and first[1] != record:  # a record that is there twice does no harm
                self.twice[record_id] = (first[0], number)

    def of(self, record_id, whose: str) -> dict:
        """The record with an id. Raises UserError when there is none, or there are two that differ."""
        name = self.name.rstrip("s")
        if record_id in self.twice:
            first, second = self.twice[record_id]
            raise UserError(f"{self.source}: {self.name} number {first} and number {second} have the same id "
                            f"{record_id}, {whose}; give every {name} an id of its own")
        if record_id not in self.found:
            raise UserError(f"{self.source}: has no {name} {record_id}, {whose}; do the two files belong together?")
        return self.found[record_id][1]


def _size(image: dict, source: Path, image_id) -> list:
    """[height, width]."""
    size = [_field(image, side, (int,), source, "image", image_id) for side in ("height", "width")]
    if not 1 <= min(size) <= max(size) <= LARGEST_SIDE:
        raise UserError(f"{source}: image {image_id}: height and width must be between 1 and {LARGEST_SIDE}, found "
                        f"{size}")
    return size


def _region(annotation: dict, size: list, source: Path, ann_id, ref_id) -> Region:
    segmentation = _field(annotation, "segmentation", (list, dict), source, "annotation", ann_id)
    try:
        return segmentation_to_rle(segmentation, *size)
    except ValueError as exc:
        raise UserError(f"{source}: annotation {ann_id} (ref {ref_id}): segmentation: {exc}") from exc


def _id(record, key: str, source: Path, name: str, which):
    """An id, whole number or text, as ``as_key`` has it."""
    value = as_key(_field(record, key, _ID, source, name, which))
    if isinstance(value, float):
        raise UserError(f"{source}: {name} {which}: field {key!r} must be a whole number or text; found {value}")
    return value


def _field(record, key: str, types: tuple, source: Path, name: str, which):
    """``record[key]``, checked; ``name which`` says in the error which record it is."""
    value = record.get(key) if isinstance(record, dict) else None
    if (list if isinstance(value, list) else type(value)) not in types:  # a bool is no whole number
        found = f"found {reprlib.repr(value):.60}" if isinstance(record, dict) and key in record else "it is missing"
        wanted = " or ".join(dict.fromkeys(_TYPE_NAMES[kind] for kind in types))
        raise UserError(f"{source}: {name} {which}: field {key!r} must be {wanted}; {found}")
    return value


def _codes(values: list) -> tuple[tuple[str, ...], np.ndarray]:
    """Names in order of appearance and the index of each value's name, (n,) int16; None becomes -1."""
    names = tuple(dict.fromkeys(value for value in values if value is not None))
    code = {name: i for i, name in enumerate(names)} | {None: -1}
    return names, np.array([code[value] for value in values], np.int16)


def _offsets(parts: list | tuple) -> np.ndarray:
    return np.concatenate([[0], np.cumsum([len(part) for part in parts], dtype=np.int64)])


def load_refs(path: Path) -> list:
    """The list of refs, whichever of the two forms the file has. Raises UserError."""
    refs = read_json(path) if path.suffix == ".json" else load_plain_pickle(path)
    if not isinstance(refs, list) or not refs:
        found = "an empty one" if refs == [] else type(refs).__name__
        raise UserError(f"{path}: expected a list of refs, found {found}; is this the right file?")
    return refs


def annotations_of(ref: dict) -> list:
    """The ``ann_id`` values of a ref, unchecked: REFER's one, or gRefCOCO's list; none without a target, which
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


def read_json(path: Path):
    """The content of a JSON file. Raises UserError, which names what a file of another kind is."""
    try:
        content = path.read_bytes()
    except FileNotFoundError as exc:
        raise UserError(f"{path}: no such file; check the path") from exc
    except OSError as exc:
        raise UserError(f"{path}: cannot be read ({exc.strerror or exc}); expected a JSON file") from exc
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as exc:
        kind = kind_of_file(content[:64])
        fault = f"but {kind}" if kind else f"({one_line(exc, 100)}); truncated? get it again"
        raise UserError(f"{path}: not complete JSON {fault}") from exc


def read_dict(path: Path, *keys: str) -> dict:
    """A JSON file that holds a dict with lists under these keys. Raises UserError."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a dict, found {type(content).__name__}; is this the right file?")
    for key in keys:
        if not isinstance(content.get(key), list):
            raise UserError(f"{path}: has no list {key!r}; is this the right file?")
    return content
