"""SeqTR's ``instances.json`` (https://github.com/seanzhuh/SeqTR) and what UNINEXT makes of it.

``seqtr``: a dict split -> list of {image_id, width, height, bbox, expressions, mask}; the picture's name is made from
image_id. ``uninext``: per split a COCO file whose images carry ``expressions``, a record per ref. Both give no
annotation ids, and in some splits a record per sentence: records of one mask on one picture are one ref.
"""

import json
import re

from mindspore_coupalign.data.annotations import read_json
from mindspore_coupalign.data.importers.job import Import
from mindspore_coupalign.data.importers.records import BadRecord, Ref, Sentence, Target, shown, size_of, take, texts
from mindspore_coupalign.data.importers.sources import by_id, files, read_dict, split_of
from mindspore_coupalign.errors import UserError

_COCO_ID = re.compile(r"[0-9]{1,18}")  # at the end of a COCO picture's name


def read_seqtr(job: Import) -> None:
    for path in files(job.source, "instances.json"):
        content = read_json(path)
        if not isinstance(content, dict) or not all(isinstance(records, list) for records in content.values()):
            raise UserError(f"{path}: expected a dict of lists, one per split; is this SeqTR's instances.json?")
        if "annotations" in content:
            raise UserError(f"{path}: this is a COCO file, not SeqTR's; is it REFER's own, or --format uninext?")
        for split, records in content.items():
            for i, record in enumerate(records):
                with job.record(path, f"{split} record", i):
                    image_id = take(record, "image_id", int)
                    _add(job, _file_name(record, image_id, job.dataset), image_id, size_of(record), record, "mask",
                         texts(record, "expressions"), split)


def read_uninext(job: Import) -> None:
    for path in files(job.source, "instances*_*.json"):
        content = read_dict(path, "images", "annotations")
        images = by_id(content["images"], path, "images")
        for i, annotation in enumerate(content["annotations"]):
            with job.record(path, "annotation number", i):
                image = images.get(take(annotation, "image_id", int))
                if image is None:
                    raise BadRecord(f"its image {annotation['image_id']} is not among the file's images")
                name = take(image, "file_name", str)
                digits = name.rsplit(".", 1)[0].rsplit("_", 1)[-1]
                image_id = int(digits) if _COCO_ID.fullmatch(digits) else None
                _add(job, name, image_id, size_of(image), annotation, "segmentation",
                     texts(image, "expressions"), split_of(path))


def _add(job: Import, name, image_id, size, record, field, expressions, split):
    segmentation = take(record, field, (list, dict))
    key = (split, name, json.dumps(segmentation, sort_keys=True))
    job.add(Ref(name, size, [Target(segmentation)], [Sentence(text) for text in expressions], split,
                image_id=image_id), field, key)


def _file_name(record: dict, image_id: int, dataset: str) -> str:
    """SeqTR's own rule: COCO's name for the sets on COCO, the number alone for ReferIt and Flickr30k."""
    source = take(record, "data_source", str, "coco" if dataset.startswith(("refcoco", "grefcoco")) else "")
    if image_id < 0:
        raise BadRecord(f"field 'image_id' must be a number from 0 on; found {shown(image_id)}")
    return f"COCO_train2014_{image_id:012d}.jpg" if "coco" in source else f"{image_id}.jpg"
