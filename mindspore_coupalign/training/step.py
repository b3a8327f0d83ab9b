"""One jitted training step: forward, losses, backward, sum over micro-batches and ranks, update (update.py).

Shapes: image (B, 3, H, W); ids, word_mask (B, T); mask (B, 1, H, W); keys (S,) int32; results (14,) float32.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops
from mindspore.amp import all_finite

from mindspore_coupalign.distributed.process import Runtime
from mindspore_coupalign.mindspore_calls import assign
from mindspore_coupalign.models.noise import connect
from mindspore_coupalign.training.objective import LOSSES, Objective
from mindspore_coupalign.training.update import GradientSum, Statistics, Update
from mindspore_coupalign.weights.checkpoint import check_arrays

RESULTS = (*LOSSES, "grad_norm", "finite", "scale", "stop", "clock")


class TrainStep:
    """``step(image, ids, word_mask, mask, lr)`` updates the model and returns the values of RESULTS.

    A non-finite loss or gradient updates nothing: neither parameters, moments and averages nor the statistics of batch
    norms; ``finite`` is then 0, on all ranks alike. Losses and gradients are means over the ranks.

    Args:
        objective: the losses over the model.
        optimizer: an Optimizer over the model's parameters.
        clip_norm: bound on the gradients' global norm; 0 leaves them as they are.
        ema: decay of the averaged weights and statistics; 0 keeps none.
        scaler: an ``amp.DynamicLossScaler`` for half precision, or None.
        accumulate: micro-batches per update; every call but the last of each says ``last=False`` and only adds.
        saturates: the device may answer its largest number where others overflow, and 0 where they have NaN (Ascend).
            No norm betrays that; ``amp.all_finite`` does, which reads the device's overflow flag there. Where numbers
            follow IEEE 754, it would say of every gradient what their norm says of all, and is left out.
    """

    def __init__(self, objective: Objective, optimizer, clip_norm: float, ema: float, ranks: int = 1, scaler=None,
                 accumulate: int = 1, saturates: bool = False):
        self.objective, self.optimizer, self.ema_decay, self.scaler = objective, optimizer, ema, scaler
        flat, params = optimizer.flat, optimizer.params
        self.averages = flat.state("ema", {p.name: p.asnumpy() for p in params}) if ema else ()
        self.keys = connect(objective)
        self.statistics = Statistics(objective, ema)
        update = Update(optimizer, self.statistics, self.averages, ema, clip_norm, scaler, ranks)
        sums = GradientSum(flat.state("sum"), accumulate) if accumulate > 1 else None
        self._step = _graph(objective, update, self.keys, sums, ranks, saturates)
        self.compiled = False

    def states(self) -> dict:
        """What a checkpoint keeps beside the weights: section -> arrays by parameter name."""
        states = {name: self.optimizer.flat.arrays(state) for name, state in self._moments().items()}
        return states | ({"ema": self.averaged()} if self.ema_decay else {})

    def averaged(self) -> dict:
        """The averages of the weights and of batch norms' statistics, by parameter name."""
        return self.optimizer.flat.arrays(self.averages) | self.statistics.averaged()

    def share_statistics(self, runtime: Runtime):
        """Give every rank the mean of the ranks' batch norm statistics, where batch norm saw a share of the batch."""
        self.statistics.share_among(runtime)

    def _moments(self) -> dict:
        return {"adam_m": self.optimizer.first, "adam_v": self.optimizer.second}

    def counters(self) -> dict:
        """The numbers that a checkpoint keeps beside the states."""
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
        for name, state in self._moments().items():
            flat.load(state, arrays_of(name), source)
        averages = arrays_of("ema") if self.ema_decay else {}
        if self.ema_decay:
            flat.load(self.averages, {name: a for name, a in averages.items() if name not in statistics}, source)
            check_arrays(statistics, {name: a for name, a in averages.items() if name in statistics}, source)
        self.statistics.restore(averages)
        self.optimizer.steps.set_data(Tensor(counters["updates"], ms.float32))
        if self.scaler is not None:
            start = self.counters()  # for a state of a device that needed no scale
            self.scaler.scale_value.set_data(Tensor(counters.get("scale", start["scale"]), ms.float32))
            self.scaler.counter.set_data(Tensor(counters.get("scale_counter", start["scale_counter"]), ms.int32))

    def __call__(self, image, ids, word_mask, mask, lr, keys=None, signals=(0.0, 0.0), last: bool = True):
        """``signals``: whether this rank was asked to stop, and its clock; the results hold the sums over the ranks."""
        self.objective.set_train(True)
        keys = np.zeros(self.keys.shape, np.int32) if keys is None else keys
        signals = Tensor(np.array(signals, np.float32))
        results = self._step(image, ids, word_mask, mask, lr, Tensor(keys), signals, Tensor(last))
        self.compiled = True
        return results


def _graph(objective: Objective, update: Update, keys_parameter, sums: GradientSum | None, ranks: int, saturates: bool):
    """The compiled function behind TrainStep's call; ``sums`` where an update has several micro-batches."""
    optimizer, scaler, all_reduce = update.optimizer, update.scaler, update.all_reduce

    def scaled(image, ids, word_mask, mask, scale):
        losses = objective(image, ids, word_mask, mask)
        return losses[0] * scale, ops.stack(losses)

    gradient = ms.value_and_grad(scaled, None, optimizer.params, has_aux=True)

    def non_finite(loss, gradients):
        """1 where this rank's loss or gradients are not finite, else 0. Each rank asks before the gradients' sum,
        since its device's flag knows nothing of the others; the flags are summed, so that all decide alike."""
        finite = ops.isfinite(loss)
        if saturates:
            finite = ops.logical_and(finite, all_finite(gradients))
        return 1 - finite.astype(ms.float32)

    @ms.jit
    def step(image, ids, word_mask, mask, lr, keys, signals, last):
        assign(keys_parameter, keys)
        scale = Tensor(1, ms.float32) if scaler is None else scaler.scale_value * 1.0
        if saturates:  # asking clears the flag, which whatever ran before, as a validation, may have raised
            image = ops.depend(image, all_finite((image,)))
        (_, losses), gradients = gradient(image, ids, word_mask, mask, scale)
        gradients = optimizer.pack(gradients)
        spoilt = non_finite(losses[0], gradients)
        if ranks > 1:
            signals = all_reduce(ops.concat((signals, spoilt.reshape((1,)))))
            losses, spoilt, signals = all_reduce(losses) * (1 / ranks), signals[2], signals[:2]
        norm, finite = ops.zeros_like(scale), ops.ones_like(scale)
        if sums is None:
            norm, finite = update(gradients, spoilt, scale, lr)
        else:
            spoilt = sums.add(gradients, spoilt, last)
            if last:
                norm, finite = update(sums.sums, spoilt, scale, lr)
                sums.clear()
        return ops.concat((losses, ops.stack((norm, finite, scale)), signals))

    return step
