"""What `train.recompute` saves and costs here: `python benchmarks/recompute.py [key=value ...] [--batch N ...]`.

One training step of Swin-T with a BERT of four layers at 480 × 480 and random weights (override what you like), each
variant in a process of its own. Memory: the process's peak, and MindSpore's own count of what its pool has handed out
at most; the state is the same in all rows, so that their differences are activations.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the checkout this file lies in
VOCABULARY = 30522  # bert-base-uncased
SMALLER = ("model.backbone.embed_dim=96", "model.backbone.depths=[2,2,6,2]", "model.backbone.heads=[3,6,12,24]",
           "model.backbone.window=7", "model.text.groups=[1,1,1,1]", "model.fusion.heads=[3,6,12,24]")
STEPS = 3  # timed, after the one that compiles


def measure(recompute: str, batch: str, *overrides: str):
    """In the child: one line of JSON."""
    import mindspore as ms
    import numpy as np

    from mindspore_coupalign import build, runtime
    from mindspore_coupalign.config import Config, with_overrides
    from mindspore_coupalign.training import setup

    given = (*SMALLER, *overrides, f"train.recompute={recompute}", f"train.batch_size={batch}")
    config, number = with_overrides(Config(), given, "the benchmark"), int(batch)
    where = runtime.setup("auto", 0)
    model = build.build_model(config, VOCABULARY)
    step = setup.build_train_step(model, config, target=where.target)
    random, size, tokens = np.random.default_rng(0), config.data.image_size, config.data.max_tokens
    arrays = (random.standard_normal((number, 3, size, size)).astype(np.float32),
              random.integers(0, VOCABULARY, (number, tokens)).astype(np.int32), np.ones((number, tokens), np.int32),
              (random.random((number, 1, size, size)) > 0.9).astype(np.float32))
    rate, seconds = ms.Tensor(np.float32(0)), []  # noise is not learned: see docs/notes/mindspore.md
    for _ in range(1 + STEPS):
        start = time.perf_counter()
        result = step(*map(ms.Tensor, arrays), rate).asnumpy()
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"target": where.target, "loss": float(result[0]), "first_s": round(seconds[0], 1),
                      "step_s": round(sorted(seconds[1:])[STEPS // 2], 2), "process_GiB": round(peak / 2**30, 2),
                      "pool_GiB": round(ms.runtime.max_memory_allocated() / 2**30, 2)}))


def main():
    if sys.argv[1:2] == ["measure"]:
        measure(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2])
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    for batch in args.batch:
        for recompute in ("false", "true"):
            done = subprocess.run([sys.executable, __file__, "measure", recompute, str(batch), *args.overrides],
                                  capture_output=True, text=True)
            lines = done.stdout.splitlines() if done.returncode == 0 else done.stderr.splitlines()[-3:]
            print(f"batch {batch}, recompute {recompute:<5}", *lines, flush=True)


if __name__ == "__main__":
    main()
