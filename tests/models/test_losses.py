"""Losses against their formulas in float64, and at the edges: huge logits, empty and full masks, few negatives."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import ops
from tiny_network import pynative

from mindspore_coupalign.models.losses.terms import MaskLoss, PixelContrast
from mindspore_coupalign.models.rng import bind

TAU = 0.1


def blocks(*counts):
    """Masks (B, 1, 32, 32) of whole 4×4 blocks: the first ``count`` of the 64 positions at stride 4 are inside."""
    small = np.stack([np.arange(64) < count for count in counts]).reshape(-1, 1, 8, 8)
    return small.repeat(4, 2).repeat(4, 3).astype(np.float32)


def embedding(batch, seed=0):
    return np.random.default_rng(seed).normal(size=(batch, 6, 8, 8)).astype(np.float32)


def contrast_reference(y, mask, tau=TAU):
    """Pixel by pixel; the mean over the samples whose mask is neither empty nor full, 0 without any."""
    losses = []
    for sample, area in zip(y.astype(np.float64), mask, strict=True):
        inside = (area[0].reshape(8, 4, 8, 4).mean((1, 3)) >= 0.5).reshape(-1)
        if inside.all() or not inside.any():
            continue
        pixels = sample.reshape(len(sample), -1).T
        pixels = pixels / np.linalg.norm(pixels, axis=1, keepdims=True)
        mean, terms = pixels[inside].mean(0), []
        for pixel in pixels[inside]:
            rivals = [pixel @ mean / tau] + [pixel @ other / tau for other in pixels[~inside]]
            terms.append(np.logaddexp.reduce(rivals) - rivals[0])  # -log(own / (own + others))
        losses.append(np.mean(terms))
    return np.mean(losses) if losses else 0.0


def with_gradient(contrast, y, mask):
    loss, gradient = ms.value_and_grad(contrast)(ms.Tensor(y), ms.Tensor(mask))
    return float(loss), gradient.asnumpy()


@pytest.fixture(scope="module")
def full():
    return PixelContrast(TAU, 64)


def test_bce_and_dice_by_formula():
    random = np.random.default_rng(0)
    logits = random.normal(size=(3, 1, 8, 8)).astype(np.float32) * 3
    mask = (random.random((3, 1, 8, 8)) < 0.4).astype(np.float32)
    bce, dice = MaskLoss()(ms.Tensor(logits), ms.Tensor(mask))
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    np.testing.assert_allclose(float(bce), -(mask * np.log(p) + (1 - mask) * np.log(1 - p)).mean(), rtol=1e-5)
    each = [1 - (2 * (a * b).sum() + 1) / (a.sum() + b.sum() + 1) for a, b in zip(p, mask, strict=True)]
    np.testing.assert_allclose(float(dice), np.mean(each), rtol=1e-5)


def test_values_by_hand():
    mask = np.zeros((2, 1, 2, 2), np.float32)
    mask[0, 0, 0] = 1  # two of four pixels; the second mask is empty
    undecided = MaskLoss()(ms.Tensor(np.zeros_like(mask)), ms.Tensor(mask))
    assert float(undecided[0]) == pytest.approx(np.log(2), rel=1e-6)
    assert float(undecided[1]) == pytest.approx((1 - 3 / 5 + 1 - 1 / 3) / 2, rel=1e-6)
    right = MaskLoss()(ms.Tensor((mask * 2 - 1) * 100), ms.Tensor(mask))
    assert float(right[0]) == float(right[1]) == pytest.approx(0, abs=1e-6)
    wrong = MaskLoss()(ms.Tensor((1 - mask * 2) * 100), ms.Tensor(mask))
    assert float(wrong[0]) == pytest.approx(100) and float(wrong[1]) == pytest.approx((4 / 5 + 4 / 5) / 2, rel=1e-6)


def two_class_cross_entropy(logits, target, weight):
    """Of logits (N, 2) and classes (N,): the weighted mean that PyTorch documents for cross_entropy(weight=…)."""
    log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    each = weight[target]
    return -(each * log_p[np.arange(len(target)), target]).sum() / each.sum()


@pytest.mark.parametrize("weights", [(0.9, 1.1), (3.0, 0.5), (2.0, 2.0)])
def test_class_weights_are_those_of_two_logits(weights):
    random = np.random.default_rng(1)
    both = random.normal(size=(2 * 8 * 8, 2)) * 4  # background, foreground
    target = (random.random(len(both)) < 0.3).astype(int)
    one = (both[:, 1] - both[:, 0]).reshape(2, 1, 8, 8).astype(np.float32)
    mask = target.reshape(2, 1, 8, 8).astype(np.float32)
    bce, dice = MaskLoss(weights)(ms.Tensor(one), ms.Tensor(mask))
    expected = two_class_cross_entropy(both, target, np.array(weights))
    assert float(bce) == pytest.approx(expected, rel=1e-5)
    plain = MaskLoss()(ms.Tensor(one), ms.Tensor(mask))
    assert float(dice) == float(plain[1])
    assert (float(bce) == pytest.approx(float(plain[0]), rel=1e-6)) == (weights[0] == weights[1])


def test_class_weights_of_a_share():
    """A pixel that is a quarter foreground counts as four would, one of them foreground."""
    logits = np.array([1.5, -2.0], np.float32)
    share = np.array([0.25, 0.0], np.float32)
    bce = MaskLoss((0.9, 1.1))(*(ms.Tensor(x.reshape(1, 1, 1, 2)) for x in (logits, share)))[0]
    both = np.stack([np.zeros(8), logits.repeat(4).astype(float)], 1)
    expected = two_class_cross_entropy(both, np.array([1] + [0] * 7), np.array([0.9, 1.1]))
    assert float(bce) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("sign", [1, -1])
def test_huge_logits_stay_finite(sign):
    mask = blocks(20)
    logits = np.full_like(mask, sign * 1e4)

    def total(x, t):
        bce, dice = MaskLoss()(x, t)
        return bce + dice

    loss, gradient = ms.value_and_grad(total)(ms.Tensor(logits), ms.Tensor(mask))
    share = 1 - mask.mean() if sign > 0 else mask.mean()
    assert float(loss) == pytest.approx(1e4 * share, rel=1e-3)
    assert np.isfinite(gradient.asnumpy()).all() and np.abs(gradient.asnumpy()).max() > 0


def test_contrast_equals_the_formula(full):
    y, mask = embedding(3), blocks(10, 40, 63)
    assert with_gradient(full, y, mask)[0] == pytest.approx(contrast_reference(y, mask), rel=1e-4)
    assert contrast_reference(y, mask) > 1


def test_contrast_gradient_is_its_slope(full):
    y, mask = embedding(1), blocks(20)
    gradient = with_gradient(full, y, mask)[1]
    random = np.random.default_rng(5)
    for _ in range(3):
        step = random.normal(size=y.shape) * 1e-4
        slope = contrast_reference(y + step, mask) - contrast_reference(y - step, mask)
        np.testing.assert_allclose((gradient * 2 * step).sum(), slope, rtol=1e-2)


def test_half_covered_blocks_count_as_inside(full):
    y, mask = embedding(1), blocks(20)
    half = mask.copy()
    half[0, 0, 12:16, 0:2] = 1  # half of the 25th block
    less = mask.copy()
    less[0, 0, 12:15, 0:2] = 1
    values = [with_gradient(full, y, m)[0] for m in (mask, half, less)]
    assert values[1] == pytest.approx(contrast_reference(y, half), rel=1e-4) and values[1] != values[0] == values[2]


@pytest.mark.parametrize("negatives", [64, 20])
def test_empty_and_full_masks_add_nothing(negatives):
    contrast, y = PixelContrast(TAU, negatives), embedding(2)
    loss, gradient = with_gradient(contrast, y, blocks(0, 64))
    assert loss == 0 and (gradient == 0).all()
    ms.set_seed(1)
    loss, gradient = with_gradient(contrast, y, blocks(50, 64))
    assert (gradient[1] == 0).all() and np.isfinite(gradient).all() and np.abs(gradient[0]).max() > 0
    assert loss == pytest.approx(contrast_reference(y, blocks(50, 64)), rel=1e-4)  # all 14 background pixels are drawn


def test_a_draw_that_takes_all_background_equals_the_whole():
    """30 are drawn: of 64 - 40 background pixels all, of 64 - 34 exactly all; foreground pixels fill up in vain."""
    y, mask = embedding(2), blocks(40, 34)
    loss, gradient = with_gradient(PixelContrast(TAU, 30), y, mask)
    assert loss == pytest.approx(contrast_reference(y, mask), rel=1e-4)
    expected = with_gradient(PixelContrast(TAU, 64), y, mask)[1]
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-6)


def test_a_small_draw_is_bounded_and_random():
    """Fewer negatives in the denominator: a smaller loss than with all, another one for each key."""
    contrast, y, mask = PixelContrast(TAU, 8), embedding(2), blocks(10, 63)
    keys = bind(contrast)
    drawn = []
    for key in range(4):
        ops.assign(keys, ms.Tensor([key], ms.int32))
        with pynative():
            drawn.append(with_gradient(contrast, y, mask))
    assert all(np.isfinite(gradient).all() and 0 < loss < contrast_reference(y, mask) for loss, gradient in drawn)
    assert len({loss for loss, _ in drawn}) > 1
    only = contrast_reference(y[1:], mask[1:])  # one background pixel, of which 8 are drawn
    assert with_gradient(contrast, y[1:], mask[1:])[0] == pytest.approx(only, rel=1e-4)


@pytest.mark.parametrize("scale", [0.0, 1e-8, 1e6])
def test_contrast_of_any_length_of_vectors(full, scale):
    loss, gradient = with_gradient(full, embedding(1) * scale, blocks(20))
    assert np.isfinite(loss) and np.isfinite(gradient).all()


def test_low_temperature_stays_finite():
    """exp(1 / 0.001) overflows float32: the peak has to be taken out first."""
    y, mask = embedding(2), blocks(20, 30)
    loss, gradient = with_gradient(PixelContrast(1e-3, 64), y, mask)
    assert loss == pytest.approx(contrast_reference(y, mask, 1e-3), rel=1e-3) and np.isfinite(gradient).all()
