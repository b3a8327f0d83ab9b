"""Command ``predict``: segment what a sentence names in one photograph, with a checkpoint or a MINDIR.

Shapes: image (h, w, 3) uint8 RGB; mask (h, w) bool; probability (h, w) float32; the network sees (1, 3, H, W).
The image is prepared and the logits are turned back exactly as ``evaluate`` does it.
"""

import argparse
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import nn
from tokenizers import Tokenizer

from mindspore_coupalign import build, figures, runtime
from mindspore_coupalign.checkpoint import load_checkpoint
from mindspore_coupalign.data.images import read_rgb
from mindspore_coupalign.data.tokenizer import SPECIAL, SentenceTokenizer
from mindspore_coupalign.data.transforms import ImageTransform
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.export import load_mindir
from mindspore_coupalign.metrics import logit
from mindspore_coupalign.outputs import make_folder


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


class Predictor:
    """``predict(image, sentences)``; compiles the network at the first call.

    Args:
        network: (image, ids, word_mask) -> logits (1, 1, H, W), or a tuple of CoupAlign.forward's results.
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
        return cls.from_model(_Forward(model) if details else model, tokenizer, checkpoint.config)

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

    def predict(self, image: np.ndarray, sentences: list[str]) -> list[Prediction]:
        """One prediction per sentence, at the image's own size.

        Args:
            image: (h, w, 3) uint8 RGB.

        Raises:
            UserError: a sentence is empty, or the vocabulary has none of its words.
        """
        encoded = [self._encode(sentence) for sentence in sentences]  # all are checked before the first is computed
        if not self.compile_seconds:
            self._compile()
        pixels = self._transform.image(image)[None]
        return [self._predict(image, pixels, s, *parts) for s, parts in zip(sentences, encoded, strict=True)]

    def _encode(self, sentence: str) -> tuple:
        """ids and word_mask (1, T), unknown words."""
        ids, word_mask = self._tokenizer([sentence])
        if word_mask.sum() == 2:  # [CLS] and [SEP]
            raise UserError(f"sentence {sentence!r}: empty; write what the mask shall cover, for example 'the red cup'")
        unknown = self._tokenizer.unknown(sentence)
        if unknown and not any(self._is_word(piece) for piece in self._pieces(ids, word_mask)):
            raise UserError(f"sentence {sentence!r}: none of its words is in the network's vocabulary "
                            f"({', '.join(unknown)}); use words of the data that it was trained on")
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
        full = self._transform.inverse(logits, image.shape[:2])
        mask = full > self._cut
        probability = 1 / (1 + np.exp(-np.clip(full, -80, 80)))
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


class _Forward(nn.Cell):
    """The network with its intermediates as one graph."""

    def __init__(self, model):
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, image, ids, word_mask):
        return self.model.forward(image, ids, word_mask)


def _square(rows: np.ndarray) -> np.ndarray:
    """(n, side²) -> (n, side, side)."""
    side = round(rows.shape[1] ** 0.5)
    return rows.reshape(-1, side, side)


def add_arguments(parser: argparse.ArgumentParser):
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", metavar="FILE", help="best.safetensors or last.safetensors of a run")
    source.add_argument("--mindir", metavar="FILE", help="what `export` wrote, with its .json beside it")
    parser.add_argument("--image", required=True, metavar="FILE", help="photograph; its EXIF orientation is respected")
    parser.add_argument("--text", required=True, action="append", metavar="SENTENCE",
                        help="what to segment; may be given several times")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the masks and pictures")
    parser.add_argument("--attention", action="store_true",
                        help="also draw which words each pixel read, and the mask proposals (with --checkpoint)")
    runtime.add_device_argument(parser)
    runtime.add_amp_argument(parser)


def run(args: argparse.Namespace) -> int:
    if args.attention and args.mindir:
        raise UserError("--attention needs --checkpoint: a MINDIR holds the mask alone")
    if args.amp and args.mindir:
        raise UserError("--amp needs --checkpoint: a MINDIR computes in the precision that `export --amp` gave it")
    image = read_rgb(args.image, upright=True)
    output = make_folder(args.output)
    started = time.perf_counter()
    runtime.setup(args.device_target, 0)
    predictor = (Predictor.from_mindir(args.mindir) if args.mindir
                 else Predictor.from_checkpoint(args.checkpoint, args.attention, args.amp))
    loaded = time.perf_counter() - started
    found = predictor.predict(image, args.text)
    print(f"{args.image}: {image.shape[1]} x {image.shape[0]} pixels; loaded in {loaded:.1f} s, "
          f"compiled in {predictor.compile_seconds:.1f} s")
    for number, prediction in enumerate(found, 1):
        for warning in warnings(prediction):
            print(f"warning: {prediction.sentence!r}: {warning}", file=sys.stderr)
        stem = output / f"{Path(args.image).stem}_{number}_{_slug(prediction.sentence)}"
        figures.write_png(f"{stem}_mask.png", prediction.mask.astype(np.uint8) * 255)
        figures.write_png(f"{stem}_overlay.png", figures.overlay(image, prediction.mask, prediction.sentence))
        if prediction.details is not None:
            figures.write_png(f"{stem}_attention.png", draw_details(image, prediction.details))
        print(f"{number}. {prediction.sentence!r}: {describe_mask(prediction.mask)}; "
              f"{1000 * prediction.seconds:.0f} ms; {stem}_mask.png")
    return 0


def warnings(prediction: Prediction) -> list[str]:
    """What the reader of a mask should know about its sentence."""
    found = []
    if prediction.unknown:
        found.append(f"not in the network's vocabulary, read as unknown: {', '.join(prediction.unknown)}")
    if prediction.truncated:
        found.append("longer than the network reads; its end was cut off")
    return found


def describe_mask(mask: np.ndarray) -> str:
    """The mask's share of the image and its bounding box, x and y from the top left, ends included."""
    if not mask.any():
        return "nothing found (empty mask)"
    y, x = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return f"{100 * mask.mean():.1f} % of the image, x {x[0]}-{x[-1]}, y {y[0]}-{y[-1]}"


def draw_details(image: np.ndarray, details: Details) -> np.ndarray:
    """One sheet: a row of word maps for each aligned stage, then the proposals that the sentence weighs most.

    Every panel has its own colour range, which its note gives.
    """
    columns = len(details.pieces)
    panels = [figures.caption(figures.heat(image, values), f"stage {stage}: {piece}",
                              f"{values.min():.2f} to {values.max():.2f}")
              for stage, maps in details.attention.items() for piece, values in zip(details.pieces, maps, strict=True)]
    panels += [figures.caption(figures.heat(image, details.proposals[n]), f"proposal {n}",
                               f"weight {details.weights[n]:.3f}; {details.proposals[n].min():.1f} to "
                               f"{details.proposals[n].max():.1f}")
               for n in np.argsort(-details.weights, kind="stable")[:columns]]
    return figures.contact_sheet(panels or [figures.caption(image, "no alignment in this network")], columns)


def _slug(sentence: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", sentence.lower()).strip("-")[:40].strip("-") or "text"
