"""Multiply-accumulate operations of one sample's forward pass, counted in the exported graph of any network.

Counted are matrix products and convolutions, as the literature's "FLOPs" of Swin do; norms, softmax, activations,
resizes and gathers are not. Each operation of a MINDIR carries its output's shape and its scope, from which the cell
that it belongs to is known; nothing here knows the network's cells.
"""

import math
import tempfile
from pathlib import Path

import mindspore as ms
from mindspore import Tensor, nn
from mindspore.train.mind_ir_pb2 import ModelProto, NodeProto

PRODUCTS = ("MatMul", "BatchMatMul", "MatMulExt", "BatchMatMulExt", "Dense")
CONVOLUTIONS = ("Conv2D", "Conv2DExt", "Conv3D")


def count(cell: nn.Cell, *inputs: Tensor) -> dict[str, int]:
    """Name of each cell with products or convolutions (``encoder.text.embed``) -> MACs, for inputs of these shapes.

    The cell's graph is compiled for inference and exported to a temporary folder; nothing is computed.
    """
    with tempfile.TemporaryDirectory(prefix="coupalign-") as folder:
        ms.export(cell, *inputs, file_name=f"{folder}/graph.mindir", file_format="MINDIR")
        proto = ModelProto()
        proto.ParseFromString(next(Path(folder).glob("*.mindir")).read_bytes())
    shapes = {parameter.name: tuple(parameter.dims) for parameter in proto.graph.parameter}
    shapes |= {entry.name: tuple(entry.tensor[0].dims) for entry in proto.graph.input}
    flags: dict[str, bool] = {}
    counts: dict[str, int] = {}
    for graph in (proto.graph, *proto.functions):
        for node in graph.node:
            _read_values(node, shapes, flags)
        for node in graph.node:
            if number := _macs(node, shapes, flags):
                name = _cell_name(node.domain)
                counts[name] = counts.get(name, 0) + number
    return counts


def _read_values(node: NodeProto, shapes: dict, flags: dict):
    """The shape of a node's output, or its value where it is a true or false."""
    for attribute in node.attribute:
        if attribute.tensors:
            shapes[node.output[0]] = tuple(attribute.tensors[0].dims)
        elif attribute.type == attribute.BOOL:
            flags[node.output[0]] = bool(attribute.i)


def _macs(node: NodeProto, shapes: dict, flags: dict) -> int:
    kind = node.op_type.removeprefix("REF::").split(":")[0]
    if kind in PRODUCTS:
        left, *transposed = shapes[node.input[0]], *(flags.get(name, False) for name in node.input[2:3])
        return math.prod(shapes[node.output[0]]) * left[-2 if any(transposed) else -1]
    if kind in CONVOLUTIONS:
        return math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[1]][1:])
    return 0


def _cell_name(scope: str) -> str:
    """``Default/encoder-FusedEncoder/text-Bert/MatMul-op0`` -> ``encoder.text``."""
    return ".".join(step.rsplit("-", 1)[0] for step in scope.split("/")[1:-1])
