"""MindSpore's calls that its documents announce as going after 2.9, under one roof: what follows them is changed here.

The package calls none of them elsewhere (tests/test_house.py).
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


def kernel_threads(number: int):
    """Threads of the CPU's kernels."""
    ms.set_context(runtime_num_threads=number)


def data_parallel():
    """Every rank has the whole network and its share of a batch; gradients are means."""
    ms.set_auto_parallel_context(parallel_mode=ms.ParallelMode.DATA_PARALLEL, gradients_mean=True)
