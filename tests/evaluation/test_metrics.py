"""Metrics computed by hand, at the exact thresholds and without any pixel."""

import numpy as np
import pytest

from mindspore_coupalign.evaluation.metrics import THRESHOLDS, iou, overlap, summarize


def test_overlap_counts_pixels():
    prediction, truth = np.zeros((4, 5), bool), np.zeros((4, 5), np.uint8)
    prediction[1:3, 1:4], truth[2:4, 2:5] = True, 1
    assert overlap(prediction, truth) == (2, 10)
    assert overlap(prediction, 255 * truth) == (2, 10)  # any value but 0 is inside
    assert overlap(prediction, np.zeros_like(truth)) == (0, 6)
    assert overlap(np.zeros((3, 3)), np.zeros((3, 3))) == (0, 0)
    a, b = np.random.default_rng(0).random((2, 33, 47)) > 0.6
    assert overlap(a, b) == (int((a & b).sum()), int((a | b).sum()))


def test_metrics_by_hand():
    inter, union = np.array([90, 3, 0, 5]), np.array([100, 4, 10, 10])
    assert summarize(inter, union) == {
        "samples": 4, "oIoU": pytest.approx(100 * 98 / 124, abs=1e-4), "mIoU": pytest.approx(53.75),
        "P@0.5": 75.0, "P@0.6": 50.0, "P@0.7": 50.0, "P@0.8": 25.0, "P@0.9": 25.0}


def test_large_objects_weigh_more_in_oiou_only():
    few = summarize(np.array([900, 0]), np.array([1000, 10]))
    assert few["oIoU"] == pytest.approx(100 * 900 / 1010, abs=1e-4) and few["mIoU"] == 45.0


@pytest.mark.parametrize("x", THRESHOLDS)
@pytest.mark.parametrize("scale", [1, 7, 3333])
def test_exactly_the_threshold_counts(x, scale):
    whole = 10 * scale
    exact = round(x * whole)
    scores = summarize(np.array([exact, exact - 1]), np.array([whole, whole]))
    assert scores[f"P@{x}"] == 50.0


def test_an_empty_prediction_of_nothing_is_right():
    np.testing.assert_array_equal(iou(np.array([0, 0, 4]), np.array([0, 5, 4])), [1, 0, 1])
    scores = summarize(np.array([0, 2]), np.array([0, 4]))
    assert scores["mIoU"] == 75.0 and scores["oIoU"] == 50.0 and scores["P@0.9"] == 50.0
    assert summarize(np.array([0]), np.array([0]))["mIoU"] == 100.0


def test_only_empty_masks_agree_on_both_scores():
    """All right answers: no score may say 0 (see iou)."""
    assert summarize(np.zeros(3, int), np.zeros(3, int))["oIoU"] == 100.0


def test_no_samples():
    assert summarize(np.array([], int), np.array([], int)) == {"samples": 0}


def test_identical_masks_score_100_and_the_scores_keep_their_bounds():
    random = np.random.default_rng(0)
    masks = random.random((20, 9, 11)) < random.random((20, 1, 1))
    same = summarize(*np.array([overlap(m, m) for m in masks]).T)
    assert {v for k, v in same.items() if k != "samples"} == {100.0}
    inter, union = np.array([overlap(a, b) for a, b in zip(masks, np.roll(masks, 1, 0), strict=True)]).T
    scores = summarize(inter, union)
    shares = [scores[f"P@{x}"] for x in THRESHOLDS]
    assert shares == sorted(shares, reverse=True)
    assert 100 * (inter / union).min() <= scores["oIoU"] <= 100 * (inter / union).max()
    order = random.permutation(20)
    assert summarize(inter[order], union[order]) == scores


def test_sums_do_not_overflow():
    large = np.full(3000, 1 << 20)
    assert summarize(large, large * 2)["oIoU"] == 50.0
