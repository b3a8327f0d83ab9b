"""Command ``export``: write a checkpoint as MINDIR (inference/mindir.py)."""

import argparse
import sys
from pathlib import Path

from mindspore_coupalign import runtime
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.inference.mindir import TOLERANCES, NotEqual, batches, check_utf8, export_mindir
from mindspore_coupalign.inference.sidecar import sidecar_path
from mindspore_coupalign.outputs import check_writable
from mindspore_coupalign.weights.checkpoint import load_checkpoint


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("--checkpoint", required=True, metavar="FILE",
                        help="best.safetensors or last.safetensors of a run")
    parser.add_argument("--output", required=True, metavar="FILE.mindir",
                        help="written together with FILE.mindir.json; older ones are replaced")
    parser.add_argument("--batch", type=int, metavar="N",
                        help="a graph for N images at a time, for engines that want fixed shapes (default: any number)")
    parser.add_argument("--uint8", action="store_true",
                        help="the graph takes 8-bit pixels (B, H, W, 3) and normalises them")
    runtime.add_device_argument(parser)
    runtime.add_amp_argument(parser)


def run(args: argparse.Namespace) -> int:
    output = Path(args.output)
    if output.suffix != ".mindir":
        raise UserError(f"--output {output}: the name must end in .mindir")
    if args.batch is not None and args.batch < 1:
        raise UserError(f"--batch must be at least 1, found {args.batch}; leave it out for a graph of any batch")
    check_utf8(output, "choose another --output")
    for path in (output, sidecar_path(output)):
        check_writable(path)
    checkpoint = load_checkpoint(args.checkpoint)
    runtime.setup(args.device_target, checkpoint.config.train.seed)
    try:
        differences, precision = export_mindir(checkpoint, output, args.amp, args.batch, args.uint8)
    except NotEqual as exc:
        print(f"error: {output}: {exc}; nothing was written", file=sys.stderr)
        return 1
    print(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB) and {sidecar_path(output)}")
    compared = batches(checkpoint.config.data.image_size)
    what = f"batch {args.batch}" if args.batch else f"batches {', '.join(map(str, compared))}"
    print(f"against the checkpoint on {len(differences)} random inputs ({what}), both in {precision.amp} "
          f"{precision.amp_dtype}: largest difference {max(differences):.1e} of the logits' scale (allowed: "
          f"{TOLERANCES[precision.amp_dtype]:.0e})")
    return 0
