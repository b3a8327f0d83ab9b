"""Collectives outside of the compiled step. A barrier (Watch.barrier) comes before each."""

import mindspore as ms
import numpy as np
from mindspore import ops

from mindspore_coupalign.distributed.process import Runtime
from mindspore_coupalign.mindspore_calls import assign

GATHERED = 1 << 22  # bytes that one collective gathers; it needs sixteen times as much memory


def broadcast(parameters, runtime: Runtime):
    """Set every rank's parameters to rank 0's values, before anything is compiled."""
    if runtime.ranks == 1:
        return
    runtime.watch.barrier()
    send = ops.Broadcast(0)
    for parameter in parameters:
        parameter.set_data(send((ms.Tensor(parameter.asnumpy()),))[0])


def average(parameters, runtime: Runtime):
    """Set parameters to their mean over the ranks, by ops.assign, which compiled graphs see."""
    if runtime.ranks == 1:
        return
    runtime.watch.barrier()
    total = ops.AllReduce()
    for parameter in parameters:
        assign(parameter, total(ms.Tensor(parameter.asnumpy())) / runtime.ranks)


def all_reduce_sum(array: np.ndarray, runtime: Runtime) -> np.ndarray:
    """The exact sum over the ranks of an array of integers from 0 to 2^31.

    On CPU, AllReduce takes float32, which is exact to 2^24: the integers are sent as two halves.
    """
    if runtime.ranks == 1:
        return array
    runtime.watch.barrier()
    halves = np.stack((array >> 16, array & 0xFFFF)).astype(np.float32)
    high, low = ops.AllReduce()(ms.Tensor(halves)).asnumpy().astype(np.int64)
    return (high << 16) + low


def gather(content: bytes, runtime: Runtime) -> list[bytes]:
    """Every rank's content, in the order of the ranks, on every rank; needs no shared folder."""
    if runtime.ranks == 1:
        return [content]
    lengths = np.zeros(runtime.ranks, np.int64)
    lengths[runtime.rank] = len(content)
    ends = np.cumsum(all_reduce_sum(lengths, runtime))
    whole = np.zeros(ends[-1], np.uint8)
    start = ends[runtime.rank] - len(content)
    whole[start : ends[runtime.rank]] = np.frombuffer(content, np.uint8)
    for at in range(0, len(whole), GATHERED):
        whole[at : at + GATHERED] = all_reduce_sum(whole[at : at + GATHERED].astype(np.int64), runtime)
    return [bytes(part) for part in np.split(whole, ends[:-1])]


def wait(runtime: Runtime):
    """Block until every rank has reached this point, those of other machines included, whose files may be out of
    reach."""
    runtime.watch.barrier()
    if runtime.ranks > runtime.watch.workers:
        ops.AllReduce()(ms.Tensor(np.zeros(1, np.float32))).asnumpy()
