"""Command ``export``: write a checkpoint as MINDIR (inference/mindir.py) or ONNX (inference/onnx)."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mindspore_coupalign import runtime
from mindspore_coupalign.cli.options import add_amp_argument, add_device_argument
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.inference.loading import find_model
from mindspore_coupalign.inference.mindir import TOLERANCES, NotEqual, batches, export_mindir
from mindspore_coupalign.inference.sidecar import check_utf8, sidecar_path
from mindspore_coupalign.models.precision import FLOAT32, Precision
from mindspore_coupalign.outputs import check_writable
from mindspore_coupalign.weights.checkpoint import Checkpoint, load_checkpoint


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
    outputs = _outputs(args)
    for path in outputs:
        check_utf8(path, "choose another --output")
        for file in (path, sidecar_path(path)):
            check_writable(file)
    checkpoint = load_checkpoint(find_model(args.checkpoint))
    runtime.setup(args.device_target, checkpoint.config.train.seed)
    try:
        (_onnx if outputs[0].suffix == ".onnx" else _mindir)(args, checkpoint, outputs)
    except NotEqual as exc:
        print(f"error: {outputs[0]}: {exc}; nothing was written", file=sys.stderr)
        return 1
    return 0


def _outputs(args: argparse.Namespace) -> list[Path]:
    output = Path(args.output)
    if output.suffix not in (".mindir", ".onnx"):
        raise UserError(f"--output {output}: the name must end in .mindir or .onnx")
    if args.batch is not None and args.batch < 1:
        raise UserError(f"--batch must be at least 1, found {args.batch}; leave it out for a graph of any batch")
    if output.suffix == ".mindir":
        if args.int8:
            raise UserError("--int8: of ONNX files only; give an --output that ends in .onnx")
        return [output]
    for name, given in (("amp", args.amp not in (None, "O0", "auto")), ("batch", args.batch)):
        if given:
            raise UserError(f"--{name}: ONNX files compute in float32, at any batch; leave it out")
    if not args.int8:
        return [output]
    int8 = Path(args.int8)
    if int8.suffix != ".onnx" or int8 == output:
        raise UserError(f"--int8 {int8}: needs a name of its own that ends in .onnx")
    return [output, int8]


def _mindir(args: argparse.Namespace, checkpoint: Checkpoint, outputs: list[Path]):
    differences, precision = export_mindir(checkpoint, outputs[0], args.amp, args.batch, args.uint8)
    compared = [args.batch] if args.batch else batches(checkpoint.config.data.image_size)
    _report(outputs[0], differences, compared, precision, TOLERANCES[precision.amp_dtype])


def _onnx(args: argparse.Namespace, checkpoint: Checkpoint, outputs: list[Path]):
    from mindspore_coupalign.inference.onnx import export

    differences = export.export_onnx(checkpoint, outputs[0], args.uint8)
    _report(outputs[0], differences, export.BATCHES, FLOAT32, export.TOLERANCE)
    for path in outputs[1:]:
        differences = export.export_int8(outputs[0], path)
        _wrote(path)
        print(f"against {outputs[0]} on random inputs: largest difference {max(differences):.1e} of the logits' scale; "
              "score it on data before you use it")


def _report(output: Path, differences: list, compared: Sequence[int], precision: Precision, allowed: float):
    _wrote(output)
    what = f"batch{'es' if len(compared) > 1 else ''} {', '.join(map(str, compared))}"
    print(f"against the checkpoint on {len(differences)} random inputs ({what}), both in {precision.amp} "
          f"{precision.amp_dtype}: largest difference {max(differences):.1e} of the logits' scale (allowed: "
          f"{allowed:.0e})")


def _wrote(output: Path):
    print(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB) and {sidecar_path(output)}")
