"""Strip machine-specific paths from a configuration before a checkpoint or an exported graph is shared.

``best.safetensors`` keeps relative paths and names of the hub; absolute paths are removed, and ``evaluate`` and
``show`` take them from config.yaml in the same folder, or from the command line. A MINDIR's sidecar keeps no path.
``last.safetensors`` keeps all: training resumes from it.
"""

import os
from dataclasses import replace
from pathlib import Path

from mindspore_coupalign.config.files import config_to_dict, load_config
from mindspore_coupalign.config.sections import Config
from mindspore_coupalign.errors import UserError

PATHS = {"data": ("root", "images", "tokenizer", "cache"), "model": ("backbone_weights", "text_weights")}
PATHS_OF_SET = ("root", "images")  # of each entry of data.sets


def without_absolute_paths(config: Config) -> Config:
    """A copy whose absolute paths and data.cache are empty. Where data.images is emptied, data.root is, too: together
    they name one place."""
    changed = {}
    for section, names in PATHS.items():
        values = getattr(config, section)
        absolute = [name for name in names if _is_absolute(getattr(values, name))]
        absolute += ["root"] if "images" in absolute else []
        changed[section] = replace(values, **dict.fromkeys(absolute, ""))
    sets = tuple(_without(entry, PATHS_OF_SET) for entry in config.data.sets)
    changed["data"] = replace(changed["data"], sets=sets, cache="")
    return replace(config, **changed)


def without_paths(config: Config) -> dict:
    """A configuration as plain containers, without the fields that name files and folders."""
    values = config_to_dict(config)
    for section, names in PATHS.items():
        values[section] = {key: value for key, value in values[section].items() if key not in names}
    values["data"]["sets"] = [{key: value for key, value in entry.items() if key not in PATHS_OF_SET}
                              for entry in values["data"]["sets"]]
    return values


def with_data_paths(config: Config, checkpoint: Path) -> Config:
    """A checkpoint's configuration; where it names no data folder, with that of config.yaml in the checkpoint's folder,
    if both are of the same data set."""
    beside = checkpoint.parent / "config.yaml"
    if config.data.root or not beside.is_file():
        return config
    try:
        own = load_config(beside).data
    except UserError:  # another program's file of that name
        return config
    if (own.dataset, own.split_by) != (config.data.dataset, config.data.split_by):
        return config
    return replace(config, data=replace(config.data, root=own.root, images=own.images))


def check_data_root(config: Config, source: str):
    """Raises UserError where nothing names the data folder."""
    if not config.data.root:
        raise UserError(f"{source}: names no data folder (absolute paths of the machine that trained are "
                        "removed); give data.root=FOLDER, and data.images=FOLDER where the images lie elsewhere")


def _without(section, names):
    """The section with its absolute paths empty."""
    return replace(section, **dict.fromkeys([name for name in names if _is_absolute(getattr(section, name))], ""))


def _is_absolute(value: str) -> bool:
    return os.path.isabs(os.path.expanduser(value)) or value[1:3] in (":/", ":\\")
