"""One's own data: a JSON object per line and sentence (``jsonl``).

``{"image": "a.jpg", "sentence": "the red cup", "mask": "a_cup.png", "split": "train"}``. ``mask`` is the path of a
painted picture (relative to the file, or to --masks), a COCO RLE dict, polygons, or a box [x, y, width, height] in
pixels; it may stand under ``polygons``, ``segmentation``, ``rle`` or ``box`` as well. ``sentence`` may be a list
(``sentences`` too). Lines of the same picture and mask make one object with several sentences. ``raw`` (the sentence as
it was typed), ``ref_id`` and ``sent_id`` are kept where they are given.
"""

import json
from pathlib import Path

from mindspore_coupalign.data.importers.job import Import, encode
from mindspore_coupalign.data.importers.pictures import read_mask
from mindspore_coupalign.data.importers.records import (
    BadRecord,
    Ref,
    Sentence,
    Target,
    box_polygon,
    polygons,
    shown,
    take,
    texts,
)
from mindspore_coupalign.data.importers.sources import files
from mindspore_coupalign.errors import UserError

MASK_FIELDS = ("mask", "polygons", "segmentation", "rle", "box")


def read_jsonl(job: Import) -> None:
    for path in files(job.source, "*.jsonl"):
        for number, line in _lines(path):
            with job.record(path, "line", number):
                _read_line(job, path, line)


def _lines(path: Path):
    """Numbers from 1 and texts of the lines that are not blank."""
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise UserError(f"{path}: byte {exc.start} is not UTF-8; save the file as UTF-8 text") from exc
    except OSError as exc:
        raise UserError(f"{path}: cannot be read ({exc.strerror or exc}); check the file") from exc
    if content.lstrip()[:1] == "[":
        raise UserError(f"{path}: one JSON list, not a JSON object per line; write each entry on a line of its own")
    return [(number, line) for number, line in enumerate(content.split("\n"), 1) if line.strip()]


def _read_line(job: Import, path: Path, line: str):
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise BadRecord(f"not a complete JSON object ({str(exc)[:80]})") from exc
    image = take(record, "image", str)
    spoken = texts(record, "sentences" if "sentences" in record else "sentence")
    blank = [text for text in spoken if not text.strip()]
    if blank:
        raise BadRecord("field 'sentence' is blank")
    given = [name for name in MASK_FIELDS if record.get(name) is not None]
    none = take(record, "no_target", bool, False)
    if len(given) != 1 - none:
        raise BadRecord(f"give the object once, as one of {', '.join(MASK_FIELDS)} (or \"no_target\": true where the "
                        f"sentence means none); found {', '.join(given) or 'none of them'}")
    split = take(record, "split", str, "")
    value = record[given[0]] if given else None
    picture = job.pictures.find(image)
    ref_id, raw = take(record, "ref_id", int, None), take(record, "raw", str, "")
    key = (picture, split, ref_id, json.dumps([value, record.get("mask_value")]))
    found = [Sentence(text.strip(), raw, take(record, "sent_id", int, None)) for text in spoken]
    ref = Ref(picture, None, [], found, split, ref_id)
    if given and job.known(key) is None:
        ref.targets = [Target(_segmentation(job, path, given[0], value, record, picture))]
    job.add(ref, given[0] if given else "", key)


def _segmentation(job: Import, path: Path, name: str, value, record: dict, picture: str):
    if isinstance(value, str):
        file = (job.masks or path.parent) / value.replace("\\", "/")
        try:
            content = file.read_bytes()
        except (OSError, ValueError) as exc:
            why = getattr(exc, "strerror", None) or exc
            raise BadRecord(f"field {name!r}: mask picture {file} cannot be read ({why}); paths are relative to the "
                            "file, or to --masks") from exc
        mask = read_mask(content, f"mask picture {file}", record.get("mask_value"))
        height, width = mask.shape
        job.pictures.compare(picture, (height, width), f"mask picture {file}")
        return encode(mask)
    if isinstance(value, dict):
        return value
    if name == "box" or (isinstance(value, list) and len(value) == 4 and not any(isinstance(v, list) for v in value)):
        return box_polygon(value, name)
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        return value
    if not isinstance(value, list):
        raise BadRecord(f"field {name!r} must be a mask picture's path, polygons, an RLE dict or a box; found "
                        f"{shown(value)}")
    return polygons(value, name)
