"""Scoring whole splits: every sentence once for validation in training (``evaluate_samples``, ``report``), and the
protocols that ``evaluate`` was asked for (``Networks``, ``report_plan``).

Shapes: logits (B, 1, H, W) at the network's input size; I and U in pixels, at two sizes from one pass: ``image``, the
photograph's own, and ``input``, the network's.
"""

import dataclasses

import mindspore as ms
import numpy as np
from tqdm import tqdm

from mindspore_coupalign import build
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
from mindspore_coupalign.evaluation.prompts import Plan
from mindspore_coupalign.evaluation.protocols import SIZES
from mindspore_coupalign.weights.checkpoint import Checkpoint


class Networks:
    """The checkpoint's network for a number of word pieces, each compiled once: data.max_tokens, and what the longest
    prompt of several sentences needs."""

    def __init__(self, checkpoint: Checkpoint, config: Config, amp: str | None, runtime: Runtime, longest: int):
        self.longest = max(longest, config.data.max_tokens)
        self.built, self.runtime = {}, runtime
        for tokens in sorted({config.data.max_tokens, self.longest}):
            own = dataclasses.replace(config, data=dataclasses.replace(config.data, max_tokens=tokens))
            self.built[tokens], _ = build.restore_model(checkpoint, own, amp, runtime.target)
        self.precision = self.built[config.data.max_tokens].precision._asdict()
        if self.longest > config.data.max_tokens and not config.model.text_weights and runtime.rank == 0:
            print(f"note: prompts of several sentences take up to {self.longest} positions; training from scratch has "
                  f"seen {config.data.max_tokens} of them, the rest is as it was drawn")

    def __call__(self, length: int) -> tuple:
        """The number of word pieces that the prompts are padded to, and the network for it."""
        self.runtime.watch.enter("evaluating", 0, compiles=True)
        tokens = min(self.built) if length <= min(self.built) else self.longest
        return tokens, self.built[tokens]


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
    source = EvalSource(data, samples, tokens, transform, batch, runtime.rank, runtime.ranks)
    place = {int(s): k for k, s in enumerate(samples)}
    found = np.zeros((len(samples), len(SIZES), 2), np.int32)
    model.set_train(False)
    with tqdm(total=int((source.samples >= 0).sum()), desc=progress, unit="sentence", leave=False,
              disable=None if progress else True) as bar:  # None: off where stderr is not a terminal
        for image, ids, word_mask, sample in batches(source, batch, config.data.workers):
            logits = model(ms.Tensor(image), ms.Tensor(ids), ms.Tensor(word_mask)).asnumpy()[:, 0].astype(np.float32)
            runtime.watch.compiled()
            for i in np.flatnonzero(sample >= 0):
                truth = data.mask(int(data.sentence_ref[sample[i]]), config.data.overlap)
                found[place[int(sample[i])]] = (overlap(transform.inverse(logits[i], truth.shape) > cut, truth),
                                                overlap(logits[i] > cut, transform.mask(truth)))
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
    result = {}
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
    result = {"sentences": len(samples), "refs": len(refs), "images": len(np.unique(data.ref_image[refs]))}
    result |= {size: summarize(*scores[size].T) for size in SIZES}
    kinds = data.sentence_kind[samples]
    if (kinds >= 0).any():
        result["by_kind"] = {name: summarize(*scores["image"][kinds == code].T)
                             for code, name in enumerate(data.kind_names) if (kinds == code).any()}
    return result
