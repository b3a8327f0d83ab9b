"""Which targets MindSpore documents a primitive for, read from the installed wheel's own docstrings."""

import functools
import importlib
import inspect
import re

TARGETS = frozenset({"Ascend", "GPU", "CPU"})
PLACES = ("mindspore.ops", "mindspore.ops.operations", "mindspore.ops.auto_generate",
          "mindspore.ops.auto_generate.gen_ops_prim", "mindspore.ops.auto_generate.gen_ops_def",
          "mindspore.ops.operations._grad_ops", "mindspore.ops.operations._inner_ops", "mindspore.mint", "mindspore")
# The compiler's own: values and order, no kernel of any target
STRUCTURE = frozenset({"MakeTuple", "TupleGetItem", "Load", "UpdateState", "Depend", "Partial", "Switch", "Return",
                       "TensorMove"})
# What is left of a gradient's name without its end, where it is not the primitive's
ALIASES = {"Relu": "ReLU", "ResizeBilinear": "ResizeBilinearV2", "MaxPool3DGradWithArgmax": "MaxPool3DWithArgmax"}
GRADIENT = re.compile(r"(?<=\w)(GradV2|GradGrad|Grad|Backward|BackpropInput|BackpropFilter)$")


@functools.cache
def platforms(name: str) -> frozenset:
    """The documented targets of a primitive or function; its gradient has those of the primitive itself, where it has
    no documentation of its own. Empty where nothing is said."""
    said = _said(name)
    primitive = GRADIENT.sub("", name)
    primitive = ALIASES.get(primitive, primitive)
    if not said and primitive != name:
        return platforms(primitive)
    return said


def _said(name: str, depth: int = 3) -> frozenset:
    for place in PLACES:
        found = getattr(importlib.import_module(place), name, None)
        text = inspect.getdoc(found) or "" if found is not None else ""
        if inspect.isclass(found):
            text += inspect.getdoc(found.__init__) or ""
        if lists := re.search(r"Supported Platforms:\s*\n(.*)", text):
            if targets := TARGETS & set(re.findall(r"``(\w+)", lists[1])):
                return targets
        refers = re.search(r"Refer to :\w+:`mindspore\.(?:\w+\.)*(\w+)`", text)
        if refers and depth and (targets := _said(refers[1], depth - 1)):
            return targets
    return frozenset()
