"""Putting foreign weights into a backbone or text encoder, strictly: every parameter, every shape, or an error.

Position-bias tables of another window are resampled. Only the layer norms of a Swin's outputs may stay as they are:
classification networks have none.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import mindspore as ms
import numpy as np

from mindspore_coupalign.config import TextConfig
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.models.parts import BackboneSettings
from mindspore_coupalign.weights.files import (
    FORMAT,
    config_beside,
    kind_of,
    read_arrays,
    read_darknet_file,
    weight_file,
)
from mindspore_coupalign.weights.names import BERT, rename


@dataclass
class Loaded:
    """What came of a file: ``arrays`` by our names; the lists hold names, those of the last two are the file's."""

    path: Path
    title: str
    arrays: dict
    resampled: list = field(default_factory=list)
    fresh: list = field(default_factory=list)
    skipped: list = field(default_factory=list)

    def table(self) -> str:
        """Loaded, resampled, left and skipped, in numbers and names."""
        values = sum(array.size for array in self.arrays.values())
        rows = [f"{self.path}: {self.title}",
                f"  loaded      {len(self.arrays):>5} arrays, {values / 1e6:.2f} M values; none missing, none "
                "unexpected"]
        for label, names in (("resampled", self.resampled), ("not in file", self.fresh), ("skipped", self.skipped)):
            shown = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
            rows.append(f"  {label:<12}{len(names):>5}" + (f" arrays: {shown}" if names else ""))
        return "\n".join(rows)


def load_backbone_weights(backbone, settings: BackboneSettings, path: str | Path) -> Loaded:
    """Fill a backbone from a foreign file or one of convert-weights.

    Raises:
        UserError: unreadable file, other architecture, a parameter that stays unloaded, a shape that differs, a
            non-finite value, or a file whose own config.json contradicts the configuration.
    """
    file = weight_file(path)
    own_format = hasattr(backbone, "kernels") and (file.suffix == ".weights" or ".conv." in file.name)
    if own_format and kind_of(file) not in ("safetensors", "torch"):
        arrays, behind = read_darknet_file(file, backbone.kernels())
        loaded = Loaded(file, "Darknet-53, darknet's own format", arrays,
                        skipped=[f"{behind} values behind the backbone"] if behind else [])
        _check_settings(file, settings, (("negative_slope", 0.1),))
    else:
        sources = getattr(type(backbone), "published", ())
        loaded = _read(file, settings.name, sources, settings.weights_settings(), settings=settings)
        _check_config(file, settings.published_config())
    return _fill(backbone, loaded, fresh=("outputs.",))


def load_text_weights(text, config: TextConfig, path: str | Path) -> Loaded:
    """Fill a BERT from a Hugging Face folder or file. Raises UserError as ``load_backbone_weights`` does."""
    file = weight_file(path)
    loaded = _read(file, "bert", BERT, text_weights_settings(config), config.groups)
    _check_config(file, {"model_type": "bert", "num_attention_heads": config.heads, "hidden_act": config.activation,
                         "position_embedding_type": "absolute", "layer_norm_eps": 1e-12})
    return _fill(text, loaded)


def text_weights_settings(config: TextConfig) -> dict:
    """Settings that BERT's weights depend on and no array's shape shows; ``convert-weights`` records them."""
    return {"heads": config.heads, "activation": config.activation}


def _read(file: Path, architecture: str, sources: tuple, wanted: dict, groups: tuple = (), settings=None) -> Loaded:
    arrays, metadata = read_arrays(file)
    if metadata.get("format") == FORMAT:
        held, title, source = (metadata.get(key, "unknown") for key in ("architecture", "title", "source"))
        if held != architecture:
            raise UserError(f"{file}: holds {held!r} weights, the configuration expects {architecture}")
        if metadata.get("settings") != json.dumps(wanted):
            raise UserError(f"{file}: was converted for {metadata.get('settings', 'unknown settings')[:80]}, the "
                            f"configuration has {json.dumps(wanted)}; the weights would compute something else")
        return Loaded(file, f"{title}, converted from {source}", arrays)
    if not sources:
        raise UserError(f"{file}: the backbone {architecture} names no published weights; it reads files of "
                        "convert-weights alone")
    renamed = rename(architecture, sources, arrays, str(file), groups)
    title = renamed.source.title
    if renamed.unknown:
        raise UserError(f"{file}: {len(renamed.unknown)} unexpected names in {title}: "
                        f"{_some(renamed.unknown)}; these weights are of another network, or hold more than the "
                        "backbone: write a file of the backbone's arrays alone")
    _check_settings(file, settings, renamed.source.settings)
    return Loaded(file, title, renamed.arrays, skipped=renamed.skipped)


def _check_config(file: Path, expected: dict):
    expected = dict(expected)
    model_type = expected.pop("model_type", None)
    found = config_beside(file)
    if found.get("model_type", model_type) != model_type:  # it belongs to another file of the folder
        return
    for key, value in expected.items():
        if key in found and found[key] != value:
            raise UserError(f"{file.parent / 'config.json'}: {key} is {found[key]!r}, the configuration's network has "
                            f"{value!r}; the weights would compute something else")


def _check_settings(file: Path, settings, needed: tuple):
    for name, value in needed:
        if getattr(settings, name) != value:
            raise UserError(f"{file}: these weights need model.backbone.{name}={value} "
                            f"(found {getattr(settings, name)})")


def _fill(cell, found: Loaded, fresh: tuple = ()) -> Loaded:
    parameters = dict(cell.parameters_and_names())
    missing = sorted(parameters.keys() - found.arrays.keys())
    optional = {name for name in parameters if fresh and name.startswith(fresh)}  # all of them or none
    found.fresh = [name for name in missing if name in optional] if optional.isdisjoint(found.arrays) else []
    missing = [name for name in missing if name not in found.fresh]
    unexpected = sorted(found.arrays.keys() - parameters.keys())
    if missing or unexpected:
        raise UserError(f"{found.path}: {len(missing)} parameters would stay unloaded ({_some(missing)}), "
                        f"{len(unexpected)} of the file's have no place ({_some(unexpected)}); is the configuration's "
                        "network the one of these weights (depths, groups)?")
    for name, array in found.arrays.items():
        wanted = tuple(parameters[name].shape)
        if name.endswith("relative_position_bias_table") and array.shape != wanted:
            array = resample_table(array, wanted)
            found.resampled.append(name)
        if array.shape != wanted:
            raise UserError(f"{found.path}: {name} has shape {array.shape}, the configuration's network expects "
                            f"{wanted}")
        with np.errstate(over="ignore"):  # what is too large for a float32 is reported here
            array = np.ascontiguousarray(array, np.float32)
        if not np.isfinite(array).all():
            raise UserError(f"{found.path}: {name} holds non-finite values; the file is damaged")
        found.arrays[name] = array
    for name, array in found.arrays.items():
        parameters[name].set_data(ms.Tensor(array))
    return found


def resample_table(table: np.ndarray, shape: tuple) -> np.ndarray:
    """A position-bias table ((2m-1)², h) for another window: bicubic, each head by itself, as Swin's authors do.

    A table that cannot be resampled (not square, other heads) is returned as it is.
    """
    if table.ndim != 2 or not table.size:
        return table
    side, wanted = round(table.shape[0] ** 0.5), round(shape[0] ** 0.5)
    if side**2 != table.shape[0] or table.shape[1] != shape[1]:
        return table
    planes = table.astype(np.float32).reshape(side, side, -1)
    resized = [cv2.resize(np.ascontiguousarray(planes[..., h]), (wanted, wanted), interpolation=cv2.INTER_CUBIC)
               for h in range(shape[1])]
    return np.stack(resized, -1).reshape(shape)


def _some(names: list) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "") if names else "none"
