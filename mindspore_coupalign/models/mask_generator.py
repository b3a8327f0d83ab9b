"""The mask generator: learned queries become mask embeddings.

Shapes: features (B, P, C) of one stage; Q (B, N, C_d) mask embeddings.
"""

from mindspore import nn, ops

from mindspore_coupalign.mindspore_calls import expand_dims
from mindspore_coupalign.models.layers import (
    Attention,
    Mlp,
    dense,
    embedding_table,
    layer_norm,
    sine_positions,
)


class QueryLayer(nn.Cell):
    """Self-attention, cross-attention and feed-forward, each on normalised input with a residual: (B, N, C_d)."""

    def __init__(self, dim: int, heads: int, ffn: int):
        super().__init__()
        self.norm1, self.self_attention = layer_norm(dim), Attention(dim, heads)
        self.norm2, self.cross_attention = layer_norm(dim), Attention(dim, heads)
        self.norm3, self.mlp = layer_norm(dim), Mlp(dim, ffn, "relu")

    def construct(self, q, keys, values):
        x = self.norm1(q)
        q = q + self.self_attention(x, x, x)
        q = q + self.cross_attention(self.norm2(q), keys, values)
        return q + self.mlp(self.norm3(q))


class MaskGenerator(nn.Cell):
    """N learned queries read one stage's features and become N mask embeddings: (B, P, C) -> (B, N, C_d)."""

    def __init__(self, channels: int, size: tuple, dim: int, queries: int, layers: int, heads: int, ffn: int):
        super().__init__()
        self.queries = embedding_table(queries, dim)
        self.project = dense(channels, dim)
        self.positions = sine_positions(size, dim)
        self.layers = nn.CellList([QueryLayer(dim, heads, ffn) for _ in range(layers)])
        self.norm = layer_norm(dim)
        self.embed = Mlp(dim, dim, "relu")

    def construct(self, features):
        values = self.project(features)
        keys = values + self.positions
        q = ops.tile(expand_dims(self.queries, 0), (features.shape[0], 1, 1))
        for layer in self.layers:
            q = layer(q, keys, values)
        return self.embed(self.norm(q))
