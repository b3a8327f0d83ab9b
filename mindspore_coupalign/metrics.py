"""The field's metrics from per-sample intersections and unions (in pixels).

oIoU = sum of I / sum of U; mIoU = mean of I/U; P@X = share of samples with I/U of at least X; all in percent.
A sample whose prediction and truth are both empty (U = 0) counts as I/U = 1.
"""

import math

import numpy as np

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


def logit(probability: float) -> float:
    """The logit above which a pixel's probability exceeds ``probability``."""
    return math.log(probability / (1 - probability))


def overlap(prediction: np.ndarray, truth: np.ndarray) -> tuple[int, int]:
    """Intersection and union of two (h, w) masks, in pixels."""
    a, b = prediction.astype(bool), truth.astype(bool)
    return int((a & b).sum()), int((a | b).sum())


def iou(inter: np.ndarray, union: np.ndarray) -> np.ndarray:
    """I/U per sample, (S,) float64."""
    return np.where(union > 0, inter / np.maximum(union, 1), 1.0)


def summarize(inter: np.ndarray, union: np.ndarray) -> dict:
    """The metrics of S samples, in percent, with their count; empty input gives a count of 0 and no numbers."""
    if len(inter) == 0:
        return {"samples": 0}
    each = iou(inter, union)
    overall = inter.sum() / union.sum() if union.any() else 1.0
    scores = {"samples": len(each), "oIoU": 100 * overall, "mIoU": 100 * each.mean()}
    # a hair below X, so that an exact 0.9 = 9/10 is not lost to rounding
    scores |= {f"P@{x}": 100 * (each >= x - 1e-12).mean() for x in THRESHOLDS}
    return {k: v if k == "samples" else round(float(v), 4) for k, v in scores.items()}
