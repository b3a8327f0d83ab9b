"""Image and mask -> network input, network output -> image, and the left-right flip of a sentence.

h, w image size in pixels; ``size`` the side of the square network input. The image is resized without keeping its
aspect ratio, not padded. Every resize uses the half-pixel convention (pixel i covers i to i + 1), so that ``inverse``
undoes ``image``'s geometry.
"""

import re

import cv2
import numpy as np

cv2.setNumThreads(1)  # the data pipeline has its own threads; nested ones only fight for the cores

# Words that are swapped whole; the short forms are common in RefCOCO's hasty sentences.
_PAIRS = (("left", "right"), ("l", "r"), ("lft", "rt"), ("lt", "rgt"))
_SWAP = {a: b for pair in _PAIRS for a, b in (pair, pair[::-1])}
_SIDE = re.compile(r"(?<![\w'])(?:(left|right)(?!over|eous|ful)|(lft|rgt|lt|rt|l|r)(?![\w']))", re.IGNORECASE)


class ImageTransform:
    """Resize to size × size without keeping the aspect ratio, and normalise.

    ``mean`` and ``std`` are per channel, RGB, of values in 0..1.
    """

    def __init__(self, size: int, mean, std):
        self.size = size
        mean, std = np.asarray(mean, np.float32), np.asarray(std, np.float32)
        levels = np.arange(256, dtype=np.float32)[:, None]
        self._values = np.ascontiguousarray((levels * (1 / (255 * std)) - mean / std).T)  # (3, 256), of each level

    def image(self, rgb: np.ndarray) -> np.ndarray:
        """(h, w, 3) uint8 RGB -> (3, size, size) float32, normalised."""
        return self.normalise(self.resize(rgb))

    def resize(self, rgb: np.ndarray) -> np.ndarray:
        """(h, w, 3) uint8 -> (size, size, 3) uint8; data/image_cache.py keeps what it gives, so that a change here
        needs another ``RULE`` there."""
        h, w = rgb.shape[:2]
        # cv2's area averaging is exact only where both sides shrink; elsewhere it shifts the image. So each side is
        # first shrunk if it must be, and then stretched if it must be.
        smaller = (min(w, self.size), min(h, self.size))
        if smaller != (w, h):
            rgb = cv2.resize(rgb, smaller, interpolation=cv2.INTER_AREA)
        if smaller != (self.size, self.size):
            rgb = cv2.resize(rgb, (self.size, self.size), interpolation=cv2.INTER_LINEAR)
        return rgb

    def normalise(self, rgb: np.ndarray) -> np.ndarray:
        """(size, size, 3) uint8 -> (3, size, size) float32."""
        planes = np.empty((3, self.size, self.size), np.float32)
        for channel, plane in enumerate(cv2.split(rgb)):
            cv2.LUT(plane, self._values[channel], dst=planes[channel])  # eight times faster than arithmetic
        return planes

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """(h, w) -> (size, size) uint8, nearest pixel (by its centre: INTER_NEAREST would shift by half a pixel)."""
        return cv2.resize(mask.astype(np.uint8, copy=False), (self.size, self.size),
                          interpolation=cv2.INTER_NEAREST_EXACT)

    def inverse(self, logits: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """(size, size) float32 -> (h, w) float32 for ``shape`` = (h, w), bilinear."""
        h, w = shape
        return cv2.resize(np.asarray(logits, np.float32), (w, h), interpolation=cv2.INTER_LINEAR)


def resize_aligned(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(H, W) float32 -> (h, w) float32, bilinear, the corner pixels' centres on each other (``align_corners=True``).

    Some projects bring their logits to the image's size so. It is no inverse of ``ImageTransform.image``.
    """
    values = np.asarray(values, np.float32)
    for axis, length in enumerate(shape):
        last = values.shape[axis] - 1
        at = np.linspace(0, last, length)
        low = np.minimum(np.floor(at), last).astype(np.int64)
        share = np.expand_dims((at - low).astype(np.float32), 1 - axis)
        values = (values.take(low, axis) * (1 - share) + values.take(np.minimum(low + 1, last), axis) * share)
    return values


def flip_sentence(text: str) -> str:
    """The sentence that fits the mirrored image: left and right swapped, capitals kept; twice gives it back.

    Swapped are words that begin with left or right (leftmost, right-hand, lefty, righter) and the short forms
    l/r, lft/rt, lt/rgt as whole words. Left alone are words that only look alike (leftover, righteous, rightful,
    upright, bright, copyright). "right" that is no side ("right behind him", "the right size") is swapped too: no word
    list can tell, and it changes little.
    """
    return _SIDE.sub(_swap, text)


def _swap(match: re.Match) -> str:
    word = match.group(0)
    other = _SWAP[word.lower()]
    if word.isupper():
        return other.upper()
    return other.capitalize() if word[0].isupper() else other
