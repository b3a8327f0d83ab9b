"""RefShapes, generalised: what sentences about several shapes say, and the wording of all its sentences.

A sentence means a set of shapes. Those of one shape are the singular ones of sentences.py; absent.py has those that
mean nothing. With F the shapes that fit the noun phrase, ``[colour] (kinds | "objects" | "shapes")``:

- plural: two or more shapes, but not all of the scene, by one noun phrase in one of five forms:
  - all: F.
  - count: F, which are two, three or four, and the sentence says how many.
  - half: those of F in the left, right, top or bottom half of the picture.
  - most: the two biggest, smallest or outermost of at least three in F, which are not all the objects.
  - beside: those of F, other than the anchor, on a side of the anchor (as in a relation).
- pair: "A and B", two singular sentences without an anchor (a relation would leave open what it belongs to), each
  read for itself, about two different shapes.

Positions, margins and the mirror rule are those of sentences.py. A plural's "on the left" is the half of the picture;
a singular's is the outermost shape.
"""

from typing import NamedTuple

import numpy as np

from mindspore_coupalign.data.refshapes import sentences as singular
from mindspore_coupalign.data.refshapes.scenes import KINDS, SIZE, Shape
from mindspore_coupalign.data.refshapes.sentences import ANY, RELATION_AXES, SIDE_AXES, Claim, choose

GENERAL_KINDS = (*singular.SENTENCE_KINDS, "plural", "pair", "absent")
SINGULAR_FORMS = ("attribute", "side", "ordinal", "corner", "size", "relation")
PLURAL_FORMS = ("all", "count", "half", "most", "beside")
NUMBERS = {2: "two", 3: "three", 4: "four"}
MIDDLE = 4.0  # px that every shape of F keeps from the border between two halves of the picture

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
    """Those of ``fits`` in one half of the picture; None when one of them is too near to the border of the half."""
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


def vocabulary() -> list[str]:
    """Every word that a sentence can hold: the singular ones' first, each part sorted."""
    templates = [*_QUANTIFIERS, *(text for texts in _COUNT_WORDS.values() for text in texts)]
    for group in (_HALF_WORDS, _MOST_WORDS):
        templates += [text for texts in group.values() for text in texts]
    words = {text for template in templates for text in template.split() if not text.startswith("{")}
    words |= {"and", *NUMBERS.values(), *_ANY_WORDS, *(plural(noun) for noun in (*KINDS, *_ANY_WORDS))}
    known = singular.vocabulary()
    return known + sorted(words - set(known))
