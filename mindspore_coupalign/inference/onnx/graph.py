"""An ONNX graph under construction: values, constants, nodes, and the rewrites that make the runtime fast.

Every value has a shape of integers. ``BATCH``, a large prime, stands for the batch: a side that it divides depends on
the batch. ONNX's own shape inference, a node at a time, finds the shapes; nodes of constants alone are computed at
once by ONNX's reference evaluator. Rewrites look back at the nodes that made a value and add better ones; ``model``
leaves out what no output needs.
"""

import hashlib
import math
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

OPSET = 20  # the first with Gelu; LayerNormalization is there since 17
IR_VERSION = 9  # the file format that belongs to it
BATCH = 1_000_003
COMMUTATIVE = ("Add", "Mul")
_ERF = ("Erf", ("Div", "x", math.sqrt(2)))
# What several nodes compute, and what computes it at once; a letter is any value
PATTERNS = (
    (("Mul", ("Mul", "x", ("Add", _ERF, 1)), 0.5), lambda graph, x: graph.node("Gelu", x)),
    (("Mul", ("Mul", "x", 0.5), ("Add", _ERF, 1)), lambda graph, x: graph.node("Gelu", x)),
    (("Sub", ("Mul", ("Sigmoid", "x"), 2), 1), lambda graph, x: graph.node("Tanh", graph.times(x, np.float32(0.5)))),
    (("Sub", ("Relu", "x"), ("Mul", ("Relu", ("Neg", "x")), "a")),
     lambda graph, x, a: graph.node("LeakyRelu", x, alpha=float(a.array)) if _is_number(a) else None),
)


class Made(NamedTuple):
    """The node that made a value; of inputs and constants the one without a kind."""

    kind: str = ""
    inputs: tuple = ()
    attributes: dict = {}


SOURCE = Made()


class Value:
    """An intermediate result or, with ``array``, a constant.

    ``content`` is what shape inference may know of a vector of sizes, with ``BATCH`` for the batch; ``uses`` counts
    the nodes of the source graph that read the value.
    """

    def __init__(self, name: str, dtype: int, shape: tuple, array=None, made: Made = SOURCE):
        self.name, self.dtype, self.shape, self.array, self.made = name, dtype, tuple(shape), array, made
        self.content, self.uses = array, 1

    def made_by(self, kind: str) -> bool:
        return self.made.kind == kind


class Graph:
    """Nodes and constants in the order of computation."""

    def __init__(self):
        self._nodes, self._inputs, self._constants, self._names, self._batch = [], [], {}, set(), None

    def input(self, name: str, dtype: int, shape: tuple) -> Value:
        self._inputs.append(helper.make_tensor_value_info(name, dtype, _sides(shape)))
        self._names.add(name)
        return Value(name, dtype, shape)

    def constant(self, array, name: str = "constant") -> Value:
        """An array as a constant of the file, equal ones once."""
        array = np.asarray(array)
        content = (array.dtype.str, array.shape, hashlib.sha256(np.ascontiguousarray(array).data).digest())
        if content not in self._constants:
            dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
            self._constants[content] = Value(self._unused(name), dtype, array.shape, array)
        return self._constants[content]

    def node(self, kind: str, *inputs, outputs: int = 1, **attributes):
        """The value that a node computes, with ``outputs`` above 1 a tuple; inputs are values, arrays or None."""
        values = tuple(v if v is None or isinstance(v, Value) else self.constant(v) for v in inputs)
        names = [self._unused(kind) for _ in range(outputs)]
        proto = helper.make_node(kind, ["" if v is None else v.name for v in values], names, name=names[0],
                                 **attributes)
        given = {v.name: v for v in values if v is not None}
        if given and all(v.array is not None for v in given.values()):
            results = ReferenceEvaluator(_alone(proto, given)).run(None, {name: v.array for name, v in given.items()})
            results = [self.constant(np.asarray(result)) for result in results]
        else:
            self._nodes.append(proto)
            made = Made(kind, values, attributes)
            results = [Value(name, dtype, shape, made=made)
                       for name, (dtype, shape) in zip(names, _inferred(proto, given), strict=True)]
        if outputs > 1:
            return tuple(results)
        return self._simpler(results[0])

    def _simpler(self, value: Value) -> Value:
        for pattern, simpler in PATTERNS:
            bound = _match(pattern, value, {})
            if bound is not None:
                return simpler(self, **bound) or value
        return value

    def sizes(self, values) -> Value:
        """A vector of sizes, known when the graph runs where the batch is among them."""
        values = [int(v) for v in values]
        if not any(v % BATCH == 0 and v for v in values):
            return self.constant(np.array(values, np.int64))
        if self._batch is None:
            source = self._inputs[0]
            self._batch = Value(self._unused("batch"), TensorProto.INT64, (1,))
            self._nodes.append(helper.make_node("Shape", [source.name], [self._batch.name], start=0, end=1))
        parts = [self.node("Mul", self._batch, np.array([v // BATCH])) if v % BATCH == 0 and v else np.array([v])
                 for v in values]
        vector = self.node("Concat", *parts, axis=0)
        vector.content = np.array(values, np.int64)
        return vector

    def reshape(self, x: Value, shape) -> Value:
        shape = [int(side) for side in shape]
        if -1 in shape:
            shape[shape.index(-1)] = math.prod(x.shape) // -math.prod(shape)
        if x.made_by("Reshape"):
            source = x.made.inputs[0]
            source.uses = max(source.uses, x.uses)
            x = source
        if tuple(shape) == x.shape:
            return x
        moving = [i for i, side in enumerate(shape) if side and side % BATCH == 0]
        if len(moving) == 1:
            return self.node("Reshape", x, np.array([-1 if i in moving else side for i, side in enumerate(shape)]))
        return self.node("Reshape", x, self.sizes(shape))

    def transpose(self, x: Value, order) -> Value:
        order = [axis % len(x.shape) for axis in order]
        if x.made_by("Transpose"):
            order = [x.made.attributes["perm"][axis] for axis in order]
            x = x.made.inputs[0]
        return x if order == sorted(order) else self.node("Transpose", x, perm=order)

    def linear(self, x: Value, weight: Value, bias: Value | None, transposed: bool = True) -> Value:
        """x (rows, in) times a constant weight, plus a bias: Gemm, which onnxruntime and ``export_int8`` know.

        Where a constant index gathers the rows and repeats some (padded windows), the product goes before it.
        """
        source = x.made.inputs[0] if x.made_by("Reshape") else x
        if source.made_by("Gather") and _rows(source) and source.shape[1] > source.made.inputs[0].shape[1]:
            tokens, index = source.made.inputs
            product = self.linear(self.reshape(tokens, (-1, tokens.shape[2])), weight, bias, transposed)
            product = self.reshape(product, (*tokens.shape[:2], product.shape[1]))
            return self.reshape(self.node("Gather", product, index, axis=1), (-1, product.shape[2]))
        inputs = [x, weight] if bias is None else [x, weight, bias]
        return self.node("Gemm", *inputs, transB=int(transposed))

    def gather(self, x: Value, index: Value, axis: int) -> Value:
        """Entries of an axis; where they are fewer than a linear layer made, before the layer."""
        product = x.made.inputs[0] if x.made_by("Reshape") and x.uses == 1 and len(x.shape) == 3 else None
        if (product is not None and product.made_by("Gemm") and product.uses == 1 and axis == 1
                and index.array is not None and index.array.ndim == 1 and index.array.size < x.shape[1]
                and product.shape[1] == x.shape[2]):
            rows, weight, *bias = product.made.inputs
            tokens = self.node("Gather", self.reshape(rows, (*x.shape[:2], rows.shape[1])), index, axis=1)
            chosen = self.node("Gemm", self.reshape(tokens, (-1, rows.shape[1])), weight, *bias,
                               **product.made.attributes)
            return self.reshape(chosen, (*tokens.shape[:2], chosen.shape[1]))
        return self.node("Gather", x, index, axis=axis)

    def times(self, x: Value, factor) -> Value:
        """x times a number: as other weights where a linear layer made x."""
        return self._scaled(x, factor) or self.node("Mul", x, factor)

    def _scaled(self, x: Value, factor) -> Value | None:
        if not x.made.kind or x.uses != 1:
            return None
        kind, (source, *others), attributes = x.made
        if kind == "Gemm" and all(v.array is not None for v in others):
            return self.node("Gemm", source, *(v.array * factor for v in others), **attributes)
        if kind in ("Reshape", "Transpose") or kind == "Gather" and attributes["axis"] == 1:
            inner = self._scaled(source, factor)
            return None if inner is None else self.node(kind, inner, *others, **attributes)
        return None

    def model(self, outputs: dict[str, Value], producer_version: str) -> onnx.ModelProto:
        """The finished model with its outputs by name."""
        results = []
        for name, output in outputs.items():
            self._nodes.append(helper.make_node("Identity", [output.name], [name], name=name))
            results.append(helper.make_tensor_value_info(name, output.dtype, _sides(output.shape)))
        needed, nodes = set(outputs), []
        for node in reversed(self._nodes):
            if needed & set(node.output):
                nodes.append(node)
                needed |= set(node.input)
        stored = [numpy_helper.from_array(v.array, v.name) for v in self._constants.values() if v.name in needed]
        graph = helper.make_graph(nodes[::-1], "coupalign", self._inputs, results, stored)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION,
                                 producer_name="mindspore_coupalign", producer_version=producer_version)

    def _unused(self, name: str) -> str:
        unused, number = name, len(self._names)
        while unused in self._names:
            unused, number = f"{name}_{number}", number + 1
        self._names.add(unused)
        return unused


def _rows(gathered: Value) -> bool:
    """Whether the value is tokens (B, Q, C) that a constant index picked from tokens (B, P, C)."""
    index = gathered.made.inputs[1]
    return gathered.made.attributes["axis"] == 1 and index.array is not None and len(gathered.shape) == 3


def _is_number(value: Value) -> bool:
    return value.array is not None and value.array.size == 1


def _match(pattern, value: Value, bound: dict) -> dict | None:
    """The letters of a pattern with their values, or None."""
    if isinstance(pattern, str):
        return bound | {pattern: value} if bound.get(pattern, value) is value else None
    if not isinstance(pattern, tuple):
        return bound if _is_number(value) and math.isclose(value.array.item(), pattern, rel_tol=1e-6) else None
    kind, *parts = pattern
    if not value.made_by(kind):
        return None
    for inputs in (value.made.inputs, value.made.inputs[::-1] if kind in COMMUTATIVE else ()):
        found: dict | None = bound if inputs else None
        for part, source in zip(parts, inputs, strict=False):
            found = None if found is None else _match(part, source, found)
        if found is not None:
            return found
    return None


def _alone(node, given: dict) -> onnx.ModelProto:
    """A model of one node."""
    inputs = [helper.make_tensor_value_info(v.name, v.dtype, v.shape) for v in given.values()]
    known = [numpy_helper.from_array(v.content, name) for name, v in given.items()
             if v.array is None and v.content is not None or v.array is not None and v.array.dtype == np.int64]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output]
    return helper.make_model(helper.make_graph([node], "node", inputs, outputs, known),
                             opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def _inferred(node, given: dict) -> list[tuple]:
    """Type and shape of a node's results."""
    model = shape_inference.infer_shapes(_alone(node, given), check_type=True, strict_mode=True)
    types = [output.type.tensor_type for output in model.graph.output]
    return [(kind.elem_type, tuple(side.dim_value for side in kind.shape.dim)) for kind in types]


def _sides(shape) -> list:
    return ["batch" if side == BATCH else side for side in shape]
