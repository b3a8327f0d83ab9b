"""What a run tells its user: lines and a progress bar, from rank 0 alone."""

import sys
import time

from tqdm import tqdm

from mindspore_coupalign.outputs import silence


class Console:
    """``log`` prints a line above the bar, which ``bar`` opens."""

    def __init__(self, speaks: bool):
        self.speaks = speaks
        self._bar: tqdm | None = None

    def log(self, line: str):
        if not self.speaks:
            return
        try:
            self._bar.write(line) if self._bar is not None else print(line, flush=True)
        except BrokenPipeError:  # nobody listens any more, as in `train … | head`: no reason to stop training
            silence(sys.stdout)

    def bar(self, total: int | None, done: int) -> "Bar":
        return Bar(self, total, done)


class Bar:
    """A context manager over the steps. It begins with the first step's end: that one compiles, and a bar that stands
    still would estimate the run by it.

    Args:
        total: steps; None where time ends the run.
    """

    def __init__(self, console: Console, total: int | None, done: int):
        self.console, self.total, self.done, self.started = console, total, done, 0.0

    def __enter__(self):
        self.started = time.perf_counter()
        return self

    def step(self):
        """One more step is done."""
        self.done += 1
        if self.console._bar is not None:
            self.console._bar.update()
            return
        self.console.log(f"step {self.done}: compiled and computed in {time.perf_counter() - self.started:.0f} s")
        self.console._bar = tqdm(total=self.total, initial=self.done, unit="step", disable=not self.console.speaks,
                                 dynamic_ncols=True, mininterval=0.1 if sys.stderr.isatty() else 30)

    def note(self, text: str):
        if self.console._bar is not None:
            self.console._bar.set_postfix_str(text, refresh=False)

    def __exit__(self, *_):
        if self.console._bar is not None:
            self.console._bar.close()
            self.console._bar = None
