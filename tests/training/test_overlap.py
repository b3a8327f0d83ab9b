"""The loop on a device that computes on its own: a step is launched before the one before it is read.

The device is made up, and so is the time: it computes one call after the other, while Python goes on.
"""

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
from fake_training import FakeStep, batches, full_marks, inject
from tiny_network import tiny_config
from training_runs import log_of

from mindspore_coupalign.__main__ import main
from mindspore_coupalign.data.refer import read_refer
from mindspore_coupalign.distributed import watchdog
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.training.schedule import Budget
from mindspore_coupalign.weights.checkpoint import load_checkpoint


class Output:
    """Of one call: it is there when the device's time has come as far."""

    def __init__(self, device, number, value, ready):
        self.device, self.number, self.value, self.ready = device, number, value, ready

    def asnumpy(self):
        clock = self.device.clock
        clock.now = max(clock.now, self.ready)
        self.device.note("read", self.number)
        self.device.done = self.number
        return self.value.asnumpy()


class Device(FakeStep):
    """A FakeStep whose calls take ``seconds`` on the device and ``python`` in front of it; ``compiles``: of the first.

    ``events``: (what, number of the call) in their order, reading again left out.
    """

    def __init__(self, clock, losses, seconds=1.0, python=0.0, compiles=0.0, **settings):
        super().__init__(losses, **settings)
        self.clock, self.seconds, self.python, self.events = clock, seconds, python, []
        self.busy, self.calls, self.done, self.compiles, self.compiled = 0.0, 0, 0, compiles, not compiles

    def __call__(self, *arguments):
        value = super().__call__(*arguments)
        self.calls += 1
        self.clock.now += self.python + (0 if self.compiled else self.compiles)
        self.compiled = True
        self.busy = max(self.busy, self.clock.now) + self.seconds
        self.note("launch", self.calls)
        return Output(self, self.calls, value, self.busy)

    def states(self):
        self.note("save", self.done)
        return {}

    def note(self, what, number):
        if (what, number) not in self.events:
            self.events.append((what, number))


@pytest.fixture
def run(config, tmp_path, monkeypatch):
    """``run(device, *overrides)``: train on it, the exit code; ``run.clock`` is the made-up time."""
    clock = SimpleNamespace(now=1000.0)

    def run(device, *overrides, output="run", resume="", ahead=1, **arguments):
        inject(monkeypatch, lambda: device, ahead=ahead, clock=lambda: clock.now, **arguments)
        resumed = ["--resume", str(tmp_path / resume)] if resume else []
        return main(["train", "--config", str(config), *resumed, "--output", str(tmp_path / output), *overrides])

    run.clock = clock
    return run


def order(device) -> str:
    """``events`` as L1 L2 R1 …"""
    return " ".join(f"{what[0].upper()}{number}" for what, number in device.events)


def test_a_step_is_read_when_the_next_one_is_launched(run, tmp_path):
    """And none is on its way when a state is saved; every step is in the log once, with its own loss and rate."""
    settings = ["train.steps=7", "train.val_every=4", "train.save_every=6", "train.log_every=1"]
    device = Device(run.clock, range(1, 8))
    assert run(device, *settings) == 0
    assert order(device) == "L1 L2 R1 L3 R2 L4 R3 R4 S4 L5 L6 R5 R6 S6 L7 R7 S7"
    losses, scores = log_of(tmp_path / "run")
    assert [(line["step"], line["loss"]) for line in losses] == [(i, float(i)) for i in range(1, 8)]
    assert [line["step"] for line in scores] == [4, 7]
    device = Device(run.clock, range(1, 8))
    assert run(device, *settings, output="waiting", ahead=0) == 0
    assert order(device) == "L1 R1 L2 R2 L3 R3 L4 R4 S4 L5 R5 L6 R6 S6 L7 R7 S7"
    again = log_of(tmp_path / "waiting")[0]
    assert [(line["loss"], line["lr"]) for line in again] == [(line["loss"], line["lr"]) for line in losses]


@pytest.mark.parametrize("ahead, expected", [(1, 100.5), (0, 150)])
def test_a_device_does_not_wait_for_python(run, tmp_path, ahead, expected):
    """100 steps of a second with half a second of Python each: it computes without a pause. The log's samples per
    second are those of 4 samples in that time."""
    start = run.clock.now
    assert run(Device(run.clock, [1.0] * 100, python=0.5), "train.steps=100", "train.val_every=100",
               "train.log_every=20", ahead=ahead) == 0
    assert run.clock.now - start == pytest.approx(expected)
    speeds = [line["samples_per_s"] for line in log_of(tmp_path / "run")[0]]
    np.testing.assert_allclose(speeds, 400 / expected, rtol=0.05)


def test_the_first_step_is_waited_for(run, monkeypatch):
    """In the phase that compiles, in which the watch is patient: another rank may compile for longer."""
    phases = []
    monkeypatch.setattr(watchdog.Watch, "enter", lambda self, phase, step, compiles=False: phases.append(
        (phase, step, compiles, len(device.events))))
    device = Device(run.clock, [1.0] * 4, compiles=60.0)
    assert run(device, "train.steps=4", "train.val_every=4") == 0
    assert order(device).startswith("L1 R1 L2 L3 R2")
    compiling = next(i for i, phase in enumerate(phases) if phase[:3] == ("step", 0, True))
    assert phases[compiling + 1] == ("loading", 1, False, 2)  # launched and read


@pytest.mark.parametrize("stop_in, saved", [(2, 3), (4, 4), (5, 6)])
def test_a_run_is_asked_to_stop(run, tmp_path, stop_in, saved):
    """The step that is on its way already belongs to the state, and nothing is lost or done twice."""
    losses, settings = [1.0, 2.0, 6.0, 5.0, 7.0, 3.0], ["train.steps=6", "train.log_every=3", "train.val_every=4"]
    assert run(Device(run.clock, losses), *settings, output="whole") == 0
    device = Device(run.clock, losses, stop_in=stop_in)
    assert run(device, *settings) == 143
    assert device.events[-1] == ("save", saved) and device.calls == saved
    assert load_checkpoint(tmp_path / "run/last.safetensors").progress["step"] == saved
    assert run(Device(run.clock, losses[saved:]), *settings, resume="run") == 0
    logs = [log_of(tmp_path / name) for name in ("whole", "run")]
    for key in ("step", "loss", "lr"):
        assert [line[key] for line in logs[1][0]] == [line[key] for line in logs[0][0]]
    assert logs[1][1] == logs[0][1] and len(logs[0][1]) == 2


def test_non_finite_steps_are_named(run, tmp_path, root, capsys):
    """With the samples of their own batches, though the next batch has been loaded."""
    device = Device(run.clock, [1.0, np.nan, 1.0, np.nan, np.nan, 1.0])
    assert run(device, "train.steps=9", "train.val_every=9", "train.max_nonfinite_steps=2") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: step 5: the loss (nan)")
    assert order(device).endswith("R4 L6 R5")
    lines = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    data = read_refer(root, "refshapes", "shapes")
    samples = np.concatenate([data.epoch_samples("train", 0, epoch) for epoch in range(4)])
    assert [line["step"] for line in lines] == [2, 4, 5]
    for line in lines:
        assert line["samples"] == samples[4 * line["step"] - 4:4 * line["step"]].tolist()


def test_a_damaged_image_costs_no_line(run, tmp_path, capsys):
    """Of the step before it, which was pending."""
    def damaged(*arguments):
        yield from itertools.islice(batches(*arguments), 3)
        raise UserError("train_13.png: truncated")

    device = Device(run.clock, [1.0] * 8)
    assert run(device, "train.steps=8", "train.val_every=8", load=damaged) == 2
    assert "train_13.png" in capsys.readouterr().err and order(device) == "L1 L2 R1 L3 R2 R3"
    assert [line["step"] for line in log_of(tmp_path / "run")[0]] == [1, 2, 3]


@pytest.mark.parametrize("python", [0.0, 0.5])
def test_a_time_budget_is_kept(run, tmp_path, python):
    """Its last validation included, and its decay ends with it: the clock that decides is older than a step."""
    ends = []

    def score(*arguments, **_):
        run.clock.now += 10
        ends.append(run.clock.now - 1000)
        return full_marks(*arguments)

    device = Device(run.clock, [1.0] * 500, python=python, compiles=20.0)
    assert run(device, "train.steps=100000", "train.minutes=2", "train.val_every=30", "data.val_split=train",
               "train.schedule=linear", "train.log_every=1", score=score) == 0
    assert len(ends) == 3 and 115 <= ends[-1] <= 120, ends
    rates = [line["lr"] for line in log_of(tmp_path / "run")[0]]
    assert len(rates) == device.calls and rates[4] > 0.95e-3 and rates[-1] < 0.05e-3
    assert rates == sorted(rates, reverse=True)
    assert max(a - b for a, b in itertools.pairwise(rates)) < 3 / len(rates) * 1e-3


def test_a_step_that_is_launched_at_once_is_not_timed():
    """The first one after a save waits for nothing, and the second is launched right behind it."""
    budget = Budget(tiny_config("train.minutes=10").train, ahead=1)
    for step, now in enumerate((0, 60, 60, 61, 62, 63)):  # the first one compiles
        budget.note(now, step + 1)
    assert budget.typical == 1
    budget.pause()
    for step, now in enumerate((70, 70, 71)):
        budget.note(now, step + 7)
    assert budget.typical == 1 and len(budget.recent) == 4 and not budget.over


def test_a_budget_that_is_over_stays_so():
    """The step that is on its way, and quick, does not take the decision back."""
    budget = Budget(tiny_config("train.minutes=1").train, ahead=1)
    for step, now in enumerate((0, 0, 0, 0.1, 35)):
        budget.note(now, step + 1)
    assert budget.over
    for step in range(20):
        budget.note(35 + step / 10, step + 6)
    assert budget.over


def test_few_micro_batches_lie_on_the_device(run):
    """However many make a step: a batch takes memory from its launch on."""
    device = Device(run.clock, [1.0] * 16)
    assert run(device, "train.steps=4", "train.accumulate=4", "train.val_every=4") == 0
    assert device.calls == 16
    waiting, most = set(), 0
    for what, number in device.events:
        (waiting.add if what == "launch" else waiting.discard)(number)
        most = max(most, len(waiting))
    assert most == 3 and not waiting


def test_the_watch_counts_no_waiting_for_a_rank_that_saves(tmp_path, monkeypatch):
    """It comes where the first step after the save is read, which is when the second one is launched."""
    now = [1000.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    monkeypatch.setattr(watchdog.threading.Thread, "start", lambda self: None)
    watch = watchdog.Watch(tmp_path)
    watch.ahead = 1

    def phases(*seconds):
        for phase, took in seconds:
            watch.enter(phase, 1)
            now[0] += took

    phases(("saving", 1), ("loading", 1), ("step", 1), ("loading", 1), ("step", 300), ("step", 2), ("loading", 1))
    assert watch.longest == 2
    phases(("step", 7), ("loading", 1))
    assert watch.longest == 7
