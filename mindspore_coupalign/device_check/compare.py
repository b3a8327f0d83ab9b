"""Compares the results of two processes (run_case.py). Needs NumPy only.

An error is a tensor's largest difference over its largest value. In half precision single values of a gradient are
unreliable: all gradients, and all changes of weights, are measured as one vector by its norm, and each gradient by its
own norm with a wider bound; a gradient that is missing or has the wrong sign has an error of 1 or more.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

WEIGHTS = "weights.npz"  # initial weights of all processes
# Largest errors, in float32 and in half precision. Two sets of a CPU's float32 kernels differ by up to 1.5e-3 in a
# gradient of the full recipe; a CPU's own half precision stays below half of the latter
BOUNDS = {"forward": (1e-3, 3e-2), "losses": (1e-3, 3e-2), "gradients": (5e-3, 0.2), "weights": (1e-3, 0.2),
          "curve": (1e-2, 5e-2)}
EACH = 0.5  # of a single gradient's norm in half precision
# A gradient below this share of the largest is measured by that share: some gradients are 0 by their formula, as of
# what adds the same to all scores of a softmax, and only rounding is left
NEGLIGIBLE = 1e-5
# Adam moves a weight by the sign of its gradient: only gradients above this share of their tensor's largest count
CLEAR = 0.1
EPS = float(np.finfo(np.float32).eps)


class Row(NamedTuple):
    part: str
    where: str  # the first tensor, loss or step beyond the bound, else the one with the largest error
    error: float  # of that one
    bound: float

    @property
    def good(self) -> bool:
        return bool(self.error <= self.bound)  # NaN is not


def compare(folder: Path, computed: Path, reference: Path, half: bool) -> list[Row]:
    """A row for each part that ``computed`` has, in the order of computation; ``folder`` has the initial weights."""
    rows = []
    for part, bounds in BOUNDS.items():
        if not (computed / f"{part}.npz").exists():
            break
        with np.load(computed / f"{part}.npz") as ours, np.load(reference / f"{part}.npz") as theirs:
            counted = {name: (ours[name].astype(np.float64), theirs[name].astype(np.float64)) for name in theirs}
        if part == "weights":
            counted = _clear(counted, folder / WEIGHTS, reference / "gradients.npz")
        if half and part in ("gradients", "weights"):
            rows.append(Row(part, "all as one vector", _of_all(counted), bounds[half]))
            if part == "gradients":
                rows.append(_row("each", _errors(counted, NEGLIGIBLE, np.linalg.norm), EACH))
        else:
            rows.append(_row(part, _errors(counted, NEGLIGIBLE if part == "gradients" else 0), bounds[half]))
    return rows


def _row(part: str, errors: dict, bound: float) -> Row:
    first = next((name for name, error in errors.items() if not error <= bound), None)
    where = first or max(errors, key=errors.__getitem__)
    return Row(part, where, errors[where], bound)


def _size(values: np.ndarray) -> float:
    """The largest absolute value; NaN where there is one."""
    return float(np.max(np.abs(values))) if values.size else 0.0


def _errors(counted: dict, negligible: float, measure: Callable = _size) -> dict:
    """Name -> error of each tensor by a measure of arrays; NaN where one has a value that is not finite."""
    least = max(negligible * max(_size(theirs) for _, theirs in counted.values()), EPS)
    return {name: measure(ours - theirs) / max(measure(theirs), measure(np.full(theirs.shape, least)))
            for name, (ours, theirs) in counted.items()}


def _of_all(counted: dict) -> float:
    """The norm of the difference over the norm, of all tensors together."""
    difference, norm = (sum(float(np.sum(x**2)) for x in values) for values in (
        (ours - theirs for ours, theirs in counted.values()), (theirs for _, theirs in counted.values())))
    return float(np.sqrt(difference / norm))


def _clear(counted: dict, weights: Path, gradients: Path) -> dict:
    """The changes of the weights whose gradient has a clear sign, without the rounding of the weight itself."""
    with np.load(weights) as start, np.load(gradients) as by_name:
        largest, clear_changes = max(_size(by_name[name]) for name in counted), {}
        for name, (ours, theirs) in counted.items():
            gradient = np.abs(by_name[name])
            clear = (gradient >= CLEAR * _size(gradient)) & (gradient >= NEGLIGIBLE * largest)
            rounding = EPS * np.abs(start[name][clear])
            difference = ours[clear] - theirs[clear]
            beyond = np.sign(difference) * np.maximum(np.abs(difference) - rounding, 0)
            if clear.any():
                clear_changes[name] = theirs[clear] + beyond, theirs[clear]
    return clear_changes
