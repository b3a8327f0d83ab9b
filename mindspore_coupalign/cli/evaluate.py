"""Command ``evaluate``: score a checkpoint or an exported graph on whole splits under one or several protocols
(evaluation/protocols.py)."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from mindspore_coupalign.cli.options import add_amp_argument, add_device_argument
from mindspore_coupalign.config import Config
from mindspore_coupalign.data.leakage import seen_images, warnings_of
from mindspore_coupalign.data.sets import open_data, with_cache
from mindspore_coupalign.data.warnings import data_warnings, exif_warning, no_target_warnings
from mindspore_coupalign.distributed.process import Runtime
from mindspore_coupalign.distributed.watchdog import Watch
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.evaluation import protocols
from mindspore_coupalign.evaluation.prompts import Plan, derange, make_plan, samples_of
from mindspore_coupalign.evaluation.results import announce, detail_lines, gather_details, read_references, without_nan
from mindspore_coupalign.evaluation.scored_models import ScoredCheckpoint, ScoredGraph
from mindspore_coupalign.evaluation.scoring import report_plan, score_plan
from mindspore_coupalign.inference.loading import MINDIR, ONNX, check_of_checkpoint
from mindspore_coupalign.outputs import check_writable, write_file
from mindspore_coupalign.runtime import setup


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("--config", help="configuration that names the data (default: the checkpoint's own)")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", metavar="FILE", help="best.safetensors or last.safetensors of a run")
    source.add_argument("--mindir", metavar="FILE", help="what `export` wrote, with its .json beside it")
    source.add_argument("--onnx", metavar="FILE", help="what `export` wrote, with its .json beside it")
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
    add_device_argument(parser)
    add_amp_argument(parser)


def run(args: argparse.Namespace) -> int:
    overrides = list(args.overrides)
    for option in ("split", "shuffled", "protocol"):  # argparse gives an option of several values all that follows it
        given = getattr(args, option)
        overrides += [name for name in given if "=" in name]
        setattr(args, option, [name for name in given if "=" not in name])
    model = _scored_model(args)
    config = model.configuration(args.config, overrides)
    chosen = protocols.choose(args.protocol)
    for path in filter(None, (args.output, args.details)):
        check_writable(Path(path))
    if args.output and args.details and Path(args.output).resolve() == Path(args.details).resolve():
        raise UserError(f"--output and --details name the same file, {args.output}; give each its own")
    if args.details and "sentence" not in (protocol.name for protocol in chosen):
        raise UserError("--details writes what protocol sentence sees; add sentence to --protocol")
    with Watch.of_job(config.train) as watch:
        return score(args, model, config, chosen, setup(args.device_target, config.train.seed, watch))


def _scored_model(args: argparse.Namespace):
    """The checkpoint or graph that the options name."""
    if args.checkpoint:
        return ScoredCheckpoint(args.checkpoint, args.amp)
    kind, path = (MINDIR, args.mindir) if args.mindir else (ONNX, args.onnx)
    check_of_checkpoint(path, kind, {"--amp": args.amp})
    return ScoredGraph(kind, path)


def score(args: argparse.Namespace, model, config: Config, chosen: list, runtime: Runtime) -> int:
    data = with_cache(open_data(config.data), config.data)
    references = read_references(data, args.split)
    resolved = [protocols.resolve(protocol, config) for protocol in chosen]
    tokenizer = model.tokenizer(config)
    splits = {name: samples_of(data, name) for name in (*args.split, *args.shuffled)}

    def plan_of(name: str, texts: np.ndarray | None = None) -> Plan:
        return make_plan(data, splits[name], tokenizer, resolved, config.data.sentence_field, texts)

    plans = {name: plan_of(name) for name in args.split}
    plans |= {f"{name}, shuffled": plan_of(name, derange(data, splits[name])) for name in args.shuffled}
    model.check_prompts(list(plans.values()), resolved, data, config)
    networks = model.networks(config, runtime, list(plans.values()))
    first = runtime.rank == 0
    seen = seen_images(model.origin, str(model.path), data, args.split)
    if first:
        _warn(args, data, splits, tokenizer, config, networks.has_head, seen)
        count = sum(len(plan.lengths) for plan in plans.values())
        print(f"scoring {'; '.join(plans)}: {count:,} sentences; compiling comes first (seconds for a small network, "
              "up to two minutes for the full recipe)", file=sys.stderr)
    results, records = {}, []
    for label, plan in plans.items():
        keep: list | None = [] if args.details and label in args.split else None
        counts = score_plan(networks, plan, resolved, data, tokenizer, config, keep=keep, runtime=runtime,
                            progress=label if first else "")
        results[label] = report_plan(data, plan, resolved, counts, config.data.max_tokens)
        if keep is not None:
            own = detail_lines(data, label, plan, keep, config.data.sentence_field, config.data.max_tokens)
            records += gather_details(own, runtime)
    if not first:
        return 0
    if data.turned:
        print(exif_warning(data), file=sys.stderr)
    announce(f"{config.data.dataset} ({config.data.split_by})", results, chosen, config, references)
    if args.output:
        document = {model.kind: str(model.path), "dataset": config.data.dataset,
                    "split_by": config.data.split_by, "input_size": config.data.image_size,
                    "threshold": config.eval.threshold, "exists_threshold": config.eval.target_threshold,
                    "min_pixels": config.eval.min_pixels, **networks.precision, "step": model.step,
                    "protocols": {p.name: protocols.conventions(p, config) for p in chosen},
                    "splits": {name: results[name] for name in args.split},
                    "shuffled": {name: results[f"{name}, shuffled"] for name in args.shuffled},
                    "references": references, **({"seen_images": seen} if seen is not None else {})}
        write_file(args.output, (json.dumps(without_nan(document), indent=1) + "\n").encode())
        print(f"wrote {args.output}")
    if args.details:
        write_file(args.details, "".join(f"{line}\n" for line in records).encode())
        print(f"wrote {args.details}")
    return 0


def _warn(args: argparse.Namespace, data, splits: dict, tokenizer, config: Config, has_head: bool, seen):
    """Print data warnings to stderr."""
    lines = list(data_warnings(data, splits, tokenizer, config.data))
    if not has_head:
        lines += no_target_warnings(data, np.concatenate([splits[name] for name in args.split]), has_head=False)
    for line in [*lines, *warnings_of(seen)]:
        print(line, file=sys.stderr)
