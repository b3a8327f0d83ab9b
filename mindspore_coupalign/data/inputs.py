"""What a program may hand to ``Predictor.predict``: what has one meaning is converted, the rest is refused by name.

Image: a file's path; a PIL image; an array (h, w), (h, w, 1), (h, w, 2), (h, w, 3) or (h, w, 4) uint8, which is grey,
grey, grey + alpha, RGB, RGBA. Result: (h, w, 3) uint8 RGB, contiguous. Transparency is composed on white.
"""

import os
import sys
from collections.abc import Iterable, Mapping

import numpy as np

from mindspore_coupalign.data.images import compose, read_rgb
from mindspore_coupalign.errors import UserError, one_line

_WANTED = "give (h, w, 3) uint8 RGB with values 0..255, a PIL image or a file's path"
_SHOWN = 80  # characters of a sentence in a message


def to_rgb(image) -> np.ndarray:
    """(h, w, 3) uint8 RGB of whatever ``image`` is (see above). Files and PIL images are turned by their EXIF tag.

    Raises:
        UserError: the file cannot be read; no uint8 (0..1, 0..255 and normalised floats cannot be told apart for
            certain); another shape.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_rgb(os.fsdecode(image), upright=True)
    pil = sys.modules.get("PIL.Image")  # not imported unless the object's own program did
    if pil is not None and isinstance(image, pil.Image):
        return _of_pil(image)
    try:
        pixels = np.asarray(image)
    except Exception as exc:  # whatever a foreign object's conversion raises
        raise UserError(f"image: {type(image).__name__} cannot become an array ({one_line(exc)}); {_WANTED}") from exc
    _check_shape(pixels.shape, type(image).__name__)
    _check_type(pixels)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    channels = pixels.shape[2]
    rgb = np.ascontiguousarray(pixels[..., :3] if channels > 2 else pixels[..., :1].repeat(3, axis=2))
    return rgb if channels % 2 else compose(rgb, pixels[..., -1])


def to_sentences(sentences) -> list[str]:
    """The list of texts; one text becomes a list of one.

    Raises:
        UserError: no list of texts, an empty list, or a text that cannot be written as UTF-8.
    """
    if isinstance(sentences, str):
        sentences = [sentences]
    if isinstance(sentences, (bytes, Mapping)) or not isinstance(sentences, Iterable):
        raise UserError(f"sentences: found {type(sentences).__name__}; give a text or a list of texts")
    texts = list(sentences)
    if not texts:
        raise UserError("sentences: the list is empty; give at least one")
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"sentences[{number}]: found {type(text).__name__}, not a text")
        try:
            text.encode()
        except UnicodeEncodeError as exc:
            code = ord(text[exc.start])
            what = f"byte 0x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"U+{code:04X} (half a character)"
            raise UserError(f"sentence {shorten(text)}: {what} at character {exc.start + 1} is not UTF-8; write the "
                            "sentence in UTF-8") from exc
    return [str(text) for text in texts]


def shorten(sentence: str) -> str:
    """The sentence in quotes for a line of text, its end left out where it is very long."""
    return repr(sentence) if len(sentence) <= _SHOWN else f"{sentence[:_SHOWN]!r}..."


def _of_pil(image) -> np.ndarray:
    from PIL import ImageOps

    if image.mode in ("I", "F"):  # 16-bit files are I;16, whose range is known
        raise UserError(f"image: a PIL image of mode {image.mode!r} has no known range; scale it to 0..255 and convert "
                        "it to mode 'L' or 'RGB'")
    if min(image.size) == 0:
        raise UserError(f"image: a PIL image of {image.size[0]} x {image.size[1]} pixels has nothing to see")
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):
            return (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)[..., None].repeat(3, axis=2)
        if image.mode in ("LA", "La", "P", "PA", "RGBA", "RGBa") or "transparency" in image.info:
            rgba = np.asarray(image.convert("RGBA"))
            return compose(np.ascontiguousarray(rgba[..., :3]), rgba[..., 3])
        return np.array(image.convert("RGB"))
    except Exception as exc:  # files are decoded only now, and PIL's decoders raise many kinds
        name = getattr(image, "filename", "") or "image"
        raise UserError(f"{name}: PIL cannot decode it ({one_line(exc)}); replace the file") from exc


def _check_shape(shape: tuple, kind: str):
    text = f"image: {kind} of shape {shape}"
    if len(shape) == 4:
        raise UserError(f"{text} is a batch; give one image at a time, for example image[0]")
    if len(shape) not in (2, 3) or 0 in shape:
        raise UserError(f"{text} is no image; {_WANTED}")
    if len(shape) == 3 and not 1 <= shape[2] <= 4:
        if shape[0] <= 4:
            raise UserError(f"{text} has its channels first; give image.transpose(1, 2, 0)")
        raise UserError(f"{text} has {shape[2]} channels; give 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA)")


def _check_type(pixels: np.ndarray):
    if pixels.dtype == np.uint8:
        return
    text = f"image: an array of {pixels.dtype}"
    if pixels.dtype == bool:
        raise UserError(f"{text} looks like a mask; if it is a black and white image, give "
                        "255 * image.astype(np.uint8)")
    if pixels.dtype.kind not in "iuf":
        raise UserError(f"{text} is no image; {_WANTED}")
    if not np.isfinite(pixels).all():
        raise UserError(f"{text} holds non-finite values (NaN or infinity); {_WANTED}")
    raise UserError(f"{text} with values {pixels.min():.4g} to {pixels.max():.4g}, not uint8; give it as it was before "
                    "it was normalised or scaled, (h, w, 3) uint8 RGB with values 0..255")
