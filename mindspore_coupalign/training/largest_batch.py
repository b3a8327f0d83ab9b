"""The largest micro-batch that fits into the target's memory, for ``train --dry-run``.

Memory is taken as a + b · samples. One size is measured in a process of its own (step_memory.py) before the dry run
itself takes the configured one; where that might not fit, it is tried in such a process as well.
"""

from typing import NamedTuple

import numpy as np

from mindspore_coupalign import memory
from mindspore_coupalign.distributed import collectives as ranks
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.mindspore_calls import device_memory
from mindspore_coupalign.training.step_memory import Measured, measure, used

RESERVE = 0.1  # of the memory; fragments, and batches of longer-lived buffers, are not in the measurement
GIB = 2**30


class Line(NamedTuple):
    """Bytes by samples: ``fixed`` + ``each`` · samples."""

    fixed: float
    each: float

    @classmethod
    def through(cls, growths: dict[int, int]) -> "Line":
        """Through the two outer ones of the measured sizes. Where the larger one took no more, as noise can have it,
        and with a single one, all of the memory is counted as the samples': too high rather than too low."""
        small, large = min(growths), max(growths)
        each = (growths[large] - growths[small]) / max(large - small, 1)
        fixed = growths[large] - each * large
        return cls(fixed, each) if each > 0 and fixed >= 0 else cls(0.0, growths[large] / large)

    def at(self, samples: int) -> float:
        return self.fixed + self.each * samples

    def largest(self, room: float) -> int:
        """Samples that ``room`` bytes hold; 0: none."""
        return max(0, int((room - self.fixed) // self.each))


def micro_batches(batch: int, ranks: int, largest: int) -> int:
    """The least train.accumulate by which a global batch goes in micro-batches of at most ``largest``; 0: none does."""
    local = batch // ranks
    return next((n for n in range(1, local + 1) if local % n == 0 and local // n <= largest), 0)


class LargestBatch:
    """``check`` before the dry run's first step, ``report`` after its last.

    Args:
        trainer: of the dry run; nothing of it is compiled yet.
    """

    def __init__(self, trainer):
        self.trainer, self.runtime, train = trainer, trainer.runtime, trainer.config.train
        self.batch, self.local = train.batch_size, train.batch_size // self.runtime.ranks
        self.accumulate, self.micro = train.accumulate, self.local // train.accumulate
        self.target = self.runtime.target
        if self.target == "CPU":  # shared by the ranks of this machine, and what others have is not there
            host, workers, self.before = memory.host(), self.runtime.watch.workers, memory.resident()
            self.total = min(host.usable / workers, host.free / workers + self.before)
        else:
            self.total, self.before = float(device_memory(self.target)), 0
        self.growths: dict[int, int] = {}

    @property
    def room(self) -> float:
        """Bytes that a step may add, all but the reserve."""
        return self.total * (1 - RESERVE) - self.before

    def check(self):
        """Measure another size than the configured one, and see that the configured one fits.

        Raises:
            UserError: it does not.
        """
        other = self.micro // 2 or 2
        found = self._try(other)
        fits = found.growth and self.before + found.growth * max(1, self.micro / other) <= self.total
        if found.why and not found.lacks or fits or (found.growth and not self.total):
            return
        if found.lacks and other < self.micro:
            if other > 1:
                self._try(1)
            raise self._refusal(found, other)
        direct = self._try(self.micro)
        if direct.lacks:
            raise self._refusal(direct, self.micro)

    def _try(self, micro: int) -> Measured:
        """The mean over the ranks, which all try at the same time; if one of them fails, all have."""
        self.trainer.log(f"memory: trying {micro} samples in a process of its own, which compiles once more")
        self.runtime.watch.enter("starting", 0, compiles=True)
        own = measure(self.trainer.config, self.target, self.trainer.tokenizer.vocab_size, micro)
        sums = np.array([own.growth >> 20, own.lacks, bool(own.why)], np.int64)
        growth, lacks, failed = ranks.all_reduce_sum(sums, self.runtime).tolist()
        if failed:
            why = own.why or "another rank's process ended"
            if not lacks:
                self.trainer.log(f"memory: {micro} samples could not be measured: {why}")
            return Measured(lacks=bool(lacks), why=why)
        self.growths[micro] = (growth << 20) // self.runtime.ranks or 1
        return Measured(self.growths[micro])

    def _refusal(self, found: Measured, micro: int) -> UserError:
        of_all = f" of {self.total / GIB:.1f} GiB" if self.total else ""
        name = f"train.batch_size={self.batch}" + (f" with train.accumulate={self.accumulate}" * (self.accumulate > 1))
        tried = "" if micro == self.micro else f", for {micro} do not"
        recompute = "set train.recompute=true, " if self.target != "CPU" else ""  # which saves nothing there
        if not self.growths:
            return UserError(f"{name}: its {self.micro} samples at a time do not fit into the memory{of_all}{tried} "
                             f"({found.why}); {recompute}lower data.image_size or take a smaller model")
        line = Line.through(self.growths)
        largest = max(min(self.growths), line.largest(self.room)) if self.total else min(self.growths)
        return UserError(f"{name}: its {self.micro} samples at a time do not fit into the memory{of_all}{tried} "
                         f"({found.why}); {self._advice(min(largest, micro - 1))}")

    def _advice(self, largest: int) -> str:
        """How the configured batch goes into micro-batches of at most so many samples."""
        number = micro_batches(self.batch, self.runtime.ranks, largest)
        return f"train.accumulate={number} takes {self.local // number} at a time" if number else "lower it"

    def report(self, before: int):
        """Say what the configured size took, and which is the largest.

        Args:
            before: bytes that were resident before the first step.
        """
        grown = ranks.all_reduce_sum(np.array([max(0, used(self.target, before)) >> 20]), self.runtime)[0]
        self.growths[self.micro] = (int(grown) << 20) // self.runtime.ranks or 1
        if len(self.growths) == 1:
            return
        if self.target != "CPU":  # an NPU's total is not known before something has run there
            self.total = float(device_memory(self.target))
        for text in self.lines():
            self.trainer.log(text)

    def lines(self) -> list[str]:
        line = Line.through(self.growths)
        each = f"{line.each / GIB:.2g} GiB for each sample beside {(line.fixed + self.before) / GIB:.2g}"
        if not self.total:
            return [f"memory: about {each}; how much the {self.target} has is not known"]
        shared = " and rank" if self.runtime.ranks > 1 else ""
        largest = line.largest(self.room)
        found = [f"memory: about {each}: the largest micro-batch{shared} that fits into {self.total / GIB:.1f} GiB is "
                 f"about {largest}, {RESERVE:.0%} kept free"]
        number = micro_batches(self.batch, self.runtime.ranks, largest)
        if number and number != self.accumulate:
            found.append(f"memory: train.batch_size={self.batch} would fit with train.accumulate={number}, "
                         f"{self.local // number} samples at a time; it is {self.accumulate} now")
        elif not number:
            found.append(f"memory: {self.micro} samples at a time have passed, but within the reserve: another run may "
                         "not")
        return found
