"""``Model``: predicts the masks of what sentences refer to in images, whatever computes the logits.

Reading this module imports no MindSpore; the constructors that need it import it. Images (h, w, 3) uint8 RGB are
prepared and logits are resized exactly as ``evaluate`` does it; network.py has the network's shapes.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar, overload

import numpy as np
from tokenizers import Tokenizer

from mindspore_coupalign.config import Config
from mindspore_coupalign.data.inputs import shorten, to_rgb, to_sentences
from mindspore_coupalign.data.tokenizer import SPECIAL, SentenceTokenizer
from mindspore_coupalign.data.transforms import ImageTransform
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.inference.inputs import Job, in_batches, read_ahead, source_of
from mindspore_coupalign.inference.network import (
    ANY,
    InputSpec,
    Network,
    NetworkOutput,
    TargetRule,
    as_output,
    logit,
)
from mindspore_coupalign.inference.predictions import Prediction
from mindspore_coupalign.interrupts import Actions

BATCH_SIZE = 8
_PIXELS = BATCH_SIZE * 128**2  # of a batch on a CPU: more gains nothing there, and the full recipe takes 3 GiB each
_Self = TypeVar("_Self", bound="Model")


class _Encoded(NamedTuple):
    """A sentence, ready for the network."""

    text: str
    ids: np.ndarray  # (T,) int32
    word_mask: np.ndarray  # (T,) int32
    unknown: list[str]


class Model:
    """What ``coupalign.load`` returns. Threads may share a model; the network runs for one caller at a time.

    Args:
        network: see ``Network``.
        threshold: probability above which a pixel is in the mask.
        spec: what the network takes.
        explain: (pixels, ids, word_mask) -> NetworkOutput and a function (row, pieces) -> Details; None: no details.
        target_rule: when a sentence counts as having a target.
        lock: held while the network runs; None: one of its own.

    Attributes:
        size: side of the network's square input.
        max_tokens: word pieces that it reads, with [CLS] and [SEP].
        batch_size: default number of sentences that go through the network at once: 8, on a CPU fewer for large inputs
            (two at 256 pixels, one at 480); ``load`` sets 8 on an accelerator.
        compile_seconds: what compiling has taken so far.
        while_compiling: context manager factory that is entered while the network is compiled.
    """

    def __init__(self, network: Network, tokenizer: SentenceTokenizer, transform: ImageTransform, threshold: float,
                 spec: InputSpec = InputSpec(), explain: Callable | None = None,  # noqa: B008 - immutable
                 target_rule: TargetRule = TargetRule(), lock=None):  # noqa: B008
        self.threshold = threshold
        self.size, self.max_tokens = transform.size, tokenizer.max_tokens
        self.batch_size = max(1, min(BATCH_SIZE, _PIXELS // self.size**2))
        self.compile_seconds = 0.0
        self.while_compiling: Callable = contextlib.nullcontext
        self._network, self._explain, self._spec, self._target_rule = network, explain, spec, target_rule
        self._tokenizer, self._transform = tokenizer, transform
        self._vocabulary = Tokenizer.from_str(tokenizer.to_json())
        self._ready: set[int] = set()
        self._lock = lock or threading.RLock()

    @classmethod
    def from_checkpoint(cls: type[_Self], checkpoint, details: bool = False, amp: str | None = None,
                        config: Config | None = None) -> _Self:
        """From training's file (a path or a ``Checkpoint``), on the device that ``runtime.setup`` (or MindSpore itself)
        was given; see ``coupalign.load``. ``runtime.setup`` also chooses graph mode, in which a sentence takes a
        hundredth of the time.
        """
        from mindspore_coupalign import build
        from mindspore_coupalign.inference.cells import CellNetwork, Explainer, WithOutputs
        from mindspore_coupalign.weights.checkpoint import Checkpoint, load_checkpoint

        if not isinstance(checkpoint, Checkpoint):
            checkpoint = load_checkpoint(checkpoint)
        config = config or checkpoint.config
        cell, tokenizer = build.restore_model(checkpoint, config, amp)
        explain = Explainer(WithOutputs(cell), config.model.fusion.stages) if details else None
        return cls._configured(CellNetwork(cell), tokenizer, config, explain)

    @classmethod
    def from_model(cls: type[_Self], cell, tokenizer: SentenceTokenizer, config: Config) -> _Self:
        """From a network in memory and the configuration that it was built with.

        Args:
            cell: (image, ids, word_mask) tensors -> logits (B, 1, H, W), (logits, target_logits), or what
                CoupAlign.outputs returns, which gives predictions their details.
        """
        from mindspore_coupalign.inference.cells import CellNetwork, Explainer

        return cls._configured(CellNetwork(cell), tokenizer, config, Explainer(cell, config.model.fusion.stages))

    @classmethod
    def from_mindir(cls: type[_Self], path: str | Path) -> _Self:
        """From ``export``'s file and the .json beside it."""
        from mindspore_coupalign.inference.cells import LOCK
        from mindspore_coupalign.inference.mindir import load_mindir

        return cls.from_graph(*load_mindir(path), path, LOCK)

    @classmethod
    def from_graph(cls: type[_Self], network: Network, facts: dict, path: str | Path, lock=None) -> _Self:
        """From an exported graph that runs as ``network``, and its sidecar's facts."""
        tokenizer = SentenceTokenizer.from_json(facts["tokenizer"], facts["max_tokens"], str(path))
        transform = ImageTransform(facts["input_size"], facts["mean"], facts["std"])
        spec = InputSpec(facts["batch"] or ANY, facts["inputs"][0]["type"] == "uint8", facts["kind"] == "mindir")
        rule = TargetRule(facts["exists_threshold"], facts["min_pixels"])
        return cls(network, tokenizer, transform, facts["threshold"], spec, target_rule=rule, lock=lock)

    @classmethod
    def _configured(cls: type[_Self], network: Network, tokenizer: SentenceTokenizer, config: Config, explain) -> _Self:
        from mindspore_coupalign.inference.cells import LOCK

        return cls(network, tokenizer, ImageTransform(config.data.image_size, config.data.mean, config.data.std),
                   config.eval.threshold, explain=explain, lock=LOCK,
                   target_rule=TargetRule(config.eval.target_threshold, config.eval.min_pixels))

    @overload
    def predict(self, image, sentences: str, *, threshold: float | None = ..., strict: bool = ...) -> Prediction: ...

    @overload
    def predict(self, image, sentences: list[str], *, threshold: float | None = ...,
                strict: bool = ...) -> list[Prediction]: ...

    def predict(self, image, sentences: str | list[str], *, threshold: float | None = None,
                strict: bool = True) -> Prediction | list[Prediction]:
        """The mask of what each sentence refers to in one image, at the image's own size.

        Args:
            image: as ``data.inputs`` takes it: a path, a PIL image, or an array (h, w, 3) uint8 RGB (cv2 reads BGR).
            sentences: a string returns one Prediction, a list of strings returns a list.
            threshold: probability above which a pixel is in the mask; None: ``self.threshold``.
            strict: False also accepts sentences without any word of the vocabulary, as ``evaluate`` does.

        Raises:
            UserError: a bad image, a sentence that is not UTF-8, is empty or has no word of the vocabulary
                (``strict``), or the network returns non-finite numbers.
        """
        cut = self._cut(threshold)
        texts = to_sentences(sentences)
        rgb, source = to_rgb(image), source_of(image)
        encoded = [self._encode(text, strict) for text in texts]  # all, before the first is computed
        pixels = self._prepare(rgb)
        jobs = [Job(rgb, pixels, source, sentence) for sentence in encoded]
        most = self._spec.batch or self.batch_size
        predictions: list[Prediction] = []
        for start in range(0, len(jobs), most):
            part = jobs[start : start + most]
            for result in self._results(part, self._batch(len(part), most, True), cut):
                if isinstance(result, UserError):
                    raise result
                predictions.append(result)
        return predictions[0] if isinstance(sentences, str) else predictions

    def predict_many(self, pairs: Iterable[tuple], batch_size: int | None = None, *, threshold: float | None = None,
                     strict: bool = True, errors: str = "raise") -> Iterator[Prediction | UserError]:
        """The predictions of (image, sentence) pairs, in their order, computed in batches.

        Images are read ahead in threads, and once where neighbouring pairs share one; at most two batches of images are
        in memory. ``pairs`` may be endless: it is consumed as results are taken.

        Args:
            batch_size: pairs that go through the network at once; None: ``self.batch_size``. A graph of a fixed batch
                takes its own.
            errors: "raise" raises a pair's UserError at its turn, after the predictions before it; "return" yields the
                error in place of the prediction and continues.

        Raises:
            UserError: immediately for a wrong argument; at a pair's turn what ``predict`` raises.
        """
        batch_size = self.batch_size if batch_size is None else batch_size
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, found {batch_size}")
        if errors not in ("raise", "return"):
            raise UserError(f"errors must be 'raise' or 'return', found {errors!r}")
        return self._many(pairs, self._spec.batch or batch_size, self._cut(threshold), strict, errors == "raise")

    def _many(self, pairs, batch_size, cut, strict, raises) -> Iterator:
        jobs = read_ahead(pairs, self._prepare, lambda text: self._encode(text, strict), batch_size)
        for batch, last in in_batches(jobs, batch_size):
            good = [job for job in batch if isinstance(job, Job)]
            results = self._results(good, self._batch(len(good), batch_size, last), cut) if good else iter(())
            for job in batch:
                result = next(results) if isinstance(job, Job) else job
                if raises and isinstance(result, UserError):
                    raise result
                yield result

    def warm_up(self, batch_size: int = 1):
        """Compile now rather than at the first call: for ``predict_many``'s batch size, or 1 for single sentences."""
        with self._lock:
            self._compile(self._spec.batch or batch_size)

    def check_sentence(self, text: str):
        """Raises UserError where ``predict`` would for the sentence."""
        self._encode(to_sentences(text)[0], True)

    def _cut(self, threshold: float | None) -> float:
        value = self.threshold if threshold is None else threshold
        if not (isinstance(value, int | float | np.floating) and 0 < value < 1):
            raise UserError(f"threshold must lie between 0 and 1, found {value!r}")
        return logit(value)

    def _batch(self, number: int, most: int, alone: bool) -> int:
        """The size of the batch that holds ``number`` <= ``most`` pairs. A network that is compiled for each size gets
        powers of two, or, when other batches came before, their size."""
        if self._spec.batch == ANY:
            return number
        return min(most, 1 << (number - 1).bit_length()) if alone and not self._spec.batch else most

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
        return self._transform.resize(rgb) if self._spec.uint8 else self._transform.image(rgb)

    def _results(self, jobs: list[Job], size: int, cut: float) -> Iterator[Prediction | UserError]:
        """One result per job, made when it is taken: masks of large images need not be in memory together."""
        output, details, share = self._compute(jobs, size)
        for k, job in enumerate(jobs):
            yield self._result(job, output, share, cut, details, k)

    def _compute(self, jobs: list[Job], size: int) -> tuple[NetworkOutput, Callable | None, float]:
        """Output and details of one batch of ``size``, padded with its last job, and the seconds per job."""
        rows = [*jobs, *[jobs[-1]] * (size - len(jobs))]
        pixels = np.stack([job.pixels for job in rows])
        ids, word_mask = (np.stack([getattr(job.sentence, name) for job in rows]) for name in ("ids", "word_mask"))
        with self._lock:
            self._compile(size)
            started = time.perf_counter()
            output, details = self._run(pixels, ids, word_mask)
            return output, details, (time.perf_counter() - started) / len(jobs)

    def _run(self, pixels, ids, word_mask) -> tuple[NetworkOutput, Callable | None]:
        actions = Actions(signal.SIGINT)
        try:
            network = self._explain or (lambda *inputs: (self._network(*inputs), None))
            result, details = network(pixels, ids, word_mask)
            return as_output(result), details
        finally:
            actions.restore()

    def _compile(self, size: int):
        size = 1 if self._spec.batch == ANY else size  # one compilation serves all sizes
        if size in self._ready or not self._spec.compiles:
            return
        started = time.perf_counter()
        side = self.size
        ids, word_mask = self._tokenizer([""] * size)
        shape, kind = ((size, side, side, 3), np.uint8) if self._spec.uint8 else ((size, 3, side, side), np.float32)
        with self.while_compiling():
            self._run(np.zeros(shape, kind), ids, word_mask)
        self.compile_seconds += time.perf_counter() - started
        self._ready.add(size)

    def _result(self, job: Job, output: NetworkOutput, share: float, cut: float, details,
                row: int) -> Prediction | UserError:
        sentence, logits, target = job.sentence, output.logits[row, 0], output.target_logit(row)
        if not (np.isfinite(logits).all() and np.isfinite(target or 0.0)):  # the mask would be silently empty
            return UserError(f"sentence {shorten(sentence.text)}: the network's output is non-finite (NaN or "
                             "infinity); compute in float32 (amp O0), or take another checkpoint")
        started = time.perf_counter()
        full = self._transform.inverse(logits, job.rgb.shape[:2])
        mask = full > cut
        if mask.any() and not self._target_rule(mask, target):
            mask = np.zeros_like(mask)
        probability = _sigmoid(full)
        seconds = share + time.perf_counter() - started
        truncated = int(self._tokenizer.lengths([sentence.text])[0]) > self.max_tokens
        seen = details(row, self._pieces(sentence.ids, sentence.word_mask)) if details else None
        return Prediction(sentence.text, mask, probability, seconds, sentence.unknown, truncated, seen, job.rgb,
                          job.source, None if target is None else float(_sigmoid(np.array([target]))[0]))


def _is_word(piece: str) -> bool:
    return piece not in SPECIAL and any(letter.isalnum() for letter in piece)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    """In place: an image of 100 megapixels leaves no room for copies."""
    np.clip(logits, -80, 80, out=logits)
    np.negative(logits, out=logits)
    np.exp(logits, out=logits)
    logits += 1
    return np.reciprocal(logits, out=logits)


def list_words(words: list[str]) -> str:
    """At most ten words, shortened, for a message."""
    shown = ", ".join(word if len(word) <= 40 else f"{word[:40]}..." for word in words[:10])
    return shown if len(words) <= 10 else f"{shown} and {len(words) - 10} more"


def notes_of(prediction: Prediction) -> list[str]:
    """What the reader of a mask should know about its sentence."""
    notes = []
    if prediction.unknown:
        notes.append(f"not in the network's vocabulary, read as unknown: {list_words(prediction.unknown)}")
    if prediction.truncated:
        notes.append("longer than the network reads; its end was cut off")
    return notes


class Predictor(Model):
    """A Model whose ``predict`` always returns a list, for programs written for earlier versions."""

    def predict(self, image, sentences: str | list[str], strict: bool = True, *,  # type: ignore[override]
                threshold: float | None = None) -> list[Prediction]:
        texts = [sentences] if isinstance(sentences, str) else sentences
        return super().predict(image, texts, threshold=threshold, strict=strict)
