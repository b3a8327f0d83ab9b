"""Running an ONNX file by onnxruntime on the CPU: NumPy arrays in and out, no MindSpore."""

import importlib
import os
from pathlib import Path

import numpy as np

from mindspore_coupalign.errors import UserError, one_line
from mindspore_coupalign.inference import sidecar
from mindspore_coupalign.inference.network import NetworkOutput

INPUTS, OUTPUTS = ("image", "ids", "word_mask"), ("logits", "exists")  # the second output of some networks only
TOLERANCE = 1e-4  # largest difference from the checkpoint, relative to the logits' largest absolute value
BATCHES = (1, 3)  # that are compared


def require(*packages: str):
    """Raises UserError where one of the extra's packages is missing."""
    for name in packages:
        try:
            importlib.import_module(name)
        except ImportError as exc:
            raise UserError(f"ONNX files need the package {name}, which cannot be imported ({exc}); "
                            'pip install "mindspore_coupalign[onnx]"') from exc


def runner(path: Path):
    """``run(image, ids, word_mask)`` -> the output, by a thread for each core that this process may use."""
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    options.log_severity_level = 3  # errors: its warnings are about its own optimisations
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]  # logits, and has_target where there is the head

    def run(image: np.ndarray, ids: np.ndarray, word_mask: np.ndarray) -> NetworkOutput:
        return NetworkOutput(*session.run(names, dict(zip(INPUTS, (image, ids, word_mask), strict=True))))

    return run


def load_onnx(path: str | Path) -> tuple:
    """``run`` and the sidecar's facts.
    Raises UserError: the file or its sidecar is missing, damaged, or they do not belong together; no onnxruntime."""
    path = Path(path)
    require("onnxruntime")
    facts = sidecar.read(path, "onnx")
    try:
        return runner(path), facts
    except Exception as exc:  # onnxruntime's own have no common base
        import onnxruntime
        raise UserError(f"{path}: onnxruntime {onnxruntime.__version__} cannot load it "
                        f"({one_line(exc)}); "
                        "export the checkpoint again") from exc
