"""Writing ONNX files: from a checkpoint, compared with it before the file appears; and the same in 8 bits."""

import logging
from collections.abc import Sequence
from pathlib import Path

from mindspore import nn
from mindspore.train.mind_ir_pb2 import ModelProto

from mindspore_coupalign import build
from mindspore_coupalign.config import DataConfig
from mindspore_coupalign.data.tokenizer import SentenceTokenizer
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.inference import sidecar
from mindspore_coupalign.inference.mindir import (
    FromPixels,
    compare,
    difference,
    normalised,
    random_inputs,
    replacing,
    write_graph,
)
from mindspore_coupalign.inference.onnx import session
from mindspore_coupalign.inference.onnx.session import BATCHES, OUTPUTS, TOLERANCE
from mindspore_coupalign.outputs import scratch
from mindspore_coupalign.weights.checkpoint import Checkpoint

_LARGEST = 2**31 - 2**26  # bytes of weights; an ONNX file is a protobuf, which ends at 2 GiB


def export_onnx(checkpoint: Checkpoint, output: Path, uint8: bool = False) -> list[float]:
    """Write the ONNX file, in float32 whatever the checkpoint was trained in, and its sidecar.

    Args:
        uint8: as for ``network_to_onnx``.

    Returns:
        The largest difference from the network, per batch of ``BATCHES``, relative to the scale.

    Raises:
        UserError: a package is missing, the output cannot be written, or the weights are too large for one file.
        NotEqual: onnxruntime gives other logits.
    """
    session.require("onnx", "onnxruntime")
    model, tokenizer = build.restore_model(checkpoint, amp="O0")
    weights = sum(p.nbytes for p in model.get_parameters())
    if weights > _LARGEST:
        raise UserError(f"{checkpoint.path}: {weights / 2**30:.2f} GiB of weights, but an ONNX file ends at 2 GiB; "
                        "export a .mindir, which may be of any size")
    facts = sidecar.describe("onnx", checkpoint.config, tokenizer, uint8=uint8)
    data = checkpoint.config.data
    with replacing(output) as file:
        file.write_bytes(network_to_onnx(model, data, file.parent, uint8).SerializeToString())
        facts["differences"] = compare(model, session.runner(file), BATCHES, data, tokenizer, uint8, TOLERANCE)
        facts |= {**sidecar.origin(checkpoint.progress), **model.precision._asdict()}
        sidecar.write(file, facts)
    return facts["differences"]


def network_to_onnx(network: nn.Cell, data: DataConfig, folder: Path, uint8: bool = False):
    """The ``onnx.ModelProto`` of a network (image, ids, word_mask) -> logits, or (logits, exists), at any batch.

    Args:
        data: says the size of the image, its normalisation and the number of word pieces.
        folder: for the MINDIR, which is removed again.
        uint8: the image is (B, H, W, 3) uint8 and the graph normalises it.
    """
    size, words = data.image_size, {"shape": ["B", data.max_tokens], "type": "int32"}
    image = {"shape": ["B", size, size, 3] if uint8 else ["B", 3, size, size], "type": "uint8" if uint8 else "float32"}
    cell = FromPixels(network, data.mean, data.std) if uint8 else network
    return cell_to_onnx(cell, [image, words, words], OUTPUTS, folder)


def cell_to_onnx(cell: nn.Cell, inputs: list[dict], outputs: Sequence[str], folder: Path):
    """The ``onnx.ModelProto`` of any cell that exports to MINDIR; arguments as ``write_graph`` and ``to_onnx`` have
    them."""
    from mindspore_coupalign.inference.onnx.translate import to_onnx
    mindir = ModelProto()
    with scratch(".mindir-", folder) as inner:
        write_graph(cell, inputs, inner / "graph.mindir")
        mindir.ParseFromString((inner / "graph.mindir").read_bytes())
    return to_onnx(mindir, {p.name: p.asnumpy() for p in cell.get_parameters()}, outputs)


def export_int8(source: Path, output: Path) -> list[float]:
    """Write an ONNX file of this package once more, with the linear layers' products in 8 bits: their weights are
    stored so, every output channel with a scale of its own, and onnxruntime rounds what they are multiplied with as it
    runs ("dynamic quantisation"). Weights take 7 of the 8 bits: the sums of 8 overflow on processors without VNNI.
    Other products with constants, the guided filter's statistics, stay as they are.

    Returns:
        The largest difference from the source, per batch of ``BATCHES``, relative to the scale.

    Raises:
        UserError: the source is no such file, or the output cannot be written.
    """
    session.require("onnx", "onnxruntime")
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    run, facts = session.load_onnx(source)
    data = DataConfig(image_size=facts["input_size"], mean=facts["mean"], std=facts["std"],
                      max_tokens=facts["max_tokens"])
    tokenizer = SentenceTokenizer.from_json(facts["tokenizer"], data.max_tokens, str(source))
    linear = "Gemm"  # onnxruntime makes them MatMul and Add
    others = [node.name for node in onnx.load(source).graph.node if node.op_type != linear]
    with replacing(output) as file:
        disabled = logging.root.manager.disable
        logging.disable(logging.WARNING)  # its advice, on the root logger, about its own preprocessing
        try:
            quantize_dynamic(source, file, op_types_to_quantize=["MatMul"], nodes_to_exclude=others, per_channel=True,
                             reduce_range=True, weight_type=QuantType.QInt8)
        finally:
            logging.disable(disabled)
        run_int8, differences = session.runner(file), []
        for seed, batch in enumerate(BATCHES):
            pixels, *words = random_inputs(data, tokenizer, batch, seed)
            image = pixels if sidecar.takes_uint8(facts) else normalised(pixels, data)
            differences.append(difference(run_int8(image, *words), run(image, *words)))
        facts |= {"amp_dtype": "int8", "differences": differences}
        sidecar.write(file, facts)
    return differences
