"""Command ``export``: write a checkpoint as MINDIR (inference/mindir.py) or ONNX (inference/onnx)."""

import argparse
import sys
from pathlib import Path

from mindspore_coupalign import runtime
from mindspore_coupalign.cli.options import add_amp_argument, add_device_argument
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.inference.loading import find_model
from mindspore_coupalign.inference.mindir import TOLERANCES, NotEqual, batches, check_utf8, export_mindir
from mindspore_coupalign.inference.sidecar import sidecar_path
from mindspore_coupalign.outputs import check_writable
from mindspore_coupalign.weights.checkpoint import load_checkpoint


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("--checkpoint", required=True, metavar="FILE",
                        help="best.safetensors or last.safetensors of a run, or a shipped model's name")
    parser.add_argument("--output", required=True, metavar="FILE",
                        help="its end, .mindir or .onnx, chooses the kind; written together with FILE.json; older ones "
                             "are replaced")
    parser.add_argument("--batch", type=int, metavar="N",
                        help="a graph for N images at a time, for engines that want fixed shapes (default: any number)")
    parser.add_argument("--uint8", action="store_true",
                        help="the graph takes 8-bit pixels (B, H, W, 3) and normalises them")
    parser.add_argument("--int8", metavar="FILE.onnx",
                        help="beside an ONNX --output: also write one whose linear layers compute in 8 bits")
    add_device_argument(parser)
    add_amp_argument(parser)


def run(args: argparse.Namespace) -> int:
    output = Path(args.output)
    if output.suffix == ".onnx":
        return _onnx(args, output)
    if output.suffix != ".mindir":
        raise UserError(f"--output {output}: the name must end in .mindir or .onnx")
    if args.int8:
        raise UserError("--int8: of ONNX files only; give an --output that ends in .onnx")
    if args.batch is not None and args.batch < 1:
        raise UserError(f"--batch must be at least 1, found {args.batch}; leave it out for a graph of any batch")
    check_utf8(output, "choose another --output")
    for path in (output, sidecar_path(output)):
        check_writable(path)
    checkpoint = load_checkpoint(find_model(args.checkpoint))
    runtime.setup(args.device_target, checkpoint.config.train.seed)
    try:
        differences, precision = export_mindir(checkpoint, output, args.amp, args.batch, args.uint8)
    except NotEqual as exc:
        print(f"error: {output}: {exc}; nothing was written", file=sys.stderr)
        return 1
    _report(output)
    compared = [args.batch] if args.batch else batches(checkpoint.config.data.image_size)
    what = f"batch{'es' if len(compared) > 1 else ''} {', '.join(map(str, compared))}"
    print(f"against the checkpoint on {len(differences)} random inputs ({what}), both in {precision.amp} "
          f"{precision.amp_dtype}: largest difference {max(differences):.1e} of the logits' scale (allowed: "
          f"{TOLERANCES[precision.amp_dtype]:.0e})")
    return 0


def _onnx(args: argparse.Namespace, output: Path) -> int:
    from mindspore_coupalign.inference import onnx
    from mindspore_coupalign.inference.onnx.session import BATCHES, TOLERANCE

    for name, given in (("amp", args.amp not in (None, "O0", "auto")), ("batch", args.batch)):
        if given:
            raise UserError(f"--{name}: ONNX files compute in float32, at any batch; leave it out")
    outputs = [output] if args.int8 is None else [output, Path(args.int8)]
    if outputs[-1].suffix != ".onnx" or outputs[1:] == [output]:
        raise UserError(f"--int8 {args.int8}: needs a name of its own that ends in .onnx")
    for path in outputs:
        for file in (path, sidecar_path(path)):
            check_writable(file)
    checkpoint = load_checkpoint(find_model(args.checkpoint))
    runtime.setup(args.device_target, checkpoint.config.train.seed)
    try:
        differences = onnx.export_onnx(checkpoint, output, args.uint8)
    except NotEqual as exc:
        print(f"error: {output}: {exc}; nothing was written", file=sys.stderr)
        return 1
    _report(output)
    compared = ", ".join(map(str, BATCHES))
    print(f"against the checkpoint on {len(differences)} random inputs (batches {compared}), both in O0 float32: "
          f"largest difference {max(differences):.1e} of the logits' scale (allowed: {TOLERANCE:.0e})")
    if args.int8:
        differences = onnx.export_int8(output, outputs[1])
        _report(outputs[1])
        print(f"against {output} on random inputs: largest difference {max(differences):.1e} of the logits' scale; "
              "score it on data before you use it")
    return 0


def _report(output: Path):
    print(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB) and {sidecar_path(output)}")
