"""The fast guided filter (He & Sun, 2015) as the last layer: the picture's own edges bound the mask.

Shapes: coarse logits (B, 1, h, w); image, the guide (B, 3, H, W); a cell is the r × r pixels of one coarse logit.
"""

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops


def box_matrix(length: int, side: int) -> np.ndarray:
    """(length, length): row i is the mean of the cells at most side // 2 away from i."""
    i = np.arange(length)
    near = (np.abs(i[:, None] - i) <= side // 2).astype(np.float32)
    return near / near.sum(1, keepdims=True)


def pool_matrix(length: int, factor: int) -> np.ndarray:
    """(length, length · factor): the mean of each cell's pixels."""
    return np.repeat(np.eye(length, dtype=np.float32), factor, 1) / factor


def spread_matrix(length: int, factor: int) -> np.ndarray:
    """(length · factor, length): linear interpolation from cells to pixels, half-pixel centres, ends repeated."""
    place = np.clip((np.arange(length * factor) + 0.5) / factor - 0.5, 0, length - 1)
    return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(length))).astype(np.float32)


class Separable(nn.Cell):
    """One linear map along the rows and another along the columns of every channel: (B, C, h, w) -> (B, C, h', w')."""

    def __init__(self, rows: np.ndarray, columns: np.ndarray):
        super().__init__()
        self.rows, self.columns = Tensor(rows), Tensor(np.ascontiguousarray(columns.T))

    def construct(self, x):
        return ops.matmul(self.rows, ops.matmul(x, self.columns))


class GuidedFilter(nn.Cell):
    """logits = steepness · (a · image + b), (B, 1, h, w) and (B, 3, H, W) -> (B, 1, H, W).

    Per cell, a (3) and b (1) are the ridge regression of the coarse mask, sigmoid(coarse) - 1/2, on the pixels' colours
    over side × side cells; they are averaged over the same window and interpolated. The filter is linear in the coarse
    mask; only the steepness is learned.

    Args:
        cells: (h, w).
        factor: r.
        side: of the window, in cells, odd.
        eps: ridge, in units of the normalised image's variance.
    """

    amp_rule = "float32"

    def __init__(self, cells: tuple, factor: int, side: int = 3, eps: float = 0.01, steepness: float = 8.0):
        super().__init__()
        box = [box_matrix(n, side) for n in cells]
        pool = [pool_matrix(n, factor) for n in cells]
        spread = [spread_matrix(n, factor) for n in cells]
        self.eps = eps
        self.window = Separable(*box)
        self.pool = Separable(*pool)
        self.pool_window = Separable(*(b @ p for b, p in zip(box, pool, strict=True)))
        self.spread_window = Separable(*(s @ b for s, b in zip(spread, box, strict=True)))
        self.steepness = Parameter(Tensor([steepness], ms.float32))

    def construct(self, coarse, image):
        colours = self.pool(image)
        mean, inverse = self._colour_statistics(colours, image)
        mask = ops.sigmoid(coarse) - 0.5
        mask_mean = self.window(mask)
        r, g, b = ops.split(self.window(colours * mask) - mean * mask_mean, 1, 1)  # covariances with the mask
        rr, rg, rb, gg, gb, bb = inverse
        a = ops.concat((rr * r + rg * g + rb * b, rg * r + gg * g + gb * b, rb * r + gb * g + bb * b), 1)
        b = mask_mean - (a * mean).sum(1, keepdims=True)
        fit = self.spread_window(ops.concat((a, b), 1))
        return self.steepness * ((fit[:, :3] * image).sum(1, keepdims=True) + fit[:, 3:])

    def _colour_statistics(self, colours, image):
        """Mean (B, 3, h, w) and inverse covariance with the ridge, six of (B, 1, h, w), of the windows' pixels."""
        mean = self.window(colours)
        moments = self.pool_window(_products(*ops.split(image, 1, 1)))
        rr, rg, rb, gg, gb, bb = ops.split(moments - _products(*ops.split(mean, 1, 1)), 1, 1)
        rr, gg, bb = rr + self.eps, gg + self.eps, bb + self.eps
        adjugate = (gg * bb - gb * gb, gb * rb - rg * bb, rg * gb - gg * rb,
                    rr * bb - rb * rb, rb * rg - rr * gb, rr * gg - rg * rg)
        scale = 1 / (rr * adjugate[0] + rg * adjugate[1] + rb * adjugate[2])
        return mean, tuple([scale * part for part in adjugate])


def _products(r, g, b):
    return ops.concat((r * r, r * g, r * b, g * g, g * b, b * b), 1)
