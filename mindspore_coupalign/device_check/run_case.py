"""Runs a network on one target in one precision, in a process of its own.

    python -m mindspore_coupalign.device_check.run_case FOLDER OUTPUT TARGET AMP

FOLDER holds ``case.json`` (configuration, vocabulary); the first process writes the weights that the others read. To
OUTPUT it writes ``PART.npz`` for forward, losses, gradients, weights and curve, one by one, and ``facts.json``.

Shapes: image (B, 3, H, W); ids, word_mask (B, T) int32; mask (B, 1, H, W) 0/1.
"""

import json
import sys
import time
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import nn

from mindspore_coupalign import build, runtime
from mindspore_coupalign.config import Config, config_from_dict, with_overrides
from mindspore_coupalign.device_check.compare import WEIGHTS
from mindspore_coupalign.models import rng
from mindspore_coupalign.models.coupalign import Outputs
from mindspore_coupalign.models.precision import choose_precision, set_precision
from mindspore_coupalign.training import setup
from mindspore_coupalign.training.dry_run import memory
from mindspore_coupalign.training.objective import LOSSES
from mindspore_coupalign.training.step import RESULTS
from mindspore_coupalign.weights.checkpoint import load_parameters

SEED, SPREAD = 0, 0.02  # of the noise added to the initial weights, so that no part begins at 0
FROZEN = 0.5  # factor of batch norms' scales: with fixed statistics 23 residual blocks of random weights overflow
OVERFLOWS = 24  # steps that the loss scale may take to come down
TIMED = 3  # calls after the one that compiles


class Trace(nn.Cell):
    """The encoder's stages and words beside the network's own outputs."""

    def __init__(self, model):
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, image, ids, word_mask):
        stages, words, _ = self.model.encoder(image, ids, word_mask)
        return stages, words, self.model.outputs(image, ids, word_mask)


def batch_of(config: Config, vocabulary: int) -> tuple:
    """Random images and words; sentences of different lengths, a rectangle as mask."""
    random, size, tokens = np.random.default_rng(SEED), config.data.image_size, config.data.max_tokens
    samples = config.train.batch_size // config.train.accumulate
    image = random.standard_normal((samples, 3, size, size), np.float32)
    lengths = np.linspace(min(3, tokens), tokens, samples).astype(int)[:, None]
    word_mask = (np.arange(tokens) < lengths).astype(np.int32)
    ids = random.integers(1, vocabulary, (samples, tokens)).astype(np.int32) * word_mask
    mask = np.zeros((samples, 1, size, size), np.float32)
    for i in range(samples):
        mask[i, :, size // 8 + i % 4 * size // 16:size // 2 + i % 3 * size // 8, size // 4:3 * size // 4] = 1
    return image, ids, word_mask, mask


def weights_of(model, path: Path) -> dict:
    """The initial weights with a little noise; the first process writes them."""
    if not path.exists():
        random = np.random.default_rng(SEED)
        arrays = {p.name: p.asnumpy() for p in model.get_parameters()}
        for name, value in arrays.items():
            spread = SPREAD * (float(value.std()) if value.ndim > 1 and value.any() else 1)
            arrays[name] = (value + spread * random.standard_normal(value.shape)).astype(value.dtype)
        for name in arrays:
            if name.endswith("moving_variance"):
                arrays[name.replace("moving_variance", "gamma")] *= np.float32(FROZEN)
        np.savez(path, **arrays)
    with np.load(path) as arrays:
        return dict(arrays)


def forward(model, batch: tuple) -> tuple[dict, float]:
    """(name -> array in the order of computation, seconds of a pass with all of them)."""
    trace = Trace(model).set_train(False)
    inputs = [ms.Tensor(array) for array in batch[:3]]
    stages, words, outputs = trace(*inputs)
    tensors = {f"stage {i + 1}": value for i, value in enumerate(stages)} | {"words": words}
    for name, value in Outputs(*outputs)._asdict().items():
        if isinstance(value, tuple):
            tensors |= {f"{name} {i + 1}": one for i, one in enumerate(value)}
        elif value is not None:
            tensors[name] = value
    logits = tensors.pop("logits")
    arrays = {name: value.astype(ms.float32).asnumpy() for name, value in (tensors | {"logits": logits}).items()}
    seconds = []
    for _ in range(TIMED):
        start = time.perf_counter()
        trace(*inputs)[1].asnumpy()
        seconds.append(time.perf_counter() - start)
    return arrays, sorted(seconds)[TIMED // 2]


def training(model, config: Config, target: str, batch: tuple, start: dict, write) -> dict:
    """Take steps over one batch, with the same random numbers on every target. Write losses, gradients (the optimizer's
    first moments) and changes of the weights of the first step, then the losses of all steps; returns facts."""
    step, lr = setup.build_train_step(model, config, target=target), ms.Tensor(np.float32(config.train.lr))
    curve = list[float]()

    def take() -> dict:
        """RESULTS of the next step; a non-finite one changes nothing and does not count."""
        keys = rng.draw_keys(step.keys.size, SEED, 0, len(curve))
        image, ids, word_mask, mask = map(ms.Tensor, batch)
        results = dict(zip(RESULTS, step(image, ids, word_mask, mask, lr, keys).asnumpy().tolist(), strict=True))
        if results["finite"]:
            curve.append(results["loss"])
        return results

    overflows = 0
    while not (first := take())["finite"]:  # the loss scale begins high
        overflows += 1
        if overflows == OVERFLOWS:
            raise ValueError(f"{OVERFLOWS} training steps in a row are not finite")
    write("losses", {name: np.float32(first[name]) for name in (*LOSSES, "grad_norm")})
    write("gradients", step.states()["adam_m"])
    write("weights", {p.name: p.asnumpy() - start[p.name] for p in model.trainable_params()})
    begun = time.perf_counter()
    while len(curve) < config.train.steps:
        if not take()["finite"]:
            raise ValueError(f"training step {len(curve) + 1} is not finite")
    seconds = (time.perf_counter() - begun) / (len(curve) - 1) if len(curve) > 1 else None
    write("curve", {f"step {i + 1}": np.float32(loss) for i, loss in enumerate(curve)})
    return {"step_s": seconds, "overflows": overflows}


def main(folder: str, output: str, target: str, amp: str):
    place = Path(folder)
    case = json.loads((place / "case.json").read_text())
    config = with_overrides(config_from_dict(case["config"], "the case"), [f"train.amp={amp}"], "the case")

    def write(part: str, arrays: dict):
        half = Path(output) / "half_written.npz"
        np.savez(half, **arrays)
        half.replace(half.with_name(f"{part}.npz"))

    target = runtime.setup(target, SEED).target
    rng.check_device(target)
    model = build.build_model(config, case["vocabulary"])
    start = weights_of(model, place / WEIGHTS)
    load_parameters(model.get_parameters(), start, WEIGHTS)
    set_precision(model, choose_precision(config.train.amp, config.train.amp_dtype, target))
    batch = batch_of(config, case["vocabulary"])
    arrays, seconds = forward(model, batch)
    write("forward", arrays)
    facts = {"amp_dtype": model.precision.amp_dtype, "forward_s": seconds}
    facts |= training(model, config, target, batch, start, write)
    if target != "CPU":
        facts["memory"], facts["of"] = memory(target)
    (Path(output) / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
