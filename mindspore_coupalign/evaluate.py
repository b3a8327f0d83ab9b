"""Command ``evaluate``: score a checkpoint on whole splits, every sentence of every ref once, under both protocols.

Protocols, from one pass: ``image`` resizes the logits to the photograph's own size and compares with the original mask;
``input`` compares at the network's input size with the squashed mask (as LAVT does).
Shapes: logits (B, 1, H, W) at the network's input size.
"""

import argparse
import json
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
from tqdm import tqdm

from mindspore_coupalign import build, runtime
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
from mindspore_coupalign.ranks import add_up
from mindspore_coupalign.watch import Watch

PROTOCOLS = ("image", "input")
REFERENCES = ("all_objects", "random_object", "noun_phrase")  # oIoU of perfect masks, as data/shapes.py writes them


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("--config", help="configuration that names the data (default: the checkpoint's own)")
    parser.add_argument("--checkpoint", required=True, help="best.safetensors or last.safetensors of a run")
    parser.add_argument("--split", nargs="+", required=True, metavar="NAME", help="splits, for example val testA testB")
    parser.add_argument("--output", metavar="FILE", help="write the numbers as JSON")
    parser.add_argument("--shuffled", nargs="+", default=[], metavar="NAME",
                        help="score these splits once more, every sample with another sample's sentence: what is then "
                             "scored needs no words")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example data.root=/data/refer")
    runtime.add_device_argument(parser)


def run(args: argparse.Namespace) -> int:
    checkpoint = load_checkpoint(args.checkpoint)
    names = [*args.split, *args.shuffled]  # argparse gives an option of several values all that follows it
    config = configuration(args.config, args.overrides + [name for name in names if "=" in name], checkpoint)
    if args.output:
        check_writable(Path(args.output))
    with Watch.of_job() as watch:
        return score(args, checkpoint, config, runtime.setup(args.device_target, config.train.seed, watch))


def score(args: argparse.Namespace, checkpoint: Checkpoint, config: Config, here: runtime.Runtime) -> int:
    names, shuffled = ([name for name in given if "=" not in name] for given in (args.split, args.shuffled))
    data = read_refer(config.data.root, config.data.dataset, config.data.split_by, config.data.images)
    samples = {name: samples_of(data, name) for name in (*names, *shuffled)}  # what is wrong there is found early
    references = read_references(data, names)
    model, tokenizer = build.restore_model(checkpoint, config)
    for line in doubts(data, samples, tokenizer, config.data) if here.rank == 0 else ():
        print(line, file=sys.stderr)
    here.watch.enter("evaluating", 0, compiles=True)

    def scored(name: str, shuffle: bool) -> dict:
        return report(data, evaluate_samples(model, data, samples[name], tokenizer, config, shuffle=shuffle,
                                             progress=name if here.rank == 0 else "", here=here))

    results = {name: scored(name, shuffle=False) for name in names}
    control = {name: scored(name, shuffle=True) for name in shuffled}
    if here.rank > 0:
        return 0
    if data.turned:
        print(turned_pictures(data), file=sys.stderr)
    label = f"{config.data.dataset} ({config.data.split_by})"
    print(format_table(label, results | {f"{name}, shuffled": result for name, result in control.items()}))
    for name, values in references.items():
        print(f"{name}: with perfect masks, all objects score {values['all_objects']} oIoU, a random object "
              f"{values['random_object']}, every object that fits the noun phrase {values['noun_phrase']}")
    if args.output:
        document = {"checkpoint": str(args.checkpoint), "dataset": config.data.dataset,
                    "split_by": config.data.split_by, "input_size": config.data.image_size,
                    "threshold": config.eval.threshold, "step": checkpoint.progress.get("step"), "splits": results,
                    "shuffled": control, "references": references}
        write_file(args.output, (json.dumps(document, indent=1) + "\n").encode())
        print(f"wrote {args.output}")
    return 0


def samples_of(data: ReferData, split: str) -> np.ndarray:
    """The split's samples, (S,). Raises UserError when there is no such split, or nothing in it."""
    samples = data.split(split)
    if not len(samples):
        raise UserError(f"{data.source}: split '{split}' has no sentences to score")
    return samples


def configuration(path: str | None, overrides: list, checkpoint: Checkpoint) -> Config:
    """The file's configuration, or the checkpoint's own with the overrides."""
    if path:
        return load_config(path, overrides)
    return with_overrides(checkpoint.config, overrides, f"{checkpoint.path}'s configuration with the overrides")


def evaluate_samples(model, data: ReferData, samples: np.ndarray, tokenizer: SentenceTokenizer, config: Config, *,
                     shuffle: bool = False, progress: str = "", here: runtime.Runtime | None = None) -> dict:
    """I and U of every sample: {"sample": (S,), "image": (S, 2), "input": (S, 2)}, the same on every rank.

    Args:
        shuffle: every sample gets the sentence of another image's sample.
        progress: label of the progress bar; empty for none.
        here: of several ranks, each of which takes its share; None: this process is alone.
    """
    here = here or runtime.Runtime("CPU", 0, 1)
    transform = ImageTransform(config.data.image_size, config.data.mean, config.data.std)
    tokens = Tokens(data, samples, tokenizer, field=config.data.sentence_field)
    if shuffle:
        tokens.row[samples] = tokens.row[_derange(data, samples)]
    batch, cut = config.eval.batch_size, logit(config.eval.threshold)
    source = EvalSource(data, samples, tokens, transform, batch, here.rank, here.ranks)
    place = {int(s): k for k, s in enumerate(samples)}
    found = np.zeros((len(samples), len(PROTOCOLS), 2), np.int32)
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
    return {"sample": np.array(samples), **{name: found[:, k] for k, name in enumerate(PROTOCOLS)}}


def _derange(data: ReferData, samples: np.ndarray) -> np.ndarray:
    """For each sample another one, of another image as long as no image holds more than half of all."""
    by_image = np.argsort(data.ref_image[data.sentence_ref[samples]], kind="stable")
    others = np.empty_like(samples)
    others[by_image] = samples[np.roll(by_image, len(samples) // 2)]
    return others


def report(data: ReferData, scores: dict) -> dict:
    """Metrics by protocol, counts, and where the data names kinds of sentences, the metrics of each kind."""
    samples = scores["sample"]
    refs = np.unique(data.sentence_ref[samples])
    result = {"sentences": len(samples), "refs": len(refs), "images": len(np.unique(data.ref_image[refs]))}
    result |= {protocol: summarize(*scores[protocol].T) for protocol in PROTOCOLS}
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


def format_table(label: str, results: dict) -> str:
    """The paper's columns, one row per split and protocol."""
    names = ["oIoU", "mIoU", *(f"P@{x}" for x in THRESHOLDS)]
    titles = {"image": "image's own size", "input": "network's input"}
    lines = [f"{label:<24}{'protocol':<18}{'sentences':>9}  " + "".join(f"{n:>8}" for n in names)]
    for split, result in results.items():
        for protocol, text in titles.items():
            row = "".join(f"{result[protocol].get(n, float('nan')):8.2f}" for n in names)
            lines.append(f"{split:<24}{text:<18}{result['sentences']:>9}  {row}")
        for kind, scores in result.get("by_kind", {}).items():
            row = "".join(f"{scores[n]:8.2f}" for n in names)
            lines.append(f"  {kind:<22}{titles['image']:<18}{scores['samples']:>9}  {row}")
    return "\n".join(lines)
