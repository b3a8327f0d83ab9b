"""PhraseCut's ``refer_<split>.json`` (https://github.com/ChenyunWu/PhraseCutDataset).

A list of {task_id, image_id (Visual Genome's), ann_ids, instance_boxes, Polygons [instance][polygon][point x, y],
phrase}. A phrase may mean several instances; PhraseCut scores one mask per phrase.
"""

import re
from pathlib import Path

from mindspore_coupalign.data.importers.job import Import
from mindspore_coupalign.data.importers.records import BadRecord, Ref, Sentence, Target, polygons, size_of, take, whole
from mindspore_coupalign.data.importers.sources import files, read_list

_FILE = "image_data_split3000.json"  # sizes; without it the pictures are opened


def read_phrasecut(job: Import) -> None:
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


def _sizes(job: Import, file: Path) -> dict[int, tuple[int, int]]:
    sizes = {}
    for i, record in enumerate(read_list(file, "images") if file.is_file() else ()):
        with job.record(file, "record", i):
            sizes[take(record, "image_id", int)] = size_of(record)
    return sizes
