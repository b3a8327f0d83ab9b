"""What the convolutional backbones share: convolution with batch norm, and the stages' way between tokens and maps.

Shapes: x (B, C, H, W) map; tokens (B, H·W, C), as the fusion reads and writes them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from mindspore import nn, ops

from mindspore_coupalign.distributed.process import in_a_job
from mindspore_coupalign.mindspore_calls import device_target
from mindspore_coupalign.models.layers import MapToTokens, TokensToMap
from mindspore_coupalign.models.parts import BackboneSettings, Rule


@dataclass(frozen=True)
class CnnSettings(BackboneSettings):
    freeze_batch_norm: bool = True  # normalise by the loaded statistics; false: by each batch's
    may_differ: ClassVar[tuple[str, ...]] = (*BackboneSettings.may_differ, "freeze_batch_norm")

    def rules(self, prefix: str) -> Iterator[Rule]:
        yield from super().rules(prefix)
        yield self.embed_dim % 4 == 0, f"{prefix}.embed_dim must be a multiple of 4: the stem has a quarter of it"


def batch_norm(frozen: bool):
    """A function from a number of channels to their batch norm.

    In a job of several ranks it covers all ranks' samples where MindSpore documents that (Ascend), else this rank's.

    Args:
        frozen: normalise by the loaded statistics in training too, so that a small batch cannot spoil them.
    """
    synchronized = not frozen and in_a_job() and device_target() == "Ascend"

    def make(channels: int) -> nn.Cell:
        if synchronized:
            return nn.SyncBatchNorm(channels)
        return nn.BatchNorm2d(channels, use_batch_statistics=False if frozen else None)

    return make


class ConvNorm(nn.Cell):
    """Convolution without bias, batch norm, activation: (B, Cin, H, W) -> (B, Cout, H', W'), H' = ⌈H / stride⌉.

    Args:
        size: (H, W) of the input.
        norm: makes the batch norm of a number of channels.
        slope: of the leaky ReLU; 0 is a ReLU, None no activation.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, size: tuple, norm,
                 slope: float | None = 0.0):
        super().__init__()
        self.size = tuple(-(-side // stride) for side in size)
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, pad_mode="pad", padding=kernel // 2, has_bias=False,
                              weight_init="HeNormal")
        self.norm = norm(outputs)
        self.slope = slope

    def construct(self, x):
        x = self.norm(self.conv(x))
        if self.slope is None:
            return x
        x_in = ops.relu(x)
        return x_in if self.slope == 0 else x_in - self.slope * ops.relu(-x)


class CnnStage(nn.Cell):
    """The blocks of one stage, on maps: (B, P, C) -> (B, P', C').

    Args:
        size: (H, W) of the input's tokens; None where the input is the image, a map already.
    """

    def __init__(self, size: tuple | None, blocks: list):
        super().__init__()
        self.to_map, self.to_tokens = nn.Identity() if size is None else TokensToMap(size), MapToTokens()
        self.blocks = nn.CellList(blocks)

    def construct(self, x):
        x = self.to_map(x)
        for block in self.blocks:
            x = block(x)
        return self.to_tokens(x)


class Cnn(nn.Cell):
    """Four stages behind the backbone protocol (see ``swin.Swin``); the features are the last blocks' own."""

    def __init__(self, embed: CnnStage, stages: list, downsamples: list, channels: list, sizes: list):
        super().__init__()
        self.channels, self.sizes = channels, sizes
        self.embed = embed
        self.stages = nn.CellList(stages)
        self.downsamples = nn.CellList(downsamples)
        self.outputs = nn.CellList([nn.Identity() for _ in range(4)])

    def construct(self, image):
        """The four stages' features without language, for checks against other implementations."""
        x, features = self.embed(image), ()
        for i in range(4):
            x = self.stages[i](x)
            features += (x,)
            if i < 3:
                x = self.downsamples[i](x)
        return features


def stage_sizes(size: tuple) -> list:
    """(rows, columns) at strides 4, 8, 16 and 32."""
    return [(size[0] // 2 ** (i + 2), size[1] // 2 ** (i + 2)) for i in range(4)]
