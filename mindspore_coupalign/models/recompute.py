"""Activation recomputation (Chen et al., 2016, "Training Deep Nets with Sublinear Memory Cost"): the backward pass
computes the activations of a block again instead of reading stored ones.

A block is a cell whose class says ``recomputable = True``. Its inputs and its output are stored, all between them is
computed twice; dropout and stochastic depth draw the same numbers both times (rng.py).
"""

from mindspore import nn

from mindspore_coupalign.errors import UserError
from mindspore_coupalign.models.layers import FastLayerNorm


def recompute_blocks(model: nn.Cell) -> int:
    """Mark the recomputable blocks below ``model``, before it is compiled; returns how many there are.

    Only a graph with gradients differs by it: evaluation and exported graphs compute everything once anyway.

    Raises:
        UserError: the backbone has no such block.
    """
    blocks = [cell for _, cell in model.cells_and_names() if getattr(cell, "recomputable", False)]
    backbone = model.encoder.backbone
    if not any(getattr(cell, "recomputable", False) for _, cell in backbone.cells_and_names()):
        raise UserError(f"train.recompute: no block of {type(backbone).__name__} says recomputable = True; set "
                        "train.recompute=false")
    for _, cell in model.cells_and_names():
        if isinstance(cell, FastLayerNorm):
            # The compiler takes what a bprop of ours writes for forward nodes: a block whose output gets its gradient
            # from there would wait for what waits for the block, "Graph cycle exists".
            cell.fast = False
        elif isinstance(cell, (nn.BatchNorm2d, nn.SyncBatchNorm)):
            cell.bn_train.recompute(False)  # it updates its statistics, once per step
    for block in blocks:
        block.recompute()
    return len(blocks)
