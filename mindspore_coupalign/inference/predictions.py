"""Predictions: masks at the image's own size, the names of the files they are written to, and ``predictions.jsonl``,
in which ``predict`` lists them. Needs no MindSpore.

Shapes: image (h, w, 3) uint8 RGB; mask (h, w) bool; probability (h, w) float32, 0..1.

``predictions.jsonl`` has a line per mask: image (path as it was given), sentence, has_target, target_probability (null
for a network without a target-presence head), score, box (x, y, width, height in pixels; null for an empty mask), area
(pixels), rle (COCO's compressed RLE; null without pycocotools), width, height, mask, overlay and, where it was drawn,
attention (names of files in the folder), seconds, unknown (words), truncated. Earlier versions wrote has_target and
target_probability as exists and existence. A further call adds its lines; with ``--overwrite`` the lines of masks that
it replaces are removed first.

Names of files: a stem is ``<image>_<n>_<sentence>``, n the sentence's number; files are called by the stem with
``_mask.png`` and so on. No two stems of a call are alike.
"""

import contextlib
import functools
import hashlib
import importlib.util
import json
import os
import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mindspore_coupalign.errors import UserError
from mindspore_coupalign.outputs import make_folder, write_file

RECORDS = "predictions.jsonl"
_CAPTION = 300  # characters of a sentence under its image
_SLUG, _STEM = 40, 80  # the most characters of a sentence, and bytes of an image's name, in a file's name


class Saved(NamedTuple):
    """The files that ``Prediction.save`` wrote."""

    mask: Path  # PNG, (h, w), 0 or 255
    overlay: Path  # PNG, the image with the mask outlined, and the sentence


@dataclass(frozen=True, eq=False)
class Details:
    """What the network looked at; a stage's map has the side of that stage."""

    pieces: list[str]  # the sentence's word pieces with [CLS] and [SEP], n
    attention: dict[int, np.ndarray]  # stage -> (n, side, side), pixels' attention over the pieces, mean over heads
    proposals: np.ndarray  # (N, side, side) mask proposals; N = 0 without sentence-mask alignment
    weights: np.ndarray  # (N,) the sentence's weights of the proposals, sum 1


@dataclass(frozen=True, eq=False)
class Prediction:
    """The mask of what one sentence refers to in one image."""

    sentence: str
    mask: np.ndarray  # (h, w) bool
    probability: np.ndarray  # (h, w) float32, 0..1
    seconds: float  # network (of a batch, this sentence's share) and resizing, without loading and compiling
    unknown: list[str]  # words that the vocabulary cannot spell
    truncated: bool  # the sentence is longer than the network reads
    details: Details | None = None
    image: np.ndarray | None = field(default=None, repr=False)  # (h, w, 3) uint8 RGB, the image of the mask
    source: str = ""  # path of the image's file; empty where it came from memory
    target_probability: float | None = None  # that the sentence has a target; None: no head for it (model.no_target)

    def __repr__(self) -> str:
        h, w = self.mask.shape
        return f"<Prediction {self.sentence[:60]!r} {w} x {h} pixels, box {self.box}, score {self.score:.2f}>"

    @functools.cached_property
    def score(self) -> float:
        """The mean probability inside the mask, from the threshold to 1; 0 for an empty mask. It is a confidence, not
        calibrated to the share of correct masks."""
        return float(self.probability[self.mask].mean(dtype=np.float64)) if self.mask.any() else 0.0

    @functools.cached_property
    def has_target(self) -> bool:
        """Whether the sentence has a target in the image: the mask is not empty. It is emptied where the network's
        target-presence head says no, or where it has fewer pixels than eval.min_pixels; ``probability`` is kept."""
        return bool(self.mask.any())

    @property
    def exists(self) -> bool:
        """Deprecated name of ``has_target``."""
        return self.has_target

    @property
    def existence(self) -> float | None:
        """Deprecated name of ``target_probability``."""
        return self.target_probability

    @property
    def area(self) -> int:
        """Pixels of the mask."""
        return int(np.count_nonzero(self.mask))

    @functools.cached_property
    def box(self) -> tuple[int, int, int, int] | None:
        """The smallest box around the mask in pixels, COCO's order (x, y, width, height) from the top left; None for an
        empty mask."""
        rows, columns = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        if not len(rows):
            return None
        return (int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1))

    def rle(self) -> dict:
        """The mask as COCO's compressed RLE, {"size": [h, w], "counts": text}, ready for JSON.
        Raises UserError: pycocotools is not installed."""
        try:
            from pycocotools import mask as coco
        except ImportError as exc:
            raise UserError("RLE needs the package pycocotools: pip install pycocotools") from exc
        packed = coco.encode(np.asfortranarray(self.mask, np.uint8))
        return {"size": [int(side) for side in packed["size"]], "counts": packed["counts"].decode()}

    def overlay(self) -> np.ndarray:
        """The image with the mask outlined and the sentence and score below, (h', w', 3) uint8 RGB; small images are
        enlarged. Raises UserError when the prediction does not hold its image."""
        from mindspore_coupalign import visualize

        if self.image is None:
            raise UserError("this prediction does not hold its image; predict with `Model.predict`, which keeps it")
        text = self.sentence if len(self.sentence) <= _CAPTION else f"{self.sentence[:_CAPTION]}..."
        note = f"score {self.score:.2f}" if self.has_target else ""
        if self.target_probability is not None:
            note = f"{note}; target probability {self.target_probability:.2f}".removeprefix("; ")
        return visualize.overlay(self.image, self.mask, text, note=note)

    def save(self, folder: str | os.PathLike) -> Saved:
        """Write mask and overlay into a folder, which is created where it is missing; nothing is overwritten.

        The names are ``<image>_<sentence>_mask.png`` and ``_overlay.png``, with a number where one exists already.

        Raises:
            UserError: the folder or a file cannot be written.
        """
        folder = make_folder(os.fspath(folder), "choose another folder")
        image = image_stems([self.source])[0] if self.source else "image"
        return self.write(_free_stem(folder, f"{image}_{slug(self.sentence)}"))

    def write(self, stem: str | os.PathLike) -> Saved:
        """Write ``<stem>_mask.png`` and ``<stem>_overlay.png``, over older ones. Raises UserError when it cannot."""
        from mindspore_coupalign import visualize

        saved = Saved(Path(f"{os.fspath(stem)}_mask.png"), Path(f"{os.fspath(stem)}_overlay.png"))
        visualize.write_png(saved.mask, self.mask.astype(np.uint8) * 255)
        visualize.write_png(saved.overlay, self.overlay())
        return saved


def _free_stem(folder: Path, stem: str) -> Path:
    """The stem, with a number where it is taken. The mask's file is created at once, so that other writers choose
    another name."""
    number = 1
    while True:
        path = folder / (stem if number == 1 else f"{stem}-{number}")
        number += 1
        with contextlib.suppress(FileExistsError):
            if not os.path.lexists(f"{path}_overlay.png"):
                open(f"{path}_mask.png", "xb").close()
                return path


def image_stems(paths: list[str]) -> list[str]:
    """A unique name per image, also where case is ignored: the file's stem; where stems are equal, folder and whole
    name; where these are equal too, with a number."""
    files = [Path(os.path.abspath(path)) for path in paths]
    same = Counter(file.stem.casefold() for file in files)
    names = [_short(file.stem if same[file.stem.casefold()] == 1 else f"{file.parent.name}_{file.name}")
             for file in files]
    return distinct(names)


def distinct(names: list[str]) -> list[str]:
    """The names, with a number appended to later duplicates; case is ignored."""
    taken, seen = {name.casefold() for name in names}, set()
    numbers: Counter[str] = Counter()
    result = []
    for name in names:
        own = name
        while own.casefold() in seen or own != name and own.casefold() in taken:
            numbers[name.casefold()] += 1
            own = f"{name}-{numbers[name.casefold()] + 1}"
        seen.add(own.casefold())
        result.append(own)
    return result


def slug(sentence: str) -> str:
    """The sentence as part of a file name: its letters and digits, of any script. A sentence that loses more than ASCII
    punctuation gets digits of its checksum, so that different sentences have different names."""
    words = re.sub(r"[\W_]+", "-", sentence.lower()).strip("-")
    try:
        os.fsencode(words)
    except UnicodeEncodeError:  # a file system without Unicode
        words = re.sub(r"[^a-z0-9]+", "-", words).strip("-")
    short = words[:_SLUG].strip("-")
    lost = [letter for letter in set(sentence.lower()) if letter not in short and not letter.isascii()]
    if short and len(words) <= _SLUG and not lost:
        return short
    return f"{short or 'text'}-{_checksum(sentence)}"


def _short(name: str) -> str:
    """A name that leaves room for the sentence: file systems take 255 bytes."""
    raw = os.fsencode(name)
    return name if len(raw) <= _STEM else f"{raw[:_STEM].decode('utf-8', 'ignore')}-{_checksum(name)}"


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]


class Records:
    """The folder's file of records; as a context manager it is open for adding.

    Args:
        stems: of the masks that will be written.
        overwrite: lines of these masks, and lines that are not records, may be removed.

    Raises:
        UserError: the file exists and contains something else.
    """

    def __init__(self, folder: Path, stems: list[str], overwrite: bool):
        self.path = folder / RECORDS
        self._kept = self._old({f"{stem}_mask.png" for stem in stems}, overwrite)
        self._rle = importlib.util.find_spec("pycocotools") is not None

    def _old(self, masks: set, overwrite: bool) -> list[str]:
        try:
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return []
        except OSError as exc:
            raise UserError(f"{self.path}: cannot be read ({exc.strerror}); choose another --output") from exc
        records = [_record_of(line) for line in lines]
        if None in records and not overwrite:
            raise UserError(f"{self.path}: line {records.index(None) + 1} is not a prediction record; add --overwrite "
                            "to replace the file, or choose another --output")
        return [line for line, record in zip(lines, records, strict=True) if record and record["mask"] not in masks]

    def __enter__(self) -> "Records":
        if not self._rle:
            print(f"note: {RECORDS} has no RLE: pycocotools is not installed", file=sys.stderr)
        write_file(self.path, "".join(f"{line}\n" for line in self._kept).encode())
        self._file = open(self.path, "a", encoding="utf-8")
        return self

    def add(self, image: str, prediction: Prediction, saved: Saved, more: dict):
        """One line, on the disk when this returns. Raises UserError: the file cannot be written."""
        height, width = prediction.mask.shape
        probability = prediction.target_probability
        record = {"image": _text(image), "sentence": prediction.sentence, "has_target": prediction.has_target,
                  "target_probability": None if probability is None else round(probability, 6),
                  "score": round(prediction.score, 6), "box": prediction.box, "area": prediction.area,
                  "rle": prediction.rle() if self._rle else None, "width": width, "height": height,
                  "mask": _text(saved.mask.name), "overlay": _text(saved.overlay.name),
                  **{key: _text(value) for key, value in more.items()}, "seconds": round(prediction.seconds, 6),
                  "unknown": prediction.unknown, "truncated": prediction.truncated}
        try:
            self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
            self._file.flush()
        except OSError as exc:
            raise UserError(f"{self.path}: cannot be written ({exc.strerror}); choose another --output") from exc

    def __exit__(self, *_):
        self._file.close()
        if self.path.stat().st_size == 0:  # nothing was predicted
            self.path.unlink()


def results_in(folder: Path) -> set[str]:
    """Names of the files that the folder's records list."""
    try:
        lines = (folder / RECORDS).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    records = [record for line in lines if (record := _record_of(line))]
    return {record[key] for record in records for key in ("mask", "overlay", "attention") if key in record}


def _record_of(line: str) -> dict | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("mask"), str) else None


def _text(name: str) -> str:
    """A file's name as JSON can hold it; bytes that are not UTF-8 become \\udcxx."""
    return name.encode("utf-8", "backslashreplace").decode()
