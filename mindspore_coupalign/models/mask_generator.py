"""The top-down decoder and the mask generator.

Shapes: S_i (B, P_i, C_i); Y (B, C_d, H/4, W/4) pixel embedding; Q (B, N, C_d) mask embeddings.
"""

from mindspore import nn, ops

from mindspore_coupalign.mindspore_calls import expand_dims
from mindspore_coupalign.models.layers import (
    Attention,
    ConvNormRelu,
    Mlp,
    Resize,
    TokensToMap,
    dense,
    embedding_table,
    layer_norm,
    sine_positions,
)


class PixelDecoder(nn.Cell):
    """Upsample, concatenate the next finer stage, two 3×3 convolutions; from stride 32 to stride 4."""

    def __init__(self, channels: list, sizes: list, dim: int):
        super().__init__()
        self.to_map = nn.CellList([TokensToMap(size) for size in sizes])
        self.resize = nn.CellList([Resize(size) for size in sizes[:3]])
        self.fuse = nn.CellList([
            nn.SequentialCell(ConvNormRelu((channels[3] if i == 2 else dim) + channels[i], dim), ConvNormRelu(dim, dim))
            for i in range(3)])

    def construct(self, stages):
        y = self.to_map[3](stages[3])
        for i in (2, 1, 0):
            finer = self.to_map[i](stages[i])
            y = self.fuse[i](ops.concat((self.resize[i](y).astype(finer.dtype), finer), 1))
        return y


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
