"""What a file that is passed on says of the machine that trained: nothing.

``best.safetensors`` keeps paths that are relative and names of the hub, absolute ones are left out; ``evaluate`` and
``show`` take them from config.yaml beside it, where training wrote them, or from the command line. A MINDIR's sidecar
keeps none of them. ``last.safetensors`` keeps all: it is there to go on with.
"""

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from mindspore_coupalign.config import Config, config_to_dict, load_config
from mindspore_coupalign.errors import UserError

if TYPE_CHECKING:  # its import takes MindSpore's seconds
    from mindspore_coupalign.weights.checkpoint import Checkpoint

PATHS = {"data": ("root", "images", "tokenizer", "cache"), "model": ("image_weights", "text_weights")}
PATHS_OF_SET = ("root", "images")  # of each entry of data.sets


def without_absolute_paths(config: Config) -> Config:
    """A copy whose absolute paths are empty, and data.cache; with data.images data.root is, so that nothing is looked
    for elsewhere."""
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


def with_data_paths(checkpoint: "Checkpoint") -> Config:
    """The checkpoint's configuration; where it names no data folder, that of config.yaml beside it, if
    that is of the same data set."""
    config, beside = checkpoint.config, checkpoint.path.parent / "config.yaml"
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
    """Raises UserError where nothing has named the data folder."""
    if not config.data.root:
        raise UserError(f"{source}: names no data folder (absolute paths of the machine that trained are "
                        "left out); give data.root=FOLDER, and data.images=FOLDER where the images lie elsewhere")


def _without(section, names):
    """The section with its absolute paths empty."""
    return replace(section, **dict.fromkeys([name for name in names if _is_absolute(getattr(section, name))], ""))


def _is_absolute(value: str) -> bool:
    return os.path.isabs(os.path.expanduser(value)) or value[1:3] in (":/", ":\\")
