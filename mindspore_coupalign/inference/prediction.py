"""What prediction answers: a mask at the picture's own size, and what is read off it. Needs no MindSpore.

Shapes: image (h, w, 3) uint8 RGB; mask (h, w) bool; probability (h, w) float32, 0..1.
"""

import functools
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mindspore_coupalign.errors import UserError
from mindspore_coupalign.inference import names

_CAPTION = 300  # characters of a sentence under its picture


class Saved(NamedTuple):
    """The files that ``Prediction.save`` wrote."""

    mask: Path  # PNG, (h, w), 0 or 255
    overlay: Path  # PNG, the picture with the mask outlined, and the sentence


@dataclass(frozen=True, eq=False)
class Details:
    """What the network looked at; a stage's map has the side of that stage."""

    pieces: list[str]  # the sentence's word pieces with [CLS] and [SEP], n
    attention: dict[int, np.ndarray]  # stage -> (n, side, side), pixels' attention over the pieces, mean over heads
    proposals: np.ndarray  # (N, side, side) mask proposals; N = 0 without sentence-mask alignment
    weights: np.ndarray  # (N,) the sentence's weights of the proposals, sum 1


@dataclass(frozen=True, eq=False)
class Prediction:
    """The answer to one image and one sentence."""

    sentence: str
    mask: np.ndarray  # (h, w) bool
    probability: np.ndarray  # (h, w) float32, 0..1
    seconds: float  # network (of a batch, this sentence's share) and resizing, without loading and compiling
    unknown: list[str]  # words that the vocabulary cannot spell
    truncated: bool  # the sentence is longer than the network reads
    details: Details | None = None
    image: np.ndarray | None = field(default=None, repr=False)  # (h, w, 3) uint8 RGB, what the mask lies on
    source: str = ""  # path of the image's file; empty where it came from memory
    existence: float | None = None  # probability that the sentence means anything; None: no head for it (no_target)

    def __repr__(self) -> str:
        h, w = self.mask.shape
        return f"<Prediction {self.sentence[:60]!r} {w} x {h} pixels, box {self.box}, score {self.score:.2f}>"

    @functools.cached_property
    def score(self) -> float:
        """How sure the network is: the mean probability inside the mask, from the threshold to 1; 0 for an empty mask.
        It is not calibrated: no share of right masks."""
        return float(self.probability[self.mask].mean(dtype=np.float64)) if self.mask.any() else 0.0

    @functools.cached_property
    def exists(self) -> bool:
        """Whether the sentence means anything in the picture: the mask has a pixel. It has none where the network's
        head says that nothing is meant, or there are fewer than eval.min_pixels; ``probability`` stays as it was
        computed."""
        return bool(self.mask.any())

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

        Raises:
            UserError: the package pycocotools is not there.
        """
        try:
            from pycocotools import mask as coco
        except ImportError as exc:
            raise UserError("RLE needs the package pycocotools: pip install pycocotools") from exc
        packed = coco.encode(np.asfortranarray(self.mask, np.uint8))
        return {"size": [int(side) for side in packed["size"]], "counts": packed["counts"].decode()}

    def overlay(self) -> np.ndarray:
        """The picture with the mask outlined and the sentence and score below, (h', w', 3) uint8 RGB; small pictures
        are enlarged.

        Raises:
            UserError: the prediction does not hold its image.
        """
        from mindspore_coupalign.visualize import figures

        if self.image is None:
            raise UserError("this prediction does not hold its image; predict with `Model.predict`, which keeps it")
        text = self.sentence if len(self.sentence) <= _CAPTION else f"{self.sentence[:_CAPTION]}..."
        note = f"score {self.score:.2f}" if self.exists else ""
        if self.existence is not None:
            note = f"{note}; means something: {self.existence:.2f}".removeprefix("; ")
        return figures.overlay(self.image, self.mask, text, note=note)

    def save(self, folder: str | os.PathLike) -> Saved:
        """Write mask and overlay into a folder, which is made where it is missing; nothing there is overwritten.

        The names are ``<image>_<sentence>_mask.png`` and ``_overlay.png``, with a number where one exists already.

        Raises:
            UserError: the folder or a file cannot be written.
        """
        from mindspore_coupalign.outputs import make_folder

        folder = make_folder(os.fspath(folder), "choose another folder")
        image = names.image_stems([self.source])[0] if self.source else "image"
        return self.write(_free_stem(folder, f"{image}_{names.slug(self.sentence)}"))

    def write(self, stem: str | os.PathLike) -> Saved:
        """Write ``<stem>_mask.png`` and ``<stem>_overlay.png``, over older ones.

        Raises:
            UserError: a file cannot be written.
        """
        from mindspore_coupalign.visualize import figures

        saved = Saved(Path(f"{os.fspath(stem)}_mask.png"), Path(f"{os.fspath(stem)}_overlay.png"))
        figures.write_png(saved.mask, self.mask.astype(np.uint8) * 255)
        figures.write_png(saved.overlay, self.overlay())
        return saved


def _free_stem(folder: Path, stem: str) -> Path:
    """The stem, with a number where it is taken. The mask's file is made at once, so that whoever else writes into the
    folder takes another name."""
    number = 1
    while True:
        path = folder / (stem if number == 1 else f"{stem}-{number}")
        number += 1
        if os.path.lexists(f"{path}_overlay.png"):
            continue
        try:
            open(f"{path}_mask.png", "xb").close()
            return path
        except FileExistsError:
            continue
        except OSError as exc:
            raise UserError(f"{path}_mask.png: cannot be written ({exc.strerror}); choose another folder") from exc
