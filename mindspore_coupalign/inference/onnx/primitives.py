"""MindSpore's primitives in ONNX: ``PRIMITIVES[name](graph, attributes, *inputs)`` -> the value, or a tuple of values.

Inputs are Values where the primitive takes tensors, and Python numbers and tuples where it takes settings.
"""

import numpy as np
from onnx import helper

from mindspore_coupalign.inference.onnx.graph import BATCH, Graph, Value

# One node of the same inputs
SAME = {
    "Abs": "Abs", "AbsExt": "Abs", "Ceil": "Ceil", "Cos": "Cos", "Erf": "Erf", "Exp": "Exp", "Floor": "Floor",
    "HSigmoid": "HardSigmoid", "HSwish": "HardSwish", "Log": "Log", "LogicalAnd": "And", "LogicalNot": "Not",
    "LogicalOr": "Or", "Neg": "Neg", "ReLU": "Relu", "Reciprocal": "Reciprocal", "Round": "Round",
    "Sigmoid": "Sigmoid", "Sign": "Sign", "Sin": "Sin", "Softplus": "Softplus", "SoftplusExt": "Softplus",
    "Sqrt": "Sqrt", "Tanh": "Tanh", "Mish": "Mish",
}
# Two operands, each a tensor or a number
BINARY = {
    "Add": "Add", "Adds": "Add", "Sub": "Sub", "Subs": "Sub", "Mul": "Mul", "Muls": "Mul", "Div": "Div", "Divs": "Div",
    "RealDiv": "Div", "Pow": "Pow", "PowTensorScalar": "Pow", "PowScalarTensor": "Pow", "Maximum": "Max",
    "Minimum": "Min", "Equal": "Equal", "EqualScalar": "Equal", "Less": "Less", "LessScalar": "Less",
    "LessEqual": "LessOrEqual", "LessEqualScalar": "LessOrEqual", "Greater": "Greater", "GreaterScalar": "Greater",
    "GreaterEqual": "GreaterOrEqual", "GreaterEqualScalar": "GreaterOrEqual",
}
REDUCTIONS = {
    "ReduceMean": "ReduceMean", "MeanExt": "ReduceMean", "ReduceSum": "ReduceSum", "SumExt": "ReduceSum",
    "ReduceMax": "ReduceMax", "Max": "ReduceMax", "ReduceMin": "ReduceMin", "Min": "ReduceMin",
    "ReduceProd": "ReduceProd", "AMax": "ReduceMax", "Amax": "ReduceMax", "AMin": "ReduceMin", "Amin": "ReduceMin",
}
SCALARS = {
    "ScalarAdd": lambda x, y: x + y, "ScalarSub": lambda x, y: x - y, "ScalarMul": lambda x, y: x * y,
    "ScalarFloorDiv": lambda x, y: x // y, "ScalarDiv": lambda x, y: x / y, "ScalarMod": lambda x, y: x % y,
    "ScalarCast": lambda x, _: x, "ScalarUsub": lambda x: -x,
}


class Unsupported(Exception):
    """A primitive, or a setting of it, that has no translation; the text says which."""


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
    if isinstance(value, Value):
        return value
    return graph.constant(np.asarray(value, helper.tensor_dtype_to_np_dtype(like.dtype)))


def binary(kind: str):
    def translate(graph, _, x, y):
        like = x if isinstance(x, Value) else y
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
        axes = integers(axes)
        result = graph.node(kind, x, *([np.array(axes, np.int64)] if axes else []),
                            keepdims=int(bool(p.get("keep_dims", keep))))
        return result
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
    if p.get("format") not in (None, "NCHW"):
        raise Unsupported(f"its format {p['format']}")
    return _convolution(graph, x, weight, None, p["stride"][-2:], p["pad_mode"], p["pad"], p["dilation"][-2:],
                        p["group"])


def conv2d_ext(graph, _, x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    mode = padding if isinstance(padding, str) else "pad"
    pair = lambda v: tuple(integers(v)) * (2 if np.size(v) == 1 else 1)  # noqa: E731
    top, left = (0, 0) if isinstance(padding, str) else pair(padding)
    return _convolution(graph, x, weight, bias, pair(stride), mode, (top, top, left, left), pair(dilation), groups)


def _convolution(graph, x, weight, bias, stride, mode, pad, dilation, groups):
    kernel = weight.shape[2:]
    inputs = [x, weight] if bias is None else [x, weight, bias]
    return graph.node("Conv", *inputs, kernel_shape=kernel, strides=stride, dilations=dilation, group=groups,
                      pads=_pads(mode, pad, x, kernel, stride, dilation))


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
        names = ("kernel_size", "strides", "pad_mode")
        p = p | dict(zip(names, settings, strict=False))
        kernel, stride = p["kernel_size"][-2:], p["strides"][-2:]
        return graph.node(kind, x, kernel_shape=kernel, strides=stride,
                          pads=_pads(p["pad_mode"], None, x, kernel, stride), **attributes)
    return translate


def max_pool_3d(graph, p, x):
    pads, dims = p["pads"], len(p["ksize"])
    flat = x.made_by("Unsqueeze") and p["ksize"][0] == 1 and x.shape[2] == 1  # the form that nn.MaxPool2d takes
    first = 1 if flat else 0
    source = x.made.inputs[0] if flat else x
    y = graph.node("MaxPool", source, kernel_shape=p["ksize"][first:], strides=p["strides"][first:],
                   pads=[*pads[first:], *pads[first:]], dilations=p["dilation"][first:dims],
                   ceil_mode=int(p["ceil_mode"]))
    return (graph.node("Unsqueeze", y, np.array([2])) if flat else y), None


def adaptive_mean(graph, p, x, size=None):
    if integers(p.get("output_size", size))[-2:] != (1, 1):
        raise Unsupported("an output size other than 1")
    return graph.node("ReduceMean", x, np.array([2, 3]), keepdims=1)


def batch_norm(graph, p, x, gamma, beta, mean, variance, training=False, eps=1e-5, *_):
    if p.get("is_training", training):
        raise Unsupported("training mode")
    return graph.node("BatchNormalization", x, gamma, beta, mean, variance, epsilon=float(p.get("epsilon", eps))), \
        None, None, None, None


def layer_norm(graph, _, x, gamma, beta, axis=-1, __=-1, eps=1e-5):
    return graph.node("LayerNormalization", x, gamma, beta, axis=axis, epsilon=float(eps)), None, None


def layer_norm_ext(graph, _, x, shape, gamma=None, beta=None, eps=1e-5):
    shape = integers(shape)
    gamma = np.ones(shape, np.float32) if gamma is None else gamma
    return layer_norm(graph, _, x, gamma, beta, -len(shape), 0, eps)


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


def gelu(graph, _, x, approximate="tanh"):
    return graph.node("Gelu", x, approximate="tanh" if approximate in ("tanh", 1) else "none")


def clamp(graph, _, x, low=None, high=None):
    for kind, bound in (("Max", low), ("Min", high)):
        x = x if bound is None else graph.node(kind, x, number(graph, bound, x))
    return x


def resize(mode: str):
    def translate(graph, p, x, size, align_corners=False, half_pixel=False, *_):
        size = integers(p.get("size", size))
        if not size:
            raise Unsupported("a scale instead of a size")
        if size == x.shape[2:]:
            return x
        align_corners = p.get("align_corners", align_corners)
        half_pixel = p.get("half_pixel_centers", half_pixel)
        how = "align_corners" if align_corners else "half_pixel" if half_pixel or mode == "cubic" else "asymmetric"
        more = {"nearest_mode": "floor"} if mode == "nearest" else {}
        return graph.node("Resize", x, None, None, np.array(size, np.int64), mode=mode, axes=[2, 3],
                          coordinate_transformation_mode=how, **more)
    return translate


def resize_ext(mode: str):
    """The Upsample primitives: an output size, or scales."""
    def translate(graph, p, x, size=None, scales=None, align_corners=False, *_):
        if size is None and scales is not None:
            size = [int(side * float(s)) for side, s in zip(x.shape[2:], np.ravel(scales), strict=True)]
        return resize(mode)(graph, p, x, size, align_corners, mode == "linear" and not align_corners)
    return translate


def concat(graph, p, values, axis=0):
    return graph.node("Concat", *values, axis=p.get("axis", axis))


def stack(graph, p, values, axis=0):
    axis = p.get("axis", axis)
    return graph.node("Concat", *(graph.node("Unsqueeze", v, np.array([axis])) for v in values), axis=axis)


def split(graph, p, x, axis=0, parts=1):
    return _split(graph, x, axis=p.get("axis", axis), num_outputs=p.get("output_num", parts))


def split_tensor(graph, _, x, length, axis=0):
    return _split(graph, x, axis=axis, num_outputs=-(-x.shape[axis] // length))


def split_sizes(graph, _, x, sizes, axis=0):
    sizes = integers(sizes)
    values = graph.node("Split", x, np.array(sizes, np.int64), outputs=len(sizes), axis=axis)
    return values if isinstance(values, tuple) else (values,)


def _split(graph, x, axis, num_outputs):
    values = graph.node("Split", x, outputs=num_outputs, axis=axis, num_outputs=num_outputs)
    return values if isinstance(values, tuple) else (values,)


def gather(graph, _, x, index, axis=0, batch_dims=0):
    if batch_dims:
        raise Unsupported("batch_dims above 0")
    return graph.gather(x, index, integers(axis)[0] % len(x.shape))


def select_at(graph, _, x, axis, index):
    """One entry of an axis, which goes."""
    return graph.node("Gather", x, np.array(integers(index)[0], np.int64), axis=integers(axis)[0] % len(x.shape))


def strided_slice(graph, p, x, begin, end, strides, *masks):
    names = ("begin_mask", "end_mask", "ellipsis_mask", "new_axis_mask", "shrink_axis_mask")
    masks = dict(zip(names, masks, strict=False)) or {name: p.get(name, 0) for name in names}
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


def slice_ext(graph, _, x, axis, start, end, step):
    start, end = start or 0, min(end, x.shape[axis])
    if (start, end, step) == (0, x.shape[axis], 1):
        return x
    return graph.node("Slice", x, *(np.array([v], np.int64) for v in (start, end, axis, step)))


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


def full(graph, p, shape, value, *_):
    return filled(value.array.item() if isinstance(value, Value) else value)(graph, p, shape)


def expand_dims(graph, _, x, axis):
    axis = integers(axis)[0] % (len(x.shape) + 1)
    return graph.node("Unsqueeze", x, np.array([axis], np.int64))


def squeeze(graph, p, x, axes=()):
    axes = [a % len(x.shape) for a in integers(p.get("axis", axes))] or \
        [i for i, side in enumerate(x.shape) if side == 1]
    return graph.reshape(x, [side for i, side in enumerate(x.shape) if i not in axes or side != 1])


def flatten(graph, _, x, start=1, end=-1):
    end %= len(x.shape)
    return graph.reshape(x, (*x.shape[:start], int(np.prod(x.shape[start:end + 1], dtype=object)), *x.shape[end + 1:]))


def select(graph, _, condition, x, y):
    like = x if isinstance(x, Value) else y
    return graph.node("Where", condition, number(graph, x, like), number(graph, y, like))


def masked_fill(graph, _, x, mask, value):
    return graph.node("Where", mask, number(graph, value, x), x)


def arg(kind: str):
    def translate(graph, p, x, axis=-1, keep=False, *_):
        return graph.node(kind, x, axis=p.get("axis", axis), keepdims=int(bool(keep)))
    return translate


def with_value(kind: str, where: str):
    def translate(graph, p, x, axis=0, keep=False, *_):
        axis, keep = p.get("axis", axis), int(bool(p.get("keep_dims", keep)))
        return (graph.node(where, x, axis=axis, keepdims=keep),
                graph.node(kind, x, np.array([axis], np.int64), keepdims=keep))
    return translate


def top_k(graph, _, x, k, *__):
    return graph.node("TopK", x, np.array(integers(k)[:1], np.int64), outputs=2)


def pad(graph, p, x, paddings, *_):
    paddings = p.get("paddings", paddings)
    before, after = zip(*paddings, strict=True)
    return graph.node("Pad", x, np.array([*before, *after], np.int64))


def pad_last(mode: str):
    """The paddings of the last axes first, as PyTorch gives them."""
    def translate(graph, _, x, paddings, value=0.0):
        paddings, rest = integers(paddings), len(x.shape) - len(integers(paddings)) // 2
        before, after = paddings[::2][::-1], paddings[1::2][::-1]
        amounts = np.array([*[0] * rest, *before, *[0] * rest, *after], np.int64)
        return graph.node("Pad", x, amounts, number(graph, value or 0.0, x), mode=mode)
    return translate


PRIMITIVES = {
    **{name: (lambda kind: lambda graph, _, *xs: graph.node(kind, *xs))(kind) for name, kind in SAME.items()},
    **{name: binary(kind) for name, kind in BINARY.items()},
    **{name: reduction(kind) for name, kind in REDUCTIONS.items()},
    **{name: (lambda of: lambda _, __, *xs: of(*xs))(of) for name, of in SCALARS.items()},
    # what MindSpore's graph needs and ONNX's does not
    **dict.fromkeys(("Load", "Depend", "Identity", "StopGradient", "TupleToTensor", "Contiguous"),
                    lambda _, __, x, *___: x),
    "UpdateState": lambda *_: None,
    "MakeTuple": lambda _, __, *xs: xs, "MakeList": lambda _, __, *xs: xs,
    "TupleGetItem": lambda _, __, xs, i: xs[i], "ListGetItem": lambda _, __, xs, i: xs[i],
    "RealTupleGetItem": lambda _, __, xs, i: xs[i],
    "Shape": lambda _, __, x: x.shape, "TensorShape": lambda _, __, x: x.shape,
    # products and normalisations
    "MatMul": matmul, "BatchMatMul": matmul, "MatMulExt": matmul, "BatchMatMulExt": matmul, "Dense": dense,
    "BiasAdd": bias_add, "Conv2D": conv2d, "Conv2DExt": conv2d_ext, "Conv2DPadding": conv2d_ext,
    "BatchNorm": batch_norm, "LayerNorm": layer_norm, "LayerNormExt": layer_norm_ext, "GroupNorm": group_norm,
    "Softmax": softmax("Softmax"), "LogSoftmax": softmax("LogSoftmax"), "LogSoftmaxExt": softmax("LogSoftmax"),
    # activations
    "GeLU": gelu, "GeluExt": lambda graph, _, x, how="none": gelu(graph, _, x, how),
    "FastGeLU": lambda graph, _, x: graph.node("Mul", x, graph.node("Sigmoid", graph.node(
        "Mul", x, np.float32(1.702)))),
    "SiLU": lambda graph, _, x, *__: graph.node("Mul", x, graph.node("Sigmoid", x)),
    "LeakyReLU": lambda graph, p, x, slope=0.01: graph.node("LeakyRelu", x, alpha=float(p.get("alpha", slope))),
    "LeakyReLUExt": lambda graph, _, x, slope=0.01: graph.node("LeakyRelu", x, alpha=float(slope)),
    "Elu": lambda graph, _, x, alpha=1.0: graph.node("Elu", x, alpha=float(alpha)),
    "EluExt": lambda graph, _, x, alpha=1.0: graph.node("Elu", x, alpha=float(alpha)),
    "PReLU": lambda graph, _, x, w: graph.node("PRelu", x, graph.reshape(w, (-1, *[1] * (len(x.shape) - 2)))),
    "ReLU6": lambda graph, _, x: clamp(graph, _, x, 0.0, 6.0),
    "ClampScalar": clamp, "ClampTensor": clamp,
    # arithmetic of more than one node
    "Square": lambda graph, _, x: graph.node("Mul", x, x),
    "Rsqrt": lambda graph, _, x: graph.node("Reciprocal", graph.node("Sqrt", x)),
    "Expm1": lambda graph, _, x: graph.node("Sub", graph.node("Exp", x), np.float32(1)),
    "Log1p": lambda graph, _, x: graph.node("Log", graph.node("Add", x, np.float32(1))),
    "AddExt": lambda graph, _, x, y, a=1: graph.node("Add", x, binary("Mul")(graph, _, y, a)),
    "SubExt": lambda graph, _, x, y, a=1: graph.node("Sub", x, binary("Mul")(graph, _, y, a)),
    "AddN": lambda graph, _, xs: graph.node("Sum", *xs),
    "NotEqual": lambda graph, _, x, y: graph.node("Not", binary("Equal")(graph, _, x, y)),
    "Cast": lambda graph, p, x, *_: x if p["dtype"] == x.dtype else graph.node("Cast", x, to=p["dtype"]),
    "CumSum": lambda graph, _, x, axis, *__: graph.node("CumSum", x, np.array(integers(axis)[0], np.int64)),
    "CumsumExt": lambda graph, _, x, axis, *__: graph.node("CumSum", x, np.array(integers(axis)[0], np.int64)),
    # sizes and places
    "Reshape": lambda graph, _, x, shape: graph.reshape(x, integers(shape)),
    "View": lambda graph, _, x, shape: graph.reshape(x, integers(shape)),
    "Transpose": lambda graph, _, x, order: graph.transpose(x, integers(order)),
    "TransposeView": lambda graph, _, x, order: graph.transpose(x, integers(order)),
    "Flatten": flatten, "FlattenExt": lambda graph, _, x, start=0, end=-1: flatten(graph, _, x, start, end),
    "ExpandDims": expand_dims, "Squeeze": squeeze,
    "Concat": concat, "Stack": stack, "StackExt": stack, "Split": split, "SplitTensor": split_tensor,
    "SplitWithSize": split_sizes,
    "Unstack": lambda graph, p, x, axis=0: tuple(
        select_at(graph, p, x, p.get("axis", axis), i) for i in range(x.shape[p.get("axis", axis)])),
    "Gather": gather, "SelectExtView": select_at, "SelectExt": select_at,
    "GatherD": lambda graph, _, x, axis, index: graph.node("GatherElements", x, index, axis=integers(axis)[0]),
    "StridedSlice": strided_slice, "Slice": slice_, "SliceExt": slice_ext, "Narrow": lambda graph, _, x, axis, at, n:
    slice_ext(graph, _, x, axis, at, at + n, 1),
    "Tile": tile, "BroadcastTo": broadcast_to,
    "Zeros": filled(0), "Ones": filled(1), "ZerosLike": filled_like(0), "OnesLike": filled_like(1),
    "ZerosLikeExt": filled_like(0), "OnesLikeExt": filled_like(1), "FillV2": full, "FillScalar": full,
    "Pad": pad, "PadV3": pad_last("constant"), "ConstantPadND": pad_last("constant"),
    # choices
    "Select": select, "MaskedFill": masked_fill, "MaskedFillScalar": masked_fill,
    "Argmax": arg("ArgMax"), "ArgMaxExt": arg("ArgMax"), "Argmin": arg("ArgMin"),
    "ArgMaxWithValue": with_value("ReduceMax", "ArgMax"), "ArgMinWithValue": with_value("ReduceMin", "ArgMin"),
    "TopK": top_k, "TopkExt": top_k,
    # maps
    "MaxPool": pool("MaxPool"), "AvgPool": pool("AveragePool", count_include_pad=0),
    "MaxPool3DWithArgmax": max_pool_3d, "AdaptiveAvgPool2D": adaptive_mean, "AdaptiveAvgPool2DExt": adaptive_mean,
    "ResizeBilinearV2": resize("linear"), "ResizeNearestNeighbor": resize("nearest"),
    "ResizeNearestNeighborV2": resize("nearest"), "ResizeBicubic": resize("cubic"),
    "UpsampleBilinear2D": resize_ext("linear"), "UpsampleNearest2D": resize_ext("nearest"),
}
