"""The twin's side of the comparison, in float64 unless told otherwise: a difference is then the project's rounding."""

import numpy as np
import torch

from torch_twin.layers import Rectifier
from torch_twin.losses import losses
from torch_twin.names import fill, gradients, rectifier
from torch_twin.network import Twin


def run(config: dict, vocabulary: int, weights: dict, batch: tuple, dtype=torch.float64, sides: dict | None = None):
    """(intermediates, losses, gradients) as NumPy arrays; gradients by the project's names.

    Args:
        batch: image, ids, word_mask, mask.
        sides: of each ReLU's input, by the project's name for the cell before it (see ``layers.Rectifier``).
    """
    twin = Twin(config, vocabulary).to(dtype).eval()
    fill(twin, weights, config["model"])
    take_sides(twin, sides or {}, config["model"])
    image, ids, word_mask, mask = map(torch.from_numpy, batch)
    found = twin(image.to(dtype), ids.long(), word_mask)
    values = losses(found, mask.to(dtype), config["loss"])
    values["loss"].backward()
    shapes = {name: array.shape for name, array in weights.items()}
    return ({name: value.detach().numpy() for name, value in found.items()},
            {name: float(value.detach()) for name, value in values.items()}, gradients(twin, shapes, config["model"]))


def take_sides(twin, sides: dict, model: dict):
    """Every Rectifier of the twin gets its side, or none of them."""
    modules = dict(twin.named_modules())
    given = {rectifier(name, model): (name, side) for name, side in sides.items()}
    assert not given or given.keys() == {name for name, module in modules.items() if isinstance(module, Rectifier)}
    for theirs, (name, side) in given.items():
        channels_first = name.endswith((".pixels", ".out")) and ".fusion." in name  # LAVT's 1×1 convolutions
        modules[theirs].side = torch.from_numpy(np.swapaxes(side, 1, 2).copy() if channels_first else side)
