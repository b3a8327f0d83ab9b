"""The guided filter against a regression per window by NumPy's solver, and what it is there for."""

import mindspore as ms
import numpy as np
import pytest
from numpy_layers import assert_near

from mindspore_coupalign.models.heads.guided_filter import GuidedFilter, spread_matrix
from mindspore_coupalign.models.layers import Resize


def cell_mean(maps, factor):
    """(C, H, W) -> (C, h, w)."""
    c, h, w = maps.shape
    return maps.reshape(c, h // factor, factor, w // factor, factor).mean((2, 4))


def windows(h, w, reach):
    for i in range(h):
        for j in range(w):
            yield i, j, slice(max(0, i - reach), i + reach + 1), slice(max(0, j - reach), j + reach + 1)


def reference(coarse, image, factor, side, eps, steepness):
    """One sample, (h, w) and (3, H, W) -> (H, W)."""
    mask = 1 / (1 + np.exp(-coarse)) - 0.5
    (h, w), reach = coarse.shape, side // 2
    colours = cell_mean(image, factor)
    fits = np.zeros((4, h, w))
    for i, j, rows, columns in windows(h, w, reach):
        pixels = image[:, rows.start * factor:min(h, rows.stop) * factor,
                       columns.start * factor:min(w, columns.stop) * factor].reshape(3, -1)
        covariance = np.cov(pixels, bias=True) + eps * np.eye(3)
        part, seen = mask[rows, columns].reshape(-1), colours[:, rows, columns].reshape(3, -1)
        a = np.linalg.solve(covariance, (seen * part).mean(1) - seen.mean(1) * part.mean())
        fits[:, i, j] = *a, part.mean() - a @ pixels.mean(1)
    smooth = np.stack([fits[:, rows, columns].mean((1, 2)) for _, _, rows, columns in windows(h, w, reach)], 1)
    smooth = smooth.reshape(4, h, w).astype(np.float32)
    full = Resize((h * factor, w * factor))(ms.Tensor(smooth[None])).asnumpy()[0]
    return steepness * ((full[:3] * image).sum(0) + full[3])


@pytest.mark.parametrize(("h", "w", "factor", "side"), [(6, 6, 4, 3), (5, 8, 2, 5), (4, 3, 4, 1)])
def test_equals_a_regression_per_window(h, w, factor, side):
    random = np.random.default_rng(h)
    coarse = random.normal(size=(2, 1, h, w)).astype(np.float32) * 3
    image = random.normal(size=(2, 3, h * factor, w * factor)).astype(np.float32)
    out = GuidedFilter((h, w), factor, side)(ms.Tensor(coarse), ms.Tensor(image)).asnumpy()
    for i in range(2):
        assert_near(out[i, 0], reference(coarse[i, 0].astype(np.float64), image[i], factor, side, 0.01, 8.0), 1e-3)


def test_spreading_is_bilinear_interpolation():
    x = np.random.default_rng(0).normal(size=(1, 1, 5, 1)).astype(np.float32)
    x = np.repeat(x, 3, 3)
    expected = Resize((20, 3))(ms.Tensor(x)).asnumpy()[0, 0, :, 0]
    np.testing.assert_allclose(spread_matrix(5, 4) @ x[0, 0, :, 0], expected, atol=1e-6)


@pytest.mark.parametrize("colour", [-1.5, 1.8])
def test_a_flat_picture_gives_a_smooth_mask(colour):
    """Nothing to go by: the colours take no part, the filter is an average, and nothing is divided by zero."""
    coarse = np.zeros((1, 1, 8, 8), np.float32)
    coarse[..., 4:] = 4
    image = np.full((1, 3, 32, 32), colour, np.float32)
    out = GuidedFilter((8, 8), 4)(ms.Tensor(coarse), ms.Tensor(image)).asnumpy()[0, 0]
    assert np.isfinite(out).all() and (np.diff(out, axis=1) > -1e-3).all()
    assert out[:, 0].max() < 0.1 < 3 < out[:, -1].min()


def test_edges_of_the_picture_bound_the_mask():
    """A disc whose coarse mask is blurred to cells comes back pixel by pixel."""
    y, x = np.mgrid[:64, :64] + 0.5
    truth = (x - 30) ** 2 + (y - 35) ** 2 < 8**2
    image = np.where(truth, np.array([1.2, -0.8, -0.5])[:, None, None], 0.1).astype(np.float32)
    image += np.random.default_rng(0).normal(size=image.shape).astype(np.float32) * 0.05
    coarse = (cell_mean(truth[None].astype(np.float32), 4) - 0.5)[None] * 6
    plain = Resize((64, 64))(ms.Tensor(coarse)).asnumpy()[0, 0] > 0
    out = GuidedFilter((16, 16), 4)(ms.Tensor(coarse), ms.Tensor(image[None])).asnumpy()[0, 0] > 0

    def iou(mask):
        return (mask & truth).sum() / (mask | truth).sum()

    assert iou(out) > 0.98 > 0.93 > iou(plain)
