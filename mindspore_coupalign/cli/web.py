"""Command ``web``: a web demo to try a model on one's own images (web/)."""

import argparse
from pathlib import Path

from mindspore_coupalign.cli.options import add_amp_argument, add_device_argument
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.web import server


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("--model", default="refshapes", metavar="FILE|NAME",
                        help="a checkpoint, .mindir or .onnx file, or a shipped model's name (default: refshapes)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 opens the demo to "
                        "everyone who can reach this machine (default: 127.0.0.1, this machine only)")
    parser.add_argument("--port", type=int, default=7860, help="(default: 7860)")
    parser.add_argument("--examples", metavar="DIR", help="folder of example images, with sentences in its "
                        "examples.jsonl, a line {\"image\": …, \"sentence\": …} each (default: RefShapes' scenes)")
    parser.add_argument("--max-megabytes", type=int, default=20, help="largest upload (default: 20)")
    parser.add_argument("--max-megapixels", type=int, default=50, help="largest image (default: 50)")
    add_device_argument(parser)
    add_amp_argument(parser)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example eval.target_threshold=0.7")


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C."""
    with server.folder() as folder:
        serve(args, folder)
    return 0


def serve(args: argparse.Namespace, folder: Path):
    server.check_gradio()
    server.check_port(args.host, args.port)
    if min(args.max_megabytes, args.max_megapixels) < 1:
        raise UserError("--max-megabytes and --max-megapixels must be at least 1")
    from mindspore_coupalign.inference.loading import (
        CHECKPOINT,
        check_of_checkpoint,
        find_model,
        kind_of,
        open_model,
        shipped_models,
    )
    from mindspore_coupalign.web.demo import Limits, folder_examples, shapes_examples

    path = find_model(args.model)
    kind = kind_of(path)
    explains = kind == CHECKPOINT  # graphs return the mask only
    check_of_checkpoint(path, kind, {"--amp": args.amp})
    print(f"loading and compiling {args.model} (seconds for a small network, up to two minutes for the full recipe)",
          flush=True)
    examples = folder_examples(Path(args.examples)) if args.examples else shapes_examples(folder)
    model = open_model(path, kind, args.device_target, args.amp, explains, args.overrides)
    model.warm_up()
    title = f"The model is **{args.model if args.model in shipped_models() else path.name}**."
    if args.model == "refshapes":
        title += " It knows simple coloured shapes and their positions, not photographs."
    from mindspore_coupalign.web.page import build

    limits = Limits(args.max_megabytes, args.max_megapixels)
    page = build(model, title, examples, limits, folder, explains)
    server.serve(page, args.host, args.port, folder, args.max_megabytes)
