"""Weight files of other projects -> named arrays, whatever their format. Nothing in them is executed."""

import json
import os
from pathlib import Path

from safetensors import SafetensorError, deserialize, safe_open

from mindspore_coupalign.errors import UserError, kind_of_file
from mindspore_coupalign.weights.torch_files import read_torch_file, widen_bfloat16

FORMAT = "coupalign-weights-1"  # in the metadata of a file that convert-weights wrote
_IN_FOLDER = ("model.safetensors", "pytorch_model.bin")
_TYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")
_LONGEST_NAME = 250  # characters


def weight_file(path: str | Path) -> Path:
    """The file itself; of a Hugging Face folder, the one that holds the weights. Raises UserError: there is none."""
    path = Path(os.path.expanduser(path))  # os.path's answers to a name that cannot be are no exceptions
    if os.path.isdir(path):
        found = next((path / name for name in _IN_FOLDER if os.path.isfile(path / name)), None)
        if found is None:
            raise UserError(f"{path}: holds neither {' nor '.join(_IN_FOLDER)}; give the weight file itself")
        return found
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file or folder; pretrained weights have to be downloaded first "
                        "(docs/weights.md says where from)")
    return path


def kind_of(path: Path) -> str:
    """"safetensors", "torch", or what else the file is, by its first bytes. Raises UserError: it cannot be read."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as exc:
        raise UserError(f"{path}: cannot be read ({exc.strerror or exc})") from exc
    if start[8:9] == b"{":
        return "safetensors"
    if start.startswith((b"PK\x03\x04", b"\x80\x02")):
        return "torch"
    return kind_of_file(start) or "of no known format"


def read_arrays(path: Path) -> tuple[dict, dict]:
    """(name -> array, metadata) of a safetensors or PyTorch file, told apart by content.

    Raises:
        UserError: truncated, damaged, hostile, or of neither format.
    """
    kind = kind_of(path)
    if kind == "safetensors":
        arrays, metadata = _read_safetensors(path)
    elif kind == "torch":
        arrays, metadata = read_torch_file(path), {}
    else:
        raise UserError(f"{path}: {kind}; give a .safetensors file or one that torch.save wrote (.pth, .bin), or for "
                        "Darknet-53 a .weights file")
    for name in arrays:  # names are printed, and cut piece by piece
        if len(name) > _LONGEST_NAME or not name.isprintable():
            raise UserError(f"{path}: {name[:40]!r} is no array's name; the file is damaged")
    return arrays, metadata


def _read_safetensors(path: Path) -> tuple[dict, dict]:
    try:
        with safe_open(path, framework="np") as file:
            kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}
            for name, kind in kinds.items():
                if kind not in _TYPES:
                    raise UserError(f"{path}: {name[:40]!r} is of type {kind}; give weights of float32 or float16")
            raw = dict(deserialize(path.read_bytes())) if "BF16" in kinds.values() else {}  # NumPy has none
            arrays = {name: file.get_tensor(name) if kind != "BF16" else
                      widen_bfloat16(raw[name]["data"]).reshape(raw[name]["shape"]) for name, kind in kinds.items()}
            return arrays, file.metadata() or {}
    except (SafetensorError, OSError, ValueError, TypeError) as exc:
        raise UserError(f"{path}: not a complete safetensors file ({str(exc)[:120]!r}); download it again") from exc


def config_beside(path: Path) -> dict:
    """The content of the Hugging Face config.json in the file's folder; empty where there is none.

    Raises:
        UserError: it is no JSON.
    """
    config = path.parent / "config.json"
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as exc:
        raise UserError(f"{config}: cannot be read as JSON ({str(exc)[:80]}); it says what the weights beside it are") \
            from exc
    return values if isinstance(values, dict) else {}
