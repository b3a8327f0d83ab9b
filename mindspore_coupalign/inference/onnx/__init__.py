"""ONNX: a checkpoint becomes a file that onnxruntime, and most other inference engines, run without MindSpore.

Inputs of the graph, B of any size: image (B, 3, H, W) float32, or (B, H, W, 3) uint8 where the graph normalises; ids
(B, T) int32; word_mask (B, T) int32, 1 = word, 0 = padding. Output: logits (B, 1, H, W) float32. ``<file>.json`` beside
it is the sidecar (inference/sidecar.py). ``translate`` reads the network's MINDIR, ``primitives`` has the ONNX form of
each primitive, ``graph`` builds the graph; ``export`` writes and compares; ``session`` runs. Importing this imports
none of them.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

Run = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # (image, ids, word_mask) -> logits


def export_onnx(checkpoint, output: Path, uint8: bool = False) -> list[float]:
    """See ``export.export_onnx``."""
    from mindspore_coupalign.inference.onnx import export
    return export.export_onnx(checkpoint, output, uint8)


def export_int8(source: Path, output: Path) -> list[float]:
    """See ``export.export_int8``."""
    from mindspore_coupalign.inference.onnx import export
    return export.export_int8(source, output)


def load_onnx(path: str | Path) -> tuple[Run, dict]:
    """See ``session.load_onnx``; imports no MindSpore."""
    from mindspore_coupalign.inference.onnx import session
    return session.load_onnx(path)
