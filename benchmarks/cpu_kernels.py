"""The measurements behind three choices for CPU: oneDNN's instruction set, the Adam kernel, the averaging of weights.

Run `python benchmarks/cpu_kernels.py`. Each pair is timed in turn in one run; medians and their ratio are printed. The
instruction set is read once per process, so each round starts one process per setting.
"""

import json
import os
import statistics
import subprocess
import sys
import time

ROUNDS = 5


def median_ms(run, repeats=10) -> float:
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def network_kernels() -> dict:
    """3×3 convolution (32, 96, 16, 16) -> 64 channels, and a dense layer (8192, 128) -> 128."""
    import numpy as np
    from mindspore import Tensor, nn
    conv, dense = nn.Conv2d(96, 64, 3, has_bias=False), nn.Dense(128, 128)
    maps, rows = Tensor(np.ones((32, 96, 16, 16), np.float32)), Tensor(np.ones((8192, 128), np.float32))
    return {"convolution": median_ms(lambda: conv(maps).asnumpy()), "dense": median_ms(lambda: dense(rows).asnumpy())}


def update_kernels() -> dict:
    """One update of a parameter of 262,144 values."""
    import mindspore as ms
    import numpy as np
    from mindspore import Parameter, Tensor, ops
    value, mean, square = (Parameter(Tensor(np.ones(262144, np.float32)), name=n) for n in "vms")
    gradient, rate = Tensor(np.ones(262144, np.float32)), Tensor(1e-3, ms.float32)
    adam, adam_weight_decay = ops.Adam(), ops.AdamWeightDecay()

    @ms.jit
    def fused():
        return adam(value, mean, square, rate, rate, rate, 0.9, 0.999, 1e-8, gradient)

    @ms.jit
    def fused_decay():
        return adam_weight_decay(value, mean, square, rate, 0.9, 0.999, 1e-8, rate, gradient)

    @ms.jit
    def lerp():
        return ops.assign(mean, ops.lerp(mean, value, 0.01))

    @ms.jit
    def difference():
        return ops.assign_add(mean, (value - mean) * 0.01)

    kernels = {"Adam": fused, "AdamWeightDecay": fused_decay, "lerp": lerp, "difference": difference}
    return {name: median_ms(run, 20) for name, run in kernels.items()}


def main():
    if len(sys.argv) > 1:
        import mindspore as ms
        ms.set_device("CPU")
        ms.set_context(mode=ms.GRAPH_MODE)
        print(json.dumps({"network": network_kernels, "update": update_kernels}[sys.argv[1]]()))
        return
    found = {"AVX2": [], "AVX512_CORE": [], "update": []}
    for _ in range(ROUNDS):
        for isa in ("AVX2", "AVX512_CORE"):
            found[isa].append(_child("network", ONEDNN_MAX_CPU_ISA=isa))
        found["update"].append(_child("update", ONEDNN_MAX_CPU_ISA="AVX2"))
    middle = {key: {k: statistics.median(r[k] for r in rows) for k in rows[0]} for key, rows in found.items()}
    for kernel in ("convolution", "dense"):
        a, b = middle["AVX512_CORE"][kernel], middle["AVX2"][kernel]
        print(f"{kernel:<14} AVX-512 {a:8.2f} ms   AVX2 {b:8.2f} ms   ratio {a / b:6.2f}")
    for slow, fast in (("AdamWeightDecay", "Adam"), ("lerp", "difference")):
        a, b = middle["update"][slow], middle["update"][fast]
        print(f"{slow:<15} {a:6.2f} ms   {fast:<10} {b:6.2f} ms   ratio {a / b:6.2f}")


def _child(what: str, **environment) -> dict:
    done = subprocess.run([sys.executable, __file__, what], env=os.environ | environment | {"GLOG_v": "3"},
                          capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
