"""Command ``describe``: a configuration's network part by part, with parameters and multiply-accumulates (MACs)."""

import argparse
import dataclasses

import mindspore as ms
import numpy as np

from mindspore_coupalign import build, runtime
from mindspore_coupalign.config import Config, load_config
from mindspore_coupalign.data.tokenizer import vocabulary_size
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.models import macs


@dataclasses.dataclass(frozen=True)
class Part:
    name: str
    parameters: int
    trainable: int
    macs: int  # of one sample


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("--config", required=True, metavar="FILE",
                        help="YAML file, for example configs/refshapes_tiny.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example data.image_size=384")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="also count a batch of N samples")


def run(args: argparse.Namespace) -> int:
    if args.batch < 1:
        raise UserError(f"--batch must be at least 1, found {args.batch}")
    config = load_config(args.config, args.overrides)
    runtime.setup("CPU", config.train.seed)
    vocabulary, source = vocabulary_size(config.data.tokenizer, config.data.max_tokens)
    data = config.data
    print(f"{args.config}: input {data.image_size} x {data.image_size}, {data.max_tokens} word pieces, "
          f"vocabulary of {vocabulary} ({source})")
    print(format_parts(describe(config, vocabulary), config, args.batch))
    return 0


def describe(config: Config, vocabulary: int) -> list[Part]:
    """The parts in the order of computation."""
    model = build.build_model(config, vocabulary).set_train(False)
    size, words = config.data.image_size, config.data.max_tokens
    counts = macs.count(model, ms.Tensor(np.zeros((1, 3, size, size), np.float32)),
                        *(ms.Tensor(np.ones((1, words), np.int32)) for _ in range(2)))
    parameters = list(model.get_parameters())
    rows = []
    for title, places in model.parts().items():
        own = [p for p in parameters if _is_below(p.name, places)]
        rows.append(Part(title, sum(p.size for p in own), sum(p.size for p in own if p.requires_grad),
                         sum(number for name, number in counts.items() if _is_below(name, places))))
    return rows


def _is_below(name: str, places: tuple[str, ...]) -> bool:
    return any(f"{name}.".startswith(f"{place}.") for place in places)


def format_parts(parts: list[Part], config: Config, batch: int = 1) -> str:
    """The table, its total, and what weights and optimizer take in memory."""
    total = Part("total", *(sum(getattr(p, key) for p in parts) for key in ("parameters", "trainable", "macs")))
    lines = [f"{'part':<26}{'parameters':>14}{'trainable':>14}{'GMACs':>11}{'share':>9}"]
    for p in [*parts, total]:
        share = f"{100 * p.macs / total.macs:.1f} %"
        lines.append(f"{p.name:<26}{p.parameters:>14,}{p.trainable:>14,}{p.macs / 1e9:>11.4f}{share:>9}")
    averages = 1 if config.train.ema else 0
    state = 4 * (total.parameters + (3 + averages) * total.trainable)
    lines.append(f"forward, batch of {batch}: {batch * total.macs / 1e9:.2f} GMACs (2 FLOPs each; matrix products and "
                 "convolutions only); a training step is about three times that")
    lines.append(f"weights, float32: {4 * total.parameters / 1e6:.1f} MB; training state: {state / 1e6:.1f} MB "
                 f"(weights, gradients, two Adam moments{', averages' if averages else ''}), activations not counted")
    return "\n".join(lines)
