"""The measurements behind our choices for CPU: oneDNN's instruction set, update kernels, packing, layer norm.

Run `python benchmarks/cpu_kernels.py`. Each pair is timed in turn in one run; medians and their ratio are printed. The
instruction set is read once per process, so each round starts one process per setting.
"""

import json
import os
import statistics
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # a clone that is not installed

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


def small_kernels() -> dict:
    """AdamW on 300 parameters of 576 values, packed and one by one; layer norm of (8192, 24) with its gradient."""
    import mindspore as ms
    import numpy as np
    from mindspore import Parameter, Tensor, nn, ops

    from mindspore_coupalign.models.layers import FastLayerNorm
    from mindspore_coupalign.training.optimizer import Optimizer
    rate, times = Tensor(1e-3, ms.float32), {}
    for name, below in (("one by one", 1), ("packed", 2**17)):
        params = [Parameter(Tensor(np.ones((24, 24), np.float32)), name=f"p{i}") for i in range(300)]
        optimizer = Optimizer([{"params": params, "weight_decay": 0.0}], below=below)
        gradients = tuple(Tensor(np.ones((24, 24), np.float32)) for _ in params)

        @ms.jit
        def step(gradients, lr, optimizer=optimizer):
            return optimizer(optimizer.pack(gradients), lr)

        times[name] = median_ms(lambda step=step, gradients=gradients: step(gradients, rate).asnumpy(), 20)
    rows = Tensor(np.random.default_rng(0).normal(size=(8192, 24)).astype(np.float32))
    for name, norm in (("stock", nn.LayerNorm((24,), epsilon=1e-5)), ("ours", FastLayerNorm(24, 1e-5))):
        gradient = ops.GradOperation(get_all=True, sens_param=True)(norm)
        times[name] = median_ms(lambda gradient=gradient: gradient(rows, rows)[0].asnumpy(), 20)
    return times


def main():
    if len(sys.argv) > 1:
        import mindspore as ms
        ms.set_device("CPU")
        ms.set_context(mode=ms.GRAPH_MODE)
        print(json.dumps({"network": network_kernels, "update": update_kernels, "small": small_kernels}[sys.argv[1]]()))
        return
    found = {"AVX2": [], "AVX512_CORE": [], "update": [], "small": []}
    for _ in range(ROUNDS):
        for isa in ("AVX2", "AVX512_CORE"):
            found[isa].append(_child("network", ONEDNN_MAX_CPU_ISA=isa))
        for what in ("update", "small"):
            found[what].append(_child(what, ONEDNN_MAX_CPU_ISA="AVX2"))
    middle = {key: {k: statistics.median(r[k] for r in rows) for k in rows[0]} for key, rows in found.items()}
    for kernel in ("convolution", "dense"):
        a, b = middle["AVX512_CORE"][kernel], middle["AVX2"][kernel]
        print(f"{kernel:<14} AVX-512 {a:8.2f} ms   AVX2 {b:8.2f} ms   ratio {a / b:6.2f}")
    for what, slow, fast in (("update", "AdamWeightDecay", "Adam"), ("update", "lerp", "difference"),
                             ("small", "one by one", "packed"), ("small", "stock", "ours")):
        a, b = middle[what][slow], middle[what][fast]
        print(f"{slow:<15} {a:6.2f} ms   {fast:<10} {b:6.2f} ms   ratio {a / b:6.2f}")


def _child(what: str, **environment) -> dict:
    done = subprocess.run([sys.executable, __file__, what], env=os.environ | environment | {"GLOG_v": "3"},
                          capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
