"""MindSpore's calls that its documents announce as going after 2.9, under one roof: what follows them is changed here.

The package calls none of them elsewhere (tests/repo/test_architecture.py).
"""

import mindspore as ms
from mindspore import ops

assign, assign_add, assign_sub = ops.assign, ops.assign_add, ops.assign_sub
expand_dims, unstack = ops.expand_dims, ops.unstack
slice_ = ops.slice


def device_target() -> str:
    """CPU, GPU or Ascend."""
    return ms.get_context("device_target")


def graph_mode():
    ms.set_context(mode=ms.GRAPH_MODE)


def device_memory(target: str) -> int:
    """Bytes of the current GPU or NPU; 0 where MindSpore does not say. An NPU is asked after its first kernel."""
    try:
        properties = ms.hal.get_device_properties(0, target)
        return int(getattr(properties, "total_memory", 0))
    except (AttributeError, RuntimeError, TypeError, ValueError):  # the call is gone, or has no such device
        return 0


def kernel_threads(number: int):
    """Threads of the CPU's kernels."""
    ms.set_context(runtime_num_threads=number)


def data_parallel():
    """Every rank has the whole network and its share of a batch; gradients are means."""
    ms.set_auto_parallel_context(parallel_mode=ms.ParallelMode.DATA_PARALLEL, gradients_mean=True)
