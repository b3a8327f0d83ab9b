"""The mask head: a 1×1 convolution, then the input's size.

Shapes: pixels (B, C, H/4, W/4); image (B, 3, H, W); coarse (B, 1, H/4, W/4) and logits (B, 1, H, W).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from mindspore import nn

from mindspore_coupalign.models.heads.guided_filter import GuidedFilter
from mindspore_coupalign.models.layers import Resize
from mindspore_coupalign.models.parts import HeadSettings, Rule, one_of, register


@dataclass(frozen=True)
class LinearSettings(HeadSettings):
    name: str = "linear"
    upsample: str = "bilinear"  # from stride 4 to the input's size: bilinear (the paper's) or guided (by the image)
    may_differ = ("upsample",)

    def rules(self, prefix: str) -> Iterator[Rule]:
        yield one_of(f"{prefix}.upsample", self.upsample, ("bilinear", "guided"))


@register("head", LinearSettings)
class LinearHead(nn.Cell):
    """``construct(pixels, image)`` returns the logits at stride 4 and at the input's size."""

    def __init__(self, settings: LinearSettings, *, channels: int, size: tuple):
        super().__init__()
        self.conv = nn.Conv2d(channels, 1, 1, has_bias=True)
        self.guided = GuidedFilter((size[0] // 4, size[1] // 4), 4) if settings.upsample == "guided" else None
        self.to_input_size = Resize(size)

    def construct(self, pixels, image):
        coarse = self.conv(pixels)
        logits = self.to_input_size(coarse) if self.guided is None else self.guided(coarse, image)
        return coarse, logits
