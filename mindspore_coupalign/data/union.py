"""``data.sets``: several data sets as one, without the pictures of anybody's validation or test split.

R refs, S sentences of all sets together, one set after the other (names: refer.py). A set of n refs and weight w gives
m = round(w · n) samples to every epoch: each ref m div n times, and m mod n of them once more, taken in turn from
shuffled rounds over all n, so that over the epochs every ref comes equally often. Which sentence of a ref, and an
epoch's order, depend on (seed, epoch) alone.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mindspore_coupalign.config import DataConfig, DataSet
from mindspore_coupalign.data.configured import open_data
from mindspore_coupalign.data.leaks import shared
from mindspore_coupalign.data.refer import ReferData
from mindspore_coupalign.data.subsets import joined, keep_refs
from mindspore_coupalign.errors import UserError


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
        refs = np.concatenate(chosen)
        first = self.ref_sentences[refs]
        random = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, epoch))))
        return random.permutation(first + random.integers(0, self.ref_sentences[refs + 1] - first))

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
        validation: the data of the other ``data`` keys; the pictures of its splits but ``data.train_split`` are kept
            out as those of the sets are.

    Raises:
        UserError: as ``open_data``, or a set of which nothing is left.
    """
    configs = [set_config(names, entry) for entry in names.sets]
    opened = [open_data(config) for config in configs]
    held = [path for data, config in zip([validation, *opened], [names, *configs], strict=True)
            for path in held_out(data, config.train_split)]
    held = list(dict.fromkeys(held))
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
                            f"are on pictures of a validation or test split, weight {entry.weight:g}; take it out")
        kept.append(keep_refs(data, keep))
        parts.append(Part(label_of(config, config.train_split), start, start + refs, entry.weight))
        start += refs
        lines += [f"data.sets: {line}" for line in data.notes]
    lines.append(f"data.sets: {counts[0]:,} of {counts[1]:,} training pictures, with {counts[2]:,} refs, are kept out: "
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
    """The pictures of all splits but the one to train on."""
    codes = [code for code, name in enumerate(data.split_names) if name not in data.splits_meant(train_split)]
    images = np.unique(data.ref_image[np.isin(data.ref_split, codes)])
    return [data.image_dir / str(data.image_files[i]) for i in images]


def picture_paths(data: ReferData, split: str) -> list[Path]:
    """The pictures of a split's refs, each once."""
    return [data.image_dir / str(data.image_files[i]) for i in np.unique(data.ref_image[data.refs_of(split)])]
