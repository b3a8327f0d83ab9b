"""A data set in REFER's layout (https://github.com/lichengunc/refer) -> NumPy arrays.

I images, R refs (one ref = the target of some sentences: one object, or several, or none), A annotation ids of all
refs, S sentences; h, w image size in pixels.
Sample index = sentence index; the sentences of a ref are neighbours, and refs keep the order of ``refs(*).p``.
No Python object is kept per sample: text and masks lie packed in two byte strings, so that threads and forked
processes share them.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mindspore_coupalign.data.annotations import read_annotations
from mindspore_coupalign.data.datasets import elsewhere, find_dataset, find_images
from mindspore_coupalign.data.image_cache import ImageCache
from mindspore_coupalign.data.images import MissingImage, read_annotated
from mindspore_coupalign.data.masks import rle_area, rle_to_mask
from mindspore_coupalign.data.transforms import ImageTransform
from mindspore_coupalign.errors import UserError

OVERLAPS = ("union", "single")


@dataclass(frozen=True, eq=False)
class ReferData:
    source: Path  # the refs(*).p read, for messages
    image_dir: Path
    image_files: np.ndarray  # (I,) text, file names below image_dir; only images that a ref uses
    image_sizes: np.ndarray  # (I, 2) int32: h, w, as instances.json says
    ref_ids: np.ndarray  # (R,)
    ann_ids: np.ndarray  # (A,) of the refs' objects, one ref after the other
    ref_objects: np.ndarray  # (R + 1,) int64, those of ref r: ref_objects[r] to ref_objects[r + 1] - 1; none: no target
    ref_image: np.ndarray  # (R,) int32, index of the image
    ref_split: np.ndarray  # (R,) int16, index into split_names
    split_names: tuple[str, ...]  # as the file has them, in order of appearance
    ref_outside: np.ndarray  # (R,) bool, a polygon leaves the image by more than a pixel
    ref_left_out: np.ndarray  # (R,) int32, polygons of fewer than three points, which enclose nothing
    ref_sentences: np.ndarray  # (R + 1,) int64, sentences of ref r: ref_sentences[r] to ref_sentences[r + 1] - 1
    sentence_ref: np.ndarray  # (S,) int32, index of the ref
    sentence_ids: np.ndarray  # (S,)
    sentence_kind: np.ndarray  # (S,) int16, index into kind_names, -1 where the file names no kind
    kind_names: tuple[str, ...]  # RefShapes' categories of sentences; empty for other data sets
    text: bytes  # all sentences ("sent"), UTF-8
    text_at: np.ndarray  # (S + 1,) int64, offsets into text
    raw: bytes  # the sentences as they were typed, where that differs from ``text``
    raw_at: np.ndarray  # (S + 1,) int64, offsets into raw; an empty stretch where it does not differ
    rle: bytes  # all masks, COCO's compressed RLE
    rle_at: np.ndarray  # (R + 1,) int64, offsets into rle
    single: bytes  # the pixels under exactly one part, where a mask's parts overlap
    single_at: np.ndarray  # (R + 1,) int64, offsets into single; an empty stretch where they do not
    annotations: int = 0  # in instances.json, each id once
    unnamed: int = 0  # of these, those that no ref names
    cache: ImageCache | None = None  # data.cache
    notes: tuple[str, ...] = ()  # what a run says of the data when it starts
    turned: set = field(default_factory=set)  # images read so far whose EXIF orientation says to turn them

    def sentence(self, s: int, field: str = "sent") -> str:
        """A sentence as REFER cleaned it (``sent``: lower case, hardly any punctuation) or as it was typed (``raw``).

        Each stands for the other where that is missing or blank.
        """
        if field == "raw" and self.raw_at[s + 1] > self.raw_at[s]:
            return self.raw[self.raw_at[s] : self.raw_at[s + 1]].decode("utf-8")
        return self.text[self.text_at[s] : self.text_at[s + 1]].decode("utf-8")

    def objects_of(self, r: int) -> list:
        """Annotation ids of ref r's target objects; empty without a target."""
        return self.ann_ids[self.ref_objects[r] : self.ref_objects[r + 1]].tolist()

    @property
    def has_target(self) -> np.ndarray:
        """(R,) bool, whether a ref has a target."""
        return np.diff(self.ref_objects) > 0

    def refs_of(self, split: str) -> np.ndarray:
        """Indices of a split's refs, (n,) int64, in file order.

        ``split`` is a name in the file or, by REFER's rule, ``test`` for all test splits together, and
        ``testA``/``testB``/``testC`` for every test split with that letter (RefCLEF has ``testAB``, ``testBC``).

        Raises:
            UserError: the file has no such split.
        """
        wanted = self.splits_meant(split)
        if not wanted:
            raise UserError(f"{self.source}: no split {split!r}; the splits here are {', '.join(self.split_names)}")
        codes = [code for code, name in enumerate(self.split_names) if name in wanted]
        return np.flatnonzero(np.isin(self.ref_split, codes))

    def splits_meant(self, split: str) -> tuple[str, ...]:
        """The file's splits that a name stands for (``refs_of``'s rule), in the file's order; () where it has none."""
        tests = [name for name in self.split_names if name.startswith("test")]
        if split in ("testA", "testB", "testC"):
            return tuple(name for name in tests if split[-1] in name[4:])
        if split == "test" and "test" not in self.split_names:
            return tuple(tests)
        return (split,) if split in self.split_names else ()

    def split(self, name: str) -> np.ndarray:
        """Indices of all sentences of a split, (n,) int64, in file order; names and errors as for ``refs_of``."""
        wanted = np.zeros(len(self.ref_ids), bool)
        wanted[self.refs_of(name)] = True
        return np.flatnonzero(wanted[self.sentence_ref])

    def refs_to_train(self, split: str) -> np.ndarray:
        """The refs of a split that have a sentence, (n,) int64, in file order."""
        refs = self.refs_of(split)
        return refs[self.ref_sentences[refs + 1] > self.ref_sentences[refs]]

    def epoch_size(self, split: str) -> int:
        """Samples of a training epoch."""
        return len(self.refs_to_train(split))

    def epoch_samples(self, split: str, seed: int, epoch: int) -> np.ndarray:
        """The samples of one training epoch: one random sentence per ref, shuffled; (n,) int64 sentence indices.

        Depends on nothing but the arguments, so that every rank and a resumed run draw the same.
        """
        return self.one_sentence_each(self.refs_to_train(split), seed, epoch)

    def one_sentence_each(self, refs: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        first = self.ref_sentences[refs]
        random = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, epoch))))
        return random.permutation(first + random.integers(0, self.ref_sentences[refs + 1] - first))

    def mask(self, r: int, overlap: str = "union") -> np.ndarray:
        """(h, w) uint8, 1 on ref r's target.

        Args:
            overlap: of the parts that an object is drawn in. ``union``: the pixels under any of them; ``single``: those
                under exactly one, as LAVT counts them (``ref_mask == 1`` of REFER's sum over the parts).
        """
        return rle_to_mask(self._rle(r, overlap), *self.image_sizes[self.ref_image[r]].tolist())

    def mask_area(self, r: int, overlap: str = "union") -> int:
        """Pixels of ref r's mask, without decoding it."""
        return rle_area(self._rle(r, overlap), *self.image_sizes[self.ref_image[r]].tolist())

    def _rle(self, r: int, overlap: str) -> bytes:
        if overlap == "single" and self.single_at[r + 1] > self.single_at[r]:
            return self.single[self.single_at[r] : self.single_at[r + 1]]
        return self.rle[self.rle_at[r] : self.rle_at[r + 1]]

    def image_path(self, r: int) -> Path:
        return self.image_dir / str(self.image_files[self.ref_image[r]])

    def image_place(self, i: int) -> tuple[Path, str]:
        """The folder in which image i is looked for, and its name there."""
        return self.image_dir, str(self.image_files[i])

    def read_image(self, r: int) -> np.ndarray:
        """(h, w, 3) uint8 RGB of ref r, the pixels as stored: EXIF's orientation is not applied (data/images.py).

        Raises:
            UserError: the file is missing, truncated, no image, or of another size than its annotations.
        """
        i = int(self.ref_image[r])
        rgb, orientation = self.read_image_file(i)
        if orientation != 1:
            self.turned.add(i)
        return rgb

    def resized_image(self, r: int, transform: ImageTransform) -> np.ndarray:
        """(size, size, 3) uint8: ``transform.resize`` of ``read_image``, or the same from ``cache``; its errors."""
        if self.cache is None:
            return transform.resize(self.read_image(r))
        i = int(self.ref_image[r])
        folder, name = self.image_place(i)

        def make() -> tuple[np.ndarray, int]:
            rgb, orientation = self.read_image_file(i)
            return transform.resize(rgb), orientation

        rgb, orientation = self.cache.get(folder / name, tuple(self.image_sizes[i].tolist()), make)
        if orientation != 1:
            self.turned.add(i)
        return rgb

    def read_image_file(self, i: int) -> tuple[np.ndarray, int]:
        """Image i as stored, and its EXIF orientation; errors as ``read_image``."""
        folder, name = self.image_place(i)
        path = folder / name
        try:
            return read_annotated(path, tuple(self.image_sizes[i].tolist()))
        except MissingImage as exc:
            raise MissingImage(f"{path}: no such image file{elsewhere(folder, name)}") from exc


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
    columns = read_annotations(refs_file, instances_file)
    for i in np.flatnonzero(np.char.find(columns["image_files"], "\\") >= 0):  # written on Windows?
        name = str(columns["image_files"][i])
        if not os.path.isfile(image_dir / name):
            columns["image_files"][i] = name.replace("\\", "/")
    return ReferData(source=refs_file, image_dir=image_dir, **columns)
