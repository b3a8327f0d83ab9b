"""Forms with REFER's two files: gRefCOCO (https://github.com/henghuiding/gRefCOCO) and RRSIS-D.

gRefCOCO's refs have lists of annotations, ``[-1]`` and ``no_target`` where a sentence means nothing; older records have
a bare number. After its own loader (ReLA, grefcoco.py), annotations that are ``iscrowd`` are left out of a mask.
"""

from mindspore_coupalign.data.annotations import read_json
from mindspore_coupalign.data.importers.job import Import
from mindspore_coupalign.data.importers.records import BadRecord, Ref, Target, sentences, shown, size_of, take, whole
from mindspore_coupalign.data.importers.sources import by_id, files, read_dict
from mindspore_coupalign.data.pickles import load_plain_pickle
from mindspore_coupalign.errors import UserError


def read_grefcoco(job: Import) -> None:
    _read(job, "grefs(*).*", several=True)


def read_rrsisd(job: Import) -> None:
    _read(job, "refs(*).*", several=False)


def _read(job: Import, pattern: str, several: bool):
    for path in files(job.source, pattern):
        if path.suffix not in (".p", ".pkl", ".pickle", ".json"):
            raise UserError(f"{path}: expected a list of refs as .p or .json")
        instances = job.instances or path.with_name("instances.json")
        refs = read_json(path) if path.suffix == ".json" else load_plain_pickle(path)
        if not isinstance(refs, list):
            raise UserError(f"{path}: expected a list of refs, found {type(refs).__name__}; is this the right file?")
        content = read_dict(instances, "images", "annotations")
        images = by_id(content["images"], instances, "images")
        annotations = by_id(content["annotations"], instances, "annotations")
        job.name_categories(content)
        for i, ref in enumerate(refs):
            which = ref["ref_id"] if isinstance(ref, dict) and "ref_id" in ref else f"number {i}"
            with job.record(path, "ref", which):
                _add(job, ref, images, annotations, several)


def _add(job: Import, ref: dict, images: dict, annotations: dict, several: bool):
    image_id = take(ref, "image_id", int)
    image = images.get(image_id)
    if image is None:
        raise BadRecord(f"its image {image_id} is not in instances.json; do the two files belong together?")
    ann_ids = _ann_ids(ref)
    if not several and len(ann_ids) != 1:
        raise BadRecord(f"field 'ann_id' must be one number; found {shown(ref['ann_id'])}; is this gRefCOCO?")
    targets = []
    for ann_id in ann_ids:
        annotation = annotations.get(ann_id)
        if annotation is None:
            raise BadRecord(f"its annotation {ann_id} is not in instances.json; do the two files belong together?")
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
    ids = [whole(one, "ann_id") for one in (value if isinstance(value, list) else [value])]
    if len(set(ids)) != len(ids) or (len(ids) > 1 and -1 in ids):
        what = "an annotation twice" if len(set(ids)) != len(ids) else "-1, which stands for no object, beside others"
        raise BadRecord(f"field 'ann_id' has {what}: {shown(value)}")
    none = take(ref, "no_target", bool, ids == [-1])
    if none != (ids in ([], [-1])):
        raise BadRecord(f"fields 'no_target' ({none}) and 'ann_id' ({shown(value)}) contradict each other")
    return [] if none else ids
