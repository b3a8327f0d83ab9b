"""Small cells that every part of the network shares.

Shapes: x (B, P, C) tokens; heads h, head width d = C / h.
"""

import math

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import TruncatedNormal, initializer

from mindspore_coupalign.mindspore_calls import device_target
from mindspore_coupalign.models.rng import Dropout

FAST_BELOW = 128  # channels; from there on FastLayerNorm's memory counts: 5 GiB in one step of the full recipe


def dense(inputs: int, outputs: int, bias: bool = True) -> nn.Dense:
    """Linear layer, Xavier uniform with zero bias.

    The usual truncated normal of 0.02 suits widths near 768; at 24 channels it makes the words' share of the pixels so
    small that a network trained from scratch never leaves the stage of segmenting every object.
    """
    return nn.Dense(inputs, outputs, weight_init="XavierUniform", bias_init="zeros", has_bias=bias)


class _Normalise(nn.Cell):
    """Layer norm of the last axis: the stock kernel forward, a gradient of plain products and sums backward.

    On CPU the stock gradient calls pow per value; and means of rows are much faster as matrix products, sums over rows
    much faster in two dimensions than in three.
    """

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.dim, self.eps = dim, eps
        self.normalise = ops.LayerNorm(-1, -1, eps)
        self.product = ops.MatMul()
        self.centre = Tensor((np.eye(dim) - 1 / dim).astype(np.float32))  # takes a row's mean away
        self.mean = Tensor(np.full((dim, 1), 1 / dim, np.float32))

    def construct(self, x, gamma, beta):
        """(normalised, mean, variance)"""
        return self.normalise(x, gamma, beta)

    def bprop(self, x, gamma, beta, out, dout):
        rows = (-1, self.dim)
        dout, column = dout[0].reshape(rows).astype(ms.float32), gamma.reshape((-1, 1)).astype(ms.float32)
        scale = ops.rsqrt(out[2].reshape((-1, 1)).astype(ms.float32) + self.eps)
        standard = (x.reshape(rows).astype(ms.float32) - out[1].reshape((-1, 1)).astype(ms.float32)) * scale
        product = dout * standard
        dx = self.product(dout, column * self.centre) - standard * self.product(product, column * self.mean)
        dx = (dx * scale).reshape(x.shape).astype(x.dtype)
        return dx, product.sum(0).astype(gamma.dtype), dout.sum(0).astype(beta.dtype)


class FastLayerNorm(nn.LayerNorm):
    """nn.LayerNorm's parameters and results, by ``_Normalise``; by the stock kernels once ``fast`` is False."""

    def __init__(self, dim: int, eps: float):
        super().__init__((dim,), epsilon=eps)
        self.normalise, self.stock = _Normalise(dim, eps), ops.LayerNorm(-1, -1, eps)
        self.fast = True

    def construct(self, x):
        if self.fast:
            return self.normalise(x, self.gamma, self.beta)[0]
        return self.stock(x, self.gamma, self.beta)[0]


def layer_norm(dim: int, eps: float = 1e-5) -> nn.LayerNorm:
    """The stock layer, or for small networks on CPU its faster equal."""
    fast = device_target() == "CPU" and dim < FAST_BELOW
    return FastLayerNorm(dim, eps) if fast else nn.LayerNorm((dim,), epsilon=eps)


def embedding_table(rows: int, dim: int) -> Parameter:
    return Parameter(initializer(TruncatedNormal(0.02), (rows, dim), ms.float32))


def activation(name: str) -> nn.Cell:
    return {"gelu": lambda: nn.GELU(approximate=False), "relu": nn.ReLU}[name]()


class Tanh(nn.Cell):
    """tanh x; on CPU as 2·sigmoid(2x) - 1: the kernel for tanh is off by up to 1e-4 there (near |x| = 5)."""

    def __init__(self):
        super().__init__()
        self.by_sigmoid = device_target() == "CPU"

    def construct(self, x):
        if self.by_sigmoid:  # in float32: half precision cannot tell sigmoids near 1/2 apart
            return (2 * ops.sigmoid(2 * x.astype(ms.float32)) - 1).astype(x.dtype)
        return ops.tanh(x)


class Mlp(nn.Cell):
    """Two linear layers with an activation between: (B, P, C) -> (B, P, C)."""

    def __init__(self, dim: int, hidden: int, act: str):
        super().__init__()
        self.fc1 = dense(dim, hidden)
        self.act = activation(act)
        self.fc2 = dense(hidden, dim)

    def construct(self, x):
        return self.fc2(self.act(self.fc1(x)))


class Product(nn.Cell):
    """Batched matrix product x·y, or x·yᵀ with ``transposed``; a cell, so that mixed precision can choose its type."""

    def __init__(self, transposed: bool = False):
        super().__init__()
        self.product = ops.BatchMatMul(transpose_b=transposed)

    def construct(self, x, y):
        return self.product(x, y)


class SplitHeads(nn.Cell):
    """(B, P, C) -> (B, h, P, d)."""

    def __init__(self, heads: int):
        super().__init__()
        self.heads = heads

    def construct(self, x):
        b, p, c = x.shape
        return x.reshape((b, p, self.heads, c // self.heads)).transpose((0, 2, 1, 3))


class MergeHeads(nn.Cell):
    """(B, h, P, d) -> (B, P, C)."""

    def construct(self, x):
        b, h, p, d = x.shape
        return x.transpose((0, 2, 1, 3)).reshape((b, p, h * d))


class Attention(nn.Cell):
    """Multi-head attention: queries (B, Pq, C), memory (B, Pk, C), bias broadcast to (B, h, Pq, Pk)."""

    def __init__(self, dim: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.scale = 1.0 / math.sqrt(dim // heads)
        self.q = dense(dim, dim)
        self.k = dense(dim, dim)
        self.v = dense(dim, dim)
        self.proj = dense(dim, dim)
        self.split = SplitHeads(heads)
        self.merge = MergeHeads()
        self.scores, self.mix = Product(transposed=True), Product()
        self.softmax = nn.Softmax(-1)
        self.dropout = Dropout(dropout)

    def construct(self, queries, keys, values, bias=None):
        scores = self.scores(self.split(self.q(queries)) * self.scale, self.split(self.k(keys)))
        if bias is not None:
            scores = scores + bias
        weights = self.dropout(self.softmax(scores))
        return self.proj(self.merge(self.mix(weights, self.split(self.v(values)))))


class ConvNormRelu(nn.Cell):
    """3×3 convolution, group norm, ReLU: (B, Cin, H, W) -> (B, Cout, H, W).

    Group norm keeps a sample's result independent of the rest of its batch and of the number of devices.
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, has_bias=False, weight_init="HeUniform")
        self.norm = nn.GroupNorm(min(32, outputs // 8), outputs)

    def construct(self, x):
        return ops.relu(self.norm(self.conv(x)))


class Resize(nn.Cell):
    """Bilinear resize to a fixed size, half-pixel centres: (B, C, h, w) -> (B, C, H, W).

    The primitive is used because ``ops.interpolate`` exports to MINDIR and then fails at run time.
    """

    amp_rule = "float32"  # the resize kernels know no bfloat16

    def __init__(self, size: tuple):
        super().__init__()
        self.size = size
        self.resize = ops.ResizeBilinearV2(align_corners=False, half_pixel_centers=True)

    def construct(self, x):
        return x if x.shape[2:] == self.size else self.resize(x, self.size)


class TokensToMap(nn.Cell):
    """(B, H·W, C) -> (B, C, H, W)."""

    def __init__(self, size: tuple):
        super().__init__()
        self.size = size

    def construct(self, x):
        return x.transpose((0, 2, 1)).reshape((x.shape[0], x.shape[2], self.size[0], self.size[1]))


class MapToTokens(nn.Cell):
    """(B, C, H, W) -> (B, H·W, C)."""

    def construct(self, x):
        b, c, h, w = x.shape
        return x.reshape((b, c, h * w)).transpose((0, 2, 1))


def sine_positions(size: tuple, dim: int) -> Tensor:
    """2-D sine position code (1, H·W, dim) of relative coordinates in 0..2π, as in DETR: half for y, half for x."""
    half = dim // 2
    rate = 10000.0 ** (2 * (np.arange(half) // 2) / half)

    def code(length):
        angle = (np.arange(length) + 0.5)[:, None] / length * 2 * np.pi / rate
        return np.where(np.arange(half) % 2 == 0, np.sin(angle), np.cos(angle))

    y, x = code(size[0]), code(size[1])
    grid = np.concatenate([np.repeat(y[:, None], size[1], 1), np.repeat(x[None], size[0], 0)], -1)
    grid = grid.reshape(1, size[0] * size[1], 2 * half)
    return Tensor(np.pad(grid, ((0, 0), (0, 0), (0, dim - 2 * half))).astype(np.float32))
