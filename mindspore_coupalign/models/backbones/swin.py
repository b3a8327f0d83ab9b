"""Swin Transformer (Liu et al., ICCV 2021) as four stages at strides 4, 8, 16, 32, for a fixed input size.

Shapes: image (B, 3, H, W); stage i tokens (B, P_i, C_i), P_i = H·W / 4^(i+1), C_i = embed_dim · 2^(i-1);
window side m, M = m², windows n; padded tokens are zero vectors that take part as keys, as in the detection and
segmentation versions of Swin.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import TruncatedNormal, initializer

from mindspore_coupalign.models.backbones.published import OTHER_TASKS, PLAIN, Source
from mindspore_coupalign.models.layers import (
    MapToTokens,
    MergeHeads,
    Mlp,
    Product,
    SplitHeads,
    dense,
    layer_norm,
    sine_positions,
)
from mindspore_coupalign.models.parts import BackboneSettings, Rule, one_of, register
from mindspore_coupalign.models.rng import DropPath


@dataclass(frozen=True)
class SwinSettings(BackboneSettings):
    name: str = "swin"
    embed_dim: int = 128  # channels of stage 1; each stage doubles them (Swin-T and -S 96, B 128, L 192)
    depths: tuple[int, ...] = (2, 2, 18, 2)  # blocks of each stage
    heads: tuple[int, ...] = (4, 8, 16, 32)  # of attention, at each stage
    window: int = 12  # side of the attention windows, in tokens
    mlp_ratio: float = 4.0  # width of a block's MLP, relative to the stage's channels
    drop_path: float = 0.3  # stochastic depth: the drop probability of the last block, rising linearly from 0
    activation: str = "gelu"  # gelu (the paper's) or relu (faster on CPU)
    absolute_position: bool = False  # add sine positions after the patch embedding (for training from scratch)
    may_differ: ClassVar[tuple[str, ...]] = ("embed_dim", "depths", "window", "mlp_ratio", "drop_path")

    def rules(self, prefix: str) -> Iterator[Rule]:
        yield from super().rules(prefix)
        yield one_of(f"{prefix}.activation", self.activation, ("gelu", "relu"))
        yield (len(self.heads) == 4 and min(self.heads) >= 1,
               f"{prefix}.heads needs four positive numbers, one per stage")
        yield int(self.embed_dim * self.mlp_ratio) >= 1, f"{prefix}.mlp_ratio leaves no channel in stage 1's MLP"
        for i, (heads, dim) in enumerate(zip(self.heads, self.channels, strict=True)):
            yield dim % heads == 0, f"{prefix}.heads[{i}]={heads} does not divide the stage's {dim} channels"
        yield self.window >= 1, f"{prefix}.window must be at least 1"
        yield 0 <= self.drop_path < 1, f"{prefix}.drop_path must be in 0..1"

    def weights_settings(self) -> dict:
        return {"activation": self.activation}

    def published_config(self) -> dict:
        return {"model_type": "swin", "hidden_act": self.activation, "qkv_bias": True, "layer_norm_eps": 1e-5,
                "use_absolute_embeddings": False}


def window_index(size: tuple, window: int, shift: int) -> np.ndarray:
    """Token index of each window cell, (n, M) int32; the value H·W stands for padding.

    The map is padded right and below to a multiple of the window, then rolled by -shift, then cut into windows.
    """
    height, width = size
    rows, cols = -(-height // window) * window, -(-width // window) * window
    grid = np.full((rows, cols), height * width, np.int32)
    grid[:height, :width] = np.arange(height * width).reshape(height, width)
    grid = np.roll(grid, (-shift, -shift), (0, 1))
    grid = grid.reshape(rows // window, window, cols // window, window)
    return grid.transpose(0, 2, 1, 3).reshape(-1, window * window)


def inverse_index(index: np.ndarray, tokens: int) -> np.ndarray:
    """Window cell of each token, (tokens,) int32."""
    flat = index.reshape(-1)
    inverse = np.empty(tokens + 1, np.int32)
    inverse[flat] = np.arange(flat.size)
    return inverse[:tokens]


def shift_mask(size: tuple, window: int, shift: int) -> np.ndarray:
    """(n, M, M) float32: -100 between cells that only the roll has brought together, else 0."""
    rows, cols = (-(-s // window) * window for s in size)
    region = np.zeros((rows, cols), np.int32)
    for i, ys in enumerate((slice(0, -window), slice(-window, -shift), slice(-shift, None))):
        for j, xs in enumerate((slice(0, -window), slice(-window, -shift), slice(-shift, None))):
            region[ys, xs] = 3 * i + j
    region = region.reshape(rows // window, window, cols // window, window)
    region = region.transpose(0, 2, 1, 3).reshape(-1, window * window)
    return np.where(region[:, :, None] != region[:, None, :], -100.0, 0.0).astype(np.float32)


def relative_position_index(window: int) -> np.ndarray:
    """(M·M,) int32 row of the bias table for each pair of cells."""
    y, x = np.divmod(np.arange(window * window), window)
    dy = y[:, None] - y[None] + window - 1
    dx = x[:, None] - x[None] + window - 1
    return (dy * (2 * window - 1) + dx).reshape(-1).astype(np.int32)


class TokenGather(nn.Cell):
    """Rearranges tokens by a fixed index, (B, P, C) -> (B, Q, C); an index of P gives a zero token.

    The index is a partial permutation, so its gradient is the gather by the opposite index: much cheaper on CPU than
    the scatter that automatic differentiation would use.
    """

    amp_rule = "keep"  # takes what comes: the gradient that it writes itself gets no cast back

    def __init__(self, index: np.ndarray, opposite: np.ndarray):
        super().__init__()
        self.pads_out = bool((index == opposite.size).any())
        self.pads_back = bool((opposite == index.size).any())
        self.index = Tensor(index)
        self.opposite = Tensor(opposite)

    def construct(self, x):
        if self.pads_out:
            x = ops.concat((x, ops.zeros((x.shape[0], 1, x.shape[2]), x.dtype)), 1)
        return ops.gather(x, self.index, 1)

    def bprop(self, x, out, dout):
        if self.pads_back:
            dout = ops.concat((dout, ops.zeros((dout.shape[0], 1, dout.shape[2]), dout.dtype)), 1)
        return (ops.gather(dout, self.opposite, 1),)


class WindowAttention(nn.Cell):
    """Self-attention inside windows with a learned relative position bias: (B·n, M, C) -> (B·n, M, C)."""

    def __init__(self, dim: int, heads: int, window: int, mask: np.ndarray | None):
        super().__init__()
        self.area, self.heads = window * window, heads
        self.scale = 1.0 / math.sqrt(dim // heads)
        self.q = dense(dim, dim)
        self.k = dense(dim, dim)
        self.v = dense(dim, dim)
        self.proj = dense(dim, dim)
        table = ((2 * window - 1) ** 2, heads)
        self.relative_position_bias_table = Parameter(initializer(TruncatedNormal(0.02), table, ms.float32))
        self.bias_index = Tensor(relative_position_index(window))
        self.windows = 1 if mask is None else mask.shape[0]
        self.mask = None if mask is None else Tensor(mask[:, None])  # (n, 1, M, M)
        self.split = SplitHeads(heads)
        self.merge = MergeHeads()
        self.scores, self.mix = Product(transposed=True), Product()
        self.softmax = nn.Softmax(-1)

    def construct(self, x):
        bias = ops.gather(self.relative_position_bias_table, self.bias_index, 0)
        bias = bias.reshape((self.area, self.area, self.heads)).transpose((2, 0, 1))  # (h, M, M)
        scores = self.scores(self.split(self.q(x)) * self.scale, self.split(self.k(x)))
        if self.mask is None:
            scores = scores + bias
        else:
            by_window = (-1, self.windows, self.heads, self.area, self.area)
            scores = (scores.reshape(by_window) + (bias + self.mask)).reshape(scores.shape)
        return self.proj(self.merge(self.mix(self.softmax(scores), self.split(self.v(x)))))


class SwinBlock(nn.Cell):
    """Window attention and MLP with residuals: (B, P, C) -> (B, P, C)."""

    recomputable = True

    def __init__(self, dim, size, heads, window, shift, mlp_ratio, drop_path, act):
        super().__init__()
        if min(size) <= window:  # one window holds the map's short side: nothing to shift
            window, shift = min(size), 0
        index = window_index(size, window, shift)
        inverse = inverse_index(index, size[0] * size[1])
        self.area = window * window
        self.norm1 = layer_norm(dim)
        self.partition = TokenGather(index.reshape(-1), inverse)
        self.restore = TokenGather(inverse, index.reshape(-1))
        self.attn = WindowAttention(dim, heads, window, shift_mask(size, window, shift) if shift else None)
        self.drop_path1, self.drop_path2 = DropPath(drop_path), DropPath(drop_path)
        self.norm2 = layer_norm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act)

    def construct(self, x):
        b, _, c = x.shape
        windows = self.partition(self.norm1(x))
        mixed = self.attn(windows.reshape((-1, self.area, c))).reshape((b, -1, c))
        x = x + self.drop_path1(self.restore(mixed))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class PatchMerging(nn.Cell):
    """Joins 2×2 neighbours: (B, H·W, C) -> (B, H·W/4, 2C)."""

    def __init__(self, dim: int, size: tuple):
        super().__init__()
        grid = np.arange(size[0] * size[1], dtype=np.int32).reshape(size)
        # official order: (0,0), (1,0), (0,1), (1,1)
        index = np.stack([grid[0::2, 0::2], grid[1::2, 0::2], grid[0::2, 1::2], grid[1::2, 1::2]], -1).reshape(-1)
        self.gather = TokenGather(index, inverse_index(index, index.size))
        self.norm = layer_norm(4 * dim)
        self.reduction = dense(4 * dim, 2 * dim, bias=False)

    def construct(self, x):
        b, p, c = x.shape
        merged = self.reduction(self.norm(self.gather(x).reshape((b, p // 4, 4 * c))))
        return merged.astype(x.dtype)  # it begins the next stage's residual stream: not in the type of a product


class PatchEmbed(nn.Cell):
    """4×4 patches: (B, 3, H, W) -> (B, H·W/16, C)."""

    def __init__(self, dim: int, size: tuple, absolute_position: bool):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, 4, 4, pad_mode="valid", has_bias=True, weight_init=TruncatedNormal(0.02))
        self.to_tokens = MapToTokens()
        self.norm = layer_norm(dim)
        self.positions = sine_positions(size, dim) if absolute_position else None

    def construct(self, image):
        x = self.norm(self.to_tokens(self.proj(image)))
        return x if self.positions is None else x + self.positions


class SwinStage(nn.Cell):
    """The blocks of one stage: (B, P, C) -> (B, P, C)."""

    def __init__(self, dim, size, depth, heads, window, mlp_ratio, drop_paths, act):
        super().__init__()
        self.blocks = nn.CellList([
            SwinBlock(dim, size, heads, window, window // 2 if j % 2 else 0, mlp_ratio, drop_paths[j], act)
            for j in range(depth)])

    def construct(self, x):
        for block in self.blocks:
            x = block(x)
        return x

_BUFFERS = (r".*(relative_position_index|attn_mask|relative_coords_table)", None)
_OFFICIAL = (  # LAVT's and timm's as well
    _BUFFERS,
    (rf"patch_embed\.(proj|norm)\.{PLAIN}", r"embed.\1.\2"),
    (r"layers\.(\d+)\.(blocks\.\d+\..+)", r"stages.\1.\2"),
    (r"layers\.(\d+)\.downsample\.(.+)", r"downsamples.\1.\2"),
    (rf"norm(\d)\.{PLAIN}", r"outputs.\1.\2"),  # segmentation networks normalise each stage, as ours do
    (r"(norm|head)\..+", None),
    OTHER_TASKS,
)
_BLOCK = r"stages\.(\d+)\.(blocks\.\d+)"
_OPENMMLAB = (  # OpenMMLab's: mmsegmentation, mmdetection, mmpretrain
    _BUFFERS,
    (rf"patch_embed\.projection\.{PLAIN}", r"embed.proj.\1"),
    (rf"patch_embed\.norm\.{PLAIN}", r"embed.norm.\1"),
    (rf"{_BLOCK}\.(norm\d)\.{PLAIN}", r"stages.\1.\2.\3.\4"),
    (rf"{_BLOCK}\.attn\.w_msa\.(.+)", r"stages.\1.\2.attn.\3"),
    (rf"{_BLOCK}\.ffn\.layers\.0\.0\.{PLAIN}", r"stages.\1.\2.mlp.fc1.\3"),
    (rf"{_BLOCK}\.ffn\.layers\.1\.{PLAIN}", r"stages.\1.\2.mlp.fc2.\3"),
    (r"stages\.(\d+)\.downsample\.(.+)", r"downsamples.\1.\2"),
    (rf"norm(\d)\.{PLAIN}", r"outputs.\1.\2"),
    (r"head\..+", None),
    OTHER_TASKS,
)
_TRANSFORMERS = (  # what model.safetensors holds, and the names of version 5's modules
    _BUFFERS,
    (rf"embeddings\.patch_embeddings\.projection\.{PLAIN}", r"embed.proj.\1"),
    (rf"embeddings\.norm\.{PLAIN}", r"embed.norm.\1"),
    (rf"encoder\.(layers\.\d+\.blocks\.\d+)\.layernorm_before\.{PLAIN}", r"\1.norm1.\2"),
    (rf"encoder\.(layers\.\d+\.blocks\.\d+)\.layernorm_after\.{PLAIN}", r"\1.norm2.\2"),
    (rf"encoder\.(layers\.\d+\.blocks\.\d+)\.attention\.(?:self\.)?(q|k|v)(?:uery|ey|alue|_proj)\.{PLAIN}",
     r"\1.attn.\2.\3"),
    (r"encoder\.(layers\.\d+\.blocks\.\d+)\.attention\.(?:self|relative_position_bias)\.(relative_position_bias_table)",
     r"\1.attn.\2"),
    (rf"encoder\.(layers\.\d+\.blocks\.\d+)\.attention\.(?:output\.dense|o_proj)\.{PLAIN}", r"\1.attn.proj.\2"),
    (rf"encoder\.(layers\.\d+\.blocks\.\d+)\.(?:intermediate\.dense|mlp\.fc1)\.{PLAIN}", r"\1.mlp.fc1.\2"),
    (rf"encoder\.(layers\.\d+\.blocks\.\d+)\.(?:output\.dense|mlp\.fc2)\.{PLAIN}", r"\1.mlp.fc2.\2"),
    (r"encoder\.layers\.(\d+)\.downsample\.(.+)", r"downsamples.\1.\2"),
    *((rf"hidden_states_norms\.stage{i + 1}\.{PLAIN}", rf"outputs.{i}.\1") for i in range(4)),
    (r"(layernorm|classifier|pooler)\..+", None),
)


def _timm_merging(arrays: dict) -> tuple[dict, list]:
    """timm 0.9 and later keep the patch merging at the start of the stage that it leads to."""
    if "layers.3.downsample.norm.weight" not in arrays:
        return arrays, []
    return {re.sub(r"^layers\.(\d)\.downsample\.", lambda m: f"layers.{int(m[1]) - 1}.downsample.", name): array
            for name, array in arrays.items()}, []


def _openmmlab_merging(arrays: dict) -> tuple[dict, list]:
    """OpenMMLab merges patches by nn.Unfold, whose channels go (channel, row, column); the official code, and ours, put
    the four neighbours one after the other: (0,0), (1,0), (0,1), (1,1) as (row, column). Its classifiers have a norm
    under the name of stage 4's output, which is left out.

    Source: mmseg/models/utils/embed.py (PatchMerging) and tools/model_converters/swin2mmseg.py, which does the reverse.
    """
    def reordered(array: np.ndarray) -> np.ndarray:
        if array.ndim not in (1, 2) or array.shape[-1] % 4:
            return array  # of another network: its shape will be reported
        by_place = array.reshape(*array.shape[:-1], -1, 4)[..., [0, 2, 1, 3]]
        return np.ascontiguousarray(by_place.swapaxes(-1, -2)).reshape(array.shape)

    classifier = [] if "norm0.weight" in arrays else [n for n in ("norm3.weight", "norm3.bias") if n in arrays]
    return {name: reordered(array) if re.match(r"stages\.\d+\.downsample\.", name) else array
            for name, array in arrays.items() if name not in classifier}, classifier


PUBLISHED = (
    Source("Swin, official or timm names", "patch_embed.proj.weight", _OFFICIAL, _timm_merging),
    Source("Swin, OpenMMLab's names", "patch_embed.projection.weight", _OPENMMLAB, _openmmlab_merging),
    Source("Swin, transformers names", "embeddings.patch_embeddings.projection.weight", _TRANSFORMERS))


@register("backbone", SwinSettings)
class Swin(nn.Cell):
    """Four stages behind the contract of a backbone.

    ``channels`` and ``sizes`` describe the stages; ``embed(image)`` makes stage 1's input; ``stages[i](x)`` runs a
    stage; ``outputs[i](x)`` normalises its result for the decoder; ``downsamples[i](x)`` makes the next stage's input.

    Args:
        size: (H, W) of the image.
    """

    published = PUBLISHED

    def __init__(self, settings: SwinSettings, *, size: tuple):
        super().__init__()
        s = settings
        self.channels = s.channels
        self.sizes = [(size[0] // 2 ** (i + 2), size[1] // 2 ** (i + 2)) for i in range(4)]
        rates = np.split(np.linspace(0, s.drop_path, sum(s.depths)), np.cumsum(s.depths)[:-1])
        self.embed = PatchEmbed(s.embed_dim, self.sizes[0], s.absolute_position)
        self.stages = nn.CellList([
            SwinStage(self.channels[i], self.sizes[i], s.depths[i], s.heads[i], s.window, s.mlp_ratio,
                      [float(r) for r in rates[i]], s.activation) for i in range(4)])
        self.downsamples = nn.CellList([PatchMerging(self.channels[i], self.sizes[i]) for i in range(3)])
        self.outputs = nn.CellList([layer_norm(c) for c in self.channels])

    def construct(self, image):
        """The four stages' normalised features without language, for checks against other implementations."""
        x = self.embed(image)
        features = ()
        for i in range(4):
            x = self.stages[i](x)
            features += (self.outputs[i](x),)
            if i < 3:
                x = self.downsamples[i](x)
        return features
