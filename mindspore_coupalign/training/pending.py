"""Asynchronous stepping: steps that are launched and whose results are still to be read.

On a GPU or NPU the call of the jitted step returns before the step is done, and reading its results waits for it. The
next step is therefore launched first, so that the device does not wait for Python.
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

import mindspore as ms
import numpy as np

from mindspore_coupalign.config import TrainConfig
from mindspore_coupalign.distributed.process import Runtime
from mindspore_coupalign.interrupts import StopRequest
from mindspore_coupalign.models.rng import draw_keys
from mindspore_coupalign.training.step import StepResults


class FinishedStep(NamedTuple):
    number: int  # 1 for the first of the run
    lr: float
    results: StepResults
    elapsed: float  # seconds of the run when it was launched, the mean over the ranks; 0 without a time budget


class PendingSteps:
    """Launches steps, and reads their results in the same order. Tells the watch what this rank is doing.

    Args:
        elapsed: seconds of the run until now.
        launched: steps of earlier runs that this one resumes.
        ahead: steps that may be pending while another one is launched.
    """

    def __init__(self, step, train: TrainConfig, runtime: Runtime, stop: StopRequest, elapsed: Callable[[], float],
                 launched: int, ahead: int):
        self.step, self.train, self.runtime, self.watch = step, train, runtime, runtime.watch
        self.stop, self.elapsed, self.launched, self.ahead = stop, elapsed, launched, ahead
        self.budget = 60 * train.minutes
        self.steps = deque[tuple[int, float, list]]()  # number, learning rate, the outputs of the micro-batches

    def __len__(self) -> int:
        return len(self.steps)

    def launch(self, batch: Iterable, lr: float):
        """Launch one update from the micro-batches of a batch: (image, ids, word_mask, mask, …) each, loaded here."""
        compiles, outputs = not self.step.compiled, list[ms.Tensor]()
        share = self.elapsed() / self.budget if self.budget else 0.0
        batch, keys = iter(batch), self.step.keys.size
        for micro in range(self.train.accumulate):
            self.watch.enter("loading", self.launched)
            image, ids, word_mask, mask = map(ms.Tensor.from_numpy, next(batch)[:4])  # no copy, unlike ms.Tensor
            self.watch.enter("step", self.launched, compiles=not self.step.compiled)
            noise = draw_keys(keys, self.train.seed, self.runtime.rank, self.launched, micro)
            if self.runtime.target == "CPU":  # elsewhere collectives wait for much longer
                self.watch.barrier()
            outputs.append(self.step(image, ids, word_mask, mask, ms.Tensor(np.float32(lr)), noise,
                                     (self.stop.received > 0, share), micro == self.train.accumulate - 1))
            if compiles:  # another rank may compile for longer; the watch is patient in a step that compiles
                outputs[micro].asnumpy()
            elif micro >= self.ahead:  # wait: no more micro-batches than that may lie on the device
                outputs[micro - self.ahead].asnumpy()
        self.launched += 1
        self.steps.append((self.launched, lr, outputs))

    def read(self) -> FinishedStep:
        """Wait for the first pending step."""
        number, lr, outputs = self.steps.popleft()
        results = StepResults.of([output.asnumpy() for output in outputs])
        if self.steps:
            self.watch.enter("step", self.launched - 1)  # the time of the next pending one begins
        return FinishedStep(number, lr, results, results.clock / self.runtime.ranks * self.budget)
