"""Text under images, in any script for which this machine has a font.

The font is DejaVu Sans, which matplotlib brings (Latin, Greek, Cyrillic, Arabic, …; without matplotlib Pillow's own,
Latin), or else the system font that covers most of the text (for Chinese, Japanese and Korean for example Debian's
fonts-noto-cjk). A character without a glyph is written as its code point, U+4EBA.
"""

import functools
import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK, NOTE_INK, PAPER = (24, 24, 24), (90, 90, 90), (250, 250, 250)
_SYSTEM = (Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), Path.home() / ".fonts",
           Path.home() / ".local/share/fonts")
_NO_CHARACTER = "\U0010ffff"  # in no font: its replacement glyph stands for every missing one


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
