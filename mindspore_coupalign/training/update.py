"""What one step changes, in the graph: parameters, their moments and averages, the statistics of batch norms.

Gradients and states are flat (flat_parameters.py): (vector, *large, matrices).
"""

import mindspore as ms
from mindspore import ParameterTuple, Tensor, nn, ops

from mindspore_coupalign.distributed.collectives import average
from mindspore_coupalign.distributed.process import Runtime
from mindspore_coupalign.mindspore_calls import assign, assign_add


class Statistics(nn.Cell):
    """The statistics of batch norms. A forward pass has changed them already when its gradient turns out to be
    non-finite: they have a copy to go back to, and averages where the weights have.

    Args:
        ema: decay of the averages; 0 keeps none.
    """

    def __init__(self, objective, ema: float):
        super().__init__(auto_prefix=False)
        self.current = ParameterTuple([p for p in objective.get_parameters()
                                       if p.name.endswith(("moving_mean", "moving_variance"))])
        self.kept = _copies(self.current, "kept")
        self.averages = _copies(self.current if ema else (), "ema")
        self.share, self.map = 1 - ema, ops.HyperMap()

    def accept(self):
        """Average and keep the current ones; in the graph."""
        if len(self.averages):
            self.map(ops.partial(_move_average, self.share), self.averages, self.current)
        if len(self.current):
            self.map(assign, self.kept, self.current)

    def revert(self):
        """Go back to the kept ones; in the graph."""
        if len(self.current):
            self.map(assign, self.current, self.kept)

    def averaged(self) -> dict:
        """Averages by parameter name."""
        return {p.name: a.asnumpy() for p, a in zip(self.current, self.averages, strict=False)}

    def share_among(self, runtime: Runtime):
        """Give every rank the mean of the ranks' statistics, where batch norm saw a share of the batch."""
        average((*self.current, *self.averages), runtime)
        for backup, statistic in zip(self.kept, self.current, strict=True):
            assign(backup, statistic)

    def restore(self, averages: dict):
        """Take averages by parameter name, and the current values, which the model was given, as the kept ones."""
        for p, own in zip(self.current, self.averages, strict=False):
            own.set_data(Tensor(averages[p.name]))
        for backup, statistic in zip(self.kept, self.current, strict=True):
            backup.set_data(statistic.copy())


class GradientSum(nn.Cell):
    """The sum of several micro-batches' gradients, each with its share, and how many of them were non-finite."""

    def __init__(self, sums: ParameterTuple, number: int):
        super().__init__(auto_prefix=False)
        self.sums, self.share = sums, Tensor(1 / number, ms.float32)
        self.spoilt = ms.Parameter(Tensor(0, ms.float32), name="spoilt", requires_grad=False)
        self.map = ops.HyperMap()

    def add(self, gradients, spoilt, last):
        """Returns how many were spoilt until now; after the last micro-batch the count begins anew."""
        self.map(ops.partial(_add_share, self.share), self.sums, gradients)
        spoilt = self.spoilt + spoilt
        assign(self.spoilt, spoilt * (1 - last.astype(ms.float32)))
        return spoilt

    def clear(self):
        self.map(_clear, self.sums)


class Update(nn.Cell):
    """``construct(gradients, spoilt, scale, lr)``: unscale, check, clip, update; (norm, finite) of the gradients.

    A non-finite gradient, or a ``spoilt`` that counts one, changes nothing but the loss scale.

    Args:
        averages: of the weights, flat; () for none.
        ema: their decay.
        scaler: an ``amp.DynamicLossScaler``, or None.
    """

    def __init__(self, optimizer, statistics: Statistics, averages, ema: float, clip_norm: float, scaler, ranks: int):
        super().__init__(auto_prefix=False)
        self.optimizer, self.statistics, self.averages = optimizer, statistics, averages
        self.share, self.clip_norm, self.scaler, self.ranks = 1 - ema, clip_norm, scaler, ranks
        self.all_reduce = ops.AllReduce() if ranks > 1 else None
        self.map, self.half_square_sum = ops.HyperMap(), ops.L2Loss()

    def construct(self, gradients, spoilt, scale, lr):
        if self.ranks > 1:
            gradients = self.map(ops.partial(_mean, self.all_reduce, 1 / self.ranks), gradients)
        if self.scaler is not None:
            gradients = self.map(ops.partial(ops.mul, 1 / scale), gradients)
        norm = ops.sqrt(2 * ops.addn(self.map(self.half_square_sum, gradients)))
        finite = ops.logical_and(ops.isfinite(norm), spoilt == 0)
        if finite:
            self._apply(gradients, norm, lr)
        else:
            self.statistics.revert()
        if self.scaler is not None:
            self.scaler.adjust(finite)
        return norm, finite.astype(ms.float32)

    def _apply(self, gradients, norm, lr):
        if self.clip_norm > 0:
            factor = ops.minimum(self.clip_norm / (norm + 1e-6), 1.0)
            gradients = self.map(ops.partial(ops.mul, factor), gradients)
        self.optimizer(gradients, lr)
        if len(self.averages):
            self.map(ops.partial(_move_average, self.share), self.averages, self.optimizer.targets)
        self.statistics.accept()


def _move_average(share, average, parameter):
    return assign_add(average, (parameter - average) * share)


def _mean(all_reduce, share, gradient):
    return all_reduce(gradient) * share


def _add_share(share, total, gradient):
    return assign_add(total, share * gradient)


def _clear(total):
    return assign(total, ops.zeros_like(total))


def _copies(parameters, prefix: str) -> ParameterTuple:
    return ParameterTuple([ms.Parameter(p.copy(), name=f"{prefix}.{p.name}", requires_grad=False) for p in parameters])
