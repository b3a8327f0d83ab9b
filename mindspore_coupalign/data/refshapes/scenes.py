"""RefShapes scenes: which shapes stand where, and the image of them.

A scene is a list of `Shape` on a 64×64 image. Lengths are pixels, x grows to the right and y downwards from the
image's top left corner, so that pixel (row, column) covers [column, column + 1] × [row, row + 1]. The polygon of a
shape is the ground truth: the image is painted from it and the annotations carry it. Shapes keep 2 pixels between
their bounding circles and 1 pixel to the image's border, so no two masks share a pixel.
"""

import colorsys
import math
from typing import NamedTuple

import cv2
import numpy as np

SIZE = 64  # pixels, height = width
KINDS = ("circle", "square", "triangle", "star", "cross")
# Hue in degrees, saturation and value in 0..1, each as (lowest, highest).
COLOURS = {
    "red": ((-6, 6), (0.80, 0.95), (0.75, 0.92)),
    "green": ((108, 134), (0.65, 0.90), (0.55, 0.80)),
    "blue": ((216, 232), (0.75, 0.95), (0.75, 0.95)),
    "yellow": ((50, 58), (0.75, 0.95), (0.88, 1.00)),
    "purple": ((276, 294), (0.55, 0.75), (0.70, 0.90)),
    "white": ((0, 360), (0.00, 0.06), (0.92, 1.00)),
}
BACKGROUNDS = (  # grey, brown, teal
    ((0, 360), (0.00, 0.08), (0.20, 0.55)),
    ((18, 40), (0.20, 0.42), (0.20, 0.50)),
    ((165, 200), (0.15, 0.35), (0.20, 0.50)),
)
GAP = 2.0
BORDER = 1.0

_SPARE = (0, 0, 0, 1, 1, 1, 1, 2, 2, 2)  # shapes of other kinds than the main one, each as often as it stands here
_FINE = 16  # sub-pixels per pixel and axis when a shape is painted
_GRID = (np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE - 0.5


class Shape(NamedTuple):
    """One object: ``polygon`` is (points, 2) float64 x, y; ``x, y`` the centre of its bounding box."""

    kind: str
    colour: str
    radius: float  # of the bounding circle
    polygon: np.ndarray
    x: float
    y: float
    area: float  # px², of the polygon


def draw_scene(rng: np.random.Generator, count: int, named: tuple[str, str] | None = None) -> list[Shape]:
    """Draw ``count`` (3 to 8) shapes that do not touch.

    Most of them are of one kind, at least two, in few colours, so that naming the kind leaves several to choose from.

    Args:
        named: (colour, kind) that must be among the shapes.
    """
    kinds_and_colours = _draw_cast(rng, count, named)
    while True:
        places = _place(rng, _radii(rng, [kind for kind, _ in kinds_and_colours]))
        if places is not None:
            return [_make(rng, kind, colour, *place)
                    for (kind, colour), place in zip(kinds_and_colours, places, strict=True)]


def paint(rng: np.random.Generator, shapes: list[Shape]) -> np.ndarray:
    """Paint the shapes, anti-aliased, on a drawn background: (64, 64, 3) uint8 RGB."""
    canvas = _background(rng)
    for shape in shapes:
        low = np.floor(shape.polygon.min(0)).astype(int)
        high = np.ceil(shape.polygon.max(0)).astype(int)
        width, height = (high - low).tolist()
        fine = np.zeros((height * _FINE, width * _FINE), np.uint8)
        # cv2 counts from the middle of a sub-pixel; 4 fractional bits keep the polygon's hundredths.
        points = np.rint(((shape.polygon - low) * _FINE - 0.5) * 16).astype(np.int32)
        cv2.fillPoly(fine, [points], (255,), shift=4)
        cover = cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA)[..., None] / np.float32(255)
        window = canvas[low[1]:high[1], low[0]:high[0]]
        window += cover * (_tone(rng, COLOURS[shape.colour]) - window)
    canvas += rng.normal(0, rng.uniform(2, 6), (SIZE, SIZE, 1)) + rng.integers(-4, 5, (SIZE, SIZE, 3))
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)


def _draw_cast(rng, count, named):
    """(kind, colour) of each shape: the main kind in two or three colours, the rest of other kinds in any colour."""
    kinds, colours = list(KINDS), list(COLOURS)
    rng.shuffle(kinds)
    rng.shuffle(colours)
    main, palette = kinds[0], colours[:rng.integers(2, 4)]
    spare = min(_SPARE[rng.integers(len(_SPARE))], count - 2)
    others = [(kinds[1 + rng.integers(4)], colours[rng.integers(6)]) for _ in range(spare)]
    if named and (named[1] == main or not others or rng.random() < 0.5):
        main = named[1]
        palette = [named[0]] + [colour for colour in palette if colour != named[0]]
        others = [(kind, colour) for kind, colour in others if kind != main]
    elif named:
        others[0] = named[::-1]
    first = [(main, colour) for colour in palette[:count - len(others)]]
    rest = [(main, palette[rng.integers(len(palette))]) for _ in range(count - len(others) - len(first))]
    return first + rest + others


def _radii(rng, kinds):
    """Radius of each bounding circle, small ones more often; the factors give all kinds about the same area."""
    factor = {"circle": 0.92, "square": 1.0, "triangle": 1.2, "star": 1.2, "cross": 1.0}
    high = {3: 11.5, 4: 11.5, 5: 11.0, 6: 10.5}.get(len(kinds), 8.0)
    return [factor[kind] * (5.3 + (high - 5.3) * rng.random() ** 1.6) for kind in kinds]


def _place(rng, radii):
    """Centre and radius of each circle, the largest placed first; None when one finds no room."""
    places: list[tuple[float, float, float] | None] = [None] * len(radii)
    placed: list[tuple[float, float, float]] = []
    for i in sorted(range(len(radii)), key=lambda i: -radii[i]):
        low = radii[i] + BORDER
        for x, y in (low + rng.random((30, 2)) * (SIZE - 2 * low)).tolist():
            if all((x - u) ** 2 + (y - v) ** 2 >= (radii[i] + r + GAP) ** 2 for u, v, r in placed):
                places[i] = (x, y, radii[i])
                placed.append((x, y, radii[i]))
                break
        else:
            return None
    return places


def _outline(kind):
    """(angle in degrees clockwise from the top, distance in radii) of each corner of an upright shape."""
    if kind == "circle":
        return [(15 * i, 1) for i in range(24)], 0
    if kind == "square":
        return [(45 + 90 * i, 1) for i in range(4)], 14
    if kind == "triangle":
        return [(120 * i, 1) for i in range(3)], 18
    if kind == "star":
        return [(36 * i, 1 if i % 2 == 0 else 0.48) for i in range(10)], 16
    arm = 20  # degrees from an arm's axis to its corners; the inner corners lie on the diagonals
    inner = math.sin(math.radians(arm)) * math.sqrt(2)
    return [p for i in range(4) for p in ((90 * i - arm, 1), (90 * i + arm, 1), (90 * i + 45, inner))], 14


def _unit_outlines():
    outlines = {}
    for kind in KINDS:
        corners, turn = _outline(kind)
        points = [(far * math.sin(math.radians(a)), -far * math.cos(math.radians(a))) for a, far in corners]
        outlines[kind] = np.array(points), math.radians(turn), (np.arange(len(points)) + 1) % len(points)
    return outlines


_OUTLINES = _unit_outlines()  # kind -> corners of radius 1 (points, 2), largest turn in radians, each corner's next


def _make(rng, kind, colour, x, y, radius):
    outline, most, after = _OUTLINES[kind]
    turn = rng.uniform(-most, most)
    c, s = math.cos(turn), math.sin(turn)
    u, v = outline.T
    polygon = np.round(np.stack([u * c - v * s, u * s + v * c], 1) * radius + (x, y), 2)
    (left, top), (right, bottom) = polygon.min(0).tolist(), polygon.max(0).tolist()
    u, v = np.rint(polygon * 100).astype(np.int64).T  # in whole hundredths the area is exact on every processor
    area = abs(int((u * v[after] - v * u[after]).sum())) / 20000
    return Shape(kind, colour, round(radius, 2), polygon, (left + right) / 2, (top + bottom) / 2, area)


def _tone(rng, ranges):
    """One RGB colour, float32 0..255, from ranges of hue, saturation and value."""
    hue, saturation, value = (rng.uniform(*limits) for limits in ranges)
    return np.array(colorsys.hsv_to_rgb(hue / 360 % 1, saturation, value), np.float32) * 255


def _background(rng):
    """A smooth passage between two muted tones with soft clouds: (64, 64, 3) float32 0..255."""
    first, second = (_tone(rng, BACKGROUNDS[rng.integers(len(BACKGROUNDS))]) for _ in range(2))
    angle = rng.uniform(0, 2 * math.pi)
    ramp = np.clip(0.5 + math.cos(angle) * _GRID[None, :] + math.sin(angle) * _GRID[:, None], 0, 1)[..., None]
    cells = int(rng.integers(3, 8))
    seeds = rng.normal(0, 1, (cells, cells, 4)).astype(np.float32)
    clouds = cv2.resize(seeds, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    return first + ramp * (second - first) + rng.uniform(4, 12) * clouds[..., 3:] + 3 * clouds[..., :3]
