"""Random numbers that depend on a key alone, so that a resumed run draws what the undisturbed one would have drawn.

MindSpore's own random operators keep their state inside compiled kernels, where nothing can save or restore it. Here a
number is a hash (two rounds of multiply and xor-shift, int32) of its position, its place in the network and the key
that the training step sets before each forward pass.

Shapes: keys (S,) int32, one per ``Noise`` of the network.
"""

import itertools

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops


class Noise(nn.Cell):
    """``construct(shape)``: uniform numbers in [0, 1), float32; always the same until ``connect`` is called."""

    def __init__(self):
        super().__init__()
        self.listen(_new_keys(1), 0)

    def listen(self, keys: Parameter, site: int):
        """Read key ``site`` of ``keys``."""
        object.__setattr__(self, "keys", keys)  # not as the cell's parameter: it belongs into no checkpoint
        self.site = site

    def construct(self, shape):
        count = 1
        for side in shape:
            count *= side
        x = ops.arange(0, count, 1).astype(ms.int32) * -1640531535 + self.keys[self.site]
        x = ops.bitwise_xor(x, ops.bitwise_right_shift(x, 15)) * 0x2C1B3C6D
        x = ops.bitwise_xor(x, ops.bitwise_right_shift(x, 12)) * 0x297A2D39
        x = ops.bitwise_xor(x, ops.bitwise_right_shift(x, 15))
        return ops.bitwise_and(x, 0x7FFFFF).astype(ms.float32).reshape(shape) * (1 / 2**23)


def connect(root: nn.Cell) -> Parameter:
    """Give every Noise below ``root`` its site; returns the keys (S,) that all of them read."""
    noises = [cell for _, cell in root.cells_and_names() if isinstance(cell, Noise)]
    keys = _new_keys(max(1, len(noises)))
    for site, noise in enumerate(noises):
        noise.listen(keys, site)
    return keys


_numbers = itertools.count()  # one graph must not meet two Parameters of one name


def _new_keys(count: int) -> Parameter:
    return Parameter(Tensor(np.zeros(count, np.int32)), name=f"noise_keys_{next(_numbers)}", requires_grad=False)


def draw_keys(count: int, *seeds: int) -> np.ndarray:
    """Keys (count,) int32 for one step; ``seeds``: run, rank, step, …"""
    return np.random.default_rng(seeds).integers(-2**31, 2**31, count).astype(np.int32)


class Dropout(nn.Cell):
    """Zeroes values with probability ``rate`` in training and rescales the others."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate
        self.noise = Noise() if rate > 0 else None

    def construct(self, x):
        if self.training and self.rate > 0:
            return x * self._kept(x.shape).astype(x.dtype)
        return x

    def _kept(self, shape):
        return (self.noise(shape) >= self.rate).astype(ms.float32) * (1 / (1 - self.rate))


class DropPath(Dropout):
    """Drops a residual branch (B, P, C) of whole samples in training (stochastic depth), rescaling those that stay."""

    def construct(self, x):
        if self.training and self.rate > 0:
            return x * self._kept((x.shape[0], 1, 1)).astype(x.dtype)
        return x
