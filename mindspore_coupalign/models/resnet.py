"""ResNet-50/101/152 (He et al., CVPR 2016) as four stages at strides 4, 8, 16, 32, for a fixed input size.

The bottleneck strides in its 3×3 convolution, as in torchvision and Hugging Face's models ("v1.5"), whose weights fit.
Shapes: image (B, 3, H, W); stage i tokens (B, P_i, C_i), P_i = H·W / 4^(i+1), C_i = width · 2^(i-1), width 256.
"""

from mindspore import nn, ops

from mindspore_coupalign.models.cnn import Cnn, CnnStage, ConvNorm, stage_sizes


class Bottleneck(nn.Cell):
    """1×1, 3×3, 1×1 convolutions with a residual: (B, Cin, H, W) -> (B, Cout, H/stride, W/stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int, size: tuple, norm):
        super().__init__()
        inner = outputs // 4
        self.conv1 = ConvNorm(inputs, inner, 1, 1, size, norm)
        self.conv2 = ConvNorm(inner, inner, 3, stride, size, norm)
        self.conv3 = ConvNorm(inner, outputs, 1, 1, self.conv2.size, norm, slope=None)
        self.shortcut = ConvNorm(inputs, outputs, 1, stride, size, norm, slope=None) if inputs != outputs else None

    def construct(self, x):
        y = self.conv3(self.conv2(self.conv1(x)))
        return ops.relu(y + (x if self.shortcut is None else self.shortcut(x)))


def resnet(size: tuple, width: int, depths, norm) -> Cnn:
    """The backbone; ``width`` channels at stage 1 (256), ``depths`` (3, 4, 23, 3) for ResNet-101."""
    sizes, channels = stage_sizes(size), [width * 2**i for i in range(4)]
    stem = ConvNorm(3, width // 4, 7, 2, size, norm)
    embed = CnnStage(None, [stem, nn.MaxPool2d(3, 2, pad_mode="pad", padding=1)])  # padded zeros never exceed a ReLU's
    stages = []
    for i in range(4):
        inputs, size_in = (width // 4, sizes[0]) if i == 0 else (channels[i - 1], sizes[i - 1])
        first = Bottleneck(inputs, channels[i], 1 if i == 0 else 2, size_in, norm)
        rest = [Bottleneck(channels[i], channels[i], 1, sizes[i], norm) for _ in range(depths[i] - 1)]
        stages.append(CnnStage(size_in, [first, *rest]))
    return Cnn(embed, stages, [nn.Identity() for _ in range(3)], channels, sizes)
