"""What the network reads under each protocol, each distinct reading once.

A prompt is one reading: a ref's image with word pieces, ids and word_mask (n,) int32. A unit is what a protocol scores
once: its prediction is the mean of its prompts' logits. Prompts of one ref with the same word pieces are one prompt,
whichever protocols ask for it.

Interleaved, as the first author's code does it in effect (its (T, S) ids are flattened row by row): the first piece
of every sentence, then the second of every one, and so on; each sentence with its own [CLS] and [SEP], the shorter ones
padded to the longest with padding that is masked. Where the author pads to T, the additional columns stand at the end,
are masked and change nothing. Joined: [CLS], the pieces of all sentences one after the other, [SEP].
"""

from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import NamedTuple

import numpy as np

from mindspore_coupalign.data.refer import ReferData
from mindspore_coupalign.data.tokenizer import SentenceTokenizer
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.evaluation.protocols import DROPS, INTERLEAVED, JOINED, Protocol


class Prompt(NamedTuple):
    ref: int
    ids: np.ndarray
    word_mask: np.ndarray


class Unit(NamedTuple):
    ref: int
    sentence: int  # sample index; of a ref's unit, the first
    prompts: tuple[int, ...]  # indices into Plan.prompts


@dataclass(frozen=True, eq=False)
class Plan:
    prompts: list[Prompt]  # in the order of the refs
    units: dict[str, list[Unit]]  # by protocol, in the order of the refs
    refs: np.ndarray  # (R,) the refs that are scored
    lengths: np.ndarray  # (S,) word pieces of each sample before anything is cut, in data.sentence_field

    @property
    def longest(self) -> int:
        return max(len(prompt.ids) for prompt in self.prompts)


def samples_of(data: ReferData, split: str) -> np.ndarray:
    """The split's samples, (S,). Raises UserError when there is no such split, or it is empty."""
    samples = data.split(split)
    if not len(samples):
        raise UserError(f"{data.source}: split '{split}' has no sentences to score")
    return samples


def derange(data: ReferData, samples: np.ndarray) -> np.ndarray:
    """For each sample another one, of another image as long as no image holds more than half of all."""
    by_image = np.argsort(data.ref_image[data.sentence_ref[samples]], kind="stable")
    others = np.empty_like(samples)
    others[by_image] = samples[np.roll(by_image, len(samples) // 2)]
    return others


def make_plan(data: ReferData, samples: np.ndarray, tokenizer: SentenceTokenizer, protocols: list[Protocol],
              field: str = "sent", texts: np.ndarray | None = None) -> Plan:
    """The prompts and units of samples, which are whole refs, under (resolved) protocols.

    Args:
        field: data.sentence_field, whose word pieces are counted.
        texts: (S,) samples whose sentences are read instead of each sample's own.
    """
    texts = samples if texts is None else texts
    spelt = {(p.text, p.lower): _pieces(data, texts, tokenizer, p.text, p.lower) for p in protocols}
    if (field, False) not in spelt:
        spelt[field, False] = _pieces(data, texts, tokenizer, field, False)
    first = np.flatnonzero(np.r_[True, np.diff(data.sentence_ref[samples]) != 0])
    prompts: list[Prompt] = []
    units: dict[str, list[Unit]] = {p.name: [] for p in protocols}
    for start, stop in zip(first, [*first[1:], len(samples)], strict=True):
        ref, known = int(data.sentence_ref[samples[start]]), {}
        for protocol in protocols:
            pieces = spelt[protocol.text, protocol.lower][start:stop]
            numbers = []
            for ids, word_mask in _readings(protocol, pieces, tokenizer):
                key = (ids.tobytes(), word_mask.tobytes())
                if key not in known:
                    known[key] = len(prompts)
                    prompts.append(Prompt(ref, ids, word_mask))
                numbers.append(known[key])
            own = samples[start:stop].tolist()
            if protocol.unit == "ref":
                units[protocol.name].append(Unit(ref, own[0], tuple(numbers)))
            else:
                units[protocol.name] += [Unit(ref, s, (k,)) for s, k in zip(own, numbers, strict=True)]
    lengths = np.array([len(pieces) for pieces in spelt[field, False]])
    return Plan(prompts, units, data.sentence_ref[samples[first]].astype(np.int64), lengths)


def _pieces(data, samples, tokenizer, field: str, lower: bool) -> list[list[int]]:
    sentences = [data.sentence(s, field) for s in samples]
    return tokenizer.pieces([s.strip().lower() for s in sentences] if lower else sentences)


def _readings(protocol: Protocol, pieces: list[list[int]], tokenizer: SentenceTokenizer) -> list[tuple]:
    """ids and word_mask of a ref's prompts: one per sentence, or one for all."""
    limit = tokenizer.max_tokens
    end = [] if protocol.cut == DROPS else pieces[0][-1:]
    cut = [p if len(p) <= limit else p[: limit - len(end)] + end for p in pieces]
    if protocol.prompt == INTERLEAVED:
        columns = list(chain.from_iterable(zip_longest(*cut)))  # None where a sentence has ended
        while columns[-1] is None:
            columns.pop()
        ids = [tokenizer.pad_id if piece is None else piece for piece in columns]
        return [_arrays(ids, [int(piece is not None) for piece in columns])]
    if protocol.prompt == JOINED:
        ids = [*cut[0][:1], *chain.from_iterable(p[1:-1] for p in cut), *cut[0][-1:]]
        return [_arrays(ids, [1] * len(ids))]
    return [_arrays(ids, [1] * len(ids)) for ids in cut]


def _arrays(ids: list, word_mask: list) -> tuple[np.ndarray, np.ndarray]:
    return np.array(ids, np.int32), np.array(word_mask, np.int32)


def check_positions(plan: Plan, protocols: list[Protocol], data: ReferData, positions: int):
    """Check that the network has positions for all prompts; those of several sentences exceed data.max_tokens.
    Raises UserError: a prompt is longer; it names the ref and the protocol."""
    for protocol in protocols:
        for unit in plan.units[protocol.name]:
            length = max(len(plan.prompts[k].ids) for k in unit.prompts)
            if length > positions:
                count = data.ref_sentences[unit.ref + 1] - data.ref_sentences[unit.ref]
                raise UserError(f"--protocol {protocol.name}: the {count} sentences of ref {data.ref_ids[unit.ref]} "
                                f"are {length} word pieces in one prompt, and the network has {positions} positions "
                                "(model.text.max_positions); leave this protocol out, or train with more positions")
