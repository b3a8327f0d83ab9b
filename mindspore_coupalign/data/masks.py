"""COCO segmentations -> compressed run lengths (RLE).

h, w image size in pixels. A segmentation is, after the COCO format (https://cocodataset.org/#format-data), a list of
polygons ``[x0, y0, x1, y1, ...]`` in pixels, or an RLE dict ``{"size": [h, w], "counts": ...}`` with counts as a list
(uncompressed) or as text (compressed), in column-major order. RefCLEF has lists of compressed RLE dicts: parts of one
region.
"""

import reprlib
from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco

MAX_COORDINATE = 1e5  # pixels; pycocotools walks along every edge, so an absurd coordinate would never end


class Region(NamedTuple):
    """What a segmentation covers, as compressed RLEs."""

    union: bytes  # pixels under any part
    single: bytes  # pixels under exactly one part; empty where no two parts overlap, so that it is the union
    outside: bool = False  # a polygon leaves the image by more than a pixel
    left_out: int = 0  # polygons of fewer than three points, which enclose nothing


def segmentation_to_rle(segmentation, h: int, w: int) -> Region:
    """A segmentation of an image of h × w pixels.

    Polygons are clipped to the image as pycocotools does; one wholly outside, or thinner than a pixel, leaves an empty
    mask. Beside a proper polygon, one of fewer than three points encloses nothing and is left out.

    Raises:
        ValueError: anything that is not a segmentation of an h × w image, also one of which no part encloses anything;
            the text says what is wrong.
    """
    if isinstance(segmentation, dict):
        return Region(_checked_rle(segmentation, h, w), b"")
    if not isinstance(segmentation, list):
        raise ValueError(f"expected polygons or an RLE dict, found {type(segmentation).__name__}")
    if segmentation and all(isinstance(part, dict) for part in segmentation):
        parts = [{"size": [h, w], "counts": _checked_rle(part, h, w)} for part in segmentation]
        return Region(*_joined(parts))
    points = [polygon_points(part) for part in segmentation]
    polygons = [polygon for polygon in points if len(polygon) >= 3]
    if not polygons:
        raise ValueError(f"{reprlib.repr(segmentation):.60} holds no polygon of at least three points; a polygon is "
                         "one flat list of numbers, [[x0, y0, x1, y1, x2, y2, ...]]")
    low = np.min([polygon.min(axis=0) for polygon in polygons], axis=0)
    high = np.max([polygon.max(axis=0) for polygon in polygons], axis=0)
    outside = bool(low.min() < -1 or high[0] > w + 1 or high[1] > h + 1)
    parts = coco.frPyObjects([polygon.ravel() for polygon in polygons], h, w)
    return Region(*_joined(parts), outside, len(points) - len(polygons))


def united(regions: list[Region], h: int, w: int) -> Region:
    """What several objects of an image of h × w pixels cover together; without any, nothing. ``single`` then holds what
    is ``single`` of any of them."""
    if not regions:
        return Region(coco.frPyObjects([{"size": [h, w], "counts": [h * w]}], h, w)[0]["counts"], b"")

    def merged(parts) -> bytes:
        return coco.merge([{"size": [h, w], "counts": counts} for counts in parts])["counts"]

    single = b""
    if any(region.single for region in regions):
        single = merged(region.single or region.union for region in regions)
    return Region(merged(region.union for region in regions), single, any(region.outside for region in regions),
                  sum(region.left_out for region in regions))


def _joined(parts: list) -> tuple[bytes, bytes]:
    """``union`` and ``single`` of RLEs of one image."""
    if len(parts) == 1:
        return parts[0]["counts"], b""
    union = coco.merge(parts)
    if coco.area(parts).sum() == coco.area(union):  # without decoding: hardly any object's parts overlap
        return union["counts"], b""
    layers = sum(coco.decode(part).astype(np.uint16) for part in parts)
    return union["counts"], coco.encode(np.asfortranarray(layers == 1, np.uint8))["counts"]


def rle_to_mask(counts: bytes, h: int, w: int) -> np.ndarray:
    """(h, w) uint8, 0 or 1, from compressed counts that ``segmentation_to_rle`` returned."""
    return coco.decode({"size": [h, w], "counts": counts})


def rle_area(counts: bytes, h: int, w: int) -> int:
    """Pixels of the mask."""
    return int(coco.area({"size": [h, w], "counts": counts}))


def polygon_points(part) -> np.ndarray:
    """(n, 2) float64 points x, y."""
    try:
        points = np.asarray(part, np.float64)
    except (TypeError, ValueError, OverflowError):
        points = np.zeros(())
    if points.ndim == 2 and points.shape[1] != 2 or points.ndim not in (1, 2):
        raise ValueError("a polygon must be a list of numbers x0, y0, x1, y1, ...")
    if points.size % 2:
        raise ValueError(f"a polygon has {points.size} numbers; x and y of every point make an even count")
    points = points.reshape(-1, 2)
    if not (np.abs(points) <= MAX_COORDINATE).all():  # NaN fails too
        raise ValueError("a polygon has a coordinate that is no pixel position")
    return points


def _checked_rle(rle: dict, h: int, w: int) -> bytes:
    if rle.get("size") != [h, w]:
        raise ValueError(f"the RLE's size {rle.get('size')} is not the image's [{h}, {w}]")
    counts = rle.get("counts")
    if isinstance(counts, list):
        if not all(type(n) is int and n >= 0 for n in counts) or sum(counts) != h * w:
            raise ValueError("the RLE's counts do not add up to the image's pixels")
        return coco.frPyObjects([{"size": [h, w], "counts": counts}], h, w)[0]["counts"]
    if not isinstance(counts, str) or not counts.isascii():
        raise ValueError("the RLE's counts must be a list of numbers or compressed text")
    runs = _runs(counts.encode())
    # pycocotools leaves the pixels after the last run uninitialised, so a short RLE would give a random mask.
    if not runs.size or runs.min() < 0 or runs.sum() != h * w:
        raise ValueError("the RLE's compressed counts do not add up to the image's pixels")
    return counts.encode()


def _runs(counts: bytes) -> np.ndarray:
    """Run lengths (n,) int64 of compressed counts; empty when they cannot be read.

    The format is that of rleToString in cocoapi's maskApi.c: numbers in groups of 5 bits, lowest first, as characters
    from '0'; bit 5 says that another follows, bit 4 of the last is the sign; from the fourth number on, differences to
    the number two before.
    """
    x = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if not x.size or x.min() < 0 or x.max() > 63 or x[-1] & 32:
        return np.zeros(0, np.int64)
    last = np.flatnonzero((x & 32) == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    length = last - first + 1
    if length.max() > 12:
        return np.zeros(0, np.int64)
    shift = 5 * (np.arange(x.size) - np.repeat(first, length))
    runs = np.add.reduceat((x & 31) << shift, first)
    runs -= np.where(x[last] & 16, np.int64(1) << (5 * length), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs
