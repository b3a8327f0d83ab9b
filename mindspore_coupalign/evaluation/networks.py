"""What evaluation sends its batches through: NumPy arrays in, an Answer (answer.py) of NumPy arrays out.

Shapes: image (B, 3, H, W) float32, or (B, H, W, 3) uint8 for graphs that normalise; ids, word_mask (B, T) int32;
logits (B, 1, H, W) float32.
"""

import dataclasses
from collections.abc import Callable

import mindspore as ms
import numpy as np

from mindspore_coupalign import build
from mindspore_coupalign.config import Config
from mindspore_coupalign.distributed.process import Runtime
from mindspore_coupalign.evaluation.answer import Answer
from mindspore_coupalign.weights.checkpoint import Checkpoint


class CellNetwork:
    """The answers of a cell, or of any function of tensors: logits, or (logits, exists)."""

    def __init__(self, cell):
        self._cell = cell

    def __call__(self, image: np.ndarray, ids: np.ndarray, word_mask: np.ndarray) -> Answer:
        return of_tensors(self._cell(ms.Tensor(image), ms.Tensor(ids), ms.Tensor(word_mask)))


def of_tensors(result) -> Answer:
    """The answer of what a cell returns: logits, or (logits, exists or None)."""
    logits, exists = result if isinstance(result, tuple) else (result, None)
    return Answer(array(logits), None if exists is None else array(exists))


def array(tensor: ms.Tensor) -> np.ndarray:
    """Whatever precision it was computed in, float32."""
    return tensor.asnumpy().astype(np.float32, copy=False)


class Networks:
    """The checkpoint's network for a number of word pieces, each compiled once: data.max_tokens, and what the longest
    prompt of several sentences needs."""

    uint8 = False

    def __init__(self, checkpoint: Checkpoint, config: Config, amp: str | None, runtime: Runtime, longest: int):
        self.longest, self.has_head = max(longest, config.data.max_tokens), config.model.no_target
        self.built, self.runtime, cells = {}, runtime, {}
        for tokens in sorted({config.data.max_tokens, self.longest}):
            own = dataclasses.replace(config, data=dataclasses.replace(config.data, max_tokens=tokens))
            cells[tokens], _ = build.restore_model(checkpoint, own, amp, runtime.target)
            self.built[tokens] = CellNetwork(cells[tokens])
        self.precision = cells[config.data.max_tokens].precision._asdict()
        if self.longest > config.data.max_tokens and not config.model.text_weights and runtime.rank == 0:
            print(f"note: prompts of several sentences take up to {self.longest} positions; training from scratch has "
                  f"seen {config.data.max_tokens} of them, the rest is as it was drawn")

    def __call__(self, length: int) -> tuple:
        """The number of word pieces that the prompts are padded to, and the network for it."""
        self.runtime.watch.enter("evaluating", 0, compiles=True)
        tokens = min(self.built) if length <= min(self.built) else self.longest
        return tokens, self.built[tokens]


class GraphNetworks:
    """An exported graph, which reads one number of word pieces.

    Args:
        facts: the sidecar's.
    """

    def __init__(self, network: Callable, facts: dict, runtime: Runtime):
        self.network, self.runtime, self.tokens = network, runtime, facts["max_tokens"]
        self.uint8 = facts["inputs"][0]["type"] == "uint8"
        self.has_head = len(facts.get("outputs", ())) > 1
        self.precision = {"amp": facts.get("amp"), "amp_dtype": facts.get("amp_dtype")}

    def __call__(self, length: int) -> tuple:
        """The number of word pieces that the prompts are padded to, and the network."""
        self.runtime.watch.enter("evaluating", 0, compiles=True)
        return self.tokens, self.network
