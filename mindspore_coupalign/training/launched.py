"""Steps that are launched and whose results are still to be read.

A device computes on its own: the call of the jitted step returns before the step is done, and reading its results waits
for it. The loop therefore launches the next step first, so that the device does not wait for Python. A step's results
are (14,) float32, step.RESULTS.
"""

from dataclasses import dataclass

import numpy as np

from mindspore_coupalign.training.objective import LOSSES
from mindspore_coupalign.training.step import RESULTS

AHEAD = {"CPU": 0}  # steps launched before one is read: on CPU the call returns when all is computed; elsewhere:
AHEAD_ELSEWHERE = 1


def steps_ahead(target: str) -> int:
    return AHEAD.get(target, AHEAD_ELSEWHERE)


@dataclass(frozen=True)
class Launched:
    """A step on its way.

    Args:
        number: 1 for the first of the run.
        lr: its learning rate.
        outputs: of the jitted step, one for each micro-batch.
    """

    number: int
    lr: float
    outputs: list

    def read(self) -> dict:
        """Wait for it. RESULTS by name, losses as means over the micro-batches."""
        found = [output.asnumpy() for output in self.outputs]
        results = dict(zip(RESULTS, map(float, found[-1]), strict=True))
        return results | dict(zip(LOSSES, np.mean(found, 0)[:len(LOSSES)].astype(float), strict=False))
