"""Command ``predict``: segment what sentences refer to in images, with a checkpoint, a MINDIR or an ONNX file.
inference/predictions.py says what it writes."""

import argparse
import contextlib
import functools
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from mindspore_coupalign import visualize
from mindspore_coupalign.cli.options import add_amp_argument, add_device_argument
from mindspore_coupalign.data.inputs import shorten, to_rgb
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.inference import inputs, loading
from mindspore_coupalign.inference.inputs import Request
from mindspore_coupalign.inference.model import BATCH_SIZE, Model, notes_of
from mindspore_coupalign.inference.predictions import Prediction, Records
from mindspore_coupalign.outputs import check_absent, make_folder

LOADING = "loading the network"
COMPILING = "compiling the network (5 s for a small one, 20 s to 2 min for the full recipe on a CPU)"


def add_arguments(parser: argparse.ArgumentParser):
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", metavar="FILE", help="any of the following files, or a shipped model's name")
    source.add_argument("--checkpoint", metavar="FILE", help="best.safetensors or last.safetensors of a run")
    source.add_argument("--mindir", metavar="FILE", help="what `export` wrote, with its .json beside it")
    source.add_argument("--onnx", metavar="FILE", help="what `export` wrote, with its .json beside it")
    parser.add_argument("--image", action="extend", nargs="+", default=[], metavar="FILE",
                        help="image files (JPEG, PNG, WebP, TIFF, ...), folders of them, or quoted patterns such as "
                        "'in/*.jpg'; turned by their EXIF orientation, masks included; transparency is composed on "
                        "white; may be given several times")
    parser.add_argument("--text", action="append", default=[], metavar="SENTENCE",
                        help="what to segment in every image; may be given several times")
    parser.add_argument("--list", metavar="FILE.jsonl",
                        help='instead of --image and --text: a line {"image": path, "sentence": text} per mask; '
                        "relative paths begin at the list's folder")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the masks and overlays")
    parser.add_argument("--overwrite", action="store_true",
                        help="replace masks and overlays in DIR; without it, nothing is computed where one exists")
    parser.add_argument("--attention", action="store_true",
                        help="also draw which words each pixel read, and the mask proposals (with a checkpoint)")
    parser.add_argument("--batch-size", type=int, metavar="N",
                        help="sentences that go through the network at once; a graph of a fixed batch takes its own "
                        f"(default: {BATCH_SIZE}, on a CPU fewer for inputs beyond 128 pixels)")
    parser.add_argument("--threshold", type=float, metavar="P",
                        help="probability above which a pixel is in the mask (default: the model's eval.threshold)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the checkpoint's configuration")
    add_device_argument(parser)
    add_amp_argument(parser)


def run(args: argparse.Namespace) -> int:
    """0: everything was predicted; 1: a part, the errors are on stderr; 2 (or UserError): nothing."""
    path, kind = _source(args)
    _take_settings(args)
    asked = _requests(args)
    output = Path(args.output)
    if os.path.lexists(output) and not output.is_dir():
        raise UserError(f"--output {output}: a file, not a folder; choose another")
    kinds = ("mask", "overlay", "attention") if args.attention else ("mask", "overlay")
    if not args.overwrite:
        check_absent(output / f"{request.stem}_{name}.png" for request in asked for name in kinds)
    records = Records(output, [request.stem for request in asked], args.overwrite)
    readable = _from_first_readable(asked)
    if not readable:
        return 2
    started = time.perf_counter()
    with progress(LOADING):
        model = loading.open_model(path, kind, args.device_target, args.amp, args.attention, args.overrides)
    loaded = time.perf_counter() - started
    model.while_compiling = functools.partial(progress, COMPILING)
    bad = _bad_sentences(model, asked)
    readable = [request for request in readable if request.sentence not in bad]
    if not readable:
        return 2
    own = output.is_dir()
    make_folder(output)
    with records:
        done = _predict(model, readable, args, output, records, loaded)
    if not done and not own:
        with contextlib.suppress(OSError):  # it is not empty
            output.rmdir()
    return 0 if done == len(asked) else 1 if done else 2


@contextlib.contextmanager
def progress(what: str, after: float = 1.5) -> Iterator[None]:
    """Print ``what`` to stderr if the block takes more than ``after`` seconds."""
    timer = threading.Timer(after, lambda: print(f"{what} ...", file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _source(args: argparse.Namespace) -> tuple[Path, str]:
    """The model's file and its kind."""
    given = {loading.CHECKPOINT: args.checkpoint, loading.MINDIR: args.mindir, loading.ONNX: args.onnx}
    if args.model:
        path = loading.find_model(args.model)
        kind = loading.kind_of(path)
    else:
        kind, path = next((kind, Path(path)) for kind, path in given.items() if path)
    loading.check_of_checkpoint(path, kind, {"--attention": args.attention, "--amp": args.amp})
    return path, kind


def _take_settings(args: argparse.Namespace):
    """argparse gives --image all values that follow it, key=value too."""
    settings = [text for text in args.image if "=" in text and text.startswith(("data.", "eval.", "model.", "train."))
                and not os.path.exists(text)]
    args.overrides += settings
    args.image = [text for text in args.image if text not in settings]
    if args.batch_size is not None and args.batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, found {args.batch_size}")
    if args.threshold is not None and not 0 < args.threshold < 1:
        raise UserError(f"--threshold must lie between 0 and 1, found {args.threshold}")


def _requests(args: argparse.Namespace) -> list[Request]:
    if args.list and (args.image or args.text):
        raise UserError("--list names images and sentences itself; leave --image and --text out")
    if args.list:
        return inputs.of_list(args.list)
    if not (args.image and args.text):
        raise UserError("give --image and --text, or --list FILE.jsonl")
    return inputs.of_options(args.image, args.text)


def _from_first_readable(asked: list[Request]) -> list[Request]:
    """The requests from the first readable image on; unreadable images before it are reported on stderr. The network is
    not loaded where no image can be read."""
    bad = set()
    for k, request in enumerate(asked):
        if request.image not in bad:
            try:
                to_rgb(request.image)
                return asked[k:]
            except UserError as exc:
                bad.add(request.image)
                print(f"error: {exc}", file=sys.stderr)
    return []


def _bad_sentences(model: Model, asked: list[Request]) -> set:
    """Those without a known word, reported on stderr before anything is computed."""
    bad, first = set(), {request.sentence: request.origin for request in reversed(asked)}
    for sentence in dict.fromkeys(request.sentence for request in asked):
        try:
            model.check_sentence(sentence)
        except UserError as exc:
            bad.add(sentence)
            print(f"error: {first[sentence]}{exc}", file=sys.stderr)
    return bad


def _predict(model: Model, asked: list[Request], args: argparse.Namespace, output: Path, records: Records,
             loaded: float) -> int:
    """The number of masks written; errors are reported on stderr, each once."""
    results = model.predict_many(((r.image, r.sentence) for r in asked), args.batch_size, threshold=args.threshold,
                               errors="return")
    done, reported, warned, image = 0, set(), set(), None
    with tqdm(total=len(asked), unit="sentence", leave=False, disable=None if len(asked) > 1 else True) as bar:
        for request, result in zip(asked, results, strict=True):
            bar.update()
            if isinstance(result, UserError):
                if str(result) not in reported:
                    bar.write(f"error: {result}", file=sys.stderr)
                reported.add(str(result))
                continue
            if request.image != image:
                times = "" if done else f"; loaded in {loaded:.1f} s, compiled in {model.compile_seconds:.1f} s"
                h, w = result.mask.shape
                bar.write(f"{request.image}: {w} x {h} pixels{times}")
                image = request.image
            for warning in notes_of(result) if result.sentence not in warned else ():
                bar.write(f"warning: {shorten(result.sentence)}: {warning}", file=sys.stderr)
            warned.add(result.sentence)
            bar.write(_write(result, request, output, records))
            done += 1
    return done


def _write(result: Prediction, request: Request, output: Path, records: Records) -> str:
    """Write the result's files and record; its line for the terminal."""
    stem = output / request.stem
    saved = result.write(stem)
    more = {}
    if result.details is not None:
        more["attention"] = f"{request.stem}_attention.png"
        visualize.write_png(output / more["attention"], visualize.attention_sheet(result))
    records.add(request.image, result, saved, more)
    target = "" if result.target_probability is None else f"; target probability {result.target_probability:.2f}"
    return (f"{request.number}. {shorten(result.sentence)}: {describe_mask(result)}; score {result.score:.2f}"
            f"{target}; {1000 * result.seconds:.0f} ms; {saved.mask}")


def describe_mask(prediction: Prediction) -> str:
    """The mask's share of the image and its bounding box, x and y from the top left, ends included."""
    if prediction.box is None:
        return "nothing predicted (empty mask)"
    x, y, width, height = prediction.box
    return f"{100 * prediction.mask.mean():.1f} % of the image, x {x}-{x + width - 1}, y {y}-{y + height - 1}"
