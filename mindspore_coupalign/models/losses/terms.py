"""Mask losses and the pixel contrast.

Shapes: logits, mask (B, 1, H, W), mask 0/1; Y (B, C_d, h, w) pixel embedding at stride 4, P = h·w.
"""

from mindspore import nn, ops

from mindspore_coupalign.mindspore_calls import expand_dims
from mindspore_coupalign.models.layers import Product
from mindspore_coupalign.models.rng import Noise


def binary_cross_entropy(logits, target):
    """Element by element, of logits against 0..1: log(1 + e^-|x|) + max(x, 0) - x·t, the form that cannot overflow."""
    return ops.log1p(ops.exp(-ops.abs(logits))) + ops.relu(logits) - logits * target


class MaskLoss(nn.Cell):
    """Weighted binary cross-entropy (mean over pixels) and Dice (mean over samples): (bce, dice) scalars.

    Args:
        class_weights: of background and foreground in the cross-entropy, whose mean is then the weighted one,
            Σ w·ce / Σ w over the whole (micro-)batch, as PyTorch's ``cross_entropy(weight=…)`` takes it for two
            classes: one logit here is the difference of the two there. A pixel whose ground truth is a share t of
            foreground counts as t pixels of foreground and 1 - t of background. Equal weights change nothing.
    """

    def __init__(self, class_weights: tuple = (1.0, 1.0)):
        super().__init__()
        self.background, self.foreground = class_weights
        self.weighted = self.background != self.foreground

    def construct(self, logits, mask):
        if self.weighted:
            inside, outside = self.foreground * mask, self.background * (1 - mask)
            positive = ops.log1p(ops.exp(-ops.abs(logits))) + ops.relu(logits)  # -log(1 - p)
            bce = (inside * (positive - logits) + outside * positive).sum() / (inside + outside).sum()
        else:
            bce = binary_cross_entropy(logits, mask).mean()
        p = ops.sigmoid(logits).reshape((logits.shape[0], -1))
        t = mask.reshape((mask.shape[0], -1))
        dice = 1 - (2 * (p * t).sum(1) + 1) / (p.sum(1) + t.sum(1) + 1)
        return bce, dice.mean()


class PixelContrast(nn.Cell):
    """Pulls foreground pixels to the foreground's mean and away from background pixels (formula in docs/method.md, 6).

    Args:
        temperature: τ.
        negatives: at most so many background pixels per sample are drawn; where the map is no larger, all are used.

    ``construct(y, mask)`` gives a scalar; a sample whose mask is empty or full at stride 4 adds nothing.
    """

    def __init__(self, temperature: float, negatives: int):
        super().__init__()
        self.temperature = temperature
        self.negatives = negatives
        self.pairs, self.sum = Product(transposed=True), Product()
        self.noise = Noise()

    def construct(self, y, mask):
        b, c, h, w = y.shape
        coverage = ops.avg_pool2d(mask, mask.shape[2] // h, mask.shape[2] // h).reshape((b, h * w))
        inside = (coverage >= 0.5).astype(y.dtype)
        outside = 1 - inside
        y = y.reshape((b, c, h * w)).transpose((0, 2, 1))
        y = y * ops.rsqrt((y * y).sum(-1, keepdims=True) + 1e-12)
        count = inside.sum(1)
        mean = self.sum(inside.reshape((b, 1, h * w)), y) / ops.maximum(count, 1).reshape((b, 1, 1))
        others, allowed = y, outside
        if self.negatives < h * w:
            _, drawn = ops.topk(self.noise((b, h * w)) + outside, self.negatives)
            others = ops.gather_elements(y, 1, ops.tile(expand_dims(drawn, -1), (1, 1, c)))
            allowed = ops.gather_elements(outside, 1, drawn)
        positive = self.pairs(y, mean).reshape((b, h * w)) / self.temperature
        negative = self.pairs(y, others) / self.temperature + (allowed - 1).reshape((b, 1, -1)) * 1e4
        peak = ops.stop_gradient(ops.maximum(positive, ops.amax(negative, -1)))
        total = ops.exp(positive - peak) + ops.exp(negative - peak.reshape((b, -1, 1))).sum(-1)
        loss = ops.log(total) + peak - positive
        valid = (count > 0).astype(y.dtype) * (outside.sum(1) > 0).astype(y.dtype)
        return ((loss * inside).sum(1) / ops.maximum(count, 1) * valid).sum() / ops.maximum(valid.sum(), 1)
