"""An ONNX graph under construction: values with their shapes, constants, nodes.

A Value's shape has integers; its first entry is None where it depends on the batch. The graph is dynamic in that axis
alone, so every other size is a constant of the file.
"""

import hashlib

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 20  # the first with Gelu; LayerNormalization is there since 17, Resize's axes since 18
IR_VERSION = 9  # the file format that belongs to it


class Value:
    """An intermediate result: its name in the graph and its shape. Arithmetic with values, arrays and numbers adds
    nodes."""

    def __init__(self, graph: "Graph", name: str, shape: tuple):
        self.graph, self.name, self.shape = graph, name, tuple(shape)

    def __add__(self, other):
        return self.graph.elementwise("Add", self, other)

    def __sub__(self, other):
        return self.graph.elementwise("Sub", self, other)

    def __mul__(self, other):
        return self.graph.elementwise("Mul", self, other)

    def __truediv__(self, other):
        return self.graph.elementwise("Div", self, other)

    def __rtruediv__(self, other):
        return self.graph.elementwise("Div", other, self)

    def __matmul__(self, other):
        """The product of the last two axes; the ones before them broadcast."""
        graph, other = self.graph, self.graph.value(other)
        shape = broadcast(self.shape[:-2], other.shape[:-2]) + (self.shape[-2], other.shape[-1])
        if self.shape[-1] != other.shape[-2]:
            raise ValueError(f"no product of {self.shape} and {other.shape}")
        return graph.node("MatMul", [self, other], shape)

    def reshape(self, *shape) -> "Value":
        """None stands for the batch, which may be split into or joined with constants, as long as it is one entry."""
        if shape == self.shape:
            return self
        sizes = np.array([-1 if size is None else size for size in shape], np.int64)
        return self.graph.node("Reshape", [self, sizes], shape)

    def transpose(self, *order) -> "Value":
        return self.graph.node("Transpose", [self], [self.shape[i] for i in order], perm=order)

    def apply(self, kind: str, **attributes) -> "Value":
        """A function of one value that keeps its shape."""
        return self.graph.node(kind, [self], self.shape, **attributes)

    def cast(self, dtype: int) -> "Value":
        return self.graph.node("Cast", [self], self.shape, to=dtype)

    def reduce(self, kind: str, axis: int) -> "Value":
        """ReduceSum, ReduceMean, … along an axis, which stays with length 1."""
        shape = [1 if i == axis else size for i, size in enumerate(self.shape)]
        return self.graph.node(kind, [self, np.array([axis], np.int64)], shape, keepdims=1)

    def take(self, index: np.ndarray, axis: int) -> "Value":
        """The entries of an axis that a constant index of one dimension (or a number) names."""
        shape = self.shape[:axis] + np.shape(index) + self.shape[axis + 1:]
        return self.graph.node("Gather", [self, np.asarray(index, np.int32)], shape, axis=axis)

    def split(self, parts: int, axis: int) -> list["Value"]:
        """Equal parts along an axis."""
        shape = list(self.shape)
        shape[axis] //= parts
        return self.graph.nodes("Split", [self], [shape] * parts, axis=axis, num_outputs=parts)


def broadcast(a: tuple, b: tuple) -> tuple:
    """The common shape of two; None, a batch, meets None and 1 alone.

    Raises:
        ValueError: they have none.
    """
    length = max(len(a), len(b))
    pairs = zip((1,) * (length - len(a)) + tuple(a), (1,) * (length - len(b)) + tuple(b), strict=True)
    shape = []
    for x, y in pairs:
        if x != y and 1 not in (x, y):
            raise ValueError(f"shapes {a} and {b} do not broadcast")
        shape.append(y if x == 1 else x)
    return tuple(shape)


class Graph:
    """Nodes and constants in the order of computation; ``model`` makes them an ONNX model."""

    def __init__(self):
        self._nodes, self._inputs, self._constants, self._names = [], [], {}, set()

    def input(self, name: str, dtype: int, shape: tuple) -> Value:
        sizes = ["batch" if size is None else size for size in shape]
        self._inputs.append(helper.make_tensor_value_info(name, dtype, sizes))
        self._names.add(name)
        return Value(self, name, shape)

    def value(self, source) -> Value:
        """A value as it is; a parameter, an array or a number as a constant of the file, equal ones once."""
        if isinstance(source, Value):
            return source
        name = getattr(source, "name", "constant")
        array = source.asnumpy() if hasattr(source, "asnumpy") else np.asarray(source)
        if array.dtype == np.float64 or isinstance(source, int | float):
            array = array.astype(np.float32)
        content = (array.dtype.str, array.shape, hashlib.sha256(np.ascontiguousarray(array).data).digest())
        if content not in self._constants:
            self._constants[content] = numpy_helper.from_array(array, self._unused(name))
        return Value(self, self._constants[content].name, array.shape)

    def nodes(self, kind: str, inputs: list, shapes: list, **attributes) -> list[Value]:
        """A node of several results."""
        names = [self.value(source).name if source is not None else "" for source in inputs]
        outputs = [self._unused(kind) for _ in shapes]
        self._nodes.append(helper.make_node(kind, names, outputs, name=outputs[0], **attributes))
        return [Value(self, name, shape) for name, shape in zip(outputs, shapes, strict=True)]

    def node(self, kind: str, inputs: list, shape, **attributes) -> Value:
        return self.nodes(kind, inputs, [shape], **attributes)[0]

    def elementwise(self, kind: str, x, y) -> Value:
        x, y = self.value(x), self.value(y)
        return self.node(kind, [x, y], broadcast(x.shape, y.shape))

    def concat(self, values: list, axis: int) -> Value:
        shape = list(values[0].shape)
        shape[axis] = sum(value.shape[axis] for value in values)
        return self.node("Concat", values, shape, axis=axis)

    def model(self, outputs: dict[str, Value], producer_version: str) -> onnx.ModelProto:
        """The finished model with its outputs by name."""
        results = []
        for name, output in outputs.items():
            self._nodes.append(helper.make_node("Identity", [output.name], [name], name=name))
            sizes = ["batch" if size is None else size for size in output.shape]
            results.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes))
        graph = helper.make_graph(self._nodes, "coupalign", self._inputs, results, list(self._constants.values()))
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION,
                                 producer_name="mindspore_coupalign", producer_version=producer_version)

    def _unused(self, name: str) -> str:
        found, number = name, 1
        while found in self._names:
            number += 1
            found = f"{name}_{number}"
        self._names.add(found)
        return found
