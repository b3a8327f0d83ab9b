"""The learning rate's schedules, and the time budget: when a run ends and how its decay follows the clock."""

from pathlib import Path

import numpy as np
import pytest
from tiny_network import tiny_config

from mindspore_coupalign.config import Config, with_overrides
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.training.schedule import Budget, learning_rate
from mindspore_coupalign.weights.checkpoint import Checkpoint

FIRST_AUTHOR = ("train.lr=1.5e-5", "train.final_lr=1e-5", "train.schedule=linear", "train.lr_decay_epochs=40",
                "train.lr_decay_unit=epoch", "train.epochs=50", "train.batch_size=8")


def test_linear_decay_once_per_epoch_to_a_final_rate():
    """The first author's: 1.5e-5 in epoch 0, 1e-5 from epoch 40 on; 20 refs in batches of 8 are 2.5 steps per epoch."""
    config, refs, total = tiny_config(*FIRST_AUTHOR), 20, 125
    rates = [learning_rate(config, step, total, refs=refs) for step in range(total)]
    epochs = np.arange(total) * 8 // refs  # of a step's first sample
    expected = 1.5e-5 - 0.5e-5 * np.minimum(epochs, 40) / 40
    np.testing.assert_allclose(rates, expected, rtol=1e-6)
    assert len(set(rates)) == 41 and rates[-1] == pytest.approx(1e-5)


@pytest.mark.parametrize("schedule", ["poly", "cosine", "linear"])
def test_every_schedule_ends_at_the_final_rate(schedule):
    config = tiny_config("train.lr=0.1", "train.final_lr=0.02", f"train.schedule={schedule}", "train.lr_decay_epochs=3")
    rates = [learning_rate(config, step, 100, refs=40) for step in range(100)]  # 10 steps per epoch
    assert rates[0] == pytest.approx(0.1) and (np.diff(rates[:31]) < 0).all()
    np.testing.assert_allclose(rates[30:], 0.02, rtol=1e-9)


@pytest.mark.parametrize("overrides, words", [
    (["train.final_lr=1"], "train.final_lr must lie between 0 and train.lr"),
    (["train.lr_decay_unit=month"], "train.lr_decay_unit must be one of step, epoch"),
    (["train.weight_decay_on=some"], "train.weight_decay_on must be one of matrices, lavt, all"),
    (["train.lr_decay_epochs=-1"], "train.lr_decay_epochs"),
    (["train.minutes=3", "train.lr_decay_epochs=2"], "set train.minutes=0"),
    (["train.warmup_steps=3", "train.lr_decay_unit=epoch"], "train.warmup_steps needs"),
    (["loss.class_weights=[1, 0]"], "loss.class_weights needs two positive numbers"),
    (["loss.class_weights=[1, 1, 1]"], "loss.class_weights needs two positive numbers"),
])
def test_impossible_recipes(overrides, words):
    with pytest.raises(UserError, match="some.yaml: .*") as caught:
        with_overrides(Config(), overrides, "some.yaml")
    assert words in str(caught.value)


class Clock:
    """A training in made-up time: ``compile`` seconds in the first step, ``step`` in each, validations of
    ``validation`` seconds every ``every`` steps and at the end, the first of which compiles as well."""

    def __init__(self, minutes, compile=60.0, step=1.0, validation=10.0, every=0, warmup=10, batches=20.0):
        self.config = tiny_config(f"train.minutes={minutes}", f"train.warmup_steps={warmup}", "train.lr=1",
                                  "train.schedule=cosine")
        self.compile, self.step, self.validation, self.every = compile, step, validation, every
        self.now, self.done, self.batches = 0.0, 0, batches
        self.rates, self.said = [], []

    def run(self, share=0.0, limit=10**6):
        """Until the end, or for so many steps; the budget of the process."""
        budget = Budget(self.config.train, self.now, share, 0.0, self.batches)
        start, validated = self.done, 0
        while not budget.over and self.done - start < limit:
            self.rates.append(learning_rate(self.config, self.done, 10**6, budget.share))
            began = self.now
            self.now += self.step + (self.compile if self.done == start else 0.0)
            self.done += 1
            budget.note(began, self.done)
            self.said += budget.warnings()
            if budget.over or (self.every and self.done % self.every == 0):
                self.now += self.validation + (self.compile / 2 if validated == 0 else 0.0)
                validated += 1
                budget.pause(self.validation)
        return budget


@pytest.mark.parametrize("compile, every, step", [(0, 0, 1), (60, 0, 1), (240, 0, 1), (0, 50, 1), (60, 50, 1),
                                                  (120, 0, 8)])
def test_warm_up_and_decay_happen_whole(compile, every, step):
    """However long compiling takes: the learning rate reaches its peak and falls to nothing without a jump, and the run
    ends in time, the last validation and its compilation included."""
    clock = Clock(6, compile=compile, every=every, step=step, batches=20 / step)
    clock.run()
    steps = np.diff(clock.rates[10:])
    assert max(clock.rates) == clock.rates[10] == pytest.approx(1)
    assert clock.rates[-1] < (0.01 if step == 1 else 0.05)
    assert (steps <= 1e-9).all() and np.abs(steps).max() < 4 / len(steps)  # a cosine's steepest: pi / 2
    over = max(0, compile / 2 + 10 - (360 - compile) / 2)  # the last validation gets half of what is left at most
    assert 360 - 2 * step - 2 <= clock.now - over <= 361


def test_a_run_that_was_resumed_goes_on_where_its_decay_was():
    """Compiling once more costs training time, not a part of the decay."""
    clock = Clock(10)
    budget = clock.run(limit=200)
    again = clock.run(share=budget.share)
    steps = np.diff(clock.rates[150:250])
    assert (steps <= 0).all() and np.abs(steps).max() < 0.006
    assert clock.rates[-1] < 0.01 and clock.now <= 601 and again.over


def test_a_budget_that_goes_on():
    """Of the same minutes it is over; of more, the decay goes back, as it does with more epochs; and of an older
    version's state, which knows the seconds alone."""
    def of(minutes, before=2, **progress):
        config = tiny_config(f"train.minutes={minutes}", "train.warmup_steps=10")
        old = tiny_config(f"train.minutes={before}")
        state = Checkpoint(Path("last.safetensors"), {}, old, "", {"step": 50, "seconds": 60.0} | progress)
        return Budget.of_run(config, state, 5)

    finished = {"decay_share": 0.98, "finished_minutes": 2.0, "seconds": 118.0}
    assert of(2, **finished).over and not of(8, **finished).over
    assert of(8, **finished).share == pytest.approx(0.245)
    assert of(2, decay_share=0.3).share == 0.3 and not of(2, decay_share=0.3).over
    assert of(2).share == 0.5 and of(2, step=10).share == 0 and of(2, seconds=120.0).over
    assert of(0, **finished).share == 0 and not of(0, **finished).over


def test_without_a_budget_nothing_is_over():
    budget = Budget(tiny_config().train, 1e9)
    for step in range(5):
        budget.note(1e9 * step, step + 1)
    assert not budget.over and budget.share == 0 and budget.warnings() == []


def test_a_budget_in_which_the_warm_up_does_not_end_is_said():
    clock = Clock(2, warmup=100)
    clock.run()
    assert clock.said[0].startswith("warning: train.minutes=2: about ") and "train.warmup_steps=100" in clock.said[0]
    reach = int(clock.said[0].split("about ")[1].split()[0])
    assert abs(reach - clock.done) <= 2 < 100 and clock.rates == sorted(clock.rates)
    clock = Clock(1, compile=70, warmup=5)  # the first steps have used it up
    clock.run()
    assert "the warm-up" in clock.said[0] and clock.done == 2
    clock = Clock(6, warmup=10)
    clock.run()
    assert not [line for line in clock.said if line.startswith("warning")]
    assert "are kept for the last validation (by an estimate" in clock.said[0] and len(clock.said) == 1


def test_a_warm_up_that_was_expected_to_end_and_does_not_is_said_at_the_end():
    """The machine became slower."""
    clock = Clock(4, warmup=60, compile=0)
    budget = clock.run(limit=10)
    assert not [line for line in clock.said if line.startswith("warning")]
    while not budget.over:
        clock.now, clock.done = clock.now + 20, clock.done + 1
        budget.note(clock.now - 20, clock.done)
        clock.said += budget.warnings()
    assert clock.done < 60 and clock.said[-1].startswith(f"warning: train.minutes=4: about {clock.done} steps")
    assert not budget.warnings()


def test_a_validation_longer_than_the_budget():
    clock = Clock(3, validation=1000, batches=3000)
    clock.run()
    assert "the last validation may take longer" in clock.said[-1] and clock.done > 30  # half of the time is trained
