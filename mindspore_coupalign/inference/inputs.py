"""What goes into a model: images read ahead in threads, in order, each once; and the requests of the command
``predict``, pairs of an image file and a sentence, from options or from a list.

Shapes: rgb (h, w, 3) uint8; pixels as the network takes them, without the batch.
"""

import glob
import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mindspore_coupalign.data.inputs import to_rgb, to_sentences
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.inference.predictions import distinct, image_stems, results_in, slug

_THREADS = 2
ENDINGS = (".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")  # taken from a folder
_PATTERN = "*?["


class Job(NamedTuple):
    """An image and a sentence, both ready for the network."""

    rgb: np.ndarray
    pixels: np.ndarray
    source: str  # the image's path; empty where it came from memory
    sentence: Any  # encoded


def source_of(image) -> str:
    """The path of an image that is a file or was opened from one; else an empty string."""
    if isinstance(image, (str, os.PathLike)):
        return os.fsdecode(image)
    return str(getattr(image, "filename", "") or "")


def read_ahead(pairs: Iterable, prepare: Callable, encode: Callable, ahead: int) -> Iterator[Job | UserError]:
    """A Job for every pair (image, sentence), or the UserError in its place.

    Args:
        prepare: rgb -> pixels.
        encode: sentence -> encoded; raises UserError.
        ahead: pairs that may be read before they are needed.
    """
    def read(image) -> tuple[np.ndarray, np.ndarray]:
        rgb = to_rgb(image)
        return rgb, prepare(rgb)

    waiting: deque[tuple[Future, str, str]] = deque()
    last: str | None = None  # the last pair's file
    future: Future = Future()
    with ThreadPoolExecutor(_THREADS, "coupalign-reader") as pool:
        try:
            for pair in pairs:
                image, text = _checked(pair)
                if not isinstance(image, (str, os.PathLike)):
                    last, future = None, _in_memory(image, prepare)
                elif os.fsdecode(image) != last:
                    last = os.fsdecode(image)
                    future = pool.submit(read, last)
                waiting.append((future, source_of(image), text))
                if len(waiting) > ahead:
                    yield _job(encode, *waiting.popleft())
            while waiting:
                yield _job(encode, *waiting.popleft())
        finally:  # also when the caller stops early
            for future, *_ in waiting:
                future.cancel()


def _in_memory(image, prepare: Callable) -> Future:
    """(rgb, pixels) of an image that its owner may change afterwards: copied at once."""
    future: Future = Future()
    try:
        rgb = to_rgb(image).copy()
        future.set_result((rgb, prepare(rgb)))
    except UserError as exc:
        future.set_exception(exc)
    return future


def _checked(pair) -> tuple:
    try:
        image, text = pair
    except (TypeError, ValueError) as exc:
        raise UserError(f"pairs: found {type(pair).__name__}; give (image, sentence) pairs") from exc
    if not isinstance(text, str):
        raise UserError(f"pairs: the sentence is {type(text).__name__}, not a text; give a pair per sentence")
    return image, text


def _job(encode: Callable, future: Future, source: str, text: str) -> Job | UserError:
    try:
        sentence = encode(to_sentences(text)[0])
        rgb, pixels = future.result()
    except UserError as exc:
        return exc
    return Job(rgb, pixels, source, sentence)


def in_batches(jobs: Iterable, size: int) -> Iterator[tuple[list, bool]]:
    """Lists of ``size`` jobs, each with whether it is the only one."""
    batch: list = []
    first = True
    for job in jobs:
        if len(batch) == size:
            yield batch, False
            batch, first = [], False
        batch.append(job)
    if batch:
        yield batch, first


@dataclass(frozen=True)
class Request:
    image: str  # path
    sentence: str
    number: int  # of the sentence among its image's, from 1
    stem: str = ""  # of the results' names, unique
    origin: str = ""  # file and line of the sentence, for errors


def of_options(images: list[str], sentences: list[str]) -> list[Request]:
    """Every sentence for every image; a file that is given twice counts once.
    Raises UserError: a folder without images, a pattern that matches no file, a blank sentence."""
    texts = to_sentences(sentences)
    if blank := [text for text in texts if not text.strip()]:
        raise UserError(f"--text {blank[0]!r}: empty; write what the mask shall cover, for example 'the red cup'")
    paths: dict = {}
    for image in images:
        for path in _files(image):
            paths.setdefault(os.path.abspath(path), path)
    return _named([Request(path, text, number) for path in paths.values() for number, text in enumerate(texts, 1)])


def of_list(path: str | Path) -> list[Request]:
    """A file of JSON lines {"image": path, "sentence": text}; relative paths begin at the file's folder.
    Raises UserError: the file cannot be read, or a line is no such record; only empty lines are skipped."""
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as exc:
        raise UserError(f"{path}: cannot be read ({exc.strerror})") from exc
    except UnicodeDecodeError as exc:
        raise UserError(f"{path}: not UTF-8 at byte {exc.start}; save the list as UTF-8") from exc
    requests: list = []
    counts: Counter[str] = Counter()
    for number, line in enumerate(lines, 1):
        if line.strip():
            image, sentence = _record(line, f"{path}: line {number}")
            file = os.path.join(path.parent, image)
            counts[file] += 1
            requests.append(Request(file, sentence, counts[file], origin=f"{path}: line {number}: "))
    if not requests:
        raise UserError(f'{path}: has no lines; write {{"image": "photo.jpg", "sentence": "the red cup"}} per line')
    return _named(requests)


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
    """The file itself, a folder's images, or the files that match a pattern; both without the masks and overlays that
    an earlier call wrote there."""
    if os.path.isdir(image):
        files = [entry.path for entry in os.scandir(image)
                 if entry.name.lower().endswith(ENDINGS) and not entry.name.startswith(".") and not entry.is_dir()]
        nothing = f"a folder without images ({', '.join(ENDINGS)}); give another folder, or files"
    elif any(letter in image for letter in _PATTERN) and not os.path.lexists(image):
        files = [path for path in glob.glob(image, recursive=True) if not os.path.isdir(path)]
        nothing = "no file matches this pattern; check it, or give the files"
    else:
        return [image]
    written = {folder: results_in(Path(folder)) for folder in {os.path.dirname(path) for path in files}}
    files = [path for path in sorted(files) if os.path.basename(path) not in written[os.path.dirname(path)]]
    if not files:
        raise UserError(f"{image}: {nothing}")
    return files


def _named(requests: list[Request]) -> list[Request]:
    paths = list(dict.fromkeys(request.image for request in requests))
    stem = dict(zip(paths, image_stems(paths), strict=True))
    stems = distinct([f"{stem[r.image]}_{r.number}_{slug(r.sentence)}" for r in requests])
    return [replace(request, stem=s) for request, s in zip(requests, stems, strict=True)]
