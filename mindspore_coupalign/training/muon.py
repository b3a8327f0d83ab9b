"""Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon): orthogonal updates of matrices.

A matrix moves by the orthogonal factor of its averaged gradient: equally far along every direction of the gradient,
strong or weak. A network trained from scratch therefore learns what few samples show (the shape of an object) at the
same time as what all of them show (where objects are).

Shapes: matrix (r, c), of a convolution (out, in·k·k); a bin (n, R, C), R ≤ C, holds n matrices of similar shape, tall
ones transposed, padded with zeros, which do not change the orthogonal factor.
"""

import numpy as np
from mindspore import Tensor, nn, ops

A, B, C = 3.4445, -4.7750, 2.0315  # of the quintic iteration; it ends with singular values of about 0.7 to 1.2
ITERATIONS = 5


def matrix_shape(parameter) -> tuple:
    """(rows, columns) of a parameter as a matrix."""
    return parameter.shape[0], parameter.size // parameter.shape[0]


def bin_shape(shape: tuple) -> tuple:
    """(R, C) of the bin for matrices of a shape: few bins, hence few kernels, with little padding."""
    short, long = sorted(shape)
    return -(-short // 32) * 32, max(64, 1 << (long - 1).bit_length())


class Orthogonal(nn.Cell):
    """Newton-Schulz iterations towards the orthogonal factor U Vᵀ of U S Vᵀ: (n, R, C) -> (n, R, C)."""

    def __init__(self, rows: int):
        super().__init__()
        eye = np.eye(rows, dtype=np.float32)
        self.a, self.b = Tensor(A * eye), Tensor(B * eye)
        self.product = ops.BatchMatMul()
        self.gram = ops.BatchMatMul(transpose_b=True)

    def construct(self, x):
        x = x * ops.rsqrt((x * x).sum((1, 2), keepdims=True) + 1e-20)
        for _ in range(ITERATIONS):
            s = self.gram(x, x)
            x = self.product(self.product(s, C * s + self.b) + self.a, x)  # (A + B s + C s²) x
        return x


class Muon(nn.Cell):
    """Joined averaged gradients (P,) of some matrices -> their moves (P,), of root mean square about 1.

    Args:
        shapes: (r, c) of each matrix, in the order in which they are joined.
    """

    def __init__(self, shapes: list):
        super().__init__()
        ends = np.cumsum([r * c for r, c in shapes])
        bins = {}
        for shape, end in zip(shapes, ends.tolist(), strict=True):
            own = np.arange(end - shape[0] * shape[1], end).reshape(shape)
            bins.setdefault(bin_shape(shape), []).append(own if shape[0] <= shape[1] else own.T)
        size = int(ends[-1])
        fill, source, offset = [], np.empty(size, np.int32), 0
        for (rows, columns), members in bins.items():
            place = np.full((len(members), rows, columns), size, np.int32)  # size stands for zero
            for one, own in zip(place, members, strict=True):
                one[:own.shape[0], :own.shape[1]] = own
            cells = np.flatnonzero(place.reshape(-1) < size)
            source[place.reshape(-1)[cells]] = offset + cells
            offset += place.size
            fill.append(Tensor(place))
        self.fill, self.source = tuple(fill), Tensor(source)
        self.orthogonal = nn.CellList([Orthogonal(rows) for rows, _ in bins])
        # an orthogonal factor of (r, c) has entries of root mean square 1 / sqrt(max(r, c))
        self.scale = Tensor(np.concatenate([np.full(r * c, max(r, c) ** 0.5, np.float32) for r, c in shapes]))

    def construct(self, averaged):
        averaged = ops.concat((averaged, ops.zeros((1,), averaged.dtype)))
        moves = ()
        for i in range(len(self.fill)):
            moves += (self.orthogonal[i](ops.gather(averaged, self.fill[i], 0)).reshape((-1,)),)
        return ops.gather(ops.concat(moves), self.source, 0) * self.scale
