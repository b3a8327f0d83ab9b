"""Annotation files of public data sets.

Forms with REFER's two files: gRefCOCO (https://github.com/henghuiding/gRefCOCO) and RRSIS-D.

gRefCOCO's refs have lists of annotations, ``[-1]`` and ``no_target`` where a sentence means nothing; older records have
a bare number. After its own loader (ReLA, grefcoco.py), annotations that are ``iscrowd`` are left out of a mask.

PhraseCut's ``refer_<split>.json`` (https://github.com/ChenyunWu/PhraseCutDataset).

A list of {task_id, image_id (Visual Genome's), ann_ids, instance_boxes, Polygons [instance][polygon][point x, y],
phrase}. A phrase may mean several instances; PhraseCut scores one mask per phrase.
"""

import re
from pathlib import Path

from mindspore_coupalign.data.annotations import annotations_of, load_refs, read_dict
from mindspore_coupalign.data.importers.import_job import ImportJob
from mindspore_coupalign.data.importers.records import (
    BadRecord,
    Ref,
    Sentence,
    Target,
    by_id,
    files,
    found,
    polygons,
    read_list,
    sentences,
    shown,
    size_of,
    take,
    whole,
)
from mindspore_coupalign.errors import UserError


def read_grefcoco(job: ImportJob) -> None:
    _read(job, "grefs(*).*", several=True)


def read_rrsisd(job: ImportJob) -> None:
    _read(job, "refs(*).*", several=False)


def _read(job: ImportJob, pattern: str, several: bool):
    for path in files(job.source, pattern):
        if path.suffix not in (".p", ".pkl", ".pickle", ".json"):
            raise UserError(f"{path}: expected a list of refs as .p or .json")
        instances = job.instances or path.with_name("instances.json")
        refs = load_refs(path)
        content = read_dict(instances, "images", "annotations")
        images = by_id(content["images"], instances, "images")
        annotations = by_id(content["annotations"], instances, "annotations")
        job.name_categories(content)
        for i, ref in enumerate(refs):
            which = ref["ref_id"] if isinstance(ref, dict) and "ref_id" in ref else f"number {i}"
            with job.record(path, "ref", which):
                _add(job, ref, images, annotations, several)


def _add(job: ImportJob, ref: dict, images: dict, annotations: dict, several: bool):
    image_id = take(ref, "image_id", int)
    image = found(images, image_id, "image")
    ann_ids = _ann_ids(ref)
    if not several and len(ann_ids) != 1:
        raise BadRecord(f"field 'ann_id' must be one number; found {shown(ref['ann_id'])}; is this gRefCOCO?")
    targets = []
    for ann_id in ann_ids:
        annotation = found(annotations, ann_id, "annotation")
        if take(annotation, "image_id", int) != image_id:
            raise BadRecord(f"its annotation {ann_id} lies on image {annotation['image_id']}, not on {image_id}")
        if several and annotation.get("iscrowd"):
            job.notes["crowd annotations left out of masks, as gRefCOCO's own loader does"] += 1
            continue
        targets.append(Target(take(annotation, "segmentation", (list, dict)), ann_id,
                              take(annotation, "category_id", int, None)))
    if ann_ids and not targets:
        raise BadRecord(f"all of its annotations {shown(ann_ids)} are crowds")
    job.add(Ref(take(image, "file_name", str), size_of(image), targets, sentences(ref), take(ref, "split", str),
                take(ref, "ref_id", int), image_id))


def _ann_ids(ref: dict) -> list[int]:
    """The annotations that a ref means; none where it says so."""
    value = take(ref, "ann_id", (int, str, list))
    try:
        ids = [whole(one, "ann_id") for one in annotations_of(ref)]
    except ValueError as exc:
        raise BadRecord(str(exc)) from exc
    if len(set(ids)) != len(ids):
        raise BadRecord(f"field 'ann_id' has an annotation twice: {shown(value)}")
    return ids


_FILE = "image_data_split3000.json"  # sizes; without it the images are opened


def read_phrasecut(job: ImportJob) -> None:
    for path in files(job.source, "refer_*.json"):
        sizes = _sizes(job, path.with_name(_FILE))
        split = re.sub(r"^refer_", "", path.stem)
        for i, task in enumerate(read_list(path, "tasks")):
            with job.record(path, "task", task.get("task_id", i) if isinstance(task, dict) else i):
                image_id = take(task, "image_id", int)
                instances = take(task, "Polygons", list)
                ann_ids = take(task, "ann_ids", list, [None] * len(instances))
                if not instances or len(ann_ids) != len(instances):
                    raise BadRecord(f"fields 'Polygons' ({len(instances)}) and 'ann_ids' ({len(ann_ids)}) must have "
                                    "one entry per instance")
                targets = [Target(_outlines(outlines), None if ann_id is None else whole(ann_id, "ann_ids"))
                           for outlines, ann_id in zip(instances, ann_ids, strict=True)]
                spoken = [Sentence(take(task, "phrase", str))]
                job.add(Ref(f"{image_id}.jpg", sizes.get(image_id), targets, spoken, split, image_id=image_id),
                        "Polygons")


def _outlines(instance) -> list:
    """An instance's polygons; those of fewer than three points, which enclose nothing, are left out."""
    if not isinstance(instance, list):
        raise BadRecord("field 'Polygons': an instance must be a list of polygons")
    return polygons([points for points in instance if not isinstance(points, list) or len(points) > 2], "Polygons")


def _sizes(job: ImportJob, file: Path) -> dict[int, tuple[int, int]]:
    sizes = {}
    for i, record in enumerate(read_list(file, "images") if file.is_file() else ()):
        with job.record(file, "record", i):
            sizes[take(record, "image_id", int)] = size_of(record)
    return sizes
