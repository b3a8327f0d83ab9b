"""``train --dry-run``: what can go wrong in a run's first hour, in its first minutes; writes nothing."""

import os
import shutil
import time
from pathlib import Path

import mindspore as ms
import numpy as np

from mindspore_coupalign.data.datasets import elsewhere
from mindspore_coupalign.data.refer import ReferData
from mindspore_coupalign.distributed import collectives as ranks
from mindspore_coupalign.distributed.process import Runtime
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.memory import host, peak, resident
from mindspore_coupalign.mindspore_calls import device_memory
from mindspore_coupalign.training.largest_batch import LargestBatch

TIMED, ENOUGH = 8, 30.0  # steps after the one that compiles, and their seconds, of which no more is needed


def dry_run(trainer) -> int:
    """Check images, disk and memory, compile, take a few steps, and say what the run would cost.

    Raises:
        UserError: the first thing that would have stopped the run.
    """
    config, log = trainer.config, trainer.log
    if trainer.is_over():
        log("nothing is left to train: this run has come to its end")
        return 0
    for data in dict.fromkeys((trainer.train_data, trainer.data)):
        log(f"data: {data.source}, {check_images(data)} images are there")
    wanted, free = disk_needs(trainer), free_disk(trainer.run.path)
    log(f"disk: up to {wanted / 1e9:.2f} GB for {config.train.keep + 1} training states and the best weights, "
        f"{free / 1e9:.1f} GB free")
    if wanted > free:
        raise UserError(f"{trainer.run.path}: the checkpoints need {wanted / 1e9:.2f} GB, {free / 1e9:.2f} GB are free"
                        "; lower train.keep, free some space or choose another --output")
    largest = LargestBatch(trainer)
    largest.check()
    ranks.broadcast(trainer.model.get_parameters(), trainer.runtime)
    stream = trainer.micro_batches()
    seconds: list[float] = []
    before = resident()
    while len(seconds) < min(1 + TIMED, trainer.total - trainer.done) and not is_enough(seconds, trainer.runtime):
        start = time.perf_counter()
        results = trainer.one_step(stream, trainer.next_lr())
        seconds.append(time.perf_counter() - start)
        skipped = "" if results["finite"] else " (non-finite, left out)"
        log(f"step {trainer.done}: loss {results['loss']:.3f}{skipped}, {seconds[-1]:.1f} s"
            + (" with compiling" if len(seconds) == 1 else ""))
    used, total = memory(trainer.runtime.target)
    log(f"memory: {used / 2**30:.1f} GiB at most" + (f" of {total / 2**30:.1f}" if total else ""))
    largest.report(before)
    left = trainer.total - trainer.done
    timed = seconds[1:] or seconds
    usual = float(np.median(timed))
    hours = left * usual / 3600
    log(f"the run: {left} steps more of {usual:.2g} s (median of {len(timed)}), "
        + (f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min") + " without validation"
        + (f", or {config.train.minutes:g} minutes, the time budget" if config.train.minutes else ""))
    log("nothing was written")
    return 0


def is_enough(seconds: list, runtime: Runtime) -> bool:
    """Whether the steps so far are long and many enough to go by; every rank says the same."""
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
