"""WPA, word-pixel alignment: pixels and words attend to each other over one affinity (method of CoupAlign, section 3).

Shapes: v (B, P, C) pixels; l (B, T, D) words; bias (B, 1, 1, T), -1e4 on padded words; A (B, h, P, T).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from mindspore import nn, ops
from mindspore.common.initializer import Constant

from mindspore_coupalign.models.layers import MergeHeads, Product, SplitHeads, Tanh, dense, layer_norm
from mindspore_coupalign.models.parts import FusionSettings, Rule, register


@dataclass(frozen=True)
class WordPixelSettings(FusionSettings):
    name: str = "word_pixel"
    stages: tuple[int, ...] = (1, 2, 3, 4)  # those with word-pixel alignment (supplement, Table 3)
    heads: tuple[int, ...] = (4, 8, 16, 32)  # of attention, at each stage
    gate_bias_init: float = 0.0  # initial bias of the gates; 1 lets the words in at once

    def rules(self, prefix: str) -> Iterator[Rule]:
        yield from super().rules(prefix)
        yield len(self.heads) == 4 and min(self.heads) >= 1, f"{prefix}.heads needs four positive numbers"

    def rules_for(self, prefix: str, channels: list[int], word_dim: int) -> Iterator[Rule]:
        for i, (heads, dim) in enumerate(zip(self.heads, channels, strict=True)):
            yield dim % heads == 0, f"{prefix}.heads[{i}]={heads} does not divide the stage's {dim} channels"


class Gate(nn.Cell):
    """tanh(W2 relu(W1 x) + b): how much of the other modality is let in, per channel. (B, P, C) -> (B, P, C).

    b starts at ``bias_init``. W1 has a ``bias`` in LAVT's paper alone.
    """

    def __init__(self, dim: int, bias_init: float = 0.0, bias: bool = False):
        super().__init__()
        self.hidden = dense(dim, dim, bias=bias)
        self.out = nn.Dense(dim, dim, weight_init="XavierUniform", bias_init=Constant(bias_init))
        self.tanh = Tanh()

    def construct(self, x):
        return self.tanh(self.out(ops.relu(self.hidden(x))))


@register("fusion", WordPixelSettings)
class WordPixelAlignment(nn.Cell):
    """Bidirectional cross-attention with gated residuals: both modalities continue fused.

    ``construct(v, l, bias)`` returns the fused v (B, P, C), the fused l (B, T, D), the stage's output (the fused v) and
    the pixels' attention over words (B, h, P, T).
    """

    def __init__(self, settings: WordPixelSettings, *, stage: int, pixel_dim: int, word_dim: int):
        super().__init__()
        heads = settings.heads[stage - 1]
        self.scale = 1.0 / math.sqrt(pixel_dim // heads)
        self.pixel_norm = layer_norm(pixel_dim)
        self.word_norm = layer_norm(word_dim)
        self.pixel_query = dense(pixel_dim, pixel_dim)
        self.word_key = dense(word_dim, pixel_dim)
        self.word_value = dense(word_dim, pixel_dim)
        self.pixel_value = dense(pixel_dim, pixel_dim)
        self.pixel_out = dense(pixel_dim, pixel_dim)
        self.word_out = dense(pixel_dim, word_dim)
        self.pixel_gate = Gate(pixel_dim, settings.gate_bias_init)
        self.word_gate = Gate(word_dim, settings.gate_bias_init)
        self.split = SplitHeads(heads)
        self.merge = MergeHeads()
        self.affinity, self.mix = Product(transposed=True), Product()
        self.softmax = nn.Softmax(-1)

    def construct(self, v, l, bias):  # noqa: E741
        pixels, words = self.pixel_norm(v), self.word_norm(l)
        q, k = self.split(self.pixel_query(pixels) * self.scale), self.split(self.word_key(words))
        over_words = self.softmax(self.affinity(q, k) + bias)  # (B, h, P, T)
        over_pixels = self.softmax(self.affinity(k, q))  # (B, h, T, P)
        to_v = self.pixel_out(self.merge(self.mix(over_words, self.split(self.word_value(words)))))
        to_l = self.word_out(self.merge(self.mix(over_pixels, self.split(self.pixel_value(pixels)))))
        v = v + self.pixel_gate(to_v) * to_v
        return v, l + self.word_gate(to_l) * to_l, v, over_words
