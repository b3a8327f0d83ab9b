"""Images of an import, found below the image folder or stored when the form has them inside; painted masks.

h, w image size in pixels, as stored in the file (an EXIF orientation is not applied, as everywhere in training).
"""

import io
import os
import re
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from mindspore_coupalign.data.images import decode_rgb, exif_orientation, read_bytes
from mindspore_coupalign.data.importers.records import BadRecord, shown
from mindspore_coupalign.errors import UserError

_ANNOTATION_SUFFIX = re.compile(r"^(COCO_\w+?_\d{12})_\d+(\.\w+)$")  # REFER's refs: ..._000000000154_49986.jpg


class Pictures:
    """The image folder.

    Args:
        folder: None: the form has the images inside, and they are stored in ``store``.
        deeper: take an image from a folder one level deeper as well, where only one has it.
    """

    def __init__(self, folder: Path | None, store: Path, deeper: bool = False):
        self.folder, self.store = folder, store
        self._below = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder else []
        self._deeper = deeper
        self._found: dict[str, str] = {}
        self._sizes: dict[str, tuple[int, int]] = {}
        self.orientation: dict[str, int] = {}  # EXIF's, 1 to 8, of the images that were opened

    def find(self, name: str) -> str:
        """The name below the folder of the image that a record calls ``name``.

        Backslashes, folders that are not there and REFER's annotation suffix are put right.

        Raises:
            BadRecord: no such file.
        """
        if name not in self._found:
            self._found[name] = self._search(name)
        return self._found[name]

    def _search(self, name: str) -> str:
        if not name.strip() or "\0" in name:
            raise BadRecord(f"the image's name is {shown(name)}")
        folder, plain = self.folder or self.store, name.replace("\\", "/")
        if Path(plain).is_absolute():
            try:
                plain = Path(plain).resolve().relative_to(folder.resolve()).as_posix()
            except ValueError:
                raise BadRecord(f"image {name} lies outside --images {folder}; name a folder above it") from None
        if ".." in PurePosixPath(plain).parts:
            raise BadRecord(f"image {shown(name)} leaves the image folder {folder}; name a folder above it with "
                            "--images")
        last = PurePosixPath(plain).name
        bare = _ANNOTATION_SUFFIX.sub(r"\1\2", last)
        for candidate in dict.fromkeys((plain, last, bare)):
            if os.path.isfile(folder / candidate):
                return candidate
        deeper = [f"{below}/{bare}" for below in self._below if os.path.isfile(folder / below / bare)]
        if self._deeper and len(deeper) == 1:
            return deeper[0]
        hint = f"but {' and '.join(deeper)} does" if deeper else "is --images the images' folder?"
        raise BadRecord(f"image {folder / plain} does not exist; {hint}")

    def size(self, name: str) -> tuple[int, int]:
        """(h, w) of a found image, which is decoded for it. Raises BadRecord when it cannot be."""
        if name not in self._sizes:
            path = (self.folder or self.store) / name
            try:
                content = read_bytes(path)
                height, width = decode_rgb(content, path).shape[:2]
            except UserError as exc:
                raise BadRecord(str(exc)) from exc
            self._sizes[name] = height, width
            self.orientation[name] = exif_orientation(content)
        return self._sizes[name]

    def compare(self, name: str, size: tuple[int, ...], what: str):
        """Raise BadRecord when ``size`` (h, w) of ``what`` is not the image's."""
        h, w = self.size(name)
        if size != (h, w):
            turned = size == (w, h) and self.orientation[name] >= 5
            why = ("the image is stored on its side (EXIF orientation), and masks must lie on the stored pixels: "
                   "store it upright, for example with `mogrify -auto-orient`" if turned else
                   "they must be of one size")
            raise BadRecord(f"{what} is {size[1]} x {size[0]} pixels and image {name} {w} x {h}; {why}")

    def keep(self, name: str, content: bytes) -> str:
        """Store an image's bytes under a name, once; returns the name. Only where there is no image folder."""
        if self.folder is not None:
            return self.find(name)
        name = _ANNOTATION_SUFFIX.sub(r"\1\2", PurePosixPath(name.replace("\\", "/")).name)
        if not name or name in (".", "..") or "\0" in name:
            raise BadRecord(f"the image's name is {shown(name)}")
        if name not in self._found:
            (self.store / name).write_bytes(content)
            try:
                self.size(name)
            except BadRecord:
                (self.store / name).unlink()
                raise
            self._found[name] = name
        return name


def read_mask_file(file: Path, value=None) -> np.ndarray:
    """As ``read_mask``, also if the file cannot be read."""
    try:
        content = file.read_bytes()
    except (OSError, ValueError) as exc:
        raise BadRecord(f"mask image {file} cannot be read ({getattr(exc, 'strerror', None) or exc}); name the masks' "
                        "folder with --masks") from exc
    return read_mask(content, f"mask image {file}", value)


def read_mask(content: bytes, what: str, value=None) -> np.ndarray:
    """A painted mask, (h, w) uint8 0 or 1.

    Grey and indexed images hold 0 and one other value, or dark and bright (from 128 on) with grey along the outline;
    images with transparency hold the object where they are opaque; coloured ones black and one other colour.
    ``value`` names the object's grey value, index or colour [r, g, b] where there are several.

    Raises:
        BadRecord: no image, or several values and no word which is the object's.
    """
    pixels, is_index = _pixels(content, what)
    if value is not None:
        return _equals(pixels, value, what)
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4):
        alpha = pixels[..., -1]
        if alpha.min() < 128 <= alpha.max():  # painted on a transparent layer
            return (alpha >= 128).astype(np.uint8)
        pixels = pixels[..., :-1]
    if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., 0]
    if pixels.ndim == 3:
        colours = np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)
        if len(colours) <= 2 and (not colours[0].any() or len(colours) == 1):
            return pixels.any(axis=2).astype(np.uint8)
        raise _several(what, [colour.tolist() for colour in colours])
    values = np.unique(pixels)
    if values.max() <= 1 or (len(values) == 2 and values[0] == 0):
        return (pixels > 0).astype(np.uint8)
    mask = (pixels >= 128).astype(np.uint8)
    square = np.ones((7, 7), np.uint8)
    outline = cv2.dilate(mask, square) - cv2.erode(mask, square)  # soft brushes and JPEG leave grey along it
    if is_index or values.max() < 128 or ((pixels >= 32) & (pixels < 224) & (outline == 0)).any():
        raise _several(what, values.tolist())
    return mask


def _pixels(content: bytes, what: str) -> tuple[np.ndarray, bool]:
    """(h, w) or (h, w, c) uint8, and whether they are indices into a palette.

    Pillow and not OpenCV reads masks: OpenCV gives an indexed image's colours, which may all be black.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            if image.mode.startswith(("I", "F")):
                deep = np.asarray(image, np.float64)
                return np.round(deep / max(deep.max() / 255, 1)).astype(np.uint8), False
            known = image.mode in ("1", "L", "P", "LA", "RGB", "RGBA")
            return np.asarray(image if known else image.convert("RGBA")).astype(np.uint8), image.mode == "P"
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as exc:
        raise BadRecord(f"{what} is not a complete image ({str(exc)[:80]}); save it again as PNG") from exc


def _equals(pixels: np.ndarray, value, what: str) -> np.ndarray:
    wanted = value if isinstance(value, list) else [value]
    channels = pixels[..., None] if pixels.ndim == 2 else pixels
    if not all(type(number) is int for number in wanted) or len(wanted) not in (1, 3):
        raise BadRecord(f"field 'mask_value' must be a number or a colour [r, g, b]; found {shown(value)}")
    if len(wanted) == 3 and channels.shape[2] < 3:
        raise BadRecord(f"field 'mask_value' is a colour, but {what} is grey")
    return (channels[..., : max(len(wanted), min(3, channels.shape[2]))] == wanted).all(axis=2).astype(np.uint8)


def _several(what: str, values: list) -> BadRecord:
    return BadRecord(f"{what} holds {len(values)} values ({shown(values)}); which one is the object? Paint it white on "
                     "black, or name it with the field 'mask_value'")
