"""An import job: its options, the refs so far, the records that could not be converted, and the written files.

The result is REFER's layout, ``refs(<split_by>).json`` and ``instances.json``, complete or not at all: everything is
written into a hidden folder beside its final place, and renamed as the last step. An import that is killed leaves only
the hidden folder, which no command takes for a data set and the next import removes.

h, w image size in pixels.
"""

import contextlib
import fcntl
import json
import os
import shutil
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pycocotools import mask as coco

from mindspore_coupalign.data.datasets import find_images, image_places
from mindspore_coupalign.data.importers.images import Pictures
from mindspore_coupalign.data.importers.records import BadRecord, Ref, Sentence, Target, checked, shown
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.outputs import make_folder, scratch

LISTED = 10  # problems that are spelt out
SPLIT_NAMES = {"validation": "val", "valid": "val", "dev": "val", "training": "train", "testing": "test"}


@dataclass
class ImportJob:
    """What an importer reads from and adds to.

    Args:
        source: the file or folder to read.
        dataset, split_by: REFER's names of what is written.
        split: the split of records that name none; empty: the importer goes by file names, and then takes ``train``.
        objects: "keep" writes several objects of a sentence, or none, as gRefCOCO does; "unite" makes one mask of
            several and leaves out sentences that mean none.
        instances, masks: further files that some forms need.
        verify: decode every image and compare its size, instead of trusting the record (set by importers of forms
            that people write by hand).
    """

    source: Path
    pictures: Pictures
    dataset: str
    split_by: str
    split: str = ""
    objects: str = "unite"
    instances: Path | None = None
    masks: Path | None = None
    verify: bool = False
    renamed: dict[str, str] = field(default_factory=dict)  # further splits that a form calls otherwise
    refs: list[Ref] = field(default_factory=list)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)  # h, w of every image in use
    categories: dict[int, str] = field(default_factory=dict)
    notes: Counter = field(default_factory=Counter)  # text: how often, for the report
    problems: list[str] = field(default_factory=list)  # the first LISTED
    bad: int = 0  # all of them
    _known: dict = field(default_factory=dict)

    @contextlib.contextmanager
    def record(self, path: Path, name: str, which):
        """Around the work on one record: a BadRecord inside is counted under the record's name, and nothing added."""
        try:
            yield
        except BadRecord as exc:
            self.bad += 1
            if len(self.problems) < LISTED:
                text = f"{path}: {name} {which}: {exc}".replace("\n", " ")
                self.problems.append(text.encode("utf-8", "backslashreplace").decode())

    def known(self, key: Hashable) -> Ref | None:
        """The ref that was added under a key, for forms that repeat an object with every sentence."""
        return self._known.get(key)

    def add(self, ref: Ref, what: str = "segmentation", key: Hashable = None):
        """Check a ref and keep it.

        Args:
            what: the field that holds the segmentation, for messages.
            key: names the object; a second ref under the same key gives its sentences to the first.

        Raises:
            BadRecord: an absent image, an empty or impossible mask, no sentence.
        """
        self.check_sentences(ref.sentences)
        if key is not None and key in self._known:
            self._known[key].sentences += ref.sentences
            return
        ref.split = self.split_name(ref.split)
        ref.image = self.pictures.find(ref.image)
        size = self._size(ref)
        if not ref.targets and self.objects == "unite":
            self.notes["sentences that mean no object left out (--objects keep has them)"] += len(ref.sentences)
            return
        rles = []
        for target in ref.targets:
            target.segmentation, rle = checked(target.segmentation, size, what)
            rles.append(rle)
        if len(rles) > 1 and self.objects == "unite":
            union = coco.merge([{"size": list(size), "counts": rle} for rle in rles])
            self.notes["sentences that mean several objects got one mask of all of them"] += len(ref.sentences)
            ref.targets = [Target({"size": list(size), "counts": union["counts"].decode()},
                                  category_id=ref.targets[0].category_id)]
            rles = [union["counts"]]
        ref.size, ref.rles = size, rles
        self.sizes[ref.image] = size
        self.refs.append(ref)
        if key is not None:
            self._known[key] = ref

    def name_categories(self, content: dict):
        """Take the names of a COCO file's categories; what is wrong there does no harm."""
        entries = content.get("categories")
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, dict) and type(entry.get("id")) is int:
                self.categories[entry["id"]] = str(entry.get("name", "object"))

    def check_sentences(self, found: list[Sentence]):
        if not any(sentence.sent.strip() for sentence in found):
            raise BadRecord("it has no sentence, or a blank one")
        for sentence in found:
            try:
                (sentence.sent + sentence.raw).encode("utf-8")
            except UnicodeEncodeError as exc:
                raise BadRecord(f"its sentence {shown(sentence.sent)} holds half a character (a lone "
                                "surrogate)") from exc
        blank = sum(not sentence.sent.strip() for sentence in found)
        if blank:
            self.notes["blank sentences beside others of the same object kept"] += blank

    def split_name(self, name: str) -> str:
        """A split by the name that REFER gives it; says so once in the report."""
        name = name.strip() or self.split
        if not name:
            name = "train"
            self.notes["records that name no split are called train (--split chooses another)"] = 0
        known = SPLIT_NAMES.get(name.lower(), name)
        known = self.renamed.get(known, known)
        if known != name:
            self.notes[f"split {name} is called {known} here, as in REFER"] = 0
        return known

    def _size(self, ref: Ref) -> tuple[int, int]:
        known = self.sizes.get(ref.image)
        h, w = size = ref.size or known or self.pictures.size(ref.image)
        if self.verify or self.pictures.folder is None:
            self.pictures.compare(ref.image, size, "the annotation")
        if known is not None and size != known:
            raise BadRecord(f"image {ref.image} is {w} x {h} pixels here and {known[1]} x {known[0]} in "
                            "an earlier record")
        return h, w


def encode(mask: np.ndarray) -> dict:
    """(h, w) uint8 0 or 1 -> COCO's compressed RLE dict as JSON has it."""
    rle = coco.encode(np.asfortranarray(mask))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def bounds(rle: bytes, size: tuple[int, int]) -> tuple[list, int]:
    """Box x, y, width, height and area of a compressed RLE."""
    whole = {"size": list(size), "counts": rle}
    return coco.toBbox(whole).tolist(), int(coco.area(whole))


@contextlib.contextmanager
def staging(root: Path, dataset: str):
    """A hidden folder below root with the folders ``annotations`` and ``images``, which is removed in the end.

    Raises:
        UserError: the data set is there already, or root cannot be written.
    """
    if (root / dataset).exists():
        raise UserError(f"{root / dataset}: exists already; remove it, or choose another --output or --dataset")
    make_folder(root)
    _remove_leftovers(root, dataset)
    with scratch(f".import-{dataset}-", root) as stage, (stage / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # free again when this process ends, however it ends
        for name in ("annotations", "images"):
            (stage / name).mkdir()
        yield stage


def _remove_leftovers(root: Path, dataset: str):
    """Hidden folders of imports whose process is gone."""
    for folder in root.glob(f".import-{dataset}-*"):
        with contextlib.suppress(OSError), (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)


def write_layout(job: ImportJob, stage: Path):
    """Write the two annotation files into the hidden folder. Raises UserError when the disk is full."""
    refs, instances = layout(job)
    try:
        for name, content in ((f"refs({job.split_by}).json", refs), ("instances.json", instances)):
            with (stage / "annotations" / name).open("w", encoding="utf-8") as file:
                file.write(json.dumps(content))  # json.dump encodes in Python, ten times slower
                file.flush()
                os.fsync(file.fileno())
    except OSError as exc:
        raise UserError(f"{stage.parent}: cannot be written ({exc.strerror}); choose another --output") from exc


def publish(job: ImportJob, stage: Path) -> str:
    """Give the written files their place, the annotations last; returns what the report says of the images.

    Images stay where they are: the usual place below root becomes a link to them when nothing is there.

    Raises:
        UserError: a name was taken in the meantime.
    """
    root, dataset = stage.parent, job.dataset
    place = image_places(root, dataset)[0]
    try:
        if job.pictures.folder is None:
            place.parent.mkdir(parents=True, exist_ok=True)
            os.rename(stage / "images", place)
            said = str(place)
        else:
            said = _link(root, dataset, place, job.pictures.folder)
        os.rename(stage / "annotations", root / dataset)
    except OSError as exc:
        raise UserError(f"{root / dataset}: cannot be given its name ({exc.strerror}); choose another "
                        "--output") from exc
    return said


def check_store(root: Path, dataset: str):
    """Raise UserError when images cannot be stored because their usual place is taken."""
    place = image_places(root, dataset)[0]
    if place.exists():
        raise UserError(f"{place}: exists already, and the images inside this form would go there; name it with "
                        "--images to use its images, or choose another --output")


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


def layout(job: ImportJob) -> tuple[list, dict]:
    """The contents of refs(*).json and instances.json. Ids of the source are kept where all records have one of
    their own; else they are numbered from 1."""
    image_ids = _ids(job.refs, lambda ref: ref.image_id, lambda ref: ref.image)
    ref_ids = _ids(job.refs, lambda ref: ref.ref_id, id)
    sentences = [sentence for ref in job.refs for sentence in ref.sentences]
    sentence_ids = _ids(sentences, lambda sentence: sentence.sent_id, id)
    targets = [(*pair, ref) for ref in job.refs for pair in zip(ref.targets, ref.rles, strict=True)]
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
    own = [ann_ids[ref.image, rle] for rle in ref.rles]
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
