"""The memory of a training step by the size of its micro-batch, measured in a process of its own: an attempt that
the system kills for want of memory takes nobody along.

    python -m mindspore_coupalign.training.step_memory TARGET VOCABULARY MICRO_BATCH < CONFIG.json

Shapes: image (B, 3, H, W), ids and word_mask (B, T), mask (B, 1, H, W), all random; B is the micro-batch of one rank.
"""

import contextlib
import json
import re
import subprocess
import sys
from typing import NamedTuple

from mindspore_coupalign import memory
from mindspore_coupalign.config import Config, config_from_dict, config_to_dict, with_overrides
from mindspore_coupalign.distributed.process import run_child

WANT = re.compile(r"out of memory|memory (is )?not enough|memory isn't enough|bad_alloc|cannot allocate|"
                  r"alloc\w* .*memory.* fail", re.IGNORECASE)  # what is said for want of memory
STEPS = 2


class Measured(NamedTuple):
    """What became of an attempt: ``growth`` where the step ran, else why not."""

    growth: int = 0  # bytes that compiling and stepping add at most
    lacks: bool = False  # it ended for want of memory
    why: str = ""


def measure(config: Config, target: str, vocabulary: int, micro: int) -> Measured:
    """The memory of a step of ``micro`` samples on this rank's device, in a child process. Compiles, so takes long."""
    command = [sys.executable, "-m", "mindspore_coupalign.training.step_memory", target, str(vocabulary), str(micro)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    ended = run_child(command, json.dumps(config_to_dict(config)), **pipes)
    return outcome(ended.code, ended.out, ended.err)


def outcome(code: int, out: str, err: str) -> Measured:
    """What an ended child has found out."""
    for line in reversed(out.splitlines()):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return Measured(int(json.loads(line)["growth"]))
    if code in (-9, 137):
        return Measured(lacks=True, why="killed (signal 9), as the system does for want of memory")
    said = [line.strip() for line in err.splitlines() if line.strip(" -\t")]
    wanted = next((line for line in said if WANT.search(line)), "")
    if wanted:
        return Measured(lacks=True, why=wanted[:200])
    ended = f"signal {-code}" if code < 0 else f"exit code {code}"
    return Measured(why=f"its process ended by {ended}: {said[-1][:200] if said else 'it said nothing'}")


def used(target: str, before: int) -> int:
    """Bytes that have been needed at most since ``before`` were resident: of the process on CPU, else of the device."""
    if target == "CPU":
        return memory.peak() - before
    import mindspore as ms
    return ms.runtime.max_memory_allocated()


def main(target: str, vocabulary: str, micro: str):
    """The child: one line of JSON."""
    with contextlib.suppress(OSError):  # whom the system kills first
        memory.Path("/proc/self/oom_score_adj").write_text("1000")
    import mindspore as ms
    import numpy as np

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
    before = memory.resident()
    for _ in range(STEPS):
        image, ids, word_mask, mask = map(ms.Tensor, batch)
        step(image, ids, word_mask, mask, ms.Tensor(np.float32(0))).asnumpy()
    print(json.dumps({"growth": used(target, before)}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
