"""The ONNX form of the backbones (Swin, ResNet, Darknet) and of BERT.

Shapes as in models/swin.py, cnn.py and bert.py: x (B, P, C) tokens; windows n of M cells each.
"""

import numpy as np
from mindspore import nn
from onnx import TensorProto

from mindspore_coupalign.inference.onnx.builder import Value
from mindspore_coupalign.inference.onnx.layers import (
    convolve,
    emit,
    linear,
    merge_heads,
    scaled,
    softmax,
    split_heads,
    transposed_heads,
)
from mindspore_coupalign.models import bert, cnn, darknet, resnet, swin


@emit.register
def _(cell: swin.PatchEmbed, graph, image):
    x = emit(cell.norm, graph, emit(cell.to_tokens, graph, emit(cell.proj, graph, image)))
    return x if cell.positions is None else x + cell.positions


@emit.register
def _(cell: swin.TokenGather, graph, x):
    return (pad_token(x) if cell.pads_out else x).take(cell.index.asnumpy(), 1)


def pad_token(x: Value) -> Value:
    """A token of zeros behind the others: (B, P, C) -> (B, P + 1, C)."""
    b, p, c = x.shape
    return x.graph.node("Pad", [x, np.array([0, 0, 0, 0, 1, 0], np.int64)], (b, p + 1, c))


def window_attention(cell: swin.WindowAttention, q: Value, k: Value, v: Value) -> Value:
    """q, k, v (B·n, M, C) -> (B·n, M, C); the table of position biases is gathered here, once."""
    scores = split_heads(q, cell.heads) @ transposed_heads(k, cell.heads)
    table = cell.relative_position_bias_table.asnumpy()[cell.bias_index.asnumpy()]
    bias = table.reshape(cell.area, cell.area, cell.heads).transpose(2, 0, 1)
    if cell.mask is None:
        scores = scores + bias
    else:
        shape = scores.shape
        scores = scores.reshape(None, cell.windows, *shape[1:]) + (bias + cell.mask.asnumpy())
        scores = scores.reshape(*shape)
    return merge_heads(softmax(scores) @ split_heads(v, cell.heads))


@emit.register
def _(cell: swin.SwinBlock, graph, x):
    """Linear layers see every token once: where windows are padded, q, k and v are computed before the partition (a
    single token of zeros stands for all padding) and projected after it is undone, elsewhere in any order."""
    b, p, c = x.shape
    attn, windows = cell.attn, (None, cell.area, c)
    normal = emit(cell.norm1, graph, x)
    normal = pad_token(normal) if cell.partition.pads_out else emit(cell.partition, graph, normal)
    q = linear(graph, normal, *scaled(attn.q, attn.scale))
    k, v = emit(attn.k, graph, normal), emit(attn.v, graph, normal)
    if cell.partition.pads_out:
        q, k, v = (tokens.take(cell.partition.index.asnumpy(), 1) for tokens in (q, k, v))
    mixed = window_attention(attn, *(tokens.reshape(*windows) for tokens in (q, k, v)))
    mixed = emit(cell.restore, graph, mixed.reshape(b, cell.partition.index.size, c))
    x = x + emit(attn.proj, graph, mixed)
    return x + emit(cell.mlp, graph, emit(cell.norm2, graph, x))


@emit.register
def _(cell: swin.SwinStage, graph, x):
    for block in cell.blocks:
        x = emit(block, graph, x)
    return x


@emit.register
def _(cell: swin.PatchMerging, graph, x):
    b, p, c = x.shape
    joined = emit(cell.gather, graph, x).reshape(b, p // 4, 4 * c)
    return emit(cell.reduction, graph, emit(cell.norm, graph, joined))


@emit.register
def _(cell: cnn.ConvNorm, graph, x):
    """The norm's statistics are constants: it becomes a part of the convolution."""
    norm = cell.norm
    gamma, beta, mean, variance = (parameter.asnumpy().astype(np.float64) for parameter in (
        norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance))
    factor = gamma / np.sqrt(variance + norm.eps)
    weight = (cell.conv.weight.asnumpy() * factor[:, None, None, None]).astype(np.float32)
    x = convolve(graph, x, cell.conv, weight, (beta - mean * factor).astype(np.float32))
    if cell.slope is None:
        return x
    return x.apply("Relu") if cell.slope == 0 else x.apply("LeakyRelu", alpha=float(cell.slope))


@emit.register
def _(cell: nn.MaxPool2d, graph, x):
    """3×3 at stride 2, the one that ResNet has."""
    b, c, h, w = x.shape
    return graph.node("MaxPool", [x], (b, c, -(-h // 2), -(-w // 2)), kernel_shape=[3, 3], strides=[2, 2],
                      pads=[1, 1, 1, 1])


@emit.register
def _(cell: cnn.CnnStage, graph, x):
    x = emit(cell.to_map, graph, x)
    for block in cell.blocks:
        x = emit(block, graph, x)
    return emit(cell.to_tokens, graph, x)


@emit.register
def _(cell: darknet.DarkBlock, graph, x):
    return x + emit(cell.conv2, graph, emit(cell.conv1, graph, x))


@emit.register
def _(cell: resnet.Bottleneck, graph, x):
    y = emit(cell.conv3, graph, emit(cell.conv2, graph, emit(cell.conv1, graph, x)))
    return (y + (x if cell.shortcut is None else emit(cell.shortcut, graph, x))).apply("Relu")


def padding_bias(word_mask: Value) -> Value:
    """(B, 1, 1, T): 0 for words and -1e4 for padding."""
    return ((word_mask.cast(TensorProto.FLOAT) - 1.0) * 1e4).reshape(None, 1, 1, word_mask.shape[1])


@emit.register
def _(cell: bert.BertEmbeddings, graph, ids):
    """Positions and segment are the same for every sentence: one constant."""
    table = graph.value(cell.word_embeddings)
    words = graph.node("Gather", [table, ids], (*ids.shape, table.shape[1]), axis=0)
    tokens = len(cell.positions)
    fixed = cell.position_embeddings.asnumpy()[:tokens] + cell.token_type_embeddings.asnumpy()[0]
    return emit(cell.norm, graph, words + fixed)


@emit.register
def _(cell: bert.BertLayer, graph, x, bias):
    x = emit(cell.norm1, graph, x + emit(cell.attention, graph, x, x, x, bias))
    return emit(cell.norm2, graph, x + emit(cell.mlp, graph, x))


@emit.register
def _(cell: bert.BertGroup, graph, x, bias):
    for layer in cell.layers:
        x = emit(layer, graph, x, bias)
    return x
