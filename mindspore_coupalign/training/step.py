"""One jitted training step: forward, losses, backward, sum over micro-batches and ranks, update.

Shapes: image (B, 3, H, W); ids, word_mask (B, T); mask (B, 1, H, W); keys (S,) int32; results (14 + E,) float32 with E
terms of loss.extra. Gradients
and states are flat (optimizer.FlatParameters): (vector, *large, matrices).
"""

import contextlib
from typing import NamedTuple

import mindspore as ms
import numpy as np
from mindspore import ParameterTuple, Tensor, nn, ops
from mindspore.amp import all_finite

from mindspore_coupalign.distributed.collectives import average
from mindspore_coupalign.distributed.process import Runtime
from mindspore_coupalign.mindspore_calls import assign, assign_add
from mindspore_coupalign.models.rng import bind
from mindspore_coupalign.training.objective import LOSSES, Objective
from mindspore_coupalign.weights.checkpoint import check_arrays


class Statistics(nn.Cell):
    """The statistics of batch norms. A forward pass has already changed them when its gradient turns out to be
    non-finite; a copy allows to undo that. They are averaged where the weights are.

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
        """Average and copy the current ones; in the graph."""
        if len(self.averages):
            self.map(ops.partial(_move_average, self.share), self.averages, self.current)
        if len(self.current):
            self.map(assign, self.kept, self.current)

    def revert(self):
        """Return to the copies; in the graph."""
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
        """Set the averages, by parameter name, and copy the current values, which the model already has."""
        for p, own in zip(self.current, self.averages, strict=False):
            own.set_data(Tensor(averages[p.name]))
        for backup, statistic in zip(self.kept, self.current, strict=True):
            backup.set_data(statistic.copy())


class GradientSum(nn.Cell):
    """The mean of several micro-batches' gradients, and how many of them were non-finite."""

    def __init__(self, sums: ParameterTuple, number: int):
        super().__init__(auto_prefix=False)
        self.sums, self.share = sums, Tensor(1 / number, ms.float32)
        self.nonfinite_count = ms.Parameter(Tensor(0, ms.float32), name="nonfinite_count", requires_grad=False)
        self.map = ops.HyperMap()

    def add(self, gradients, nonfinite_count, last):
        """Returns how many were non-finite so far; after the last micro-batch the count starts again."""
        self.map(ops.partial(_add_share, self.share), self.sums, gradients)
        nonfinite_count = self.nonfinite_count + nonfinite_count
        assign(self.nonfinite_count, nonfinite_count * (1 - last.astype(ms.float32)))
        return nonfinite_count

    def clear(self):
        self.map(_clear, self.sums)


class Update(nn.Cell):
    """``construct(gradients, nonfinite_count, scale, lr)``: unscale, check, clip, update; returns (norm, finite) of the
    gradients.

    If a gradient is non-finite, or ``nonfinite_count`` is not 0, only the loss scale changes.

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

    def construct(self, gradients, nonfinite_count, scale, lr):
        if self.ranks > 1:
            gradients = self.map(ops.partial(_mean, self.all_reduce, 1 / self.ranks), gradients)
        if self.scaler is not None:
            gradients = self.map(ops.partial(ops.mul, 1 / scale), gradients)
        norm = ops.sqrt(2 * ops.addn(self.map(self.half_square_sum, gradients)))
        finite = ops.logical_and(ops.isfinite(norm), nonfinite_count == 0)
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


class StepResults(NamedTuple):
    """What a step returns, in this order; losses and gradient norm are means over the ranks."""

    loss: float  # LOSSES: the first nine
    bce: float
    dice: float
    contrast: float
    deep_supervision_bce: float
    deep_supervision_dice: float
    proposal_mask_bce: float
    proposal_mask_dice: float
    no_target: float
    grad_norm: float
    finite: float  # 1, or 0 for a step that changed nothing
    scale: float  # of the loss, in half precision
    stop: float  # number of ranks that were asked to stop
    clock: float  # sum over the ranks of the share of the time budget that was over when the step was launched
    extra: tuple[float, ...] = ()  # the terms of loss.extra

    @classmethod
    def of(cls, outputs: list) -> "StepResults":
        """From the vectors of an update's micro-batches: the last one's, with losses as means over all."""
        means, end = np.mean(outputs, 0).astype(float).tolist(), len(RESULTS)
        losses, others = means[:len(LOSSES)], outputs[-1][len(LOSSES):end]
        return cls(*losses, *map(float, others), tuple(means[end:]))


RESULTS = StepResults._fields[:-1]


class TrainStep:
    """``step(image, ids, word_mask, mask, lr)`` updates the model and returns the values of RESULTS.

    A non-finite loss or gradient updates nothing: neither parameters, moments and averages nor the statistics of batch
    norms; ``finite`` is then 0, on all ranks alike. Losses and gradients are means over the ranks.

    Args:
        clip_norm: bound on the gradients' global norm; 0: none.
        ema: decay of the averaged weights and statistics; 0 keeps none.
        scaler: an ``amp.DynamicLossScaler`` for half precision, or None.
        accumulate: micro-batches per update; every call but the last of an update has ``last=False`` and only adds.
        saturates: the device may return its largest number where others overflow, and 0 where they have NaN (Ascend).
            The norm does not show that; ``amp.all_finite``, which reads the device's overflow flag, does. Where numbers
            follow IEEE 754, the norm suffices.
    """

    def __init__(self, objective: Objective, optimizer, clip_norm: float, ema: float, ranks: int = 1, scaler=None,
                 accumulate: int = 1, saturates: bool = False):
        self.objective, self.optimizer, self.ema_decay, self.scaler = objective, optimizer, ema, scaler
        flat, params = optimizer.flat, optimizer.params
        self.moments = {"adam_m": optimizer.first, "adam_v": optimizer.second}
        self.averages = flat.state("ema", {p.name: p.asnumpy() for p in params}) if ema else ()
        self.keys = bind(objective)
        self.statistics = Statistics(objective, ema)
        update = Update(optimizer, self.statistics, self.averages, ema, clip_norm, scaler, ranks)
        sums = GradientSum(flat.state("sum"), accumulate) if accumulate > 1 else None
        self._step = _graph(objective, update, self.keys, sums, ranks, saturates)
        self.compiled = False

    def states(self) -> dict:
        """What a checkpoint holds in addition to the weights: section -> arrays by parameter name."""
        states = {name: self.optimizer.flat.arrays(state) for name, state in self.moments.items()}
        return states | ({"ema": self.averaged()} if self.ema_decay else {})

    def averaged(self) -> dict:
        """The averages of the weights and of batch norms' statistics, by parameter name."""
        return self.optimizer.flat.arrays(self.averages) | self.statistics.averaged()

    @contextlib.contextmanager
    def averaged_weights(self):
        """While entered, the model computes with its averaged weights and statistics where there are any.

        By ops.assign: after set_data, a compiled graph would continue with the old memory.
        """
        averages = self.averaged() if self.ema_decay else {}
        replaced = [p for p in self.objective.get_parameters() if p.name in averages]
        current = [p.asnumpy().copy() for p in replaced]
        for parameter in replaced:
            assign(parameter, Tensor(averages[parameter.name]))
        try:
            yield
        finally:
            for parameter, value in zip(replaced, current, strict=True):
                assign(parameter, Tensor(value))

    def share_statistics(self, runtime: Runtime):
        """Give every rank the mean of the ranks' batch norm statistics, where batch norm saw a share of the batch."""
        self.statistics.share_among(runtime)

    def counters(self) -> dict:
        """The numbers that a checkpoint holds in addition to the states."""
        counters = {"updates": int(self.optimizer.steps.asnumpy())}
        if self.scaler is not None:
            counters |= {"scale": float(self.scaler.scale_value.asnumpy()), "scale_counter": int(self.scaler.counter)}
        return counters

    def restore(self, arrays_of, counters: dict, source: str):
        """Take states and counters from a checkpoint, before the first step.

        Args:
            arrays_of: section name -> arrays by parameter name.

        Raises:
            UserError: a state does not fit.
        """
        flat, statistics = self.optimizer.flat, {p.name: tuple(p.shape) for p in self.statistics.current}
        for name, state in self.moments.items():
            flat.load(state, arrays_of(name), source)
        averages = arrays_of("ema") if self.ema_decay else {}
        if self.ema_decay:
            flat.load(self.averages, {name: a for name, a in averages.items() if name not in statistics}, source)
            check_arrays(statistics, {name: a for name, a in averages.items() if name in statistics}, source)
        self.statistics.restore(averages)
        self.optimizer.steps.set_data(Tensor(counters["updates"], ms.float32))
        if self.scaler is not None:
            start = self.counters()  # for a state from a device that needed no scale
            self.scaler.scale_value.set_data(Tensor(counters.get("scale", start["scale"]), ms.float32))
            self.scaler.counter.set_data(Tensor(counters.get("scale_counter", start["scale_counter"]), ms.int32))

    def __call__(self, image, ids, word_mask, mask, lr, keys=None, signals=(0.0, 0.0), last: bool = True):
        """``signals``: whether this rank was asked to stop, and its clock; the results have the sums over the ranks."""
        self.objective.set_train(True)
        keys = np.zeros(self.keys.shape, np.int32) if keys is None else keys
        signals = Tensor(np.array(signals, np.float32))
        results = self._step(image, ids, word_mask, mask, lr, Tensor(keys), signals, Tensor(last))
        self.compiled = True
        return results


def _graph(objective: Objective, update: Update, keys_parameter, sums: GradientSum | None, ranks: int, saturates: bool):
    """The compiled function behind TrainStep's call; ``sums`` where an update has several micro-batches."""
    optimizer, scaler, all_reduce = update.optimizer, update.scaler, update.all_reduce
    terms, extra = len(LOSSES), len(getattr(objective, "extra", ()))

    def scaled(image, ids, word_mask, mask, scale):
        losses = objective(image, ids, word_mask, mask)
        return losses[0] * scale, ops.stack(losses)

    gradient = ms.value_and_grad(scaled, None, optimizer.params, has_aux=True)

    def non_finite(loss, gradients):
        """1 if this rank's loss or gradients are not finite, else 0. Each rank checks before the gradients are summed,
        since its device's flag does not cover the others; the results are summed, so that all decide alike."""
        finite = ops.isfinite(loss)
        if saturates:
            finite = ops.logical_and(finite, all_finite(gradients))
        return 1 - finite.astype(ms.float32)

    @ms.jit
    def step(image, ids, word_mask, mask, lr, keys, signals, last):
        assign(keys_parameter, keys)
        scale = Tensor(1, ms.float32) if scaler is None else scaler.scale_value * 1.0
        if saturates:  # reading the flag clears it; what ran before, such as a validation, may have raised it
            image = ops.depend(image, all_finite((image,)))
        (_, losses), gradients = gradient(image, ids, word_mask, mask, scale)
        gradients = optimizer.pack(gradients)
        nonfinite_count = non_finite(losses[0], gradients)
        if ranks > 1:
            signals = all_reduce(ops.concat((signals, nonfinite_count.reshape((1,)))))
            losses, nonfinite_count, signals = all_reduce(losses) * (1 / ranks), signals[2], signals[:2]
        norm, finite = ops.zeros_like(scale), ops.ones_like(scale)
        if sums is None:
            norm, finite = update(gradients, nonfinite_count, scale, lr)
        else:
            nonfinite_count = sums.add(gradients, nonfinite_count, last)
            if last:
                norm, finite = update(sums.sums, nonfinite_count, scale, lr)
                sums.clear()
        results = ops.concat((losses[:terms], ops.stack((norm, finite, scale)), signals))
        return ops.concat((results, losses[terms:])) if extra else results

    return step
