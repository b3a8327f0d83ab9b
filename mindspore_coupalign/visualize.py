"""Drawing: masks over images, captions, attention maps, contact sheets. Nothing here knows the network.

Masks are outlines: a tint would change the colour that a sentence names. Small images are enlarged by an integer
factor, so that 64 pixels are still readable; every function returns a new (h', w', 3) uint8 image.
Shapes: rgb (h, w, 3) uint8; mask, truth (h, w) bool, truth is the ground truth; values (h, w) float.

The font is DejaVu Sans, which matplotlib brings (Latin, Greek, Cyrillic, Arabic, …; without matplotlib Pillow's own,
Latin), or else the system font that covers most of the text (for Chinese, Japanese and Korean for example Debian's
fonts-noto-cjk). A character without a glyph is written as its code point, U+4EBA.
"""

import functools
import importlib.util
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mindspore_coupalign.outputs import write_file

INK, NOTE_INK, PAPER = (24, 24, 24), (90, 90, 90), (250, 250, 250)
_SYSTEM = (Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), Path.home() / ".fonts",
           Path.home() / ".local/share/fonts")
_NO_CHARACTER = "\U0010ffff"  # in no font: its replacement glyph stands for every missing one
MASK_COLOUR = (255, 64, 96)  # RGB
TRUTH_COLOUR = (64, 224, 128)
_LETTERS, MARGIN = 14, 8  # pixels
_SHORT, _LONG = 320, 1600  # small images grow until the short side is _SHORT, never past _LONG on the other
_COLUMNS, _WIDTH = 8, 1960  # of an attention sheet: panels per row, pixels at most


def overlay(rgb: np.ndarray, mask: np.ndarray, sentence: str, truth: np.ndarray | None = None,
            note: str = "") -> np.ndarray:
    """The image with the mask outlined, and the sentence and a note below; an empty mask is said there.

    Args:
        truth: outlined in another colour, by a thinner line on top.
        note: a short remark under the sentence, such as "IoU 0.87".
    """
    factor = _factor(rgb.shape, _SHORT)
    image = _repeat(rgb, factor)
    _outline(image, _repeat(mask.astype(np.uint8), factor), MASK_COLOUR)
    if truth is not None:
        _outline(image, _repeat(truth.astype(np.uint8), factor), TRUTH_COLOUR, thin=True)
    return caption(image, sentence, note if mask.any() else f"nothing predicted; {note}".rstrip("; "))


def heat(rgb: np.ndarray, values: np.ndarray, short: int, low: float, high: float) -> np.ndarray:
    """The image, shrunk or enlarged to a short side of about ``short`` pixels, under a heat map of ``values``, which
    may have any size, from blue (``low``) to red (``high``)."""
    image = _repeat(rgb, _factor(rgb.shape, short))
    if min(image.shape[:2]) > 1.5 * short:
        factor = short / min(image.shape[:2])
        size = [max(1, round(side * factor)) for side in image.shape[1::-1]]
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    h, w = image.shape[:2]
    values = cv2.resize(values.astype(np.float32), (w, h), interpolation=cv2.INTER_LINEAR)
    share = np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros((h, w))
    return cv2.addWeighted(image, 0.45, _colours((255 * share).astype(np.uint8)), 0.55, 0)


def _colours(levels: np.ndarray) -> np.ndarray:
    """(h, w) uint8 -> (h, w, 3) RGB, blue to red."""
    return cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)


def _shrink(image: np.ndarray, width: int) -> np.ndarray:
    """The image, made smaller where it is wider than ``width`` pixels."""
    if image.shape[1] <= width:
        return image
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def _stack(images: list[np.ndarray]) -> np.ndarray:
    """Images one below the other on light paper, as wide as the widest."""
    width = max(image.shape[1] for image in images)
    return np.concatenate([cv2.copyMakeBorder(image, 0, 0, 0, width - image.shape[1], cv2.BORDER_CONSTANT, value=PAPER)
                           for image in images])


def caption(rgb: np.ndarray, text: str, note: str = "") -> np.ndarray:
    """The image with a strip below that holds the wrapped text and, in grey, a note."""
    scale = max(1.0, min(rgb.shape[:2]) / 600)  # large images are viewed from further away
    lines = [(words, ink) for words, ink in ((text, INK), (note, NOTE_INK)) if words.strip()]
    return np.concatenate([rgb, text_strip(rgb.shape[1], lines, round(_LETTERS * scale), round(MARGIN * scale))])


def legend(width: int, title: str) -> np.ndarray:
    """A strip that says which outline is which, (h, width, 3)."""
    marks = ((MASK_COLOUR, "prediction"), (TRUTH_COLOUR, "ground truth"))
    lines = [(title, INK), *((name, INK) for _, name in marks)]
    strip = text_strip(width, lines, _LETTERS, MARGIN, indent=4 * MARGIN)
    for i, (colour, _) in enumerate(marks, 1):
        y = MARGIN // 2 + line_height(_LETTERS) * i + line_height(_LETTERS) // 2
        for edge, ink in ((2, (0, 0, 0)), (0, colour)):
            cv2.line(strip, (2 * MARGIN, y), (4 * MARGIN, y), ink, 3 + edge)
    return strip


def contact_sheet(panels: list[np.ndarray], columns: int) -> np.ndarray:
    """Panels of any sizes in rows of ``columns``, on light paper. ``panels`` must not be empty."""
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    widths = [max(row[j].shape[1] for row in rows if j < len(row)) for j in range(len(rows[0]))]
    heights = [max(panel.shape[0] for panel in row) for row in rows]
    size = (sum(heights) + MARGIN * (len(rows) + 1), sum(widths) + MARGIN * (len(widths) + 1), 3)
    sheet = np.full(size, PAPER, np.uint8)
    y = MARGIN
    for row, height in zip(rows, heights, strict=True):
        x = MARGIN
        for panel, width in zip(row, widths, strict=False):
            sheet[y : y + panel.shape[0], x : x + panel.shape[1]] = panel
            x += width + MARGIN
        y += height + MARGIN
    return sheet


def attention_sheet(prediction) -> np.ndarray:
    """What the network looked at as one sheet, (h, w, 3) uint8, w < 2000: the mask, a heat map per word and stage, and
    the heaviest mask proposals, of a ``Prediction`` with its image and details.

    All word maps share one colour scale, from 0 to the largest attention of any, and all proposals another.
    """
    details, image = prediction.details, prediction.image
    columns = min(_COLUMNS, max(len(details.pieces), 4))
    room = _WIDTH // columns - MARGIN - 2  # for a panel
    side = max(16, min(192, int(room * min(image.shape[:2]) / image.shape[1])))
    parts = [prediction.overlay()]

    def add(title: str, low: float, high: float, maps: Iterable):
        """``maps``: (values, text, note) of each panel."""
        panels = [caption(heat(image, values, side, low, high), text, note) for values, text, note in maps]
        parts.extend((_title(title, low, high), contact_sheet(panels, columns)))

    top = max((float(maps.max()) for maps in details.attention.values()), default=0.0)
    for stage, maps in details.attention.items():
        add(f"Stage {stage}: pixels' attention over the words", 0.0, top,
            ((values, piece, f"at most {values.max():.2f}")
             for piece, values in zip(details.pieces, maps, strict=True)))
    heaviest = np.argsort(-details.weights, kind="stable")[:columns]
    if len(heaviest):
        chosen = details.proposals[heaviest]
        add("Mask proposals that the sentence weighs most", float(chosen.min()), float(chosen.max()),
            ((values, f"proposal {n}", f"weight {details.weights[n]:.3f}")
             for n, values in zip(heaviest, chosen, strict=True)))
    if len(parts) == 1:
        parts.append(text_strip(_WIDTH // 2, [("no alignment in this network", INK)], _LETTERS, MARGIN))
    return _stack([_shrink(part, _WIDTH) for part in parts])


def _title(text: str, low: float, high: float) -> np.ndarray:
    """A strip with the text and the colours of a heat map."""
    width, bar = _WIDTH // 2, np.repeat(np.linspace(0, 255, 320).astype(np.uint8)[None], 10, 0)
    lines = [(text, INK), (f"blue {low:.2f}, red {high:.2f}", NOTE_INK)]
    row = np.full((bar.shape[0] + MARGIN, width, 3), PAPER, np.uint8)
    row[: bar.shape[0], MARGIN : MARGIN + bar.shape[1]] = _colours(bar)
    return np.concatenate([text_strip(width, lines, _LETTERS, MARGIN), row])


def write_png(path: str | Path, image: np.ndarray):
    """Write (h, w, 3) RGB or (h, w) grey, uint8, whole or not at all. Raises UserError: the file cannot be written."""
    data = cv2.imencode(".png", image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]
    write_file(path, data.tobytes())


def _factor(shape: tuple, short: int) -> int:
    """The smallest whole factor that brings the short side to ``short`` pixels, bounded by the long side."""
    return max(1, min(-(-short // min(shape[:2])), _LONG // max(shape[:2])))


def _repeat(array: np.ndarray, factor: int) -> np.ndarray:
    return array.repeat(factor, 0).repeat(factor, 1)


def _outline(image: np.ndarray, region: np.ndarray, colour: tuple, thin: bool = False):
    """Draw the region's border, with a dark edge so that it shows on any background."""
    contours, _ = cv2.findContours(region, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    thickness = max(3, min(image.shape[:2]) // 120)
    if thin:
        thickness = -(-thickness // 2)
    cv2.drawContours(image, contours, -1, (0, 0, 0), thickness + 2, cv2.LINE_AA)
    cv2.drawContours(image, contours, -1, colour, thickness, cv2.LINE_AA)


def text_strip(width: int, lines: list[tuple[str, tuple]], size: int, margin: int, indent: int = 0) -> np.ndarray:
    """Wrapped text on a light strip, (h, width, 3) uint8.

    Args:
        lines: (text, RGB colour), each begins a new line.
        size: height of the letters in pixels; a line takes ``line_height(size)``.
        indent: of all lines, beside the margin.
    """
    placed = []
    for text, ink in lines:
        text, font = written(text, size)
        placed += [(line, ink, font) for line in _wrap(text, font, width - 2 * margin - indent)]
    height = line_height(size)
    strip = Image.new("RGB", (width, margin + height * len(placed)), PAPER)
    pen = ImageDraw.Draw(strip)
    for i, (line, ink, font) in enumerate(placed):
        pen.text((margin + indent, margin // 2 + height * i), line, ink, font)
    return np.array(strip)


def line_height(size: int) -> int:
    return round(1.45 * size)


def written(text: str, size: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """The text with missing characters replaced, and the font for it."""
    text = "".join(c if c.isprintable() else " " for c in text)
    font = _font(_default_font(), size)
    lacks = missing(text, font)
    if lacks:
        fonts = [_font(path, size) for path in _system_fonts()]
        font = min([font, *fonts], key=lambda f: len(missing(text, f)))  # the first of equal ones
        lacks = missing(text, font)
    return "".join(f"U+{ord(c):04X}" if c in lacks else c for c in text), font


def missing(text: str, font: ImageFont.FreeTypeFont) -> set:
    """The characters that a font lacks."""
    return {c for c in set(text) if not c.isspace() and _shape(font, c) == _shape(font, _NO_CHARACTER)}


@functools.lru_cache(4096)
def _shape(font: ImageFont.FreeTypeFont, character: str) -> tuple:
    mask = font.getmask(character)
    return mask.size, bytes(mask)


@functools.lru_cache(64)
def _font(path: str, size: int) -> ImageFont.FreeTypeFont:
    if path:
        return ImageFont.truetype(path, size)
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow without FreeType"
    return font


@functools.lru_cache(1)
def _default_font() -> str:
    """Its path; empty for Pillow's own."""
    place = importlib.util.find_spec("matplotlib")  # importing it takes a second
    if place is None or place.origin is None:
        return ""
    return str(Path(place.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf")


@functools.lru_cache(1)
def _system_fonts() -> tuple[str, ...]:
    """The readable fonts of this machine, regular ones first."""
    fonts = []
    for folder in _SYSTEM:
        for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
            if path.suffix.lower() in (".ttf", ".otf", ".ttc"):
                try:
                    ImageFont.truetype(str(path), 12)
                except OSError:
                    continue
                fonts.append(str(path))
    return tuple(sorted(fonts, key=lambda path: "regular" not in path.lower()))


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Lines that fit ``width`` pixels, broken between words; a longer word is broken anywhere."""
    lines, line = [], ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if line and font.getlength(longer) > width:
            lines.append(line)
            longer = word
        while len(longer) > 1 and font.getlength(longer) > width:
            fits = next(n for n in range(len(longer) - 1, 0, -1) if n == 1 or font.getlength(longer[:n]) <= width)
            lines.append(longer[:fits])
            longer = longer[fits:]
        line = longer
    return [*lines, line] if line else lines
