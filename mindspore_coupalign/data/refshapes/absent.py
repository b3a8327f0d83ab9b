"""RefShapes, generalised: sentences that mean nothing, in the same templates as those that mean something.

Why nothing is meant, with F the shapes that fit the noun phrase:

- phrase: F is empty, whatever the cue says. Mostly hard: the kind is there and so is the colour, but not together.
  Also colours or kinds that are not there at all.
- few: an ordinal of more than there are in F ("the third circle" of two).
- place: none of F (two shapes or more) in that half of the picture, on that side of the anchor, or, for a corner, in
  that quarter of the picture.
- anchor: F has two shapes or more, but the anchor of a relation is not there.

A pair is absent when neither of its two is there. What might be meant after all is not said: a plural that one shape
fits, a count that differs, a pair of which one is there, an anchor that stands there twice.

Words are drawn in about the shares that they have in sentences with a target, so that the words alone tell little.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mindspore_coupalign.data.refshapes import sentences as singular
from mindspore_coupalign.data.refshapes.general import MIDDLE, PLURAL_FORMS, Meaning, beside, in_half, joined, unmeant
from mindspore_coupalign.data.refshapes.scenes import COLOURS, KINDS, SIZE, Shape
from mindspore_coupalign.data.refshapes.sentences import ANY, ORDINALS, RELATION_AXES, SIDE_AXES, choose, weighted

_REASONS = {  # how often each, by form; the other forms have "phrase" alone
    "ordinal": {"phrase": 1, "few": 9}, "corner": {"phrase": 1, "place": 9}, "half": {"phrase": 1, "place": 9},
    "relation": {"phrase": 1, "place": 4, "anchor": 4}, "beside": {"phrase": 1, "place": 4, "anchor": 4}}
_HARD = 0.75  # of the (colour, kind) pairs that are not there: colour and kind are
_TRIES = 20  # draws of a sentence, before its form is given up for this scene

# Shares as they are measured in sentences with a target.
_COLOURED = {"attribute": 1.0, "side": 0.28, "ordinal": 0.11, "corner": 0.21, "size": 0.22, "relation": 0.14,
             "all": 0.5, "count": 0.55, "half": 0.33, "most": 0.16, "beside": 0.33}  # of noun phrases with a kind
_COLOURED_HALF = {"attribute": 1.0, "side": 0.6, "ordinal": 0.22, "corner": 0.26, "size": 0.5}  # of a pair's halves
_HALF = {"attribute": 24, "side": 25, "ordinal": 20, "corner": 20, "size": 11}  # forms of a pair's halves
_ANY = {"side": 0.7, "ordinal": 0.5, "corner": 0.4, "size": 0.7,  # noun phrases with ANY, where the nouns have it
        "all": 0.4, "count": 0.5, "half": 0.5, "most": 0.3, "beside": 0.5}
_NTH = {"second": 4, "third": 4, "fourth": 2}
_COUNT = {True: {2: 64, 3: 28, 4: 8}, False: {2: 27, 3: 36, 4: 37}}  # with a colour, without
_SAME_KIND = {"relation": 0.72, "beside": 0.34}  # the anchor is of the kind that the noun phrase names
_SAME_KIND_PAIR = 0.74  # both halves name one kind
_SIZE = {"big": 6, "small": 4}
_MOST = {**dict.fromkeys(SIDE_AXES, 21), "big": 8, "small": 8}


class Room(NamedTuple):
    """A scene as the sentences about nothing see it."""

    shapes: list
    pairs: dict  # (colour, kind) -> indices
    nouns: tuple  # of singular forms
    plural_nouns: tuple


def look(shapes: list[Shape], nouns: tuple, plural_nouns: tuple) -> Room:
    pairs: dict[tuple, tuple] = {}
    for i, shape in enumerate(shapes):
        pairs[shape.colour, shape.kind] = (*pairs.get((shape.colour, shape.kind), ()), i)
    return Room(shapes, pairs, nouns, plural_nouns)


def draw_absent(rng: np.random.Generator, room: Room, form: str, allowed: Callable) -> Meaning | None:
    """A sentence of the form that means nothing in the scene; None when none was found in some draws.

    Args:
        allowed: of the (colour, kind) pairs that a sentence names, whether it may.
    """
    if form == "pair":
        return _draw_absent_pair(rng, room, allowed)
    reason = weighted(rng, _REASONS.get(form, {"phrase": 1}))
    phrase_type = _phrase_type(rng, room, form, _COLOURED)
    same_kind = rng.random() < _SAME_KIND.get(form, 0)
    for _ in range(_TRIES):
        meaning = _draw_once(rng, room, form, reason, phrase_type)
        if meaning and allowed(meaning.pairs()):
            (claim,) = meaning.says
            if form not in _SAME_KIND or reason == "phrase" or (claim.noun == claim.cue[-1]) == same_kind:
                return meaning
    return None


def _draw_absent_pair(rng, room, allowed):
    forms = [weighted(rng, _HALF) for _ in range(2)]
    same_kind = rng.random() < _SAME_KIND_PAIR
    for _ in range(2 * _TRIES):
        halves = [_draw_once(rng, room, form, weighted(rng, _REASONS.get(form, {"phrase": 1})),
                             _phrase_type(rng, room, form, _COLOURED_HALF)) for form in forms]
        if None not in halves:
            first, second = (half.says[0] for half in halves)
            meaning = joined("absent", first, second)
            differ = first[3:] != second[3:]  # in colour, noun or cue
            if differ and (first.noun == second.noun) == same_kind and allowed(meaning.pairs()):
                return meaning
    return None


def _phrase_type(rng, room, form, coloured):
    """What a noun phrase has: "any" (ANY, mostly coloured), "both" (colour and kind) or "kind"."""
    if ANY in (room.plural_nouns if form in PLURAL_FORMS else room.nouns) and rng.random() < _ANY.get(form, 0):
        return "any"
    return "both" if rng.random() < coloured[form] else "kind"


def _draw_once(rng, room, form, reason, phrase_type):
    if reason == "phrase":
        phrase = _missing_phrase(rng, room, phrase_type)
        if not phrase:
            return None
        colour, noun = phrase
        cue = _any_cue(rng, room, form, bool(colour))
        return unmeant(form, (), colour, noun, cue) if cue else None
    phrase = _there(rng, room, phrase_type, 1 if reason == "few" else 2)
    if not phrase:
        return None
    colour, noun, fits = phrase
    cue = _false_cue(rng, room, form, reason, fits)
    return unmeant(form, fits, colour, noun, cue) if cue else None


def _missing_phrase(rng, room, phrase_type):
    """(colour or "", noun) that fits no shape, or None."""
    if phrase_type == "both":
        return _missing_pair(rng, room)
    if phrase_type == "kind":
        options = [("", kind) for kind in KINDS if kind not in {shape.kind for shape in room.shapes}]
    else:
        options = [(colour, ANY) for colour in COLOURS if colour not in {shape.colour for shape in room.shapes}]
    return choose(rng, options) if options else None


def _missing_pair(rng, room):
    """(colour, kind) that no shape has, mostly with both there apart."""
    colours, kinds = {shape.colour for shape in room.shapes}, {shape.kind for shape in room.shapes}
    missing = [(colour, kind) for colour in COLOURS for kind in KINDS if (colour, kind) not in room.pairs]
    hard = [pair for pair in missing if pair[0] in colours and pair[1] in kinds]
    easy = [pair for pair in missing if pair not in hard]
    options = hard if hard and rng.random() < _HARD else easy or hard
    return choose(rng, options) if options else None


def _there(rng, room, phrase_type, least):
    """(colour or "", noun, indices) of a noun phrase that ``least`` shapes or more fit, or None; a colour is only said
    where it narrows the choice."""
    options = []
    for noun in (ANY,) if phrase_type == "any" else KINDS:
        of_noun = tuple(i for i, shape in enumerate(room.shapes) if noun in (shape.kind, ANY))
        for colour in {"both": COLOURS, "kind": ("",)}.get(phrase_type, ("", *COLOURS)):
            fits = tuple(i for i in of_noun if colour in ("", room.shapes[i].colour))
            if len(fits) >= least and (not colour or len(fits) < len(of_noun)):
                options.append((colour, noun, fits))
    return choose(rng, options) if options else None


def _any_cue(rng, room, form, coloured):
    """A cue of the form, whether it holds or not; None when a relation finds no anchor. A count suits the colour."""
    sides = list(SIDE_AXES)
    if form == "ordinal":
        return "ordinal", weighted(rng, _NTH), choose(rng, sides)
    if form == "corner":
        return "corner", choose(rng, ("top", "bottom")), choose(rng, ("left", "right"))
    if form == "size":
        return "size", weighted(rng, _SIZE)
    if form in ("side", "half"):
        return form, choose(rng, sides)
    if form == "count":
        return "count", weighted(rng, _COUNT[coloured])
    if form == "most":
        return "most", weighted(rng, _MOST)
    if form in ("relation", "beside"):
        anchors = singular.possible_anchors(room.shapes)
        anchor = room.shapes[choose(rng, anchors)] if anchors else None
        return ("relation", choose(rng, list(RELATION_AXES)), anchor.colour, anchor.kind) if anchor else None
    return (form,)


def _false_cue(rng, room, form, reason, fits):
    """A cue of the form that holds for none of ``fits``; None when the one drawn does."""
    if reason == "anchor":
        pair = _missing_pair(rng, room)
        return ("relation", choose(rng, list(RELATION_AXES)), *pair) if pair else None
    cue = _any_cue(rng, room, form, False)
    if cue is None:
        return None
    if reason == "few":
        return cue if len(fits) < 2 + ORDINALS.index(cue[1]) else None
    if form == "corner":
        return cue if _far_from_corner(room.shapes, fits, *cue[1:]) else None
    if form == "half":
        return cue if in_half(room.shapes, fits, cue[1]) == [] else None
    (anchor,) = room.pairs[cue[2:]]
    return cue if beside(room.shapes, fits, anchor, cue[1]) == [] else None


def _far_from_corner(shapes, fits, v, h):
    """Whether none of ``fits`` lies in that quarter of the picture, nor within MIDDLE px of it."""
    x, y = (0 if h == "left" else SIZE), (0 if v == "top" else SIZE)
    return all(max(abs(shapes[i].x - x), abs(shapes[i].y - y)) >= SIZE / 2 + MIDDLE for i in fits)
