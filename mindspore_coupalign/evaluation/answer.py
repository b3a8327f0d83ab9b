"""What a network answers, and whether that says that the sentence means anything. Needs no MindSpore.

Shapes: logits (B, 1, H, W) float32; exists (B,) float32, logits, positive where the sentence means anything.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Answer(NamedTuple):
    logits: np.ndarray
    exists: np.ndarray | None = None  # None: the network has no head for it (model.no_target)

    def existence(self, row: int) -> float | None:
        """Logit that a row's sentence means anything, where there is a head for it."""
        return None if self.exists is None else float(self.exists[row])


def answer_of(result) -> Answer:
    """An Answer of what a network returns: one, the logits alone, or both as tuple."""
    return Answer(*result) if isinstance(result, tuple) else Answer(result)


@dataclass(frozen=True)
class Existence:
    """When a sentence counts as meaning something: the mask has pixels enough, and the head, where there is one, says
    yes.

    Args:
        threshold: probability above which the head's answer is yes.
        min_pixels: a mask of fewer pixels counts as none; one of no pixel always does.
    """

    threshold: float = 0.5
    min_pixels: int = 0

    def __call__(self, mask: np.ndarray, exists: float | None, head_alone: bool = False) -> bool:
        """Of a mask (h, w), before anything is taken from it, and the head's logit.

        Args:
            head_alone: an empty mask is no answer where there is a head, unless ``min_pixels`` is set (ReLA's rule).
        """
        if exists is not None and exists <= logit(self.threshold):
            return False
        least = self.min_pixels if head_alone and exists is not None else max(self.min_pixels, 1)
        return least == 0 or int(np.count_nonzero(mask)) >= least


def logit(probability: float) -> float:
    """The logit above which a probability exceeds ``probability``."""
    return math.log(probability / (1 - probability))
