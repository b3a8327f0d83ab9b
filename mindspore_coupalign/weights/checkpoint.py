"""Checkpoint files: one safetensors file with named arrays and, in its metadata, the configuration and tokenizer.

Array names: ``model.<parameter>`` always; ``ema.<parameter>``, ``adam_m.<parameter>``, ``adam_v.<parameter>`` in a
training state. Metadata: ``format``, ``config`` (JSON), ``tokenizer`` (the whole tokenizer as JSON), ``progress``
(JSON: step, best score, …) and ``crc32`` of all the others and of the arrays. Reading it executes nothing.
"""

import contextlib
import json
import os
import re
import uuid
import zlib
from dataclasses import dataclass
from pathlib import Path

import mindspore as ms
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mindspore_coupalign.config import Config, config_from_dict, config_to_dict
from mindspore_coupalign.errors import UserError, one_line
from mindspore_coupalign.interrupts import half_made

FORMAT = "coupalign-2"
_WPA = {"norm_v": "pixel_norm", "norm_l": "word_norm", "w_v": "pixel_query", "w_l": "word_key", "w_lv": "word_value",
        "w_vl": "pixel_value", "w_ov": "pixel_out", "w_ol": "word_out", "gate_v.w1": "pixel_gate.hidden",
        "gate_v.w2": "pixel_gate.out", "gate_l.w1": "word_gate.hidden", "gate_l.w2": "word_gate.out"}
_LAVT = {"w_q": "pixel_query", "w_w": "gathered", "w_k": "word_key", "w_v": "word_value", "w_m": "pixels", "w_o": "out"}
RENAMED = (  # parameters' names in earlier versions, as (pattern at the beginning, name of today)
    (r"picked(?=\.|$)", "proposal_head"),
    (r"encoder\.vision(?=\.|$)", "encoder.backbone"),
    *((rf"encoder\.wpa\.(\d)\.{re.escape(old)}(?=\.|$)", rf"encoder.fusion.\1.{new}") for old, new in _WPA.items()),
    (r"encoder\.wpa(?=\.|$)", "encoder.fusion"),
    *((rf"encoder\.attend\.(\d)\.{old}(?=\.|$)", rf"encoder.fusion.\1.{new}") for old, new in _LAVT.items()),
    (r"encoder\.attend(?=\.|$)", "encoder.fusion"),
    (r"encoder\.gates\.(\d)\.w1(?=\.|$)", r"encoder.fusion.\1.gate.hidden"),
    (r"encoder\.gates\.(\d)\.w2(?=\.|$)", r"encoder.fusion.\1.gate.out"),
    (r"encoder\.gates\.(\d)(?=\.|$)", r"encoder.fusion.\1.gate"),
    (r"decoder(?=\.|$)", "pixel_decoder"),
    (r"generator(?=\.|$)", "mask_generator"),
    (r"alignment\.w_q(?=\.|$)", "alignment.mask_key"),
    (r"alignment\.w_g(?=\.|$)", "alignment.sentence_query"),
    (r"head\.(weight|bias)$", r"head.conv.\1"),
    (r"guided(?=\.|$)", "head.guided"),
    (r"existence_head(?=\.|$)", "target_head"),
)


@dataclass
class Checkpoint:
    path: Path
    arrays: dict  # name -> np.ndarray
    config: Config
    tokenizer: str
    progress: dict

    def section(self, prefix: str) -> dict:
        """The arrays below ``prefix.``, without the prefix, by the names of today."""
        return {current_name(name.removeprefix(f"{prefix}.")): array for name, array in self.arrays.items()
                if name.startswith(f"{prefix}.")}


def current_name(name: str) -> str:
    """A parameter's name of any version, or its beginning -> the name of today."""
    for pattern, new in RENAMED:
        if re.match(pattern, name):
            return re.sub(f"^{pattern}", new, name)
    return name


def save_checkpoint(path: str | Path, arrays: dict, config: Config, tokenizer: str, progress: dict, before=None):
    """Write atomically: a unique temporary file, synced, then renamed over ``path``; a kill leaves the old file whole.

    Args:
        before: called when the new file is complete and synced, just before it takes its name.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    arrays = {name: np.ascontiguousarray(value) for name, value in sorted(arrays.items())}
    texts = {"format": FORMAT, "config": json.dumps(config_to_dict(config)), "tokenizer": tokenizer,
             "progress": json.dumps(progress)}
    write_arrays(path, arrays, texts | {"crc32": str(_checksum(arrays, texts))}, before)


def write_arrays(path: str | Path, arrays: dict, metadata: dict, before=None):
    """Write a safetensors file atomically, as ``save_checkpoint`` says.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        half_made.add(temporary)
        temporary.touch()
        mode = temporary.stat().st_mode  # as the user's umask wants it: safetensors lets nobody else read its files
        save_file(arrays, temporary, metadata)
        temporary.chmod(mode)
        _sync(temporary)
        if before is not None:
            before()
        os.replace(temporary, path)
        _sync(path.parent)
    except (OSError, SafetensorError) as exc:
        raise UserError(f"{path}: cannot be written ({exc}); free some space or choose another --output") from exc
    finally:
        with contextlib.suppress(OSError):  # a disk that has become read-only
            temporary.unlink(missing_ok=True)
        half_made.discard(temporary)


def check_arrays(shapes: dict, arrays: dict, source: str):
    """Names and shapes must match exactly, in both directions.

    Raises:
        UserError: a name is missing or left over, or a shape differs, with the first of them.
    """
    hint = "the checkpoint belongs to another configuration"
    missing, extra = sorted(shapes.keys() - arrays.keys()), sorted(arrays.keys() - shapes.keys())
    if missing or extra:
        what = f"lacks {missing[0]}" if missing else f"holds {extra[0]}, which the model has not"
        raise UserError(f"{source}: {what} ({len(missing)} missing, {len(extra)} unexpected); {hint}")
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise UserError(f"{source}: {name} has shape {arrays[name].shape}, the model expects {shape}; {hint}")


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read and verify a checkpoint.

    Raises:
        UserError: missing, a folder, truncated, changed since it was written, or not one of this project's.
    """
    path = Path(path)
    if path.is_dir():
        held = next((path / name for name in ("best.safetensors", "last.safetensors") if (path / name).is_file()), None)
        raise UserError(f"{path}: a folder, not a checkpoint; " + (
            f"give {held}" if held else "it holds no best.safetensors; training writes that into its --output"))
    if path.suffix in (".mindir", ".onnx") and path.exists():
        raise UserError(f"{path}: an exported graph, not a checkpoint; give it as --{path.suffix[1:]}, where that is "
                        "taken, or as --model")
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise UserError(f"{path}: a safetensors file, but not a checkpoint of this project (no format "
                                f"'{FORMAT}' in its metadata); give best.safetensors or last.safetensors of a run")
            arrays = {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError as exc:
        raise UserError(f"{path}: no such checkpoint; training writes best.safetensors and last.safetensors") from exc
    except (SafetensorError, OSError) as exc:
        raise UserError(f"{path}: not a checkpoint, or truncated ({one_line(exc, 200)}); "
                        "give a .safetensors file that training wrote") from exc
    crc32 = metadata.pop("crc32", "")
    if str(_checksum(arrays, metadata)) != crc32:
        raise UserError(f"{path}: its checksum does not match, the file was damaged; use another checkpoint")
    config = config_from_dict(json.loads(metadata["config"]), f"{path} (its configuration)")
    return Checkpoint(path, arrays, config, metadata["tokenizer"], json.loads(metadata["progress"]))


def named_arrays(parameters, prefix: str) -> dict:
    """``prefix.<name>`` -> array."""
    return {f"{prefix}.{p.name}": p.asnumpy() for p in parameters}


def load_parameters(parameters, arrays: dict, source: str):
    """Copy arrays into parameters by name; names and shapes must match exactly, in both directions.

    Raises:
        UserError: a name is missing or left over, or a shape differs, with the first of them.
    """
    parameters = {p.name: p for p in parameters}
    check_arrays({name: tuple(p.shape) for name, p in parameters.items()}, arrays, source)
    for name, parameter in parameters.items():
        parameter.set_data(ms.Tensor(arrays[name], parameter.dtype))


def _checksum(arrays: dict, texts: dict) -> int:
    value = 0
    for name in sorted(texts):
        value = zlib.crc32(f"{name} {texts[name]}".encode(), value)
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        value = zlib.crc32(f"{name} {array.dtype} {array.shape}".encode(), value)
        value = zlib.crc32(array.view(np.uint8).reshape(-1).data, value)
    return value


def _sync(path: Path):
    """Force a file's or folder's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
