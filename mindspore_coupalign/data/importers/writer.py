"""Refs -> REFER's layout: ``refs(<split_by>).json`` and ``instances.json``, whole or not at all.

Everything is written into a hidden folder beside its place, and gets its name as the last step. An import that is
killed leaves the hidden folder alone, which no command takes for a data set and the next import removes.
"""

import contextlib
import fcntl
import json
import os
import shutil
import uuid
from pathlib import Path

from mindspore_coupalign.data.datasets import find_images, image_places
from mindspore_coupalign.data.importers.job import Import, bounds
from mindspore_coupalign.data.importers.records import Ref
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.outputs import make_folder


class Staging:
    """The hidden folder of one import: ``folder`` for the annotation files, ``pictures`` for stored pictures."""

    def __init__(self, root: Path, dataset: str):
        self.root, self.dataset = root, dataset
        self.base = root / f".import-{dataset}-{uuid.uuid4().hex[:8]}"
        self.folder, self.pictures = self.base / "annotations", self.base / "pictures"


@contextlib.contextmanager
def staging(root: Path, dataset: str):
    """Make the hidden folder below root, and remove it in the end, whatever happens.

    Raises:
        UserError: the data set is there already, or root cannot be written.
    """
    if (root / dataset).exists():
        raise UserError(f"{root / dataset}: exists already; remove it, or choose another --output or --dataset")
    make_folder(root)
    stage = Staging(root, dataset)
    _remove_leftovers(root, dataset)
    stage.folder.mkdir(parents=True)
    stage.pictures.mkdir()
    with (stage.base / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # free again when this process ends, however it ends
        try:
            yield stage
        finally:
            shutil.rmtree(stage.base, ignore_errors=True)


def _remove_leftovers(root: Path, dataset: str):
    """Hidden folders of imports whose process is gone."""
    for folder in root.glob(f".import-{dataset}-*"):
        with contextlib.suppress(OSError), (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)


def write_layout(job: Import, stage: Staging):
    """Write the two annotation files into the hidden folder. Raises UserError when the disk is full."""
    refs, instances = layout(job)
    try:
        for name, content in ((f"refs({job.split_by}).json", refs), ("instances.json", instances)):
            with (stage.folder / name).open("w", encoding="utf-8") as file:
                file.write(json.dumps(content))  # json.dump encodes in Python, ten times slower
                file.flush()
                os.fsync(file.fileno())
    except OSError as exc:
        raise UserError(f"{stage.root}: cannot be written ({exc.strerror}); choose another --output") from exc


def publish(job: Import, stage: Staging) -> str:
    """Give the written files their place, the annotations last; returns what the report says of the pictures.

    Pictures stay where they are: the usual place below root becomes a link to them when nothing is there.

    Raises:
        UserError: a name was taken in the meantime.
    """
    place = image_places(stage.root, stage.dataset)[0]
    try:
        if job.pictures.folder is None:
            place.parent.mkdir(parents=True, exist_ok=True)
            os.rename(stage.pictures, place)
            said = str(place)
        else:
            said = _link(stage.root, stage.dataset, place, job.pictures.folder)
        os.rename(stage.folder, stage.root / stage.dataset)
    except OSError as exc:
        raise UserError(f"{stage.root / stage.dataset}: cannot be given its name ({exc.strerror}); choose another "
                        "--output") from exc
    return said


def check_store(root: Path, dataset: str):
    """Raise UserError when pictures cannot be stored because their usual place is taken."""
    place = image_places(root, dataset)[0]
    if place.exists():
        raise UserError(f"{place}: exists already, and the pictures inside this form would go there; name it with "
                        "--images to use its pictures, or choose another --output")


def _link(root: Path, dataset: str, place: Path, folder: Path) -> str:
    with contextlib.suppress(UserError):
        if find_images(root, dataset, "").resolve() == folder.resolve():
            return str(folder)
    if not place.exists() and not place.is_symlink():
        with contextlib.suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(folder.resolve(), target_is_directory=True)
            return f"{place} -> {folder} (a link)"
    return f"{folder} (name it: data.images={folder}, for {place} is another folder)"


def layout(job: Import) -> tuple[list, dict]:
    """The contents of refs(*).json and instances.json. Ids of the source are kept where all records have one of
    their own; else they are numbered from 1."""
    image_ids = _ids(job.refs, lambda ref: ref.image_id, lambda ref: ref.image)
    ref_ids = _ids(job.refs, lambda ref: ref.ref_id, id)
    sentences = [sentence for ref in job.refs for sentence in ref.sentences]
    sentence_ids = _ids(sentences, lambda sentence: sentence.sent_id, id)
    targets = [(*pair, ref) for ref in job.refs for pair in zip(ref.targets, ref.kept["rles"], strict=True)]
    ann_ids = _ids(targets, lambda entry: entry[0].ann_id, lambda entry: (entry[2].image, entry[1]))
    annotations = {}
    for target, rle, ref in targets:
        box, area = bounds(rle, job.sizes[ref.image])
        ann_id = ann_ids[ref.image, rle]
        annotations[ann_id] = {
            "id": ann_id, "image_id": image_ids[ref.image], "category_id": target.category_id or 1, "iscrowd": 0,
            "segmentation": target.segmentation, "bbox": box, "area": area}
    several = any(len(ref.targets) != 1 for ref in job.refs)
    refs = [_ref(ref, ref_ids[id(ref)], image_ids, ann_ids, sentence_ids, several) for ref in job.refs]
    images = [{"id": image_ids[name], "file_name": name, "height": h, "width": w}
              for name, (h, w) in job.sizes.items()]
    used = sorted({annotation["category_id"] for annotation in annotations.values()})
    categories = [{"id": n, "name": job.categories.get(n, "object")} for n in used]
    return refs, {"images": images, "annotations": list(annotations.values()), "categories": categories}


def _ref(ref: Ref, ref_id: int, image_ids: dict, ann_ids: dict, sentence_ids: dict, several: bool) -> dict:
    """One entry of refs(*).json; in gRefCOCO's form (lists) when the data set has sentences of several objects."""
    own = [ann_ids[ref.image, rle] for rle in ref.kept["rles"]]
    categories = [target.category_id or 1 for target in ref.targets]
    entry = {
        "ref_id": ref_id, "image_id": image_ids[ref.image], "file_name": ref.image, "split": ref.split,
        "ann_id": (own or [-1]) if several else own[0],
        "category_id": (categories or [-1]) if several else categories[0],
        "sent_ids": [sentence_ids[id(sentence)] for sentence in ref.sentences],
        "sentences": [{"sent_id": sentence_ids[id(sentence)], "sent": sentence.sent, "tokens": sentence.sent.split(),
                       **({"raw": sentence.raw} if sentence.raw else {})} for sentence in ref.sentences]}
    return {**entry, "no_target": not own} if several else entry


def _ids(things: list, given, identity) -> dict:
    """identity -> number: the given numbers when every thing has one and two of them never share one."""
    numbers: dict = {}
    for thing in things:
        numbers.setdefault(identity(thing), given(thing))
    values = list(numbers.values())
    if None in values or len(set(values)) != len(values):
        numbers = {key: i for i, key in enumerate(numbers, 1)}
    return numbers
