"""The twin's side of the comparison, in float64 unless told otherwise: a difference is then the project's rounding."""

import numpy as np
import torch

from torch_twin.losses import losses
from torch_twin.names import fill, gradients
from torch_twin.network import Twin


def run(config: dict, vocabulary: int, weights: dict, batch: tuple, dtype=torch.float64, backward=True) -> tuple:
    """(intermediates, losses, gradients) as NumPy arrays; gradients by the project's names."""
    twin = Twin(config, vocabulary).to(dtype).eval()
    fill(twin, weights, config["model"])
    image, ids, word_mask, mask = batch
    mask = torch.from_numpy(mask).to(dtype)
    with torch.set_grad_enabled(backward):
        found = twin(torch.from_numpy(image).to(dtype), torch.from_numpy(ids).long(), torch.from_numpy(word_mask))
        values = losses(found, mask, config["loss"])
    arrays = {name: np.asarray(value.detach()) for name, value in found.items()}
    if backward:
        values["loss"].backward()
        shapes = {name: array.shape for name, array in weights.items()}
        return arrays, {k: float(v.detach()) for k, v in values.items()}, gradients(twin, shapes, config["model"])
    return arrays, {k: float(v) for k, v in values.items()}, {}
