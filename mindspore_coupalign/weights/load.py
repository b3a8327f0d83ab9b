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

from mindspore_coupalign.config import ImageConfig, TextConfig
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.models.cnn import Cnn, ConvNorm
from mindspore_coupalign.weights.darknet_files import read_darknet_file
from mindspore_coupalign.weights.files import FORMAT, config_beside, kind_of, read_arrays, weight_file
from mindspore_coupalign.weights.names import rename


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


def load_image_weights(vision, image: ImageConfig, path: str | Path) -> Loaded:
    """Fill a backbone from a foreign file or one of convert-weights.

    Raises:
        UserError: unreadable file, other architecture, a parameter that stays unloaded, a shape that differs, a
            non-finite value, or a file whose own config.json contradicts the configuration.
    """
    file = weight_file(path)
    named_so = image.name == "darknet" and (file.suffix == ".weights" or ".conv." in file.name)
    if named_so and kind_of(file) not in ("safetensors", "torch"):
        arrays, behind = read_darknet_file(file, _kernels(vision))
        found = Loaded(file, "Darknet-53, darknet's own format", arrays,
                       skipped=[f"{behind} values behind the backbone"] if behind else [])
        _check_slope(file, image, 0.1)
    else:
        found = _read(file, image.name, unseen(image.name, image))
        if image.name == "darknet" and "timm" in found.title:
            _check_slope(file, image, 0.01)
        if image.name == "resnet":
            _check_config(file, "resnet", {"downsample_in_bottleneck": False, "downsample_in_first_stage": False,
                                           "layer_type": "bottleneck", "hidden_act": "relu"})
        if image.name == "swin":
            _check_config(file, "swin", {"hidden_act": image.activation, "qkv_bias": True, "layer_norm_eps": 1e-5,
                                         "use_absolute_embeddings": False})
    return _fill(vision, found, fresh=("outputs.",))


def load_text_weights(text, config: TextConfig, path: str | Path) -> Loaded:
    """Fill a BERT from a Hugging Face folder or file. Raises UserError as ``load_image_weights`` does."""
    file = weight_file(path)
    found = _read(file, "bert", unseen("bert", config), config.groups)
    _check_config(file, "bert", {"num_attention_heads": config.heads, "hidden_act": config.activation,
                                 "position_embedding_type": "absolute", "layer_norm_eps": 1e-12})
    return _fill(text, found)


def unseen(architecture: str, config: ImageConfig | TextConfig) -> dict:
    """The settings that the weights depend on and that no array's shape shows; convert-weights writes them down."""
    if architecture == "darknet":
        return {"slope": config.negative_slope}  # under the name that converted files have had from the beginning
    names = {"swin": ("activation",), "resnet": (), "bert": ("heads", "activation")}
    return {name: getattr(config, name) for name in names[architecture]}


def _read(file: Path, architecture: str, wanted: dict, groups: tuple = ()) -> Loaded:
    arrays, metadata = read_arrays(file)
    if metadata.get("format") == FORMAT:
        held, title, source = (metadata.get(key, "unknown") for key in ("architecture", "title", "source"))
        if held != architecture:
            raise UserError(f"{file}: holds {held!r} weights, the configuration expects {architecture}")
        if metadata.get("settings") != json.dumps(wanted):
            raise UserError(f"{file}: was converted for {metadata.get('settings', 'unknown settings')[:80]}, the "
                            f"configuration has {json.dumps(wanted)}; the weights would compute something else")
        return Loaded(file, f"{title}, converted from {source}", arrays)
    renamed = rename(architecture, arrays, str(file), groups)
    if renamed.unknown:
        raise UserError(f"{file}: {len(renamed.unknown)} unexpected names in {renamed.title}: "
                        f"{_some(renamed.unknown)}; these weights are of another network, or hold more than the "
                        "backbone: write a file of the backbone's arrays alone")
    return Loaded(file, renamed.title, renamed.arrays, skipped=renamed.skipped)


def _check_config(file: Path, model_type: str, expected: dict):
    found = config_beside(file)
    if found.get("model_type", model_type) != model_type:  # it belongs to another file of the folder
        return
    for key, value in expected.items():
        if key in found and found[key] != value:
            raise UserError(f"{file.parent / 'config.json'}: {key} is {found[key]!r}, the configuration's network has "
                            f"{value!r}; the weights would compute something else")


def _check_slope(file: Path, image: ImageConfig, slope: float):
    if image.negative_slope != slope:
        raise UserError(f"{file}: its leaky ReLUs have the slope {slope}; set model.image.negative_slope={slope} "
                        f"(found {image.negative_slope})")


def _kernels(vision: Cnn) -> dict:
    """Name -> kernel shape of each ConvNorm in order of computation."""
    order = ["embed", "stages.0"] + [name for i in range(3) for name in (f"downsamples.{i}", f"stages.{i + 1}")]
    units = {name: cell.conv.weight.shape for name, cell in vision.cells_and_names() if isinstance(cell, ConvNorm)}
    return {name: shape for part in order for name, shape in units.items() if name.startswith(part + ".")}


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
