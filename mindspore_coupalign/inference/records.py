"""``predictions.jsonl``: a line per mask that ``predict`` wrote into a folder.

image (path as it was given), sentence, exists (whether it means anything), existence (the probability of that; null for
a network without a head for it), score, box (x, y, width, height in pixels; null for an empty mask), area
(pixels), rle (COCO's compressed RLE; null without pycocotools), width, height, mask, overlay and, where it was drawn,
attention (names of files in the folder), seconds, unknown (words), truncated.
A further call adds its lines; with ``--overwrite`` the lines of masks that it replaces are taken out first.
"""

import importlib.util
import json
import sys
from pathlib import Path

from mindspore_coupalign.errors import UserError
from mindspore_coupalign.inference.prediction import Prediction, Saved
from mindspore_coupalign.outputs import write_file

NAME = "predictions.jsonl"


class Records:
    """The folder's file of records; as a context manager it is open for adding.

    Args:
        stems: of the masks that will be written.
        overwrite: lines of these masks, and lines that are no records, may be taken out.

    Raises:
        UserError: there is a file of that name that holds anything else.
    """

    def __init__(self, folder: Path, stems: list[str], overwrite: bool):
        self.path = folder / NAME
        self._kept = self._old({f"{stem}_mask.png" for stem in stems}, overwrite)
        self._rle = importlib.util.find_spec("pycocotools") is not None

    def _old(self, masks: set, overwrite: bool) -> list[str]:
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as exc:
            if overwrite and isinstance(exc, UnicodeDecodeError):
                return []
            raise UserError(f"{self.path}: cannot be read ({getattr(exc, 'strerror', None) or 'not UTF-8'}); choose "
                            "another --output") from exc
        kept = []
        for number, line in enumerate(lines, 1):
            mask = _mask_of(line)
            if mask is None and not overwrite:
                raise UserError(f"{self.path}: line {number} is no record of a prediction; add --overwrite to replace "
                                "the file, or choose another --output")
            if mask is not None and mask not in masks:
                kept.append(line)
        return kept

    def __enter__(self) -> "Records":
        if not self._rle:
            print(f"note: {NAME} has no RLE, for which pycocotools is missing", file=sys.stderr)
        write_file(self.path, "".join(f"{line}\n" for line in self._kept).encode())
        self._file = open(self.path, "a", encoding="utf-8")
        return self

    def add(self, image: str, found: Prediction, saved: Saved, more: dict):
        """One line, on the disk when this returns.

        Raises:
            UserError: the file cannot be written.
        """
        height, width = found.mask.shape
        existence = None if found.existence is None else round(found.existence, 6)
        record = {"image": _text(image), "sentence": found.sentence, "exists": found.exists, "existence": existence,
                  "score": round(found.score, 6), "box": found.box,
                  "area": found.area, "rle": found.rle() if self._rle else None, "width": width, "height": height,
                  "mask": _text(saved.mask.name), "overlay": _text(saved.overlay.name),
                  **{key: _text(value) for key, value in more.items()}, "seconds": round(found.seconds, 6),
                  "unknown": found.unknown, "truncated": found.truncated}
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
        lines = (folder / NAME).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return set()
    found = set()
    for line in lines:
        if _mask_of(line) is not None:
            record = json.loads(line)
            found |= {record[key] for key in ("mask", "overlay", "attention") if isinstance(record.get(key), str)}
    return found


def _mask_of(line: str) -> str | None:
    try:
        mask = json.loads(line)["mask"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return mask if isinstance(mask, str) else None


def _text(name: str) -> str:
    """A file's name as JSON can hold it; bytes that are no UTF-8 are shown as \\udcxx."""
    return name.encode("utf-8", "backslashreplace").decode()
