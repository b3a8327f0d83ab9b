"""The training loop, ``Trainer._loop``, around one jitted step (step.py). run_folder.py lists the files of a run."""

import contextlib
import functools
import itertools
import math
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mindspore_coupalign.config import Config
from mindspore_coupalign.config.paths import without_absolute_paths
from mindspore_coupalign.data.leakage import image_paths, seen_with
from mindspore_coupalign.data.loader import TrainSource, batches
from mindspore_coupalign.data.refer import ReferData
from mindspore_coupalign.data.sets import UnionData
from mindspore_coupalign.data.tokenizer import SentenceTokenizer
from mindspore_coupalign.data.transforms import ImageTransform
from mindspore_coupalign.data.warnings import data_warnings, exif_warning, no_target_warnings
from mindspore_coupalign.distributed import collectives as ranks
from mindspore_coupalign.distributed.process import Runtime
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.evaluation.scoring import validate
from mindspore_coupalign.interrupts import StopRequest
from mindspore_coupalign.models.rng import check_device
from mindspore_coupalign.training import init_from, setup
from mindspore_coupalign.training.pending import FinishedStep, PendingSteps
from mindspore_coupalign.training.run_folder import RunFolder
from mindspore_coupalign.training.run_log import Console, StepLog
from mindspore_coupalign.training.schedule import Budget, learning_rate
from mindspore_coupalign.weights.checkpoint import Checkpoint, load_parameters, named_arrays


class Trainer:
    """Trains a network: ``train`` runs the loop to its end and returns the last validation's report.

    Args:
        data: is validated on, and trained on as well unless there is a ``union``.
        step, score, load: default: the configuration's TrainStep, ``scoring.validate`` and ``loader.batches``.
        ahead: steps to launch before one is read; default: 1, on CPU, where a call returns when all is computed, 0.

    Raises:
        UserError: the configuration, the data or the state do not fit.
    """

    def __init__(self, config: Config, data: ReferData, tokenizer: SentenceTokenizer, output: Path,
                 runtime: Runtime, state: Checkpoint | None = None,
                 initial: init_from.InitialWeights | None = None, union: UnionData | None = None, *,
                 step=None, score: Callable[..., dict] = validate, load: Callable = batches,
                 ahead: int | None = None, clock: Callable[[], float] = time.perf_counter):
        self.config, self.data, self.tokenizer, self.runtime, self.state = config, data, tokenizer, runtime, state
        self.train_data, self.train_split = (union, "train") if union else (data, config.data.train_split)
        self.initial, self.load, self.clock, train = initial, load, clock, config.train
        self.folder = RunFolder(output, train.keep, runtime.rank == 0)
        self.console = Console(runtime.rank == 0, clock)
        self.log = self.console.log
        self.plan = Plan.of(config, self.train_data.epoch_size(self.train_split), data.source)
        self.validation = Validation(data, tokenizer, config, runtime, score, clock)
        for line in self._data_warnings() if runtime.rank == 0 else ():
            self.log(line)
        self.model, lines = setup.build_initial_model(config, tokenizer.vocab_size, initial, state)
        for line in lines:
            self.log(line)
        if step is None:
            check_device(runtime.target)
            step = setup.build_train_step(self.model, config, runtime.ranks, runtime.target)
        self.step = step
        self.done = self.validated = 0  # steps: the last one that was read; the last one that was validated
        self.best, self.started = -1.0, clock()  # score; ``started``: as if earlier runs had ended just now
        if state is not None:
            load_parameters(self.model.get_parameters(), state.section("model"), str(state.path))
            self.step.restore(state.section, state.progress, str(state.path))
            self.done, self.validated = state.progress["step"], state.progress["validated"]
            self.started -= state.progress["seconds"]
            if _judged_by(state.config) == _judged_by(config):
                self.best = state.progress["best"]
        self.stopping, self.code = False, 0  # whether a rank was asked to stop; exit code
        self.stop = StopRequest(patient=runtime.watch.folder is not None)
        ahead = int(runtime.target != "CPU") if ahead is None else ahead
        runtime.watch.ahead = ahead
        self.pending = PendingSteps(self.step, train, runtime, self.stop, self.elapsed, self.done, ahead)
        self.budget = Budget.of_run(config, state, math.ceil(len(self.validation.samples) / train.batch_size), ahead)
        names = config.data
        self.source = TrainSource(self.train_data, self.train_split, tokenizer,
                                  ImageTransform(names.image_size, names.mean, names.std), train.seed, train.batch_size,
                                  names.flip, (self.done, self.plan.total), runtime.rank, runtime.ranks,
                                  names.sentence_field, names.overlap)
        self.step_log = StepLog(self.folder, train.max_nonfinite_steps, self.source, names.sentence_field,
                                tuple(entry.name for entry in config.loss.extra), clock)
        if state is not None:
            self.step_log.restore(state.progress)
        self.origin = state or (initial.checkpoint if initial else None)
        self.turned_logged = False  # whether EXIF orientations were mentioned

    def train(self) -> dict | None:
        if self.is_over() and not self._validation_is_due():
            source = self.folder.path if self.state is None else self.state.path
            self.log(f"{source}: already complete at step {self.done}; raise train.steps, train.epochs or "
                     "train.minutes to continue")
            return None
        self._open()
        total = None if self.config.train.minutes else self.plan.total
        with contextlib.closing(self.folder), self.stop, self.console.progress(total, self.done):
            result = self._loop()
            if self.stopping:
                self.log(f"asked to stop: the state of step {self.done} is saved; continue with --resume "
                         f"{self.folder.path}")
                self.runtime.watch.ending = "stopped"
            ranks.wait(self.runtime)  # rank 0 may still be saving
        if self.stopping:  # a rank without a signal of its own: another one was asked
            self.code = 128 + (self.stop.received or int(signal.SIGTERM))
        return result

    def _loop(self) -> dict | None:
        """Train until the run is over or a rank was asked to stop; returns the last validation's report.

        Next batch, step, read results, log, validate, save, stop. On a GPU or NPU up to ``pending.ahead`` steps are
        pending while the next one is launched; whatever saves or validates waits until none is.
        """
        batches, pending, result = self.batches(), self.pending, None
        self.step_log.started = self.clock()
        if self._validation_is_due():  # the run that this one resumes was stopped just before it
            result = self._validate()
        while not (self.stopping or self.is_over()):
            batch = next(batches)
            try:
                pending.launch(batch, self.learning_rate())
            except UserError:  # a damaged image: the steps before it are logged all the same
                while pending:
                    self._log_step(self.read())
                raise
            while pending and (len(pending) > pending.ahead or self._pauses_after(pending.launched)):
                step = self.read()
                self._log_step(step)
                self.stopping |= step.results.stop > 0
            if pending:  # the weights may be a later step's already
                continue
            if self._validation_is_due() and not self.stopping:
                result = self._validate()  # which saves before and after
            elif self.stopping or self.plan.saves_after(self.done):
                with self._pause():
                    self._save_state()
        return result

    def batches(self) -> Iterator[Iterator]:
        """The batches from the next step on: each yields this rank's share of its micro-batches when they are asked
        for, as image, ids, word_mask, mask, sample."""
        accumulate = self.config.train.accumulate
        stream = self.load(self.source, self.source.local // accumulate, self.config.data.workers)
        while True:
            yield itertools.islice(stream, accumulate)

    def read(self) -> FinishedStep:
        """Wait for the first pending step."""
        step = self.pending.read()
        self.done = step.number
        self.budget.note(step.elapsed, self.done)
        return step

    def learning_rate(self) -> float:
        """Of the step that is launched next."""
        return learning_rate(self.config, self.pending.launched, self.plan.total, self.budget.share, self.plan.refs)

    def elapsed(self) -> float:
        """Seconds of the run until now, those of the runs that it resumes included."""
        return self.clock() - self.started

    def is_over(self) -> bool:
        """Whether no further step is to be launched."""
        return self.pending.launched >= self.plan.total or self.budget.over

    def _pauses_after(self, step: int) -> bool:
        """Whether the run saves, validates or ends after this step: the next one is not launched before."""
        return self.stopping or self.is_over() or self.plan.validates_after(step) or self.plan.saves_after(step)

    def _validation_is_due(self) -> bool:
        return self.validated < self.done and (self.is_over() or self.plan.validates_after(self.done))

    def _log_step(self, step: FinishedStep):
        self.console.step()
        self.step_log.note(step.number, step.results)
        for line in self.budget.warnings():
            self.log(line)
        if step.number % self.config.train.log_every and not (self.is_over() and not self.pending):
            return
        scale = step.results.scale if self.step.scaler is not None else None
        text = self.step_log.write(step.number, step.lr, scale)
        minutes = self.config.train.minutes
        self.console.note(text + (f", {max(0, minutes - self.elapsed() / 60):.1f} min left" if minutes else ""))
        if self.train_data.turned and not self.turned_logged:
            self.turned_logged = True
            self.log(exif_warning(self.train_data))

    def _validate(self) -> dict | None:
        """Score the validation samples with the averaged weights where there are any; keep the best."""
        with self._pause(validates=True):
            self._save_state()  # first: a validation may take long, and may meet a damaged image
            self.validated = self.done
            with self.step.averaged_weights():
                result = self.validation.run(self.model)
                score = self._log_scores(result) if result else None
                if score is None or score > self.best:
                    self.best = self.best if score is None else score
                    self.folder.save_best(named_arrays(self.model.get_parameters(), "model"),
                                          without_absolute_paths(self.config), self.tokenizer.to_json(),
                                          self._progress())
            self._save_state(again=True)
        return result

    def _log_scores(self, result: dict) -> float:
        """Returns the score by which the best weights are chosen."""
        self.folder.log({"step": self.done, "val": result})
        scores = "  ".join(f"{name} {result['image'][name]:.2f}" for name in ("oIoU", "mIoU", "P@0.5", "N_acc", "T_acc")
                           if name in result["image"])  # the last two where there are no-target sentences
        self.log(f"step {self.done}: {self.config.data.val_split} {scores}  ({len(self.validation.samples)} sentences, "
                 "image's own size)")
        return result["image"][self.config.train.best_by]

    @contextlib.contextmanager
    def _pause(self, validates: bool = False):
        """Around a save or a validation: its time is no step's."""
        started = self.clock()
        self.runtime.watch.enter("saving", self.done, compiles=validates)
        self.step.share_statistics(self.runtime)
        yield
        measured = self.validation.seconds_since(started) if validates and self.config.train.minutes else 0.0
        self.budget.pause(measured)
        self.step_log.started += self.clock() - started

    def _save_state(self, again: bool = False):
        """``again``: in place of the newest state, which is of the same step."""
        arrays = named_arrays(self.model.get_parameters(), "model")
        for section, state in self.step.states().items():
            arrays |= {f"{section}.{name}": array for name, array in state.items()}
        progress = self._progress() | self.step.counters() | {"validated": self.validated, **self.step_log.state()}
        self.folder.save_state(arrays, self.config, self.tokenizer.to_json(), progress, again=again)

    def _progress(self) -> dict:
        """What both kinds of checkpoints tell of the run."""
        progress = {"step": self.done, "best": self.best, "seconds": round(self.elapsed(), 1),
                    "seen_images": self.seen_images if self.runtime.rank == 0 else ""}
        if self.config.train.minutes:
            progress |= {"decay_share": self.budget.share,
                         "finished_minutes": self.config.train.minutes if self.budget.over else 0.0}
        return progress

    @functools.cached_property
    def seen_images(self) -> str:
        """The hashes of the images that the weights have been trained on, those of the checkpoint that the training
        started from included."""
        before = (self.origin.progress, str(self.origin.path)) if self.origin else ()
        return seen_with(image_paths(self.train_data, self.train_split), *before)

    def _open(self):
        self.folder.open(self.config, self.done, self.validated, self.state.path if self.state else None)
        if self.initial is not None:
            self.folder.log({"step": 0, "init_from": self.initial.facts})
        ranks.broadcast(self.model.get_parameters(), self.runtime)
        train = self.config.train
        parameters = sum(p.size for p in self.model.trainable_params())
        budget = f"{train.minutes:g} minutes, at most " if train.minutes else ""
        shared = f", {self.runtime.ranks} ranks" if self.runtime.ranks > 1 else ""
        trained = " + ".join(names.dataset for names in self.config.data.sets or (self.config.data,))
        self.log(f"{trained}: {budget}{self.plan.total - self.done} steps of {train.batch_size} samples on "
                 f"{self.runtime.target}{shared}, {parameters / 1e6:.2f} M parameters, output {self.folder.path} "
                 "(the first step compiles the network)")

    def _data_warnings(self) -> list[str]:
        names, data, trained = self.config.data, self.data, self.train_data
        splits = {} if trained is not data else {names.train_split: data.split(names.train_split)}
        lines = data_warnings(data, {**splits, names.val_split: self.validation.samples}, self.tokenizer, names)
        if isinstance(trained, UnionData):
            parts = {part.label: trained.part_samples(part) for part in trained.parts}
            lines = data_warnings(trained, parts, self.tokenizer, names) + lines
        return lines + no_target_warnings(trained, trained.split(self.train_split), self.config.model.no_target)


class Plan(NamedTuple):
    """How many steps a run has, and after which of them it validates and saves."""

    refs: int  # of an epoch
    total: int
    val_every: int
    save_every: int

    @classmethod
    def of(cls, config: Config, refs: int, source) -> "Plan":
        """Raises UserError, which names the ``source``, when there is nothing to train on."""
        train = config.train
        if refs == 0:
            raise UserError(f"{source}: split '{config.data.train_split}' has no refs with sentences to train on")
        return cls(refs, train.steps or math.ceil(train.epochs * refs / train.batch_size),
                   train.val_every or math.ceil(refs / train.batch_size), train.save_every)

    def validates_after(self, step: int) -> bool:
        return step >= self.total or step % self.val_every == 0

    def saves_after(self, step: int) -> bool:
        """Without a validation."""
        return self.save_every > 0 and step % self.save_every == 0


class Validation:
    """The validation of a training run: its samples, its report, and how long it takes."""

    def __init__(self, data: ReferData, tokenizer: SentenceTokenizer, config: Config, runtime: Runtime,
                 score: Callable[..., dict], clock: Callable[[], float]):
        self.data, self.tokenizer, self.config, self.runtime = data, tokenizer, config, runtime
        self.score, self.clock = score, clock
        self.samples = data.split(config.data.val_split)[:config.train.val_samples or None]
        self.count, self.started = 0, 0.0  # validations of this process; when the last one started

    def run(self, model) -> dict | None:
        """The report; None where there are no samples."""
        self.started, self.count = self.clock(), self.count + 1
        if not len(self.samples):
            return None
        return self.score(model, self.data, self.samples, self.tokenizer, self.config, runtime=self.runtime)

    def seconds_since(self, started: float) -> float:
        """Seconds of the validation and the saves around it, the mean over the ranks. Of this process's first
        validation, the first batch counts as the others do, since it may have compiled the network."""
        ended, first = self.clock(), self.runtime.watch.compiled_at  # the latter: end of the first batch
        batches = math.ceil(len(self.samples) / self.runtime.ranks / self.config.eval.batch_size)
        seconds = ended - started
        if self.count == 1 and first and batches > 1:
            seconds -= max(0.0, first - self.started - (ended - first) / (batches - 1))
        total = ranks.all_reduce_sum(np.array([round(1000 * seconds)]), self.runtime)[0]
        return float(total) / 1000 / self.runtime.ranks


def _judged_by(config: Config) -> tuple:
    """The settings that scores must have in common to be comparable."""
    data, judge = config.data, config.eval
    return (data.val_split, data.sentence_field, data.overlap, config.train.val_samples, config.train.best_by,
            judge.threshold, judge.target_threshold, judge.min_pixels)
