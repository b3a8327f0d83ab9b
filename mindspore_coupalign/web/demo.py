"""The web demo without its user interface: an image and sentences in; overlays, a record per sentence and files to
download out; and the example images.
"""

import contextlib
import json
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from mindspore_coupalign import visualize
from mindspore_coupalign.data.inputs import to_rgb
from mindspore_coupalign.data.refshapes.scenes import draw_scene, paint
from mindspore_coupalign.data.refshapes.sentences import claims, word
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.inference.inputs import ENDINGS
from mindspore_coupalign.inference.model import Model, notes_of
from mindspore_coupalign.inference.predictions import Prediction, slug

KEPT = 3600  # seconds after which the files of an answer are deleted
MOST = 24  # example images of a folder
_SEED, _SCENES, _SENTENCES = 20221128, 6, 2
_ENLARGED = 4  # times; the network resizes them back to the same pixels
_LEARNED = ("attribute", "side", "corner")  # kinds of cues that the shipped model handles well


@dataclass(frozen=True)
class Limits:
    """What one request may cost, so that others are served as well."""

    megapixels: int = 50  # of an image
    sentences: int = 16
    characters: int = 2000  # of all sentences together


class Answer(NamedTuple):
    overlays: list[str]  # paths of an image per sentence, with its caption
    records: list[dict]  # ready for JSON
    files: list[str]  # paths of each mask as PNG, then of answer.json
    attention: str | None  # path of the attention sheet; None where it was not requested


def segment(model: Model, image: str | None, text: str, threshold: float, attention: bool, limits: Limits,
           folder: Path) -> Answer:
    """Predict and write the files of one request into a folder of their own in ``folder``.

    Args:
        image: path of the uploaded file.
        text: a sentence per line.

    Raises:
        UserError: bad input, or what ``Model.predict`` raises; without paths of this machine.
    """
    if not isinstance(threshold, int | float) or not 0 < threshold < 1:
        raise UserError(f"the threshold must be a number between 0 and 1, found {threshold!r}")
    sentences = read_sentences(text, limits)
    if not image:
        raise UserError("no image: upload, paste or choose one first")
    check_pixels(image, limits)
    for sentence in sentences:  # all, before the first is computed
        model.check_sentence(sentence)
    try:
        rgb = to_rgb(image)
    except UserError as exc:  # without the path of the upload on the server
        raise UserError(str(exc).replace(image, "the image")) from exc
    predictions = [model.predict(rgb, sentence, threshold=threshold) for sentence in sentences]  # compiles one size
    forget_old(folder)
    return write_files(predictions, attention and predictions[0].details is not None, folder)


def check_place(image: str | None, places: list[Path]):
    """Raises UserError where a request's image, whose path a program may choose freely, lies in none of the resolved
    ``places``, folders or files."""
    if image and not any(Path(image).resolve().is_relative_to(place) for place in places):
        raise UserError("the image: not uploaded; upload it first, no other file of the server is read")


def read_sentences(text: str, limits: Limits) -> list[str]:
    """The lines that are not blank. Raises UserError for none, or more than the limits allow."""
    text = text or ""
    if len(text) > limits.characters:
        raise UserError(f"{len(text)} characters of text; at most {limits.characters} are accepted at once")
    sentences = [line.strip() for line in text.splitlines() if line.strip()]
    if not sentences:
        raise UserError("no sentence: write what the mask shall cover, for example 'the red circle'")
    if len(sentences) > limits.sentences:
        raise UserError(f"{len(sentences)} sentences; at most {limits.sentences} are accepted at once, one per line")
    return sentences


def check_pixels(path: str, limits: Limits):
    """Raises UserError for no image, or one beyond the limits by its header, before anything is decoded: a small file
    may decode to gigabytes."""
    if not Path(path).is_file():
        raise UserError("the image: no longer there; upload it again")
    if not Path(path).stat().st_size:
        raise UserError("the image: the file is empty")
    try:
        with Image.open(path) as image:
            width, height = image.size
    except UnidentifiedImageError as exc:
        raise UserError("the image: not an image file, or of an unknown format; give a JPEG, PNG or WebP") from exc
    except Image.DecompressionBombError as exc:  # beyond Pillow's own limit, which it checks first
        raise UserError(f"the image is far too large; at most {limits.megapixels} megapixels are accepted") from exc
    except (OSError, ValueError, SyntaxError) as exc:
        raise UserError("the image: the file is damaged; save it again") from exc
    if width * height > limits.megapixels * 1e6:
        raise UserError(f"the image has {width} x {height} pixels; at most {limits.megapixels} megapixels are accepted")


def record(prediction: Prediction) -> dict:
    """A prediction as JSON; box (x, y, width, height) and area in the image's pixels; exists and existence repeat
    has_target and target_probability under their earlier names."""
    height, width = prediction.mask.shape
    notes = notes_of(prediction)
    has_target, probability = prediction.has_target, prediction.target_probability
    probability = None if probability is None else round(probability, 4)
    if not has_target:
        notes.append("nothing predicted" + ("" if probability is None else f"; target probability {probability:.2f}"))
    return {"sentence": prediction.sentence, "has_target": has_target, "target_probability": probability,
            "exists": has_target, "existence": probability, "score": round(prediction.score, 4),
            "box": prediction.box, "area": prediction.area, "width": width, "height": height,
            "rle": prediction.rle(), "seconds": round(prediction.seconds, 4), "notes": notes}


def write_files(predictions: list[Prediction], attention: bool, folder: Path) -> Answer:
    own = Path(tempfile.mkdtemp(prefix="answer-", dir=folder))
    saved = [prediction.write(own / f"{number}_{slug(prediction.sentence)}")
             for number, prediction in enumerate(predictions, 1)]
    records, file, sheet = [record(p) for p in predictions], own / "answer.json", own / "attention.png"
    file.write_text(json.dumps(records, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    if attention:
        visualize.write_png(sheet, visualize.attention_sheet(predictions[0]))
    return Answer([str(files.overlay) for files in saved], records, [*(str(files.mask) for files in saved), str(file)],
                  str(sheet) if attention else None)


def forget_old(folder: Path, seconds: float = KEPT):
    """Remove the answers that are older than so many seconds."""
    for own in folder.glob("answer-*"):
        with contextlib.suppress(FileNotFoundError):  # another request removes it at this moment
            if time.time() - own.stat().st_mtime > seconds:
                shutil.rmtree(own, ignore_errors=True)


def shapes_examples(folder: Path) -> list[tuple[str, str]]:
    """(path, sentences, one per line) of RefShapes scenes that no training set has."""
    rng = np.random.default_rng(_SEED)
    examples: list[tuple[str, str]] = []
    while len(examples) < _SCENES:
        shapes = draw_scene(rng, 5)
        options = [claim for claim in claims(shapes) if claim.cue[0] in _LEARNED]
        if len({claim.target for claim in options}) < _SENTENCES:
            continue
        path = folder / f"scene_{len(examples) + 1}.png"
        cv2.imwrite(str(path), np.repeat(np.repeat(paint(rng, shapes)[..., ::-1], _ENLARGED, 0), _ENLARGED, 1))
        chosen: dict = {}
        for i in rng.permutation(len(options)):
            claim = options[i]
            chosen.setdefault(claim.target, word(claim, rng))
        examples.append((str(path), "\n".join(list(chosen.values())[:_SENTENCES])))
    return examples


def folder_examples(folder: Path) -> list[tuple[str, str]]:
    """(path, sentences) of a folder's images; sentences from its ``examples.jsonl`` ({"image", "sentence"} per line),
    where it exists."""
    if not folder.is_dir():
        raise UserError(f"--examples {folder}: no such folder")
    images = sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS)[:MOST]
    if not images:
        raise UserError(f"--examples {folder}: has no images ({', '.join(ENDINGS)})")
    texts: dict[str, list[str]] = {}
    file = folder / "examples.jsonl"
    if file.exists():
        for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            try:
                entry = json.loads(line)
                texts.setdefault(str(entry["image"]), []).append(str(entry["sentence"]))
            except (ValueError, KeyError, TypeError) as exc:
                raise UserError(f'{file}: line {number}: expected {{"image": …, "sentence": …}}') from exc
    return [(str(path), "\n".join(texts.get(path.name, []))) for path in images]
