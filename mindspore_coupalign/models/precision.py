"""Mixed precision: which cells compute in half precision at which level. Parameters stay float32 and are cast where
they are used, so that gradients, optimizer and checkpoints are the same at every level.

O0  everything in float32
O1  dense layers, convolutions and attention's products in half precision, and activations and gates on their results;
    residual streams, norms and softmax in float32
O2  everything in half precision but norms and softmax
O3  everything in half precision; norms and softmax too
Losses and the optimizer are float32 at every level.

A cell that needs something else says so by its class attribute ``amp_rule``:
"sensitive"      float32 below O3, as a norm or a softmax
"float32"        float32 at every level, as statistics and resizing are
"float32_at_O1"  the cell and all below it stay in float32 at O1, as where it reads a residual stream without a norm
"keep"           computes in the type that it is given, for a cell with a gradient of its own
"""

import sys
from typing import NamedTuple

import mindspore as ms
from mindspore import nn

from mindspore_coupalign.errors import UserError
from mindspore_coupalign.models.layers import Product

DTYPES = {"float16": ms.float16, "bfloat16": ms.bfloat16}
PRODUCTS = (nn.Dense, nn.Conv2d, Product)
SENSITIVE = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d, nn.SyncBatchNorm, nn.Softmax)
WITHOUT_BFLOAT16 = ("CPU", "GPU")  # targets for which MindSpore has no bfloat16 kernels


class Precision(NamedTuple):
    amp: str  # O0 to O3
    amp_dtype: str  # float16 or bfloat16; float32 at O0


FLOAT32 = Precision("O0", "float32")


def choose_precision(level: str, dtype: str, target: str) -> Precision:
    """What a level stands for on a target; ``auto`` is O0 on CPU and O1 elsewhere.

    O1 keeps the residual stream in float32. O2 rounds it to half precision, where a large activation (65504 is the end
    of float16) becomes infinite, and is to be asked for by name until it has been measured on a device.

    Raises:
        UserError: bfloat16 on a target without kernels for it.
    """
    if level == "auto":
        level = "O0" if target == "CPU" else "O1"
    if level == "O0":
        return FLOAT32
    if dtype == "bfloat16" and target in WITHOUT_BFLOAT16:
        raise UserError(f"train.amp_dtype=bfloat16: MindSpore {ms.__version__} has no bfloat16 kernels for the "
                        f"{target} (only for Ascend); use float16, or float32 with train.amp=O0")
    return Precision(level, dtype)


def restored_precision(checkpoint, asked: str | None, target: str) -> Precision:
    """In which precision a checkpoint's network computes on a target: as asked, else as its training does there.

    A network trained in bfloat16 goes down to float32 where there are no kernels for it: float16 lacks
    bfloat16's exponent range. One line on stderr says so.

    Raises:
        UserError: ``asked`` is not possible on the target.
    """
    train = checkpoint.config.train
    try:
        return choose_precision(asked or train.amp, train.amp_dtype, target)
    except UserError as exc:
        if asked:
            raise UserError(f"--amp {asked}: {checkpoint.path} was trained in bfloat16, for which MindSpore "
                            f"{ms.__version__} has no kernels on the {target}; use --amp O0") from exc
        print(f"{checkpoint.path}: trained in bfloat16, for which MindSpore has no kernels on the {target}; computed "
              "in float32", file=sys.stderr)
        return FLOAT32


def set_precision(model: nn.Cell, precision: Precision):
    """Make a network compute in a precision and remember it as ``model.precision``; call it before it is compiled."""
    model.precision = precision
    level = precision.amp
    if level == "O0":
        return
    half = DTYPES[precision.amp_dtype]
    if level != "O1":
        model.to_float(half)
    float32_at_o1 = {id(part) for _, cell in model.cells_and_names() if _rule(cell) == "float32_at_O1"
                     for _, part in cell.cells_and_names()} if level == "O1" else set()
    for _, cell in model.cells_and_names():
        rule = _rule(cell)
        if id(cell) in float32_at_o1:
            continue
        if rule == "keep":
            cell.add_flags(fp16=False, bf16=False, fp32=False)
        elif level == "O1" and isinstance(cell, PRODUCTS):
            cell.to_float(half)
        elif rule == "float32" or (level != "O3" and rule == "sensitive"):
            cell.to_float(ms.float32)


def _rule(cell: nn.Cell) -> str:
    rule = getattr(cell, "amp_rule", "sensitive" if isinstance(cell, SENSITIVE) else "")
    if rule not in ("", "sensitive", "float32", "float32_at_O1", "keep"):
        raise ValueError(f"{type(cell).__name__}.amp_rule: {rule!r} is none of the rules of models/precision.py")
    return rule
