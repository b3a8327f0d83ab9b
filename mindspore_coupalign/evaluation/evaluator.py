"""Scoring whole splits: every sentence once for validation in training (``evaluate_samples``, ``report``), and the
report of the protocols that ``evaluate`` was asked for (``report_plan``).

Shapes: logits (B, 1, H, W) at the network's input size; I and U in pixels, at two sizes from one pass: ``image``, the
photograph's own, and ``input``, the network's.
"""

import functools

import numpy as np
from tqdm import tqdm

from mindspore_coupalign.config import Config
from mindspore_coupalign.data.loader import EvalSource, Tokens, batches
from mindspore_coupalign.data.refer import ReferData
from mindspore_coupalign.data.tokenizer import SentenceTokenizer
from mindspore_coupalign.data.transforms import ImageTransform
from mindspore_coupalign.distributed.collectives import all_reduce_sum
from mindspore_coupalign.distributed.process import Runtime
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.evaluation import protocols
from mindspore_coupalign.evaluation.answer import Existence, logit
from mindspore_coupalign.evaluation.metrics import existence_scores, overlap, summarize
from mindspore_coupalign.evaluation.networks import CellNetwork
from mindspore_coupalign.evaluation.pool import Pool
from mindspore_coupalign.evaluation.prompts import Plan
from mindspore_coupalign.evaluation.protocols import SIZES


def samples_of(data: ReferData, split: str) -> np.ndarray:
    """The split's samples, (S,). Raises UserError when there is no such split, or nothing in it."""
    samples = data.split(split)
    if not len(samples):
        raise UserError(f"{data.source}: split '{split}' has no sentences to score")
    return samples


def evaluate_samples(model, data: ReferData, samples: np.ndarray, tokenizer: SentenceTokenizer, config: Config, *,
                     progress: str = "", runtime: Runtime | None = None) -> dict:
    """I and U of every sample, and whether the network says that it means anything: {"sample": (S,), "image": (S, 2),
    "input": (S, 2), "exists": (S,) bool}, the same on every rank. What means nothing has an empty mask.

    Args:
        progress: label of the progress bar; empty for none.
        runtime: of several ranks, each of which takes its share; None: this process is alone.
    """
    runtime = runtime or Runtime("CPU", 0, 1)
    transform = ImageTransform(config.data.image_size, config.data.mean, config.data.std)
    tokens = Tokens(data, samples, tokenizer, field=config.data.sentence_field)
    batch, cut = config.eval.batch_size, logit(config.eval.threshold)
    by_image = samples[np.argsort(data.ref_image[data.sentence_ref[samples]], kind="stable")]  # each decoded once
    source = EvalSource(data, by_image, tokens, transform, batch, runtime.rank, runtime.ranks)
    place = {int(s): k for k, s in enumerate(samples)}
    existence = Existence(config.eval.target_threshold, config.eval.min_pixels)
    found = np.zeros((len(samples), len(SIZES) + 1, 2), np.int32)  # the last: whether it exists
    model.set_train(False)
    network = CellNetwork(model)

    @functools.lru_cache(8)  # a ref's sentences are neighbours
    def truths(ref: int) -> tuple:
        truth = data.mask(ref, config.data.overlap)
        return truth, transform.mask(truth)

    def score(sample: int, logits: np.ndarray, exists: float | None):
        truth, small = truths(int(data.sentence_ref[sample]))
        mask, small_mask = transform.inverse(logits, truth.shape) > cut, logits > cut
        said = existence(mask, exists)
        found[place[sample]] = overlap(mask & said, truth), overlap(small_mask & said, small), (said, 0)

    with tqdm(total=int((source.samples >= 0).sum()), desc=progress, unit="sentence", leave=False,
              disable=None if progress else True) as bar, Pool(4 * batch) as pool:  # None: off without a terminal
        for image, ids, word_mask, sample in batches(source, batch, config.data.workers):
            answer = network(image, ids, word_mask)
            runtime.watch.compiled()
            for i in np.flatnonzero(sample >= 0):
                pool.submit(score, int(sample[i]), answer.logits[i, 0], answer.existence(i))
                bar.update()
    found = all_reduce_sum(found, runtime).astype(np.int64)  # zeros where another rank counted
    return {"sample": np.array(samples), **{name: found[:, k] for k, name in enumerate(SIZES)},
            "exists": found[:, -1, 0] > 0}


def derange(data: ReferData, samples: np.ndarray) -> np.ndarray:
    """For each sample another one, of another image as long as no image holds more than half of all."""
    by_image = np.argsort(data.ref_image[data.sentence_ref[samples]], kind="stable")
    others = np.empty_like(samples)
    others[by_image] = samples[np.roll(by_image, len(samples) // 2)]
    return others


def report_plan(data: ReferData, plan: Plan, chosen: list, counts: dict, max_tokens: int) -> dict:
    """Of a split: what ``report`` gives where protocol ``sentence`` was asked for, and ``protocols``: the scores of
    every other one by its name; ``cut``: sentences longer than ``max_tokens``, and the longest."""
    result: dict = {}
    for protocol in chosen:
        units = plan.units[protocol.name]
        if protocol.name == "sentence":
            samples = np.array([unit.sentence for unit in units])
            scores = {size: counts["sentence", size][:, :2] for size in SIZES}
            result = report(data, {"sample": samples, **scores, "exists": counts["sentence", SIZES[0]][:, 3] > 0})
    sentences = len(plan.lengths)
    result |= {"sentences": sentences, "refs": len(plan.refs), "images": len(np.unique(data.ref_image[plan.refs])),
               "cut": {"sentences": int((plan.lengths > max_tokens).sum()), "longest": int(plan.lengths.max())}}
    result["protocols"] = {}
    for protocol in chosen:
        if protocol.name != "sentence":
            inter, union, targets, exists = counts[protocol.name, protocol.sizes[0]].T
            refs = np.array([unit.ref for unit in plan.units[protocol.name]])
            result["protocols"][protocol.name] = protocols.count(protocol, inter, union, refs, targets > 0, exists > 0)
    return result


def report(data: ReferData, scores: dict) -> dict:
    """Metrics at both sizes, counts, and where the data has categories of sentences, the metrics of each; where
    sentences mean nothing, also N_acc and T_acc."""
    samples = scores["sample"]
    refs = np.unique(data.sentence_ref[samples])
    result: dict = {"sentences": len(samples), "refs": len(refs), "images": len(np.unique(data.ref_image[refs]))}
    targets = data.has_target[data.sentence_ref[samples]]
    for size in SIZES:
        result[size] = summarize(*scores[size].T) | existence_scores(targets, scores["exists"])
    kinds = data.sentence_kind[samples]
    if (kinds >= 0).any():
        result["by_kind"] = {name: summarize(*scores["image"][kinds == code].T)
                             for code, name in enumerate(data.kind_names) if (kinds == code).any()}
    return result
