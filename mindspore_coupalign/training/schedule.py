"""Learning rate by step, epoch or clock, and the time budget of a run (``train.minutes``).

Times are seconds of the run, including the earlier runs that it resumes. They are means over the ranks, measured when a
step is launched, so that every rank decides alike.
"""

import math
from collections import deque

from mindspore_coupalign.config import Config, TrainConfig
from mindspore_coupalign.weights.checkpoint import Checkpoint

SETTLED = 4  # timed steps whose mean is good enough for a warning
FORWARD = 0.5  # of a training step's time: the most that validating a batch takes, and compiling for it


def learning_rate(config: Config, step: int, total_steps: int, clock: float = 0.0, refs: int = 0) -> float:
    """The learning rate of one step: linear warm-up, then the decay to ``train.final_lr``.

    Args:
        clock: share of the time budget's decay that is over, 0..1; the decay follows the steps or the clock, whichever
            is further.
        refs: samples of an epoch, for settings in epochs.
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

    After the warm-up, a step of d seconds advances the decay by d / left of what remains of it, where ``left`` are the
    seconds until the last validation has to begin. Nothing else advances it, neither a compilation nor a validation or
    save. Warm-up and decay are therefore complete in whatever time is left.

    Args:
        spent: seconds of the earlier runs that this one resumes.
        share: of the decay that is over.
        finished: the earlier runs' budget in minutes, if they used it up.
        batches: training batches that hold as many samples as a validation.
        ahead: steps that are launched before one is read: the newest clock is older by so many steps, and as many steps
            may have been pending when it was taken.
    """

    def __init__(self, train: TrainConfig, spent: float = 0.0, share: float = 0.0, finished: float = 0.0,
                 batches: float = 0.0, ahead: int = 0):
        self.seconds, self.minutes, self.warmup = 60 * train.minutes, train.minutes, train.warmup_steps
        self.now, self.share, self.batches, self.ahead = spent, share, batches, ahead
        self.done, self.steps = 0, 0  # of the run; of this process
        self.recent: deque[float] = deque(maxlen=20)  # seconds of the newest steps
        self.first = 0.0  # of the step that compiled
        self.untimed = 2 + ahead  # the next steps that are launched without waiting for a whole step
        self.measured, self.reserve, self.most = 0.0, 0.0, 0.0
        self.settled, self.short = False, False  # whether the steps' time is known; whether a warning was given
        self.over = self.seconds > 0 and (0 < self.minutes <= finished or spent >= self.seconds)

    @classmethod
    def of_run(cls, config: Config, state: Checkpoint | None, batches: float, ahead: int = 0) -> "Budget":
        """The budget of a new run, or of one that resumes a training state."""
        train = config.train
        if state is None or not train.minutes:
            return cls(train, batches=batches, ahead=ahead)
        progress, spent, share = state.progress, state.progress["seconds"], 0.0
        if "decay_share" in progress:  # more minutes raise the learning rate again
            share = progress["decay_share"] * state.config.train.minutes / train.minutes
        elif progress["step"] > train.warmup_steps:  # of an older version, or of a run without a budget
            share = spent / (60 * train.minutes)
        return cls(train, spent, min(1.0, share), progress.get("finished_minutes", 0.0), batches, ahead)

    def note(self, now: float, done: int):
        """The ``done``-th step of the run, which was launched at ``now``, is done."""
        if not self.seconds:
            return
        self.steps, self.done = self.steps + 1, done
        took = now - self.now  # from the launch of the previous step to that of this one
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
        """Seconds of a step; 0 before any was timed."""
        return sum(self.recent) / len(self.recent) if self.recent else 0.0

    def pause(self, validation: float = 0.0):
        """The run has saved, or validated in so many seconds without compiling: neither the next step nor those that
        are launched before it is read are timed."""
        self.untimed, self.measured = max(self.untimed, 1 + self.ahead), validation or self.measured

    def _reserve(self) -> float:
        """Seconds for the last validation: as measured, else estimated; at most half of what the first step left."""
        wanted = self.measured
        if not wanted and self.batches and self.recent:
            wanted = FORWARD * (self.batches * self.typical + max(0.0, self.first - self.typical))
        return min(wanted, self.most)

    def warnings(self) -> list[str]:
        """Lines for the user, each once: as soon as the steps' time is known, or when the budget is over."""
        known = self.over or len(self.recent) >= SETTLED
        first, self.settled = known and not self.settled, known or self.settled
        name, lines = f"train.minutes={self.minutes:g}", []
        left = 0.0 if self.over else max(0.0, self.seconds - self.reserve - self.now - self.typical)
        reach = self.done + left // (self.typical or math.inf)
        if (first or self.over) and reach <= self.warmup and not self.short:
            self.short = True
            lines.append(f"warning: {name}: about {reach:.0f} steps fit into it, in which the warm-up of "
                         f"train.warmup_steps={self.warmup} does not end; give more minutes or fewer warm-up steps")
        if first and self.reserve:
            how = "as measured" if self.measured else "by an estimate from the training steps"
            lines.append(f"{name}: about {self.reserve:.0f} s of it are kept for the last validation ({how})")
            if self.reserve == self.most:
                lines.append(f"warning: {name}: the last validation may take longer than that, and end after the "
                             "budget; give more minutes, or score fewer samples (train.val_samples)")
        return lines
