"""One question to the page: a picture and some sentences -> pictures, a record of each sentence, files to download."""

import contextlib
import json
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mindspore_coupalign.data.inputs import to_rgb
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.inference import names
from mindspore_coupalign.inference.model import Model, list_words
from mindspore_coupalign.inference.prediction import Prediction
from mindspore_coupalign.visualize import figures
from mindspore_coupalign.visualize.attention import attention_sheet

KEPT = 3600  # seconds after which an answer's files are deleted


@dataclass(frozen=True)
class Limits:
    """What one question may cost: a page for many has to answer the next one as well."""

    megabytes: int = 20  # of an uploaded file
    megapixels: int = 50  # of a picture
    sentences: int = 16
    characters: int = 2000  # of all sentences together


class Answer(NamedTuple):
    overlays: list[str]  # paths of a picture of each sentence, with its caption
    records: list[dict]  # ready for JSON
    files: list[str]  # paths of each mask as PNG, then of answer.json
    attention: str | None  # path of what each word looked at; None where it was not asked for


def answer(model: Model, image: str | None, text: str, threshold: float, attention: bool, limits: Limits,
           folder: Path) -> Answer:
    """The page's whole work, without the page.

    Args:
        image: path of the uploaded file.
        text: a sentence per line.
        folder: where a folder for this answer's files is made.

    Raises:
        UserError: nothing to do, too much of it, or what ``Model.predict`` raises; names nothing of this machine.
    """
    if not isinstance(threshold, int | float) or not 0 < threshold < 1:
        raise UserError(f"the threshold must be a number between 0 and 1, found {threshold!r}")
    sentences = read_sentences(text, limits)
    if not image:
        raise UserError("no picture: upload, paste or choose one first")
    check_pixels(image, limits)
    for sentence in sentences:  # all, before the first is computed
        model.check_sentence(sentence)
    try:
        rgb = to_rgb(image)
    except UserError as exc:  # the name is the upload's in a folder of the server's
        raise UserError(str(exc).replace(image, "the picture")) from exc
    found = [model.predict(rgb, sentence, threshold=threshold) for sentence in sentences]  # one size is compiled
    forget_old(folder)
    return write_files(found, attention and found[0].details is not None, folder)


def check_place(image: str | None, places: list[Path]):
    """A question names its picture, where it has one, by a path, which a program may choose freely.

    Args:
        places: resolved folders of uploads, and further files that may be read.

    Raises:
        UserError: the path leads elsewhere.
    """
    if image and not any(Path(image).resolve().is_relative_to(place) for place in places):
        raise UserError("the picture: not uploaded; upload it first, no other file of the server is read")


def read_sentences(text: str, limits: Limits) -> list[str]:
    """The lines that are not blank.

    Raises:
        UserError: none, or more than the limits allow.
    """
    if len(text or "") > limits.characters:
        raise UserError(f"{len(text)} characters of text; at most {limits.characters} are taken at once")
    sentences = [line.strip() for line in (text or "").splitlines() if line.strip()]
    if not sentences:
        raise UserError("no sentence: write what the mask shall cover, for example 'the red circle'")
    if len(sentences) > limits.sentences:
        raise UserError(f"{len(sentences)} sentences; at most {limits.sentences} are taken at once, one per line")
    return sentences


def check_pixels(path: str, limits: Limits):
    """Look at the size in the file's header, before anything is decoded: a small file may unfold into gigabytes.

    Raises:
        UserError: no picture, or one beyond the limits.
    """
    from PIL import Image, UnidentifiedImageError

    if not Path(path).is_file():
        raise UserError("the picture: not there any more; upload it again")
    if not Path(path).stat().st_size:
        raise UserError("the picture: the file is empty")
    try:
        with Image.open(path) as image:
            width, height = image.size
    except UnidentifiedImageError as exc:
        raise UserError("the picture: no image file, or of a form that is not known; give a JPEG, PNG or WebP") from exc
    except Image.DecompressionBombError as exc:  # beyond Pillow's own limit, which it checks first
        raise UserError(f"the picture is far too large; at most {limits.megapixels} megapixels are taken") from exc
    except (OSError, ValueError, SyntaxError) as exc:
        raise UserError("the picture: the file is damaged; save it again") from exc
    if width * height > limits.megapixels * 1e6:
        raise UserError(f"the picture has {width} x {height} pixels; at most {limits.megapixels} megapixels are taken")


def record(found: Prediction) -> dict:
    """What a program reads off the answer; box (x, y, width, height) and area in the picture's pixels."""
    height, width = found.mask.shape
    notes = []
    if found.unknown:
        notes.append(f"not in the network's vocabulary: {list_words(found.unknown)}")
    if found.truncated:
        notes.append("longer than the network reads; its end was cut off")
    existence = None if found.existence is None else round(found.existence, 4)
    if not found.exists:
        chance = "" if existence is None else f"; the probability that the sentence means anything is {existence:.2f}"
        notes.append(f"nothing predicted{chance}")
    return {"sentence": found.sentence, "exists": found.exists, "existence": existence,
            "score": round(found.score, 4), "box": found.box, "area": found.area, "width": width, "height": height,
            "rle": found.rle(), "seconds": round(found.seconds, 4), "notes": notes}


def write_files(found: list[Prediction], attention: bool, folder: Path) -> Answer:
    """Everything that the page shows or gives, in a folder of its own."""
    own = Path(tempfile.mkdtemp(prefix="answer-", dir=folder))
    records, overlays, masks = [record(p) for p in found], [], []
    for number, prediction in enumerate(found, 1):
        saved = prediction.write(own / f"{number}_{names.slug(prediction.sentence)}")
        overlays.append(str(saved.overlay))
        masks.append(str(saved.mask))
    file, sheet = own / "answer.json", own / "attention.png"
    file.write_text(json.dumps(records, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    if attention:
        figures.write_png(sheet, attention_sheet(found[0]))
    return Answer(overlays, records, [*masks, str(file)], str(sheet) if attention else None)


def forget_old(folder: Path, seconds: float = KEPT):
    """Remove the answers that nobody is looking at any more."""
    for own in folder.glob("answer-*"):
        with contextlib.suppress(FileNotFoundError):  # another question removes it at this moment
            if time.time() - own.stat().st_mtime > seconds:
                shutil.rmtree(own, ignore_errors=True)
