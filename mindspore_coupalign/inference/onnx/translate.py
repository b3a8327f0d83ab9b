"""From a MINDIR to ONNX, primitive by primitive: any network that exports to the one exports to the other.

MINDIR is a list of nodes in the order of computation. ``Constant`` nodes hold settings (numbers, tuples) and tensors;
the others name a primitive with its attributes, the shape of their result and the cell that they come from. A few
networks have functions beside the graph.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from mindspore.train.mind_ir_pb2 import AttributeProto, GraphProto, ModelProto, TensorProto
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
    translator = _Translator(mindir, weights)
    result = translator.result_of(mindir.graph)
    results = result if isinstance(result, tuple) else (result,)
    return translator.graph.model(dict(zip(outputs[:len(results)], results, strict=True)), __version__)


class Closure(NamedTuple):
    """A function of the MINDIR with its first arguments."""

    function: GraphProto
    arguments: tuple


class _Translator:
    """The values of a MINDIR's nodes by name.

    Functions come from conditions on shapes, which are known here: ``Switch`` chooses one, and a node whose type is
    the name of a function, or of a value that is one, calls it. Functions see the values around them.
    """

    def __init__(self, mindir: ModelProto, weights: dict[str, np.ndarray]):
        self.graph, graphs = Graph(), [mindir.graph, *mindir.functions]
        self.values: dict[str, Any] = {p.name: self.graph.constant(weights[_short(p.name)], _short(p.name))
                                       for p in mindir.graph.parameter}
        for given in mindir.graph.input:
            tensor = given.tensor[0]
            shape = tuple(BATCH if side == -1 else side for side in tensor.dims)
            self.values[given.name] = self.graph.input(_short(given.name), tensor.data_type, shape)
        self.values |= {function.name: Closure(function, ()) for function in mindir.functions}
        nodes = [node for graph in graphs for node in graph.node]
        for node in nodes:
            if node.op_type == "Constant":
                value = _setting(node.attribute[0])
                self.values[node.output[0]] = self.graph.constant(value) if isinstance(value, np.ndarray) else value
        self.uses = Counter(name for node in nodes for name in node.input)
        self.primitives = {f"REF::{p.name}": (p.op_type, {a.name: _setting(a) for a in p.attribute})
                           for p in mindir.primitives}

    def result_of(self, function: GraphProto):
        for node in function.node:
            if node.op_type != "Constant":
                result = self.values[node.output[0]] = self.translate(node)
                for value in result if isinstance(result, tuple) else (result,):
                    if isinstance(value, Value):
                        value.uses = max(value.uses, self.uses[node.output[0]])
        results = tuple(self.values[output.name] for output in function.output)
        return results[0] if len(results) == 1 else results

    def call(self, closure: Closure, *arguments):
        for given, argument in zip(closure.function.input, (*closure.arguments, *arguments), strict=True):
            self.values[given.name] = argument
        return self.result_of(closure.function)

    def translate(self, node):
        """What the node computes: a Value, a setting, a Closure, or a tuple of them."""
        inputs = [self.values[name] for name in node.input]
        called = self.values.get(node.op_type.removeprefix("REF::"))
        if isinstance(called, Closure):
            return self.call(called, *inputs)
        kind, attributes = self.primitives.get(node.op_type, (node.op_type, {}))
        if kind == "Partial":
            return inputs[0]._replace(arguments=(*inputs[0].arguments, *inputs[1:]))
        expected = _result(node)
        if expected is not None:
            attributes = attributes | {"dtype": expected.data_type}
        try:
            if kind not in PRIMITIVES:
                raise Unsupported("it")
            return _checked(self.graph, PRIMITIVES[kind](self.graph, attributes, *inputs), expected)
        except (Unsupported, TypeError, ValueError, KeyError, IndexError, AttributeError,
                onnx.shape_inference.InferenceError) as exc:
            reason = str(exc) if isinstance(exc, Unsupported) else f"its inputs ({' '.join(str(exc).split())[:200]})"
            raise UserError(f"ONNX export: the primitive {kind} of {node.domain or node.name} has no translation for "
                            f"{reason}; export a .mindir, or add it to inference/onnx/primitives.py") from exc


def _checked(graph: Graph, result, expected: TensorProto | None):
    """The result in MindSpore's type. Raises Unsupported: its shape is not MindSpore's."""
    if expected is None or not isinstance(result, Value):
        return result
    if -2 not in expected.dims and (len(expected.dims) != len(result.shape) or any(
            side >= 0 and side != ours for side, ours in zip(expected.dims, result.shape, strict=True))):
        raise Unsupported(f"its result, which has shape {list(expected.dims)} in MindSpore and {list(result.shape)} "
                          "in ONNX")
    return result if result.dtype == expected.data_type else graph.node("Cast", result, to=expected.data_type)


def _short(name: str) -> str:
    return name.split(":", 1)[-1]


def _result(node) -> TensorProto | None:
    """Shape and type of the node's result, None where it is no tensor."""
    for attribute in node.attribute:
        if attribute.name == "shape" and attribute.type == AttributeProto.TENSORS and attribute.tensors:
            return attribute.tensors[0]
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
