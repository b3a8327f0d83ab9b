"""ResNet-50/101/152 (He et al., CVPR 2016) as four stages at strides 4, 8, 16, 32, for a fixed input size.

The bottleneck strides in its 3×3 convolution, as in torchvision and Hugging Face's models ("v1.5"), whose weights fit.
Shapes: image (B, 3, H, W); stage i tokens (B, P_i, C_i), P_i = H·W / 4^(i+1), C_i = width · 2^(i-1), width 256.
"""

from dataclasses import dataclass

from mindspore import nn, ops

from mindspore_coupalign.models.backbones.cnn import (
    Cnn,
    CnnSettings,
    CnnStage,
    ConvNorm,
    batch_norm,
    stage_sizes,
)
from mindspore_coupalign.models.backbones.published import BATCH_COUNT, OTHER_TASKS, Source
from mindspore_coupalign.models.parts import register


@dataclass(frozen=True)
class ResNetSettings(CnnSettings):
    name: str = "resnet"
    embed_dim: int = 256  # channels of stage 1; each stage doubles them
    depths: tuple[int, ...] = (3, 4, 23, 3)  # blocks of each stage (ResNet-101)

    def published_config(self) -> dict:
        return {"model_type": "resnet", "downsample_in_bottleneck": False, "downsample_in_first_stage": False,
                "layer_type": "bottleneck", "hidden_act": "relu"}


class Bottleneck(nn.Cell):
    """1×1, 3×3, 1×1 convolutions with a residual: (B, Cin, H, W) -> (B, Cout, H/stride, W/stride)."""

    recomputable = True

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


def _stage_rules(k: int) -> tuple:
    """torchvision's layer k (1 to 4)."""
    return ((rf"layer{k}\.(\d+)\.conv(\d)\.weight", rf"stages.{k - 1}.blocks.\1.conv\2.conv.weight"),
            (rf"layer{k}\.(\d+)\.bn(\d)\.(.+)", rf"stages.{k - 1}.blocks.\1.conv\2.norm.\3"),
            (rf"layer{k}\.(\d+)\.downsample\.0\.weight", rf"stages.{k - 1}.blocks.\1.shortcut.conv.weight"),
            (rf"layer{k}\.(\d+)\.downsample\.1\.(.+)", rf"stages.{k - 1}.blocks.\1.shortcut.norm.\2"))


_STAGE = r"encoder\.stages\.(\d)\.layers\.(\d+)"  # transformers counts a block's convolutions from 0
PUBLISHED = (
    Source("ResNet, torchvision or timm names", "layer1.0.conv3.weight", (
        BATCH_COUNT,
        (r"conv1\.weight", r"embed.blocks.0.conv.weight"),
        (r"bn1\.(.+)", r"embed.blocks.0.norm.\1"),
        *(rule for k in range(1, 5) for rule in _stage_rules(k)),
        (r"fc\..+", None),
        OTHER_TASKS)),
    Source("ResNet, transformers names", "embedder.embedder.convolution.weight", (
        BATCH_COUNT,
        (r"embedder\.embedder\.convolution\.weight", r"embed.blocks.0.conv.weight"),
        (r"embedder\.embedder\.normalization\.(.+)", r"embed.blocks.0.norm.\1"),
        (rf"{_STAGE}\.shortcut\.convolution\.weight", r"stages.\1.blocks.\2.shortcut.conv.weight"),
        (rf"{_STAGE}\.shortcut\.normalization\.(.+)", r"stages.\1.blocks.\2.shortcut.norm.\3"),
        *((rf"{_STAGE}\.layer\.{k}\.convolution\.weight", rf"stages.\1.blocks.\2.conv{k + 1}.conv.weight")
          for k in range(3)),
        *((rf"{_STAGE}\.layer\.{k}\.normalization\.(.+)", rf"stages.\1.blocks.\2.conv{k + 1}.norm.\3")
          for k in range(3)),
        (r"classifier\..+", None))))


@register("backbone", ResNetSettings)
class ResNet(Cnn):
    """The backbone for images of ``size`` (H, W)."""

    published = PUBLISHED

    def __init__(self, settings: ResNetSettings, *, size: tuple):
        width, depths, norm = settings.embed_dim, settings.depths, batch_norm(settings.freeze_batch_norm)
        sizes, channels = stage_sizes(size), settings.channels
        stem = ConvNorm(3, width // 4, 7, 2, size, norm)
        pool = nn.MaxPool2d(3, 2, pad_mode="pad", padding=1)  # padded zeros never exceed a ReLU's
        stages = []
        for i in range(4):
            inputs, size_in = (width // 4, sizes[0]) if i == 0 else (channels[i - 1], sizes[i - 1])
            first = Bottleneck(inputs, channels[i], 1 if i == 0 else 2, size_in, norm)
            rest = [Bottleneck(channels[i], channels[i], 1, sizes[i], norm) for _ in range(depths[i] - 1)]
            stages.append(CnnStage(size_in, [first, *rest]))
        super().__init__(CnnStage(None, [stem, pool]), stages, [nn.Identity() for _ in range(3)], channels, sizes)
