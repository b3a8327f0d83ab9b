"""Darknet-53 (Redmon & Farhadi, YOLOv3, 2018) as four stages at strides 4, 8, 16, 32, for a fixed input size.

Shapes: image (B, 3, H, W); stage i tokens (B, P_i, C_i), P_i = H·W / 4^(i+1), C_i = width · 2^(i-1), width 128.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from mindspore import nn

from mindspore_coupalign.models.backbones.cnn import (
    Cnn,
    CnnSettings,
    CnnStage,
    ConvNorm,
    batch_norm,
    stage_sizes,
)
from mindspore_coupalign.models.backbones.published import BATCH_COUNT, Source
from mindspore_coupalign.models.parts import Rule, register


@dataclass(frozen=True)
class DarknetSettings(CnnSettings):
    name: str = "darknet"
    embed_dim: int = 128  # channels of stage 1; each stage doubles them
    depths: tuple[int, ...] = (2, 8, 8, 4)  # blocks of each stage (Darknet-53)
    negative_slope: float = 0.1  # of the leaky ReLUs: 0.1 in darknet's own weights, 0.01 in timm's

    def rules(self, prefix: str) -> Iterator[Rule]:
        yield from super().rules(prefix)
        yield 0 <= self.negative_slope < 1, f"{prefix}.negative_slope must be in 0..1"

    def weights_settings(self) -> dict:
        return {"slope": self.negative_slope}  # under the name that converted files have had from the beginning


class DarkBlock(nn.Cell):
    """1×1 convolution to half the channels, 3×3 back, with a residual: (B, C, H, W) -> (B, C, H, W)."""

    recomputable = True

    def __init__(self, channels: int, size: tuple, norm, slope: float):
        super().__init__()
        self.conv1 = ConvNorm(channels, channels // 2, 1, 1, size, norm, slope)
        self.conv2 = ConvNorm(channels // 2, channels, 3, 1, size, norm, slope)

    def construct(self, x):
        return x + self.conv2(self.conv1(x))


PUBLISHED = (
    Source("Darknet-53, timm names", "stages.0.conv_down.conv.weight", (  # its first stage is part of our stem
        BATCH_COUNT,
        (r"stem\.conv1\.(conv|bn)\.(.+)", r"embed.blocks.0.\1.\2"),
        (r"stages\.0\.conv_down\.(.+)", r"embed.blocks.1.\1"),
        (r"stages\.0\.blocks\.0\.(.+)", r"embed.blocks.2.\1"),
        (r"stages\.1\.conv_down\.(.+)", r"embed.blocks.3.\1"),
        *((rf"stages\.{k}\.conv_down\.(.+)", rf"downsamples.{k - 2}.blocks.0.\1") for k in (2, 3, 4)),
        *((rf"stages\.{k}\.(blocks\.\d+\..+)", rf"stages.{k - 1}.\1") for k in (1, 2, 3, 4)),
        (r"head\..+", None)), settings=(("negative_slope", 0.01),)),)


@register("backbone", DarknetSettings)
class Darknet(Cnn):
    """The backbone for images of ``size`` (H, W)."""

    published = PUBLISHED

    def __init__(self, settings: DarknetSettings, *, size: tuple):
        width, depths, slope = settings.embed_dim, settings.depths, settings.negative_slope
        norm, sizes, channels = batch_norm(settings.freeze_batch_norm), stage_sizes(size), settings.channels
        half = (size[0] // 2, size[1] // 2)
        embed = CnnStage(None, [ConvNorm(3, width // 4, 3, 1, size, norm, slope),
                                ConvNorm(width // 4, width // 2, 3, 2, size, norm, slope),
                                DarkBlock(width // 2, half, norm, slope),
                                ConvNorm(width // 2, width, 3, 2, half, norm, slope)])
        stages = [CnnStage(sizes[i], [DarkBlock(channels[i], sizes[i], norm, slope) for _ in range(depths[i])])
                  for i in range(4)]
        downsamples = [CnnStage(sizes[i], [ConvNorm(channels[i], channels[i + 1], 3, 2, sizes[i], norm, slope)])
                       for i in range(3)]
        super().__init__(embed, stages, downsamples, channels, sizes)

    def kernels(self) -> dict:
        """Name -> kernel shape of each convolution in order of computation, as darknet's own format stores them."""
        order = ["embed", "stages.0"] + [name for i in range(3) for name in (f"downsamples.{i}", f"stages.{i + 1}")]
        units = {name: cell.conv.weight.shape for name, cell in self.cells_and_names() if isinstance(cell, ConvNorm)}
        return {name: shape for part in order for name, shape in units.items() if name.startswith(part + ".")}
