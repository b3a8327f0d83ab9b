"""What ``predict`` was asked for: pairs of an image's file and a sentence, from options or from a list, each with the
stem of its results' names.
"""

import glob
import json
import os
from dataclasses import dataclass
from pathlib import Path

from mindspore_coupalign.data.inputs import to_sentences
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.inference import names
from mindspore_coupalign.inference.records import results_in

ENDINGS = (".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")  # taken from a folder
_PATTERN = "*?["


@dataclass(frozen=True)
class Request:
    image: str  # path
    sentence: str
    number: int  # of the sentence among its image's, from 1
    stem: str = ""  # of the results' names; no two requests' are alike
    origin: str = ""  # where the sentence stands, for errors


def of_options(images: list[str], sentences: list[str]) -> list[Request]:
    """Every sentence for every image; of a file given twice, the first counts.

    Raises:
        UserError: a folder without pictures, a pattern that fits no file, a sentence without anything in it.
    """
    texts = to_sentences(sentences)
    if blank := [text for text in texts if not text.strip()]:
        raise UserError(f"--text {blank[0]!r}: empty; write what the mask shall cover, for example 'the red cup'")
    paths: dict = {}
    for path in (path for image in images for path in _files(image)):
        paths.setdefault(os.path.abspath(path), path)
    return _named([Request(path, text, number) for path in paths.values() for number, text in enumerate(texts, 1)])


def of_list(path: str | Path) -> list[Request]:
    """A file of JSON lines {"image": path, "sentence": text}; relative paths begin at the file's folder.

    Raises:
        UserError: the file cannot be read, or a line is no such record; nothing is skipped but empty lines.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as exc:
        raise UserError(f"{path}: cannot be read ({exc.strerror})") from exc
    except UnicodeDecodeError as exc:
        raise UserError(f"{path}: not UTF-8 at byte {exc.start}; save the list as UTF-8") from exc
    found: list = []
    counts: dict = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            image, sentence = _record(line, f"{path}: line {number}")
            file = os.path.join(path.parent, image)
            counts[file] = counts.get(file, 0) + 1
            found.append(Request(file, sentence, counts[file], origin=f"{path}: line {number}: "))
    if not found:
        raise UserError(f'{path}: holds no line; write {{"image": "photo.jpg", "sentence": "the red cup"}} per line')
    return _named(found)


def _record(line: str, where: str) -> tuple[str, str]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise UserError(f"{where}: not valid JSON ({str(exc)[:80]}); write one record per line") from exc
    if not isinstance(record, dict):
        raise UserError(f'{where}: a {type(record).__name__}, not a record; write {{"image": ..., "sentence": ...}}')
    for name in ("image", "sentence"):
        if not isinstance(record.get(name), str) or not record[name].strip():
            raise UserError(f"{where}: field {name!r} is missing, empty or not a text")
    try:
        return record["image"], to_sentences(record["sentence"])[0]
    except UserError as exc:
        raise UserError(f"{where}: {exc}") from exc


def _files(image: str) -> list[str]:
    """The file itself, a folder's pictures, or what fits a pattern."""
    if os.path.isdir(image):
        found = _without_results(sorted(
            entry.path for entry in os.scandir(image)
            if entry.name.lower().endswith(ENDINGS) and not entry.name.startswith(".") and not entry.is_dir()))
        if not found:
            raise UserError(f"{image}: a folder without pictures ({', '.join(ENDINGS)}); give another, or files")
        return found
    if any(letter in image for letter in _PATTERN) and not os.path.lexists(image):
        found = sorted(path for path in glob.glob(image, recursive=True) if not os.path.isdir(path))
        found = _without_results(found)
        if not found:
            raise UserError(f"{image}: no file fits this pattern; check it, or give the files")
        return found
    return [image]


def _without_results(paths: list[str]) -> list[str]:
    """Without masks and overlays that an earlier call has written beside the pictures."""
    written: dict[str, set] = {}
    for folder in {os.path.dirname(path) for path in paths}:
        written[folder] = results_in(Path(folder))
    return [path for path in paths if os.path.basename(path) not in written[os.path.dirname(path)]]


def _named(requests: list[Request]) -> list[Request]:
    paths = list(dict.fromkeys(request.image for request in requests))
    stem = dict(zip(paths, names.image_stems(paths), strict=True))
    stems = names.distinct([f"{stem[r.image]}_{r.number}_{names.slug(r.sentence)}" for r in requests])
    return [Request(r.image, r.sentence, r.number, s, r.origin) for r, s in zip(requests, stems, strict=True)]
