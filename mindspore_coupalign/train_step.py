"""One jitted training step: forward, losses, backward, clip by global norm, AdamW or Muon, weight averaging.

Shapes: image (B, 3, H, W); ids, word_mask (B, T); mask (B, 1, H, W); losses (6,) float32.
"""

import mindspore as ms
from mindspore import nn, ops

LOSSES = ("loss", "bce", "dice", "contrast", "stages", "grad_norm")


class Objective(nn.Cell):
    """(total, bce, dice, contrast, stages) of one batch."""

    def __init__(self, model, mask_loss, contrast, weights: tuple):
        super().__init__(auto_prefix=False)  # else every parameter of the model would be renamed model.<name>
        self.model, self.mask_loss, self.contrast = model, mask_loss, contrast
        self.bce_weight, self.dice_weight, self.contrast_weight, self.stages_weight = weights

    def construct(self, image, ids, word_mask, mask):
        logits, pixels, _, _, _, early = self.model.forward(image, ids, word_mask)
        bce, dice = self.mask_loss(logits, mask)
        total = self.bce_weight * bce + self.dice_weight * dice
        contrast = ops.zeros_like(bce)
        if self.contrast_weight > 0:
            contrast = self.contrast(pixels, mask)
            total = total + self.contrast_weight * contrast
        stages = ops.zeros_like(bce)
        for i in range(len(early)):
            stages = stages + self._stage_loss(early[i], ops.avg_pool2d(mask, 2 ** (i + 2), 2 ** (i + 2)))
        return total + self.stages_weight * stages, bce, dice, contrast, stages

    def _stage_loss(self, logits, mask):
        """Both mask losses of a stage's logits (B, P_i, 1) against the share of the mask in each of its cells."""
        bce, dice = self.mask_loss(logits.reshape(mask.shape), mask)
        return self.bce_weight * bce + self.dice_weight * dice


def _average(share, average, parameter):
    return ops.assign_add(average, (parameter - average) * share)


def _mean(all_reduce, share, gradient):
    return all_reduce(gradient) * share


class TrainStep:
    """``step(image, ids, word_mask, mask, lr)`` updates the model and returns the losses of LOSSES.

    Args:
        objective: the losses over the model.
        optimizer: an Optimizer over the model's parameters.
        clip_norm: bound on the gradients' global norm; 0 leaves them as they are.
        ema: decay of the averaged weights; 0 keeps none.
    """

    def __init__(self, objective: Objective, optimizer, clip_norm: float, ema: float, ranks: int = 1):
        self.objective, self.optimizer, self.ema_decay = objective, optimizer, ema
        params = optimizer.params
        start = {p.name: p.asnumpy() for p in params}
        self.averages = averages = optimizer.packing.state("ema", start) if ema else ()
        all_reduce = ops.AllReduce() if ranks > 1 else None
        gradient = ms.value_and_grad(objective, None, params, has_aux=True)
        hyper_map = ops.HyperMap()
        half_square_sum = ops.L2Loss()

        @ms.jit
        def step(image, ids, word_mask, mask, lr):
            (loss, bce, dice, contrast, stages), gradients = gradient(image, ids, word_mask, mask)
            gradients = optimizer.pack(gradients)
            if ranks > 1:
                gradients = hyper_map(ops.partial(_mean, all_reduce, 1 / ranks), gradients)
            norm = ops.sqrt(2 * ops.addn(hyper_map(half_square_sum, gradients)))
            if clip_norm > 0:
                gradients = hyper_map(ops.partial(ops.mul, ops.minimum(clip_norm / (norm + 1e-6), 1.0)), gradients)
            optimizer(gradients, lr)
            if ema > 0:
                hyper_map(ops.partial(_average, 1 - ema), averages, optimizer.targets)
            return ops.stack((loss, bce, dice, contrast, stages, norm))

        self._step = step

    def states(self) -> dict:
        """The packed states that a checkpoint keeps beside the weights, by the name of their section."""
        states = {"adam_m": self.optimizer.first, "adam_v": self.optimizer.second}
        return states | ({"ema": self.averages} if self.ema_decay else {})

    def __call__(self, image, ids, word_mask, mask, lr):
        self.objective.set_train(True)
        return self._step(image, ids, word_mask, mask, lr)
