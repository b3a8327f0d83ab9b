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
from mindspore_coupalign.evaluation.metrics import logit, overlap, summarize
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
    """I and U of every sample: {"sample": (S,), "image": (S, 2), "input": (S, 2)}, the same on every rank.

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
    found = np.zeros((len(samples), len(SIZES), 2), np.int32)
    model.set_train(False)
    network = CellNetwork(model)

    @functools.lru_cache(8)  # a ref's sentences are neighbours
    def truths(ref: int) -> tuple:
        truth = data.mask(ref, config.data.overlap)
        return truth, transform.mask(truth)

    def score(sample: int, logits: np.ndarray):
        truth, small = truths(int(data.sentence_ref[sample]))
        found[place[sample]] = (overlap(transform.inverse(logits, truth.shape) > cut, truth),
                                overlap(logits > cut, small))

    with tqdm(total=int((source.samples >= 0).sum()), desc=progress, unit="sentence", leave=False,
              disable=None if progress else True) as bar, Pool(4 * batch) as pool:  # None: off without a terminal
        for image, ids, word_mask, sample in batches(source, batch, config.data.workers):
            logits = network(image, ids, word_mask)[:, 0]
            runtime.watch.compiled()
            for i in np.flatnonzero(sample >= 0):
                pool.submit(score, int(sample[i]), logits[i])
                bar.update()
    found = all_reduce_sum(found, runtime).astype(np.int64)  # zeros where another rank counted
    return {"sample": np.array(samples), **{name: found[:, k] for k, name in enumerate(SIZES)}}


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
            result = report(data, {"sample": samples, **{size: counts["sentence", size][:, :2] for size in SIZES}})
    sentences = len(plan.lengths)
    result |= {"sentences": sentences, "refs": len(plan.refs), "images": len(np.unique(data.ref_image[plan.refs])),
               "cut": {"sentences": int((plan.lengths > max_tokens).sum()), "longest": int(plan.lengths.max())}}
    result["protocols"] = {}
    for protocol in chosen:
        if protocol.name != "sentence":
            inter, union, targets = counts[protocol.name, protocol.sizes[0]].T
            refs = np.array([unit.ref for unit in plan.units[protocol.name]])
            result["protocols"][protocol.name] = protocols.count(protocol, inter, union, refs, targets > 0)
    return result


def report(data: ReferData, scores: dict) -> dict:
    """Metrics at both sizes, counts, and where the data has categories of sentences, the metrics of each."""
    samples = scores["sample"]
    refs = np.unique(data.sentence_ref[samples])
    result: dict = {"sentences": len(samples), "refs": len(refs), "images": len(np.unique(data.ref_image[refs]))}
    result |= {size: summarize(*scores[size].T) for size in SIZES}
    kinds = data.sentence_kind[samples]
    if (kinds >= 0).any():
        result["by_kind"] = {name: summarize(*scores["image"][kinds == code].T)
                             for code, name in enumerate(data.kind_names) if (kinds == code).any()}
    return result
