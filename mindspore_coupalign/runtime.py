"""Device, graph mode, ranks and seed: what is set before the first kernel runs."""

import contextlib
import os

import mindspore as ms
import numpy as np

from mindspore_coupalign import cuda
from mindspore_coupalign.config import TARGETS
from mindspore_coupalign.distributed.process import Runtime, in_a_job
from mindspore_coupalign.distributed.watchdog import LOCAL_WORKERS, Watch
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.mindspore_calls import data_parallel, graph_mode, kernel_threads


def setup(target: str, seed: int, watch: Watch | None = None) -> Runtime:
    """Choose the device, graph mode and random seed; join the other ranks when started by msrun.

    Raises:
        UserError: the device is not there, or MindSpore cannot use it.
    """
    target = choose_device(target)
    rank, ranks = 0, 1
    if in_a_job():  # msrun's scheduler process joins here, serves the others and exits
        from mindspore import communication
        if target == "CPU" and os.environ["MS_ROLE"] == "MS_WORKER":
            _share_cores()
        communication.init()
        rank, ranks = communication.get_rank(), communication.get_group_size()
        data_parallel()
    ms.set_seed(seed)
    np.random.seed(seed)
    watch = watch or Watch(None)
    watch.target = target
    return Runtime(target, rank, ranks, watch)


def choose_device(target: str, option: str = "--device-target ") -> str:
    """Set the device and graph mode, nothing else; returns CPU, GPU or Ascend.

    Args:
        option: by which the user chose it, for errors.

    Raises:
        UserError: the device is not there, or MindSpore cannot use it.
    """
    available = {"Ascend": ms.device_context.ascend.is_available,  # a GPU is to MindSpore as soon as its back end links
                 "GPU": lambda: ms.device_context.gpu.is_available() and not cuda.driver().problem, "CPU": lambda: True}
    if target == "auto":
        target = next(name for name, there in available.items() if there())
    elif target not in available:
        raise UserError(f"{option}{target}: no such device; choose one of {', '.join(TARGETS)}")
    elif not available[target]():
        raise UserError(f"{option}{target}: MindSpore finds no usable {target} on this machine; `python -m "
                        f"mindspore_coupalign doctor` says why; {option}CPU runs anywhere")
    ms.set_device(target, int(os.environ.get("DEVICE_ID", "0"))) if target != "CPU" else ms.set_device(target)
    graph_mode()
    _plain_float32(target)
    return target


def _plain_float32(target: str):
    """Turn off TF32 and HF32, to whose 11 bits convolutions on GPUs and NPUs round float32 by default.

    HF32 can be set once per process: a program that has set it itself keeps its setting.
    """
    if target == "GPU":
        ms.device_context.gpu.op_precision.conv_allow_tf32(False)
        ms.device_context.gpu.op_precision.matmul_allow_tf32(False)
    elif target == "Ascend":
        for allow in (ms.device_context.ascend.op_precision.conv_allow_hf32,
                      ms.device_context.ascend.op_precision.matmul_allow_hf32):
            with contextlib.suppress(RuntimeError):
                allow(False)


def _share_cores():
    """Give each rank of this machine its own cores: with shared cores a step takes twice as long."""
    cores = sorted(os.sched_getaffinity(0))
    workers = int(os.environ.get(LOCAL_WORKERS) or os.environ.get("MS_WORKER_NUM", "1"))
    local = int(os.environ.get("DEVICE_ID", "0"))
    own = cores[local::workers] or [cores[local % len(cores)]]
    os.sched_setaffinity(0, own)
    kernel_threads(len(own))
