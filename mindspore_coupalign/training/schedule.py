"""Learning rate by step, epoch or clock, and the time budget of a run (``train.minutes``).

Times are seconds of the run, those of the runs that it resumes included. They are means over the ranks, measured when a
step begins, so that every rank comes to the same decision.
"""

import math
from collections import deque

from mindspore_coupalign.config import Config, TrainConfig
from mindspore_coupalign.weights.checkpoint import Checkpoint

SETTLED = 4  # timed steps after which a warning may rest on their mean
FORWARD = 0.5  # a validation takes at most so much of a training step's time, per batch and to compile


def learning_rate(config: Config, step: int, total_steps: int, clock: float = 0.0, refs: int = 0) -> float:
    """The learning rate of one step: linear warm-up, then the decay to ``train.final_lr``.

    Args:
        clock: share of the time budget's decay that is over, 0..1; the decay follows the steps or the clock, whichever
            is ahead.
        refs: samples of an epoch, for what the configuration counts in epochs.
    """
    train = config.train
    position: float = step
    end: float = total_steps
    if train.lr_decay_unit == "epoch":
        position = step * train.batch_size // refs * refs / train.batch_size  # the first step of the epoch
    if train.lr_decay_epochs:
        end = train.lr_decay_epochs * refs / train.batch_size
    warmup = min(train.warmup_steps, total_steps - 1)
    progress = min(max((position - warmup) / max(1, end - warmup), clock, 0.0), 1.0)
    decay = {"poly": (1 - progress) ** 0.9, "linear": 1 - progress,
             "cosine": 0.5 * (1 + math.cos(math.pi * progress))}[train.schedule]
    return ((train.lr - train.final_lr) * decay + train.final_lr) * min(1.0, (step + 1) / (warmup + 1))


class Budget:
    """When a run under ``train.minutes`` ends, and how far its decay has come.

    A step after the warm-up that takes d seconds, with ``left`` until the last validation has to begin, takes the
    decay d / left of its remaining way. Nothing else moves it: neither the step that compiles, nor a validation or a
    save, nor the compiling of a run that was resumed. Warm-up and decay thus happen whole in whatever time is left.

    Args:
        spent: seconds, of the runs that this one resumes.
        share: of the decay that is over.
        finished: the earlier runs' budget in minutes, when they came to its end.
        batches: batches of training that hold as many samples as a validation.
        ahead: steps that are launched before one's results are read: the newest clock is by so many steps older, and
            when it was read, as many steps may have been on their way before its own.
    """

    def __init__(self, train: TrainConfig, spent: float = 0.0, share: float = 0.0, finished: float = 0.0,
                 batches: float = 0.0, ahead: int = 0):
        self.seconds, self.minutes, self.warmup = 60 * train.minutes, train.minutes, train.warmup_steps
        self.now, self.share, self.batches, self.ahead = spent, share, batches, ahead
        self.done, self.steps = 0, 0  # of the run; of this process
        self.recent: deque[float] = deque(maxlen=20)  # seconds of the newest steps
        self.first = 0.0  # of the step that compiled
        self.untimed = 2 + ahead  # steps from here on whose begin says nothing of how long a step takes
        self.measured, self.reserve, self.most = 0.0, 0.0, 0.0
        self.settled, self.short = False, False  # whether the steps' time is known; whether a short warm-up was said
        self.over = self.seconds > 0 and (0 < self.minutes <= finished or spent >= self.seconds)

    @classmethod
    def of_run(cls, config: Config, state: Checkpoint | None, batches: float, ahead: int = 0) -> "Budget":
        """That of a new run, or of one that goes on from a training state."""
        train = config.train
        if state is None or not train.minutes:
            return cls(train, batches=batches, ahead=ahead)
        progress, before, spent = state.progress, state.config.train.minutes, state.progress["seconds"]
        share = 0.0
        if "decay_share" in progress:
            share = progress["decay_share"] * before / train.minutes  # more minutes raise the learning rate again
        elif progress["step"] > train.warmup_steps:  # of an older version, or of a run without a budget
            share = spent / (60 * train.minutes)
        return cls(train, spent, min(1.0, share), progress.get("finished_minutes", 0.0), batches, ahead)

    def note(self, now: float, done: int):
        """A step is done, the ``done``-th of the run, that began, or was launched, at ``now``."""
        if not self.seconds:
            return
        self.steps, self.done = self.steps + 1, done
        took = now - self.now  # by the step before, with what came between the two
        if self.steps == 2:
            self.first, self.most = took, max(0.0, self.seconds - now) / 2
        elif not self.untimed:
            self.recent.append(took)
        self.now, self.untimed = now, max(0, self.untimed - 1)
        self.reserve = self._reserve()
        left = self.seconds - self.reserve - now - 2 * self.ahead * self.typical  # when the newest launched step begins
        if done > self.warmup and self.recent:
            self.share += (1 - self.share) * (min(1.0, self.typical / left) if left > 0 else 1.0)
        self.over |= left < 2 * self.typical or left <= 0  # another step would not be done in time

    @property
    def typical(self) -> float:
        """Seconds of a step; 0 as long as none was timed."""
        return sum(self.recent) / len(self.recent) if self.recent else 0.0

    def pause(self, validation: float = 0.0):
        """The run has saved, or validated in so many seconds without compiling: the next step is not timed, nor those
        that are launched before it is read."""
        self.untimed, self.measured = max(self.untimed, 1 + self.ahead), validation or self.measured

    def _reserve(self) -> float:
        """Seconds for the last validation: as measured, else estimated; at most half of what the first step left."""
        wanted = self.measured
        if not wanted and self.batches and self.recent:
            wanted = FORWARD * (self.batches * self.typical + max(0.0, self.first - self.typical))
        return min(wanted, self.most)

    def warnings(self) -> list[str]:
        """What the user should know, once each: as soon as the steps' time is known, or when the budget is over."""
        known = self.over or len(self.recent) >= SETTLED
        first, self.settled = known and not self.settled, known or self.settled
        name, found = f"train.minutes={self.minutes:g}", []
        left = 0.0 if self.over else max(0.0, self.seconds - self.reserve - self.now - self.typical)
        reach = self.done + left // (self.typical or math.inf)
        if (first or self.over) and reach <= self.warmup and not self.short:
            self.short = True
            found.append(f"warning: {name}: about {reach:.0f} steps fit into it, in which the warm-up of "
                         f"train.warmup_steps={self.warmup} does not end; give more minutes or fewer warm-up steps")
        if first and self.reserve:
            how = "as measured" if self.measured else "by an estimate from the training steps"
            found.append(f"{name}: about {self.reserve:.0f} s of it are kept for the last validation ({how})")
            if self.reserve == self.most:
                found.append(f"warning: {name}: the last validation may take longer than that, and end after the "
                             "budget; give more minutes, or score fewer samples (train.val_samples)")
        return found
