"""A data set in REFER's layout (https://github.com/lichengunc/refer) -> NumPy arrays.

I images, R refs (one ref = one object that people described), S sentences; h, w image size in pixels.
Sample index = sentence index; the sentences of a ref are neighbours, and refs keep the order of ``refs(*).p``.
No Python object is kept per sample: text and masks lie packed in two byte strings, so that threads and forked
processes share them.
"""

import json
import reprlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mindspore_coupalign.data.folders import find_dataset, find_images
from mindspore_coupalign.data.images import read_rgb
from mindspore_coupalign.data.masks import rle_area, rle_to_mask, segmentation_to_rle
from mindspore_coupalign.data.refs_file import load_refs
from mindspore_coupalign.errors import UserError

LARGEST_SIDE = 65535  # pixels, JPEG's limit
SENTENCE_FIELDS = ("sent", "raw")
OVERLAPS = ("union", "single")


@dataclass(frozen=True, eq=False)
class ReferData:
    source: Path  # the refs(*).p read, for messages
    image_dir: Path
    image_files: np.ndarray  # (I,) text, file names below image_dir; only images that a ref uses
    image_sizes: np.ndarray  # (I, 2) int32: h, w, as instances.json says
    ref_ids: np.ndarray  # (R,)
    ann_ids: np.ndarray  # (R,)
    ref_image: np.ndarray  # (R,) int32, index of the image
    ref_split: np.ndarray  # (R,) int16, index into split_names
    split_names: tuple[str, ...]  # as the file has them, in order of appearance
    ref_outside: np.ndarray  # (R,) bool, a polygon leaves the image by more than a pixel
    ref_sentences: np.ndarray  # (R + 1,) int64, sentences of ref r: ref_sentences[r] to ref_sentences[r + 1] - 1
    sentence_ref: np.ndarray  # (S,) int32, index of the ref
    sentence_ids: np.ndarray  # (S,)
    sentence_kind: np.ndarray  # (S,) int16, index into kind_names, -1 where the file names no kind
    kind_names: tuple[str, ...]  # RefShapes' kinds of sentences; empty for other data sets
    text: bytes  # all sentences ("sent"), UTF-8
    text_at: np.ndarray  # (S + 1,) int64, offsets into text
    raw: bytes  # the sentences as they were typed, where that differs from ``text``
    raw_at: np.ndarray  # (S + 1,) int64, offsets into raw; an empty stretch where it does not differ
    rle: bytes  # all masks, COCO's compressed RLE
    rle_at: np.ndarray  # (R + 1,) int64, offsets into rle
    single: bytes  # the pixels under exactly one part, where a mask's parts overlap
    single_at: np.ndarray  # (R + 1,) int64, offsets into single; an empty stretch where they do not

    def sentence(self, s: int, field: str = "sent") -> str:
        """A sentence as REFER cleaned it (``sent``: lower case, hardly any punctuation) or as it was typed (``raw``).

        Each stands for the other where that is missing or blank.
        """
        if field not in SENTENCE_FIELDS:
            raise ValueError(f"field must be one of {', '.join(SENTENCE_FIELDS)}, found {field!r}")
        if field == "raw" and self.raw_at[s + 1] > self.raw_at[s]:
            return self.raw[self.raw_at[s] : self.raw_at[s + 1]].decode("utf-8")
        return self.text[self.text_at[s] : self.text_at[s + 1]].decode("utf-8")

    def refs_of(self, split: str) -> np.ndarray:
        """Indices of a split's refs, (n,) int64, in file order.

        ``split`` is a name in the file or, by REFER's rule, ``test`` for all test splits together, and
        ``testA``/``testB``/``testC`` for every test split with that letter (RefCLEF has ``testAB``, ``testBC``).

        Raises:
            UserError: the file has no such split.
        """
        tests = [name for name in self.split_names if name.startswith("test")]
        if split in ("testA", "testB", "testC"):
            wanted = {name for name in tests if split[-1] in name[4:]}
        elif split == "test" and "test" not in self.split_names:
            wanted = set(tests)
        else:
            wanted = {split} & set(self.split_names)
        if not wanted:
            raise UserError(f"{self.source}: no split {split!r}; the splits here are {', '.join(self.split_names)}")
        codes = [code for code, name in enumerate(self.split_names) if name in wanted]
        return np.flatnonzero(np.isin(self.ref_split, codes))

    def split(self, name: str) -> np.ndarray:
        """Indices of all sentences of a split, (n,) int64, in file order; names and errors as for ``refs_of``."""
        wanted = np.zeros(len(self.ref_ids), bool)
        wanted[self.refs_of(name)] = True
        return np.flatnonzero(wanted[self.sentence_ref])

    def refs_to_train(self, split: str) -> np.ndarray:
        """The refs of a split that have a sentence, (n,) int64, in file order."""
        refs = self.refs_of(split)
        return refs[self.ref_sentences[refs + 1] > self.ref_sentences[refs]]

    def epoch_samples(self, split: str, seed: int, epoch: int) -> np.ndarray:
        """The samples of one training epoch: one random sentence per ref, shuffled; (n,) int64 sentence indices.

        Depends on nothing but the arguments, so that every rank and a resumed run draw the same. A ref without
        sentences is left out.
        """
        refs = self.refs_to_train(split)
        first = self.ref_sentences[refs]
        count = self.ref_sentences[refs + 1] - first
        random = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, epoch))))
        return random.permutation(first + random.integers(0, count))

    def mask(self, r: int, overlap: str = "union") -> np.ndarray:
        """(h, w) uint8, 1 on the object of ref r.

        Args:
            overlap: of the parts that an object is drawn in. ``union``: the pixels under any of them; ``single``: those
                under exactly one, as LAVT counts them (``ref_mask == 1`` of REFER's sum over the parts).
        """
        return rle_to_mask(self._rle(r, overlap), *self.image_sizes[self.ref_image[r]].tolist())

    def mask_area(self, r: int, overlap: str = "union") -> int:
        """Pixels of ref r's mask, without decoding it."""
        return rle_area(self._rle(r, overlap), *self.image_sizes[self.ref_image[r]].tolist())

    def _rle(self, r: int, overlap: str) -> bytes:
        if overlap not in OVERLAPS:
            raise ValueError(f"overlap must be one of {', '.join(OVERLAPS)}, found {overlap!r}")
        if overlap == "single" and self.single_at[r + 1] > self.single_at[r]:
            return self.single[self.single_at[r] : self.single_at[r + 1]]
        return self.rle[self.rle_at[r] : self.rle_at[r + 1]]

    def image_path(self, r: int) -> Path:
        return self.image_dir / str(self.image_files[self.ref_image[r]])

    def read_image(self, r: int) -> np.ndarray:
        """(h, w, 3) uint8 RGB. Raises UserError when the file is missing, truncated or not an image."""
        return read_rgb(self.image_path(r))


def read_refer(root: str | Path, dataset: str, split_by: str, images: str = "") -> ReferData:
    """Read ``<root>/<dataset>/refs(<split_by>).p`` and ``instances.json``; images are only located, not opened.

    Args:
        images: image folder, absolute or relative to the current folder or to root; empty: the usual places below root.

    Raises:
        UserError: a missing folder or file, a file that is damaged or has a missing or mistyped field, a ref whose
            annotation or image instances.json does not have, a segmentation that is none.
    """
    refs_file = find_dataset(Path(root), dataset, split_by)
    instances_file = refs_file.parent / "instances.json"
    image_dir = find_images(Path(root), dataset, images)
    refs = load_refs(refs_file)
    if not isinstance(refs, list) or not refs:
        found = "an empty one" if refs == [] else type(refs).__name__
        raise UserError(f"{refs_file}: expected a list of refs, found {found}; is this the right file?")
    columns, keys = _read_refs(refs, refs_file)
    del refs  # before the larger file is read
    columns |= _join_instances(keys, instances_file, refs_file)
    return ReferData(source=refs_file, image_dir=image_dir, **columns)


def _read_refs(refs: list, source: Path) -> tuple[dict, list]:
    """The columns that refs(*).p alone gives, and per ref the keys (ref_id, ann_id, image_id)."""
    keys, splits = [], []
    owners, sentence_ids, kinds, texts, typed, starts = [], [], [], [], [], [0]
    for i, ref in enumerate(refs):
        keys.append([_field(ref, key, (int, str), source, "ref number", i) for key in ("ref_id", "ann_id", "image_id")])
        splits.append(_field(ref, "split", (str,), source, "ref number", i))
        for sentence in _field(ref, "sentences", (list,), source, "ref number", i):
            where = (source, "a sentence of ref", keys[-1][0])
            sentence_ids.append(_field(sentence, "sent_id", (int, str), *where))
            sent, raw = _wordings(sentence, where)
            texts.append(sent)
            typed.append(b"" if raw == sent else raw)
            kinds.append(_field(sentence, "kind", (str,), *where) if "kind" in sentence else None)
            owners.append(i)
        starts.append(len(owners))
    split_names, ref_split = _codes(splits)
    kind_names, sentence_kind = _codes(kinds)
    return {
        "ref_ids": np.array([key[0] for key in keys]), "ann_ids": np.array([key[1] for key in keys]),
        "ref_split": ref_split, "split_names": split_names, "ref_sentences": np.array(starts, np.int64),
        "sentence_ref": np.array(owners, np.int32), "sentence_ids": np.array(sentence_ids),
        "sentence_kind": sentence_kind, "kind_names": kind_names, "text": b"".join(texts), "text_at": _offsets(texts),
        "raw": b"".join(typed), "raw_at": _offsets(typed),
    }, keys


def _wordings(sentence, where: tuple) -> tuple[bytes, bytes]:
    """``sent`` and ``raw`` of a sentence; where one is missing or blank, the other."""
    has_raw = isinstance(sentence, dict) and sentence.get("raw") is not None
    raw = _field(sentence, "raw", (str,), *where) if has_raw else ""
    has_sent = not has_raw or sentence.get("sent") is not None  # asked for where there is neither
    sent = _field(sentence, "sent", (str,), *where) if has_sent else ""
    return ((sent if sent.strip() else raw or sent).encode("utf-8", "replace"),
            (raw if raw.strip() else sent).encode("utf-8", "replace"))


def _join_instances(keys: list, source: Path, refs_file: Path) -> dict:
    """The columns of images and masks that instances.json gives for the refs with these keys."""
    instances = _read_json(source)
    images = {_id(record, source, "images", i): record for i, record in _records(instances, "images", source)}
    annotations = {_id(record, source, "annotations", i): record
                   for i, record in _records(instances, "annotations", source)}
    index, files, sizes, ref_image, regions = {}, [], [], [], []
    for ref_id, ann_id, image_id in keys:
        image, annotation = images.get(image_id), annotations.get(ann_id)
        for name, key, record in (("annotation", ann_id, annotation), ("image", image_id, image)):
            if record is None:
                raise UserError(f"{source}: has no {name} {key}, which ref {ref_id} (annotation {ann_id}) of "
                                f"{refs_file.name} names; do the two files belong together?")
        if _field(annotation, "image_id", (int, str), source, "annotation", ann_id) != image_id:
            raise UserError(f"{source}: annotation {ann_id} lies on image {annotation['image_id']}, but ref {ref_id} "
                            f"of {refs_file.name} says image {image_id}; do the two files belong together?")
        if image_id not in index:
            index[image_id] = len(files)
            files.append(_field(image, "file_name", (str,), source, "image", image_id))
            sizes.append([_field(image, side, (int,), source, "image", image_id) for side in ("height", "width")])
            if not 1 <= min(sizes[-1]) <= max(sizes[-1]) <= LARGEST_SIDE:
                raise UserError(f"{source}: image {image_id}: height and width must be between 1 and {LARGEST_SIDE}, "
                                f"found {sizes[-1]}")
        ref_image.append(index[image_id])
        segmentation = _field(annotation, "segmentation", (list, dict), source, "annotation", ann_id)
        try:
            regions.append(segmentation_to_rle(segmentation, *sizes[index[image_id]]))
        except ValueError as exc:
            raise UserError(f"{source}: annotation {ann_id} (ref {ref_id}): segmentation: {exc}") from exc
    unions, singles, outside = zip(*regions, strict=True)
    return {
        "image_files": np.array(files), "image_sizes": np.array(sizes, np.int32),
        "ref_image": np.array(ref_image, np.int32), "ref_outside": np.array(outside, bool),
        "rle": b"".join(unions), "rle_at": _offsets(unions),
        "single": b"".join(singles), "single_at": _offsets(singles),
    }


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as exc:
        raise UserError(f"{path}: no such file; REFER's archive has it beside refs(*).p") from exc
    except OSError as exc:
        raise UserError(f"{path}: cannot be read ({exc.strerror or exc})") from exc
    except (ValueError, RecursionError) as exc:
        raise UserError(f"{path}: not valid JSON ({str(exc)[:100]}); truncated? download it again") from exc
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a dict with images and annotations, found {type(content).__name__}")
    return content


def _records(instances: dict, key: str, source: Path):
    return enumerate(_field(instances, key, (list,), source, "the top", "level"))


def _id(record, source: Path, name: str, number: int):
    return _field(record, "id", (int, str), source, f"{name} number", number)


def _field(record, key: str, types: tuple, source: Path, name: str, which):
    """``record[key]``, checked; ``name which`` says in the error which record it is."""
    value = record.get(key) if isinstance(record, dict) else None
    if type(value) not in types:
        found = f"found {reprlib.repr(value):.60}" if isinstance(record, dict) and key in record else "it is missing"
        wanted = " or ".join(_TYPE_NAMES[kind] for kind in types)
        raise UserError(f"{source}: {name} {which}: field {key!r} must be {wanted}; {found}")
    return value


_TYPE_NAMES = {int: "a whole number", str: "text", list: "a list", dict: "a dict"}


def _codes(values: list) -> tuple[tuple[str, ...], np.ndarray]:
    """Names in order of appearance and the index of each value's name, (n,) int16; None becomes -1."""
    names = tuple(dict.fromkeys(value for value in values if value is not None))
    code = {name: i for i, name in enumerate(names)} | {None: -1}
    return names, np.array([code[value] for value in values], np.int16)


def _offsets(parts: list | tuple) -> np.ndarray:
    return np.concatenate([[0], np.cumsum([len(part) for part in parts], dtype=np.int64)])
