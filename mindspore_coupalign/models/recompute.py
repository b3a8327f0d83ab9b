"""Activation recomputation: which cells' activations the backward pass computes again instead of reading what the
forward pass has kept (Chen et al., 2016, "Training Deep Nets with Sublinear Memory Cost").

A block is one unit: its inputs and its output are kept, all between them is computed twice. Dropout and stochastic
depth draw the same numbers both times, since ``noise.Noise`` is a function of its key alone.

Shapes: none change; a block maps tokens (B, P, C) or (B, T, D), or a map (B, C, H, W), to the like.
"""

from mindspore import nn

from mindspore_coupalign.models.bert import BertLayer
from mindspore_coupalign.models.darknet import DarkBlock
from mindspore_coupalign.models.layers import FastLayerNorm
from mindspore_coupalign.models.resnet import Bottleneck
from mindspore_coupalign.models.swin import SwinBlock

BLOCKS = (SwinBlock, Bottleneck, DarkBlock, BertLayer)


def recompute_blocks(model: nn.Cell) -> int:
    """Mark the encoders' blocks below ``model``, before it is compiled; how many there are.

    Only a graph with gradients differs by it: what is evaluated or exported computes everything once anyway.
    """
    blocks = []
    for _, cell in model.cells_and_names():
        if isinstance(cell, BLOCKS):
            blocks.append(cell)
        elif isinstance(cell, FastLayerNorm):
            # The compiler takes what a bprop of ours writes for forward nodes: a block whose output gets its gradient
            # from there would wait for what waits for the block, "Graph cycle exists".
            cell.fast = False
        elif isinstance(cell, (nn.BatchNorm2d, nn.SyncBatchNorm)):
            cell.bn_train.recompute(False)  # it moves its statistics, once per step
    for block in blocks:
        block.recompute()
    return len(blocks)
