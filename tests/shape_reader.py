"""A second reading of RefShapes sentences, from their documentation alone; it imports nothing from the package.

It answers from an image's COCO annotations: the kind is the category's name, the colour the annotation's ``color``,
area and position come from the polygon. Positions are centres of bounding boxes, in pixels.
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
        from_side = {"left": lambda a: _centre(a)[0], "right": lambda a: -_centre(a)[0],
                     "top": lambda a: _centre(a)[1], "bottom": lambda a: -_centre(a)[1]}[sides[0]]
        return _first(of_phrase, from_side, skip=sum(ORDINALS.get(word, 0) for word in words))
    return {a["id"] for a in of_phrase}


def fitting_noun_phrase(sentence: str, annotations: list, names: dict) -> set:
    """Ids of the annotations that fit the sentence's colour and noun, whatever else it says."""
    return {a["id"] for a in _of_phrase(_split_anchor(sentence)[0], annotations, names)}


def named_pairs(sentence: str) -> set:
    """The (colour, kind) pairs that the sentence names."""
    sentence, anchor, _ = _split_anchor(sentence)
    pairs = {(colour, noun) for colour, noun in map(_phrase, (sentence, anchor)) if colour and noun in KINDS}
    return pairs


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
    words = text.split()
    colours = [word for word in words if word in COLOURS]
    nouns = [word for word in words if word in (*KINDS, "object")]
    assert len(colours) <= 1 and len(nouns) == (1 if text else 0), text
    return (colours or [None])[0], (nouns or [None])[0]


def _of_phrase(text, annotations, names):
    colour, noun = _phrase(text)
    return [a for a in annotations
            if colour in (None, a["color"]) and noun in ("object", names[a["category_id"]])]


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
