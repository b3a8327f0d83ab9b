"""RefShapes sentences: which sentences name exactly one shape of a scene, and their wording.

A sentence is a noun phrase, ``[colour] (kind | "object")``, and a cue. With F the shapes that fit the noun phrase:

- attribute: no cue; the colour is the only one of its kind, and the kind stands there at least twice.
- side: the outermost of F towards the left, right, top or bottom.
- ordinal: the second, third or fourth of at least three in F, counted from a side.
- corner: the one of F nearest to a corner of the image; it alone of F lies in that corner's zone.
- size: the largest or smallest of F by area, by a factor of 1.4 or more.
- relation: the only one of F, other than the anchor, on a side of the anchor: a shape that colour and kind name
  uniquely. "left of" compares x alone, "above" compares y alone.
- combination: any of the last five with colour and kind both in the noun phrase, where at least two shapes fit it and
  the kind also stands there in another colour.

Positions are centres of bounding boxes, in pixels. Every comparison has a margin, so that the answer does not depend on
a pixel; and every one stays true when the image is mirrored and the words left and right (leftmost and rightmost)
change places. A sentence never names its target by the kind alone: the target's kind stands there at least twice.
"""

import math
from collections import Counter
from typing import NamedTuple

import numpy as np

from mindspore_coupalign.data.refshapes.scenes import COLOURS, KINDS, SIZE, Shape

SENTENCE_KINDS = ("attribute", "side", "ordinal", "corner", "size", "relation", "combination")
ANY = "object"

STEP = 5.0  # px between neighbours of F along the axis of a side or an ordinal
ZONE = 27.0  # px from the corner along both axes
NEARER = 6.0  # px by which the shape in a corner is nearer to it than the next of F
FACTOR = 1.4  # of areas
BEYOND, SHORT = 6.0, -2.0  # px past the anchor for the one shape meant; no other of F may pass SHORT

ORDINALS = ("second", "third", "fourth")
SIDE_AXES = {"left": ("x", 1), "right": ("x", -1), "top": ("y", 1), "bottom": ("y", -1)}
RELATION_AXES = {"left": ("x", -1), "right": ("x", 1), "above": ("y", -1), "below": ("y", 1)}

_SIDE_WORDS = {
    "left": ("left {np}", "leftmost {np}", "{np} on the left", "{np} on the left side"),
    "right": ("right {np}", "rightmost {np}", "{np} on the right", "{np} on the right side"),
    "top": ("top {np}", "topmost {np}", "{np} at the top", "highest {np}"),
    "bottom": ("bottom {np}", "lowest {np}", "{np} at the bottom"),
}
_ORDINAL_WORDS = ("{nth} {np} from the {side}", "{np} that is {nth} from the {side}",
                  "{nth} {np} counting from the {side}")
_CORNER_WORDS = ("{np} in the {v} {h} corner", "{v} {h} {np}", "{np} at the {v} {h}")
_SIZE_WORDS = {
    "big": ("biggest {np}", "largest {np}", "{np} that is the biggest"),
    "small": ("smallest {np}", "{np} that is the smallest"),
}
RELATION_WORDS = {
    "left": ("{np} left of the {anchor}", "{np} to the left of the {anchor}"),
    "right": ("{np} right of the {anchor}", "{np} to the right of the {anchor}"),
    "above": ("{np} above the {anchor}", "{np} higher than the {anchor}"),
    "below": ("{np} below the {anchor}", "{np} lower than the {anchor}"),
}
_ATTRIBUTE_WORDS = ("{np}", "{noun} that is {colour}")


class Claim(NamedTuple):
    """What one sentence says, before it is worded: true of ``target`` (index into the scene) and of no other shape."""

    kind: str  # of SENTENCE_KINDS
    target: int
    fits: tuple  # indices of the shapes that fit the noun phrase
    colour: str  # "" when the noun phrase has none
    noun: str
    cue: tuple  # ("attribute",), ("side", side), ("ordinal", nth, side), ("corner", v, h), ("size", s), ("relation", …)

    def pairs(self) -> set:
        """(colour, kind) pairs that the sentence names, of the target or the anchor."""
        named = {(self.colour, self.noun)} if self.colour and self.noun != ANY else set()
        return named | {self.cue[2:]} if self.cue[0] == "relation" else named


def claims(shapes: list[Shape], nouns: tuple = (*KINDS, ANY)) -> list[Claim]:
    """Every claim with one of the nouns that holds in the scene with its margins, in a fixed order."""
    per_kind = Counter(shape.kind for shape in shapes)
    anchors = possible_anchors(shapes)
    found = []
    for colour, noun, fits in noun_phrases(shapes, nouns):
        if len(fits) == 1:
            cues = [(fits[0], ("attribute",))]
        else:
            cues = _spatial_cues(shapes, fits)
            if noun != ANY:
                cues += _relation_cues(shapes, fits, anchors)
        for target, cue in cues:
            if per_kind[shapes[target].kind] >= 2:
                kind = "combination" if colour and noun != ANY and len(fits) > 1 else cue[0]
                found.append(Claim(kind, target, fits, colour, noun, cue))
    return found


def word(claim: Claim, rng: np.random.Generator) -> str:
    """One wording of a claim: lower case words with single spaces."""
    text = phrase_of(claim, rng)
    return "the " + text if rng.random() < 0.3 else text


def phrase_of(claim: Claim, rng: np.random.Generator) -> str:
    """The same without an article in front."""
    phrase = f"{claim.colour} {claim.noun}" if claim.colour else claim.noun
    name, *rest = claim.cue
    if name == "attribute":
        return choose(rng, _ATTRIBUTE_WORDS).format(np=phrase, noun=claim.noun, colour=claim.colour)
    if name == "side":
        return choose(rng, _SIDE_WORDS[rest[0]]).format(np=phrase)
    if name == "ordinal":
        return choose(rng, _ORDINAL_WORDS).format(np=phrase, nth=rest[0], side=rest[1])
    if name == "corner":
        return choose(rng, _CORNER_WORDS).format(np=phrase, v=rest[0], h=rest[1])
    if name == "size":
        return choose(rng, _SIZE_WORDS[rest[0]]).format(np=phrase)
    return choose(rng, RELATION_WORDS[rest[0]]).format(np=phrase, anchor=" ".join(rest[1:]))


def choose(rng: np.random.Generator, options: tuple | list):
    return options[rng.integers(len(options))]


def weighted(rng: np.random.Generator, weights: dict):
    """A key of ``weights``, each as often as its weight says."""
    values = np.array(list(weights.values()), float)
    return list(weights)[rng.choice(len(values), p=values / values.sum())]


def possible_anchors(shapes: list[Shape]) -> list[int]:
    """Indices of the shapes that colour and kind name uniquely."""
    per_pair = Counter((shape.colour, shape.kind) for shape in shapes)
    return [i for i, shape in enumerate(shapes) if per_pair[shape.colour, shape.kind] == 1]


def noun_phrases(shapes: list[Shape], nouns: tuple):
    """(colour or "", noun, indices) of each phrase worth saying: a colour is only said where it narrows the choice."""
    everything = tuple(range(len(shapes)))
    for noun in nouns:
        of_kind = tuple(i for i in everything if noun in (shapes[i].kind, ANY))
        if len(of_kind) < 2:
            continue
        yield "", noun, of_kind
        for colour in COLOURS:
            fits = tuple(i for i in of_kind if shapes[i].colour == colour)
            if (1 if noun != ANY else 2) <= len(fits) < len(of_kind):
                yield colour, noun, fits


def _spatial_cues(shapes, fits):
    cues: list[tuple[int, tuple[str, ...]]] = []
    for side, (axis, sign) in SIDE_AXES.items():
        order = sorted((sign * getattr(shapes[i], axis), i) for i in fits)
        if all(b[0] - a[0] >= STEP for a, b in zip(order, order[1:], strict=False)):
            cues.append((order[0][1], ("side", side)))
            if len(fits) >= 3:
                cues += [(i, ("ordinal", nth, side)) for (_, i), nth in zip(order[1:], ORDINALS, strict=False)]
    for v, y in (("top", 0), ("bottom", SIZE)):
        for h, x in (("left", 0), ("right", SIZE)):
            near = sorted((math.hypot(shapes[i].x - x, shapes[i].y - y), i) for i in fits)
            zone = [i for i in fits if abs(shapes[i].x - x) <= ZONE and abs(shapes[i].y - y) <= ZONE]
            if zone == [near[0][1]] and near[1][0] - near[0][0] >= NEARER:
                cues.append((zone[0], ("corner", v, h)))
    sizes = sorted((shapes[i].area, i) for i in fits)
    if sizes[-1][0] >= FACTOR * sizes[-2][0]:
        cues.append((sizes[-1][1], ("size", "big")))
    if sizes[1][0] >= FACTOR * sizes[0][0]:
        cues.append((sizes[0][1], ("size", "small")))
    return cues


def _relation_cues(shapes, fits, anchors):
    cues = []
    for anchor in anchors:
        for name, (axis, sign) in RELATION_AXES.items():
            zero = getattr(shapes[anchor], axis)
            past = [(sign * (getattr(shapes[i], axis) - zero), i) for i in fits if i != anchor]
            near = [(offset, i) for offset, i in past if offset > SHORT]
            if len(near) == 1 and near[0][0] >= BEYOND:
                cues.append((near[0][1], ("relation", name, shapes[anchor].colour, shapes[anchor].kind)))
    return cues
