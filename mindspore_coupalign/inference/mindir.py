"""Exported graphs: a checkpoint becomes a MINDIR, which MindSpore runs without this project's model code.

Inputs and outputs are network.py's, B of any size or fixed. ``<file>.json`` beside it is the sidecar (sidecar.py).
Beyond 1 GiB the weights lie in ``<file>.weights/``. The file gets its name only after it was loaded again and compared.
"""

import contextlib
import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from mindspore.train.mind_ir_pb2 import ModelProto

from mindspore_coupalign import build
from mindspore_coupalign.data.transforms import ImageTransform
from mindspore_coupalign.errors import UserError, one_line
from mindspore_coupalign.inference import sidecar
from mindspore_coupalign.inference.cells import CellNetwork
from mindspore_coupalign.inference.network import NetworkOutput
from mindspore_coupalign.models.precision import Precision
from mindspore_coupalign.outputs import scratch
from mindspore_coupalign.weights.checkpoint import Checkpoint

# Largest difference by precision, relative to the logits' largest absolute value. The graph and the network compute in
# the same precision: the difference is 0 on CPU, elsewhere fusions may round otherwise. In half precision that is two
# roundings (2^-11 and 2^-8), less than what half precision itself costs (1e-3 to 3e-3 in float16, the tests' network).
TOLERANCES = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 8e-3}


class NotEqual(Exception):
    """The exported graph does not compute what the network computes."""


def export_mindir(checkpoint: Checkpoint, output: Path, amp: str | None = None, batch: int | None = None,
                  uint8: bool = False) -> tuple[list[float], Precision]:
    """Write the MINDIR, its files of weights where it is large, and its sidecar.

    Args:
        batch: of the graph's inputs; None: any.
        uint8: the graph takes pixels (B, H, W, 3) uint8 and normalises them.

    Returns:
        The largest difference from the network, per trial, relative to the scale, and the precision of both.

    Raises:
        UserError: the output cannot be written.
        NotEqual: the graph, loaded again, gives other logits.
    """
    model, tokenizer = build.restore_model(checkpoint, amp=amp)
    data = checkpoint.config.data
    sizes = [batch] * 3 if batch else batches(data.image_size)
    facts = sidecar.describe("mindir", checkpoint.config, tokenizer, batch=batch, uint8=uint8)
    with replacing(output) as file:
        weights = write_graph(FromPixels(model, data.mean, data.std) if uint8 else model, facts["inputs"], file)
        facts |= {**sidecar.origin(checkpoint.progress), **model.precision._asdict()}
        facts["differences"] = compare(model, CellNetwork(nn.GraphCell(ms.load(str(file)))), sizes, data, tokenizer,
                                       uint8, TOLERANCES[model.precision.amp_dtype])
        sidecar.write(file, facts, weights)
    return facts["differences"], model.precision


@contextlib.contextmanager
def replacing(output: Path):
    """A file beside the output to write to; it, its sidecar and its folder of weights take their names when the block
    ends well."""
    try:
        with scratch(".export-", output.parent) as folder:  # the same file system; what export leaves goes with it
            file = folder / output.name
            yield file
            if _weights_folder(file).is_dir():
                shutil.rmtree(_weights_folder(output), ignore_errors=True)
                os.replace(_weights_folder(file), _weights_folder(output))
            for written in (file, sidecar.sidecar_path(file)):
                os.replace(written, output.with_name(written.name))
    except OSError as exc:
        raise UserError(f"{output}: cannot be written ({exc.strerror or exc}); choose another --output") from exc


def batches(image_size: int) -> tuple[int, ...]:
    """Batch sizes that a graph of any batch is compared at. On a CPU the full recipe takes 3 GiB per image."""
    return (1, 3, 5) if image_size <= 256 else (2,)


class FromPixels(nn.Cell):
    """The network on pixels (B, H, W, 3) uint8, normalised as ``ImageTransform`` does it."""

    def __init__(self, model, mean, std):
        super().__init__(auto_prefix=False)
        mean, std = (np.asarray(values, np.float32).reshape(1, 3, 1, 1) for values in (mean, std))
        self.model = model
        self.scale, self.shift = Tensor(1 / (255 * std)), Tensor(-mean / std)

    def construct(self, image, ids, word_mask):
        pixels = image.astype(ms.float32).transpose((0, 3, 1, 2))
        return self.model(pixels * self.scale + self.shift, ids, word_mask)


def write_graph(cell: nn.Cell, inputs: list[dict], file: Path) -> list[Path]:
    """Write the MINDIR alone.

    Args:
        inputs: the ``shape`` of each, with "B" for a side of any size, and its ``type``.

    Returns:
        The files of weights beside it; none where the graph holds them.
    """
    tensors = [Tensor(shape=[None if side == "B" else side for side in entry["shape"]],
                      dtype=getattr(ms, entry["type"])) if "B" in entry["shape"]
               else Tensor(np.zeros(entry["shape"], entry["type"])) for entry in inputs]
    with _plain_path(file.parent) as plain:
        ms.export(cell, *tensors, file_name=f"{plain}/model.mindir", file_format="MINDIR")
    whole, graph, split = (file.with_name(name) for name in ("model.mindir", "model_graph.mindir", "model_variables"))
    if not split.is_dir():
        os.replace(whole, file)
        os.chmod(file, 0o644)  # MindSpore leaves it without write permission
        return []
    folder = _weights_folder(file)
    os.replace(split, folder)
    os.chmod(folder, 0o755)
    proto = ModelProto()
    proto.ParseFromString(graph.read_bytes())
    graph.unlink()
    for parameter in proto.graph.parameter:
        parameter.external_data.location = f"{folder.name}/{Path(parameter.external_data.location).name}"
    file.write_bytes(proto.SerializeToString())
    weights = sorted(folder.iterdir())
    for part in weights:
        os.chmod(part, 0o644)
    return weights


def _weights_folder(file: Path) -> Path:
    return file.with_name(file.name + ".weights")


@contextlib.contextmanager
def _plain_path(folder: Path):
    """Another path of the folder: ``ms.export`` accepts only ASCII letters, digits and @_-.:/"""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def random_inputs(data, tokenizer, batch: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random pixels (B, H, W, 3) uint8, and sentences of random word pieces and lengths, with padding."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (batch, data.image_size, data.image_size, 3), np.uint8)
    ids, word_mask = tokenizer([""] * batch)
    for k in range(batch):
        words = int(random.integers(1, data.max_tokens - 1))
        ids[k, 1 + words] = ids[k, 1]  # [SEP]
        ids[k, 1 : 1 + words] = random.integers(0, tokenizer.vocab_size, words)
        word_mask[k, : words + 2] = 1
    return pixels, ids, word_mask


def normalised(pixels: np.ndarray, data) -> np.ndarray:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32, as the network takes them."""
    transform = ImageTransform(data.image_size, data.mean, data.std)
    return np.stack([transform.image(rgb) for rgb in pixels])


def compare(model, exported: Callable[..., NetworkOutput], sizes: Sequence[int], data, tokenizer, uint8: bool,
            tolerance: float) -> list[float]:
    """The largest difference from the network, which reads one sample at a time, on random inputs of each batch size.
    Raises NotEqual: it exceeds the tolerance."""
    differences = []
    for seed, size in enumerate(sizes):
        pixels, *words = random_inputs(data, tokenizer, size, seed)
        image = normalised(pixels, data)
        rows = zip(image, *words, strict=True)
        expected = join([CellNetwork(model)(*(part[None] for part in row)) for row in rows])
        differences.append(difference(exported(pixels if uint8 else image, *words), expected))
        if not differences[-1] <= tolerance:  # also when it is not a number
            raise NotEqual(f"the exported graph differs from the checkpoint by {differences[-1]:.1e} of the logits' "
                           f"scale (allowed: {tolerance:.0e})")
    return differences


def join(outputs: list[NetworkOutput]) -> NetworkOutput:
    """Outputs of several batches as one."""
    targets = [output.target_logits for output in outputs if output.target_logits is not None]
    return NetworkOutput(np.concatenate([output.logits for output in outputs]),
                         np.concatenate(targets) if targets else None)


def difference(output: NetworkOutput, expected: NetworkOutput) -> float:
    """The largest of all outputs, each relative to the output's largest absolute value; NaN where an output is
    missing."""
    if (output.target_logits is None) != (expected.target_logits is None):
        return math.nan
    pairs = ((ours, theirs) for ours, theirs in zip(output, expected, strict=True) if theirs is not None)
    return float(np.max([np.abs(ours - theirs).max() / np.abs(theirs).max() for ours, theirs in pairs]))  # NaN stays


def load_mindir(path: str | Path) -> tuple[CellNetwork, dict]:
    """The graph and its sidecar. The device has to be set.
    Raises UserError: the MINDIR or its sidecar is missing, damaged, or they do not belong together."""
    path = Path(path)
    facts = sidecar.read(path, "mindir")
    try:
        return CellNetwork(nn.GraphCell(ms.load(str(path)))), facts
    except (RuntimeError, ValueError) as exc:
        raise UserError(f"{path}: MindSpore {ms.__version__} cannot load it ({one_line(exc)}); export the checkpoint "
                        "again with this version") from exc
