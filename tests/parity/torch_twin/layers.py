"""What fusion, decoder and mask generator share.

Shapes: x (B, P, C); map (B, C, h, w).
"""

import math

import torch
from torch import nn


class Rectifier(nn.Module):
    """ReLU that can be told on which side of zero each value lies.

    A value whose rounding error is larger than itself may lie on either side, and the gradient jumps with it: ``side``
    (bool, the input's shape) is the other computation's decision, which is taken for values as small as that.
    """

    side = None
    rounding = 1e-4  # of the largest value

    def forward(self, x):
        if self.side is None:
            return x.relu()
        size = x.detach().abs()
        return torch.where(torch.where(size <= self.rounding * size.max(), self.side, x > 0), x, 0)


class Perceptron(nn.Sequential):
    """Linear, ReLU, linear."""

    def __init__(self, dim: int, hidden: int):
        super().__init__(nn.Linear(dim, hidden), Rectifier(), nn.Linear(hidden, dim))


class Gate(nn.Sequential):
    """tanh(W2 relu(W1 x) + b), with a bias in W1 too for LAVT."""

    def __init__(self, dim: int, first_bias: bool):
        super().__init__(nn.Linear(dim, dim, bias=first_bias), Rectifier(), nn.Linear(dim, dim), nn.Tanh())


def to_map(x):
    """(B, s·s, C) -> (B, C, s, s)"""
    side = math.isqrt(x.shape[1])
    return x.transpose(1, 2).unflatten(2, (side, side))


def sine_positions(side: int, dim: int) -> torch.Tensor:
    """(1, side·side, dim) float64: DETR's code of rows (first half of the channels) and columns, at cells' centres.

    Channels 2j and 2j+1 of a half are sine and cosine of the same angle; the place runs over 0..2π.
    """
    half = dim // 2
    place = (torch.arange(side, dtype=torch.float64) + 0.5) / side * 2 * math.pi
    pairs = torch.arange((half + 1) // 2, dtype=torch.float64)
    angles = place[:, None] * 10000.0 ** (-2 * pairs / half)
    code = torch.stack((angles.sin(), angles.cos()), -1).flatten(1)[:, :half]
    rows = code[:, None].expand(side, side, half)
    columns = code[None].expand(side, side, half)
    return torch.cat((rows, columns), -1).reshape(1, side * side, 2 * half)
