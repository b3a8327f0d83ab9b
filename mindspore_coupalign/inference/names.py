"""Names of what prediction writes: no two of a call alike, short, and told from the image and the sentence.

A stem is ``<image>_<n>_<sentence>``, n the sentence's number; a file's name is the stem with ``_mask.png`` and so on.
"""

import hashlib
import os
import re
from collections import Counter
from pathlib import Path

_SLUG, _STEM = 40, 80  # the most characters of a sentence, and bytes of an image's name, in a file's name


def image_stems(paths: list[str]) -> list[str]:
    """A name per image, no two alike even where capitals do not count: the file's, with its folder's and its ending
    where two files share one, with a number where that does not tell them apart."""
    files = [Path(os.path.abspath(path)) for path in paths]
    same = Counter(file.stem.casefold() for file in files)
    names = [_short(file.stem if same[file.stem.casefold()] == 1 else f"{file.parent.name}_{file.name}")
             for file in files]
    return distinct(names)


def distinct(names: list[str]) -> list[str]:
    """The names, a later one of two alike with a number behind it; capitals do not tell names apart."""
    names, seen = list(names), set()
    numbers: Counter[str] = Counter()
    taken = {name.casefold() for name in names}
    for i, name in enumerate(names):
        key = name.casefold()
        while names[i].casefold() in seen or (numbers[key] and names[i].casefold() in taken):
            numbers[key] = max(numbers[key], 1) + 1
            names[i] = f"{name}-{numbers[key]}"
        seen.add(names[i].casefold())
    return names


def slug(sentence: str) -> str:
    """The sentence as part of a file's name: its letters and digits, of any script. What loses more than ASCII's
    punctuation gets some digits of its checksum, so that other sentences have other names."""
    words = re.sub(r"[\W_]+", "-", sentence.lower()).strip("-")
    try:
        os.fsencode(words)
    except UnicodeEncodeError:  # a file system that knows no Unicode
        words = re.sub(r"[^a-z0-9]+", "-", words).strip("-")
    short = words[:_SLUG].strip("-")
    lost = [letter for letter in set(sentence.lower()) if letter not in short and not letter.isascii()]
    if short and len(words) <= _SLUG and not lost:
        return short
    return f"{short or 'text'}-{_checksum(sentence)}"


def _short(name: str) -> str:
    """A name that leaves room for the sentence: file systems take 255 bytes."""
    raw = os.fsencode(name)
    return name if len(raw) <= _STEM else f"{raw[:_STEM].decode('utf-8', 'ignore')}-{_checksum(name)}"


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]
