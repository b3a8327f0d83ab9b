"""Scoring: every prompt goes through the network once, and every protocol that reads it counts. ``evaluate`` scores by
several protocols, validation during training by protocol ``sentence`` alone.

Shapes: logits (H, W) at the network's input size; counts (n, 4) per protocol and size, of its n units: I, U (pixels),
whether the unit has a target, and whether the network predicts one.
"""

import os
from collections import defaultdict, deque
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from operator import itemgetter
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
from mindspore_coupalign.evaluation import protocols as rules
from mindspore_coupalign.evaluation.metrics import overlap, summarize, target_scores
from mindspore_coupalign.evaluation.prompts import Plan, make_plan
from mindspore_coupalign.evaluation.protocols import IMAGE, INPUT, NO_TARGET, SIZES, Protocol, predicted_mask
from mindspore_coupalign.evaluation.scored_models import Networks
from mindspore_coupalign.inference.cells import CellNetwork
from mindspore_coupalign.inference.network import TargetRule, as_output

THREADS = min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


class Kept(NamedTuple):
    """A sentence's prediction at the image's own size, for the file of details."""

    sample: int
    inter: int
    union: int
    counts: bytes  # COCO's compressed RLE
    has_target: bool  # predicted


def validate(model, data: ReferData, samples: np.ndarray, tokenizer: SentenceTokenizer, config: Config, *,
             runtime: Runtime | None = None) -> dict:
    """The ``report`` of a network in memory, the same on every rank."""
    return report(data, evaluate_samples(model, data, samples, tokenizer, config, runtime=runtime))


def evaluate_samples(model, data: ReferData, samples: np.ndarray, tokenizer: SentenceTokenizer, config: Config, *,
                     progress: str = "", runtime: Runtime | None = None) -> dict:
    """``score_plan`` by protocol ``sentence`` for a network in memory, in the order of ``samples`` (S,): {"sample":
    (S,), "image": (S, 2), "input": (S, 2), "predicted_target": (S,) bool}, I and U at both sizes."""
    protocol = rules.resolve(rules.PROTOCOLS["sentence"], config)
    order = np.argsort(samples)  # a ref's sentences are neighbours
    plan = make_plan(data, samples[order], tokenizer, [protocol], config.data.sentence_field)
    model.set_train(False)
    networks = Networks({config.data.max_tokens: CellNetwork(model)})
    counts = score_plan(networks, plan, [protocol], data, tokenizer, config, progress=progress, runtime=runtime)
    place = np.argsort(order)
    return {"sample": np.array(samples), **{size: counts["sentence", size][place, :2] for size in SIZES},
            "predicted_target": counts["sentence", IMAGE][place, 3] > 0}


def score_plan(networks: Networks, plan: Plan, protocols: list[Protocol], data: ReferData, tokenizer: SentenceTokenizer,
               config: Config, *, keep: list | None = None, progress: str = "", runtime: Runtime | None = None) -> dict:
    """Counts of all units, {(protocol name, size): (n, 4) int64}, the same on every rank.

    Args:
        protocols: the resolved ones that the plan was made with.
        keep: list that receives a Kept for each of this rank's sentences, by protocol ``sentence``.
        progress: label of the progress bar; empty for none.
        runtime: of several ranks, each of which takes its share of the refs; None: this process is alone.
    """
    runtime = runtime or Runtime("CPU", 0, 1)
    own = set(plan.refs[runtime.rank :: runtime.ranks].tolist())
    counts = {(p.name, size): np.zeros((len(plan.units[p.name]), 4), np.int64) for p in protocols for size in p.sizes}
    transform = ImageTransform(config.data.image_size, config.data.mean, config.data.std)
    target_rule = TargetRule(config.eval.target_threshold, config.eval.min_pixels)
    # what fits in data.max_tokens shares one compiled network; all else shares another
    limit = config.data.max_tokens
    mine = [(k, *prompt) for k, prompt in enumerate(plan.prompts) if prompt.ref in own]
    mine.sort(key=lambda prompt: data.ref_image[prompt[1]])  # an image is decoded once; a ref's stay neighbours
    passes = [[prompt for prompt in mine if (len(prompt[2]) > limit) == long] for long in (False, True)]

    def prepare(r: int) -> np.ndarray:
        resized = data.resized_image(r, transform)
        return resized if networks.uint8 else transform.normalise(resized)

    def score(ref: int, outputs: dict, units: list):
        scored = _Ref(data, ref, outputs, transform, target_rule)
        for protocol, u, unit in units:
            for size in protocol.sizes:
                counts[protocol.name, size][u] = scored.count(protocol, unit, size)
            if keep is not None and protocol.name == "sentence":
                keep.append(scored.kept(protocol, unit))

    # pixels are counted in a few threads, so that the network does not wait; few refs wait, which bounds memory
    calls: deque[Future] = deque()
    with tqdm(total=len(mine), desc=progress, unit="prompt", leave=False, disable=None if progress else True) as bar, \
            ThreadPoolExecutor(THREADS, "coupalign-score") as pool:
        for prompts in filter(None, passes):
            tokens, model = networks(max(len(prompt[2]) for prompt in prompts))
            waiting = _units_by_ref(plan, protocols, {prompt[0] for prompt in prompts})
            source = PromptSource(data, prompts, tokens, tokenizer.pad_id, prepare, config.eval.batch_size)
            for ref, computed in groupby(_computed(model, source, config, runtime, bar), itemgetter(0)):
                outputs = {k: output for _, k, output in computed}
                calls.append(pool.submit(score, ref, outputs, waiting[ref]))
                if len(calls) > 4 * config.eval.batch_size:
                    calls.popleft().result()
        for call in calls:
            call.result()
    sums = all_reduce_sum(np.concatenate(list(counts.values())), runtime).astype(np.int64)  # others' refs count 0
    return dict(zip(counts, np.split(sums, np.cumsum([len(part) for part in counts.values()])[:-1]), strict=True))


def _units_by_ref(plan: Plan, protocols: list[Protocol], prompts: set) -> dict:
    """{ref: [(protocol, index, unit)]} of the units whose prompts are in a pass; no unit has prompts in both passes."""
    waiting: dict[int, list] = defaultdict(list)
    for protocol in protocols:
        for u, unit in enumerate(plan.units[protocol.name]):
            if unit.prompts[0] in prompts:
                waiting[unit.ref].append((protocol, u, unit))
    return waiting


def _computed(model, source: PromptSource, config: Config, runtime: Runtime, bar):
    """Yields (ref, prompt, (logits (H, W), target logit or None)) of every prompt; a ref's are neighbours."""
    ref_of = {prompt[0]: prompt[1] for prompt in source.prompts}
    for image, ids, word_mask, index in batches(source, config.eval.batch_size, config.data.workers):
        output = as_output(model(image, ids, word_mask))
        runtime.watch.compiled()
        for i in np.flatnonzero(index >= 0):
            bar.update()
            k = int(index[i])
            yield ref_of[k], k, (output.logits[i, 0], output.target_logit(i))


class _Ref:
    """The masks of one ref, each computed once for all protocols that need it."""

    def __init__(self, data: ReferData, ref: int, outputs: dict, transform: ImageTransform, target_rule: TargetRule):
        self.data, self.ref, self.outputs = data, ref, outputs
        self.transform, self.target_rule = transform, target_rule
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
        """The mask of a unit's logits, before target presence is decided."""
        def make():
            logits = [self.outputs[k][0] for k in prompts]
            mean = logits[0] if len(logits) == 1 else np.mean(logits, 0)
            return predicted_mask(protocol, mean, self.transform, self.shape, size)

        return self._once((prompts, size, protocol.resize, protocol.threshold), make)

    def predicts_target(self, protocol: Protocol, prompts: tuple) -> bool:
        """Whether the network predicts a target, by its head and the mask at the protocol's first size."""
        target_logits = [self.outputs[k][1] for k in prompts]
        mean = None if target_logits[0] is None else float(np.mean(target_logits))
        mask = self.drawn(protocol, prompts, protocol.sizes[0])
        return self.target_rule(mask, mean, head_alone=protocol.empty == NO_TARGET)

    def count(self, protocol: Protocol, unit, size: str) -> tuple[int, int, bool, bool]:
        mask, predicted = self.drawn(protocol, unit.prompts, size), self.predicts_target(protocol, unit.prompts)
        if protocol.empty != NO_TARGET:
            mask = mask & predicted
        inter, union = overlap(mask, self.truth(protocol.overlap, size))
        return inter, union, bool(self.data.has_target[self.ref]), predicted

    def kept(self, protocol: Protocol, unit) -> Kept:
        inter, union, _, predicted = self.count(protocol, unit, IMAGE)
        mask = np.asfortranarray(self.drawn(protocol, unit.prompts, IMAGE) & predicted, np.uint8)
        return Kept(unit.sentence, inter, union, coco.encode(mask)["counts"], predicted)


def report_plan(data: ReferData, plan: Plan, chosen: list, counts: dict, max_tokens: int) -> dict:
    """The results of a split: those of ``report`` where protocol ``sentence`` is among the chosen; ``protocols``: the
    scores of every other one by its name; ``cut``: sentences longer than ``max_tokens``, and the longest."""
    result: dict = {}
    others = {}
    for protocol in chosen:
        units = plan.units[protocol.name]
        if protocol.name == "sentence":
            result = report(data, {"sample": np.array([unit.sentence for unit in units]),
                                   **{size: counts["sentence", size][:, :2] for size in SIZES},
                                   "predicted_target": counts["sentence", IMAGE][:, 3] > 0})
        else:
            inter, union, has_target, predicted_target = counts[protocol.name, protocol.sizes[0]].T
            refs = np.array([unit.ref for unit in units])
            others[protocol.name] = rules.count(protocol, inter, union, refs, has_target > 0, predicted_target > 0)
    return result | {
        "sentences": len(plan.lengths), "refs": len(plan.refs), "images": len(np.unique(data.ref_image[plan.refs])),
        "cut": {"sentences": int((plan.lengths > max_tokens).sum()), "longest": int(plan.lengths.max())},
        "protocols": others}


def report(data: ReferData, scores: dict) -> dict:
    """Metrics at both sizes, with N_acc and T_acc where sentences have no target; counts; and the metrics of every
    category of sentences that the data has."""
    samples = scores["sample"]
    refs = np.unique(data.sentence_ref[samples])
    result: dict = {"sentences": len(samples), "refs": len(refs), "images": len(np.unique(data.ref_image[refs]))}
    has_target = data.has_target[data.sentence_ref[samples]]
    for size in SIZES:
        result[size] = summarize(*scores[size].T) | target_scores(has_target, scores["predicted_target"])
    kinds = data.sentence_kind[samples]
    if (kinds >= 0).any():
        result["by_kind"] = {name: summarize(*scores["image"][kinds == code].T)
                             for code, name in enumerate(data.kind_names) if (kinds == code).any()}
    return result
