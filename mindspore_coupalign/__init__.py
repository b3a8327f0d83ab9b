"""CoupAlign (NeurIPS 2022) on MindSpore: an image and a sentence in, the mask of the object it names out."""

import importlib
import os
import sys

if sys.version_info < (3, 10):  # noqa: UP036 - the rest of the package does not even parse there
    sys.exit("error: mindspore_coupalign needs Python 3.10, 3.11 or 3.12, as MindSpore 2.10 does; this is "
             + sys.version.split()[0] + " (" + sys.executable + ")")

from mindspore_coupalign import cuda

__version__ = "0.3.0"

# oneDNN 3.10, which MindSpore's CPU back end calls, answers plain-layout convolutions with its reference code when it
# may use AVX-512: 70 times slower than its AVX2 code (docs/notes/mindspore.md). It reads this at its first kernel.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")
# MindSpore's own warnings (about 30 lines a run) hide what a user has to read; GLOG_v=2 brings them back.
os.environ.setdefault("GLOG_v", "3")
# CUDA 11's libraries from pip have to be there before MindSpore is imported.
cuda.activate()

_INFERENCE = "mindspore_coupalign.inference."
_PUBLIC = {"load": _INFERENCE + "loading", "Model": _INFERENCE + "model", "Prediction": _INFERENCE + "predictions",
           "Predictor": _INFERENCE + "model", "UserError": "mindspore_coupalign.errors"}


def __getattr__(name: str):
    """What programs use, imported when it is asked for: MindSpore takes seconds."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return [*globals(), *_PUBLIC]
