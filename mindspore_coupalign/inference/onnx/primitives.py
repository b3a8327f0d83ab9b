"""MindSpore's primitives in ONNX: ``PRIMITIVES[name](graph, attributes, *inputs)`` -> the value, or a tuple of values.

Inputs are Values where the primitive takes tensors, and Python numbers and tuples where it takes settings.
"""

import operator

import numpy as np
from onnx import helper

from mindspore_coupalign.inference.onnx.graph import BATCH, Graph, Value

# One node of the same inputs
SAME = {
    "Abs": "Abs", "Cos": "Cos", "Erf": "Erf", "Exp": "Exp", "Floor": "Floor", "HSwish": "HardSwish", "Log": "Log",
    "LogicalAnd": "And", "LogicalNot": "Not", "LogicalOr": "Or", "Mish": "Mish", "Neg": "Neg", "ReLU": "Relu",
    "Reciprocal": "Reciprocal", "SeLU": "Selu", "Sigmoid": "Sigmoid", "Sign": "Sign", "Sin": "Sin",
    "Softplus": "Softplus", "Sqrt": "Sqrt", "Tanh": "Tanh",
}
# Two operands, each a tensor or a number
BINARY = {
    "Add": "Add", "Sub": "Sub", "Mul": "Mul", "Muls": "Mul", "Div": "Div", "Divs": "Div",
    "Pow": "Pow", "Maximum": "Max", "Minimum": "Min", "Equal": "Equal", "EqScalar": "Equal", "Less": "Less",
    "LessScalar": "Less", "LessEqual": "LessOrEqual", "Greater": "Greater", "GreaterEqual": "GreaterOrEqual",
}
REDUCTIONS = {
    "ReduceMean": "ReduceMean", "MeanExt": "ReduceMean", "ReduceSum": "ReduceSum", "SumExt": "ReduceSum",
    "ReduceMax": "ReduceMax", "ReduceMin": "ReduceMin", "ProdExt": "ReduceProd",
}
# Of sizes and flags, which are known here
SCALARS = {
    "ScalarMul": operator.mul, "BoolNot": operator.not_,
    "is_": lambda x, y: type(x) is type(y) and x == y, "InSequence": lambda x, xs: x in xs,
    "tuple_equal": operator.eq, "Switch": lambda condition, x, y: x if condition else y,
}


class Unsupported(Exception):
    """A primitive, or a setting of it, that has no translation; the text says which."""


def same(kind: str):
    return lambda graph, _, *inputs: graph.node(kind, *inputs)


def scalar(function):
    def translate(_, __, *inputs):
        first = [v.array.item() if isinstance(v, Value) and v.array is not None else v for v in inputs]
        if any(isinstance(v, Value) for v in first[:1]):
            raise Unsupported("a condition or size that depends on the input's values")
        return function(*first)
    return translate


def integers(value) -> tuple:
    """A setting that may be a number, a tuple, a constant tensor or None."""
    if value is None:
        return ()
    if isinstance(value, Value):
        if value.array is None:
            raise Unsupported("sizes that depend on the input's values")
        value = value.array
    return tuple(int(v) for v in np.ravel(value))


def number(graph: Graph, value, like: Value) -> Value:
    """A number, or a constant of another type, as a constant of the type of ``like``."""
    if isinstance(value, Value) and (value.array is None or value.dtype == like.dtype):
        return value
    array = value.array if isinstance(value, Value) else np.asarray(value)
    return graph.constant(array.astype(helper.tensor_dtype_to_np_dtype(like.dtype)))


def binary(kind: str):
    def translate(graph, _, x, y):
        like = x if isinstance(x, Value) and x.array is None or not isinstance(y, Value) else y
        x, y = number(graph, x, like), number(graph, y, like)
        if kind == "Mul":
            for a, b in ((x, y), (y, x)):
                if b.array is not None and b.array.size == 1 and len(b.shape) <= len(a.shape):
                    return graph.times(a, b.array.reshape(()))
        if kind == "Add":
            for a, b in ((x, y), (y, x)):
                if _linear_without_bias(a) and b.array is not None and b.shape == a.shape[1:]:
                    return graph.linear(*a.made.inputs, b, a.made.attributes["transB"])
        return graph.node(kind, x, y)
    return translate


def _linear_without_bias(x: Value) -> bool:
    return x.made_by("Gemm") and x.uses == 1 and len(x.made.inputs) == 2


def reduction(kind: str):
    def translate(graph, p, x, axes=None, keep=False, *_):
        axes = [np.array(integers(axes), np.int64)] if integers(axes) else []
        return graph.node(kind, x, *axes, keepdims=int(bool(p.get("keep_dims", keep))))
    return translate


def matmul(graph, _, x, y, transpose_x=False, transpose_y=False):
    if y.array is not None and len(x.shape) == len(y.shape) == 2 and not transpose_x:
        return graph.linear(x, y, None, bool(transpose_y))
    swap = lambda v: graph.transpose(v, (*range(len(v.shape) - 2), -1, -2))  # noqa: E731
    return graph.node("MatMul", swap(x) if transpose_x else x, swap(y) if transpose_y else y)


def dense(graph, _, x, weight, bias=None):
    rows = graph.reshape(x, (-1, x.shape[-1]))
    product = matmul(graph, _, rows, weight, False, True)
    product = product if bias is None else bias_add(graph, _, product, bias)
    return graph.reshape(product, (*x.shape[:-1], weight.shape[0]))


def bias_add(graph, _, x, bias, *__):
    source = x.made.inputs[0] if x.made_by("Reshape") else x  # where rows were gathered after the product
    if _linear_without_bias(x):
        return graph.linear(*x.made.inputs, bias, x.made.attributes["transB"])
    if source.made_by("Gather") and source.uses == 1 and source.made.inputs[0].made_by("Reshape"):
        tokens, index = source.made.inputs
        product = tokens.made.inputs[0]
        if _linear_without_bias(product) and len(x.shape) == 2:
            biased = graph.linear(*product.made.inputs, bias, product.made.attributes["transB"])
            gathered = graph.node("Gather", graph.reshape(biased, tokens.shape), index, axis=1)
            return graph.reshape(gathered, x.shape)
    if x.made_by("Conv") and x.uses == 1 and len(x.made.inputs) == 2:
        return graph.node("Conv", *x.made.inputs, bias, **x.made.attributes)
    return graph.node("Add", x, graph.reshape(bias, (-1, *[1] * (len(x.shape) - 2))))


def conv2d(graph, p, x, weight, *_):
    kernel, stride, dilation = weight.shape[2:], p["stride"][-2:], p["dilation"][-2:]
    return graph.node("Conv", x, weight, kernel_shape=kernel, strides=stride, dilations=dilation, group=p["group"],
                      pads=_pads(p["pad_mode"], p["pad"], x, kernel, stride, dilation))


def _pads(mode, pad, x, kernel, stride, dilation=(1, 1)) -> list[int]:
    """ONNX's (top, left, bottom, right) of MindSpore's mode and (top, bottom, left, right)."""
    mode = {0: "pad", 1: "same", 2: "valid"}.get(mode, str(mode).lower())
    if mode == "pad":
        return [pad[0], pad[2], pad[1], pad[3]]
    if mode == "valid":
        return [0, 0, 0, 0]
    missing = [max((-(-side // s) - 1) * s + (k - 1) * d + 1 - side, 0)
               for side, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True)]
    return [m // 2 for m in missing] + [m - m // 2 for m in missing]


def pool(kind: str, **attributes):
    def translate(graph, p, x, *settings):
        p = p | dict(zip(("kernel_size", "strides", "pad_mode"), settings, strict=False))
        kernel, stride = p["kernel_size"][-2:], p["strides"][-2:]
        return graph.node(kind, x, kernel_shape=kernel, strides=stride,
                          pads=_pads(p["pad_mode"], None, x, kernel, stride), **attributes)
    return translate


def max_pool_3d(graph, p, x):
    """The form that nn.MaxPool2d takes where it pads: (B, C, 1, H, W)."""
    kernel, stride, pads = p["ksize"], p["strides"], p["pads"]
    if kernel[0] != 1 or x.shape[2] != 1:
        raise Unsupported("three dimensions")
    y = graph.node("MaxPool", graph.reshape(x, (*x.shape[:2], *x.shape[3:])), kernel_shape=kernel[1:],
                   strides=stride[1:], pads=[*pads[1:], *pads[1:]], dilations=p["dilation"][1:],
                   ceil_mode=int(p["ceil_mode"]))
    return graph.node("Unsqueeze", y, np.array([2])), None


def adaptive(kind: str, whole: str):
    """To an output size that divides the input's."""
    def translate(graph, p, x, size=None):
        size = integers(p.get("output_size", size))
        size = size * (3 - len(size)) if len(size) < 3 else size[-2:]
        if size == (1, 1):
            return graph.node(whole, x, np.array([2, 3]), keepdims=1)
        if any(side % part for side, part in zip(x.shape[2:], size, strict=True)):
            raise Unsupported("an output size that does not divide the input's")
        kernel = [side // part for side, part in zip(x.shape[2:], size, strict=True)]
        return graph.node(kind, x, kernel_shape=kernel, strides=kernel)
    return translate


def transposed_convolution(graph, p, x, weight, _):
    top, bottom, left, right = p["pad_list"]
    return graph.node("ConvTranspose", x, weight, kernel_shape=p["kernel_size"], strides=p["stride"][-2:],
                      dilations=p["dilation"][-2:], group=p["group"], pads=[top, left, bottom, right])


def batch_norm(graph, p, x, gamma, beta, mean, variance, training=False, eps=1e-5, *_):
    if p.get("is_training", training):
        raise Unsupported("training mode")
    return graph.node("BatchNormalization", x, gamma, beta, mean, variance, epsilon=float(p.get("epsilon", eps))), \
        None, None, None, None


def layer_norm(graph, _, x, gamma, beta, axis=-1, __=-1, eps=1e-5):
    return graph.node("LayerNormalization", x, gamma, beta, axis=axis, epsilon=float(eps)), None, None


def group_norm(graph, _, x, groups, gamma=None, beta=None, eps=1e-5):
    """Groups as the channels of an instance norm: onnxruntime has a kernel for that, for GroupNormalization none."""
    b, c, *size = x.shape
    ones, zeros = np.ones(groups, np.float32), np.zeros(groups, np.float32)
    y = graph.node("InstanceNormalization", graph.reshape(x, (b, groups, -1)), ones, zeros, epsilon=float(eps))
    y = graph.reshape(y, x.shape)
    for kind, factor in (("Mul", gamma), ("Add", beta)):
        y = y if factor is None else graph.node(kind, y, graph.reshape(factor, (1, c, *[1] * len(size))))
    return y, None, None


def softmax(kind: str):
    def translate(graph, p, x, axis=-1, *_):
        axes = integers(p.get("axis", axis))
        if len(axes) != 1:
            raise Unsupported("several axes")
        return graph.node(kind, x, axis=axes[0])
    return translate


def clamp(graph, _, x, low=None, high=None):
    for kind, bound in (("Max", low), ("Min", high)):
        x = x if bound is None else graph.node(kind, x, number(graph, bound, x))
    return x


def resize(mode: str):
    def translate(graph, p, x, size, align_corners=False, half_pixel=False):
        size = integers(p.get("size", size))
        if size == x.shape[2:]:
            return x
        how = "align_corners" if p.get("align_corners", align_corners) else \
            "half_pixel" if p.get("half_pixel_centers", half_pixel) else "asymmetric"
        return graph.node("Resize", x, None, None, np.array(size, np.int64), mode=mode, axes=[2, 3],
                          coordinate_transformation_mode=how, nearest_mode="floor")
    return translate


def concat(graph, p, values, axis=0):
    return graph.node("Concat", *values, axis=p.get("axis", axis))


def stack(graph, p, values, axis=0):
    axis = p.get("axis", axis)
    return graph.node("Concat", *(graph.node("Unsqueeze", v, np.array([axis])) for v in values), axis=axis)


def _split(graph, x, axis, parts):
    values = graph.node("Split", x, outputs=parts, axis=axis, num_outputs=parts)
    return values if isinstance(values, tuple) else (values,)


def split(graph, p, x, axis=0, parts=1):
    return _split(graph, x, p.get("axis", axis), p.get("output_num", parts))


def split_tensor(graph, _, x, length, axis=0, *__):
    return _split(graph, x, axis, -(-x.shape[axis] // length))


def gather(graph, _, x, index, axis=0, batch_dims=0):
    if batch_dims:
        raise Unsupported("batch_dims above 0")
    return graph.gather(x, index, integers(axis)[0] % len(x.shape))


def strided_slice(graph, p, x, begin, end, strides, *flags):
    names = ("begin_mask", "end_mask", "ellipsis_mask", "new_axis_mask", "shrink_axis_mask")
    masks = dict(zip(names, flags, strict=False)) or {name: p.get(name, 0) for name in names}
    if masks["ellipsis_mask"] or masks["new_axis_mask"]:
        raise Unsupported("an ellipsis or a new axis")
    begin, end, strides = map(integers, (begin, end, strides))
    taken, gone = [], []
    for i, (first, last, step) in enumerate(zip(begin, end, strides, strict=True)):
        if masks["shrink_axis_mask"] >> i & 1:
            gone.append(i)
            taken.append((first, first + 1 if first != -1 else np.iinfo(np.int64).max, i, 1))
            continue
        side = x.shape[i]
        first = (0 if step > 0 else side - 1) if masks["begin_mask"] >> i & 1 else first
        last = (side if step > 0 else -side - 1) if masks["end_mask"] >> i & 1 else last
        if (first, step) != (0, 1) or last < side:
            if side % BATCH == 0:
                raise Unsupported("a part of the batch")
            taken.append((first, last, i, step))
    if len(gone) == 1 == len(taken):  # x[:, 0]
        return graph.gather(x, graph.constant(np.array(taken[0][0], np.int64)), gone[0])
    y = graph.node("Slice", x, *(np.array(column, np.int64) for column in zip(*taken, strict=True))) if taken else x
    return graph.node("Squeeze", y, np.array(gone, np.int64)) if gone else y


def slice_(graph, _, x, begin, size):
    begin, size = integers(begin), integers(size)
    taken = [(b, b + s if s >= 0 else side, i) for i, (b, s, side) in enumerate(zip(begin, size, x.shape, strict=True))
             if b or s not in (-1, side)]
    return graph.node("Slice", x, *(np.array(column, np.int64) for column in zip(*taken, strict=True))) if taken else x


def tile(graph, p, x, repeats):
    repeats = integers(p.get("multiples", repeats))
    x = graph.reshape(x, (*[1] * (len(repeats) - len(x.shape)), *x.shape))
    repeats = (1,) * (len(x.shape) - len(repeats)) + repeats
    if all(side == 1 or repeat == 1 for side, repeat in zip(x.shape, repeats, strict=True)):
        return broadcast_to(graph, p, x, [s * r for s, r in zip(x.shape, repeats, strict=True)])
    return graph.node("Tile", x, graph.sizes(repeats))


def broadcast_to(graph, p, x, shape=()):
    shape = integers(p.get("shape", shape))
    old = (1,) * (len(shape) - len(x.shape)) + x.shape
    shape = tuple(o if s == -1 else s for s, o in zip(shape, old, strict=True))
    return x if shape == x.shape else graph.node("Expand", x, graph.sizes(shape))


def filled(value: float):
    def translate(graph, p, shape, *_):
        array = np.array([value], helper.tensor_dtype_to_np_dtype(p["dtype"]))
        return graph.node("Expand", array, graph.sizes(integers(shape)))
    return translate


def filled_like(value: float):
    return lambda graph, p, x, *_: filled(value)(graph, p, x.shape)


def expand_dims(graph, _, x, axis):
    axis = integers(axis)[0] % (len(x.shape) + 1)
    return graph.node("Unsqueeze", x, np.array([axis], np.int64))


def squeeze(graph, p, x, axes=()):
    axes = [a % len(x.shape) for a in integers(p.get("axis", axes))] or \
        [i for i, side in enumerate(x.shape) if side == 1]
    return graph.reshape(x, [side for i, side in enumerate(x.shape) if i not in axes or side != 1])


def select(graph, _, condition, x, y):
    like = x if isinstance(x, Value) else y
    return graph.node("Where", condition, number(graph, x, like), number(graph, y, like))


def masked_fill(graph, _, x, mask, value):
    return graph.node("Where", mask, number(graph, value, x), x)


def with_index(kind: str, where: str):
    """The value and its place; MindSpore's older primitives have them the other way round."""
    def translate(graph, p, x, axis=0, keep=False, *_):
        axis, keep = p.get("axis", axis), int(bool(p.get("keep_dims", keep)))
        return (graph.node(kind, x, np.array([axis], np.int64), keepdims=keep),
                graph.node(where, x, axis=axis, keepdims=keep))
    return translate


def pad(graph, p, x):
    before, after = zip(*p["paddings"], strict=True)
    return graph.node("Pad", x, np.array([*before, *after], np.int64))


def pad_last(graph, p, x, paddings, value=None):
    """The paddings of the last axes first, as PyTorch gives them."""
    paddings = integers(paddings)
    rest = [0] * (len(x.shape) - len(paddings) // 2)
    amounts = np.array([*rest, *paddings[::2][::-1], *rest, *paddings[1::2][::-1]], np.int64)
    mode = {"replicate": "edge", "circular": "wrap"}.get(p.get("mode"), p.get("mode", "constant"))
    return graph.node("Pad", x, amounts, number(graph, 0 if value is None else value, x), mode=mode)


def norm(graph, p, x):
    if p["p"] not in (1, 2):
        raise Unsupported(f"p = {p['p']}")
    return graph.node(f"ReduceL{p['p']}", x, np.array(integers(p["axis"])), keepdims=int(p["keep_dims"]))


PRIMITIVES = {
    **{name: same(kind) for name, kind in SAME.items()},
    **{name: binary(kind) for name, kind in BINARY.items()},
    **{name: reduction(kind) for name, kind in REDUCTIONS.items()},
    **{name: scalar(function) for name, function in SCALARS.items()},
    # what MindSpore's graph needs and ONNX's does not
    **dict.fromkeys(("Load", "Depend", "TensorMove"), lambda _, __, x, *___: x),
    "UpdateState": lambda *_: None, "MakeTuple": lambda _, __, *xs: xs, "TupleGetItem": lambda _, __, xs, i: xs[i],
    "Shape": lambda _, __, x: x.shape,
    # products and normalisations
    "MatMul": matmul, "BatchMatMul": matmul, "MatMulExt": matmul, "Dense": dense, "BiasAdd": bias_add,
    "Conv2D": conv2d, "BatchNorm": batch_norm, "LayerNorm": layer_norm, "GroupNorm": group_norm,
    "Softmax": softmax("Softmax"), "LogSoftmax": softmax("LogSoftmax"),
    # activations
    "GeLU": lambda graph, _, x: graph.node("Gelu", x, approximate="tanh"),
    "SiLU": lambda graph, _, x, *__: graph.node("Mul", x, graph.node("Sigmoid", x)),
    "Elu": lambda graph, _, x, alpha=1.0: graph.node("Elu", x, alpha=float(alpha)),
    "PReLU": lambda graph, _, x, w: graph.node("PRelu", x, graph.reshape(w, (-1, *[1] * (len(x.shape) - 2)))),
    "HSigmoid": lambda graph, _, x: graph.node("HardSigmoid", x, alpha=1 / 6, beta=0.5),
    "ReLU6": lambda graph, _, x: clamp(graph, _, x, 0.0, 6.0), "ClampScalar": clamp,
    # arithmetic of more than one node
    "Square": lambda graph, _, x: graph.node("Mul", x, x),
    "Rsqrt": lambda graph, _, x: graph.node("Reciprocal", graph.node("Sqrt", x)),
    "Log1p": lambda graph, _, x: graph.node("Log", graph.node("Add", x, np.float32(1))),
    "LpNorm": norm,
    "NotEqual": lambda graph, _, x, y: graph.node("Not", binary("Equal")(graph, _, x, y)),
    "Cast": lambda graph, p, x, *_: x if p["dtype"] == x.dtype else graph.node("Cast", x, to=p["dtype"]),
    # sizes and places
    "Reshape": lambda graph, _, x, shape: graph.reshape(x, integers(shape)),
    "Transpose": lambda graph, _, x, order: graph.transpose(x, integers(order)),
    "ExpandDims": expand_dims, "Squeeze": squeeze, "Concat": concat, "Stack": stack, "Split": split,
    "SplitTensorView": split_tensor,
    "Unstack": lambda graph, p, x, axis=0: tuple(
        graph.node("Gather", x, np.array(i, np.int64), axis=p.get("axis", axis) % len(x.shape))
        for i in range(x.shape[p.get("axis", axis)])),
    "Gather": gather, "StridedSlice": strided_slice, "Slice": slice_, "Tile": tile, "BroadcastTo": broadcast_to,
    "Zeros": filled(0), "Ones": filled(1), "ZerosLike": filled_like(0), "OnesLike": filled_like(1),
    "Pad": pad, "PadV3": pad_last,
    "Tril": lambda graph, p, x: graph.node("Trilu", x, np.array(p["diagonal"]), upper=0),
    # choices
    "Select": select, "MaskedFill": masked_fill, "MaskedFillScalar": masked_fill,
    "Argmax": lambda graph, p, x, axis=-1, *_: graph.node("ArgMax", x, axis=integers(p.get("axis", axis))[0],
                                                          keepdims=0),
    "MaxDim": with_index("ReduceMax", "ArgMax"),
    "ArgMaxWithValue": lambda *inputs: with_index("ReduceMax", "ArgMax")(*inputs)[::-1],
    "ArgMinWithValue": lambda *inputs: with_index("ReduceMin", "ArgMin")(*inputs)[::-1],
    # maps
    "MaxPool": pool("MaxPool"), "AvgPool": pool("AveragePool", count_include_pad=0),
    "MaxPool3DWithArgmax": max_pool_3d, "Conv2DTranspose": transposed_convolution,
    "AdaptiveAvgPool2D": adaptive("AveragePool", "ReduceMean"),
    "AdaptiveMaxPool2D": lambda graph, p, x, size=None: (adaptive("MaxPool", "ReduceMax")(graph, p, x, size), None),
    "ResizeBilinearV2": resize("linear"), "ResizeNearestNeighborV2": resize("nearest"),
}
