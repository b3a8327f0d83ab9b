"""Heads beside the mask head: two whose masks only losses read, and target presence.

Shapes: proposals Z (B, P, N); weights a (B, N); pixels (B, 2 C_d, h, w) pixel embedding and aligned pixels; coarse
(B, 1, h, w) their mask's logits; sentence (B, D).
"""

import mindspore as ms
from mindspore import nn, ops

from mindspore_coupalign.mindspore_calls import expand_dims
from mindspore_coupalign.models.layers import Product, dense


def stage_heads(channels: list) -> nn.CellList:
    """A linear head on each of the first two stages, (B, P_i, C_i) -> (B, P_i, 1), for deep supervision."""
    return nn.CellList([nn.Dense(c, 1, bias_init="zeros") for c in channels[:2]])


class ProposalHead(nn.Cell):
    """The proposals under the sentence's weights as one mask, for a loss that teaches the alignment directly: logits
    gain · (Z · a) + offset (B, P, 1)."""

    def __init__(self):
        super().__init__()
        self.gain = ms.Parameter(ms.Tensor([4.0], ms.float32))
        self.offset = ms.Parameter(ms.Tensor([-2.0], ms.float32))  # most pixels are outside
        self.mix = Product()

    def construct(self, proposals, weights):
        return self.gain * self.mix(proposals, expand_dims(weights, -1)) + self.offset


class TargetHead(nn.Cell):
    """Target presence, whether the image has what the sentence refers to: logits (B,), positive where it does.

    It compares the sentence with the pixels that match it best, pooled by the mask's own logits, beside that mask's
    highest logit and area. Its gradient stops at its inputs: its loss changes its own parameters alone, and no mask.
    """

    def __init__(self, dim: int, word_dim: int):
        super().__init__()
        self.of_pixels, self.of_sentence = dense(2 * dim, dim), dense(word_dim, dim)
        self.hidden, self.decide = dense(3 * dim + 2, dim), dense(dim, 1)
        self.over_pixels, self.pool, self.relu = nn.Softmax(-1), Product(transposed=True), nn.ReLU()

    def construct(self, pixels, coarse, sentence):
        pixels, coarse, sentence = ops.stop_gradient(pixels), ops.stop_gradient(coarse), ops.stop_gradient(sentence)
        b, c, h, w = pixels.shape
        coarse = coarse.reshape((b, 1, h * w))
        pooled = self.pool(self.over_pixels(coarse), pixels.reshape((b, c, h * w))).reshape((b, c))
        matched = self.of_pixels(pooled) * self.of_sentence(sentence)
        highest, area = ops.amax(coarse, -1), ops.sigmoid(coarse).mean(-1)  # (B, 1)
        features = ops.concat((matched, pooled.astype(matched.dtype), highest.astype(matched.dtype),
                               area.astype(matched.dtype)), 1)
        return self.decide(self.relu(self.hidden(features))).reshape((b,))
