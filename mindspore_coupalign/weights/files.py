"""Weight files of other projects -> named arrays, whatever their format. Nothing in them is executed."""

import json
import os
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, deserialize, safe_open

from mindspore_coupalign.errors import UserError, kind_of_file
from mindspore_coupalign.weights.torch_files import read_torch_file, widen_bfloat16

FORMAT = "coupalign-weights-1"  # in the metadata of a file that convert-weights wrote
_IN_FOLDER = ("model.safetensors", "pytorch_model.bin")
_TYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")
_LONGEST_NAME = 250  # characters
_BATCH_NORM_EPS = 1e-5  # of ours


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


def read_darknet_file(path: str | Path, kernels: dict) -> tuple[dict, int]:
    """(arrays by our names, count of values behind them) of ``darknet53.weights``, ``darknet53.conv.74`` or
    ``yolov3.weights``.

    Format (Redmon, https://pjreddie.com/darknet): int32 major, minor, revision; images seen, int64 from version 0.2 on,
    else int32; then little-endian float32 without names: for each convolution with batch norm, in order of computation,
    biases, scales, means, variances (each Cout) and the kernel (Cout, Cin, k, k). All three files begin with
    Darknet-53's 52 convolutions.

    Darknet divides by sqrt(variance) + 1e-6, our batch norm by sqrt(variance + 1e-5): the scales take up the ratio, so
    that both are equal.

    Args:
        kernels: name of each ConvNorm in order of computation -> shape of its kernel.

    Raises:
        UserError: missing or truncated file, or one of another network.
    """
    path = Path(path)
    wanted = sum(4 * shape[0] + int(np.prod(shape)) for shape in kernels.values())
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = file.read(20)
            major, minor = np.frombuffer(header[:8], "<i4").tolist() if len(header) == 20 else (-1, 0)
            start = 20 if major * 10 + minor >= 2 else 16
            file.seek(start)
            values = np.frombuffer(file.read(4 * wanted), "<f4" if (size - start) % 4 == 0 else "u1")
    except OSError as exc:
        raise UserError(f"{path}: cannot be read ({exc.strerror or exc})") from exc
    if not 0 <= major <= 1 or len(values) < wanted or values.dtype != np.float32:
        raise UserError(f"{path}: not a complete darknet file for this backbone ({size} bytes, its "
                        f"{len(kernels)} convolutions take {4 * wanted + 20}); download it again, or check "
                        "model.backbone.depths")
    arrays: dict[str, np.ndarray] = {}
    place = 0
    for name, shape in kernels.items():
        parts = []
        for part in ("beta", "gamma", "moving_mean", "moving_variance"):
            parts.append((f"{name}.norm.{part}", values[place:place + shape[0]]))
            place += shape[0]
        count = int(np.prod(shape))
        parts.append((f"{name}.conv.weight", values[place:place + count].reshape(shape)))
        place += count
        arrays |= parts
        variance = arrays[f"{name}.norm.moving_variance"].astype(np.float64)
        if not all(np.isfinite(array).all() for _, array in parts) or variance.min() < 0:
            raise UserError(f"{path}: the values at {name} are no batch norm's; the file is damaged or of another "
                            "network than Darknet-53")
        scale = np.sqrt(variance + _BATCH_NORM_EPS) / (np.sqrt(variance) + 1e-6)
        arrays[f"{name}.norm.gamma"] = (arrays[f"{name}.norm.gamma"] * scale).astype(np.float32)
    return arrays, (size - start) // 4 - wanted
