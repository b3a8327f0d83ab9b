"""Pictures to try the page with: scenes of RefShapes that no training set has, or a folder of one's own."""

import json
from pathlib import Path

import cv2
import numpy as np

from mindspore_coupalign.data.refshapes.scenes import draw_scene, paint
from mindspore_coupalign.data.refshapes.sentences import claims, word
from mindspore_coupalign.errors import UserError

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
MOST = 24
_SEED, _SCENES, _SENTENCES = 20221128, 6, 2
_ENLARGED = 4  # times; the network resizes them back to the very same pixels
_LEARNED = ("attribute", "side", "corner")  # sorts of cues that the shipped model answers well


def shapes_examples(folder: Path) -> list[tuple[str, str]]:
    """(path, sentences, one per line) of drawn scenes."""
    rng = np.random.default_rng(_SEED)
    found: list[tuple[str, str]] = []
    while len(found) < _SCENES:
        shapes = draw_scene(rng, 5)
        options = [claim for claim in claims(shapes) if claim.cue[0] in _LEARNED]
        if len({claim.target for claim in options}) < _SENTENCES:
            continue
        path = folder / f"scene_{len(found) + 1}.png"
        cv2.imwrite(str(path), np.repeat(np.repeat(paint(rng, shapes)[..., ::-1], _ENLARGED, 0), _ENLARGED, 1))
        chosen: dict = {}
        for i in rng.permutation(len(options)):
            claim = options[i]
            chosen.setdefault(claim.target, word(claim, rng))
        found.append((str(path), "\n".join(list(chosen.values())[:_SENTENCES])))
    return found


def folder_examples(folder: Path) -> list[tuple[str, str]]:
    """(path, sentences) of a folder's pictures; sentences from its ``examples.jsonl`` ({"image", "sentence"} per line)
    where there is one, else none.

    Raises:
        UserError: no folder, no pictures, or a damaged examples.jsonl.
    """
    if not folder.is_dir():
        raise UserError(f"--examples {folder}: no such folder")
    pictures = sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS)[:MOST]
    if not pictures:
        raise UserError(f"--examples {folder}: holds no pictures ({', '.join(ENDINGS)})")
    texts: dict[str, list[str]] = {}
    file = folder / "examples.jsonl"
    if file.exists():
        for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            try:
                entry = json.loads(line)
                texts.setdefault(str(entry["image"]), []).append(str(entry["sentence"]))
            except (ValueError, KeyError, TypeError) as exc:
                raise UserError(f'{file}: line {number}: expected {{"image": …, "sentence": …}}') from exc
    return [(str(path), "\n".join(texts.get(path.name, []))) for path in pictures]
