"""Formats of public data sets and of other projects' repositories.

CRIS, ETRIS, DETRIS (https://github.com/DerrickWang005/CRIS.pytorch): ``anns/<set>/<split>.json`` and
``masks/<set>/<ref_id>.png``.

A record: {bbox x1 y1 x2 y2, cat 0..79, segment_id (the ref's id), img_name, sentences [{idx, sent_id, sent}]}. COCO's
annotation and image ids are lost in this form.

MDETR's ``finetune_<set>_<split>.json`` (https://github.com/ashkamath/mdetr), and gRefCOCO's twin of it.

COCO-like, an image record per sentence with its ``caption``; annotations have no masks, but COCO's ids as
``original_id``: the masks come from COCO's instances_train2014.json (--instances), or REFER's instances.json.
gRefCOCO's twin has several annotations per image record, or one with ``empty`` true.

PolyFormer's and OFA's TSV with a line per sentence (https://github.com/amazon-science/polygon-transformer).

Columns: <ref id>_<number>, image id, sentence, box x1,y1,x2,y2, polygons as text, image as base64 JPEG, mask as
base64 PNG, more polygons. The mask is exact; the polygons are thinned out and are not read.

SeqTR's ``instances.json`` (https://github.com/seanzhuh/SeqTR) and what UNINEXT makes of it.

``seqtr``: a dict split -> list of {image_id, width, height, bbox, expressions, mask}; the image's name is made from
image_id. ``uninext``: per split a COCO file whose images carry ``expressions``, a record per ref. Both give no
annotation ids, and in some splits a record per sentence: records of one mask on one image are one ref.

Forms with REFER's two files: gRefCOCO (https://github.com/henghuiding/gRefCOCO) and RRSIS-D.

gRefCOCO's refs have lists of annotations, ``[-1]`` and ``no_target`` where a sentence means nothing; older records have
a bare number. After its own loader (ReLA, grefcoco.py), annotations that are ``iscrowd`` are left out of a mask.

PhraseCut's ``refer_<split>.json`` (https://github.com/ChenyunWu/PhraseCutDataset).

A list of {task_id, image_id (Visual Genome's), ann_ids, instance_boxes, Polygons [instance][polygon][point x, y],
phrase}. A phrase may mean several instances; PhraseCut scores one mask per phrase.
"""

import json
import re
from collections import defaultdict
from pathlib import Path

from mindspore_coupalign.data.annotations import annotations_of, load_refs, read_dict, read_json
from mindspore_coupalign.data.importers.images import read_mask, read_mask_file
from mindspore_coupalign.data.importers.import_job import ImportJob, encode
from mindspore_coupalign.data.importers.records import (
    BadRecord,
    Ref,
    Sentence,
    Target,
    by_id,
    files,
    found,
    from_base64,
    polygons,
    read_list,
    sentences,
    shown,
    size_of,
    split_of,
    take,
    texts,
    whole,
)
from mindspore_coupalign.errors import UserError


def read_cris(job: ImportJob) -> None:
    folder = _annotations(job)
    masks = job.masks or _masks(folder)
    for path in files(folder, "*.json"):
        for i, record in enumerate(read_list(path, "refs")):
            with job.record(path, "record", i):
                ref_id = take(record, "segment_id", int)
                mask = read_mask_file(masks / f"{ref_id}.png")
                job.add(Ref(take(record, "img_name", str), mask.shape,
                            [Target(encode(mask), category_id=take(record, "cat", int, 0) + 1)],
                            sentences(record), split_of(path), ref_id), f"mask {ref_id}.png")


def _annotations(job: ImportJob) -> Path:
    """The folder of <split>.json, or the file itself: the source, or anns/<set> below it."""
    source = job.source
    for folder in (source / "anns" / job.dataset, source / job.dataset):
        if folder.is_dir():
            return folder
    folders = sorted(path for path in source.glob("anns/*") if path.is_dir())
    if len(folders) > 1:
        raise UserError(f"{source}: holds {', '.join(path.name for path in folders)}; choose one with --dataset")
    return folders[0] if folders else source


def _masks(annotations: Path) -> Path:
    folder = annotations if annotations.is_dir() else annotations.parent
    usual = folder.parent.parent / "masks" / folder.name
    if not usual.is_dir():
        raise UserError(f"{usual}: no such folder; name the folder of the mask images with --masks")
    return usual


def read_mdetr(job: ImportJob) -> None:
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
                _add_mdetr(job, image, objects.get(take(image, "id", int), []), masks, split_of(path))
    if foreign:
        if not job.refs and not job.bad:
            raise UserError(f"{job.source}: has no record of {job.dataset}, but of {', '.join(sorted(foreign))}; "
                            "choose one with --dataset")
        job.notes[f"records of {', '.join(sorted(foreign))} passed over (--dataset chooses them)"] = 0


def _instances(job: ImportJob) -> Path:
    folder = job.source if job.source.is_dir() else job.source.parent
    usual = [folder / "instances_train2014.json", folder / "annotations/instances_train2014.json",
             folder / "instances.json"]
    file = job.instances or next((path for path in usual if path.is_file()), None)
    if file is None:
        raise UserError(f"{job.source}: MDETR's files have no masks; name COCO's instances_train2014.json (or REFER's "
                        "instances.json) with --instances")
    return file


def _add_mdetr(job: ImportJob, image: dict, objects: list, masks: dict, split: str):
    if not objects:
        raise BadRecord("no annotation lies on it; is the file truncated?")
    targets = []
    for annotation in objects:
        original = take(annotation, "original_id", int)
        if take(annotation, "empty", bool, original == -1):
            continue
        targets.append(Target(take(found(masks, original, "annotation"), "segmentation", (list, dict)), original,
                              take(annotation, "category_id", int, None)))
    image_id = take(image, "original_id", int)
    ids = tuple(target.ann_id for target in targets)
    key = (split, image_id, ids) if ids else None
    job.add(Ref(take(image, "file_name", str), size_of(image), targets, [Sentence(take(image, "caption", str))], split,
                image_id=image_id), "segmentation", key)


_COLUMNS = 7  # that are needed; the eighth is not read


def read_polyformer(job: ImportJob) -> None:
    for path in files(job.source, "*.tsv"):
        split = split_of(path)
        try:
            with path.open(encoding="utf-8") as file:
                for number, line in enumerate(file, 1):
                    with job.record(path, "line", number):
                        _read_line(job, line.rstrip("\n").split("\t"), split)
        except UnicodeDecodeError as exc:
            raise UserError(f"{path}: not UTF-8 text ({exc.reason}); is this the right file?") from exc


def _read_line(job: ImportJob, columns: list[str], split: str):
    if len(columns) < _COLUMNS:
        raise BadRecord(f"has {len(columns)} columns, not {_COLUMNS} or more; is the file truncated?")
    name, image, sentence, _, _, picture, mask = columns[:_COLUMNS]
    owner, _, count = name.rpartition("_")
    if not owner or not count.isdigit():
        raise BadRecord(f"column 1 must be <ref id>_<number>; found {shown(name)}")
    ref_id, image_id = whole(owner, "column 1"), whole(image, "column 2")
    key = (split, ref_id)
    ref = Ref(f"COCO_train2014_{image_id:012d}.jpg", None, [], [Sentence(sentence)], split, ref_id, image_id)
    if job.known(key) is None:
        if job.pictures.folder is None:
            job.pictures.keep(ref.image, from_base64(picture, "column 6, the image,"))
        pixels = read_mask(from_base64(mask, "column 7, the mask,"), "column 7, the mask,")
        ref.size, ref.targets = pixels.shape, [Target(encode(pixels))]
    job.add(ref, "mask (column 7)", key)


_COCO_ID = re.compile(r"[0-9]{1,18}")  # at the end of a COCO image's name


def read_seqtr(job: ImportJob) -> None:
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
                    _add_record(job, _file_name(record, image_id, job.dataset), image_id, size_of(record), record,
                                "mask", texts(record, "expressions"), split)


def read_uninext(job: ImportJob) -> None:
    for path in files(job.source, "instances*_*.json"):
        content = read_dict(path, "images", "annotations")
        images = by_id(content["images"], path, "images")
        for i, annotation in enumerate(content["annotations"]):
            with job.record(path, "annotation number", i):
                image = found(images, take(annotation, "image_id", int), "image")
                name = take(image, "file_name", str)
                digits = name.rsplit(".", 1)[0].rsplit("_", 1)[-1]
                image_id = int(digits) if _COCO_ID.fullmatch(digits) else None
                _add_record(job, name, image_id, size_of(image), annotation, "segmentation",
                     texts(image, "expressions"), split_of(path))


def _add_record(job: ImportJob, name, image_id, size, record, field, expressions, split):
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


def read_refer_files(job: ImportJob, pattern: str, several: bool) -> None:
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
                _add_ref(job, ref, images, annotations, several)


def _add_ref(job: ImportJob, ref: dict, images: dict, annotations: dict, several: bool):
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


_PHRASECUT_SIZES = "image_data_split3000.json"  # sizes; without it the images are opened


def read_phrasecut(job: ImportJob) -> None:
    for path in files(job.source, "refer_*.json"):
        sizes = _phrasecut_sizes(job, path.with_name(_PHRASECUT_SIZES))
        split = re.sub(r"^refer_", "", path.stem)
        for i, task in enumerate(read_list(path, "tasks")):
            with job.record(path, "task", task.get("task_id", i) if isinstance(task, dict) else i):
                image_id = take(task, "image_id", int)
                instances = take(task, "Polygons", list)
                ann_ids = take(task, "ann_ids", list, [None] * len(instances))
                if not instances or len(ann_ids) != len(instances):
                    raise BadRecord(f"fields 'Polygons' ({len(instances)}) and 'ann_ids' ({len(ann_ids)}) must have "
                                    "one entry per instance")
                targets = [Target(polygons(outlines, "Polygons"), None if ann_id is None else whole(ann_id, "ann_ids"))
                           for outlines, ann_id in zip(instances, ann_ids, strict=True)]
                spoken = [Sentence(take(task, "phrase", str))]
                job.add(Ref(f"{image_id}.jpg", sizes.get(image_id), targets, spoken, split, image_id=image_id),
                        "Polygons")


def _phrasecut_sizes(job: ImportJob, file: Path) -> dict[int, tuple[int, int]]:
    sizes = {}
    for i, record in enumerate(read_list(file, "images") if file.is_file() else ()):
        with job.record(file, "record", i):
            sizes[take(record, "image_id", int)] = size_of(record)
    return sizes
