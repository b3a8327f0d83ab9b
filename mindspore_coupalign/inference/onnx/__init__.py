"""ONNX: a checkpoint becomes a file that onnxruntime, and most other inference engines, run without MindSpore.

Inputs of the graph, B of any size: image (B, 3, H, W) float32, normalised; ids (B, T) int32; word_mask (B, T) int32,
1 = word, 0 = padding. Output: logits (B, 1, H, W) float32. ``<file>.json`` beside it is the sidecar. ``builder`` makes
graphs, ``layers``, ``encoders``, ``fusion`` and ``heads`` know the network's cells, ``export`` writes and compares,
``session`` runs.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

TOLERANCE = 1e-4  # largest difference from the checkpoint, relative to the logits' largest absolute value
Run = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # (image, ids, word_mask) -> logits


def export_onnx(checkpoint, output: Path) -> list[float]:
    """``export.export_onnx``."""
    from mindspore_coupalign.inference.onnx import export
    return export.export_onnx(checkpoint, output)


def export_int8(source: Path, output: Path) -> list[float]:
    """``export.export_int8``."""
    from mindspore_coupalign.inference.onnx import export
    return export.export_int8(source, output)


def load_onnx(path: str | Path) -> tuple[Run, dict]:
    """``session.load_onnx``; imports no MindSpore."""
    from mindspore_coupalign.inference.onnx import session
    return session.load_onnx(path)
