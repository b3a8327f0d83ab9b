"""``coupalign.load``: a trained network from any of its files, ready to predict.

Reading this module imports neither MindSpore nor onnxruntime: each is imported when a file needs it.
"""

import os
from pathlib import Path

from mindspore_coupalign.errors import UserError
from mindspore_coupalign.inference.model import Model
from mindspore_coupalign.inference.shipped import find_model
from mindspore_coupalign.inference.sidecar import model_of


def load(source: str | os.PathLike, device: str = "auto", amp: str | None = None, details: bool = False) -> Model:
    """A model that predicts masks: ``load("best.safetensors").predict("photo.jpg", "man in blue shirt")``.

    Device and graph mode are set up here. The network is compiled at the first prediction: seconds for a small one, up
    to two minutes for the full recipe.

    Args:
        source: a checkpoint (.safetensors), an exported graph (.mindir or .onnx, its .json beside it), or the name of a
            model that comes with the package, such as "refshapes".
        device: "auto" (an Ascend NPU, else a GPU, else the CPU), "CPU", "GPU" or "Ascend". ONNX runs on the CPU.
        amp: level of mixed precision of a checkpoint, "O0" (float32) to "O3"; None: the one that training has on this
            device. A graph computes in the precision that it was exported in.
        details: predictions say what the network looked at (``Prediction.details``); of a checkpoint only.

    Raises:
        UserError: no such file or name, a damaged file, a graph without its .json, a device that is not there, or
            ``amp`` or ``details`` of a graph.
    """
    path = find_model(os.fspath(source))
    kind = path.suffix.lower()
    if kind in (".mindir", ".onnx"):
        for name, given in (("amp", amp), ("details", details)):
            if given:
                raise UserError(f"{path}: {name} needs a checkpoint; an exported graph computes the mask alone, in the "
                                "precision that `export --amp` gave it")
    if kind == ".onnx":
        return _load_onnx(path, device)
    if kind != ".mindir" and path.is_file() and _looks_like_a_graph(path):
        raise UserError(f"{path}: no checkpoint; the name of an exported graph must end in .mindir or .onnx")
    from mindspore_coupalign import runtime

    if kind == ".mindir":
        from mindspore_coupalign.inference.cells import CellNetwork
        from mindspore_coupalign.inference.mindir import load_mindir

        runtime.choose_device(device, "device=")
        graph, facts = load_mindir(path)
        return model_of(CellNetwork(graph), facts, path)
    from mindspore_coupalign.inference.predictor import model_of_checkpoint
    from mindspore_coupalign.weights.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(path)
    runtime.choose_device(device, "device=")
    return model_of_checkpoint(checkpoint, details, amp)


def _load_onnx(path: Path, device: str) -> Model:
    from mindspore_coupalign.inference.onnx import load_onnx

    if device not in ("auto", "CPU"):
        raise UserError(f"{path}: device {device!r}: ONNX files run on the CPU here; leave the device out, or export "
                        "a .mindir")
    run, facts = load_onnx(path)
    return model_of(run, facts, path)


def _looks_like_a_graph(path: Path) -> bool:
    return path.with_name(path.name + ".json").is_file() and path.suffix.lower() != ".safetensors"
