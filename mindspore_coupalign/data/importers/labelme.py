"""A JSON file per picture, as labelme writes it (https://github.com/wkentaro/labelme), and ReasonSeg's variant of it.

With a top-level ``text`` (a sentence or a list: ReasonSeg), the shapes labelled ``target`` are the object; ``ignore``
shapes are cut out, larger shapes under smaller ones, as LISA paints them. Without it, every shape is an object whose
sentence is its ``description`` or else its ``label``; shapes of the same sentence and ``group_id`` are one object, and
shapes of the same outline one object with several sentences. The split is the name of the folder where that is a
split's, else --split.
"""

import json

import cv2
import numpy as np

from mindspore_coupalign.data.importers.job import Import, encode
from mindspore_coupalign.data.importers.pictures import read_mask
from mindspore_coupalign.data.importers.records import BadRecord, Ref, Sentence, Target, shown, size_of, take, texts
from mindspore_coupalign.data.importers.sources import SPLITS, files, from_base64
from mindspore_coupalign.data.masks import MAX_COORDINATE


def read_labelme(job: Import) -> None:
    paths = files(job.source, "*.json")
    if job.source.is_dir():
        paths = sorted({*paths, *job.source.glob("*/*.json")})
    for path in paths:
        with job.record(path, "picture of", path.name):
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
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise BadRecord(f"not complete JSON ({str(exc)[:80]}); truncated?") from exc


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
    value = take(shape, "points", list)
    try:
        points = np.asarray(value, np.float64).reshape(len(value), 2)
    except (TypeError, ValueError):
        raise BadRecord(f"field 'points' must be points [x, y]; found {shown(value)}") from None
    if not (np.abs(points) <= MAX_COORDINATE).all():
        raise BadRecord(f"field 'points' has a coordinate that is no pixel position: {shown(value)}")
    return points
