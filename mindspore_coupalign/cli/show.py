"""Command ``show``: a split's best, worst and randomly drawn predictions as three contact sheets, a panel per sentence.
``random.png`` is the honest one: its sentences are drawn before anything is predicted."""

import argparse

import numpy as np

from mindspore_coupalign import build, visualize
from mindspore_coupalign.cli.options import add_amp_argument, add_device_argument
from mindspore_coupalign.config import DataConfig
from mindspore_coupalign.data.refer import ReferData
from mindspore_coupalign.data.sets import open_data
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.evaluation.metrics import iou, overlap
from mindspore_coupalign.evaluation.prompts import samples_of
from mindspore_coupalign.evaluation.scored_models import configuration
from mindspore_coupalign.evaluation.scoring import evaluate_samples
from mindspore_coupalign.inference.loading import find_model
from mindspore_coupalign.inference.model import Model
from mindspore_coupalign.outputs import check_absent, make_folder
from mindspore_coupalign.runtime import setup
from mindspore_coupalign.weights.checkpoint import load_checkpoint

_COLUMNS = 4
_SHEETS = ("best", "worst", "random")


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("--checkpoint", required=True, metavar="FILE",
                        help="best.safetensors or last.safetensors of a run")
    parser.add_argument("--split", required=True, metavar="NAME", help="for example val")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example data.root=/data/refer")
    parser.add_argument("--count", type=int, default=8, help="panels per sheet (default: 8)")
    parser.add_argument("--samples", type=int, default=0, metavar="N",
                        help="score N randomly drawn sentences of the split (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the random draws (default: 0)")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for best.png, worst.png and random.png")
    parser.add_argument("--overwrite", action="store_true",
                        help="replace the sheets in DIR; without it, nothing is computed where one exists")
    add_device_argument(parser)
    add_amp_argument(parser)


def run(args: argparse.Namespace) -> int:
    for name, least, most in (("count", 1, 1000), ("samples", 0, 2**31), ("seed", 0, 2**32 - 1)):
        if not least <= getattr(args, name) <= most:
            raise UserError(f"--{name} must be between {least} and {most}, found {getattr(args, name)}")
    checkpoint = load_checkpoint(find_model(args.checkpoint))
    config = configuration(None, args.overrides, checkpoint)
    output = make_folder(args.output)
    if not args.overwrite:
        check_absent(output / f"{name}.png" for name in _SHEETS)
    runtime = setup(args.device_target, args.seed)
    data = open_data(config.data)
    random = np.random.default_rng(args.seed)
    samples = random.permutation(samples_of(data, args.split))[: args.samples or None]
    model, tokenizer = build.restore_model(checkpoint, config, args.amp, runtime.target)
    scores = evaluate_samples(model, data, samples, tokenizer, config, progress=args.split)
    predictor = Model.from_model(model, tokenizer, config)
    order = np.argsort(iou(*scores["image"].T), kind="stable")  # equal ones stay in their random order
    ranked = scores["sample"][order]
    chosen = (_distinct(data, ranked[::-1], args.count), _distinct(data, ranked, args.count), samples[: args.count])
    for name, picked in zip(_SHEETS, chosen, strict=True):
        panels = [_panel(data, predictor, int(s), config.data) for s in picked]
        sheet = visualize.contact_sheet(panels, min(_COLUMNS, len(panels)))
        title = f"{config.data.dataset} {args.split}: {name} of {len(samples)} sentences"
        sheet = np.concatenate([visualize.legend(sheet.shape[1], title), sheet])
        visualize.write_png(output / f"{name}.png", sheet)
    mean = 100 * iou(*scores["image"].T).mean()
    print(f"{config.data.dataset} {args.split}: {len(samples)} sentences, mIoU {mean:.2f} (image's own size); wrote "
          f"{', '.join(f'{name}.png' for name in _SHEETS)} to {output}")
    return 0


def _distinct(data: ReferData, ranked: np.ndarray, count: int) -> np.ndarray:
    """The first ``count`` samples that lie on different images."""
    _, first = np.unique(data.ref_image[data.sentence_ref[ranked]], return_index=True)
    return ranked[np.sort(first)[:count]]


def _panel(data: ReferData, predictor: Model, sample: int, names: DataConfig) -> np.ndarray:
    r = int(data.sentence_ref[sample])
    image, truth = data.read_image(r), data.mask(r, names.overlap)
    sentence = data.sentence(sample, names.sentence_field)
    mask = predictor.predict(image, sentence, strict=False).mask
    score = float(iou(*np.array(overlap(mask, truth))))
    nothing = "" if data.has_target[r] else "; no target"
    return visualize.overlay(image, mask, sentence, truth, f"IoU {score:.2f}{nothing}")
