"""From a MINDIR to ONNX, primitive by primitive: any network that exports to the one exports to the other.

MINDIR is a list of nodes in the order of computation. ``Constant`` nodes hold settings (numbers, tuples) and tensors;
the others name a primitive with its attributes, the shape of their result and the cell that they come from.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import onnx
from mindspore.train.mind_ir_pb2 import AttributeProto, ModelProto, TensorProto
from onnx import helper

from mindspore_coupalign import __version__
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.inference.onnx.graph import BATCH, Graph, Value
from mindspore_coupalign.inference.onnx.primitives import PRIMITIVES, Unsupported


def to_onnx(mindir: ModelProto, weights: dict[str, np.ndarray], outputs: Sequence[str]) -> onnx.ModelProto:
    """The ONNX model of a MINDIR; a side of -1 of its inputs is the batch.

    Args:
        weights: the parameters' values by name, for large MINDIRs hold none.
        outputs: names of the results, as many as the network may have.

    Raises:
        UserError: a primitive has no translation; it and its cell are named.
    """
    if mindir.functions:
        names = ", ".join(function.name.rsplit(":")[-1] for function in mindir.functions[:3])
        raise UserError(f"the network's graph has branches or loops that depend on the input ({names}); ONNX export "
                        "needs a graph without: export a .mindir")
    graph, source = Graph(), mindir.graph
    values = {p.name: graph.constant(weights[_short(p.name)], _short(p.name)) for p in source.parameter}
    for given in source.input:
        tensor = given.tensor[0]
        shape = [BATCH if side == -1 else side for side in tensor.dims]
        values[given.name] = graph.input(_short(given.name), tensor.data_type, shape)
    uses = Counter(name for node in source.node for name in node.input)
    attributes = {f"REF::{p.name}": {"": p.op_type} | {a.name: _setting(a) for a in p.attribute}
                  for p in mindir.primitives}
    for node in source.node:
        if node.op_type == "Constant":
            value = _setting(node.attribute[0])
            values[node.output[0]] = graph.constant(value) if isinstance(value, np.ndarray) else value
        else:
            result = _translate(graph, node, attributes.get(node.op_type, {"": node.op_type}), values)
            values[node.output[0]] = result
            for value in result if isinstance(result, tuple) else (result,):
                if isinstance(value, Value):
                    value.uses = max(value.uses, uses[node.output[0]])
    results = [values[output.name] for output in source.output]
    results = list(results[0]) if isinstance(results[0], tuple) else results
    return graph.model(dict(zip(outputs[:len(results)], results, strict=True)), __version__)


def _translate(graph: Graph, node, attributes: dict, values: dict):
    """What the node computes: a Value, a setting, or a tuple of them."""
    kind = attributes[""]
    expected = _result(node)
    if expected is not None:
        attributes = attributes | {"dtype": expected.data_type}
    try:
        if kind not in PRIMITIVES:
            raise Unsupported("it")
        result = PRIMITIVES[kind](graph, attributes, *(values[name] for name in node.input))
        if expected is not None and isinstance(result, Value):
            if any(side >= 0 and side != ours for side, ours in zip(expected.dims, result.shape, strict=False)):
                raise Unsupported(f"its result, which has shape {list(expected.dims)} in MindSpore and "
                                  f"{list(result.shape)} in ONNX")
            if result.dtype != expected.data_type:
                result = graph.node("Cast", result, to=expected.data_type)
    except (Unsupported, TypeError, ValueError, KeyError, AttributeError, onnx.shape_inference.InferenceError) as exc:
        reason = str(exc) if isinstance(exc, Unsupported) else f"its inputs ({' '.join(str(exc).split())[:200]})"
        raise UserError(f"ONNX export: the primitive {kind} of {node.domain or node.name} has no translation for "
                        f"{reason}; export a .mindir, or add it to inference/onnx/primitives.py") from exc
    return result


def _short(name: str) -> str:
    return name.split(":", 1)[-1]


def _result(node) -> TensorProto | None:
    """Shape and type of the node's result, None where it is no tensor."""
    for attribute in node.attribute:
        if attribute.name == "shape" and attribute.type == AttributeProto.TENSORS and attribute.tensors:
            return attribute.tensors[0] if -2 not in attribute.tensors[0].dims else None
    return None


def _setting(attribute):
    """A number, text, tuple, array or None."""
    kind = AttributeProto.AttributeType.Name(attribute.type)
    if kind in ("TUPLE", "LIST"):
        return tuple(_setting(value) for value in attribute.values)
    if kind == "TENSORS":
        tensor = attribute.tensors[0]
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        return np.frombuffer(tensor.raw_data, dtype).reshape(tuple(tensor.dims))
    if kind in ("FLOAT", "DOUBLE"):
        return next(iter((*attribute.floats, *attribute.doubles)), attribute.f or attribute.d)
    if kind == "STRING":
        text = attribute.strings[0] if attribute.strings else attribute.s
        return text.decode() if isinstance(text, bytes) else text
    if kind in ("UMONAD", "IOMONAD", "NONE"):
        return None
    value = attribute.ints[0] if attribute.ints else attribute.i
    return bool(value) if kind == "BOOL" else value
