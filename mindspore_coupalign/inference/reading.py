"""Pictures and sentences on their way to the network: read ahead in threads, in order, each picture once.

Shapes: rgb (h, w, 3) uint8; pixels as the network takes them, without the batch.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from mindspore_coupalign.data.inputs import to_rgb, to_sentences
from mindspore_coupalign.errors import UserError

_THREADS = 2


class Job(NamedTuple):
    """A picture with a sentence, both ready for the network."""

    rgb: np.ndarray
    pixels: np.ndarray
    source: str  # the picture's path; empty where it came from memory
    sentence: Any  # encoded


def source_of(image) -> str:
    """The path of an image that is given as a file or was opened from one; else nothing."""
    if isinstance(image, (str, os.PathLike)):
        return os.fsdecode(image)
    return str(getattr(image, "filename", "") or "")


def read_ahead(pairs: Iterable, prepare: Callable, encode: Callable, ahead: int) -> Iterator[Job | UserError]:
    """Of every pair (image, sentence) the job, or the error in its place.

    Args:
        prepare: rgb -> pixels.
        encode: sentence -> encoded; raises UserError.
        ahead: pairs that may be read before they are asked for.
    """
    waiting: deque[tuple[Future, str, str]] = deque()
    with ThreadPoolExecutor(_THREADS, "coupalign-reader") as pool:
        reader = _Reader(pool, prepare)
        try:
            for pair in pairs:
                image, text = _checked(pair)
                waiting.append((reader(image), source_of(image), text))
                if len(waiting) > ahead:
                    yield _job(encode, *waiting.popleft())
            while waiting:
                yield _job(encode, *waiting.popleft())
        finally:  # also when nobody asks for more
            for future, *_ in waiting:
                future.cancel()


class _Reader:
    """image -> future of (rgb, pixels). Files are read in threads; what is in memory is taken at once, for its owner
    may draw the next picture into it."""

    def __init__(self, pool: ThreadPoolExecutor, prepare: Callable):
        self._pool, self._prepare = pool, prepare
        self._last: str | np.ndarray | None = None
        self._future: Future = Future()

    def __call__(self, image) -> Future:
        if isinstance(image, (str, os.PathLike)):
            path = os.fsdecode(image)
            if not (isinstance(self._last, str) and self._last == path):
                self._last, self._future = path, self._pool.submit(self._read, path)
            return self._future
        future: Future = Future()
        try:
            rgb = to_rgb(image)
        except UserError as exc:
            self._last = None
            future.set_exception(exc)
            return future
        if not (isinstance(self._last, np.ndarray) and np.array_equal(rgb, self._last)):
            rgb = rgb.copy()
            future.set_result((rgb, self._prepare(rgb)))
            self._last, self._future = rgb, future
        return self._future

    def _read(self, path: str) -> tuple[np.ndarray, np.ndarray]:
        rgb = to_rgb(path)
        return rgb, self._prepare(rgb)


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
    """Lists of ``size`` jobs, and of each whether it is all that there is."""
    batch: list = []
    first = True
    for job in jobs:
        if len(batch) == size:
            yield batch, False
            batch, first = [], False
        batch.append(job)
    if batch:
        yield batch, first
