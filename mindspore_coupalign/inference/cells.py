"""A MindSpore cell as a ``Network``: NumPy arrays in, an Answer of NumPy arrays out.

Shapes: pixels, ids (B, T) and word_mask (B, T) as ``Model`` gives them; logits (B, 1, H, W) and exists (B,) float32.
"""

import threading
from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import nn

from mindspore_coupalign.evaluation.answer import Answer
from mindspore_coupalign.evaluation.networks import CellNetwork, of_tensors
from mindspore_coupalign.inference.model import square
from mindspore_coupalign.inference.prediction import Details
from mindspore_coupalign.models.coupalign import Outputs

__all__ = ["LOCK", "CellNetwork", "Explainer", "WithOutputs"]
LOCK = threading.RLock()  # of all models of a process: MindSpore compiles and runs for one thread at a time


class Explainer:
    """The answer and, of a cell that returns CoupAlign.outputs, what the network looked at.

    Args:
        stages: those with word-pixel alignment, whose attention the cell returns.
    """

    def __init__(self, cell, stages: tuple[int, ...]):
        self._cell, self._stages = cell, sorted(stages)

    def __call__(self, pixels, ids, word_mask) -> tuple[Answer, Callable[[int, list[str]], Details] | None]:
        result = self._cell(ms.Tensor(pixels), ms.Tensor(ids), ms.Tensor(word_mask))
        if not isinstance(result, tuple) or len(result) < len(Outputs._fields):
            return of_tensors(result), None
        outputs = Outputs(*result)
        proposals, weights = outputs.proposals, outputs.weights

        def details(row: int, pieces: list[str]) -> Details:
            maps = {stage: square(of_heads[row].asnumpy().mean(0).T)[: len(pieces)]
                    for stage, of_heads in zip(self._stages, outputs.attention, strict=True)}
            if proposals is None or weights is None:
                return Details(pieces, maps, np.zeros((0, 1, 1), np.float32), np.zeros(0, np.float32))
            return Details(pieces, maps, square(proposals[row].asnumpy().T), weights[row].asnumpy())

        return of_tensors((outputs.logits, outputs.exists)), details


class WithOutputs(nn.Cell):
    """The network with its intermediates as one graph."""

    def __init__(self, model):
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, image, ids, word_mask):
        return self.model.outputs(image, ids, word_mask)
