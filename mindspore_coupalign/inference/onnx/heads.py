"""The ONNX form of what follows the encoders, and of the whole network.

Shapes as in models/: S_i (B, P_i, C_i); y (B, C_d, H/4, W/4); q (B, N, C_d); logits (B, 1, H, W); exists (B,).
"""

import numpy as np
import onnx
from onnx import TensorProto

from mindspore_coupalign import __version__
from mindspore_coupalign.config import DataConfig
from mindspore_coupalign.inference.onnx import encoders, fusion  # noqa: F401 - they register their cells
from mindspore_coupalign.inference.onnx.builder import Graph, Value
from mindspore_coupalign.inference.onnx.layers import emit, linear, scaled, softmax
from mindspore_coupalign.models import coupalign, guided_filter, mask_generator, sentence_mask


@emit.register
def _(cell: mask_generator.PixelDecoder, graph, stages):
    y = emit(cell.to_map[3], graph, stages[3])
    for i in (2, 1, 0):
        coarse, finer = emit(cell.resize[i], graph, y), emit(cell.to_map[i], graph, stages[i])
        y = emit(cell.fuse[i], graph, graph.concat([coarse, finer], 1))
    return y


@emit.register
def _(cell: mask_generator.QueryLayer, graph, q, keys, values):
    x = emit(cell.norm1, graph, q)
    q = q + emit(cell.self_attention, graph, x, x, x)
    q = q + emit(cell.cross_attention, graph, emit(cell.norm2, graph, q), keys, values)
    return q + emit(cell.mlp, graph, emit(cell.norm3, graph, q))


@emit.register
def _(cell: mask_generator.MaskGenerator, graph, features):
    """The queries are one sentence's until they have read the picture: what comes before is constant."""
    values = emit(cell.project, graph, features)
    keys = values + cell.positions
    queries = graph.value(cell.queries)
    q = queries.reshape(1, *queries.shape)
    for layer in cell.layers:
        q = emit(layer, graph, q, keys, values)
    return emit(cell.embed, graph, emit(cell.norm, graph, q))


@emit.register
def _(cell: sentence_mask.SentenceMaskAlignment, graph, y, q, sentence):
    """The aligned pixels."""
    proposals = y @ (q * cell.scale).transpose(0, 2, 1)
    asked = linear(graph, sentence, *scaled(cell.w_g, cell.scale))  # (B, C_d)
    similarity = emit(cell.w_q, graph, q) @ asked.reshape(*asked.shape, 1)
    weights = similarity.apply("Softmax", axis=1)  # (B, N, 1)
    return softmax(proposals) @ (weights * q)


@emit.register
def _(cell: sentence_mask.ExistenceHead, graph, pixels, coarse, sentence):
    b, c, h, w = pixels.shape
    coarse = coarse.reshape(b, 1, h * w)
    found = (softmax(coarse) @ pixels.reshape(b, c, h * w).transpose(0, 2, 1)).reshape(b, c)
    matched = emit(cell.of_pixels, graph, found) * emit(cell.of_sentence, graph, sentence)
    surest, area = (value.reshape(b, 1) for value in (
        coarse.reduce("ReduceMax", 2), coarse.apply("Sigmoid").reduce("ReduceMean", 2)))
    hidden = emit(cell.hidden, graph, graph.concat([matched, found, surest, area], 1)).apply("Relu")
    return emit(cell.decide, graph, hidden).reshape(b)


@emit.register
def _(cell: guided_filter.Separable, graph, x):
    return graph.value(cell.rows) @ (x @ cell.columns)


@emit.register
def _(cell: guided_filter.GuidedFilter, graph, coarse, image):
    colours = emit(cell.pool, graph, image)
    mean, inverse = _colour_statistics(cell, graph, colours, image)
    mask = coarse.apply("Sigmoid") - 0.5
    mask_mean = emit(cell.window, graph, mask)
    r, g, b = (emit(cell.window, graph, colours * mask) - mean * mask_mean).split(3, 1)
    rr, rg, rb, gg, gb, bb = inverse
    a = graph.concat([rr * r + rg * g + rb * b, rg * r + gg * g + gb * b, rb * r + gb * g + bb * b], 1)
    b = mask_mean - (a * mean).reduce("ReduceSum", 1)
    fit_a = emit(cell.spread_window, graph, a)
    fit_b = emit(cell.spread_window, graph, b)
    return ((fit_a * image).reduce("ReduceSum", 1) + fit_b) * cell.steepness


def _colour_statistics(cell, graph, colours, image):
    """Mean (B, 3, h, w) and the six entries of the inverse covariance, each (B, 1, h, w)."""
    mean = emit(cell.window, graph, colours)
    moments = emit(cell.pool_window, graph, _products(graph, *image.split(3, 1)))
    rr, rg, rb, gg, gb, bb = (moments - _products(graph, *mean.split(3, 1))).split(6, 1)
    rr, gg, bb = rr + cell.eps, gg + cell.eps, bb + cell.eps
    adjugate = (gg * bb - gb * gb, gb * rb - rg * bb, rg * gb - gg * rb,
                rr * bb - rb * rb, rb * rg - rr * gb, rr * gg - rg * rg)
    scale = 1.0 / (rr * adjugate[0] + rg * adjugate[1] + rb * adjugate[2])
    return mean, [scale * part for part in adjugate]


def _products(graph, r, g, b):
    return graph.concat([r * r, r * g, r * b, g * g, g * b, b * b], 1)


@emit.register
def _(cell: coupalign.CoupAlign, graph, image, ids, word_mask):
    """The outputs by name; the heads that only training needs are left out."""
    stages, words = emit(cell.encoder, graph, image, ids, word_mask)
    pixels = y = emit(cell.decoder, graph, stages)
    if cell.alignment is not None:
        b, c, h, w = y.shape
        masks = emit(cell.generator, graph, stages[cell.query_stage])
        tokens = y.reshape(b, c, h * w).transpose(0, 2, 1)
        aligned = emit(cell.alignment, graph, tokens, masks, words.take(0, 1))
        pixels = graph.concat([y, aligned.transpose(0, 2, 1).reshape(*y.shape)], 1)
    coarse = emit(cell.head, graph, pixels)
    logits = emit(cell.to_input_size, graph, coarse) if cell.guided is None else emit(cell.guided, graph, coarse, image)
    if cell.existence_head is None:
        return {"logits": logits}
    return {"logits": logits, "has_target": emit(cell.existence_head, graph, pixels, coarse, words.take(0, 1))}


def to_onnx(network: coupalign.CoupAlign, data: DataConfig, uint8: bool = False) -> onnx.ModelProto:
    """The network as a model in float32.

    Args:
        data: says the size of the image, its normalisation and the number of word pieces.
        uint8: the image is (B, H, W, 3) uint8 and the graph normalises it.
    """
    graph, size, words = Graph(), data.image_size, (None, data.max_tokens)
    if uint8:
        pixels = graph.input("image", TensorProto.UINT8, (None, size, size, 3))
        image = normalise(pixels, data.mean, data.std)
    else:
        image = graph.input("image", TensorProto.FLOAT, (None, 3, size, size))
    ids = graph.input("ids", TensorProto.INT32, words)
    word_mask = graph.input("word_mask", TensorProto.INT32, words)
    return graph.model(emit(network, graph, image, ids, word_mask), __version__)


def normalise(pixels: Value, mean, std) -> Value:
    """As ``ImageTransform`` does it: (B, H, W, 3) uint8 -> (B, 3, H, W) float32."""
    mean, std = (np.asarray(values, np.float32).reshape(1, 3, 1, 1) for values in (mean, std))
    return pixels.cast(TensorProto.FLOAT).transpose(0, 3, 1, 2) * (1 / (255 * std)) + -mean / std
