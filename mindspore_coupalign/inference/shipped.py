"""Models that come with the package, by name."""

import os
from pathlib import Path

from mindspore_coupalign.errors import UserError

FOLDER = Path(__file__).resolve().parents[1] / "shipped"


def shipped_models() -> dict[str, Path]:
    """name -> checkpoint file."""
    return {file.stem: file for file in sorted(FOLDER.glob("*.safetensors"))}


def find_model(name: str | os.PathLike) -> Path:
    """The file that a name or path means: a shipped model by its bare name, else the path itself.

    Raises:
        UserError: a bare name (no folder, no ending) of neither.
    """
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
