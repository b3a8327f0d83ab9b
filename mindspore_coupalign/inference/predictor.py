"""``Predictor``: masks of what sentences name in a picture, from a checkpoint, a MINDIR or a network in memory.

Shapes: image (h, w, 3) uint8 RGB; mask (h, w) bool; probability (h, w) float32; the network sees (1, 3, H, W).
The image is prepared and the logits are turned back exactly as ``evaluate`` does it.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import nn
from tokenizers import Tokenizer

from mindspore_coupalign import build
from mindspore_coupalign.data.inputs import shorten, to_rgb, to_sentences
from mindspore_coupalign.data.tokenizer import SPECIAL, SentenceTokenizer
from mindspore_coupalign.data.transforms import ImageTransform
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.evaluation.metrics import logit
from mindspore_coupalign.inference.mindir import load_mindir
from mindspore_coupalign.weights.checkpoint import load_checkpoint


@dataclass(frozen=True, eq=False)
class Details:
    """What the network looked at; a stage's map has the side of that stage."""

    pieces: list[str]  # the sentence's word pieces with [CLS] and [SEP], n
    attention: dict[int, np.ndarray]  # stage -> (n, side, side), pixels' attention over the pieces, mean over heads
    proposals: np.ndarray  # (N, side, side) mask proposals; N = 0 without sentence-mask alignment
    weights: np.ndarray  # (N,) the sentence's weights of the proposals, sum 1


@dataclass(frozen=True, eq=False)
class Prediction:
    sentence: str
    mask: np.ndarray  # (h, w) bool
    probability: np.ndarray  # (h, w) float32, 0..1
    seconds: float  # network and resizing, without loading and compiling
    unknown: list[str]  # words that the vocabulary cannot spell
    truncated: bool  # the sentence is longer than the network reads
    details: Details | None = None

    @property
    def score(self) -> float:
        """How sure the network is: the mean probability inside the mask, from the threshold to 1; 0 for an empty mask.
        It is not calibrated: no share of right masks."""
        return float(self.probability[self.mask].mean(dtype=np.float64)) if self.mask.any() else 0.0


class Predictor:
    """``predict(image, sentences)``; compiles the network at the first call.

    Args:
        network: (image, ids, word_mask) -> logits (1, 1, H, W), or a tuple of CoupAlign.outputs.
        threshold: probability from which a pixel is in the mask.
        wpa_stages: stages whose attention ``network`` returns.
    """

    def __init__(self, network, tokenizer: SentenceTokenizer, transform: ImageTransform, threshold: float,
                 wpa_stages: tuple[int, ...] = ()):
        self._network, self._tokenizer, self._transform = network, tokenizer, transform
        self._cut = logit(threshold)
        self._stages = sorted(wpa_stages)
        self._vocabulary = Tokenizer.from_str(tokenizer.to_json())
        self.compile_seconds = 0.0

    @classmethod
    def from_checkpoint(cls, path: str | Path, details: bool = False, amp: str | None = None) -> "Predictor":
        """From training's file. With ``details``, predictions say what the network looked at. ``amp`` is the level of
        mixed precision (default: the one that training has on this device). ``runtime.setup`` before chooses the device
        and graph mode, in which a sentence takes a hundredth of the time.

        Raises:
            UserError: missing, damaged or not a checkpoint of this project.
        """
        checkpoint = load_checkpoint(path)
        model, tokenizer = build.restore_model(checkpoint, amp=amp)
        return cls.from_model(_Outputs(model) if details else model, tokenizer, checkpoint.config)

    @classmethod
    def from_model(cls, network, tokenizer: SentenceTokenizer, config) -> "Predictor":
        """From a network in memory and the Config that it was built with."""
        transform = ImageTransform(config.data.image_size, config.data.mean, config.data.std)
        return cls(network, tokenizer, transform, config.eval.threshold, config.model.wpa_stages)

    @classmethod
    def from_mindir(cls, path: str | Path) -> "Predictor":
        """From ``export``'s file and the .json beside it.

        Raises:
            UserError: one of the two is missing or damaged, or they do not belong together.
        """
        graph, facts = load_mindir(path)
        tokenizer = SentenceTokenizer.from_json(facts["tokenizer"], facts["max_tokens"], str(path))
        transform = ImageTransform(facts["input_size"], facts["mean"], facts["std"])
        return cls(graph, tokenizer, transform, facts["threshold"])

    def predict(self, image, sentences: str | list[str], strict: bool = True) -> list[Prediction]:
        """One prediction per sentence, at the image's own size.

        Args:
            image: (h, w, 3) uint8 RGB (cv2 reads BGR), (h, w, 4) RGBA, (h, w) or (h, w, 1) grey, (h, w, 2) grey with
                alpha, all uint8; a file's path or a PIL image, both turned by their EXIF orientation, masks included.
                Transparency is composed on white.
            sentences: a list of texts; a single text counts as a list of one.
            strict: False takes sentences without a word that the network knows as well, as ``evaluate`` does.

        Raises:
            UserError: the image is none of these (``data.inputs``), a sentence is no UTF-8, it is empty or has no word
                of the vocabulary (``strict``), or the network answers with non-finite numbers.
        """
        sentences = to_sentences(sentences)
        image = to_rgb(image)
        encoded = [self._encode(sentence, strict) for sentence in sentences]  # all, before the first is computed
        if not self.compile_seconds:
            self._compile()
        pixels = self._transform.image(image)[None]
        return [self._predict(image, pixels, s, *parts) for s, parts in zip(sentences, encoded, strict=True)]

    def _encode(self, sentence: str, strict: bool) -> tuple:
        """ids and word_mask (1, T), unknown words."""
        ids, word_mask = self._tokenizer([sentence])
        unknown = self._tokenizer.unknown(sentence)
        if strict and not any(self._is_word(piece) for piece in self._pieces(ids, word_mask)):
            start = f"sentence {shorten(sentence)}: "
            if any(letter.isalnum() for word in unknown for letter in word):
                raise UserError(f"{start}none of its words is in the network's vocabulary ({list_words(unknown)}); use "
                                "words of the data that it was trained on")
            reason = "empty" if word_mask.sum() == 2 else "no words"  # [CLS] and [SEP]
            raise UserError(f"{start}{reason}; write what the mask shall cover, for example 'the red cup'")
        return ids, word_mask, unknown

    def _pieces(self, ids, word_mask) -> list[str]:
        return [self._vocabulary.id_to_token(int(i)) for i in ids[word_mask > 0]]

    @staticmethod
    def _is_word(piece: str) -> bool:
        return piece not in SPECIAL and any(letter.isalnum() for letter in piece)

    def _compile(self):
        started = time.perf_counter()
        ids, word_mask = self._tokenizer([""])
        self._run(np.zeros((1, 3, self._transform.size, self._transform.size), np.float32), ids, word_mask)
        self.compile_seconds = time.perf_counter() - started

    def _run(self, pixels, ids, word_mask) -> list:
        """Logits (H, W), and after them whatever else the network returns, as arrays."""
        result = self._network(ms.Tensor(pixels), ms.Tensor(ids), ms.Tensor(word_mask))
        logits, *others = result if isinstance(result, tuple) else (result,)
        return [logits.asnumpy()[0, 0], *others]

    def _predict(self, image, pixels, sentence, ids, word_mask, unknown) -> Prediction:
        started = time.perf_counter()
        logits, *others = self._run(pixels, ids, word_mask)
        if not np.isfinite(logits).all():  # a mask of them would be empty without a word
            raise UserError(f"sentence {shorten(sentence)}: the network's output is non-finite (NaN or infinity); "
                            "compute in float32 (--amp O0), or take another checkpoint")
        full = self._transform.inverse(logits, image.shape[:2])
        mask = full > self._cut
        probability = _sigmoid(full)
        seconds = time.perf_counter() - started
        truncated = int(self._tokenizer.lengths([sentence])[0]) > self._tokenizer.max_tokens
        details = self._details(self._pieces(ids, word_mask), *others) if others else None
        return Prediction(sentence, mask, probability, seconds, unknown, truncated, details)

    def _details(self, pieces, _, proposals, weights, attention, *__) -> Details:
        stages = {stage: _square(of_heads.asnumpy()[0].mean(0).T)[: len(pieces)]
                  for stage, of_heads in zip(self._stages, attention, strict=True)}
        if proposals is None:
            return Details(pieces, stages, np.zeros((0, 1, 1), np.float32), np.zeros(0, np.float32))
        return Details(pieces, stages, _square(proposals.asnumpy()[0].T), weights.asnumpy()[0])


class _Outputs(nn.Cell):
    """The network with its intermediates as one graph."""

    def __init__(self, model):
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, image, ids, word_mask):
        return self.model.outputs(image, ids, word_mask)


def _square(rows: np.ndarray) -> np.ndarray:
    """(n, side²) -> (n, side, side)."""
    side = round(rows.shape[1] ** 0.5)
    return rows.reshape(-1, side, side)


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
