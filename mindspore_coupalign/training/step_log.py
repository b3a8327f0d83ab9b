"""log.jsonl and non-finite steps: what the steps since the last line gave; the end of a run that gives nothing finite.

A ``results`` is a step's values by name (step.RESULTS).
"""

import math
import time

import numpy as np

from mindspore_coupalign.errors import UserError
from mindspore_coupalign.training.objective import LOSSES
from mindspore_coupalign.training.run_folder import RunFolder


class StepLog:
    """Collects steps and writes lines.

    Args:
        patience: so many non-finite steps in a row end the run.
    """

    def __init__(self, run: RunFolder, patience: int):
        self.run, self.patience = run, patience
        self.window: list[dict] = []  # results of the finite steps since the last line
        self.skipped = self.skipped_in_row = 0  # non-finite steps since that line; in a row

    def state(self) -> dict:
        """What a checkpoint keeps of it."""
        return {"window": self.window, "skipped": self.skipped, "skipped_in_row": self.skipped_in_row}

    def restore(self, progress: dict):
        self.window, self.skipped = progress["window"], progress["skipped"]
        self.skipped_in_row = progress["skipped_in_row"]

    def note(self, step: int, results: dict, samples):
        """Count a step; a non-finite one, which changed nothing, gets a line in skipped.jsonl.

        Args:
            samples: () -> dict that names the step's samples.

        Raises:
            UserError: ``patience`` non-finite steps in a row, or the line cannot be written.
        """
        if results["finite"]:
            self.window.append(results)
            self.skipped_in_row = 0
            return
        self.skipped += 1
        self.skipped_in_row += 1
        numbers = {key: _finite_or_text(results[key]) for key in ("loss", "grad_norm", "scale")}
        self.run.log({"step": step, **numbers, **samples()}, "skipped.jsonl")
        if self.skipped_in_row >= self.patience:
            raise UserError(f"step {step}: the loss ({results['loss']:g}) or its gradient was non-finite in "
                            f"{self.skipped_in_row} steps in a row, none of which has changed the weights; their "
                            f"samples are in {self.run.path / 'skipped.jsonl'}; lower train.lr or look at the data")

    def write(self, step: int, lr: float, speed: float, scale: float | None) -> str:
        """A line of the means since the last one; null where every step was non-finite, or an older version had no such
        number.

        Args:
            speed: samples per second.
            scale: of the loss, in half precision.

        Returns:
            The same for the progress bar.
        """
        means = {key: _mean([r[key] for r in self.window if key in r]) for key in (*LOSSES, "grad_norm")}
        entry = {"step": step, **{k: v if v is None else round(v, 5) for k, v in means.items()}, "lr": lr,
                 "samples_per_s": round(speed, 1)}
        if scale is not None:
            entry["scale"] = scale
        if self.skipped:
            entry["skipped"] = self.skipped
        self.run.log(entry)
        loss = "non-finite" if means["loss"] is None else f"{means['loss']:.3f}"
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        self.window, self.skipped = [], 0
        return f"loss {loss}, lr {lr:.1e}, {speed:.0f} samples/s{skipped}"


class Speed:
    """Samples per second since the last line of the log, what ``pause`` says left out.

    Args:
        batch: samples of a step.
    """

    def __init__(self, batch: int):
        self.batch, self.steps, self.started = batch, 0, time.perf_counter()

    def step(self):
        self.steps += 1

    def pause(self, seconds: float):
        self.started += seconds

    def take(self) -> float:
        """The speed until now; from now on it is measured anew."""
        now = time.perf_counter()
        speed = self.steps * self.batch / (now - self.started)
        self.steps, self.started = 0, now
        return speed


def _mean(values: list) -> float | None:
    return float(np.mean(values)) if values else None


def _finite_or_text(value: float):
    return value if math.isfinite(value) else str(value)
