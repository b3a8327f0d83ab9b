"""One jitted training step: forward, losses, backward, sum over micro-batches and ranks, unscale, check, clip, update.

Shapes: image (B, 3, H, W); ids, word_mask (B, T); mask (B, 1, H, W); keys (S,) int32; results (13,) float32.
"""

import mindspore as ms
import numpy as np
from mindspore import ParameterTuple, Tensor, nn, ops
from mindspore.amp import all_finite

from mindspore_coupalign.distributed.collectives import average
from mindspore_coupalign.models.noise import connect
from mindspore_coupalign.runtime import Runtime
from mindspore_coupalign.weights.checkpoint import check_arrays

LOSSES = ("loss", "bce", "dice", "contrast", "stages_bce", "stages_dice", "proposals_bce", "proposals_dice")
RESULTS = (*LOSSES, "grad_norm", "finite", "scale", "stop", "clock")


class Objective(nn.Cell):
    """LOSSES of one batch: the weighted sum and its raw terms, with the weights of a configuration's section ``loss``

        loss = masks("") + contrast · <contrast> + stages · masks("stages_") + proposals · masks("proposals_")
        masks(x) = bce · <x + "bce"> + dice · <x + "dice">

    The stages' terms are sums over the stages that have heads; terms of parts that are off are 0.
    """

    def __init__(self, model, mask_loss, contrast, weights: tuple):
        super().__init__(auto_prefix=False)  # else every parameter of the model would be renamed model.<name>
        self.model, self.mask_loss, self.contrast = model, mask_loss, contrast
        self.bce_weight, self.dice_weight, self.contrast_weight, self.stages_weight, self.proposals_weight = weights

    def construct(self, image, ids, word_mask, mask):
        logits, pixels, _, _, _, early, picked = self.model.forward(image, ids, word_mask)
        bce, dice = self.mask_loss(logits.astype(ms.float32), mask)
        total = self.bce_weight * bce + self.dice_weight * dice
        contrast = ops.zeros_like(bce)
        if self.contrast_weight > 0:
            contrast = self.contrast(pixels.astype(ms.float32), mask)
            total = total + self.contrast_weight * contrast
        stages_bce, stages_dice = ops.zeros_like(bce), ops.zeros_like(bce)
        for i in range(len(early)):
            stage_bce, stage_dice = self._coarse_losses(early[i], mask, 2 ** (i + 2))
            stages_bce, stages_dice = stages_bce + stage_bce, stages_dice + stage_dice
        total = total + self.stages_weight * (self.bce_weight * stages_bce + self.dice_weight * stages_dice)
        proposals_bce, proposals_dice = ops.zeros_like(bce), ops.zeros_like(bce)
        if self.proposals_weight > 0:
            proposals_bce, proposals_dice = self._coarse_losses(picked, mask, 4)
            total = total + self.proposals_weight * (self.bce_weight * proposals_bce
                                                     + self.dice_weight * proposals_dice)
        return total, bce, dice, contrast, stages_bce, stages_dice, proposals_bce, proposals_dice

    def _coarse_losses(self, logits, mask, stride: int):
        """Both mask losses of logits (B, P, 1) at a stride against the share of the mask in each of their cells."""
        mask = ops.avg_pool2d(mask, stride, stride)
        return self.mask_loss(logits.astype(ms.float32).reshape(mask.shape), mask)


def _average(share, average, parameter):
    return ops.assign_add(average, (parameter - average) * share)


def _mean(all_reduce, share, gradient):
    return all_reduce(gradient) * share


def _add(share, total, gradient):
    return ops.assign_add(total, share * gradient)


def _clear(total):
    return ops.assign(total, ops.zeros_like(total))


def _copies(parameters, prefix: str) -> ParameterTuple:
    return ParameterTuple([ms.Parameter(p.copy(), name=f"{prefix}.{p.name}", requires_grad=False) for p in parameters])


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
        params = optimizer.params
        self.averages = averages = optimizer.packing.state("ema", {p.name: p.asnumpy() for p in params}) if ema else ()
        self.keys = keys_parameter = connect(objective)
        # statistics that the forward pass has changed already when its gradient turns out to be no number
        self.statistics = statistics = ParameterTuple([p for p in objective.get_parameters()
                                                       if p.name.endswith(("moving_mean", "moving_variance"))])
        self.kept = kept = _copies(statistics, "kept")
        self.average_statistics = average_statistics = _copies(statistics if ema else (), "ema")
        sums = optimizer.packing.state("sum") if accumulate > 1 else ()
        spoilt_before = ms.Parameter(Tensor(0, ms.float32), name="spoilt", requires_grad=False)  # micro-batches of sums
        all_reduce = ops.AllReduce() if ranks > 1 else None
        hyper_map = ops.HyperMap()
        half_square_sum = ops.L2Loss()
        share = Tensor(1 / accumulate, ms.float32)

        def scaled(image, ids, word_mask, mask, scale):
            losses = objective(image, ids, word_mask, mask)
            return losses[0] * scale, ops.stack(losses)

        gradient = ms.value_and_grad(scaled, None, params, has_aux=True)

        def non_finite(loss, gradients):
            """1 where this rank's loss or gradients are not finite, else 0. Each rank asks before the gradients' sum,
            since its device's flag knows nothing of the others; the flags are summed, so that all decide alike."""
            finite = ops.isfinite(loss)
            if saturates:
                finite = ops.logical_and(finite, all_finite(gradients))
            return 1 - finite.astype(ms.float32)

        def update(gradients, spoilt, scale, lr):
            """(norm, finite) of the gradients, which are still scaled; ``spoilt`` counts what was not finite before."""
            if ranks > 1:
                gradients = hyper_map(ops.partial(_mean, all_reduce, 1 / ranks), gradients)
            if scaler is not None:
                gradients = hyper_map(ops.partial(ops.mul, 1 / scale), gradients)
            norm = ops.sqrt(2 * ops.addn(hyper_map(half_square_sum, gradients)))
            finite = ops.logical_and(ops.isfinite(norm), spoilt == 0)
            if finite:
                if clip_norm > 0:
                    factor = ops.minimum(clip_norm / (norm + 1e-6), 1.0)
                    gradients = hyper_map(ops.partial(ops.mul, factor), gradients)
                optimizer(gradients, lr)
                if ema > 0:
                    hyper_map(ops.partial(_average, 1 - ema), averages, optimizer.targets)
                    if len(statistics):
                        hyper_map(ops.partial(_average, 1 - ema), average_statistics, statistics)
                if len(statistics):
                    hyper_map(ops.assign, kept, statistics)
            elif len(statistics):
                hyper_map(ops.assign, statistics, kept)
            if scaler is not None:
                scaler.adjust(finite)
            return norm, finite.astype(ms.float32)

        @ms.jit
        def step(image, ids, word_mask, mask, lr, keys, signals, last):
            ops.assign(keys_parameter, keys)
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
            if accumulate == 1:
                norm, finite = update(gradients, spoilt, scale, lr)
            else:
                hyper_map(ops.partial(_add, share), sums, gradients)
                spoilt = spoilt_before + spoilt
                ops.assign(spoilt_before, spoilt * (1 - last.astype(ms.float32)))
                if last:
                    norm, finite = update(sums, spoilt, scale, lr)
                    hyper_map(_clear, sums)
            return ops.concat((losses, ops.stack((norm, finite, scale)), signals))

        self._step, self.compiled = step, False

    def states(self) -> dict:
        """What a checkpoint keeps beside the weights: section -> arrays by parameter name."""
        states = {name: self.optimizer.packing.arrays(state) for name, state in self._moments().items()}
        return states | ({"ema": self.averaged()} if self.ema_decay else {})

    def averaged(self) -> dict:
        """The averages of the weights and of batch norms' statistics, by parameter name."""
        statistics = {p.name: a.asnumpy() for p, a in zip(self.statistics, self.average_statistics, strict=True)}
        return self.optimizer.packing.arrays(self.averages) | statistics

    def share_statistics(self, here: Runtime):
        """Give every rank the mean of the ranks' batch norm statistics, where batch norm saw a share of the batch."""
        average((*self.statistics, *self.average_statistics), here)
        for backup, statistic in zip(self.kept, self.statistics, strict=True):
            ops.assign(backup, statistic)

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
        for name, state in self._moments().items():
            self.optimizer.packing.load(state, arrays_of(name), source)
        if self.ema_decay:
            averages = arrays_of("ema")
            names = {p.name for p in self.statistics}
            statistics = {name: array for name, array in averages.items() if name in names}
            weights = {name: array for name, array in averages.items() if name not in names}
            self.optimizer.packing.load(self.averages, weights, source)
            check_arrays({p.name: tuple(p.shape) for p in self.statistics}, statistics, source)
            for p, average in zip(self.statistics, self.average_statistics, strict=True):
                average.set_data(Tensor(statistics[p.name]))
        self.optimizer.steps.set_data(Tensor(counters["updates"], ms.float32))
        if self.scaler is not None:
            start = self.counters()  # for a state of a device that needed no scale
            self.scaler.scale_value.set_data(Tensor(counters.get("scale", start["scale"]), ms.float32))
            self.scaler.counter.set_data(Tensor(counters.get("scale_counter", start["scale_counter"]), ms.int32))
        for backup, statistic in zip(self.kept, self.statistics, strict=True):
            backup.set_data(statistic.copy())

    def __call__(self, image, ids, word_mask, mask, lr, keys=None, signals=(0.0, 0.0), last: bool = True):
        """``signals``: whether this rank was asked to stop, and its clock; the results hold the sums over the ranks."""
        self.objective.set_train(True)
        keys = np.zeros(self.keys.shape, np.int32) if keys is None else keys
        signals = Tensor(np.array(signals, np.float32))
        results = self._step(image, ids, word_mask, mask, lr, Tensor(keys), signals, Tensor(last))
        self.compiled = True
        return results
