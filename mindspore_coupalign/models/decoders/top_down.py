"""The pixel decoder: top-down over the four stages, coarse features joined with the next finer ones.

Shapes: S_i (B, P_i, C_i); Y (B, C_d, H/4, W/4) pixel embedding.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from mindspore import nn, ops

from mindspore_coupalign.models.layers import ConvNormRelu, Resize, TokensToMap
from mindspore_coupalign.models.parts import DecoderSettings, Rule, register


@dataclass(frozen=True)
class TopDownSettings(DecoderSettings):
    name: str = "top_down"
    dim: int = 256  # channels of the pixel embedding and the mask embeddings

    def rules(self, prefix: str) -> Iterator[Rule]:
        yield from super().rules(prefix)
        yield (self.dim % (8 if self.dim <= 256 else 32) == 0,
               f"{prefix}.dim must be a multiple of 8, above 256 of 32 (its group norms)")


@register("decoder", TopDownSettings)
class PixelDecoder(nn.Cell):
    """Upsample, concatenate the next finer stage, two 3×3 convolutions; from stride 32 to stride 4."""

    def __init__(self, settings: TopDownSettings, *, channels: list, sizes: list):
        super().__init__()
        dim = settings.dim
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
