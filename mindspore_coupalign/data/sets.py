"""A configuration's ``data`` section -> the data set, or the union of ``data.sets``, that it names.

I images, R refs, A annotation ids, S sentences (names: refer.py); in a union those of all sets, one set after the
other. The images of any validation or test split are kept out of a union's training refs. A set of n refs and weight w
gives m = round(w · n) samples to every epoch: each ref m div n times, and m mod n of them once more, taken in turn from
shuffled rounds over all n, so that over the epochs every ref comes equally often. The sentence of a ref, and an epoch's
order, depend on (seed, epoch) alone.
"""

import dataclasses
import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from mindspore_coupalign.config import DataConfig, DataSet
from mindspore_coupalign.data.image_cache import ImageCache
from mindspore_coupalign.data.leakage import shared
from mindspore_coupalign.data.refer import ReferData, read_refer
from mindspore_coupalign.errors import UserError


def open_data(names: DataConfig) -> ReferData:
    """``data.root``, ``dataset``, ``split_by`` and ``images``, without the images of ``skip_images``."""
    data, line = without_images(read_refer(names.root, names.dataset, names.split_by, names.images), names.skip_images)
    return dataclasses.replace(data, notes=(*data.notes, line)) if line else data


def with_cache(data: ReferData, names: DataConfig) -> ReferData:
    """The data with the folder ``data.cache`` where one is named."""
    if not names.cache:
        return data
    cache = ImageCache(names.cache, names.cache_gb, names.image_size)
    notes = () if names.sets else (cache.note(len(data.image_files)),)  # the union says it with its own images
    return dataclasses.replace(data, cache=cache, notes=(*data.notes, *notes))


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

    Files are named by their whole path, so that the image folder is ignored; ids of different types become text.
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
    """The data without all refs on some images, and a line that says how many that were; empty without names.

    Args:
        names: of files, as instances.json has them or their last part.

    Raises:
        UserError: a name that no image of a ref has; names near ones.
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
        raise UserError(f"data.skip_images: {unknown[0]} is no image of a ref of {data.source}; {hint} "
                        "data.skip_images=[] leaves out none")
    skipped = np.isin(data.ref_image, sorted(set().union(*(by_name[name] for name in names))))
    if skipped.all():
        raise UserError(f"data.skip_images leaves no ref of {data.source}; name fewer images")
    splits = ", ".join(f"{name} {count:,}" for code, name in enumerate(data.split_names)
                       if (count := int((skipped & (data.ref_split == code)).sum())))
    pictures = len(np.unique(data.ref_image[skipped]))
    return keep_refs(data, ~skipped), (
        f"data.skip_images: {pictures:,} image{'s' * (pictures != 1)} of {data.source} left out, with "
        f"{int(skipped.sum()):,} refs ({splits}) and {int(skipped[data.sentence_ref].sum()):,} sentences")


@dataclass(frozen=True)
class Part:
    """One set of a union: its refs are start to stop - 1."""

    label: str
    start: int
    stop: int
    weight: float


@dataclass(frozen=True, eq=False)
class UnionData(ReferData):
    """All sets' training refs, as one split ``train`` of one data set; ``image_files`` are whole paths."""

    parts: tuple[Part, ...] = ()

    def part_of(self, r: int) -> str:
        return next(part.label for part in self.parts if r < part.stop)

    def part_samples(self, part: Part) -> np.ndarray:
        """Indices of all sentences of a set."""
        return np.arange(self.ref_sentences[part.start], self.ref_sentences[part.stop])

    def image_place(self, i: int) -> tuple[Path, str]:
        path = Path(str(self.image_files[i]))
        return path.parent, path.name

    def epoch_size(self, split: str) -> int:
        return sum(_samples(part.weight, len(refs)) for part, refs in self._refs_by_part(split))

    def epoch_samples(self, split: str, seed: int, epoch: int) -> np.ndarray:
        chosen = [_take(refs, _samples(part.weight, len(refs)), (seed, k), epoch)
                  for k, (part, refs) in enumerate(self._refs_by_part(split))]
        return self.one_sentence_each(np.concatenate(chosen), seed, epoch)

    def _refs_by_part(self, split: str) -> list[tuple[Part, np.ndarray]]:
        refs = self.refs_to_train(split)
        return [(part, refs[(refs >= part.start) & (refs < part.stop)]) for part in self.parts]


def _samples(weight: float, refs: int) -> int:
    return round(weight * refs)


def _take(refs: np.ndarray, count: int, seed: tuple[int, int], epoch: int) -> np.ndarray:
    """``count`` of a set's refs for an epoch."""
    whole, rest = divmod(count, len(refs)) if len(refs) else (0, 0)
    chosen = [np.repeat(refs, whole)]
    start, stop = epoch * rest, (epoch + 1) * rest  # of the endless order of rounds
    while start < stop:
        turn, offset = divmod(start, len(refs))
        order = np.random.Generator(np.random.PCG64(np.random.SeedSequence((*seed, turn, 1)))).permutation(refs)
        taken = order[offset:offset + stop - start]
        chosen.append(taken)
        start += len(taken)
    return np.concatenate(chosen)


def set_config(names: DataConfig, entry: DataSet) -> DataConfig:
    """A set of ``data.sets`` as a ``data`` section of its own; where it names no root it takes data.root and, if it
    names no images either, data.images."""
    images = entry.images or ("" if entry.root else names.images)
    return replace(names, root=entry.root or names.root, dataset=entry.dataset, split_by=entry.split_by, images=images,
                   train_split=entry.train_split, skip_images=entry.skip_images, sets=())


def label_of(names: DataConfig, split: str = "") -> str:
    return f"{names.dataset} ({names.split_by}{f', {split}' if split else ''})"


def open_union(names: DataConfig, validation: ReferData) -> UnionData:
    """The union that ``data.sets`` describes.

    Args:
        validation: the data of the other ``data`` keys; the images of its splits but ``data.train_split`` are kept
            out as those of the sets are.

    Raises:
        UserError: as ``open_data``, or a set of which nothing is left.
    """
    configs = [set_config(names, entry) for entry in names.sets]
    opened = [open_data(config) for config in configs]
    held = list(dict.fromkeys(path for data, config in zip([validation, *opened], [names, *configs], strict=True)
                              for path in held_out(data, config.train_split)))
    kept, parts, lines, counts, start = [], [], [], np.zeros(3, np.int64), 0
    for data, config, entry in zip(opened, configs, names.sets, strict=True):
        keep = np.zeros(len(data.ref_ids), bool)
        keep[data.refs_to_train(config.train_split)] = True
        images = np.unique(data.ref_image[keep])
        leaks = images[shared([data.image_dir / str(data.image_files[i]) for i in images], held)]
        leaked = keep & np.isin(data.ref_image, leaks)
        counts += (len(leaks), len(images), leaked.sum())
        keep &= ~leaked
        refs = int(keep.sum())
        if _samples(entry.weight, refs) == 0:
            raise UserError(f"data.sets: nothing of {label_of(config)} is left to train on: split "
                            f"'{config.train_split}' has {refs + leaked.sum():,} refs with sentences, {leaked.sum():,} "
                            f"are on images of a validation or test split, weight {entry.weight:g}; take it out")
        kept.append(keep_refs(data, keep))
        parts.append(Part(label_of(config, config.train_split), start, start + refs, entry.weight))
        start += refs
        lines += [f"data.sets: {line}" for line in data.notes]
    lines.append(f"data.sets: {counts[0]:,} of {counts[1]:,} training images, with {counts[2]:,} refs, are kept out: "
                 "they are in a validation or test split")
    columns = joined(kept)
    data = UnionData(**columns, parts=tuple(parts))
    lines.append(f"data.sets: an epoch has {data.epoch_size('train'):,} samples: " + ", ".join(
        f"{part.label} {part.stop - part.start:,} refs" + (f" x {part.weight:g}" if part.weight != 1 else "")
        for part in parts))
    if validation.cache is not None:
        lines.append(validation.cache.note(len(validation.image_files) + len(data.image_files)))
    return replace(data, cache=validation.cache, notes=tuple(lines))


def held_out(data: ReferData, train_split: str) -> list[Path]:
    """The images of all splits but the one to train on."""
    codes = [code for code, name in enumerate(data.split_names) if name not in data.splits_meant(train_split)]
    images = np.unique(data.ref_image[np.isin(data.ref_split, codes)])
    return [data.image_dir / str(data.image_files[i]) for i in images]
