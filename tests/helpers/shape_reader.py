"""A second reading of RefShapes sentences, from their documentation alone; it imports nothing from the package.

It answers from an image's COCO annotations: the kind is the category's name, the colour the annotation's ``color``,
area and position come from the polygon. Positions are centres of bounding boxes, in pixels. ``meant`` also reads the
generalised sentences: of several shapes, or of none.
"""

import math

KINDS = ("circle", "square", "triangle", "star", "cross")
COLOURS = ("red", "green", "blue", "yellow", "purple", "white")
SIDES = {"left": "left", "leftmost": "left", "right": "right", "rightmost": "right", "top": "top", "topmost": "top",
         "highest": "top", "bottom": "bottom", "lowest": "bottom"}
ORDINALS = {"second": 1, "third": 2, "fourth": 3}
RELATIONS = (("to the left of the", "left"), ("left of the", "left"), ("to the right of the", "right"),
             ("right of the", "right"), ("above the", "top"), ("higher than the", "top"), ("below the", "bottom"),
             ("lower than the", "bottom"))
ANY = ("object", "shape")
PLURALS = {**{noun + "s": noun for noun in ("circle", "square", "triangle", "star", *ANY)}, "crosses": "cross"}
NUMBERS = {"both": 2, "two": 2, "three": 3, "four": 4}
MOST = {"biggest", "largest", "smallest", "leftmost", "rightmost", "topmost", "highest", "lowest"}
TURN = {"left": "right", "right": "left", "leftmost": "rightmost", "rightmost": "leftmost"}


def fitting(sentence: str, annotations: list, names: dict, size: float) -> set:
    """Ids of the annotations of one image (``size`` px wide and high) that the sentence fits.

    Args:
        names: category id -> kind.
    """
    sentence, anchor, direction = _split_anchor(sentence)
    of_phrase = _of_phrase(sentence, annotations, names)
    words = sentence.split()
    if anchor:
        (anchor,) = _of_phrase(anchor, annotations, names)
        ahead = {"left": lambda p, q: p[0] < q[0], "right": lambda p, q: p[0] > q[0],
                 "top": lambda p, q: p[1] < q[1], "bottom": lambda p, q: p[1] > q[1]}[direction]
        return {a["id"] for a in of_phrase if a is not anchor and ahead(_centre(a), _centre(anchor))}
    sides = [SIDES[word] for word in words if word in SIDES]
    if {"biggest", "largest"} & set(words):
        return _first(of_phrase, lambda a: -_area(a))
    if "smallest" in words:
        return _first(of_phrase, _area)
    if len(sides) == 2:
        corner = (size if "right" in sides else 0, size if "bottom" in sides else 0)
        return _first(of_phrase, lambda a: math.dist(_centre(a), corner))
    if sides:
        return _first(of_phrase, _from_side(sides[0]), skip=sum(ORDINALS.get(word, 0) for word in words))
    return {a["id"] for a in of_phrase}


def meant(sentence: str, annotations: list, names: dict, size: float) -> set:
    """As ``fitting`` for any sentence; empty where it means nothing."""
    halves = sentence.split(" and ")
    assert len(halves) <= 2, sentence
    if len(halves) == 2:
        found = [meant(half, annotations, names, size) for half in halves]
        assert bool(found[0]) == bool(found[1]), "a pair of which one is there"
        assert len(found[0]) <= 1 and found[0].isdisjoint(found[1]), sentence
        return set.union(*found)
    head, anchor, direction = _split_anchor(sentence)
    of_phrase = _of_phrase(head, annotations, names)
    if anchor:
        found = _of_phrase(anchor, annotations, names)
        assert len(found) <= 1, "an anchor that stands there twice"
        found = fitting(sentence, annotations, names, size) if found else set()
    elif not of_phrase:
        found = set()
    elif is_plural(sentence):
        found = _plural(sentence.split(), of_phrase, size)
    else:
        found = fitting(sentence, annotations, names, size)
        if len([word for word in sentence.split() if word in SIDES]) == 2:  # a corner: the nearest, in its quarter
            found = {a["id"] for a in of_phrase if a["id"] in found and _in_corner(a, sentence.split(), size)}
    assert len(found) != 1 if is_plural(sentence) else len(found) <= 1, sentence
    return found


def is_plural(sentence: str) -> bool:
    """Whether a sentence with one noun phrase speaks of several shapes."""
    head = _split_anchor(sentence)[0].split()
    return "every" in head or any(word in PLURALS for word in head)


def template(sentence: str) -> str:
    """The kind of sentence by its words alone, whether anything fits it or not."""
    if " and " in sentence:
        return "pair"
    head, anchor, _ = _split_anchor(sentence)
    words = head.split()
    sides = sum(word in SIDES for word in words)
    if is_plural(sentence):
        if anchor:
            return "beside"
        if MOST & set(words):
            return "most"
        return "half" if sides else "count" if NUMBERS.keys() & set(words) else "all"
    if anchor:
        return "relation"
    if {"biggest", "largest", "smallest"} & set(words):
        return "size"
    return {0: "attribute", 1: "ordinal" if ORDINALS.keys() & set(words) else "side", 2: "corner"}[sides]


def _plural(words, of_phrase, size):
    """What a plural without an anchor means, of the annotations that fit its noun phrase."""
    sides = [SIDES[word] for word in words if word in SIDES]
    if MOST & set(words):
        assert "two" in words and len(of_phrase) >= 3, words
        key = (_from_side(sides[0]) if sides else _area if "smallest" in words else lambda a: -_area(a))
        return {a["id"] for a in sorted(of_phrase, key=key)[:2]}
    if sides:
        axis, after = (0, "right") if sides[0] in ("left", "right") else (1, "bottom")
        return {a["id"] for a in of_phrase if (_centre(a)[axis] > size / 2) == (sides[0] == after)}
    number = [NUMBERS[word] for word in words if word in NUMBERS]
    assert number in ([], [len(of_phrase)]), "a count that differs"
    return {a["id"] for a in of_phrase}


def _in_corner(annotation, words, size):
    x, y = _centre(annotation)
    return (x > size / 2) == ("right" in words) and (y > size / 2) == ("bottom" in words)


def _from_side(side):
    return {"left": lambda a: _centre(a)[0], "right": lambda a: -_centre(a)[0],
            "top": lambda a: _centre(a)[1], "bottom": lambda a: -_centre(a)[1]}[side]


def fitting_noun_phrase(sentence: str, annotations: list, names: dict) -> set:
    """Ids of the annotations that fit the sentence's colour and noun (of a pair, either), whatever else it says."""
    return {a["id"] for half in sentence.split(" and ")
            for a in _of_phrase(_split_anchor(half)[0], annotations, names)}


def named_pairs(sentence: str) -> set:
    """The (colour, kind) pairs that the sentence names."""
    phrases = [phrase for half in sentence.split(" and ") for phrase in _split_anchor(half)[:2]]
    return {(colour, noun) for colour, noun in map(_phrase, phrases) if colour and noun in KINDS}


def mirror_sentence(sentence: str) -> str:
    return " ".join(TURN.get(word, word) for word in sentence.split())


def mirror_annotation(annotation: dict, width: float) -> dict:
    polygon = annotation["segmentation"][0]
    flipped = [width - value if i % 2 == 0 else value for i, value in enumerate(polygon)]
    return {**annotation, "segmentation": [flipped]}


def _split_anchor(sentence):
    """(what is meant, anchor's phrase, direction); the last two are empty without an anchor."""
    for phrase, direction in RELATIONS:
        head, found, tail = sentence.partition(f" {phrase} ")
        if found:
            return head, tail, direction
    return sentence, "", ""


def _phrase(text):
    words = [PLURALS.get(word, word) for word in text.split()]
    colours = [word for word in words if word in COLOURS]
    nouns = [word for word in words if word in (*KINDS, *ANY)]
    assert len(colours) <= 1 and len(nouns) == (1 if text else 0), text
    return (colours or [None])[0], (nouns or [None])[0]


def _of_phrase(text, annotations, names):
    colour, noun = _phrase(text)
    return [a for a in annotations
            if colour in (None, a["color"]) and (noun in ANY or noun == names[a["category_id"]])]


def _first(annotations, key, skip=0):
    """The id at place ``skip`` in the order of ``key``, as a set with all that share its value."""
    values = sorted(map(key, annotations))
    return {a["id"] for a in annotations if skip < len(values) and key(a) == values[skip]}


def _centre(annotation):
    xs, ys = annotation["segmentation"][0][::2], annotation["segmentation"][0][1::2]
    return (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2


def _area(annotation):
    xs, ys = annotation["segmentation"][0][::2], annotation["segmentation"][0][1::2]
    return abs(sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs)))) / 2
