"""One import in progress: what the user asked for, the refs found so far, and the records that could not be placed.

h, w picture size in pixels.
"""

import contextlib
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pycocotools import mask as coco

from mindspore_coupalign.data.importers.pictures import Pictures
from mindspore_coupalign.data.importers.records import BadRecord, Ref, Sentence, Target, checked, shown

LISTED = 10  # problems that are spelt out
SPLIT_NAMES = {"validation": "val", "valid": "val", "dev": "val", "training": "train", "testing": "test"}


@dataclass
class Import:
    """What an importer reads from and adds to.

    Args:
        source: the file or folder to read.
        dataset, split_by: REFER's names of what is written.
        split: the split of records that name none; empty: the importer goes by file names, and then takes ``train``.
        objects: "keep" writes several objects of a sentence, or none, as gRefCOCO does; "unite" makes one mask of
            several and leaves out sentences that mean none.
        instances, masks: further files that some forms need.
        verify: decode every picture and compare its size, instead of trusting the record (set by importers of forms
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
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)  # h, w of every picture in use
    categories: dict[int, str] = field(default_factory=dict)
    notes: Counter = field(default_factory=Counter)  # text: how often, for the report
    problems: list[str] = field(default_factory=list)  # the first LISTED
    bad: int = 0  # all of them
    _known: dict = field(default_factory=dict)
    _split_notes: set = field(default_factory=set)

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
            BadRecord: an absent picture, an empty or impossible mask, no sentence.
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
        ref.size, ref.kept["rles"] = size, rles
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
        if not found or not any(sentence.sent.strip() for sentence in found):
            raise BadRecord("it has no sentence" if not found else "its sentence is blank")
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
            self._say_split("records that name no split are called train (--split chooses another)")
        known = SPLIT_NAMES.get(name.lower(), name)
        known = self.renamed.get(known, known)
        if known != name:
            self._say_split(f"split {name} is called {known} here, as in REFER")
        return known

    def _say_split(self, text: str):
        if text not in self._split_notes:
            self._split_notes.add(text)
            self.notes[text] = 0

    def _size(self, ref: Ref) -> tuple[int, int]:
        known = self.sizes.get(ref.image)
        size = ref.size or known or self.pictures.size(ref.image)
        if self.verify or self.pictures.folder is None:
            self.pictures.compare(ref.image, size, "the annotation")
        if known is not None and size != known:
            raise BadRecord(f"picture {ref.image} is {size[1]} x {size[0]} pixels here and {known[1]} x {known[0]} in "
                            "an earlier record")
        return size


def encode(mask: np.ndarray) -> dict:
    """(h, w) uint8 0 or 1 -> COCO's compressed RLE dict as JSON has it."""
    rle = coco.encode(np.asfortranarray(mask))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def bounds(rle: bytes, size: tuple[int, int]) -> tuple[list, int]:
    """Box x, y, width, height and area of a compressed RLE."""
    whole = {"size": list(size), "counts": rle}
    return coco.toBbox(whole).tolist(), int(coco.area(whole))
