"""Parts of a ReferData, several put together, and the pictures that ``data.skip_images`` leaves out.

I images, R refs, A annotation ids, S sentences of a ReferData (its names: refer.py).
"""

import dataclasses
import difflib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from mindspore_coupalign.data.refer import ReferData
from mindspore_coupalign.errors import UserError

_PACKED = (("text", "text_at"), ("raw", "raw_at"))  # by sentence
_MASKS = (("rle", "rle_at"), ("single", "single_at"))  # by ref
_OF_REF = ("ref_ids", "ref_image", "ref_split", "ref_outside", "ref_left_out")
_OF_SENTENCE = ("sentence_ids", "sentence_kind")


def keep_refs(data: ReferData, keep: np.ndarray) -> ReferData:
    """The same data with some refs alone: their images, sentences and masks; everything keeps its order.

    Args:
        keep: (R,) bool.
    """
    refs, sentences = np.flatnonzero(keep), np.flatnonzero(keep[data.sentence_ref])
    images = np.unique(data.ref_image[refs])
    columns = {name: getattr(data, name)[refs] for name in _OF_REF}
    columns |= {name: getattr(data, name)[sentences] for name in _OF_SENTENCE}
    for names, rows in ((_PACKED, sentences), (_MASKS, refs)):
        for name, at in names:
            columns[name], columns[at] = _repacked(getattr(data, name), getattr(data, at), rows)
    columns["ref_image"] = np.searchsorted(images, columns["ref_image"]).astype(np.int32)
    objects, counts = np.diff(data.ref_objects), np.diff(data.ref_sentences)[refs]
    return dataclasses.replace(
        data, **columns, image_files=data.image_files[images], image_sizes=data.image_sizes[images],
        ann_ids=data.ann_ids[np.repeat(keep, objects)], ref_objects=_ends(objects[refs]), ref_sentences=_ends(counts),
        sentence_ref=np.repeat(np.arange(len(refs), dtype=np.int32), counts), turned=set())


def _repacked(packed: bytes, at: np.ndarray, rows: np.ndarray) -> tuple[bytes, np.ndarray]:
    return b"".join(packed[at[row]:at[row + 1]] for row in rows), _ends(np.diff(at)[rows])


def _ends(counts: np.ndarray) -> np.ndarray:
    """Where each of neighbouring stretches begins, and the last one ends, (n + 1,) int64."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def joined(parts: Sequence[ReferData]) -> dict:
    """The columns of several data sets one after the other, as one split ``train``.

    Files are named by their whole path, so that the image folder is of no account; ids that are of different types
    become text.
    """
    refs = np.cumsum([0] + [len(part.ref_ids) for part in parts])
    images = np.cumsum([0] + [len(part.image_files) for part in parts])
    sentences = np.cumsum([0] + [len(part.sentence_ref) for part in parts])

    def column(name: str, shift: np.ndarray | None = None) -> np.ndarray:
        values = [getattr(part, name) for part in parts]
        return np.concatenate(values if shift is None else [
            value + np.asarray(by, value.dtype) for value, by in zip(values, shift[:-1], strict=True)])

    columns: dict = {name: column(name) for name in ("image_sizes", *_OF_REF, "ann_ids", "sentence_ids")}
    for name, at in (*_PACKED, *_MASKS):
        columns[name] = b"".join(getattr(part, name) for part in parts)
        ends = np.cumsum([0] + [len(getattr(part, name)) for part in parts])
        columns[at] = np.concatenate([[0], *(getattr(part, at)[1:] + end
                                             for part, end in zip(parts, ends[:-1], strict=True))])
    paths = [str(part.image_dir / str(name)) for part in parts for name in part.image_files]
    return columns | {
        "source": Path("data.sets"), "image_dir": Path(), "image_files": np.array(paths),
        "ref_image": column("ref_image", images), "sentence_ref": column("sentence_ref", refs),
        "ref_split": np.zeros(refs[-1], np.int16), "split_names": ("train",),
        "ref_objects": _ends(np.concatenate([np.diff(part.ref_objects) for part in parts])),
        "ref_sentences": _ends(np.concatenate([np.diff(part.ref_sentences) for part in parts])),
        "sentence_kind": np.full(sentences[-1], -1, np.int16), "kind_names": (),
    }


def without_images(data: ReferData, names: Sequence[str]) -> tuple[ReferData, str]:
    """The data without all refs on some pictures, and a line that says how many that were; empty without names.

    Args:
        names: of files, as instances.json has them or their last part.

    Raises:
        UserError: a name that no picture of a ref has; names near ones.
    """
    if not names:
        return data, ""
    by_name: dict[str, set] = {}
    for i, file in enumerate(map(str, data.image_files)):
        for name in {file, PurePosixPath(file).name}:
            by_name.setdefault(name, set()).add(i)
    unknown = [name for name in names if name not in by_name]
    if unknown:
        near = difflib.get_close_matches(unknown[0], by_name, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"they are called like {data.image_files[0]};"
        raise UserError(f"data.skip_images: {unknown[0]} is no picture of a ref of {data.source}; {hint} "
                        "data.skip_images=[] leaves out none")
    skipped = np.isin(data.ref_image, sorted(set().union(*(by_name[name] for name in names))))
    if skipped.all():
        raise UserError(f"data.skip_images leaves no ref of {data.source}; name fewer pictures")
    splits = ", ".join(f"{name} {count:,}" for code, name in enumerate(data.split_names)
                       if (count := int((skipped & (data.ref_split == code)).sum())))
    pictures = len(np.unique(data.ref_image[skipped]))
    return keep_refs(data, ~skipped), (
        f"data.skip_images: {pictures:,} picture{'s' * (pictures != 1)} of {data.source} left out, with "
        f"{int(skipped.sum()):,} refs ({splits}) and {int(skipped[data.sentence_ref].sum()):,} sentences")
