"""CoupAlign (NeurIPS 2022) on MindSpore: predicts the mask of the object that a sentence refers to in an image."""

import importlib
import os
import sys

if sys.version_info < (3, 10):  # noqa: UP036 - the rest of the package does not even parse there
    sys.exit("error: mindspore_coupalign needs Python 3.10, 3.11 or 3.12, as MindSpore 2.10 does; this is "
             + sys.version.split()[0] + " (" + sys.executable + ")")

from mindspore_coupalign import cuda

__version__ = "0.3.0"

# With AVX-512, oneDNN 3.10, which MindSpore's CPU back end calls, runs plain-layout convolutions by its reference code,
# 70 times slower than by its AVX2 code (docs/notes/mindspore.md). It reads this variable at its first kernel.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")
# MindSpore's own warnings (about 30 lines per run) hide ours; GLOG_v=2 shows them.
os.environ.setdefault("GLOG_v", "3")
# CUDA 11's libraries from pip have to be loaded before MindSpore is imported.
cuda.activate()

_INFERENCE = "mindspore_coupalign.inference."
_PUBLIC = {"load": _INFERENCE + "loading", "Model": _INFERENCE + "model", "Prediction": _INFERENCE + "predictions",
           "Predictor": _INFERENCE + "model", "UserError": "mindspore_coupalign.errors"}


def __getattr__(name: str):
    """Lazy imports of the public names: importing MindSpore takes seconds."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return [*globals(), *_PUBLIC]
