"""Darknet-53 (Redmon & Farhadi, YOLOv3, 2018) as four stages at strides 4, 8, 16, 32, for a fixed input size.

Shapes: image (B, 3, H, W); stage i tokens (B, P_i, C_i), P_i = H·W / 4^(i+1), C_i = width · 2^(i-1), width 128.
"""

from mindspore import nn

from mindspore_coupalign.models.cnn import Cnn, CnnStage, ConvNorm, stage_sizes


class DarkBlock(nn.Cell):
    """1×1 convolution to half the channels, 3×3 back, with a residual: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, size: tuple, norm, slope: float):
        super().__init__()
        self.conv1 = ConvNorm(channels, channels // 2, 1, 1, size, norm, slope)
        self.conv2 = ConvNorm(channels // 2, channels, 3, 1, size, norm, slope)

    def construct(self, x):
        return x + self.conv2(self.conv1(x))


def darknet(size: tuple, width: int, depths, norm, slope: float) -> Cnn:
    """The backbone; ``width`` channels at stage 1 (128), ``depths`` (2, 8, 8, 4) for Darknet-53.

    Args:
        slope: of the leaky ReLUs: 0.1 in darknet's own weights, 0.01 in timm's.
    """
    sizes, channels = stage_sizes(size), [width * 2**i for i in range(4)]
    half = (size[0] // 2, size[1] // 2)
    embed = CnnStage(None, [ConvNorm(3, width // 4, 3, 1, size, norm, slope),
                            ConvNorm(width // 4, width // 2, 3, 2, size, norm, slope),
                            DarkBlock(width // 2, half, norm, slope),
                            ConvNorm(width // 2, width, 3, 2, half, norm, slope)])
    stages = [CnnStage(sizes[i], [DarkBlock(channels[i], sizes[i], norm, slope) for _ in range(depths[i])])
              for i in range(4)]
    downsamples = [CnnStage(sizes[i], [ConvNorm(channels[i], channels[i + 1], 3, 2, sizes[i], norm, slope)])
                   for i in range(3)]
    return Cnn(embed, stages, downsamples, channels, sizes)
