"""RefShapes, generalised: which refs a scene bears, each a set of shapes (or none) and some sentences about it.

About half of the sentences mean one shape, as in the plain RefShapes (refs.py), three in ten several and two in ten
nothing; every scene has two refs of different sets. The sentences of a ref are of different forms, but for pairs, which
differ in what they join.

Splits are those of refs.py. In testB's even scenes every sentence names a pair of `HELD_OUT`: of a target, of an
anchor, of one of the two that a pair joins, or of what is not there. Elsewhere no sentence names one, not even as
absent; a shape of such a pair may be meant by a sentence that gives no colour.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from mindspore_coupalign.data.refshapes import refs as plain
from mindspore_coupalign.data.refshapes.absent import Room, draw_absent, look
from mindspore_coupalign.data.refshapes.general import Meaning, joined, one, plurals, word
from mindspore_coupalign.data.refshapes.scenes import Shape
from mindspore_coupalign.data.refshapes.sentences import (
    SENTENCE_KINDS,
    Claim,
    choose,
    claims,
    possible_anchors,
    weighted,
)

# What a scene's two refs mean: two that mean nothing would be one, so this is drawn again: 5, 3 and 2 in ten.
_MEANT = {"one": 15, "several": 9, "none": 8}
_PLURAL_SHARE = 0.3  # of drawn scenes in which a plural may say "objects"
_SEVERAL = {"all": 2, "count": 2, "half": 2, "most": 2, "beside": 2, "pair": 5}
# By form; what is more often not found in a scene more often, so that of every form about a fifth means nothing.
_NONE = {"attribute": 1.6, "side": 2.1, "ordinal": 2.3, "corner": 3.0, "size": 1.9, "relation": 2.4,
         "all": 1, "count": 1, "half": 1.3, "most": 0.9, "beside": 1.1, "pair": 3.5}
_TRIES = 20  # draws of a pair, before it is given up for this scene


class Open(NamedTuple):
    """What may be said of a scene."""

    singles: list  # of Claim that the split admits
    singulars: dict  # index -> the Claims without anchor about that shape, admitted or not: halves of pairs
    plurals: list  # of Meaning that the split admits
    room: Room
    allowed: Callable  # whether the split admits a sentence, by the (colour, kind) pairs that it names


def compose(rng: np.random.Generator, split: str, index: int) -> tuple[list[Shape], list]:
    """Draw scenes until one bears two refs; returns what ``refs.compose`` does."""
    leading = _draw_leading(rng, plain.names_held_out(split, index))
    least = plain.least_sentences(split)
    while True:
        shapes = plain.draw_shapes(rng, split, index)
        said = _open(rng, shapes, plain.names_held_out(split, index))
        refs: dict[tuple, list[Meaning]] = {}
        for meant, first in leading:
            if meant == "one":
                free = [claim for claim in said.singles if (claim.target,) not in refs]
                chosen = [one(claim) for claim in plain.choose_ref(rng, split, first, free) or ()]
            elif meant == "several":
                chosen = _choose_several(rng, said, first, refs, least - 1 + int(rng.integers(2)))
            else:
                chosen = _choose_none(rng, said, first, least - 1 + int(rng.integers(2)))
            if len(chosen) >= least:
                refs[chosen[0].targets] = chosen
        if len(refs) == len(leading):
            return shapes, [(targets, [{"sent": word(m, rng), "kind": m.kind, "fits": m.fits} for m in meanings])
                            for targets, meanings in refs.items()]


def _draw_leading(rng, novel):
    """Per ref what it means, of _MEANT, and the category or form of its first sentence."""
    while True:
        meant = [weighted(rng, _MEANT) for _ in range(2)]
        if meant != ["none", "none"]:
            break
    kinds = plain.NAMING_KINDS if novel else SENTENCE_KINDS
    first = {"one": lambda: choose(rng, kinds), "several": lambda: weighted(rng, _SEVERAL),
             "none": lambda: weighted(rng, _NONE)}
    return [(what, first[what]()) for what in meant]


def _open(rng, shapes, novel):
    nouns, plural_nouns = plain.draw_nouns(rng), plain.draw_nouns(rng, _PLURAL_SHARE)
    every, allowed = claims(shapes, nouns), partial(plain.fits_split, novel=novel)
    singulars: dict[int, list[Claim]] = {}
    for claim in every:
        if claim.cue[0] != "relation":
            singulars.setdefault(claim.target, []).append(claim)
    for i in possible_anchors(shapes):  # in a pair a shape may also be the only one of its kind
        colour, kind = shapes[i].colour, shapes[i].kind
        if all(shape.kind != kind for shape in shapes[:i] + shapes[i + 1:]):
            singulars.setdefault(i, []).append(Claim("attribute", i, (i,), colour, kind, ("attribute",)))
    return Open([claim for claim in every if allowed(claim.pairs())], singulars,
                [meaning for meaning in plurals(shapes, plural_nouns) if allowed(meaning.pairs())],
                look(shapes, nouns, plural_nouns), allowed)


def _choose_several(rng, said, leading, taken, further):
    """Sentences about one set of two shapes or more that is not ``taken``: one of the form ``leading``, then others."""
    if leading == "pair":
        first = _draw_pair(rng, said, sorted(said.singulars), same_kind=bool(rng.random() < 0.5))
    else:
        first = _pick(rng, [m for m in said.plurals if m.form == leading])
    if first is None or first.targets in taken:
        return []
    chosen = [first]
    about = [meaning for meaning in said.plurals if meaning.targets == first.targets]
    for _ in range(further):
        forms = sorted({m.form for m in about} - {m.form for m in chosen})
        if len(first.targets) == 2:
            forms.append("pair")
        form = choose(rng, forms) if forms else None
        if form == "pair":
            more = _draw_pair(rng, said, first.targets)
            if more and all(set(more.says) != set(m.says) for m in chosen):
                chosen.append(more)
        elif form:
            chosen.append(_pick(rng, [m for m in about if m.form == form]))
    return chosen


def _choose_none(rng, said, leading, further):
    """Sentences about nothing, of different forms: one of the form ``leading``, then others."""
    first = draw_absent(rng, said.room, leading, said.allowed)
    if first is None:
        return []
    chosen = [first]
    for _ in range(further):
        used = {meaning.form for meaning in chosen}
        form = weighted(rng, {form: weight for form, weight in _NONE.items() if form not in used})
        more = draw_absent(rng, said.room, form, said.allowed)
        chosen += [more] if more else []
    return chosen


def _draw_pair(rng, said, targets, same_kind=None):
    """A pair about two of the shapes ``targets``, or None; with ``same_kind`` both of one noun, or not."""
    if len(targets) < 2 or any(target not in said.singulars for target in targets):
        return None
    for _ in range(_TRIES):
        halves = [_half(rng, said.singulars[targets[i]]) for i in rng.permutation(len(targets))[:2]]
        meaning = joined("pair", *halves)
        if same_kind in (None, halves[0].noun == halves[1].noun) and said.allowed(meaning.pairs()):
            return meaning
    return None


def _half(rng, about):
    """One of the claims: first the type of cue, evenly, then the claim."""
    cue = choose(rng, sorted({claim.cue[0] for claim in about}))
    return choose(rng, [claim for claim in about if claim.cue[0] == cue])


def _pick(rng, meanings):
    """One of the meanings: first the cue, by its type and first word, then the meaning; None when there is none."""
    if not meanings:
        return None
    cue = choose(rng, sorted({m.says[0].cue[:2] for m in meanings}, key=str))
    return choose(rng, [m for m in meanings if m.says[0].cue[:2] == cue])
