"""MDETR's ``finetune_<set>_<split>.json`` (https://github.com/ashkamath/mdetr), and gRefCOCO's twin of it.

COCO-like, an image record per sentence with its ``caption``; annotations have no masks, but COCO's ids as
``original_id``: the masks come from COCO's instances_train2014.json (--instances), or REFER's instances.json.
gRefCOCO's twin has several annotations per image record, or one with ``empty`` true.
"""

from collections import defaultdict
from pathlib import Path

from mindspore_coupalign.data.importers.job import Import
from mindspore_coupalign.data.importers.records import BadRecord, Ref, Sentence, Target, size_of, take
from mindspore_coupalign.data.importers.sources import by_id, files, read_dict, split_of
from mindspore_coupalign.errors import UserError


def read_mdetr(job: Import) -> None:
    coco = read_dict(_instances(job), "annotations")
    masks = by_id(coco["annotations"], _instances(job), "annotations")
    job.name_categories(coco)
    del coco
    foreign = set()
    for path in files(job.source, "finetune_*.json"):
        content = read_dict(path, "images", "annotations")
        objects = defaultdict(list)
        for i, annotation in enumerate(content["annotations"]):
            with job.record(path, "annotation number", i):
                objects[take(annotation, "image_id", int)].append(annotation)
        for i, image in enumerate(content["images"]):
            with job.record(path, "image number", i):
                name = take(image, "dataset_name", str, job.dataset)
                if name != job.dataset:
                    foreign.add(name)
                    continue
                _add(job, image, objects.get(take(image, "id", int), []), masks, split_of(path))
    if foreign:
        if not job.refs and not job.bad:
            raise UserError(f"{job.source}: has no record of {job.dataset}, but of {', '.join(sorted(foreign))}; "
                            "choose one with --dataset")
        job.notes[f"records of {', '.join(sorted(foreign))} passed over (--dataset chooses them)"] = 0


def _instances(job: Import) -> Path:
    folder = job.source if job.source.is_dir() else job.source.parent
    usual = [folder / "instances_train2014.json", folder / "annotations/instances_train2014.json",
             folder / "instances.json"]
    found = job.instances or next((path for path in usual if path.is_file()), None)
    if found is None:
        raise UserError(f"{job.source}: MDETR's files have no masks; name COCO's instances_train2014.json (or REFER's "
                        "instances.json) with --instances")
    return found


def _add(job: Import, image: dict, objects: list, masks: dict, split: str):
    if not objects:
        raise BadRecord("no annotation lies on it; is the file truncated?")
    targets = []
    for annotation in objects:
        original = take(annotation, "original_id", int)
        if take(annotation, "empty", bool, original == -1):
            continue
        if original not in masks:
            raise BadRecord(f"its annotation {original} is not in the file of --instances; is that COCO's train2014?")
        targets.append(Target(take(masks[original], "segmentation", (list, dict)), original,
                              take(annotation, "category_id", int, None)))
    image_id = take(image, "original_id", int)
    ids = tuple(target.ann_id for target in targets)
    key = (split, image_id, ids) if ids else None
    job.add(Ref(take(image, "file_name", str), size_of(image), targets, [Sentence(take(image, "caption", str))], split,
                image_id=image_id), "segmentation", key)
