"""Mixed precision: which cells compute in half precision at which level. Parameters stay float32 and are cast where
they are used, so that gradients, optimizer and checkpoints are the same at every level.

O0  everything in float32
O1  dense layers, convolutions and attention's products in half precision, the rest in float32
O2  everything in half precision but SENSITIVE
O3  everything in half precision; norms and softmax too
The losses (pixel contrast included), the guided filter's statistics, resizing and the optimizer are float32 at every
level.
"""

import mindspore as ms
from mindspore import nn

from mindspore_coupalign.errors import UserError
from mindspore_coupalign.models.guided_filter import GuidedFilter
from mindspore_coupalign.models.lavt import InstanceNorm
from mindspore_coupalign.models.layers import Product, Resize
from mindspore_coupalign.models.swin import TokenGather

DTYPES = {"float16": ms.float16, "bfloat16": ms.bfloat16}
PRODUCTS = (nn.Dense, nn.Conv2d, Product)
SENSITIVE = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d, nn.SyncBatchNorm, InstanceNorm, nn.Softmax)
ALWAYS_FLOAT32 = (GuidedFilter, Resize)  # the resize kernels know no bfloat16


def choose_level(level: str, dtype: str, target: str) -> str:
    """The level that ``auto`` stands for on a target: O0 on CPU, O2 elsewhere.

    Raises:
        UserError: bfloat16 on CPU.
    """
    if level == "auto":
        level = "O0" if target == "CPU" else "O2"
    if level != "O0" and dtype == "bfloat16" and target == "CPU":
        raise UserError("train.amp_dtype=bfloat16: MindSpore has no bfloat16 kernels for the CPU; use float16, or "
                        "train.amp=O0")
    return level


def set_precision(model: nn.Cell, level: str, dtype: str):
    """Make a network compute at a level (not "auto"); call it before the network is compiled."""
    if level == "O0":
        return
    half = DTYPES[dtype]
    if level != "O1":
        model.to_float(half)
    wide = ALWAYS_FLOAT32 + (() if level == "O3" else SENSITIVE)
    for _, cell in model.cells_and_names():
        if level == "O1" and isinstance(cell, PRODUCTS):
            cell.to_float(half)
        elif isinstance(cell, wide):
            cell.to_float(ms.float32)
        if isinstance(cell, TokenGather):  # takes what comes: the gradient that it writes itself gets no cast back
            cell.add_flags(fp16=False, bf16=False, fp32=False)
