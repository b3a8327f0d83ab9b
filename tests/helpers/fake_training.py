"""The command train with a step, a validation and a clock that a test gives it, for tests of what is around them."""

import contextlib
import functools

import mindspore as ms
import numpy as np

from mindspore_coupalign.__main__ import main
from mindspore_coupalign.cli import train
from mindspore_coupalign.evaluation.scoring import report
from mindspore_coupalign.training.dry_run import Measured, dry_run
from mindspore_coupalign.training.objective import LOSSES
from mindspore_coupalign.training.trainer import Trainer


class FakeStep:
    """In place of the jitted step: gives losses in order, then NaN for ever.

    Args:
        stop_in: the number of the call after which another rank was asked to stop.
        pause: called in each call.
    """

    ema_decay, scaler, compiled = 0.0, None, True

    def __init__(self, losses, stop_in=0, pause=lambda: None):
        self.losses, self.keys, self.stop_in, self.pause = list(losses), np.zeros(1), stop_in, pause

    def share_statistics(self, runtime):
        pass

    def averaged_weights(self):
        return contextlib.nullcontext()

    def restore(self, arrays_of, counters, source):
        pass

    def states(self):
        return {}

    def counters(self):
        return {"updates": 0}

    def __call__(self, image, ids, word_mask, mask, lr, keys, signals, last):
        loss = self.losses.pop(0) if self.losses else np.nan
        self.stop_in -= 1
        self.pause()
        signals = (float(self.stop_in == 0), signals[1])
        return ms.Tensor(np.array([loss] * (len(LOSSES) + 1) + [np.isfinite(loss), 1, *signals], np.float32))


def batches(source, size, workers):
    """Micro-batches without MindSpore's pipeline, whose end takes seconds."""
    for start in range(0, len(source), size):
        yield tuple(map(np.stack, zip(*(source[start + i] for i in range(size)), strict=True)))


def full_marks(model, data, samples, *_, **__) -> dict:
    """The report of a network that makes no mistake."""
    return report(data, {"sample": samples, "predicted_target": np.ones(len(samples), bool),
                         **{size: np.ones((len(samples), 2), int) for size in ("image", "input")}})


def inject(monkeypatch, make_step, measure=lambda *_: Measured(1 << 20), **arguments):
    """The command train makes its Trainer with these arguments, and its dry run measures no memory."""
    arguments = {"score": full_marks, "load": batches} | arguments
    monkeypatch.setattr(train, "Trainer", lambda *given: Trainer(*given, step=make_step(), **arguments))
    monkeypatch.setattr(train, "dry_run", functools.partial(dry_run, measure=measure))


def compute_nothing(monkeypatch, losses, stop_in=0, pause=lambda: None, **arguments):
    """The command train takes FakeSteps and gives every sample the same score."""
    inject(monkeypatch, lambda: FakeStep(losses, stop_in, pause), **arguments)


def loop_of(config, tmp_path, monkeypatch):
    """``run(losses, *overrides)``: train with a configuration without computing anything."""
    def run(losses, *overrides, output="run", resume="", **settings):
        compute_nothing(monkeypatch, losses, **settings)
        resumed = ["--resume", str(tmp_path / resume)] if resume else []
        return main(["train", "--config", str(config), *resumed, "--output", str(tmp_path / output), *overrides])

    return run


def fails(capsys, *arguments) -> str:
    """The one line that the command line prints before it exits with code 2."""
    assert main([str(a) for a in arguments]) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("error: ") and "Traceback" not in captured.out, captured.err
    return lines[0]
