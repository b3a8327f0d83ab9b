"""SMA, sentence-mask alignment: the sentence weighs the mask proposals, which are then projected onto the pixels.

Shapes: y (B, P, C_d) pixel embedding; q (B, N, C_d) mask embeddings; sentence (B, D); proposals Z (B, P, N);
weights a (B, N).
"""

import math

from mindspore import nn

from mindspore_coupalign.mindspore_calls import expand_dims
from mindspore_coupalign.models.layers import Product, dense


class SentenceMaskAlignment(nn.Cell):
    """Returns the aligned pixels Y~ = softmax_N(Z) · (a * Q) (B, P, C_d), the proposals Z and the weights a."""

    def __init__(self, dim: int, word_dim: int):
        super().__init__()
        self.scale = 1.0 / math.sqrt(dim)
        self.mask_key = dense(dim, dim)
        self.sentence_query = dense(word_dim, dim)
        self.similarity, self.mix = Product(transposed=True), Product()
        self.over_masks, self.over_proposals = nn.Softmax(1), nn.Softmax(-1)

    def construct(self, y, q, sentence):
        proposals = self.similarity(y, q) * self.scale
        asked = expand_dims(self.sentence_query(sentence) * self.scale, 1)
        weights = self.over_masks(self.similarity(self.mask_key(q), asked))  # (B, N, 1)
        aligned = self.mix(self.over_proposals(proposals), weights * q)
        return aligned, proposals, weights.reshape(weights.shape[:2])
