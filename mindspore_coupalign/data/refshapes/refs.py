"""RefShapes: which refs a scene has: the target shapes of each, and some sentences about them.

Splits train, val and testA follow one distribution: 3 to 6 shapes, and no sentence names one of the six (colour, kind)
pairs of `HELD_OUT` (such shapes are drawn, and may be the target when the sentence gives no colour). testB leaves it:
in its even scenes every sentence names a held-out pair, of the target or of the anchor; its odd scenes hold 7 or 8
shapes and name no such pair. Every scene has two refs, with two or three sentences each in train and one or two in the
other splits; the sentences of a ref are of different categories (sentences.py).

Generalised RefShapes: about half of the sentences have one target shape, three in ten several and two in ten none; the
two refs of a scene have different sets of targets. The sentences of a ref are of different forms, except pairs, which
differ in the shapes that they join. The splits are the same. In testB's even scenes every sentence names a pair of
`HELD_OUT`: of a target, of an anchor, of one of the two that a pair joins, or of an absent shape. Elsewhere no sentence
names one, not even as absent; a shape of such a pair may be the target of a sentence that gives no colour.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from mindspore_coupalign.data.refshapes.general import Meaning, Room, draw_absent, joined, one, plurals
from mindspore_coupalign.data.refshapes.general import word as word_meaning
from mindspore_coupalign.data.refshapes.scenes import KINDS, Shape, draw_scene
from mindspore_coupalign.data.refshapes.sentences import (
    ANY,
    SENTENCE_KINDS,
    Claim,
    choose,
    claims,
    possible_anchors,
    weighted,
    word,
)

HELD_OUT = (("red", "circle"), ("green", "square"), ("blue", "triangle"), ("yellow", "star"), ("purple", "cross"),
            ("white", "circle"))
NAMING_KINDS = ("attribute", "relation", "combination")  # the categories of sentences that can name a pair

_COUNTS = (3,) + 3 * (4,) + 7 * (5,) + 9 * (6,)  # shapes in a scene, each number as often as it stands here
_CROWDED = (7, 8)
_ANY_SHARE = 0.12  # of drawn scenes in which a sentence may say "object": makes it about a tenth of the spatial ones
# How readily a ref's further sentences are of each category: evens out that some are true less often than others.
_FURTHER = {"attribute": 2.8, "side": 0.8, "ordinal": 0.6, "corner": 0.5, "size": 3.0, "relation": 2.5,
            "combination": 1.4}


def compose_plain(rng: np.random.Generator, split: str, index: int) -> tuple[list[Shape], list]:
    """Draw scenes until one bears the refs that the split asks for.

    Returns:
        The shapes, and per ref (indices of the shapes that it means, its sentences as dicts of sent, kind, fits).
    """
    novel = names_held_out(split, index)
    kinds = NAMING_KINDS if novel else SENTENCE_KINDS
    leading = [kinds[i] for i in rng.integers(len(kinds), size=2)]
    while True:
        shapes = draw_shapes(rng, split, index)
        open_claims = [claim for claim in claims(shapes, draw_nouns(rng)) if fits_split(claim.pairs(), novel)]
        refs: dict[int, list] = {}
        for kind in leading:
            chosen = choose_ref(rng, split, kind, [c for c in open_claims if c.target not in refs])
            if chosen:
                refs[chosen[0].target] = [{"sent": word(c, rng), "kind": c.kind, "fits": c.fits} for c in chosen]
        if len(refs) == len(leading):
            return shapes, [((target,), said) for target, said in refs.items()]


def names_held_out(split: str, index: int) -> bool:
    """Whether every sentence of a scene names a pair of HELD_OUT; of the others none does."""
    return split == "testB" and index % 2 == 0


def fits_split(pairs: set, novel: bool) -> bool:
    return bool(pairs & set(HELD_OUT)) == novel


def draw_shapes(rng: np.random.Generator, split: str, index: int) -> list[Shape]:
    """The shapes of a scene: crowded in testB's odd scenes, with a held-out pair among them in its even ones."""
    novel = names_held_out(split, index)
    counts = _CROWDED if split == "testB" and not novel else _COUNTS
    named = choose(rng, HELD_OUT) if novel else None
    return draw_scene(rng, choose(rng, counts), named)


def draw_nouns(rng: np.random.Generator, share: float = _ANY_SHARE) -> tuple:
    """The nouns that a scene's sentences may use: ``share`` of the scenes also ANY."""
    return KINDS if rng.random() >= share else (*KINDS, ANY)


def choose_ref(rng: np.random.Generator, split: str, leading: str, open_claims: list[Claim]) -> list[Claim] | None:
    """The claims of one ref: one of category ``leading``, then of others about the same target; None if not enough."""
    first = pick(rng, [claim for claim in open_claims if claim.kind == leading], _cue_type)
    if first is None:
        return None
    about = [claim for claim in open_claims if claim.target == first.target]
    least = least_sentences(split)
    chosen = [first]
    for _ in range(least - 1 + int(rng.integers(2))):
        left = sorted({c.kind for c in about} - {c.kind for c in chosen})
        if left:
            kind = weighted(rng, {kind: _FURTHER[kind] for kind in left})
            chosen.append(pick(rng, [claim for claim in about if claim.kind == kind], _cue_type))
    return chosen if len(chosen) >= least else None


def least_sentences(split: str) -> int:
    return 2 if split == "train" else 1


def pick(rng: np.random.Generator, options: list, cue: Callable):
    """One of the claims or meanings: first what ``cue`` gives of them, evenly, then the option; None without any."""
    if not options:
        return None
    chosen = choose(rng, sorted({cue(option) for option in options}, key=str))
    return choose(rng, [option for option in options if cue(option) == chosen])


def _cue_type(claim: Claim) -> str:
    return claim.cue[0]


def _cue_start(meaning: Meaning) -> tuple:
    return meaning.says[0].cue[:2]


# What a scene's two refs mean: two that mean nothing would be one, so this is drawn again: 5, 3 and 2 in ten.
_MEANT = {"one": 15, "several": 9, "none": 8}
_PLURAL_SHARE = 0.3  # of drawn scenes in which a plural may say "objects"
_SEVERAL = {"all": 2, "count": 2, "half": 2, "most": 2, "beside": 2, "pair": 5}
# By form; what is more often not found in a scene more often, so that of every form about a fifth means nothing.
_NONE = {"attribute": 1.6, "side": 2.1, "ordinal": 2.3, "corner": 3.0, "size": 1.9, "relation": 2.4,
         "all": 1, "count": 1, "half": 1.3, "most": 0.9, "beside": 1.1, "pair": 3.5}
_TRIES = 20  # draws of a pair, before it is given up for this scene


def compose_general(rng: np.random.Generator, split: str, index: int) -> tuple[list[Shape], list]:
    """Draw scenes until one bears two refs; returns what ``compose_plain`` does."""
    leading = _draw_leading(rng, names_held_out(split, index))
    least = least_sentences(split)
    while True:
        shapes = draw_shapes(rng, split, index)
        said = _look(rng, shapes, names_held_out(split, index))
        refs: dict[tuple, list[Meaning]] = {}
        for meant, first in leading:
            if meant == "one":
                free = [claim for claim in said.singles if (claim.target,) not in refs]
                chosen = [one(claim) for claim in choose_ref(rng, split, first, free) or ()]
            elif meant == "several":
                chosen = _choose_several(rng, said, first, refs, least - 1 + int(rng.integers(2)))
            else:
                chosen = _choose_none(rng, said, first, least - 1 + int(rng.integers(2)))
            if len(chosen) >= least:
                refs[chosen[0].targets] = chosen
        if len(refs) == len(leading):
            return shapes, [
                (targets, [{"sent": word_meaning(m, rng), "kind": m.kind, "fits": m.fits} for m in meanings])
                for targets, meanings in refs.items()]


def _draw_leading(rng, novel):
    """Per ref what it means, of _MEANT, and the category or form of its first sentence."""
    while True:
        meant = [weighted(rng, _MEANT) for _ in range(2)]
        if meant != ["none", "none"]:
            break
    kinds = NAMING_KINDS if novel else SENTENCE_KINDS
    first = {"one": lambda: choose(rng, kinds), "several": lambda: weighted(rng, _SEVERAL),
             "none": lambda: weighted(rng, _NONE)}
    return [(what, first[what]()) for what in meant]


def _look(rng, shapes, novel):
    nouns, plural_nouns = draw_nouns(rng), draw_nouns(rng, _PLURAL_SHARE)
    every, allowed = claims(shapes, nouns), partial(fits_split, novel=novel)
    singulars: dict[int, list[Claim]] = {}
    for claim in every:
        if claim.cue[0] != "relation":
            singulars.setdefault(claim.target, []).append(claim)
    for i in possible_anchors(shapes):  # in a pair a shape may also be the only one of its kind
        colour, kind = shapes[i].colour, shapes[i].kind
        if all(shape.kind != kind for shape in shapes[:i] + shapes[i + 1:]):
            singulars.setdefault(i, []).append(Claim("attribute", i, (i,), colour, kind, ("attribute",)))
    return Room(shapes, nouns, plural_nouns, [claim for claim in every if allowed(claim.pairs())], singulars,
                [meaning for meaning in plurals(shapes, plural_nouns) if allowed(meaning.pairs())], allowed)


def _choose_several(rng, said, leading, taken, further):
    """Sentences about one set of two shapes or more that is not ``taken``: one of the form ``leading``, then others."""
    if leading == "pair":
        first = _draw_pair(rng, said, sorted(said.singulars), same_kind=bool(rng.random() < 0.5))
    else:
        first = pick(rng, [m for m in said.plurals if m.form == leading], _cue_start)
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
            chosen.append(pick(rng, [m for m in about if m.form == form], _cue_start))
    return chosen


def _choose_none(rng, said, leading, further):
    """Sentences about nothing, of different forms: one of the form ``leading``, then others."""
    first = draw_absent(rng, said, leading)
    if first is None:
        return []
    chosen = [first]
    for _ in range(further):
        used = {meaning.form for meaning in chosen}
        form = weighted(rng, {form: weight for form, weight in _NONE.items() if form not in used})
        more = draw_absent(rng, said, form)
        chosen += [more] if more else []
    return chosen


def _draw_pair(rng, said, targets, same_kind=None):
    """A pair about two of the shapes ``targets``, or None; with ``same_kind`` both of one noun, or not."""
    if len(targets) < 2 or any(target not in said.singulars for target in targets):
        return None
    for _ in range(_TRIES):
        halves = [pick(rng, said.singulars[targets[i]], _cue_type) for i in rng.permutation(len(targets))[:2]]
        meaning = joined("pair", *halves)
        if same_kind in (None, halves[0].noun == halves[1].noun) and said.allowed(meaning.pairs()):
            return meaning
    return None
