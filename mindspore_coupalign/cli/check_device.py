"""Command ``check-device``: does a GPU or NPU compute what the CPU does? (device_check/)"""

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from mindspore_coupalign import __version__
from mindspore_coupalign.config import AMP_LEVELS, Config, load_config
from mindspore_coupalign.data.tokenizer import vocabulary_size
from mindspore_coupalign.device_check import checks
from mindspore_coupalign.doctor import targets
from mindspore_coupalign.doctor.machine import OK
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.evaluation.results import without_nan
from mindspore_coupalign.outputs import check_writable, scratch, write_file

FIRST_START = 3600  # seconds; a card for which the driver compiles MindSpore's kernels needs many minutes
LEAST_FREE = 1 << 20  # bytes
DEFAULT = ["O0", "O1", "O2"]
OPTIONS = {"train.amp=": "--amp", "train.batch_size=": "--batch", "train.accumulate=": "--batch",
           "train.steps=": "--steps"}
LEVELS = [level for level in AMP_LEVELS if level != "auto"]


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("target", choices=("GPU", "Ascend", "CPU"),
                        help="what to compare with the CPU; CPU compares the CPU with itself")
    parser.add_argument("--config", default="refshapes_tiny", metavar="FILE",
                        help="configuration of the network to compute, with random weights (default refshapes_tiny)")
    parser.add_argument("overrides", nargs="*", metavar="key=value",
                        help="of that configuration, for example model.fusion.stages=[1,2]")
    parser.add_argument("--amp", nargs="+", default=DEFAULT, metavar="LEVEL",
                        help=f"precisions, of {' '.join(LEVELS)} (default O0 O1 O2)")
    parser.add_argument("--batch", type=int, default=4, metavar="N", help="samples (default 4)")
    parser.add_argument("--steps", type=int, default=10, metavar="N",
                        help="training steps over one batch of random images (default 10)")
    parser.add_argument("--train", type=int, default=0, metavar="STEPS",
                        help="also train refshapes_tiny on RefShapes for this many steps, whatever --config and "
                        "key=value are, and evaluate and export the shipped model")
    parser.add_argument("--output", metavar="FILE", help="write the report as JSON, with failed processes' output")


def run(args: argparse.Namespace) -> int:
    """Exit code 0 where everything agrees, else 1."""
    levels = [name for name in args.amp if "=" not in name] or DEFAULT  # argparse gives --amp all that follows it
    settings = [*args.overrides, *(name for name in args.amp if "=" in name)]
    check_options(args, levels, settings)
    config = load_config(args.config, [*settings, f"train.batch_size={args.batch}", "train.accumulate=1",
                                       f"train.steps={args.steps}", "train.minutes=0"])
    if config.train.amp_dtype == "bfloat16" and args.target != "Ascend" and levels != ["O0"]:
        raise UserError(f"train.amp_dtype=bfloat16: MindSpore has no such kernels for the {args.target}; leave it out")
    vocabulary, source = vocabulary_size(config.data.tokenizer, config.data.max_tokens)
    check_target(args.target)
    size, model = config.data.image_size, config.model
    print(f"{args.config}: {model.backbone.name} and {model.fusion.name}, random weights, {args.batch} random images "
          f"of {size} x {size}, vocabulary of {vocabulary} ({source}); "
          "each line compiles the network anew", flush=True)
    results = []
    with scratch("coupalign-check-") as folder:
        for result in results_of(folder, args, levels, config, vocabulary):
            if result.why and shutil.disk_usage(folder).free < LEAST_FREE:
                raise UserError(f"{folder}: no room left; TMPDIR=DIR names another place for temporary files")
            results.append(result)
            print("\n".join(lines(result)), flush=True)
    bad = [result.name for result in results if not result.good]
    print(f"{args.target} does not agree with the CPU, or fails: {'; '.join(bad)}; open an issue with this output and "
          "the doctor's" if bad else f"{args.target} agrees with the CPU")
    if args.output:
        document = {"version": __version__, "target": args.target, "config": args.config, "overrides": settings,
                    "batch": args.batch, "results": [result.report() for result in results]}
        write_file(args.output, (json.dumps(without_nan(document), indent=1) + "\n").encode())
        print(f"wrote {args.output}")
    return int(bool(bad))


def check_options(args: argparse.Namespace, levels: list, settings: list):
    """Raises UserError for an option that cannot be used."""
    for name in levels:
        if name not in LEVELS:
            raise UserError(f"--amp {name}: no such level; choose among {' '.join(LEVELS)}")
    for start, option in OPTIONS.items():
        if any(setting.startswith(start) for setting in settings):
            raise UserError(f"{start}…: give {option} instead")
    for option, least in (("batch", 1), ("steps", 1), ("train", 0)):
        if getattr(args, option) < least:
            raise UserError(f"--{option} {getattr(args, option)}: must be at least {least}")
    if args.output:
        check_writable(Path(args.output))


def check_target(target: str):
    """Raises UserError, with the doctor's text, where MindSpore cannot use it."""
    checks_of = {"GPU": targets.gpu, "Ascend": targets.ascend, "CPU": targets.cpu}
    *_, last = checks_of[target](FIRST_START)
    if last.status != OK:
        raise UserError(f"{target}: {last.text}; `{last.remedy or 'python -m mindspore_coupalign doctor'}` is the next "
                        "step")


def results_of(folder: Path, args: argparse.Namespace, levels: list, config: Config,
               vocabulary: int) -> Iterator[checks.Result]:
    yield from checks.networks(folder / "networks", config, vocabulary, args.target, levels)
    if args.train:
        yield from checks.trainings(folder / "trainings", args.target, levels, args.train)


def lines(result: checks.Result) -> list[str]:
    """A result as it is printed."""
    facts, notes = result.facts, []
    if facts:
        notes = [facts["amp_dtype"], f"forward {facts['forward_s']:.3g} s"]
        notes += [f"training step {facts['step_s']:.3g} s"] if facts["step_s"] else []
        notes += [f"{facts['memory'] / 2**30:.1f} GiB of {facts['of'] / 2**30:.1f}"] if "memory" in facts else []
        notes += [f"{facts['overflows']} steps until the loss scale fits"] if facts["overflows"] else []
    head = ": ".join(filter(None, (result.name, result.why or ", ".join(notes))))
    rows = [f"  {'ok' if row.good else 'BAD':<5}{row.part:<11}error {row.error:.1e} of {row.bound:.0e}  {row.where}"
            for row in result.rows]
    return [f"{'ok' if result.good else 'BAD':<5}{head}", *rows, *result.lines]
