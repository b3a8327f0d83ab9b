"""Command ``evaluate``: score a checkpoint on whole splits under one or several protocols (protocols.py).

``evaluate_samples`` and ``report`` are the protocol ``sentence`` alone, for validation in training: every sentence of
every ref once, at two sizes from one pass: ``image`` resizes the logits to the photograph's own size and compares with
the original mask; ``input`` compares at the network's input size with the squashed mask.
Shapes: logits (B, 1, H, W) at the network's input size.
"""

import argparse
import dataclasses
import json
import math
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
from tqdm import tqdm

from mindspore_coupalign import build, details, protocols, runtime
from mindspore_coupalign.checkpoint import Checkpoint, load_checkpoint
from mindspore_coupalign.config import Config, load_config, with_overrides
from mindspore_coupalign.data.loader import EvalSource, Tokens, batches
from mindspore_coupalign.data.notices import doubts, turned_pictures
from mindspore_coupalign.data.refer import ReferData, read_refer
from mindspore_coupalign.data.tokenizer import SentenceTokenizer
from mindspore_coupalign.data.transforms import ImageTransform
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.metrics import THRESHOLDS, logit, overlap, summarize
from mindspore_coupalign.outputs import check_writable, write_file
from mindspore_coupalign.portable import check_data_root, with_data_paths
from mindspore_coupalign.prompts import Plan, check_positions, make_plan
from mindspore_coupalign.protocols import IMAGE, INPUT, SIZE_NAMES
from mindspore_coupalign.ranks import add_up
from mindspore_coupalign.scoring import score_plan
from mindspore_coupalign.watch import Limits, Watch

SIZES = (IMAGE, INPUT)
REFERENCES = ("all_objects", "random_object", "noun_phrase")  # oIoU of perfect masks, as data/shapes.py writes them


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("--config", help="configuration that names the data (default: the checkpoint's own)")
    parser.add_argument("--checkpoint", required=True, help="best.safetensors or last.safetensors of a run")
    parser.add_argument("--split", nargs="+", required=True, metavar="NAME", help="splits, for example val testA testB")
    parser.add_argument("--protocol", nargs="+", default=["sentence"], metavar="NAME",
                        help=f"how to score, one or several of {', '.join(protocols.PROTOCOLS)}, or all; "
                             "docs/protocols.md says which papers each compares with (default: sentence)")
    parser.add_argument("--output", metavar="FILE", help="write the numbers as JSON, with every convention by name")
    parser.add_argument("--details", metavar="FILE",
                        help="write a JSON line per sentence, with its predicted mask (of protocol sentence, at the "
                             "image's own size)")
    parser.add_argument("--shuffled", nargs="+", default=[], metavar="NAME",
                        help="score these splits once more, every sample with another sample's sentence: what is then "
                             "scored needs no words")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example data.root=/data/refer")
    runtime.add_device_argument(parser)
    runtime.add_amp_argument(parser)


def run(args: argparse.Namespace) -> int:
    checkpoint = load_checkpoint(args.checkpoint)
    overrides = list(args.overrides)
    for option in ("split", "shuffled", "protocol"):  # argparse gives an option of several values all that follows it
        given = getattr(args, option)
        overrides += [name for name in given if "=" in name]
        setattr(args, option, [name for name in given if "=" not in name])
    config = configuration(args.config, overrides, checkpoint)
    chosen = protocols.choose(args.protocol)
    for path in filter(None, (args.output, args.details)):
        check_writable(Path(path))
    if args.output and args.details and Path(args.output).resolve() == Path(args.details).resolve():
        raise UserError(f"--output and --details name the same file, {args.output}; give each its own")
    if args.details and "sentence" not in (protocol.name for protocol in chosen):
        raise UserError("--details writes what protocol sentence sees; add sentence to --protocol")
    with Watch.of_job(Limits.of(config.train)) as watch:
        return score(args, checkpoint, config, chosen, runtime.setup(args.device_target, config.train.seed, watch))


def score(args: argparse.Namespace, checkpoint: Checkpoint, config: Config, chosen: list,
          here: runtime.Runtime) -> int:
    data = read_refer(config.data.root, config.data.dataset, config.data.split_by, config.data.images)
    references = read_references(data, args.split)
    resolved = [protocols.resolve(protocol, config) for protocol in chosen]
    tokenizer = SentenceTokenizer.from_json(checkpoint.tokenizer, config.data.max_tokens, str(checkpoint.path))
    splits = {name: samples_of(data, name) for name in (*args.split, *args.shuffled)}
    plans = {}
    for label, name, shuffle in [*((name, name, False) for name in args.split),
                                 *((f"{name}, shuffled", name, True) for name in args.shuffled)]:
        plans[label] = make_plan(data, splits[name], tokenizer, resolved, config.data.sentence_field,
                                 _derange(data, splits[name]) if shuffle else None)
        check_positions(plans[label], resolved, data, config.model.text.max_positions)
    for line in doubts(data, splits, tokenizer, config.data) if here.rank == 0 else ():
        print(line, file=sys.stderr)
    networks = Networks(checkpoint, config, args.amp, here, max(plan.longest for plan in plans.values()))
    results, records = {}, []
    for label, plan in plans.items():
        keep = [] if args.details and label in args.split else None
        counts = score_plan(networks, plan, resolved, data, tokenizer, config, keep=keep, here=here,
                            progress=label if here.rank == 0 else "")
        results[label] = report_plan(data, plan, resolved, counts, config.data.max_tokens)
        if keep is not None:
            own = details.lines(data, label, plan, keep, config.data.sentence_field, config.data.max_tokens)
            records += details.ordered(own, here)
    if here.rank > 0:
        return 0
    if data.turned:
        print(turned_pictures(data), file=sys.stderr)
    announce(f"{config.data.dataset} ({config.data.split_by})", results, chosen, config, references)
    if args.output:
        document = {"checkpoint": str(args.checkpoint), "dataset": config.data.dataset,
                    "split_by": config.data.split_by, "input_size": config.data.image_size,
                    "threshold": config.eval.threshold, **networks.precision,
                    "step": checkpoint.progress.get("step"),
                    "protocols": {p.name: protocols.conventions(p, config) for p in chosen},
                    "splits": {name: results[name] for name in args.split},
                    "shuffled": {name: results[f"{name}, shuffled"] for name in args.shuffled},
                    "references": references}
        write_file(args.output, (json.dumps(_without_nan(document), indent=1) + "\n").encode())
        print(f"wrote {args.output}")
    if args.details:
        details.write(args.details, records)
        print(f"wrote {args.details}")
    return 0


class Networks:
    """The checkpoint's network for a number of word pieces, each compiled once: data.max_tokens, and what the longest
    prompt of several sentences needs."""

    def __init__(self, checkpoint: Checkpoint, config: Config, amp: str | None, here: runtime.Runtime, longest: int):
        self.longest = max(longest, config.data.max_tokens)
        self.built, self.here = {}, here
        for tokens in sorted({config.data.max_tokens, self.longest}):
            own = dataclasses.replace(config, data=dataclasses.replace(config.data, max_tokens=tokens))
            self.built[tokens], _ = build.restore_model(checkpoint, own, amp, here.target)
        self.precision = self.built[config.data.max_tokens].precision._asdict()
        if self.longest > config.data.max_tokens and not config.model.text_weights and here.rank == 0:
            print(f"note: prompts of several sentences take up to {self.longest} positions; training from scratch has "
                  f"seen {config.data.max_tokens} of them, the rest is as it was drawn")

    def __call__(self, length: int) -> tuple:
        """The number of word pieces that the prompts are padded to, and the network for it."""
        self.here.watch.enter("evaluating", 0, compiles=True)
        tokens = min(self.built) if length <= min(self.built) else self.longest
        return tokens, self.built[tokens]


def samples_of(data: ReferData, split: str) -> np.ndarray:
    """The split's samples, (S,). Raises UserError when there is no such split, or nothing in it."""
    samples = data.split(split)
    if not len(samples):
        raise UserError(f"{data.source}: split '{split}' has no sentences to score")
    return samples


def configuration(path: str | None, overrides: list, checkpoint: Checkpoint) -> Config:
    """The file's configuration, or the checkpoint's own with the overrides.

    Raises:
        UserError: a bad file or override, one that only training follows, or nothing says where the
            data lies.
    """
    for override in overrides:
        if override.startswith(("train.amp=", "train.amp_dtype=")):
            raise UserError(f"{override}: a checkpoint is computed in the precision of its training; --amp chooses "
                            "another")
    if path:
        return load_config(path, overrides)
    source = f"{checkpoint.path}'s configuration with the overrides"
    config = with_overrides(with_data_paths(checkpoint), overrides, source)
    check_data_root(config, str(checkpoint.path))
    return config


def evaluate_samples(model, data: ReferData, samples: np.ndarray, tokenizer: SentenceTokenizer, config: Config, *,
                     progress: str = "", here: runtime.Runtime | None = None) -> dict:
    """I and U of every sample: {"sample": (S,), "image": (S, 2), "input": (S, 2)}, the same on every rank.

    Args:
        progress: label of the progress bar; empty for none.
        here: of several ranks, each of which takes its share; None: this process is alone.
    """
    here = here or runtime.Runtime("CPU", 0, 1)
    transform = ImageTransform(config.data.image_size, config.data.mean, config.data.std)
    tokens = Tokens(data, samples, tokenizer, field=config.data.sentence_field)
    batch, cut = config.eval.batch_size, logit(config.eval.threshold)
    source = EvalSource(data, samples, tokens, transform, batch, here.rank, here.ranks)
    place = {int(s): k for k, s in enumerate(samples)}
    found = np.zeros((len(samples), len(SIZES), 2), np.int32)
    model.set_train(False)
    with tqdm(total=int((source.samples >= 0).sum()), desc=progress, unit="sentence", leave=False,
              disable=None if progress else True) as bar:  # None: off where stderr is not a terminal
        for image, ids, word_mask, sample in batches(source, batch, config.data.workers):
            logits = model(ms.Tensor(image), ms.Tensor(ids), ms.Tensor(word_mask)).asnumpy()[:, 0].astype(np.float32)
            here.watch.compiled()
            for i in np.flatnonzero(sample >= 0):
                truth = data.mask(int(data.sentence_ref[sample[i]]), config.data.overlap)
                found[place[int(sample[i])]] = (overlap(transform.inverse(logits[i], truth.shape) > cut, truth),
                                                overlap(logits[i] > cut, transform.mask(truth)))
                bar.update()
    found = add_up(found, here).astype(np.int64)  # every sample was counted by one rank, the others have zeros there
    return {"sample": np.array(samples), **{name: found[:, k] for k, name in enumerate(SIZES)}}


def _derange(data: ReferData, samples: np.ndarray) -> np.ndarray:
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
    """Metrics at both sizes, counts, and where the data names kinds of sentences, the metrics of each kind."""
    samples = scores["sample"]
    refs = np.unique(data.sentence_ref[samples])
    result = {"sentences": len(samples), "refs": len(refs), "images": len(np.unique(data.ref_image[refs]))}
    result |= {size: summarize(*scores[size].T) for size in SIZES}
    kinds = data.sentence_kind[samples]
    if (kinds >= 0).any():
        result["by_kind"] = {name: summarize(*scores["image"][kinds == code].T)
                             for code, name in enumerate(data.kind_names) if (kinds == code).any()}
    return result


def read_references(data: ReferData, splits: list) -> dict:
    """What the data set states about itself in references.json beside its annotations (RefShapes does), by split."""
    path = data.source.parent / "references.json"
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))["splits"]
        return {name: {key: float(stated[name][key]) for key in REFERENCES} for name in splits if name in stated}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, OSError) as exc:
        raise UserError(f"{path}: damaged ({exc}); make the data set anew, or remove the file") from exc


def announce(label: str, results: dict, chosen: list, config: Config, references: dict):
    """Print the table and what is needed to read it."""
    print(format_table(label, results))
    print(protocols.LEGEND)
    for protocol in chosen:
        if protocol.name != "sentence":
            print(protocols.describe(protocol))
    for name, result in results.items():
        cut = result["cut"]
        print(f"{name}: {cut['sentences']} of {result['sentences']} sentences were cut at "
              f"data.max_tokens={config.data.max_tokens} (the longest has {cut['longest']} word pieces)")
    for name, values in references.items():
        print(f"{name}: with perfect masks, all objects score {values['all_objects']} oIoU, a random object "
              f"{values['random_object']}, every object that fits the noun phrase {values['noun_phrase']}")


def format_table(label: str, results: dict) -> str:
    """The paper's columns, one row per split, protocol and size; a dash for what a protocol does not report."""
    names = ["oIoU", "mIoU", *(f"P@{x}" for x in THRESHOLDS)]
    others = any(result.get("protocols") for result in results.values())
    lines = [f"{label:<24}{'protocol':<18}{'units' if others else 'sentences':>9}  "
             + "".join(f"{n:>8}" for n in names)]

    def row(first: str, protocol: str, scores: dict):
        cells = "".join(f"{scores[n]:8.2f}" if n in scores else f"{'-':>8}" for n in names)
        lines.append(f"{first:<24}{protocol:<18}{scores['samples']:>9}  {cells}")

    for split, result in results.items():
        for size in SIZES:
            if size in result:
                row(split, SIZE_NAMES[size], result[size])
        for kind, scores in result.get("by_kind", {}).items():
            row(f"  {kind}", SIZE_NAMES[IMAGE], scores)
        for name, scores in result.get("protocols", {}).items():
            row(split, name, scores)
    return "\n".join(lines)


def _without_nan(value):
    """JSON has no NaN: null stands for it."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
