"""``coupalign.load``: a trained network from any of its files, ready to predict.

Reading this module imports neither MindSpore nor onnxruntime: each is imported when a file needs it.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from mindspore_coupalign.config import Config, with_overrides
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.inference.model import BATCH_SIZE, Model
from mindspore_coupalign.inference.network import Network

SHIPPED = Path(__file__).resolve().parents[1] / "shipped"
CHECKPOINT, MINDIR, ONNX = "checkpoint", "mindir", "onnx"
# of the section eval, what a graph's user may change, and its name in the sidecar
_OF_GRAPHS = {"threshold": "threshold", "target_threshold": "exists_threshold", "min_pixels": "min_pixels"}


def load(source: str | os.PathLike, device: str = "auto", amp: str | None = None, details: bool = False) -> Model:
    """A model that predicts masks: ``load("best.safetensors").predict("photo.jpg", "man in blue shirt")``.

    Device and graph mode are set up here. The network is compiled at the first prediction: seconds for a small one, up
    to two minutes for the full recipe.

    Args:
        source: a checkpoint (.safetensors), an exported graph (.mindir or .onnx, its .json beside it), or the name of a
            shipped model, such as "refshapes".
        device: "auto" (an Ascend NPU, else a GPU, else the CPU), "CPU", "GPU" or "Ascend". ONNX files run on the CPU.
        amp: level of mixed precision of a checkpoint, "O0" (float32) to "O3"; None: what training uses on this device.
            A graph computes in the precision that it was exported in.
        details: predictions say what the network looked at (``Prediction.details``); checkpoints only.

    Raises:
        UserError: no such file or name, a damaged file, a graph without its .json, an unavailable device, or
            ``amp`` or ``details`` with a graph.
    """
    path = find_model(source)
    kind = kind_of(path)
    check_of_checkpoint(path, kind, {"amp": amp, "details": details})
    return open_model(path, kind, device, amp, details, option="device=")


def kind_of(path: Path) -> str:
    """The kind of a file, by its ending."""
    return {".mindir": MINDIR, ".onnx": ONNX}.get(path.suffix.lower(), CHECKPOINT)


def check_of_checkpoint(path: Path, kind: str, options: dict):
    """Raises UserError where a graph is given a value of an option that only checkpoints have."""
    for name, value in options.items():
        if value and kind != CHECKPOINT:
            raise UserError(f"{path}: {name} needs a checkpoint; an exported graph computes the mask alone, in the "
                            "precision that `export --amp` gave it")


def open_model(path: Path, kind: str, device: str = "auto", amp: str | None = None, details: bool = False,
               overrides: Sequence[str] = (), option: str = "--device-target ") -> Model:
    """``load`` of a file of known kind.

    Args:
        overrides: key=value for a checkpoint's configuration; of a graph, eval's thresholds alone can be changed.
        option: how the user chose the device, for errors.
    """
    if kind == ONNX:
        if device not in ("auto", "CPU"):
            raise UserError(f"{path}: {option}{device}: ONNX files run on the CPU here; leave the device out, or "
                            "export a .mindir")
        network, facts = open_graph(path, kind)
        return Model.from_graph(network, _overridden(facts, overrides, path), path)
    from mindspore_coupalign import runtime
    from mindspore_coupalign.inference.cells import LOCK
    from mindspore_coupalign.weights.checkpoint import load_checkpoint

    with LOCK:
        if kind == MINDIR:
            target = runtime.choose_device(device, option)
            network, facts = open_graph(path, kind)
            model = Model.from_graph(network, _overridden(facts, overrides, path), path, LOCK)
        else:
            checkpoint = load_checkpoint(path)
            config = overridden(checkpoint.config, overrides, f"{path}'s configuration with the overrides")
            target = runtime.choose_device(device, option)
            model = Model.from_checkpoint(checkpoint, details, amp, config)
    if target != "CPU":
        model.batch_size = BATCH_SIZE
    return model


def open_graph(path: Path, kind: str) -> tuple[Network, dict]:
    """An exported graph, and its sidecar's facts. For a MINDIR the device has to be set."""
    if kind == ONNX:
        from mindspore_coupalign.inference.onnx.session import load_onnx
        return load_onnx(path)
    from mindspore_coupalign.inference.mindir import load_mindir
    return load_mindir(path)


def overridden(config: Config, overrides: Sequence[str], source: str) -> Config:
    """A configuration with overrides of what prediction reads.
    Raises UserError: a bad override, or one of the precision, which --amp chooses."""
    check_overrides(overrides)
    return with_overrides(config, overrides, source) if overrides else config


def check_overrides(overrides: Sequence[str]):
    """Raises UserError at one that only training follows."""
    for override in overrides:
        if override.startswith(("train.amp=", "train.amp_dtype=")):
            raise UserError(f"{override}: a checkpoint is computed in the precision of its training; --amp chooses "
                            "another")


def _overridden(facts: dict, overrides: Sequence[str], path: Path) -> dict:
    for override in overrides:
        name = override.partition("=")[0].removeprefix("eval.").replace("exists_threshold", "target_threshold")
        if not override.startswith("eval.") or name not in _OF_GRAPHS:
            raise UserError(f"{override}: an exported graph ({path}) is as it was exported, only "
                            f"{', '.join(f'eval.{name}' for name in _OF_GRAPHS)} can be changed; give the checkpoint, "
                            "or export it anew")
        facts = facts | {_OF_GRAPHS[name]: getattr(with_overrides(Config(), [override], "command line").eval, name)}
    return facts


def shipped_models() -> dict[str, Path]:
    """name -> checkpoint file."""
    return {file.stem: file for file in sorted(SHIPPED.glob("*.safetensors"))}


def find_model(name: str | os.PathLike) -> Path:
    """The file of a name or path: a shipped model by its bare name, else the path itself.
    Raises UserError: a bare name (no folder, no ending) of neither."""
    if not isinstance(name, str | os.PathLike) or not os.fspath(name):
        raise UserError(f"a model's file or name is expected, found {name!r}")
    path, shipped = Path(name), shipped_models()
    if str(name) in shipped:
        return shipped[str(name)]
    if not path.suffix and len(path.parts) == 1 and not path.exists():
        known = ", ".join(shipped) or "none"
        raise UserError(f"{name}: no such file, and no model of that name comes with the package (shipped: {known}); "
                        "give a .safetensors, .mindir or .onnx file, or one of these names")
    return path
