"""SMA, sentence-mask alignment: the sentence weighs the mask proposals, which are then projected onto the pixels.

Shapes: y (B, P, C_d) pixel embedding; q (B, N, C_d) mask embeddings; sentence (B, D); proposals Z (B, P, N);
weights a (B, N); pixels (B, 2 C_d, h, w) pixel embedding and aligned pixels; coarse (B, 1, h, w) their mask's logits.
"""

import math

import mindspore as ms
from mindspore import nn, ops

from mindspore_coupalign.mindspore_calls import expand_dims
from mindspore_coupalign.models.layers import Product, dense


class SentenceMaskAlignment(nn.Cell):
    """Returns the aligned pixels Y~ = softmax_N(Z) · (a * Q) (B, P, C_d), the proposals Z and the weights a."""

    def __init__(self, dim: int, word_dim: int):
        super().__init__()
        self.scale = 1.0 / math.sqrt(dim)
        self.w_q = dense(dim, dim)
        self.w_g = dense(word_dim, dim)
        self.similarity, self.mix = Product(transposed=True), Product()
        self.over_masks, self.over_proposals = nn.Softmax(1), nn.Softmax(-1)

    def construct(self, y, q, sentence):
        proposals = self.similarity(y, q) * self.scale
        asked = expand_dims(self.w_g(sentence) * self.scale, 1)
        weights = self.over_masks(self.similarity(self.w_q(q), asked))  # (B, N, 1)
        aligned = self.mix(self.over_proposals(proposals), weights * q)
        return aligned, proposals, weights.reshape(weights.shape[:2])


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


class ExistenceHead(nn.Cell):
    """Whether the sentence means anything in the picture: logits (B,), positive where it does.

    It compares the sentence with the pixels that answer it best, pooled by the mask's own logits, and knows how sure
    and how large that mask is. It only reads: its loss moves its own parameters alone, and no mask gets worse by it.
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
        found = self.pool(self.over_pixels(coarse), pixels.reshape((b, c, h * w))).reshape((b, c))
        matched = self.of_pixels(found) * self.of_sentence(sentence)
        surest, area = ops.amax(coarse, -1), ops.sigmoid(coarse).mean(-1)  # (B, 1)
        features = ops.concat((matched, found.astype(matched.dtype), surest.astype(matched.dtype),
                               area.astype(matched.dtype)), 1)
        return self.decide(self.relu(self.hidden(features))).reshape((b,))
