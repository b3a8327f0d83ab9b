"""Command ``make-shapes``: draw RefShapes (data/refshapes) in REFER's layout."""

import argparse
import json
import os
from pathlib import Path

from mindspore_coupalign.data.refshapes.dataset import GENERAL, PLAIN, SPLITS, make_shapes, table


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("--output", required=True, metavar="DIR",
                        help="folder to make; data/refshapes (data/refshapes_general) is where the shipped "
                             "configurations look")
    parser.add_argument("--generalised", action="store_true",
                        help="refshapes_general: sentences may mean several shapes, or none")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other scenes (default 0)")
    for split, scenes in SPLITS.items():
        parser.add_argument(f"--{split}", type=int, default=scenes, metavar="N",
                            help=f"scenes in {split} (default {scenes})")
    parser.add_argument("--workers", type=int, default=min(os.cpu_count() or 1, 8), metavar="N",
                        help="processes; the result is the same for any number (default: one per core, at most 8)")
    parser.add_argument("--force", action="store_true", help="replace another RefShapes that is already in DIR")


def run(args: argparse.Namespace) -> int:
    sizes = {split: getattr(args, split) for split in SPLITS}
    made = make_shapes(args.output, args.seed, **sizes, workers=args.workers, force=args.force,
                       generalised=args.generalised)
    variant = GENERAL if args.generalised else PLAIN
    state = "written" if made else "of this seed and size is there already; kept as it is"
    print(f"{args.output}: {variant.name} {state}")
    print(table(json.loads((Path(args.output) / variant.folder / "references.json").read_text())["splits"]))
    return 0
