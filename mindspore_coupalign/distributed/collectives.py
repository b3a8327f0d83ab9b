"""What the ranks of one job compute together, outside of the compiled step. They meet before each collective: see
Watch.meet.
"""

import mindspore as ms
import numpy as np
from mindspore import ops

from mindspore_coupalign.runtime import Runtime

GATHERED = 1 << 22  # bytes that one collective gathers; it takes sixteen times as much memory for a moment


def broadcast(parameters, here: Runtime):
    """Rank 0's values for everyone, before anything is compiled."""
    if here.ranks == 1:
        return
    here.watch.meet()
    send = ops.Broadcast(0)
    for parameter in parameters:
        parameter.set_data(send((ms.Tensor(parameter.asnumpy()),))[0])


def average(parameters, here: Runtime):
    """The mean over the ranks, by ops.assign: graphs that are compiled already see it."""
    if here.ranks == 1:
        return
    here.watch.meet()
    total = ops.AllReduce()
    for parameter in parameters:
        ops.assign(parameter, total(ms.Tensor(parameter.asnumpy())) / here.ranks)


def add_up(array: np.ndarray, here: Runtime) -> np.ndarray:
    """The exact sum over the ranks of an array of whole numbers from 0 to 2^31.

    On CPU, AllReduce knows float32 alone, which is exact to 2^24: the numbers go as two halves.
    """
    if here.ranks == 1:
        return array
    here.watch.meet()
    halves = np.stack((array >> 16, array & 0xFFFF)).astype(np.float32)
    high, low = ops.AllReduce()(ms.Tensor(halves)).asnumpy().astype(np.int64)
    return (high << 16) + low


def gather(content: bytes, here: Runtime) -> list[bytes]:
    """Every rank's content, in the order of the ranks, on every rank; needs no folder that all of them see."""
    if here.ranks == 1:
        return [content]
    lengths = np.zeros(here.ranks, np.int64)
    lengths[here.rank] = len(content)
    ends = np.cumsum(add_up(lengths, here))
    whole = np.zeros(ends[-1], np.uint8)
    start = ends[here.rank] - len(content)
    whole[start : ends[here.rank]] = np.frombuffer(content, np.uint8)
    for at in range(0, len(whole), GATHERED):
        whole[at : at + GATHERED] = add_up(whole[at : at + GATHERED].astype(np.int64), here)
    return [bytes(part) for part in np.split(whole, ends[:-1])]


def wait(here: Runtime):
    """Until every rank has come here, those of other machines included, whose files may be out of reach."""
    here.watch.meet()
    if here.ranks > here.watch.workers:
        ops.AllReduce()(ms.Tensor(np.zeros(1, np.float32))).asnumpy()
