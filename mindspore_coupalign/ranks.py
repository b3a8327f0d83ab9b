"""What the ranks of one job compute together."""

import mindspore as ms
import numpy as np
from mindspore import ops


def broadcast(parameters, ranks: int):
    """Rank 0's values for everyone, before anything is compiled."""
    if ranks == 1:
        return
    send = ops.Broadcast(0)
    for parameter in parameters:
        parameter.set_data(send((ms.Tensor(parameter.asnumpy()),))[0])


def average(parameters, ranks: int):
    """The mean over the ranks, by ops.assign: graphs that are compiled already see it."""
    if ranks == 1:
        return
    total = ops.AllReduce()
    for parameter in parameters:
        ops.assign(parameter, total(ms.Tensor(parameter.asnumpy())) / ranks)


def add_up(array: np.ndarray, ranks: int) -> np.ndarray:
    """The exact sum over the ranks of an array of whole numbers from 0 to 2^31.

    On CPU, AllReduce knows float32 alone, which is exact to 2^24: the numbers go as two halves.
    """
    if ranks == 1:
        return array
    halves = np.stack((array >> 16, array & 0xFFFF)).astype(np.float32)
    high, low = ops.AllReduce()(ms.Tensor(halves)).asnumpy().astype(np.int64)
    return (high << 16) + low


def wait(ranks: int):
    """Until every rank has come here."""
    if ranks > 1:
        ops.AllReduce()(ms.Tensor(np.zeros(1, np.float32))).asnumpy()
