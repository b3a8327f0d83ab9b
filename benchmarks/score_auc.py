"""How well a prediction's score tells right masks from wrong ones: the area under the ROC curve over a split, where a
mask is right from an IoU of 0.5 on. 0.5 is chance, 1 is perfect.

Usage: python benchmarks/score_auc.py MODEL DATA_ROOT DATASET SPLIT_BY SPLIT
Example: python benchmarks/score_auc.py refshapes data/refshapes refshapes shapes val
"""

import os
import sys

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # a clone that is not installed

import mindspore_coupalign as coupalign
from mindspore_coupalign.data.refer import read_refer
from mindspore_coupalign.evaluation.metrics import iou, overlap


def main():
    if len(sys.argv) != 6:
        sys.exit(__doc__)
    model, (root, dataset, split_by, split) = coupalign.load(sys.argv[1]), sys.argv[2:]
    data = read_refer(root, dataset, split_by)
    samples = data.split(split)
    refs = data.sentence_ref[samples]
    pairs = ((data.read_image(int(r)), data.sentence(int(s))) for r, s in zip(refs, samples, strict=True))
    found = model.predict_many(pairs, strict=False)
    rows = [(result.score, *overlap(result.mask, data.mask(int(r)))) for r, result in zip(refs, found, strict=True)]
    score, inter, union = np.array(rows).T
    right = iou(inter, union) >= 0.5
    print(f"{dataset} {split}: {len(rows)} sentences, {100 * right.mean():.1f} % right; area under the ROC curve of "
          f"the score: {area(score, right):.3f}")


def area(score: np.ndarray, right: np.ndarray) -> float:
    """The probability that a right mask's score exceeds a wrong one's; equal scores count half."""
    above = score[right][:, None] > score[~right][None]
    equal = score[right][:, None] == score[~right][None]
    return float((above + 0.5 * equal).mean())


if __name__ == "__main__":
    main()
