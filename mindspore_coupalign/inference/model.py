"""``Model``: masks of what sentences name in pictures, whatever computes the logits. Needs no MindSpore itself.

Shapes: image (h, w, 3) uint8 RGB; the network sees pixels (B, 3, H, W) float32, or (B, H, W, 3) uint8 where it
normalises itself, ids and word_mask (B, T) int32, and answers with logits (B, 1, H, W) float32 and, where it has a
head for it, exists (B,) float32.
The image is prepared and the logits are turned back exactly as ``evaluate`` does it.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol, overload

import numpy as np
from tokenizers import Tokenizer

from mindspore_coupalign.data.inputs import shorten, to_rgb, to_sentences
from mindspore_coupalign.data.tokenizer import SPECIAL, SentenceTokenizer
from mindspore_coupalign.data.transforms import ImageTransform
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.evaluation.answer import Answer, Existence, answer_of, logit
from mindspore_coupalign.inference.prediction import Details, Prediction
from mindspore_coupalign.inference.reading import Job, in_batches, read_ahead, source_of
from mindspore_coupalign.interrupts import Actions

BATCH_SIZE = 8
_PIXELS = BATCH_SIZE * 128**2  # of a batch on a CPU: more gains nothing there, and the full recipe takes 3 GiB each
ANY = 0  # a network's batch: any size, each as good as another


class Network(Protocol):
    """What computes answers: a checkpoint's network, a MINDIR, an ONNX file. A plain function will do."""

    def __call__(self, image: np.ndarray, ids: np.ndarray, word_mask: np.ndarray) -> Answer | tuple | np.ndarray:
        """Logits (B, 1, H, W), or (logits, exists (B,)), of pixels, ids (B, T) int32 and word_mask (B, T) int32."""


class Shape(NamedTuple):
    """What a network takes."""

    batch: int | None = None  # ANY; a number: exactly that many; None: any number, but each is compiled first
    uint8: bool = False  # pixels (B, H, W, 3) uint8, not normalised
    compiles: bool = True  # at its first call


COMPILED, BY_ITSELF = Shape(), Existence()


@dataclass(frozen=True)
class _Encoded:
    """A sentence, ready for the network."""

    text: str
    ids: np.ndarray  # (T,) int32
    word_mask: np.ndarray  # (T,) int32
    unknown: list[str]


class Model:
    """What ``coupalign.load`` returns. ``predict`` and ``predict_many`` may be called from several threads: the network
    runs for one after the other.

    Args:
        network: see ``Network``.
        threshold: probability from which a pixel is in the mask.
        explain: (pixels, ids, word_mask) -> Answer and a function (row, pieces) -> Details; None: no details.
        existence: when a sentence counts as meaning something.
        lock: held while the network runs; None: one of its own.

    Attributes:
        size: side of the network's square input.
        max_tokens: word pieces that it reads, with [CLS] and [SEP].
        batch_size: sentences that go through the network at once where nothing else is asked for: 8, fewer where the
            input is large, for a CPU (two at 256 pixels, one at 480); ``load`` sets 8 on an accelerator.
        compile_seconds: what compiling has taken so far.
        while_compiling: context manager factory that is entered while the network is compiled.
    """

    def __init__(self, network: Network, tokenizer: SentenceTokenizer, transform: ImageTransform, threshold: float,
                 shape: Shape = COMPILED, explain: Callable | None = None, existence: Existence = BY_ITSELF,
                 lock=None):
        self.threshold = threshold
        self.size, self.max_tokens = transform.size, tokenizer.max_tokens
        self.batch_size = max(1, min(BATCH_SIZE, _PIXELS // self.size**2))
        self.compile_seconds = 0.0
        self.while_compiling: Callable = contextlib.nullcontext
        self._network, self._explain, self._shape, self._existence = network, explain, shape, existence
        self._tokenizer, self._transform = tokenizer, transform
        self._vocabulary = Tokenizer.from_str(tokenizer.to_json())
        self._ready: set[int] = set()
        self._lock = lock or threading.RLock()

    @overload
    def predict(self, image, sentences: str, *, threshold: float | None = ..., strict: bool = ...) -> Prediction: ...

    @overload
    def predict(self, image, sentences: list[str], *, threshold: float | None = ...,
                strict: bool = ...) -> list[Prediction]: ...

    def predict(self, image, sentences: str | list[str], *, threshold: float | None = None,
                strict: bool = True) -> Prediction | list[Prediction]:
        """What each sentence names in one picture, at the picture's own size.

        Args:
            image: a file's path or a PIL image, both turned by their EXIF orientation, masks included; or an array, all
                uint8: (h, w, 3) RGB (cv2 reads BGR), (h, w, 4) RGBA, (h, w) or (h, w, 1) grey, (h, w, 2) grey with
                alpha. Transparency is composed on white.
            sentences: one text, answered by one Prediction, or a list of texts, answered by a list.
            threshold: probability from which a pixel is in the mask; None: ``self.threshold``.
            strict: False takes sentences without a word that the network knows as well, as ``evaluate`` does.

        Raises:
            UserError: the image is none of these (``data.inputs``), a sentence is no UTF-8, it is empty or has no word
                of the vocabulary (``strict``), or the network answers with non-finite numbers.
        """
        cut = self._cut(threshold)
        texts = to_sentences(sentences)
        rgb, source = to_rgb(image), source_of(image)
        encoded = [self._encode(text, strict) for text in texts]  # all, before the first is computed
        pixels = self._prepare(rgb)
        jobs = [Job(rgb, pixels, source, sentence) for sentence in encoded]
        most = self._shape.batch or self.batch_size
        found: list[Prediction] = []
        for start in range(0, len(jobs), most):
            part = jobs[start : start + most]
            for result in self._answer(part, self._batch(len(part), most), cut):
                if isinstance(result, UserError):
                    raise result
                found.append(result)
        return found[0] if isinstance(sentences, str) else found

    def predict_many(self, pairs: Iterable[tuple], batch_size: int | None = None, *, threshold: float | None = None,
                     strict: bool = True, errors: str = "raise") -> Iterator[Prediction | UserError]:
        """The predictions of (image, sentence) pairs, one by one and in their order, computed in batches.

        Pictures are read ahead in threads, a batch of them, and once where neighbouring pairs have the same one: two
        batches of pictures are in memory at a time. ``pairs`` may be endless: it is consumed as results are taken.

        Args:
            pairs: of what ``predict`` takes, one sentence each.
            batch_size: pairs that go through the network at once; None: ``self.batch_size``. A graph of a fixed batch
                takes its own.
            threshold, strict: as for ``predict``.
            errors: "raise" raises a pair's UserError at its turn, after the predictions before it; "return" yields the
                error in the prediction's place and goes on.

        Raises:
            UserError: at once: a wrong argument. At its turn: what ``predict`` raises.
        """
        batch_size = self.batch_size if batch_size is None else batch_size
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, found {batch_size}")
        if errors not in ("raise", "return"):
            raise UserError(f"errors must be 'raise' or 'return', found {errors!r}")
        return self._many(pairs, self._shape.batch or batch_size, self._cut(threshold), strict, errors == "raise")

    def _many(self, pairs, batch_size, cut, strict, raises) -> Iterator:
        jobs = read_ahead(pairs, self._prepare, lambda text: self._encode(text, strict), batch_size)
        for batch, last in in_batches(jobs, batch_size):
            good = [job for job in batch if isinstance(job, Job)]
            answers = self._answer(good, self._batch(len(good), batch_size, last), cut) if good else iter(())
            for job in batch:
                result = next(answers) if isinstance(job, Job) else job
                if raises and isinstance(result, UserError):
                    raise result
                yield result

    def warm_up(self, batch_size: int = 1):
        """Compile now rather than at the first call, for ``predict_many``'s batch size, or 1 for single sentences."""
        with self._lock:
            self._compile(self._shape.batch or batch_size)

    def check_sentence(self, text: str):
        """Raises UserError where ``predict`` would for the sentence."""
        self._encode(to_sentences(text)[0], True)

    def _cut(self, threshold: float | None) -> float:
        value = self.threshold if threshold is None else threshold
        if not (isinstance(value, int | float | np.floating) and 0 < value < 1):
            raise UserError(f"threshold must lie between 0 and 1, found {value!r}")
        return logit(value)

    def _batch(self, number: int, wanted: int, alone: bool = True) -> int:
        """The size of the batch that ``number`` pairs are put into. A network that is compiled for each size sees
        powers of two; when more pairs came before, the batch that is compiled already."""
        if self._shape.batch == ANY:
            return number
        if self._shape.batch:
            return self._shape.batch
        return min(wanted, 1 << (number - 1).bit_length()) if alone and number <= wanted else wanted

    def _encode(self, text: str, strict: bool) -> _Encoded:
        ids, word_mask = self._tokenizer([text])
        unknown = self._tokenizer.unknown(text)
        if strict and not any(_is_word(piece) for piece in self._pieces(ids[0], word_mask[0])):
            start = f"sentence {shorten(text)}: "
            if any(letter.isalnum() for word in unknown for letter in word):
                raise UserError(f"{start}none of its words is in the network's vocabulary ({list_words(unknown)}); use "
                                "words of the data that it was trained on")
            reason = "empty" if word_mask.sum() == 2 else "no words"  # [CLS] and [SEP]
            raise UserError(f"{start}{reason}; write what the mask shall cover, for example 'the red cup'")
        return _Encoded(text, ids[0], word_mask[0], unknown)

    def _pieces(self, ids, word_mask) -> list[str]:
        return [self._vocabulary.id_to_token(int(i)) or "" for i in ids[word_mask > 0]]

    def _prepare(self, rgb: np.ndarray) -> np.ndarray:
        return self._transform.resize(rgb) if self._shape.uint8 else self._transform.image(rgb)

    def _answer(self, jobs: list[Job], size: int, cut: float) -> Iterator[Prediction | UserError]:
        """Of each job, made as it is taken: masks of large pictures need not all be there at once."""
        for start in range(0, len(jobs), size):
            part = jobs[start : start + size]
            answer, details, share = self._compute(part, size)
            for k, job in enumerate(part):
                yield self._result(job, answer, share, cut, details, k)

    def _compute(self, jobs: list[Job], size: int) -> tuple[Answer, Callable | None, float]:
        """Answer and details of jobs in one batch of ``size``, and a job's share of the seconds; what is missing of the
        batch repeats the last one."""
        rows = [*jobs, *[jobs[-1]] * (size - len(jobs))]
        pixels = np.stack([job.pixels for job in rows])
        ids, word_mask = (np.stack([getattr(job.sentence, name) for job in rows]) for name in ("ids", "word_mask"))
        with self._lock:
            self._compile(size)
            started = time.perf_counter()
            answer, details = self._run(pixels, ids, word_mask)
            return answer, details, (time.perf_counter() - started) / len(jobs)

    def _run(self, pixels, ids, word_mask) -> tuple[Answer, Callable | None]:
        actions = Actions(signal.SIGINT)
        try:
            if self._explain is not None:
                result, details = self._explain(pixels, ids, word_mask)
                return answer_of(result), details
            return answer_of(self._network(pixels, ids, word_mask)), None
        finally:
            actions.restore()

    def _compile(self, size: int):
        size = 1 if self._shape.batch == ANY else size  # one compilation serves all sizes
        if size in self._ready or not self._shape.compiles:
            return
        started = time.perf_counter()
        side = self.size
        ids, word_mask = self._tokenizer([""] * size)
        shape, kind = ((size, side, side, 3), np.uint8) if self._shape.uint8 else ((size, 3, side, side), np.float32)
        with self.while_compiling():
            self._run(np.zeros(shape, kind), ids, word_mask)
        self.compile_seconds += time.perf_counter() - started
        self._ready.add(size)

    def _result(self, job: Job, answer: Answer, share: float, cut: float, details, row: int) -> Prediction | UserError:
        sentence, logits, exists = job.sentence, answer.logits[row, 0], answer.existence(row)
        if not (np.isfinite(logits).all() and np.isfinite(exists or 0.0)):  # its mask would be empty without a word
            return UserError(f"sentence {shorten(sentence.text)}: the network's output is non-finite (NaN or "
                             "infinity); compute in float32 (amp O0), or take another checkpoint")
        started = time.perf_counter()
        full = self._transform.inverse(logits, job.rgb.shape[:2])
        mask = full > cut
        if mask.any() and not self._existence(mask, exists):
            mask = np.zeros_like(mask)
        probability = _sigmoid(full)
        seconds = share + time.perf_counter() - started
        truncated = int(self._tokenizer.lengths([sentence.text])[0]) > self.max_tokens
        seen = details(row, self._pieces(sentence.ids, sentence.word_mask)) if details else None
        return Prediction(sentence.text, mask, probability, seconds, sentence.unknown, truncated, seen, job.rgb,
                          job.source, None if exists is None else float(_sigmoid(np.array([exists]))[0]))


def _is_word(piece: str) -> bool:
    return piece not in SPECIAL and any(letter.isalnum() for letter in piece)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    """In place: a photograph of 100 megapixels has no room for copies."""
    np.clip(logits, -80, 80, out=logits)
    np.negative(logits, out=logits)
    np.exp(logits, out=logits)
    logits += 1
    return np.reciprocal(logits, out=logits)


def list_words(words: list[str]) -> str:
    """A few words for a line of text."""
    shown = ", ".join(word if len(word) <= 40 else f"{word[:40]}..." for word in words[:10])
    return shown if len(words) <= 10 else f"{shown} and {len(words) - 10} more"


def square(rows: np.ndarray) -> np.ndarray:
    """(n, side²) -> (n, side, side)."""
    side = round(rows.shape[1] ** 0.5)
    return rows.reshape(-1, side, side)


__all__ = ["ANY", "BATCH_SIZE", "Details", "Model", "Network", "Prediction", "Shape", "list_words", "square"]
