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
    """When a sentence counts as meaning something: by the head, where there is one, and by the mask's pixels.

    Args:
        threshold: probability above which the head's answer is yes.
        min_pixels: a mask of fewer pixels counts as none. Without a head, so does one of no pixel at all.
    """

    threshold: float = 0.5
    min_pixels: int = 0

    def __call__(self, mask: np.ndarray, exists: float | None) -> bool:
        """Of a mask (h, w), before anything is taken from it, and the head's logit."""
        if exists is not None and exists <= logit(self.threshold):
            return False
        least = self.min_pixels if exists is not None else max(self.min_pixels, 1)
        return least == 0 or int(np.count_nonzero(mask)) >= least


def logit(probability: float) -> float:
    """The logit above which a probability exceeds ``probability``."""
    return math.log(probability / (1 - probability))
