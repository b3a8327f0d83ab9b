"""RefShapes, generalised: what sentences about several shapes say, and the wording of all its sentences.

A sentence has a set of target shapes. Those with one are the singular sentences of sentences.py. With F the shapes that
fit the noun phrase, ``[colour] (kinds | "objects" | "shapes")``:

- plural: two or more shapes, but not all of the scene, by one noun phrase in one of five forms:
  - all: F.
  - count: F, which are two, three or four, and the sentence says how many.
  - half: those of F in the left, right, top or bottom half of the image.
  - most: the two biggest, smallest or outermost of at least three in F, which are not all the objects.
  - beside: those of F, other than the anchor, on a side of the anchor (as in a relation).
- pair: "A and B", two singular sentences without an anchor (a relation would leave open what it belongs to), each
  read for itself, about two different shapes.

Positions, margins and the mirror rule are those of sentences.py. A plural's "on the left" is the half of the image;
a singular's is the outermost shape.

Sentences without a target have the same templates. Why there is no target, with F the shapes that fit the noun phrase:

- phrase: F is empty, whatever the cue says. Mostly hard: the kind is there and so is the colour, but not together.
  Also colours or kinds that are not there at all.
- few: an ordinal of more than there are in F ("the third circle" of two).
- place: none of F (two shapes or more) in that half of the image, on that side of the anchor, or, for a corner, in
  that quarter of the image.
- anchor: F has two shapes or more, but the anchor of a relation is not there.

A pair is absent when neither of its two is there. What might be meant after all is not said: a plural that one shape
fits, a count that differs, a pair of which one is there, an anchor that stands there twice.

Words are drawn in about the shares that they have in sentences with a target, so that the words alone tell little.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mindspore_coupalign.data.refshapes import sentences as singular
from mindspore_coupalign.data.refshapes.scenes import COLOURS, KINDS, SIZE, Shape
from mindspore_coupalign.data.refshapes.sentences import (
    ANY,
    ORDINALS,
    RELATION_AXES,
    SIDE_AXES,
    Claim,
    choose,
    weighted,
)

GENERAL_KINDS = (*singular.SENTENCE_KINDS, "plural", "pair", "absent")
SINGULAR_FORMS = ("attribute", "side", "ordinal", "corner", "size", "relation")
PLURAL_FORMS = ("all", "count", "half", "most", "beside")
NUMBERS = {2: "two", 3: "three", 4: "four"}
MIDDLE = 4.0  # px that every shape of F keeps from the border between two halves of the image

_ANY_WORDS = (ANY, "shape")  # of plural sentences; singular ones say "object"
_QUANTIFIERS = ("{nps}", "{nps}", "all {nps}", "every {np}")
_COUNT_WORDS = {2: ("both {nps}", "two {nps}"), 3: ("three {nps}", "all three {nps}"),
                4: ("four {nps}", "all four {nps}")}
_HALF_WORDS = {
    **{side: ("on the {side}", "on the {side} side", "in the {side} half") for side in ("left", "right")},
    **{side: ("at the {side}", "in the {side} half") for side in ("top", "bottom")},
}
_MOST_WORDS = {"big": ("biggest", "largest"), "small": ("smallest",), "left": ("leftmost",), "right": ("rightmost",),
               "top": ("topmost", "highest"), "bottom": ("lowest",)}


class Meaning(NamedTuple):
    """What one sentence says, before it is worded: ``targets`` and no other set of shapes, or nothing."""

    kind: str  # of GENERAL_KINDS
    form: str  # of SINGULAR_FORMS, PLURAL_FORMS or "pair": which templates word it
    targets: tuple  # indices into the scene, ascending; empty where nothing is meant
    fits: tuple  # indices of the shapes that fit the noun phrase, of a pair either of the two
    says: tuple  # of Claim, one, or a pair's two; of each only colour, noun and cue count

    def pairs(self) -> set:
        """(colour, kind) pairs that the sentence names."""
        return set().union(*(claim.pairs() for claim in self.says))


def one(claim: Claim) -> Meaning:
    """A singular claim, which is true of its target."""
    return Meaning(claim.kind, claim.cue[0], (claim.target,), claim.fits, (claim,))


def joined(kind: str, first: Claim, second: Claim) -> Meaning:
    """"A and B": a pair, or with the kind absent two claims that mean nothing."""
    targets = () if kind == "absent" else tuple(sorted((first.target, second.target)))
    return Meaning(kind, "pair", targets, tuple(sorted({*first.fits, *second.fits})), (first, second))


def unmeant(form: str, fits: tuple, colour: str, noun: str, cue: tuple) -> Meaning:
    """A sentence with one noun phrase that means nothing."""
    return Meaning("absent", form, (), fits, (Claim("absent", -1, fits, colour, noun, cue),))


def plurals(shapes: list[Shape], nouns: tuple = (*KINDS, ANY)) -> list[Meaning]:
    """Every plural with one of the nouns that holds in the scene with its margins, in a fixed order."""
    anchors, found = singular.possible_anchors(shapes), []
    for colour, noun, fits in singular.noun_phrases(shapes, nouns):
        if len(fits) >= 2:
            for form, targets, cue in _plural_cues(shapes, fits, anchors):
                if 2 <= len(targets) < len(shapes) and (form != "most" or colour or noun != ANY):
                    claim = Claim("plural", -1, fits, colour, noun, cue)
                    found.append(Meaning("plural", form, tuple(sorted(targets)), fits, (claim,)))
    return found


def in_half(shapes: list[Shape], fits: tuple, side: str) -> list[int] | None:
    """Those of ``fits`` in one half of the image; None when one of them is too near to the border of the half."""
    axis, sign = SIDE_AXES[side]
    offsets = {i: sign * (getattr(shapes[i], axis) - SIZE / 2) for i in fits}
    if min(map(abs, offsets.values())) < MIDDLE:
        return None
    return [i for i, offset in offsets.items() if offset < 0]


def beside(shapes: list[Shape], fits: tuple, anchor: int, name: str) -> list[int] | None:
    """Those of ``fits`` on a side of the anchor; None when one of them is neither clearly there nor clearly not."""
    axis, sign = RELATION_AXES[name]
    offsets = {i: sign * (getattr(shapes[i], axis) - getattr(shapes[anchor], axis)) for i in fits if i != anchor}
    if any(singular.SHORT < offset < singular.BEYOND for offset in offsets.values()):
        return None
    return [i for i, offset in offsets.items() if offset >= singular.BEYOND]


def _plural_cues(shapes, fits, anchors):
    """(form, indices, cue) of each plural with F = ``fits``, whatever the number of its shapes."""
    cues: list[tuple[str, tuple | list, tuple]] = [("all", fits, ("all",))]
    if len(fits) in NUMBERS:
        cues.append(("count", fits, ("count", len(fits))))
    for side, (axis, sign) in SIDE_AXES.items():
        cues.append(("half", in_half(shapes, fits, side) or (), ("half", side)))
        order = sorted((sign * getattr(shapes[i], axis), i) for i in fits)
        if len(order) >= 3 and order[2][0] - order[1][0] >= singular.STEP:
            cues.append(("most", [i for _, i in order[:2]], ("most", side)))
    sizes = sorted((shapes[i].area, i) for i in fits)
    if len(sizes) >= 3 and sizes[-2][0] >= singular.FACTOR * sizes[-3][0]:
        cues.append(("most", [i for _, i in sizes[-2:]], ("most", "big")))
    if len(sizes) >= 3 and sizes[2][0] >= singular.FACTOR * sizes[1][0]:
        cues.append(("most", [i for _, i in sizes[:2]], ("most", "small")))
    for anchor in anchors:
        for name in RELATION_AXES:
            cue = ("relation", name, shapes[anchor].colour, shapes[anchor].kind)
            cues.append(("beside", beside(shapes, fits, anchor, name) or (), cue))
    return cues


def word(meaning: Meaning, rng: np.random.Generator) -> str:
    """One wording of a meaning: lower case words with single spaces."""
    if meaning.form in SINGULAR_FORMS:
        return singular.word(meaning.says[0], rng)
    if meaning.form == "pair":
        article = "the " if rng.random() < 0.5 else ""
        first, second = (singular.phrase_of(claim, rng) for claim in meaning.says)
        return f"{article}{first} and {article}{second}"
    (claim,) = meaning.says
    template = _plural_template(claim.cue, rng)
    noun = choose(rng, _ANY_WORDS) if claim.noun == ANY else claim.noun
    phrase = f"{claim.colour} {noun}" if claim.colour else noun
    text = template.format(np=phrase, nps=plural(phrase))
    takes_article = text.split()[0] not in ("all", "every", "both")
    return "the " + text if takes_article and rng.random() < 0.4 else text


def plural(phrase: str) -> str:
    """A noun phrase of more than one: "red crosses"."""
    return phrase + ("es" if phrase.endswith("s") else "s")


def _plural_template(cue, rng):
    name, *rest = cue
    if name == "count":
        return choose(rng, _COUNT_WORDS[rest[0]])
    if name == "most":
        return f"two {choose(rng, _MOST_WORDS[rest[0]])} {{nps}}"
    quantifier = choose(rng, _QUANTIFIERS)
    if name == "half":
        return f"{quantifier} {choose(rng, _HALF_WORDS[rest[0]]).format(side=rest[0])}"
    if name == "relation":
        tail = choose(rng, singular.RELATION_WORDS[rest[0]]).replace("{np} ", "").format(anchor=" ".join(rest[1:]))
        return f"{quantifier} {tail}"
    return quantifier


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
    """A scene and what may be said of it."""

    shapes: list
    nouns: tuple  # of singular forms
    plural_nouns: tuple
    singles: list  # of Claim that the split admits
    singulars: dict  # index -> the Claims without anchor about that shape, admitted or not: halves of pairs
    plurals: list  # of Meaning that the split admits
    allowed: Callable  # whether the split admits a sentence, by the (colour, kind) pairs that it names


def draw_absent(rng: np.random.Generator, room: Room, form: str) -> Meaning | None:
    """A sentence of the form that means nothing in the scene; None when none was found in some draws."""
    if form == "pair":
        return _draw_absent_pair(rng, room)
    reason = weighted(rng, _REASONS.get(form, {"phrase": 1}))
    phrase_type = _phrase_type(rng, room, form, _COLOURED)
    same_kind = rng.random() < _SAME_KIND.get(form, 0)
    for _ in range(_TRIES):
        meaning = _draw_once(rng, room, form, reason, phrase_type)
        if meaning and room.allowed(meaning.pairs()):
            (claim,) = meaning.says
            if form not in _SAME_KIND or reason == "phrase" or (claim.noun == claim.cue[-1]) == same_kind:
                return meaning
    return None


def _draw_absent_pair(rng, room):
    forms = [weighted(rng, _HALF) for _ in range(2)]
    same_kind = rng.random() < _SAME_KIND_PAIR
    for _ in range(2 * _TRIES):
        halves = [_draw_once(rng, room, form, weighted(rng, _REASONS.get(form, {"phrase": 1})),
                             _phrase_type(rng, room, form, _COLOURED_HALF)) for form in forms]
        if None not in halves:
            first, second = (half.says[0] for half in halves)
            meaning = joined("absent", first, second)
            differ = first[3:] != second[3:]  # in colour, noun or cue
            if differ and (first.noun == second.noun) == same_kind and room.allowed(meaning.pairs()):
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
    pairs = {(shape.colour, shape.kind) for shape in room.shapes}
    colours, kinds = zip(*pairs, strict=True)
    missing = [(colour, kind) for colour in COLOURS for kind in KINDS if (colour, kind) not in pairs]
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
    anchor = next(i for i, shape in enumerate(room.shapes) if (shape.colour, shape.kind) == cue[2:])
    return cue if beside(room.shapes, fits, anchor, cue[1]) == [] else None


def _far_from_corner(shapes, fits, v, h):
    """Whether none of ``fits`` lies in that quarter of the image, nor within MIDDLE px of it."""
    x, y = (0 if h == "left" else SIZE), (0 if v == "top" else SIZE)
    return all(max(abs(shapes[i].x - x), abs(shapes[i].y - y)) >= SIZE / 2 + MIDDLE for i in fits)
