"""Formats that people write for their own data.

``jsonl``, a JSON object per line and sentence (docs/own-data.md): ``mask`` is the path of a painted image (relative to
the file, or to --masks), a COCO RLE dict, polygons, or a box [x, y, width, height] in pixels. Lines of the same image
and mask make one object with several sentences. ``raw``, ``ref_id`` and ``sent_id`` are kept where they are given.

COCO files whose annotations carry a sentence, there or among their ``attributes`` (as CVAT exports them). The split is
the annotation's or the image's ``split``, else the one that the file's name tells, else --split. Annotations of one
mask are one object with several sentences.

A JSON file per image, as labelme writes it (https://github.com/wkentaro/labelme), and ReasonSeg's variant of it. With
a top-level ``text`` (a sentence or a list: ReasonSeg), the shapes labelled ``target`` are the object; ``ignore``
shapes are cut out, larger shapes under smaller ones, as LISA paints them. Without it, every shape is an object whose
sentence is its ``description`` or else its ``label``; shapes of the same sentence and ``group_id`` are one object, and
shapes of the same outline one object with several sentences. The split is the name of the folder where that is a
split's, else --split.
"""

import json
from pathlib import Path

import cv2
import numpy as np

from mindspore_coupalign.data.annotations import as_key, read_dict
from mindspore_coupalign.data.importers.images import read_mask, read_mask_file
from mindspore_coupalign.data.importers.import_job import ImportJob, encode
from mindspore_coupalign.data.importers.records import (
    SPLITS,
    BadRecord,
    Ref,
    Sentence,
    Target,
    box_polygon,
    by_id,
    files,
    found,
    from_base64,
    parse_json,
    polygons,
    shown,
    size_of,
    split_of,
    take,
    texts,
)
from mindspore_coupalign.data.importers.records import sentences as refer_sentences
from mindspore_coupalign.data.masks import polygon_points
from mindspore_coupalign.errors import UserError

MASK_FIELDS = ("mask", "polygons", "segmentation", "rle", "box")


def read_jsonl(job: ImportJob) -> None:
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


def _read_line(job: ImportJob, path: Path, line: str):
    record = parse_json(line)
    image = take(record, "image", str)
    spoken = texts(record, "sentences" if "sentences" in record else "sentence")
    if not all(map(str.strip, spoken)):
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
    ref = Ref(picture, None, [], [Sentence(text.strip(), raw, take(record, "sent_id", int, None)) for text in spoken],
              split, ref_id)
    if given and job.known(key) is None:
        ref.targets = [Target(_segmentation(job, path, given[0], value, record, picture))]
    job.add(ref, given[0] if given else "", key)


def _segmentation(job: ImportJob, path: Path, name: str, value, record: dict, picture: str):
    if isinstance(value, str):
        file = (job.masks or path.parent) / value.replace("\\", "/")
        mask = read_mask_file(file, record.get("mask_value"))
        job.pictures.compare(picture, mask.shape, f"mask image {file}")
        return encode(mask)
    if isinstance(value, dict):
        return value
    if name == "box" or (isinstance(value, list) and len(value) == 4 and not any(isinstance(v, list) for v in value)):
        return box_polygon(value, name)
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        return value
    if not isinstance(value, list):
        raise BadRecord(f"field {name!r} must be a mask image's path, polygons, an RLE dict or a box; found "
                        f"{shown(value)}")
    return polygons(value, name)


FIELDS = ("sentences", "sentence", "expressions", "expression", "captions", "caption", "referring_expression", "phrase",
          "text")


def read_coco(job: ImportJob) -> None:
    without = 0
    for path in files(job.source, "*.json"):
        content = read_dict(path, "images", "annotations")
        images = by_id(content["images"], path, "images")
        job.name_categories(content)
        for i, annotation in enumerate(content["annotations"]):
            which = annotation.get("id", f"number {i}") if isinstance(annotation, dict) else f"number {i}"
            with job.record(path, "annotation", which):
                spoken = _sentences(annotation)
                if spoken:
                    _add(job, annotation, spoken, images, path)
                else:
                    without += 1
    if without:
        job.notes["annotations without a sentence passed over"] = without


def _sentences(annotation) -> list[Sentence]:
    if not isinstance(annotation, dict):
        raise BadRecord(f"expected a dict, found {type(annotation).__name__}")
    attributes = annotation.get("attributes")
    for holder in (annotation, attributes if isinstance(attributes, dict) else {}):
        for key in FIELDS:
            value = holder.get(key)
            if value in (None, "", []):
                continue
            if isinstance(value, list) and isinstance(value[0], dict):
                return refer_sentences(holder, key)
            return [Sentence(text) for text in texts(holder, key)]
    return []


def _add(job: ImportJob, annotation: dict, spoken: list[Sentence], images: dict, path):
    image_id = as_key(take(annotation, "image_id", (int, str)))
    image = found(images, image_id, "image")
    field = "segmentation" if annotation.get("segmentation") else "bbox"
    if field == "bbox":
        if annotation.get("bbox") is None:
            raise BadRecord("it has neither a segmentation nor a bbox")
        segmentation = box_polygon(annotation["bbox"], "bbox")
        job.notes["objects with a box alone: the box is the mask"] += 1
    else:
        segmentation = take(annotation, "segmentation", (list, dict))
    split = take(annotation, "split", str, "") or take(image, "split", str, "") or split_of(path)
    job.add(Ref(take(image, "file_name", str), size_of(image),
                [Target(segmentation, _number(annotation.get("id")), take(annotation, "category_id", int, None))],
                spoken, split, _number(annotation.get("ref_id")), _number(image_id)),
            field, (split, image_id, json.dumps(segmentation, sort_keys=True)))


def _number(value) -> int | None:
    return value if type(value) is int else None


def read_labelme(job: ImportJob) -> None:
    paths = files(job.source, "*.json")
    if job.source.is_dir():
        paths = sorted({*paths, *job.source.glob("*/*.json")})
    for path in paths:
        with job.record(path, "image of", path.name):
            content = _read(path)
            named = take(content, "imagePath", str, "")
            image = job.pictures.find(named or f"{path.stem}.jpg")
            told = "imageHeight" in content
            size = size_of(content, "imageHeight", "imageWidth") if told else job.pictures.size(image)
            split = path.parent.name if path.parent.name in SPLITS else ""
            shapes = take(content, "shapes", list)
            if not shapes:
                raise BadRecord("field 'shapes' is empty: no object is drawn")
            for spoken, mask in (_reasoned(content, shapes, size) if "text" in content else _described(shapes, size)):
                segmentation = encode(mask)
                job.add(Ref(image, size, [Target(segmentation)], [Sentence(text) for text in spoken], split), "shapes",
                        (split, image, segmentation["counts"]))


def _read(path):
    """A file is a record here. ReasonSeg has files that are not UTF-8."""
    content = path.read_bytes()
    try:
        text = content.decode(json.detect_encoding(content), "surrogatepass")
    except UnicodeDecodeError:
        text = content.decode("cp1252", "replace")
    return parse_json(text)


def _reasoned(content: dict, shapes: list, size: tuple[int, int]):
    """ReasonSeg: one object for all sentences of ``text``."""
    painted = np.zeros(size, np.uint8)
    drawn = [(_shape_mask(shape, size), take(shape, "label", str).lower()) for shape in shapes]
    for mask, label in sorted(drawn, key=lambda entry: -int(entry[0].sum())):
        if label.startswith(("target", "ignore")):
            painted[mask > 0] = label.startswith("target")
    yield texts(content, "text"), painted


def _described(shapes: list, size: tuple[int, int]):
    """An object per sentence and group."""
    objects: dict[tuple[str, str], np.ndarray] = {}
    for i, shape in enumerate(shapes):
        sentence = (take(shape, "description", str, "").strip() or take(shape, "label", str).strip())
        if not sentence:
            raise BadRecord(f"shape {i} has neither a description nor a label; the sentence goes there")
        key = (sentence, str(shape.get("group_id")) if shape.get("group_id") is not None else f"shape {i}")
        objects.setdefault(key, np.zeros(size, np.uint8))
        objects[key] |= _shape_mask(shape, size)
    for (sentence, _), mask in objects.items():
        yield [sentence], mask


def _shape_mask(shape, size: tuple[int, int]) -> np.ndarray:
    """(h, w) uint8 0 or 1 of a polygon, rectangle, circle or mask."""
    kind = take(shape, "shape_type", str, "polygon")
    points = _points(shape)
    mask = np.zeros(size, np.uint8)
    if kind in ("polygon", "rectangle") and len(points) >= 3:
        cv2.fillPoly(mask, [np.round(points).astype(np.int32)], (1,))
    elif kind in ("rectangle", "mask") and len(points) == 2:
        (x0, y0), (x1, y1) = np.round([points.min(axis=0), points.max(axis=0)]).astype(int).clip(0).tolist()
        if kind == "mask":
            inside = read_mask(from_base64(take(shape, "mask", str), "field 'mask'"), "field 'mask'")
            inside = inside[: max(size[0] - y0, 0), : max(size[1] - x0, 0)]
            mask[y0 : y0 + inside.shape[0], x0 : x0 + inside.shape[1]] = inside
        else:
            mask[y0 : y1 + 1, x0 : x1 + 1] = 1
    elif kind == "circle" and len(points) == 2:
        radius = int(round(float(np.linalg.norm(points[1] - points[0]))))
        cv2.circle(mask, np.round(points[0]).astype(int).tolist(), radius, (1,), -1)
    else:
        raise BadRecord(f"a shape of type {kind!r} with {len(points)} points has no area; draw polygons, rectangles, "
                        "circles or masks")
    return mask


def _points(shape) -> np.ndarray:
    """(n, 2) float64 x, y."""
    try:
        return polygon_points(take(shape, "points", list))
    except ValueError as exc:
        raise BadRecord(f"field 'points': {exc}") from exc
