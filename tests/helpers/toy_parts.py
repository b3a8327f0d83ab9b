"""Cells that compute what somebody's own part of the network may: maps (B, 4, 8, 8) -> one tensor."""

import mindspore as ms
import numpy as np
from mindspore import Tensor, mint, nn, ops


class Activations(nn.Cell):
    def __init__(self):
        super().__init__()
        self.parts = nn.CellList([nn.GELU(), nn.GELU(False), nn.SiLU(), nn.LeakyReLU(0.1), nn.PReLU(4)])

    def construct(self, x):
        results = [
            ops.relu(x), ops.sigmoid(x), ops.tanh(x), ops.relu6(x), ops.elu(x), ops.hardswish(x), ops.hardsigmoid(x),
            ops.softmax(x, 1), ops.softmax(x, -1), ops.log_softmax(x, 2), ops.clamp(x, -0.5, 0.5),
            ops.gelu(x, "tanh"), ops.mish(x), ops.selu(x), ops.softplus(x), mint.nn.functional.silu(x)]
        for cell in self.parts:
            results.append(cell(x))
        return ops.concat(results, 1)


class Arithmetic(nn.Cell):
    def construct(self, x):
        size = ops.abs(x) + 1
        return ops.concat((
            (x + 1.5) * 2 - x / 3, 1 - x, 1 / size, x ** 2, ops.pow(x, 3), ops.pow(2.0, x), size ** 0.5, ops.sqrt(size),
            ops.rsqrt(size), ops.exp(x), ops.log(size), ops.log1p(size), ops.maximum(x, 0.3), ops.minimum(x, x * x), -x,
            ops.erf(x), ops.square(x), ops.sin(x), ops.cos(x), ops.sign(x), ops.floor(x)), 1)


class Choices(nn.Cell):
    def construct(self, x):
        whole = x.astype(ms.int32)
        flags = (x > 0, x >= 0, x < 0, x <= 0, whole == 0, whole != 0, ops.logical_and(x > 0, x < 1),
                 ops.logical_or(x > 1, x < 0), ops.logical_not(x > 0), x > x.mean(1, keep_dims=True),
                 x < x.mean(1, keep_dims=True), x == x.max(1, keepdims=True))
        parts = [flag.astype(ms.float32) for flag in flags]
        parts += [ops.select(x < 0.1, x, x * 2), ops.where(x > 0, x, 0.0), x.masked_fill(x > 0, -1e4),
                  x.masked_fill(x > 0, x.mean()),
                  ops.tril(x)]
        return ops.concat((*parts, x.argmax(1).astype(ms.float32)[:, None]), 1)


class Sizes(nn.Cell):
    def construct(self, x):
        b, c, h, w = x.shape
        return ops.concat([part.reshape((b, -1)) for part in (
            x[:, 0], x[:, -1], x[:, 1:3], x[:, :, ::2], x[..., 0], x[:, None], x[:, :-1, 1:], x[:, 0, :, 1:2],
            ops.slice(x, (0, 1, 0, 0), (-1, 2, 8, 8)), ops.narrow(x, 1, 1, 2), ops.gather(x, Tensor([0, 2]), 1),
            ops.index_select(x, 1, Tensor([0, 2])), ops.stack((x, x * 2), 1), ops.split(x, 2, 1)[1],
            ops.split(x, [1, 3], 1)[1], ops.chunk(x, 2, 1)[0], mint.split(x, 2, 1)[1], ops.unstack(x, 1)[2],
            ops.tile(x, (1, 2, 1, 1)), ops.tile(x[:, :1], (1, 4, 1, 1)), ops.broadcast_to(x[:, :1], (-1, 4, 8, 8)),
            ops.expand_dims(x, 1), x[:, :1].squeeze(1), x.permute(0, 2, 3, 1), x.swapaxes(1, 2), x.view(-1, 4, 64),
            x.flatten(start_dim=2), x.reshape((b * c, h, w)),
            x + ops.zeros((b, 1, 1, w), x.dtype), x + ops.ones((b, 1, 1, w), x.dtype), x + ops.ones_like(x),
            x + ops.zeros_like(x),
            x + ops.full((1, 8), 2.0), x + ops.arange(0, 8).astype(ms.float32),
            ops.pad(x, (1, 1, 2, 0)), ops.pad(x, (1, 1, 1, 1), mode="reflect"), ops.pixel_shuffle(x, 2),
            x.repeat_interleave(2, 1))], 1)


class Means(nn.Cell):
    def construct(self, x):
        b = x.shape[0]
        return ops.concat([part.reshape((b, -1)) for part in (
            x.mean((2, 3)), x.mean(1, keep_dims=True), x.sum(-1), x.max(1), ops.amax(x, (2, 3)), ops.amin(x, (2, 3)),
            x.min(-1),
            ops.prod(x, 1), x.std(1), x.var(1), mint.mean(x, dim=(2, 3), keepdim=True), mint.sum(x, dim=1),
            mint.max(x, dim=1)[0],
            ops.norm(x, dim=1, keepdim=True), ops.logsumexp(x, 1),
            ops.cosine_similarity(x, x * 2, dim=1))], 1) + x.mean()


class Maps(nn.Cell):
    """Convolutions, pools, norms and resizes."""

    def __init__(self):
        super().__init__()
        self.parts = nn.CellList([
            nn.Conv2d(4, 6, 3, pad_mode="same", dilation=2, has_bias=True), nn.Conv2d(4, 2, 3, pad_mode="valid"),
            nn.Conv2d(4, 8, 3, stride=2, pad_mode="pad", padding=1, group=2, has_bias=True),
            nn.Conv2d(4, 2, 3, stride=2, pad_mode="same"), nn.Conv2d(4, 4, 3, pad_mode="same", group=4),
            nn.Conv2d(4, 2, (3, 1), pad_mode="pad", padding=(1, 2, 0, 1)),
            nn.Conv2dTranspose(4, 2, 2, stride=2, pad_mode="valid", has_bias=True),
            nn.Conv2dTranspose(4, 2, 3, stride=2, pad_mode="same"),
            nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm((8,)), nn.Dense(8, 5),
            nn.Dense(8, 5, activation="relu"), mint.nn.Linear(8, 5), nn.Dropout(p=0.1),
            nn.MaxPool2d(2, 2), nn.MaxPool2d(3, 2, pad_mode="same"), nn.MaxPool2d(3, 2, pad_mode="pad", padding=1),
            nn.AvgPool2d(2, 2), nn.AvgPool2d(3, 1, pad_mode="same"),
            nn.Pad(((0, 0), (0, 0), (1, 1), (2, 2)))])

    def construct(self, x):
        b = x.shape[0]
        parts = [
            ops.interpolate(x, size=(16, 12), mode="bilinear"), ops.interpolate(x, size=(5, 4), mode="bilinear"),
            ops.interpolate(x, size=(16, 12), mode="bilinear", align_corners=True),
            ops.interpolate(x, size=(16, 16), mode="nearest"), ops.adaptive_avg_pool2d(x, 1),
            ops.adaptive_avg_pool2d(x, 2),
            ops.adaptive_max_pool2d(x, (1, 1))]
        for cell in self.parts:
            parts.append(cell(x))
        return ops.concat([part.reshape((b, -1)) for part in parts], 1)


class Products(nn.Cell):
    """Attention over the rows with words of its own, and other products."""

    def __init__(self):
        super().__init__()
        self.words, self.table = nn.Embedding(10, 4), nn.Dense(64, 64)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.transposed = ops.BatchMatMul(transpose_a=True)

    def construct(self, x):
        b = x.shape[0]
        tokens = self.table(x.reshape((b, 4, 64))) * 0.125
        scores = ops.softmax(ops.matmul(tokens, tokens.swapaxes(-1, -2)) * 0.1, -1)
        words = self.words(ops.clamp(x[:, 0, 0].astype(ms.int32), 0, 9))
        parts = (ops.bmm(scores, tokens), words, self.attention(x[:, 0], x[:, 0], x[:, 0])[0], self.transposed(x, x),
                 ops.matmul(x, Tensor(np.ones((8, 3), np.float32))))
        return ops.concat([part.reshape((b, -1)) for part in parts], 1)


class Gathered(nn.Cell):
    """Rows by an index, before or after a linear layer."""

    def __init__(self, index: list, first: bool):
        super().__init__()
        self.index, self.first, self.linear = Tensor(index, ms.int32), first, nn.Dense(64, 5)

    def construct(self, x):
        x = x.reshape((-1, 4, 64))
        return self.linear(ops.gather(x, self.index, 1)) if self.first else ops.gather(self.linear(x), self.index, 1)


class Unfolding(nn.Cell):
    def construct(self, x):
        return ops.unfold(x, 3)


class Unfolded(nn.Cell):
    def __init__(self):
        super().__init__()
        self.unfolding = Unfolding()

    def construct(self, x):
        return self.unfolding(x)


class Asks(nn.Cell):
    """A branch on a value."""

    def construct(self, x):
        return x * 2 if x.mean() > 0 else x


TOYS = (Activations, Arithmetic, Choices, Sizes, Means, Maps, Products)
