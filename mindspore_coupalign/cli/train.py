"""Command ``train``: its arguments, which of them exclude each other, and the start of the trainer."""

import argparse
import sys
from pathlib import Path

from mindspore_coupalign.cli.options import add_device_argument
from mindspore_coupalign.config import Config, load_config, with_overrides
from mindspore_coupalign.data.sets import open_data, open_union, with_cache
from mindspore_coupalign.data.tokenizer import SentenceTokenizer
from mindspore_coupalign.distributed.process import Runtime
from mindspore_coupalign.distributed.watchdog import Watch
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.runtime import setup
from mindspore_coupalign.training import init_from
from mindspore_coupalign.training.dry_run import dry_run
from mindspore_coupalign.training.run_folder import check_resumable, holds_a_run, load_state
from mindspore_coupalign.training.trainer import Trainer
from mindspore_coupalign.weights.checkpoint import Checkpoint


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("--config", metavar="FILE",
                        help="YAML file, or the name of a shipped one (default with --resume: the run's own)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example train.lr=1e-4 data.root=/data")
    parser.add_argument("--output", metavar="DIR",
                        help="where to write (default: the resumed run's folder, or runs/<name of the config file>)")
    parser.add_argument("--resume", metavar="DIR|FILE", help="continue a run from its folder or its last.safetensors")
    init_from.add_arguments(parser)
    parser.add_argument("--dry-run", action="store_true",
                        help="check data, weights, disk and memory, compile, take a few steps, report the largest "
                             "batch that fits (which compiles a second time), write nothing")
    add_device_argument(parser)


def run(args: argparse.Namespace) -> int:
    initial, more = init_from.from_arguments(args)
    overrides = [*args.overrides, *more]
    state = load_state(args.resume, log=lambda line: print(line, file=sys.stderr)) if args.resume else None
    if args.config:
        config = load_config(args.config, overrides)
    elif state:
        config = with_overrides(state.config, overrides, f"{state.path}'s configuration with the overrides")
    else:
        raise UserError("train: give --config with a file or the name of a shipped configuration, or --resume DIR")
    if args.output or not state:
        output = Path(args.output or Path("runs") / Path(args.config).stem)
    else:
        output = state.path.parent
    continues = state and output.resolve() == state.path.parent.resolve()
    if not continues and holds_a_run(output):
        raise UserError(f"{output}: holds a run already; continue with --resume {output}, or choose another --output")
    changes = check_resumable(state, config) if state else []
    with Watch.of_job(config.train) as watch:
        runtime = setup(args.device_target, config.train.seed, watch)
        if runtime.rank == 0:
            for line in changes:
                print(line)
        return start(config, state, output, runtime, args.dry_run, initial)


def start(config: Config, state: Checkpoint | None, output: Path, runtime: Runtime, dry: bool,
          initial: init_from.InitialWeights | None = None) -> int:
    if config.train.batch_size % (runtime.ranks * config.train.accumulate):
        raise UserError(f"train.batch_size={config.train.batch_size} is the global batch and must be a multiple of the "
                        f"{runtime.ranks} ranks times train.accumulate={config.train.accumulate}")
    data = open_data(config.data)
    if not dry:  # which writes nothing
        data = with_cache(data, config.data)
    if state:  # its own tokenizer, wherever the tokenizer's files are now
        tokenizer = SentenceTokenizer.from_json(state.tokenizer, config.data.max_tokens, str(state.path))
    elif initial:
        tokenizer = initial.tokenizer(config)
    else:
        tokenizer = SentenceTokenizer.from_name(config.data.tokenizer, config.data.max_tokens)
    union = open_union(config.data, data) if config.data.sets else None
    trainer = Trainer(config, data, tokenizer, output, runtime, state, initial, union)
    if dry:
        return dry_run(trainer)
    trainer.train()
    return trainer.code
