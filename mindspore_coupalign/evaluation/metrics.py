"""The field's metrics from per-sample intersections and unions (in pixels).

oIoU = sum of I / sum of U; mIoU = mean of I/U; P@X = share of samples with I/U of at least X; all in percent.
A sample whose prediction and ground truth are both empty (U = 0) counts as I/U = 1.
"""

import math

import numpy as np

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


def overlap(prediction: np.ndarray, truth: np.ndarray) -> tuple[int, int]:
    """Intersection and union of two (h, w) masks in pixels."""
    a, b = prediction.astype(bool, copy=False), truth.astype(bool, copy=False)
    inter = int(np.count_nonzero(a & b))
    return inter, int(np.count_nonzero(a)) + int(np.count_nonzero(b)) - inter


def iou(inter: np.ndarray, union: np.ndarray, empty=1.0, epsilon: float = 0.0) -> np.ndarray:
    """I/U per sample, (S,) float64.

    Args:
        empty: its value where U = 0; one number, or one per sample.
        epsilon: added to U, as some projects do.
    """
    return np.where(union > 0, inter / np.maximum(union + epsilon, 1), empty)


def summarize(inter: np.ndarray, union: np.ndarray, *, thresholds: tuple = THRESHOLDS, strict: bool = False, empty=1.0,
              epsilon: float = 0.0, group: np.ndarray | None = None, running: bool = False,
              counted: np.ndarray | None = None) -> dict:
    """The metrics of S samples, in percent, with their count; empty input gives a count of 0 and no numbers.

    The defaults are this project's; the other values are for other projects' rules (protocols.py).

    Args:
        thresholds: the X of P@X.
        strict: P@X counts I/U > X instead of I/U >= X.
        empty, epsilon: as for ``iou``.
        group: (S,) neighbours of equal value form a group; mIoU is the mean over groups of each group's mean.
        running: P@X compares the sum of I/U over the group up to the sample, not the sample's own.
        counted: (S,) bool, the samples that P@X is a share of; None for all.
    """
    if len(inter) == 0:
        return {"samples": 0}
    each = iou(inter, union, empty, epsilon)
    overall = inter.sum() / union.sum() if union.any() else np.mean(empty)
    mean = each.mean()
    compared = each
    if group is not None:
        first = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
        size = np.diff(np.r_[first, len(group)])
        mean = (np.add.reduceat(each, first) / size).mean()
        if running:
            compared = np.concatenate([np.cumsum(part) for part in np.split(each, first[1:])])
    if counted is not None:
        compared = compared[counted]
    scores = {"samples": len(each), "oIoU": 100 * overall, "mIoU": 100 * mean}
    for x in thresholds:  # a hair below X, so that an exact 0.9 = 9/10 is not lost to rounding
        passed = compared > x if strict else compared >= x - 1e-12
        scores[f"P@{x:.1f}"] = 100 * passed.mean() if len(passed) else math.nan
    return {k: v if k == "samples" else round(float(v), 4) for k, v in scores.items()}


def target_scores(has_target: np.ndarray, predicted_target: np.ndarray) -> dict:
    """GRES's accuracy of target presence (Liu et al., CVPR 2023), in percent: N_acc over the samples without a target,
    T_acc over those with one. Empty where every sample has a target.

    Args:
        has_target, predicted_target: (S,) bool.
    """
    if has_target.all():
        return {}
    scores = {"N_acc": float((~predicted_target[~has_target]).mean())}
    if has_target.any():
        scores["T_acc"] = float(predicted_target[has_target].mean())
    return {name: round(100 * value, 4) for name, value in scores.items()}
