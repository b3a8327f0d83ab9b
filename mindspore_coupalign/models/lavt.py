"""LAVT's encoder (Yang et al., CVPR 2022, sections 3.1 and 3.2): the baseline that the paper compares with.

After each vision stage the pixels gather from the words ("pixel-word attention"), and a gate lets the result into the
next stage; the words never change. Written from the paper. The decoder and the losses are this project's, the same as
CoupAlign's, so that the two differ in the fusion alone (no mask generator, no sentence-mask alignment).

Shapes: image (B, 3, H, W); ids, word_mask (B, T); V_i, F_i (B, P_i, C_i); words (B, T, D); attention (B, 1, P_i, T).
"""

import math

from mindspore import nn, ops

from mindspore_coupalign.mindspore_calls import expand_dims
from mindspore_coupalign.models.bert import padding_bias
from mindspore_coupalign.models.layers import Product, dense
from mindspore_coupalign.models.word_pixel import Gate


class InstanceNorm(nn.Cell):
    """Each channel of each sample to mean 0 and variance 1 over the positions: (B, P, C) -> (B, P, C)."""

    def construct(self, x):
        x = x - x.mean(1, keep_dims=True)
        return x * ops.rsqrt((x * x).mean(1, keep_dims=True) + 1e-5)


class PixelWordAttention(nn.Cell):
    """``construct(v, words, bias)`` returns F_i (B, P, C) and the pixels' attention over the words (B, 1, P, T)."""

    def __init__(self, pixel_dim: int, word_dim: int):
        super().__init__()
        self.scale = 1.0 / math.sqrt(pixel_dim)
        self.w_q, self.w_w = dense(pixel_dim, pixel_dim), dense(pixel_dim, pixel_dim)
        self.w_k, self.w_v = dense(word_dim, pixel_dim), dense(word_dim, pixel_dim)
        self.w_m, self.w_o = dense(pixel_dim, pixel_dim), dense(pixel_dim, pixel_dim)
        self.norm_q, self.norm_w = InstanceNorm(), InstanceNorm()
        self.scores, self.mix = Product(transposed=True), Product()
        self.softmax = nn.Softmax(-1)

    def construct(self, v, words, bias):
        scores = self.scores(self.norm_q(self.w_q(v)) * self.scale, self.w_k(words))
        over_words = self.softmax(scores + bias.reshape((bias.shape[0], 1, bias.shape[3])))
        gathered = self.norm_w(self.w_w(self.mix(over_words, self.w_v(words))))
        fused = ops.relu(self.w_o(ops.relu(self.w_m(v)) * gathered))
        return fused, expand_dims(over_words, 1)


class LavtEncoder(nn.Cell):
    """Returns (F_1..F_4), the words, and the word attention of each stage: FusedEncoder's protocol."""

    def __init__(self, vision, text, gate_bias_init: float = 0.0):
        super().__init__()
        self.vision = vision
        self.text = text
        self.attend = nn.CellList([PixelWordAttention(c, text.hidden) for c in vision.channels])
        self.gates = nn.CellList([Gate(c, gate_bias_init, bias=True) for c in vision.channels[:3]])  # none follows

    def construct(self, image, ids, word_mask):
        v = self.vision.embed(image)
        words = self.text(ids, word_mask)
        bias = padding_bias(word_mask, words.dtype)
        stages, attention = (), ()
        for i in range(4):
            v = self.vision.stages[i](v)
            fused, over_words = self.attend[i](v, words, bias)
            stages += (self.vision.outputs[i](fused),)
            attention += (over_words,)
            if i < 3:
                v = self.vision.downsamples[i](v + self.gates[i](fused) * fused)
        return stages, words, attention
