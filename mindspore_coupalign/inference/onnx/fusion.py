"""The ONNX form of what joins pixels and words: CoupAlign's word-pixel alignment and LAVT's attention.

Shapes as in models/encoder.py and lavt.py: v (B, P, C) pixels; words (B, T, D); bias (B, 1, 1, T); S_i (B, P_i, C_i).
"""

import math

from mindspore_coupalign.inference.onnx.encoders import padding_bias
from mindspore_coupalign.inference.onnx.layers import (
    emit,
    linear,
    merge_heads,
    scaled,
    softmax,
    split_heads,
    transposed_heads,
)
from mindspore_coupalign.models import encoder, lavt, word_pixel


@emit.register
def _(cell: word_pixel.Gate, graph, x):
    return emit(cell.tanh, graph, emit(cell.w2, graph, emit(cell.w1, graph, x).apply("Relu")))


@emit.register
def _(cell: word_pixel.WordPixelAlignment, graph, v, words, bias):
    """The fused v and the fused words."""
    heads = cell.split.heads
    pixels, text = emit(cell.norm_v, graph, v), emit(cell.norm_l, graph, words)
    q, k = linear(graph, pixels, *scaled(cell.w_v, cell.scale)), emit(cell.w_l, graph, text)
    over_words = softmax(split_heads(q, heads) @ transposed_heads(k, heads) + bias)
    over_pixels = softmax(split_heads(k, heads) @ transposed_heads(q, heads))
    to_v = merge_heads(over_words @ split_heads(emit(cell.w_lv, graph, text), heads))
    to_l = merge_heads(over_pixels @ split_heads(emit(cell.w_vl, graph, pixels), heads))
    to_v, to_l = emit(cell.w_ov, graph, to_v), emit(cell.w_ol, graph, to_l)
    return v + emit(cell.gate_v, graph, to_v) * to_v, words + emit(cell.gate_l, graph, to_l) * to_l


@emit.register
def _(cell: encoder.FusedEncoder, graph, image, ids, word_mask):
    """(S_1..S_4), the fused words."""
    v, words = emit(cell.vision.embed, graph, image), emit(cell.text.embed, graph, ids)
    bias = padding_bias(word_mask)
    stages = []
    for i in range(4):
        v = emit(cell.vision.stages[i], graph, v)
        words = emit(cell.text.groups[i], graph, words, bias)
        if cell.aligned[i]:
            v, words = emit(cell.wpa[cell.slot[i]], graph, v, words, bias)
        stages.append(emit(cell.vision.outputs[i], graph, v))
        if i < 3:
            v = emit(cell.vision.downsamples[i], graph, v)
    return stages, words


@emit.register
def _(cell: lavt.InstanceNorm, graph, x):
    x = x - x.reduce("ReduceMean", 1)
    return x / ((x * x).reduce("ReduceMean", 1) + 1e-5).apply("Sqrt")


@emit.register
def _(cell: lavt.PixelWordAttention, graph, v, words, bias):
    """F_i."""
    q = emit(cell.norm_q, graph, emit(cell.w_q, graph, v)) * cell.scale
    scores = q @ emit(cell.w_k, graph, words).transpose(0, 2, 1)
    over_words = softmax(scores + bias.reshape(None, 1, math.prod(bias.shape[1:])))
    gathered = emit(cell.norm_w, graph, emit(cell.w_w, graph, over_words @ emit(cell.w_v, graph, words)))
    return emit(cell.w_o, graph, emit(cell.w_m, graph, v).apply("Relu") * gathered).apply("Relu")


@emit.register
def _(cell: lavt.LavtEncoder, graph, image, ids, word_mask):
    """(F_1..F_4), the words."""
    v, words = emit(cell.vision.embed, graph, image), emit(cell.text.embed, graph, ids)
    bias = padding_bias(word_mask)
    for group in cell.text.groups:
        words = emit(group, graph, words, bias)
    stages = []
    for i in range(4):
        v = emit(cell.vision.stages[i], graph, v)
        fused = emit(cell.attend[i], graph, v, words, bias)
        stages.append(emit(cell.vision.outputs[i], graph, fused))
        if i < 3:
            v = emit(cell.vision.downsamples[i], graph, v + emit(cell.gates[i], graph, fused) * fused)
    return stages, words
