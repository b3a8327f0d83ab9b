"""MindSpore cells as a ``Network``: NumPy arrays in, a NetworkOutput of NumPy arrays out; shapes as in network.py."""

import threading
from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import nn

from mindspore_coupalign.inference.network import NetworkOutput
from mindspore_coupalign.inference.predictions import Details
from mindspore_coupalign.models.coupalign import Outputs

LOCK = threading.RLock()  # shared by all models of a process: MindSpore compiles and runs for one thread at a time


class CellNetwork:
    """A cell, or any function of tensors, that returns logits or (logits, target_logits)."""

    def __init__(self, cell):
        self._cell = cell

    def __call__(self, image: np.ndarray, ids: np.ndarray, word_mask: np.ndarray) -> NetworkOutput:
        return _of_tensors(self._cell(ms.Tensor(image), ms.Tensor(ids), ms.Tensor(word_mask)))


class Explainer:
    """The output and, of a cell that returns CoupAlign.outputs, what the network looked at.

    Args:
        stages: those with word-pixel alignment, whose attention the cell returns.
    """

    def __init__(self, cell, stages: tuple[int, ...]):
        self._cell, self._stages = cell, sorted(stages)

    def __call__(self, pixels, ids, word_mask) -> tuple[NetworkOutput, Callable[[int, list[str]], Details] | None]:
        result = self._cell(ms.Tensor(pixels), ms.Tensor(ids), ms.Tensor(word_mask))
        if not isinstance(result, tuple) or len(result) < len(Outputs._fields):
            return _of_tensors(result), None
        outputs = Outputs(*result)
        proposals, weights = outputs.proposals, outputs.weights

        def details(row: int, pieces: list[str]) -> Details:
            maps = {stage: _square(of_heads[row].asnumpy().mean(0).T)[: len(pieces)]
                    for stage, of_heads in zip(self._stages, outputs.attention, strict=True)}
            if proposals is None or weights is None:
                return Details(pieces, maps, np.zeros((0, 1, 1), np.float32), np.zeros(0, np.float32))
            return Details(pieces, maps, _square(proposals[row].asnumpy().T), weights[row].asnumpy())

        return _of_tensors((outputs.logits, outputs.has_target)), details


class WithOutputs(nn.Cell):
    """The network with its intermediates as one graph."""

    def __init__(self, model):
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, image, ids, word_mask):
        return self.model.outputs(image, ids, word_mask)


def _of_tensors(result) -> NetworkOutput:
    """From what a cell returns: logits, or (logits, target_logits or None)."""
    logits, target = result if isinstance(result, tuple) else (result, None)
    return NetworkOutput(_array(logits), None if target is None else _array(target))


def _array(tensor: ms.Tensor) -> np.ndarray:
    """As float32, whatever precision it was computed in."""
    return tensor.asnumpy().astype(np.float32, copy=False)


def _square(rows: np.ndarray) -> np.ndarray:
    """(n, side²) -> (n, side, side)."""
    side = round(rows.shape[1] ** 0.5)
    return rows.reshape(-1, side, side)
