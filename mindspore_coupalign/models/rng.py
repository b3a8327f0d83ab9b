"""Random numbers that depend on a key alone, so that a resumed run draws what the undisturbed one would have drawn.

MindSpore's own random operators keep their state inside compiled kernels, where nothing can save or restore it. Here a
number is a hash of its position and of its site's key, and the training step sets the keys before each forward pass.
A site is a place where the network draws random numbers: one cell each, since a cell returns the same values when it
is called again.

Shapes: keys (S,) int32, one per ``Noise`` of the network, that is per site; shape, the numbers that a site draws.
"""

import itertools

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from mindspore_coupalign.errors import UserError
from mindspore_coupalign.mindspore_calls import assign

# Of the hash: an odd step from position to position, and two odd factors that spread every bit over the higher ones
_STEP, _FIRST, _SECOND = -1640531535, 0x2C1B3C6D, 0x297A2D39


class Noise(nn.Cell):
    """``construct(shape)``: uniform numbers in [0, 1), float32; always the same until ``bind`` is called."""

    def __init__(self):
        super().__init__()
        self.bind(_new_keys(1), 0)

    def bind(self, keys: Parameter, site: int):
        """Read key ``site`` of ``keys``."""
        object.__setattr__(self, "keys", keys)  # not as the cell's parameter: it is not saved
        self.site = site

    def construct(self, shape):
        count = 1
        for side in shape:
            count *= side
        key = self.keys[self.site]
        x = ops.arange(0, count, 1).astype(ms.int32) * _STEP + key
        # the key once more: a site's numbers would else be another site's, some positions further on
        x = ops.bitwise_xor(ops.bitwise_xor(x, ops.bitwise_right_shift(x, 15)), key) * _FIRST
        x = ops.bitwise_xor(x, ops.bitwise_right_shift(x, 12)) * _SECOND
        x = ops.bitwise_xor(x, ops.bitwise_right_shift(x, 15))
        return ops.bitwise_and(x, 0x7FFFFF).astype(ms.float32).reshape(shape) * (1 / 2**23)


def uniform(count: int, key: int) -> np.ndarray:
    """Noise's first numbers (count,) under a key, by NumPy."""
    key = np.int32(key)
    x = np.arange(count, dtype=np.int32) * np.int32(_STEP) + key
    x = (x ^ (x >> 15) ^ key) * np.int32(_FIRST)
    x = (x ^ (x >> 12)) * np.int32(_SECOND)
    x = x ^ (x >> 15)
    return (x & 0x7FFFFF).astype(np.float32) * np.float32(1 / 2**23)


def check_device(target: str):
    """Compare some hundred numbers of the device with NumPy's.

    Raises:
        UserError: they differ, as where a device's int32 products do not wrap.
    """
    noise, count, keys = Noise(), 256, draw_keys(4, 0)
    wrong = 0
    for key in keys:
        assign(noise.keys, Tensor([key], ms.int32))
        wrong += np.count_nonzero(noise((count,)).asnumpy() != uniform(count, key))
    if wrong:
        raise UserError(f"--device-target {target}: {wrong} of {count * len(keys)} random numbers differ from NumPy's; "
                        "dropout, stochastic depth and sampled pixels rely on int32 products that wrap, and this "
                        "device's do not: train on another target")


def bind(root: nn.Cell) -> Parameter:
    """Give every Noise below ``root`` its site; returns the keys (S,) that all of them read."""
    noises = [cell for _, cell in root.cells_and_names() if isinstance(cell, Noise)]
    keys = _new_keys(max(1, len(noises)))
    for site, noise in enumerate(noises):
        noise.bind(keys, site)
    return keys


_numbers = itertools.count()  # one graph must not meet two Parameters of one name


def _new_keys(count: int) -> Parameter:
    return Parameter(Tensor(np.zeros(count, np.int32)), name=f"noise_keys_{next(_numbers)}", requires_grad=False)


def draw_keys(count: int, *seeds: int) -> np.ndarray:
    """Keys (count,) int32 for one step, all different; ``seeds``: run, rank, step, …"""
    return np.random.default_rng(seeds).choice(2**32, count, replace=False).astype(np.uint32).view(np.int32)


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
