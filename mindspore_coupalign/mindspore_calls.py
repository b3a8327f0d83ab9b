"""MindSpore's calls that are deprecated from 2.9 on, in one place: their replacements will go here.

The package calls none of them elsewhere (tests/repo/test_architecture.py).
"""

import contextlib

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


@contextlib.contextmanager
def operator_by_operator():
    """While entered, cells run without being compiled."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    try:
        yield
    finally:
        graph_mode()


def device_memory(target: str) -> int:
    """Memory of the current GPU or NPU in bytes; 0 if unknown. On an NPU, call it after the first kernel."""
    try:
        properties = ms.hal.get_device_properties(0, target)
        return int(getattr(properties, "total_memory", 0))
    except (AttributeError, RuntimeError, TypeError, ValueError):  # the call or the device does not exist
        return 0


def kernel_threads(number: int):
    """Set the number of threads of the CPU's kernels."""
    ms.set_context(runtime_num_threads=number)


def data_parallel():
    """Each rank has the whole network and its share of a batch; gradients are means over the ranks."""
    ms.set_auto_parallel_context(parallel_mode=ms.ParallelMode.DATA_PARALLEL, gradients_mean=True)
