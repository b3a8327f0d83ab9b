"""Command ``export``: write a checkpoint as MINDIR (inference/mindir.py)."""

import argparse
import sys
from pathlib import Path

from mindspore_coupalign import runtime
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.inference.mindir import TOLERANCES, NotEqual, check_utf8, export_mindir, sidecar_path
from mindspore_coupalign.outputs import check_writable
from mindspore_coupalign.weights.checkpoint import load_checkpoint


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("--checkpoint", required=True, metavar="FILE",
                        help="best.safetensors or last.safetensors of a run")
    parser.add_argument("--output", required=True, metavar="FILE.mindir",
                        help="written together with FILE.mindir.json; older ones are replaced")
    runtime.add_device_argument(parser)
    runtime.add_amp_argument(parser)


def run(args: argparse.Namespace) -> int:
    output = Path(args.output)
    if output.suffix != ".mindir":
        raise UserError(f"--output {output}: the name must end in .mindir")
    check_utf8(output, "choose another --output")
    for path in (output, sidecar_path(output)):
        check_writable(path)
    checkpoint = load_checkpoint(args.checkpoint)
    runtime.setup(args.device_target, checkpoint.config.train.seed)
    try:
        differences, precision = export_mindir(checkpoint, output, args.amp)
    except NotEqual as exc:
        print(f"error: {output}: {exc}; nothing was written", file=sys.stderr)
        return 1
    print(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB) and {sidecar_path(output)}")
    print(f"against the checkpoint on {len(differences)} random inputs, both in {precision.amp} {precision.amp_dtype}: "
          f"largest difference {max(differences):.1e} of the logits' scale (allowed: "
          f"{TOLERANCES[precision.amp_dtype]:.0e})")
    return 0
