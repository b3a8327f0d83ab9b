"""WPA, word-pixel alignment: pixels and words attend to each other over one affinity (method of CoupAlign, section 3).

Shapes: v (B, P, C) pixels; l (B, T, D) words; bias (B, 1, 1, T), -1e4 on padded words; A (B, h, P, T).
"""

import math

from mindspore import nn, ops
from mindspore.common.initializer import Constant

from mindspore_coupalign.models.layers import MergeHeads, Product, SplitHeads, Tanh, dense, layer_norm


class Gate(nn.Cell):
    """tanh(W2 relu(W1 x) + b): how much of the other modality is let in, per channel. (B, P, C) -> (B, P, C).

    b starts at ``bias_init``. W1 has a ``bias`` in LAVT alone.
    """

    def __init__(self, dim: int, bias_init: float = 0.0, bias: bool = False):
        super().__init__()
        self.w1 = dense(dim, dim, bias=bias)
        self.w2 = nn.Dense(dim, dim, weight_init="XavierUniform", bias_init=Constant(bias_init))
        self.tanh = Tanh()

    def construct(self, x):
        return self.tanh(self.w2(ops.relu(self.w1(x))))


class WordPixelAlignment(nn.Cell):
    """Bidirectional cross-attention with gated residuals.

    ``construct(v, l, bias)`` returns the fused v (B, P, C), the fused l (B, T, D) and the pixels' attention over words
    (B, h, P, T).
    """

    def __init__(self, pixel_dim: int, word_dim: int, heads: int, gate_bias_init: float = 0.0):
        super().__init__()
        self.scale = 1.0 / math.sqrt(pixel_dim // heads)
        self.norm_v = layer_norm(pixel_dim)
        self.norm_l = layer_norm(word_dim)
        self.w_v = dense(pixel_dim, pixel_dim)
        self.w_l = dense(word_dim, pixel_dim)
        self.w_lv = dense(word_dim, pixel_dim)
        self.w_vl = dense(pixel_dim, pixel_dim)
        self.w_ov = dense(pixel_dim, pixel_dim)
        self.w_ol = dense(pixel_dim, word_dim)
        self.gate_v = Gate(pixel_dim, gate_bias_init)
        self.gate_l = Gate(word_dim, gate_bias_init)
        self.split = SplitHeads(heads)
        self.merge = MergeHeads()
        self.affinity, self.mix = Product(transposed=True), Product()
        self.softmax = nn.Softmax(-1)

    def construct(self, v, l, bias):  # noqa: E741
        pixels, words = self.norm_v(v), self.norm_l(l)
        q, k = self.split(self.w_v(pixels) * self.scale), self.split(self.w_l(words))
        over_words = self.softmax(self.affinity(q, k) + bias)  # (B, h, P, T)
        over_pixels = self.softmax(self.affinity(k, q))  # (B, h, T, P)
        to_v = self.w_ov(self.merge(self.mix(over_words, self.split(self.w_lv(words)))))
        to_l = self.w_ol(self.merge(self.mix(over_pixels, self.split(self.w_vl(pixels)))))
        return v + self.gate_v(to_v) * to_v, l + self.gate_l(to_l) * to_l, over_words
