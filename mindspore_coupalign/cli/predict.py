"""Command ``predict``: segment what sentences name in photographs, with a checkpoint or a MINDIR.

Per image and sentence ``<image>_<n>_<sentence>_mask.png`` (0 or 255) and ``_overlay.png``, n the sentence's number. No
two results of a call share a name, and files that are there already stay unless ``--overwrite`` is given.
"""

import argparse
import hashlib
import itertools
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mindspore_coupalign import runtime
from mindspore_coupalign.data.images import read_rgb
from mindspore_coupalign.data.inputs import shorten, to_sentences
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.inference.predictor import Details, Prediction, Predictor, list_words
from mindspore_coupalign.outputs import check_absent, make_folder
from mindspore_coupalign.visualize import figures

__all__ = ["Details", "Prediction", "Predictor", "describe_mask", "draw_details", "warnings"]
_SLUG, _STEM = 40, 80  # the most characters of a sentence, and bytes of an image's name, in a file's name
_CAPTION = 300  # characters of a sentence under its picture


def add_arguments(parser: argparse.ArgumentParser):
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", metavar="FILE", help="best.safetensors or last.safetensors of a run")
    source.add_argument("--mindir", metavar="FILE", help="what `export` wrote, with its .json beside it")
    parser.add_argument("--image", required=True, action="extend", nargs="+", metavar="FILE",
                        help="photographs (JPEG, PNG, WebP, TIFF, ...); turned by their EXIF orientation, masks "
                        "included; transparency is composed on white; may be given several times")
    parser.add_argument("--text", required=True, action="append", metavar="SENTENCE",
                        help="what to segment in every image; may be given several times")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the masks and pictures")
    parser.add_argument("--overwrite", action="store_true",
                        help="replace masks and pictures in DIR; without it, nothing is computed where one exists")
    parser.add_argument("--attention", action="store_true",
                        help="also draw which words each pixel read, and the mask proposals (with --checkpoint)")
    runtime.add_device_argument(parser)
    runtime.add_amp_argument(parser)


def run(args: argparse.Namespace) -> int:
    """0: all images are done; 1: some, the others are named; 2 (or UserError): none."""
    if args.attention and args.mindir:
        raise UserError("--attention needs --checkpoint: a MINDIR holds the mask alone")
    if args.amp and args.mindir:
        raise UserError("--amp needs --checkpoint: a MINDIR computes in the precision that `export --amp` gave it")
    texts = to_sentences(args.text)
    if blank := [text for text in texts if not text.strip()]:
        raise UserError(f"--text {blank[0]!r}: empty; write what the mask shall cover, for example 'the red cup'")
    paths = list({os.path.abspath(path): path for path in args.image}.values())  # a file given twice is one
    output = Path(args.output)
    stems = [[f"{image}_{number}_{_slug(text)}" for number, text in enumerate(texts, 1)] for image in _stems(paths)]
    kinds = ("mask", "overlay", "attention") if args.attention else ("mask", "overlay")
    if not args.overwrite:
        check_absent(output / f"{stem}_{kind}.png" for stem in itertools.chain(*stems) for kind in kinds)
    images = _read(paths, stems)
    first = next(images, None)
    if first is None:
        return 2
    make_folder(output)
    started = time.perf_counter()
    runtime.setup(args.device_target, 0)
    predictor = (Predictor.from_mindir(args.mindir) if args.mindir
                 else Predictor.from_checkpoint(args.checkpoint, args.attention, args.amp))
    loaded = time.perf_counter() - started
    done = 0
    for path, names, image in itertools.chain([first], images):
        found = predictor.predict(image, texts)
        times = "" if done else f"; loaded in {loaded:.1f} s, compiled in {predictor.compile_seconds:.1f} s"
        print(f"{path}: {image.shape[1]} x {image.shape[0]} pixels{times}")
        for number, (prediction, name) in enumerate(zip(found, names, strict=True), 1):
            _write(image, prediction, output / name, number, warn=not done)
        done += 1
    return int(done < len(paths))


def _read(paths: list[str], stems: list) -> Iterator[tuple[str, list[str], np.ndarray]]:
    """Path, names of its results and pixels of every image that can be read; the others are named on stderr."""
    for path, names in zip(paths, stems, strict=True):
        try:
            image = read_rgb(path, upright=True)
        except UserError as exc:
            print(f"error: {exc}", file=sys.stderr)
            continue
        yield path, names, image


def _write(image: np.ndarray, prediction: Prediction, stem: Path, number: int, warn: bool):
    """The result's files and its line. Warnings concern the sentence alone: once for all images."""
    sentence = prediction.sentence
    for warning in warnings(prediction) if warn else ():
        print(f"warning: {shorten(sentence)}: {warning}", file=sys.stderr)
    figures.write_png(f"{stem}_mask.png", prediction.mask.astype(np.uint8) * 255)
    text = sentence if len(sentence) <= _CAPTION else f"{sentence[:_CAPTION]}..."
    note = f"score {prediction.score:.2f}" if prediction.mask.any() else ""
    figures.write_png(f"{stem}_overlay.png", figures.overlay(image, prediction.mask, text, note=note))
    if prediction.details is not None:
        figures.write_png(f"{stem}_attention.png", draw_details(image, prediction.details))
    print(f"{number}. {shorten(sentence)}: {describe_mask(prediction.mask)}; score {prediction.score:.2f}; "
          f"{1000 * prediction.seconds:.0f} ms; {stem}_mask.png")


def warnings(prediction: Prediction) -> list[str]:
    """What the reader of a mask should know about its sentence."""
    found = []
    if prediction.unknown:
        found.append(f"not in the network's vocabulary, read as unknown: {list_words(prediction.unknown)}")
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


def _stems(paths: list[str]) -> list[str]:
    """A name per image, no two alike even where capitals do not count: the file's, with its folder's and its ending
    where two files share one, with a number where that does not tell them apart."""
    files = [Path(os.path.abspath(path)) for path in paths]
    same = Counter(file.stem.casefold() for file in files)
    names = [_short(file.stem if same[file.stem.casefold()] == 1 else f"{file.parent.name}_{file.name}")
             for file in files]
    taken = {name.casefold() for name in names}
    seen = set()
    for i, name in enumerate(names):
        number = 1
        while names[i].casefold() in seen or (number > 1 and names[i].casefold() in taken):
            number += 1
            names[i] = f"{name}-{number}"
        seen.add(names[i].casefold())
    return names


def _slug(sentence: str) -> str:
    """The sentence as part of a file's name: its letters and digits, of any script. What loses more than ASCII's
    punctuation gets some digits of its checksum, so that other sentences have other names."""
    words = re.sub(r"[\W_]+", "-", sentence.lower()).strip("-")
    try:
        os.fsencode(words)
    except UnicodeEncodeError:  # a file system that knows no Unicode
        words = re.sub(r"[^a-z0-9]+", "-", words).strip("-")
    slug = words[:_SLUG].strip("-")
    lost = [letter for letter in set(sentence.lower()) if letter not in slug and not letter.isascii()]
    if slug and len(words) <= _SLUG and not lost:
        return slug
    return f"{slug or 'text'}-{_checksum(sentence)}"


def _short(name: str) -> str:
    """A name that leaves room for the sentence: file systems take 255 bytes."""
    raw = os.fsencode(name)
    return name if len(raw) <= _STEM else f"{raw[:_STEM].decode('utf-8', 'ignore')}-{_checksum(name)}"


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]
