"""RefShapes: which refs a scene bears, each one shape and some sentences about it.

Splits train, val and testA follow one distribution: 3 to 6 shapes, and no sentence names one of the six (colour, kind)
pairs of `HELD_OUT` (such shapes are drawn, and may be the target when the sentence gives no colour). testB leaves it:
in its even scenes every sentence names a held-out pair, of the target or of the anchor; its odd scenes hold 7 or 8
shapes and name no such pair. Every scene has two refs, with two or three sentences each in train and one or two in the
other splits; the sentences of a ref are of different categories (sentences.py).
"""

import numpy as np

from mindspore_coupalign.data.refshapes.scenes import KINDS, Shape, draw_scene
from mindspore_coupalign.data.refshapes.sentences import ANY, SENTENCE_KINDS, Claim, claims, weighted, word

HELD_OUT = (("red", "circle"), ("green", "square"), ("blue", "triangle"), ("yellow", "star"), ("purple", "cross"),
            ("white", "circle"))
NAMING_KINDS = ("attribute", "relation", "combination")  # the categories of sentences that can name a pair

_COUNTS = (3,) + 3 * (4,) + 7 * (5,) + 9 * (6,)  # shapes in a scene, each number as often as it stands here
_CROWDED = (7, 8)
_ANY_SHARE = 0.12  # of drawn scenes in which a sentence may say "object": makes it about a tenth of the spatial ones
# How readily a ref's further sentences are of each category: evens out that some are true less often than others.
_FURTHER = {"attribute": 2.8, "side": 0.8, "ordinal": 0.6, "corner": 0.5, "size": 3.0, "relation": 2.5,
            "combination": 1.4}


def compose(rng: np.random.Generator, split: str, index: int) -> tuple[list[Shape], list]:
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
    named = HELD_OUT[rng.integers(len(HELD_OUT))] if novel else None
    return draw_scene(rng, counts[rng.integers(len(counts))], named)


def draw_nouns(rng: np.random.Generator, share: float = _ANY_SHARE) -> tuple:
    """The nouns that a scene's sentences may use: ``share`` of the scenes also ANY."""
    return KINDS if rng.random() >= share else (*KINDS, ANY)


def choose_ref(rng: np.random.Generator, split: str, leading: str, open_claims: list[Claim]) -> list[Claim] | None:
    """The claims of one ref: one of category ``leading``, then of others about the same target; None if not enough."""
    first = pick(rng, open_claims, leading)
    if first is None:
        return None
    about = [claim for claim in open_claims if claim.target == first.target]
    least = least_sentences(split)
    chosen = [first]
    for _ in range(least - 1 + int(rng.integers(2))):
        left = sorted({c.kind for c in about} - {c.kind for c in chosen})
        if left:
            more = pick(rng, about, weighted(rng, {kind: _FURTHER[kind] for kind in left}))
            chosen += [more] if more else []
    return chosen if len(chosen) >= least else None


def least_sentences(split: str) -> int:
    return 2 if split == "train" else 1


def pick(rng: np.random.Generator, open_claims: list[Claim], kind: str) -> Claim | None:
    """One claim of the category: first the type of cue, evenly, then the claim; None when none is open."""
    of_kind = [claim for claim in open_claims if claim.kind == kind]
    if not of_kind:
        return None
    cues = sorted({claim.cue[0] for claim in of_kind})
    cue = cues[rng.integers(len(cues))]
    of_cue = [claim for claim in of_kind if claim.cue[0] == cue]
    return of_cue[rng.integers(len(of_cue))]
