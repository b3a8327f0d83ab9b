"""What computes logits, seen from outside: its inputs, its output, and what the output says about target presence.
Needs no MindSpore.

Shapes: image (B, 3, H, W) float32, or (B, H, W, 3) uint8 where the network normalises; ids, word_mask (B, T) int32,
1 = word, 0 = padding; logits (B, 1, H, W) float32; target_logits (B,) float32, positive where the sentence has a
target.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

ANY = 0  # InputSpec.batch: any size, each as good as another


class NetworkOutput(NamedTuple):
    logits: np.ndarray
    target_logits: np.ndarray | None = None  # None: a network without a target-presence head (model.no_target)

    def target_logit(self, row: int) -> float | None:
        """The logit that a row's sentence has a target; None without the head."""
        return None if self.target_logits is None else float(self.target_logits[row])


def as_output(result) -> NetworkOutput:
    """A NetworkOutput from what a network returns: one, the logits alone, or (logits, target_logits)."""
    return NetworkOutput(*result) if isinstance(result, tuple) else NetworkOutput(result)


class Network(Protocol):
    """Anything that computes logits: a checkpoint's network, a MINDIR, an ONNX file, a plain function."""

    def __call__(self, image: np.ndarray, ids: np.ndarray,
                 word_mask: np.ndarray) -> NetworkOutput | tuple | np.ndarray:
        """Logits, or (logits, target_logits)."""


class InputSpec(NamedTuple):
    """What a network takes."""

    batch: int | None = None  # ANY; a number: exactly that many; None: any number, but each size is compiled first
    uint8: bool = False  # pixels (B, H, W, 3) uint8, not normalised
    compiles: bool = True  # at its first call


@dataclass(frozen=True)
class TargetRule:
    """When a sentence counts as having a target: the mask is large enough, and the head, where there is one, says yes.

    Args:
        threshold: probability above which the head says yes.
        min_pixels: a mask of fewer pixels counts as empty; a mask without pixels always does.
    """

    threshold: float = 0.5
    min_pixels: int = 0

    def __call__(self, mask: np.ndarray, target_logit: float | None, head_alone: bool = False) -> bool:
        """Decide for a mask (h, w) as it was thresholded, and the head's logit.

        Args:
            head_alone: where there is a head and no ``min_pixels``, an empty mask does not overrule it (ReLA's rule).
        """
        if target_logit is not None and target_logit <= logit(self.threshold):
            return False
        least = self.min_pixels if head_alone and target_logit is not None else max(self.min_pixels, 1)
        return least == 0 or int(np.count_nonzero(mask)) >= least


def logit(probability: float) -> float:
    """The logit of a probability."""
    return math.log(probability / (1 - probability))
