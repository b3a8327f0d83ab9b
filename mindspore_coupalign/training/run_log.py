"""What a run reports: console lines and the progress bar, log.jsonl, and the steps that were not finite."""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
from tqdm import tqdm

from mindspore_coupalign.data.loader import TrainSource
from mindspore_coupalign.data.sets import UnionData
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.outputs import silence
from mindspore_coupalign.training.objective import LOSSES
from mindspore_coupalign.training.run_folder import RunFolder
from mindspore_coupalign.training.step import StepResults


class Console:
    """Lines and, while ``progress`` is entered, a progress bar below them.

    The bar begins at the end of the first step: that one compiles, and a bar that stands still would estimate the run
    by it.

    Args:
        enabled: False prints nothing.
    """

    def __init__(self, enabled: bool, clock: Callable[[], float] = time.perf_counter):
        self.enabled, self.clock = enabled, clock
        self.total: int | None = None
        self.done, self.started = 0, 0.0
        self.bar: tqdm | None = None

    def log(self, line: str):
        if not self.enabled:
            return
        try:
            self.bar.write(line) if self.bar is not None else print(line, flush=True)
        except BrokenPipeError:  # the reader has gone, as in `train … | head`: no reason to stop training
            silence(sys.stdout)

    @contextlib.contextmanager
    def progress(self, total: int | None, done: int) -> Iterator[None]:
        """``total`` steps, of which some are done; None where time ends the run."""
        self.total, self.done, self.started = total, done, self.clock()
        try:
            yield
        finally:
            if self.bar is not None:
                self.bar.close()
                self.bar = None

    def step(self):
        """One more step is done."""
        self.done += 1
        if self.bar is not None:
            self.bar.update()
            return
        self.log(f"step {self.done}: compiled and computed in {self.clock() - self.started:.0f} s")
        self.bar = tqdm(total=self.total, initial=self.done, unit="step", disable=not self.enabled,
                        dynamic_ncols=True, mininterval=0.1 if sys.stderr.isatty() else 30)

    def note(self, text: str):
        """Show a text beside the bar."""
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)


class StepLog:
    """Collects the results of steps and writes their means to log.jsonl.

    Args:
        patience: so many non-finite steps in a row end the run.
        extra: names of the terms of ``loss.extra``.
    """

    def __init__(self, folder: RunFolder, patience: int, source: TrainSource, field: str, extra: tuple[str, ...],
                 clock: Callable[[], float]):
        self.folder, self.patience, self.source, self.field, self.extra = folder, patience, source, field, extra
        self.clock, self.started, self.steps = clock, clock(), 0  # when the line began, pauses left out; its steps
        self.window: list[dict] = []  # results of the finite steps since the last line, by name
        self.skipped = self.skipped_in_row = 0  # non-finite steps since that line; in a row

    def state(self) -> dict:
        """For a checkpoint."""
        return {"window": self.window, "skipped": self.skipped, "skipped_in_row": self.skipped_in_row}

    def restore(self, progress: dict):
        self.window, self.skipped = progress["window"], progress["skipped"]
        self.skipped_in_row = progress["skipped_in_row"]

    def note(self, step: int, results: StepResults):
        """Count a step; a non-finite one, which changed nothing, gets a line in skipped.jsonl.

        Raises:
            UserError: ``patience`` non-finite steps in a row, or the line cannot be written.
        """
        self.steps += 1
        if results.finite:
            self.window.append(results._asdict() | dict(zip(self.extra, results.extra, strict=True)))
            self.skipped_in_row = 0
            return
        self.skipped += 1
        self.skipped_in_row += 1
        numbers = {key: value if math.isfinite(value) else str(value) for key, value in results._asdict().items()
                   if key in ("loss", "grad_norm", "scale")}
        self.folder.log({"step": step, **numbers, **self.samples_of(step)}, "skipped.jsonl")
        if self.skipped_in_row >= self.patience:
            raise UserError(f"step {step}: the loss ({results.loss:g}) or its gradient was non-finite in "
                            f"{self.skipped_in_row} steps in a row, none of which changed the weights; their samples "
                            f"are in {self.folder.path / 'skipped.jsonl'}; lower train.lr or look at the data")

    def samples_of(self, step: int) -> dict:
        """The samples of its global batch, their refs and sentences, and their data sets where there are several."""
        batch, data = self.source.batch_size, self.source.data
        samples = [self.source.sample_at((step - 1) * batch + i) for i in range(batch)]
        refs = data.sentence_ref[samples]
        described = {"samples": samples, "refs": data.ref_ids[refs].tolist(),
                     "sentences": [data.sentence(s, self.field) for s in samples]}
        return described | ({"sets": [data.part_of(r) for r in refs]} if isinstance(data, UnionData) else {})

    def write(self, step: int, lr: float, scale: float | None) -> str:
        """Write a line of the means since the last one; null where every step was non-finite, or where an older
        version had no such number. Returns the same for the progress bar.

        Args:
            scale: of the loss, in half precision.
        """
        now = self.clock()
        speed = self.steps * self.source.batch_size / (now - self.started)
        self.steps, self.started = 0, now
        values = {key: [r[key] for r in self.window if key in r] for key in (*LOSSES, *self.extra, "grad_norm")}
        means = {key: float(np.mean(v)) if v else None for key, v in values.items()}
        entry = {"step": step, **{k: v if v is None else round(v, 5) for k, v in means.items()}, "lr": lr,
                 "samples_per_s": round(speed, 1)}
        if scale is not None:
            entry["scale"] = scale
        if self.skipped:
            entry["skipped"] = self.skipped
        self.folder.log(entry)
        loss = "non-finite" if means["loss"] is None else f"{means['loss']:.3f}"
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        self.window, self.skipped = [], 0
        return f"loss {loss}, lr {lr:.1e}, {speed:.0f} samples/s{skipped}"
