"""LAVT's pixel-word attention (Yang et al., CVPR 2022, sections 3.1 and 3.2), written from the paper.

After a vision stage the pixels gather from the words, and a gate lets the result into the next stage; the words never
change. With this project's decoder and losses it is the controlled comparison: the two networks differ in the fusion
and the sentence-mask alignment alone.

Shapes: v (B, P, C) pixels; words (B, T, D); bias (B, 1, 1, T), -1e4 on padded words; attention (B, 1, P, T).
"""

import math
from dataclasses import dataclass

from mindspore import nn, ops

from mindspore_coupalign.mindspore_calls import expand_dims
from mindspore_coupalign.models.fusion.word_pixel import Gate
from mindspore_coupalign.models.layers import Product, dense
from mindspore_coupalign.models.parts import FusionSettings, register


@dataclass(frozen=True)
class PixelWordSettings(FusionSettings):
    name: str = "pixel_word"
    gate_bias_init: float = 0.0  # initial bias of the gates; 1 lets the words in at once


class InstanceNorm(nn.Cell):
    """Each channel of each sample to mean 0 and variance 1 over the positions: (B, P, C) -> (B, P, C)."""

    amp_rule = "sensitive"

    def construct(self, x):
        x = x - x.mean(1, keep_dims=True)
        return x * ops.rsqrt((x * x).mean(1, keep_dims=True) + 1e-5)


@register("fusion", PixelWordSettings)
class PixelWordAttention(nn.Cell):
    """``construct(v, words, bias)`` returns the gated v for the next stage, the words, the stage's output (B, P, C) and
    the pixels' attention over the words."""

    text_first = True  # the words are complete before they meet a pixel
    amp_rule = "float32_at_O1"  # it reads the residual stream without a norm

    def __init__(self, settings: PixelWordSettings, *, stage: int, pixel_dim: int, word_dim: int):
        super().__init__()
        self.scale = 1.0 / math.sqrt(pixel_dim)
        self.pixel_query, self.gathered = dense(pixel_dim, pixel_dim), dense(pixel_dim, pixel_dim)
        self.word_key, self.word_value = dense(word_dim, pixel_dim), dense(word_dim, pixel_dim)
        self.pixels, self.out = dense(pixel_dim, pixel_dim), dense(pixel_dim, pixel_dim)
        self.query_norm, self.gathered_norm = InstanceNorm(), InstanceNorm()
        self.scores, self.mix = Product(transposed=True), Product()
        self.softmax = nn.Softmax(-1)
        self.gate = Gate(pixel_dim, settings.gate_bias_init, bias=True) if stage < 4 else None  # no stage follows

    def construct(self, v, words, bias):
        scores = self.scores(self.query_norm(self.pixel_query(v)) * self.scale, self.word_key(words))
        over_words = self.softmax(scores + bias.reshape((bias.shape[0], 1, bias.shape[3])))
        gathered = self.gathered_norm(self.gathered(self.mix(over_words, self.word_value(words))))
        fused = ops.relu(self.out(ops.relu(self.pixels(v)) * gathered))
        if self.gate is not None:
            v = v + self.gate(fused) * fused
        return v, words, fused, expand_dims(over_words, 1)
