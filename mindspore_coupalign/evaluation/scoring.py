"""Scoring under several protocols at once: every prompt goes through the network once, and every protocol that reads
it counts.

Shapes: logits (H, W) at the network's input size; counts (n, 4) per protocol and size, of its n units: I, U, whether
the unit means anything, and whether the network says that it does.
"""

from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco
from tqdm import tqdm

from mindspore_coupalign.config import Config
from mindspore_coupalign.data.loader import PromptSource, batches
from mindspore_coupalign.data.refer import ReferData
from mindspore_coupalign.data.tokenizer import SentenceTokenizer
from mindspore_coupalign.data.transforms import ImageTransform
from mindspore_coupalign.distributed.collectives import all_reduce_sum
from mindspore_coupalign.distributed.process import Runtime
from mindspore_coupalign.evaluation.answer import Existence, answer_of
from mindspore_coupalign.evaluation.metrics import overlap
from mindspore_coupalign.evaluation.pool import Pool
from mindspore_coupalign.evaluation.prompts import Plan
from mindspore_coupalign.evaluation.protocols import IMAGE, INPUT, NO_TARGET, Protocol, predicted_mask


class Kept(NamedTuple):
    """A sentence's prediction at the image's own size, for the file of details."""

    sample: int
    inter: int
    union: int
    counts: bytes  # COCO's compressed RLE
    exists: bool  # whether the network says that the sentence means anything


def score_plan(networks, plan: Plan, protocols: list[Protocol], data: ReferData, tokenizer: SentenceTokenizer,
               config: Config, *, keep: list | None = None, progress: str = "", runtime: Runtime | None = None) -> dict:
    """The counts of every unit, {(protocol's name, size): (n, 4) int64}, the same on every rank.

    Args:
        networks: gives for prompts of so many word pieces the number T that they are padded to, and the network
            (networks.py); its ``uint8`` says whether that takes pixels as they are.
        protocols: resolved, those that the plan was made with.
        keep: gets a Kept for each of this rank's sentences, of the protocol ``sentence``.
        progress: label of the progress bar; empty for none.
        runtime: of several ranks, each of which takes its share of the refs; None: this process is alone.
    """
    runtime = runtime or Runtime("CPU", 0, 1)
    own = set(plan.refs[runtime.rank :: runtime.ranks].tolist())
    found = {(p.name, size): np.zeros((len(plan.units[p.name]), 4), np.int64) for p in protocols for size in p.sizes}
    transform = ImageTransform(config.data.image_size, config.data.mean, config.data.std)
    existence = Existence(config.eval.target_threshold, config.eval.min_pixels)
    # what fits in data.max_tokens shares one compiled network; all else shares another
    limit = config.data.max_tokens
    mine = [(k, *prompt) for k, prompt in enumerate(plan.prompts) if prompt.ref in own]
    mine.sort(key=lambda prompt: data.ref_image[prompt[1]])  # each picture is decoded once; a ref's stay neighbours
    passes = [[prompt for prompt in mine if (len(prompt[2]) > limit) == long] for long in (False, True)]

    def prepare(r: int) -> np.ndarray:
        resized = data.resized_image(r, transform)
        return resized if networks.uint8 else transform.normalise(resized)

    def score(ref: int, answers: dict, units: list):
        scored = _Ref(data, ref, answers, transform, existence)
        for protocol, u, unit in units:
            for size in protocol.sizes:
                found[protocol.name, size][u] = scored.count(protocol, unit, size)
            if keep is not None and protocol.name == "sentence":
                keep.append(scored.kept(protocol, unit))

    with tqdm(total=len(mine), desc=progress, unit="prompt", leave=False, disable=None if progress else True) as bar, \
            Pool(4 * config.eval.batch_size) as pool:
        for prompts in filter(None, passes):
            tokens, model = networks(max(len(prompt[2]) for prompt in prompts))
            waiting = _units_by_ref(plan, protocols, {prompt[0] for prompt in prompts})
            source = PromptSource(data, prompts, tokens, tokenizer.pad_id, prepare, config.eval.batch_size)
            for ref, answers in _refs(model, source, config, runtime, bar):
                pool.submit(score, ref, answers, waiting[ref])
    sums = all_reduce_sum(np.concatenate(list(found.values())), runtime).astype(np.int64)  # others' refs are zeros here
    return dict(zip(found, np.split(sums, np.cumsum([len(part) for part in found.values()])[:-1]), strict=True))


def _units_by_ref(plan: Plan, protocols: list[Protocol], prompts: set) -> dict:
    """{ref: [(protocol, index, unit)]} of the units whose prompts are all in a pass; no unit has prompts in both."""
    waiting: dict[int, list] = {}
    for protocol in protocols:
        for u, unit in enumerate(plan.units[protocol.name]):
            if unit.prompts[0] in prompts:
                waiting.setdefault(unit.ref, []).append((protocol, u, unit))
    return waiting


def _refs(model, source: PromptSource, config: Config, runtime: Runtime, bar):
    """Yields (ref, {prompt: (logits (H, W), the existence head's or None)}) as soon as a ref's prompts, which are
    neighbours, have been computed."""
    ref_of = {prompt[0]: prompt[1] for prompt in source.prompts}
    found: dict[int, tuple] = {}
    current = None
    for image, ids, word_mask, index in batches(source, config.eval.batch_size, config.data.workers):
        answer = answer_of(model(image, ids, word_mask))
        runtime.watch.compiled()
        for i in np.flatnonzero(index >= 0):
            ref = ref_of[int(index[i])]
            if ref != current and found:
                yield current, found
                found = {}
            current = ref
            found[int(index[i])] = answer.logits[i, 0], answer.existence(i)
            bar.update()
    if found:
        yield current, found


class _Ref:
    """One ref's masks, each made once for all protocols that want it."""

    def __init__(self, data: ReferData, ref: int, answers: dict, transform: ImageTransform, existence: Existence):
        self.data, self.ref, self.answers, self.transform, self.existence = data, ref, answers, transform, existence
        self.shape = tuple(data.image_sizes[data.ref_image[ref]].tolist())
        self.made: dict[tuple, np.ndarray] = {}

    def _once(self, key: tuple, make):
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]

    def truth(self, rule: str, size: str) -> np.ndarray:
        own = self._once((rule, IMAGE), lambda: self.data.mask(self.ref, rule))
        return own if size == IMAGE else self._once((rule, INPUT), lambda: self.transform.mask(own))

    def drawn(self, protocol: Protocol, prompts: tuple, size: str) -> np.ndarray:
        """The mask of a unit's logits, whether the sentence means anything or not."""
        def make():
            logits = [self.answers[k][0] for k in prompts]
            mean = logits[0] if len(logits) == 1 else np.mean(logits, 0)
            return predicted_mask(protocol, mean, self.transform, self.shape, size)

        return self._once((prompts, size, protocol.resize, protocol.threshold), make)

    def exists(self, protocol: Protocol, prompts: tuple) -> bool:
        """Whether the network says that a unit means anything, by its head and the first size's mask."""
        found = [self.answers[k][1] for k in prompts]
        mean = None if found[0] is None else float(np.mean(found))
        mask = self.drawn(protocol, prompts, protocol.sizes[0])
        return self.existence(mask, mean, head_alone=protocol.empty == NO_TARGET)

    def count(self, protocol: Protocol, unit, size: str) -> tuple[int, int, bool, bool]:
        mask, said = self.drawn(protocol, unit.prompts, size), self.exists(protocol, unit.prompts)
        if protocol.empty != NO_TARGET:
            mask = mask & said
        inter, union = overlap(mask, self.truth(protocol.overlap, size))
        return inter, union, bool(self.data.has_target[self.ref]), said

    def kept(self, protocol: Protocol, unit) -> Kept:
        inter, union, _, said = self.count(protocol, unit, IMAGE)
        mask = np.asfortranarray(self.drawn(protocol, unit.prompts, IMAGE) & said, np.uint8)
        return Kept(unit.sentence, inter, union, coco.encode(mask)["counts"], said)
