"""Writing ONNX files: from a checkpoint, compared with it before the file appears; and the same with weights of 8 bits.

Shapes: image (B, 3, H, W) float32; ids, word_mask (B, T) int32; logits (B, 1, H, W) float32.
"""

import contextlib
import json
import logging
import os
from pathlib import Path

import mindspore as ms
import numpy as np

from mindspore_coupalign import build
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.inference import mindir
from mindspore_coupalign.inference.onnx import TOLERANCE, session
from mindspore_coupalign.portable import without_paths
from mindspore_coupalign.weights.checkpoint import Checkpoint

BATCHES = (1, 3)  # that are compared
_LARGEST = 2**31 - 2**26  # bytes of weights; a protobuf, which an ONNX file is, ends at 2 GiB


def export_onnx(checkpoint: Checkpoint, output: Path) -> list[float]:
    """Write the ONNX file, in float32 whatever the checkpoint was trained in, and its sidecar.

    Returns:
        The largest difference from the network, per batch, relative to the scale.

    Raises:
        UserError: a package is missing, the output cannot be written, or the weights are too large for one file.
        NotEqual: onnxruntime gives other logits.
    """
    session.require("onnx", "onnxruntime")
    from mindspore_coupalign.inference.onnx.heads import to_onnx
    model, tokenizer = build.restore_model(checkpoint, amp="O0")
    weights = sum(p.nbytes for p in model.get_parameters())
    if weights > _LARGEST:
        raise UserError(f"{checkpoint.path}: {weights / 2**30:.1f} GiB of weights, but an ONNX file ends at 2 GiB; "
                        "export a MINDIR")
    data = checkpoint.config.data
    with _replacing(output) as file:
        file.write_bytes(to_onnx(model, data.image_size, data.max_tokens).SerializeToString())
        run = session.runner(file)
        differences = []
        for inputs in _trials(data, tokenizer):
            samples = zip(*inputs, strict=True)
            expected = np.concatenate([model(*(ms.Tensor(part[None]) for part in one)).asnumpy() for one in samples])
            differences.append(_difference(run(*inputs), expected))
            if not differences[-1] <= TOLERANCE:  # also when it is not a number
                raise mindir.NotEqual(f"the exported graph differs from the checkpoint by {differences[-1]:.1e} of the "
                                      f"logits' scale (allowed: {TOLERANCE:.0e})")
        _write_sidecar(file, {
            "format": mindir.FORMAT, "sha256": mindir._sha256(file), "input_size": data.image_size, "mean": data.mean,
            "std": data.std, "threshold": checkpoint.config.eval.threshold, "max_tokens": data.max_tokens,
            "tokenizer": tokenizer.to_json(), "step": checkpoint.progress.get("step"), **model.precision._asdict(),
            "differences": differences, "config": without_paths(checkpoint.config)})
    return differences


def export_int8(source: Path, output: Path) -> list[float]:
    """Write an ONNX file of this package once more, the linear layers' weights in 8 bits, each output channel with a
    scale of its own. onnxruntime chooses the scale of what they are multiplied with as it runs ("dynamic
    quantisation").

    Returns:
        The largest difference from the source, per batch, relative to the scale.

    Raises:
        UserError: the source is no such file, or the output cannot be written.
    """
    session.require("onnx", "onnxruntime")
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from mindspore_coupalign.data.tokenizer import SentenceTokenizer
    run, facts = session.load_onnx(source)
    tokenizer = SentenceTokenizer.from_json(facts["tokenizer"], facts["max_tokens"], str(source))
    with _replacing(output) as file:
        with _quiet():
            quantize_dynamic(source, file, op_types_to_quantize=["MatMul"], per_channel=True, reduce_range=True,
                             weight_type=QuantType.QInt8)
        run_int8 = session.runner(file)
        config = type("Sizes", (), {"image_size": facts["input_size"], "max_tokens": facts["max_tokens"]})
        differences = [_difference(run_int8(*inputs), run(*inputs)) for inputs in _trials(config, tokenizer)]
        _write_sidecar(file, facts | {"sha256": mindir._sha256(file), "amp_dtype": "int8", "differences": differences})
    return differences


@contextlib.contextmanager
def _quiet():
    """Without the advice that onnxruntime logs, on the root logger, about its own preprocessing."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)


@contextlib.contextmanager
def _replacing(output: Path):
    """A file beside the output to write to; it and its sidecar take their names when the block ends well."""
    session.check_utf8(output, "choose another --output")
    try:
        with mindir._scratch(output.parent) as folder:  # the same file system, and gone afterwards
            file = folder / "model.onnx"
            yield file
            os.replace(file, output)
            os.replace(mindir.sidecar_path(file), mindir.sidecar_path(output))
    except OSError as exc:
        raise UserError(f"{output}: cannot be written ({exc.strerror or exc}); choose another --output") from exc


def _write_sidecar(file: Path, facts: dict):
    mindir.sidecar_path(file).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def _trials(data, tokenizer) -> list[tuple]:
    """Random inputs as arrays, one tuple per batch; no two samples are alike."""
    samples = [[part.asnumpy() for part in mindir._random_inputs(data, tokenizer, seed)]
               for seed in range(sum(BATCHES))]
    ends = np.cumsum(BATCHES)
    return [tuple(map(np.concatenate, zip(*samples[end - batch:end], strict=True)))
            for batch, end in zip(BATCHES, ends, strict=True)]


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())
