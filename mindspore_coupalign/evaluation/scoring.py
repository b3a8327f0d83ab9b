"""Scoring under several protocols at once: every prompt goes through the network once, and every protocol that reads
it counts.

Shapes: logits (H, W) at the network's input size; counts (n, 3) per protocol and size: I, U, and whether the ground
truth has any pixel, of its n units.
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
from mindspore_coupalign.evaluation.metrics import overlap
from mindspore_coupalign.evaluation.pool import Pool
from mindspore_coupalign.evaluation.prompts import Plan
from mindspore_coupalign.evaluation.protocols import IMAGE, INPUT, Protocol, predicted_mask


class Kept(NamedTuple):
    """A sentence's prediction at the image's own size, for the file of details."""

    sample: int
    inter: int
    union: int
    counts: bytes  # COCO's compressed RLE


def score_plan(networks, plan: Plan, protocols: list[Protocol], data: ReferData, tokenizer: SentenceTokenizer,
               config: Config, *, keep: list | None = None, progress: str = "", runtime: Runtime | None = None) -> dict:
    """The counts of every unit, {(protocol's name, size): (n, 3) int64}, the same on every rank.

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
    found = {(p.name, size): np.zeros((len(plan.units[p.name]), 3), np.int64) for p in protocols for size in p.sizes}
    transform = ImageTransform(config.data.image_size, config.data.mean, config.data.std)
    # what fits in data.max_tokens shares one compiled network; all else shares another
    limit = config.data.max_tokens
    mine = [(k, *prompt) for k, prompt in enumerate(plan.prompts) if prompt.ref in own]
    mine.sort(key=lambda prompt: data.ref_image[prompt[1]])  # each picture is decoded once; a ref's stay neighbours
    passes = [[prompt for prompt in mine if (len(prompt[2]) > limit) == long] for long in (False, True)]

    def prepare(r: int) -> np.ndarray:
        resized = data.resized_image(r, transform)
        return resized if networks.uint8 else transform.normalise(resized)

    def score(ref: int, logits: dict, units: list):
        scored = _Ref(data, ref, logits, transform)
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
            for ref, logits in _refs(model, source, config, runtime, bar):
                pool.submit(score, ref, logits, waiting[ref])
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
    """Yields (ref, {prompt: logits (H, W)}) as soon as a ref's prompts, which are neighbours, have been computed."""
    ref_of = {prompt[0]: prompt[1] for prompt in source.prompts}
    logits: dict[int, np.ndarray] = {}
    current = None
    for image, ids, word_mask, index in batches(source, config.eval.batch_size, config.data.workers):
        answers = model(image, ids, word_mask)[:, 0]
        runtime.watch.compiled()
        for i in np.flatnonzero(index >= 0):
            ref = ref_of[int(index[i])]
            if ref != current and logits:
                yield current, logits
                logits = {}
            current = ref
            logits[int(index[i])] = answers[i]
            bar.update()
    if logits:
        yield current, logits


class _Ref:
    """One ref's masks, each made once for all protocols that want it."""

    def __init__(self, data: ReferData, ref: int, logits: dict, transform: ImageTransform):
        self.data, self.ref, self.logits, self.transform = data, ref, logits, transform
        self.shape = tuple(data.image_sizes[data.ref_image[ref]].tolist())
        self.made: dict[tuple, np.ndarray] = {}

    def _once(self, key: tuple, make):
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]

    def truth(self, rule: str, size: str) -> np.ndarray:
        own = self._once((rule, IMAGE), lambda: self.data.mask(self.ref, rule))
        return own if size == IMAGE else self._once((rule, INPUT), lambda: self.transform.mask(own))

    def prediction(self, protocol: Protocol, prompts: tuple, size: str) -> np.ndarray:
        def make():
            logits = self.logits[prompts[0]]
            if len(prompts) > 1:
                logits = np.mean([self.logits[k] for k in prompts], 0)
            return predicted_mask(protocol, logits, self.transform, self.shape, size)

        return self._once((prompts, size, protocol.resize, protocol.threshold), make)

    def count(self, protocol: Protocol, unit, size: str) -> tuple[int, int, bool]:
        inter, union = overlap(self.prediction(protocol, unit.prompts, size), self.truth(protocol.overlap, size))
        return inter, union, self.data.mask_area(self.ref, protocol.overlap) > 0

    def kept(self, protocol: Protocol, unit) -> Kept:
        inter, union, _ = self.count(protocol, unit, IMAGE)
        mask = np.asfortranarray(self.prediction(protocol, unit.prompts, IMAGE), np.uint8)
        return Kept(unit.sentence, inter, union, coco.encode(mask)["counts"])
