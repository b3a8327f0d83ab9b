"""COCO files whose annotations carry a sentence, as labelling tools write them and ``export-data --format coco`` does.

The sentence of an annotation is its ``sentences``, ``sentence``, ``expressions``, ``expression``, ``captions``,
``caption``, ``referring_expression``, ``phrase`` or ``text``, there or among its ``attributes`` (as CVAT exports them).
Its split is the annotation's or the image's ``split``, else the one that the file's name tells, else --split.
Annotations of one mask are one object with several sentences.
"""

import json

from mindspore_coupalign.data.annotations import as_key
from mindspore_coupalign.data.importers.job import Import
from mindspore_coupalign.data.importers.records import (
    BadRecord,
    Ref,
    Sentence,
    Target,
    box_polygon,
    size_of,
    take,
    texts,
)
from mindspore_coupalign.data.importers.records import sentences as refer_sentences
from mindspore_coupalign.data.importers.sources import by_id, files, read_dict, split_of

FIELDS = ("sentences", "sentence", "expressions", "expression", "captions", "caption", "referring_expression", "phrase",
          "text")


def read_coco(job: Import) -> None:
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


def _add(job: Import, annotation: dict, spoken: list[Sentence], images: dict, path):
    image_id = as_key(take(annotation, "image_id", (int, str)))
    image = images.get(image_id)
    if image is None:
        raise BadRecord(f"its image {image_id} is not among the file's images")
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
