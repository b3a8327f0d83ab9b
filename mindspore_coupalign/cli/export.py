"""Command ``export``: write a checkpoint as MINDIR (inference/mindir.py) or as ONNX (inference/onnx)."""

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
    parser.add_argument("--output", required=True, metavar="FILE",
                        help="FILE.mindir or FILE.onnx, written together with a sidecar of that name + .json; older "
                             "ones are replaced")
    parser.add_argument("--int8", metavar="FILE.onnx",
                        help="beside an ONNX --output: also write one whose weights have 8 bits")
    runtime.add_device_argument(parser)
    runtime.add_amp_argument(parser)


def run(args: argparse.Namespace) -> int:
    output = Path(args.output)
    if output.suffix == ".onnx":
        return _onnx(args, output)
    if args.int8:
        raise UserError("--int8: MINDIRs are not quantised; give an --output that ends in .onnx")
    if output.suffix != ".mindir":
        raise UserError(f"--output {output}: the name must end in .mindir or .onnx")
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
    _report(output)
    print(f"against the checkpoint on {len(differences)} random inputs, both in {precision.amp} {precision.amp_dtype}: "
          f"largest difference {max(differences):.1e} of the logits' scale (allowed: "
          f"{TOLERANCES[precision.amp_dtype]:.0e})")
    return 0


def _onnx(args: argparse.Namespace, output: Path) -> int:
    from mindspore_coupalign.inference import onnx
    if args.amp not in (None, "O0", "auto"):
        raise UserError(f"--amp {args.amp}: an ONNX file computes in float32; leave --amp out")
    outputs = [output, *([Path(args.int8)] if args.int8 else [])]
    if outputs[-1].suffix != ".onnx" or outputs[1:] == [output]:
        raise UserError(f"--int8 {args.int8}: needs a name of its own that ends in .onnx")
    for path in outputs:
        for file in (path, sidecar_path(path)):
            check_writable(file)
    checkpoint = load_checkpoint(args.checkpoint)
    runtime.setup(args.device_target, checkpoint.config.train.seed)
    try:
        differences = onnx.export_onnx(checkpoint, output)
    except NotEqual as exc:
        print(f"error: {output}: {exc}; nothing was written", file=sys.stderr)
        return 1
    _report(output)
    print(f"against the checkpoint on random inputs, batches 1 and 3, in float32: largest difference "
          f"{max(differences):.1e} of the logits' scale (allowed: {onnx.TOLERANCE:.0e})")
    if args.int8:
        differences = onnx.export_int8(output, outputs[1])
        _report(outputs[1])
        print(f"against {output} on the same inputs: largest difference {max(differences):.1e} of the logits' scale; "
              "measure what it costs on your data")
    return 0


def _report(output: Path):
    print(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB) and {sidecar_path(output)}")
