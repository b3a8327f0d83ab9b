"""The loss of one batch, with the weights of a configuration's section ``loss``.

Shapes: image (B, 3, H, W); ids, word_mask (B, T); mask (B, 1, H, W); each loss a scalar.
"""

import mindspore as ms
from mindspore import nn, ops

from mindspore_coupalign.config.sections import LossConfig
from mindspore_coupalign.models.coupalign import HAS_TARGET, LOGITS, PIXELS, PROPOSAL_LOGITS, STAGE_LOGITS
from mindspore_coupalign.models.losses.terms import MaskLoss, PixelContrast, binary_cross_entropy
from mindspore_coupalign.models.parts import find

LOSSES = ("loss", "bce", "dice", "contrast", "deep_supervision_bce", "deep_supervision_dice", "proposal_mask_bce",
          "proposal_mask_dice", "no_target")


class Objective(nn.Cell):
    """LOSSES of one batch: the weighted sum and its raw terms

        loss = masks("") + contrast · <contrast> + deep_supervision · masks("deep_supervision_")
               + proposal_mask · masks("proposal_mask_") + no_target · <no_target>
        masks(x) = bce · <x + "bce"> + dice · <x + "dice">

    Deep supervision's terms are sums over the stage heads; ``no_target`` is the binary cross-entropy of the target
    presence head, whose label is 1 where the mask has a pixel at the network's input size. Terms of parts that are off
    are 0.
    The terms of ``loss.extra``, each (outputs, mask) -> a scalar, follow LOSSES.
    """

    def __init__(self, model, loss: LossConfig, no_target: bool):
        super().__init__(auto_prefix=False)  # else every parameter of the model would be renamed model.<name>
        self.model, self.mask_loss = model, MaskLoss(loss.class_weights)
        self.contrast = PixelContrast(loss.temperature, loss.negatives)
        self.bce_weight, self.dice_weight, self.contrast_weight = loss.bce, loss.dice, loss.contrast
        self.stage_weight, self.proposal_weight = loss.deep_supervision, loss.proposal_mask
        self.no_target_weight = loss.no_target if no_target else 0
        self.extra = nn.CellList([find("loss", entry.name)(entry) for entry in loss.extra])
        self.extra_weights = tuple(entry.weight for entry in loss.extra)

    def construct(self, image, ids, word_mask, mask):
        outputs = self.model.outputs(image, ids, word_mask)
        bce, dice = self.mask_loss(outputs[LOGITS].astype(ms.float32), mask)
        total = self.bce_weight * bce + self.dice_weight * dice
        contrast = ops.zeros_like(bce)
        if self.contrast_weight > 0:
            contrast = self.contrast(outputs[PIXELS].astype(ms.float32), mask)
            total = total + self.contrast_weight * contrast
        stage_bce, stage_dice = ops.zeros_like(bce), ops.zeros_like(bce)
        if self.stage_weight > 0:
            for i in range(len(outputs[STAGE_LOGITS])):
                own_bce, own_dice = self._coarse_losses(outputs[STAGE_LOGITS][i], mask, 2 ** (i + 2))
                stage_bce, stage_dice = stage_bce + own_bce, stage_dice + own_dice
        total = total + self.stage_weight * (self.bce_weight * stage_bce + self.dice_weight * stage_dice)
        proposal_bce, proposal_dice = ops.zeros_like(bce), ops.zeros_like(bce)
        if self.proposal_weight > 0:
            proposal_bce, proposal_dice = self._coarse_losses(outputs[PROPOSAL_LOGITS], mask, 4)
            total = total + self.proposal_weight * (self.bce_weight * proposal_bce + self.dice_weight * proposal_dice)
        no_target = ops.zeros_like(bce)
        if self.no_target_weight > 0:
            no_target = binary_cross_entropy(outputs[HAS_TARGET].astype(ms.float32), ops.amax(mask, (1, 2, 3))).mean()
            total = total + self.no_target_weight * no_target
        extra = ()
        for i in range(len(self.extra_weights)):
            term = self.extra[i](outputs, mask)
            total = total + self.extra_weights[i] * term
            extra += (term,)
        return (total, bce, dice, contrast, stage_bce, stage_dice, proposal_bce, proposal_dice, no_target) + extra

    def _coarse_losses(self, logits, mask, stride: int):
        """Both mask losses of logits (B, P, 1) at a stride; their target is the share of the mask in each cell."""
        mask = ops.avg_pool2d(mask, stride, stride)
        return self.mask_loss(logits.astype(ms.float32).reshape(mask.shape), mask)
