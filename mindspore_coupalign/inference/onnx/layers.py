"""The ONNX form of the cells that every part of the network shares; ``emit(cell, graph, …)`` finds it by the type.

Shapes: x (B, P, C) tokens or (B, C, H, W) maps, as in models/layers.py; heads h, head width d = C / h.
"""

import functools
import math

import numpy as np
from mindspore import nn

from mindspore_coupalign.inference.onnx.builder import Graph, Value
from mindspore_coupalign.models import layers


@functools.singledispatch
def emit(cell, graph: Graph, *values):
    """Adds what the cell computes from the values to the graph and returns the results.

    Raises:
        NotImplementedError: a cell of another type than those registered here and in the modules beside.
    """
    raise NotImplementedError(f"there is no ONNX form of the cell {type(cell).__name__}")


@emit.register
def _(cell: nn.Identity, graph, x):
    return x


@emit.register
def _(cell: nn.SequentialCell, graph, x):
    for part in cell:
        x = emit(part, graph, x)
    return x


@emit.register
def _(cell: nn.Dense, graph, x):
    return linear(graph, x, cell.weight, cell.bias if cell.has_bias else None)


def linear(graph: Graph, x: Value, weight, bias) -> Value:
    """x · weightᵀ + bias over the last axis; weight (out, in). Gemm takes rows, and adds the bias in the product."""
    weight = graph.value(weight)
    rows = x.reshape(None if None in x.shape else math.prod(x.shape[:-1]), x.shape[-1])
    inputs = [rows, weight] if bias is None else [rows, weight, bias]
    product = graph.node("Gemm", inputs, (rows.shape[0], weight.shape[0]), transB=1)
    return product.reshape(*x.shape[:-1], weight.shape[0])


def scaled(cell: nn.Dense, factor: float) -> tuple:
    """Weight and bias of a layer whose results are multiplied by a factor."""
    weight = cell.weight.asnumpy() * np.float32(factor)
    return weight, cell.bias.asnumpy() * np.float32(factor) if cell.has_bias else None


@emit.register
def _(cell: nn.LayerNorm, graph, x):
    return graph.node("LayerNormalization", [x, cell.gamma, cell.beta], x.shape, axis=-1, epsilon=float(cell.epsilon))


@emit.register
def _(cell: nn.GELU, graph, x):
    return x.apply("Gelu")


@emit.register
def _(cell: nn.ReLU, graph, x):
    return x.apply("Relu")


@emit.register
def _(cell: layers.Tanh, graph, x):
    return x.apply("Tanh")


@emit.register
def _(cell: layers.Mlp, graph, x):
    return emit(cell.fc2, graph, emit(cell.act, graph, emit(cell.fc1, graph, x)))


def split_heads(x: Value, heads: int) -> Value:
    """(B, P, C) -> (B, h, P, d)."""
    b, p, c = x.shape
    return x.reshape(b, p, heads, c // heads).transpose(0, 2, 1, 3)


def transposed_heads(x: Value, heads: int) -> Value:
    """(B, P, C) -> (B, h, d, P)."""
    b, p, c = x.shape
    return x.reshape(b, p, heads, c // heads).transpose(0, 2, 3, 1)


def merge_heads(x: Value) -> Value:
    """(B, h, P, d) -> (B, P, C)."""
    b, h, p, d = x.shape
    return x.transpose(0, 2, 1, 3).reshape(b, p, h * d)


def softmax(x: Value) -> Value:
    return x.apply("Softmax", axis=-1)


@emit.register
def _(cell: layers.Attention, graph, queries, keys, values, bias=None):
    heads = cell.split.heads
    q = split_heads(linear(graph, queries, *scaled(cell.q, cell.scale)), heads)
    scores = q @ transposed_heads(emit(cell.k, graph, keys), heads)
    weights = softmax(scores if bias is None else scores + bias)
    return emit(cell.proj, graph, merge_heads(weights @ split_heads(emit(cell.v, graph, values), heads)))


@emit.register
def _(cell: nn.Conv2d, graph, x):
    return convolve(graph, x, cell, cell.weight, cell.bias if cell.has_bias else None)


def convolve(graph: Graph, x: Value, cell: nn.Conv2d, weight, bias) -> Value:
    """The cell's convolution with these weights: (B, Cin, H, W) -> (B, Cout, H', W')."""
    kernel, stride = cell.kernel_size, cell.stride
    pad = {"valid": (0, 0), "same": [k // 2 for k in kernel]}.get(cell.pad_mode, (cell.padding, cell.padding))
    if cell.pad_mode == "same" and set(stride) != {1} or not isinstance(cell.padding, int):
        raise NotImplementedError(f"there is no ONNX form of {cell}")
    size = [(length + 2 * p - k) // s + 1 for length, p, k, s in zip(x.shape[2:], pad, kernel, stride, strict=True)]
    inputs = [x, weight] if bias is None else [x, weight, bias]
    return graph.node("Conv", inputs, (x.shape[0], cell.out_channels, *size), kernel_shape=kernel, strides=stride,
                      pads=[*pad, *pad], group=cell.group, dilations=cell.dilation)


@emit.register
def _(cell: nn.GroupNorm, graph, x):
    """Groups as the channels of an instance norm: onnxruntime has a kernel for that, for GroupNormalization none."""
    b, c, h, w = x.shape
    one, zero = np.ones(cell.num_groups, np.float32), np.zeros(cell.num_groups, np.float32)
    groups = x.reshape(b, cell.num_groups, c // cell.num_groups * h * w)
    normal = graph.node("InstanceNormalization", [groups, one, zero], groups.shape, epsilon=float(cell.eps))
    gamma, beta = (parameter.asnumpy().reshape(1, c, 1, 1) for parameter in (cell.gamma, cell.beta))
    return normal.reshape(b, c, h, w) * gamma + beta


@emit.register
def _(cell: layers.ConvNormRelu, graph, x):
    return emit(cell.norm, graph, emit(cell.conv, graph, x)).apply("Relu")


@emit.register
def _(cell: layers.Resize, graph, x):
    if x.shape[2:] == tuple(cell.size):
        return x
    sizes = np.array(cell.size, np.int64)
    return graph.node("Resize", [x, None, None, sizes], (*x.shape[:2], *cell.size), mode="linear", axes=[2, 3],
                      coordinate_transformation_mode="half_pixel")


@emit.register
def _(cell: layers.TokensToMap, graph, x):
    b, _, c = x.shape
    return x.transpose(0, 2, 1).reshape(b, c, *cell.size)


@emit.register
def _(cell: layers.MapToTokens, graph, x):
    b, c, h, w = x.shape
    return x.reshape(b, c, h * w).transpose(0, 2, 1)
