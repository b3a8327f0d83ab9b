"""``train --dry-run``: what can go wrong in a run's first hour, found in its first minutes. Writes nothing.

Memory is taken as a + b · samples. A step of another size than the configured one is measured in a child process before
the dry run takes its own steps; where the configured size might not fit, it is tried in a child process first, so that
an out-of-memory kill does not end the main process:

    python -m mindspore_coupalign.training.dry_run TARGET VOCABULARY MICRO_BATCH < CONFIG.json
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import mindspore as ms
import numpy as np

from mindspore_coupalign.config import Config, config_from_dict, config_to_dict, with_overrides
from mindspore_coupalign.data.datasets import elsewhere
from mindspore_coupalign.data.refer import ReferData
from mindspore_coupalign.distributed import collectives as ranks
from mindspore_coupalign.distributed.process import Runtime, reason, run_child
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.memory import host, peak, resident
from mindspore_coupalign.mindspore_calls import device_memory

TIMED, ENOUGH = 8, 30.0  # steps to time after the one that compiles; no more once they have taken so many seconds
RESERVE = 0.1  # of the memory is kept free: fragments and long-lived buffers are not in the measurement
GIB = 2**30
STEPS = 2  # in the child process
OUT_OF_MEMORY = re.compile(r"out of memory|memory (is )?not enough|memory isn't enough|bad_alloc|cannot allocate|"
                           r"alloc\w* .*memory.* fail", re.IGNORECASE)


def dry_run(trainer, measure: Callable | None = None) -> int:
    """Check images, disk and memory, compile, take a few steps, and report what the run would cost.

    Raises:
        UserError: the first thing that would have stopped the run.
    """
    config, log, runtime = trainer.config, trainer.log, trainer.runtime
    if trainer.is_over():
        log("nothing is left to train: this run is already complete")
        return 0
    for data in dict.fromkeys((trainer.train_data, trainer.data)):
        log(f"data: {data.source}, {check_images(data)} images are there")
    needed, free = disk_needs(trainer), free_disk(trainer.folder.path)
    log(f"disk: up to {needed / 1e9:.2f} GB for {config.train.keep + 1} training states and the best weights, "
        f"{free / 1e9:.1f} GB free")
    if needed > free:
        raise UserError(f"{trainer.folder.path}: the checkpoints need {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are "
                        "free; lower train.keep, free some space or choose another --output")
    largest = LargestBatch(config, runtime, trainer.tokenizer.vocab_size, log, measure)
    largest.check()
    ranks.broadcast(trainer.model.get_parameters(), runtime)
    batches, seconds, before = trainer.batches(), list[float](), resident()
    left = trainer.plan.total - trainer.done
    while len(seconds) < min(1 + TIMED, left) and not is_enough(seconds, runtime):
        start = trainer.clock()
        trainer.pending.launch(next(batches), trainer.learning_rate())
        step = trainer.read()
        seconds.append(trainer.clock() - start)
        skipped = "" if step.results.finite else " (non-finite, skipped)"
        log(f"step {step.number}: loss {step.results.loss:.3f}{skipped}, {seconds[-1]:.1f} s"
            + (" with compiling" if len(seconds) == 1 else ""))
    used, total = memory(runtime.target)
    log(f"memory: {used / GIB:.1f} GiB at most" + (f" of {total / GIB:.1f}" if total else ""))
    largest.report(before)
    log(forecast(left - len(seconds), seconds[1:] or seconds, config.train.minutes))
    log("nothing was written")
    return 0


def forecast(steps: int, timed: list, minutes: float) -> str:
    """How long the remaining steps take by the median of some timed ones."""
    typical = float(np.median(timed))
    hours = steps * typical / 3600
    length = f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"
    budget = f", or {minutes:g} minutes, the time budget" if minutes else ""
    return (f"the run: {steps} more steps of {typical:.2g} s (median of {len(timed)}), {length} without validation"
            f"{budget}")


def is_enough(seconds: list, runtime: Runtime) -> bool:
    """Whether the steps timed so far are many and long enough; every rank decides alike."""
    if len(seconds) < 3:
        return False
    return ranks.all_reduce_sum(np.array([round(1000 * sum(seconds[1:]))]), runtime)[0] > 1000 * ENOUGH * runtime.ranks


def check_images(data: ReferData) -> int:
    """Number of images; the first missing or empty one is an error."""
    for i in range(len(data.image_files)):
        folder, name = data.image_place(i)
        path = folder / name
        if not path.is_file() or path.stat().st_size == 0:
            raise UserError(f"{path}: missing or empty{elsewhere(folder, name)}; see `coupalign "
                            "check-data` for all of them")
    return len(data.image_files)


def disk_needs(trainer) -> int:
    """Bytes of the states that are kept, the one being written and the best weights."""
    weights = sum(p.size for p in trainer.model.get_parameters()) * 4
    states = sum(array.size for state in trainer.step.states().values() for array in state.values()) * 4
    return (trainer.config.train.keep + 1) * (weights + states) + 2 * weights


def free_disk(path: Path) -> int:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    if not os.access(path, os.W_OK):
        raise UserError(f"{path}: cannot be written; choose another --output")
    return shutil.disk_usage(path).free


def memory(target: str) -> tuple[int, int]:
    """(peak, total) bytes: of the process and the machine on CPU, else of the device; 0 where it is not known."""
    if target == "CPU":
        return peak(), host().usable
    return ms.runtime.max_memory_allocated(), device_memory(target)


def used(target: str, before: int) -> int:
    """Peak bytes since ``before`` were resident: of the process on CPU, else of the device."""
    return memory(target)[0] - (before if target == "CPU" else 0)


class Line(NamedTuple):
    """Bytes by samples: ``fixed`` + ``each`` · samples."""

    fixed: float
    each: float

    @classmethod
    def through(cls, growths: dict[int, int]) -> "Line":
        """Through the smallest and the largest of the measured sizes. With a single size, or where the larger one took
        no more, as noise can have it, all memory is counted as the samples': too high rather than too low."""
        small, large = min(growths), max(growths)
        each = (growths[large] - growths[small]) / max(large - small, 1)
        fixed = growths[large] - each * large
        return cls(fixed, each) if each > 0 and fixed >= 0 else cls(0.0, growths[large] / large)

    def largest(self, room: float) -> int:
        """Samples that fit into ``room`` bytes; 0: none."""
        return max(0, int((room - self.fixed) // self.each))


def fewest_micro_batches(batch: int, ranks: int, largest: int) -> int:
    """The smallest train.accumulate that splits a global batch into micro-batches of at most ``largest`` samples; 0:
    none does."""
    local = batch // ranks
    return next((n for n in range(1, local + 1) if local % n == 0 and local // n <= largest), 0)


class LargestBatch:
    """The largest micro-batch that fits into the memory: ``check`` before the dry run's first step, when nothing is
    compiled yet, ``report`` after its last."""

    def __init__(self, config: Config, runtime: Runtime, vocabulary: int, log: Callable[[str], None],
                 measure: Callable | None = None):
        self.config, self.runtime, self.vocabulary, self.log = config, runtime, vocabulary, log
        self.measure, self.target = measure or measure_step, runtime.target
        self.batch, self.accumulate = config.train.batch_size, config.train.accumulate
        self.local = self.batch // runtime.ranks
        self.micro = self.local // self.accumulate
        if self.target == "CPU":  # the ranks of this machine share it, and what other processes hold is not available
            machine, workers, self.before = host(), runtime.watch.workers, resident()
            self.total = min(machine.usable / workers, machine.free / workers + self.before)
        else:
            self.total, self.before = float(device_memory(self.target)), 0
        self.growths: dict[int, int] = {}

    @property
    def room(self) -> float:
        """Bytes that a step may add, the reserve excluded."""
        return self.total * (1 - RESERVE) - self.before

    def check(self):
        """Measure another size than the configured one, and make sure that the configured one fits.

        Raises:
            UserError: it does not.
        """
        other = self.micro // 2 or 2
        attempt = self._try(other)
        if attempt.out_of_memory and other < self.micro:
            if other > 1:
                self._try(1)
            raise self._refusal(attempt, other)
        expected = self.before + attempt.growth * max(1, self.micro / other)
        if attempt.out_of_memory or attempt.growth and 0 < self.total < expected:
            attempt = self._try(self.micro)
            if attempt.out_of_memory:
                raise self._refusal(attempt, self.micro)

    def _try(self, micro: int) -> "Measured":
        """The mean over the ranks, which all try at the same time; if one of them fails, all have."""
        self.log(f"memory: trying {micro} samples in a child process, which compiles once more")
        self.runtime.watch.enter("starting", 0, compiles=True)
        own = self.measure(self.config, self.target, self.vocabulary, micro)
        sums = np.array([own.growth >> 20, own.out_of_memory, bool(own.error)], np.int64)
        growth, out_of_memory, failed = ranks.all_reduce_sum(sums, self.runtime).tolist()
        if not failed:
            self.growths[micro] = (growth << 20) // self.runtime.ranks or 1
            return Measured(self.growths[micro])
        error = own.error or "another rank's process ended"
        if not out_of_memory:
            self.log(f"memory: {micro} samples could not be measured: {error}")
        return Measured(out_of_memory=bool(out_of_memory), error=error)

    def _refusal(self, attempt: "Measured", micro: int) -> UserError:
        problem = (f"train.batch_size={self.batch} with train.accumulate={self.accumulate}: {micro} samples at a time "
                   f"do not fit into the memory ({attempt.error})")
        if not self.growths:
            recompute = "set train.recompute=true, " if self.target != "CPU" else ""  # which saves nothing there
            return UserError(f"{problem}; {recompute}lower data.image_size or take a smaller model")
        largest = min(self.growths)
        if self.total:
            largest = max(largest, Line.through(self.growths).largest(self.room))
        number = fewest_micro_batches(self.batch, self.runtime.ranks, min(largest, micro - 1))
        advice = f"train.accumulate={number} takes {self.local // number} at a time" if number else "lower it"
        return UserError(f"{problem}; {advice}")

    def report(self, before: int):
        """Print what the configured size took since ``before``, the bytes before the first step, and which is the
        largest."""
        grown = ranks.all_reduce_sum(np.array([max(0, used(self.target, before)) >> 20]), self.runtime)[0]
        self.growths[self.micro] = (int(grown) << 20) // self.runtime.ranks or 1
        if len(self.growths) == 1:
            return
        if self.target != "CPU":  # an NPU's total is not known before something has run there
            self.total = float(device_memory(self.target))
        for text in self.lines():
            self.log(text)

    def lines(self) -> list[str]:
        line = Line.through(self.growths)
        each = f"{line.each / GIB:.2g} GiB for each sample plus {(line.fixed + self.before) / GIB:.2g}"
        if not self.total:
            return [f"memory: about {each}; how much the {self.target} has is not known"]
        shared = " and rank" if self.runtime.ranks > 1 else ""
        largest = line.largest(self.room)
        lines = [f"memory: about {each}: the largest micro-batch{shared} that fits into {self.total / GIB:.1f} GiB is "
                 f"about {largest}, {RESERVE:.0%} kept free"]
        number = fewest_micro_batches(self.batch, self.runtime.ranks, largest)
        if number and number != self.accumulate:
            lines.append(f"memory: train.batch_size={self.batch} would fit with train.accumulate={number}, "
                         f"{self.local // number} samples at a time; it is {self.accumulate} now")
        return lines


class Measured(NamedTuple):
    """The result of an attempt: ``growth`` where the step ran, else why it did not."""

    growth: int = 0  # peak bytes that compiling and stepping add
    out_of_memory: bool = False
    error: str = ""


def measure_step(config: Config, target: str, vocabulary: int, micro: int) -> Measured:
    """The memory of a step of ``micro`` samples on this rank's device, in a child process, which compiles the step."""
    command = [sys.executable, "-m", "mindspore_coupalign.training.dry_run", target, str(vocabulary), str(micro)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    ended = run_child(command, json.dumps(config_to_dict(config)), **pipes)
    return outcome(ended.code, ended.out, ended.err)


def outcome(code: int, out: str, err: str) -> Measured:
    """The result of a child process that has ended."""
    for line in reversed(out.splitlines()):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return Measured(int(json.loads(line)["growth"]))
    if code in (-9, 137):
        return Measured(out_of_memory=True, error="killed (signal 9), as the system does when memory runs out")
    matching = next((line.strip() for line in err.splitlines() if OUT_OF_MEMORY.search(line)), "")
    return Measured(out_of_memory=bool(matching), error=matching[:200] or reason(code, err))


def child(target: str, vocabulary: str, micro: str):
    """Take steps over a random batch and print their memory as one line of JSON.

    Shapes: image (B, 3, H, W); ids, word_mask (B, T); mask (B, 1, H, W); B is the micro-batch of one rank.
    """
    with contextlib.suppress(OSError):  # the system should kill this process first
        Path("/proc/self/oom_score_adj").write_text("1000")
    from mindspore_coupalign import build, runtime
    from mindspore_coupalign.training import setup

    given, number = config_from_dict(json.load(sys.stdin), "the configuration"), int(micro)
    config = with_overrides(given, [f"train.batch_size={number * given.train.accumulate}"], "the configuration")
    runtime.setup(target, 0)
    random, size, tokens = np.random.default_rng(0), config.data.image_size, config.data.max_tokens
    batch = (random.standard_normal((number, 3, size, size)).astype(np.float32),
             random.integers(0, int(vocabulary), (number, tokens)).astype(np.int32),
             np.ones((number, tokens), np.int32), (random.random((number, 1, size, size)) > 0.9).astype(np.float32))
    step = setup.build_train_step(build.build_model(config, int(vocabulary)), config, target=target)
    before = resident()
    for _ in range(STEPS):
        image, ids, word_mask, mask = map(ms.Tensor, batch)
        step(image, ids, word_mask, mask, ms.Tensor(np.float32(0))).asnumpy()
    print(json.dumps({"growth": used(target, before)}), flush=True)


if __name__ == "__main__":
    child(*sys.argv[1:])
