"""The training loop around one jitted step (step.py). run_folder.py lists the files that it writes."""

import contextlib
import math
import signal
import time
from collections import deque
from pathlib import Path

import mindspore as ms
import numpy as np

from mindspore_coupalign import build
from mindspore_coupalign.config import Config
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
from mindspore_coupalign.evaluation.evaluator import evaluate_samples, report
from mindspore_coupalign.interrupts import StopRequest
from mindspore_coupalign.mindspore_calls import assign
from mindspore_coupalign.models.noise import draw_keys
from mindspore_coupalign.portable import without_absolute_paths
from mindspore_coupalign.training import init_from, setup
from mindspore_coupalign.training.console import Bar, Console
from mindspore_coupalign.training.launched import Launched, steps_ahead
from mindspore_coupalign.training.run_folder import RunFolder
from mindspore_coupalign.training.schedule import Budget, learning_rate
from mindspore_coupalign.training.step_log import Speed, StepLog
from mindspore_coupalign.weights.checkpoint import Checkpoint, load_parameters, named_arrays


class Trainer:
    """Holds what the loop needs; ``train`` runs it to the end and returns the last validation's report.

    ``data`` is validated on, and trained on as well unless there is a ``union``.
    """

    def __init__(self, config: Config, data: ReferData, tokenizer: SentenceTokenizer, output: Path,
                 runtime: Runtime, state: Checkpoint | None = None,
                 initial: init_from.InitialWeights | None = None, union: UnionData | None = None):
        self.config, self.data, self.tokenizer, self.runtime, self.state = config, data, tokenizer, runtime, state
        self.train_data, self.train_split = (union, "train") if union else (data, config.data.train_split)
        self.initial, train = initial, config.train
        self.run = RunFolder(output, train.keep, runtime.rank == 0)
        self.console = Console(runtime.rank == 0)
        self.log = self.console.log
        self.step_log = StepLog(self.run, train.max_nonfinite_steps)
        self._find_samples()
        self.model = self._build_model()
        self.step = setup.build_train_step(self.model, config, runtime.ranks, runtime.target)
        self.ahead = runtime.watch.ahead = steps_ahead(runtime.target)
        self.done, self.best, self.spent = 0, -1.0, 0.0  # steps, score, seconds of earlier runs that this one resumes
        self.seen = ""  # what _seen_images has found
        self.validated = 0  # step of the last validation
        self.validations = 0  # of this process
        self.stop, self.code = StopRequest(patient=runtime.watch.folder is not None), 0  # of the process, at its end
        self.started = time.perf_counter()
        if state is not None:
            self._restore(state)
        self.launched = self.done  # steps; the results of the first ``done`` of them are read
        self.budget = Budget.of_run(config, state, math.ceil(len(self.val_samples) / train.batch_size), self.ahead)

    def _find_samples(self):
        """The refs of an epoch, the samples of a validation, and how many steps there are of either.

        Raises:
            UserError: nothing to train on.
        """
        train, names, data = self.config.train, self.config.data, self.data
        self.refs = refs = self.train_data.epoch_size(self.train_split)
        if refs == 0:
            raise UserError(f"{data.source}: split '{names.train_split}' has no refs with sentences to train on")
        self.total = train.steps or math.ceil(train.epochs * refs / train.batch_size)
        self.val_every = train.val_every or math.ceil(refs / train.batch_size)
        self.val_samples = data.split(names.val_split)
        if train.val_samples:
            self.val_samples = self.val_samples[:train.val_samples]
        self.turned_said = False  # whether EXIF orientations were mentioned
        if self.runtime.rank == 0:
            splits = {} if self.train_data is not data else {names.train_split: data.split(names.train_split)}
            lines = data_warnings(data, {**splits, names.val_split: self.val_samples}, self.tokenizer, names)
            if isinstance(self.train_data, UnionData):
                parts = {part.label: self.train_data.part_samples(part) for part in self.train_data.parts}
                lines = data_warnings(self.train_data, parts, self.tokenizer, names) + lines
            lines += no_target_warnings(self.train_data, self.train_data.split(self.train_split),
                                        self.config.model.no_target)
            for line in lines:
                self.log(line)

    def _build_model(self):
        model = build.build_model(self.config, self.tokenizer.vocab_size)
        if self.initial is not None:
            self.initial.load(model, self.config)
            for line in self.initial.lines:
                self.log(line)
        elif self.state is None:  # else every parameter comes from the checkpoint
            for loaded in build.load_pretrained(model, self.config):
                self.log(loaded.table())
        return model

    def _restore(self, state: Checkpoint):
        source, progress = str(state.path), state.progress
        load_parameters(self.model.get_parameters(), state.section("model"), source)
        self.step.restore(state.section, progress, source)
        self.done, self.best, self.spent = (progress[key] for key in ("step", "best", "seconds"))
        self.validated = progress["validated"]
        self.step_log.restore(progress)
        if _judged_by(state.config) != _judged_by(self.config):
            self.best = -1.0

    def is_over(self) -> bool:
        """Whether no step is to be launched any more."""
        return self.launched >= self.total or self.budget.over

    def _is_due(self) -> bool:
        """Whether the validation of the step just done, with none on its way, is still to come."""
        return self.validated < self.done and (self.is_over() or self.done % self.val_every == 0)

    def _ends_with(self, step: int) -> bool:
        """Whether the run saves, validates or ends after this step: the next one is not launched before."""
        return step >= self.total or step % self.val_every == 0 or self._saves_after(step)

    def _saves_after(self, step: int) -> bool:
        save_every = self.config.train.save_every
        return save_every > 0 and step % save_every == 0

    def train(self) -> dict | None:
        if self.is_over() and not self._is_due():
            source = self.run.path if self.state is None else self.state.path
            self.log(f"{source}: trained to its end at step {self.done}; raise train.steps, train.epochs or "
                     "train.minutes to go on")
            return None
        self._open()
        shown = None if self.config.train.minutes else self.total
        with contextlib.closing(self.run), self.stop, self.console.bar(shown, self.done) as bar:
            stops, result = self._loop(bar)
            if stops:
                self.log(f"asked to stop: the state of step {self.done} is saved; go on with --resume {self.run.path}")
                self.runtime.watch.ending = "stopped"
            ranks.wait(self.runtime)  # rank 0 may still be saving
        if stops:  # else it was not asked, or too late; without a signal of its own, another rank was asked
            self.code = 128 + (self.stop.received or int(signal.SIGTERM))
        return result

    def _loop(self, bar: Bar) -> tuple:
        """Steps, lines of the log, validations and saved states until the end: (was it asked to stop, last report)."""
        train, stream, stops = self.config.train, self.micro_batches(), False
        # asked to stop just before a validation, the earlier run has left it to this one
        result = self._save(validates=True) if self._is_due() else None
        speed, waiting = Speed(train.batch_size), deque[Launched]()
        while waiting or not (stops or self.is_over()):
            if self._launches(waiting, stops):
                waiting.append(self._launch_after(waiting, stream, speed, bar))
                continue
            stops |= self._finish(waiting, speed, bar)
            if waiting:  # what is saved and validated is the state of a step whose results are read
                continue
            validates = self._is_due() and not stops
            if validates or stops or self._saves_after(self.done):
                paused = time.perf_counter()
                result = self._save(validates) or result
                speed.pause(time.perf_counter() - paused)
        return stops, result

    def _launches(self, waiting: deque, stops: bool) -> bool:
        """Whether to launch a step, and not to read the first of those that are ``waiting`` for that."""
        if stops or self.is_over():
            return False
        return not waiting or (len(waiting) <= self.ahead and not self._ends_with(self.launched))

    def _launch_after(self, waiting: deque, stream, speed: Speed, bar: Bar) -> Launched:
        """The next step; if it cannot be launched, as with a damaged image, those before it are not lost for that."""
        try:
            return self.launch(stream, self.next_lr())
        except UserError:
            while waiting:
                self._finish(waiting, speed, bar)
            raise

    def _finish(self, waiting: deque, speed: Speed, bar: Bar) -> bool:
        """Read the first step that is waiting, and tell of it; whether a rank had been asked to stop."""
        step = waiting.popleft()
        results = self.results(step)
        bar.step()
        speed.step()
        self.step_log.note(self.done, results, self._samples_of_step)
        for line in self.budget.warnings():
            self.log(line)
        if self.done % self.config.train.log_every == 0 or (self.is_over() and not waiting):
            self._log_losses(step.lr, results["scale"], speed.take(), bar)
        return results["stop"] > 0

    def next_lr(self) -> float:
        """The learning rate of the next step."""
        return learning_rate(self.config, self.launched, self.total, self.budget.share, self.refs)

    def _save(self, validates: bool) -> dict | None:
        started = time.perf_counter()
        self.runtime.watch.enter("saving", self.done, compiles=validates)
        self.step.share_statistics(self.runtime)
        self._save_state()  # before a validation, which may take long and may meet a damaged image
        result = None
        if validates:
            result = self.validate()
            self._save_state(again=True)
            self.validations += 1
        self.budget.pause(self._without_compiling(started) if validates and self.config.train.minutes else 0.0)
        return result

    def _without_compiling(self, started: float) -> float:
        """Seconds of the saves and the validation since then, the mean over the ranks; the first batch counts as the
        others do, since it may have compiled the network."""
        ended, first = time.perf_counter(), self.runtime.watch.compiled_at
        batches = math.ceil(len(self.val_samples) / self.runtime.ranks / self.config.eval.batch_size)
        seconds = ended - started
        if self.validations == 1 and first and batches > 1:
            seconds -= max(0.0, first - self.validation_started - (ended - first) / (batches - 1))
        total = ranks.all_reduce_sum(np.array([round(1000 * seconds)]), self.runtime)[0]
        return float(total) / 1000 / self.runtime.ranks

    def micro_batches(self):
        """Endless from the next step on: image, ids, word_mask, mask, sample of this rank's share of a micro-batch."""
        names, train = self.config.data, self.config.train
        transform = ImageTransform(names.image_size, names.mean, names.std)
        self.source = TrainSource(self.train_data, self.train_split, self.tokenizer, transform, train.seed,
                                  train.batch_size, names.flip, (self.done, self.total), self.runtime.rank,
                                  self.runtime.ranks, names.sentence_field, names.overlap)
        return batches(self.source, self.source.local // train.accumulate, names.workers)

    def one_step(self, stream, lr: float) -> dict:
        """Take a step and wait for it, so that it can be timed."""
        return self.results(self.launch(stream, lr))

    def launch(self, stream, lr: float) -> Launched:
        """One update from ``train.accumulate`` micro-batches, whose results are still to be read."""
        train, outputs, watch, compiles = self.config.train, [], self.runtime.watch, not self.step.compiled
        clock = self._seconds() / (60 * train.minutes) if train.minutes else 0.0
        for micro in range(train.accumulate):
            watch.enter("loading", self.launched)
            arrays = next(stream)[:4]
            image, ids, word_mask, mask = map(ms.Tensor.from_numpy, arrays)  # without a copy, unlike ms.Tensor
            watch.enter("step", self.launched, compiles=not self.step.compiled)
            keys = draw_keys(self.step.keys.size, train.seed, self.runtime.rank, self.launched, micro)
            last = micro == train.accumulate - 1
            if self.runtime.target == "CPU":  # elsewhere collectives wait for much longer
                watch.barrier()
            outputs.append(self.step(image, ids, word_mask, mask, ms.Tensor(np.float32(lr)), keys,
                                     (self.stop.received > 0, clock), last))
            if compiles:  # another rank may compile for longer; the watch is patient with who waits in such a step
                outputs[micro].asnumpy()
            elif micro >= self.ahead:  # wait: no more micro-batches than that may lie on the device
                outputs[micro - self.ahead].asnumpy()
        self.launched += 1
        return Launched(self.launched, lr, outputs)

    def results(self, step: Launched) -> dict:
        """RESULTS of the first step that is not read yet, by name, losses as means over its micro-batches."""
        results, minutes = step.read(), self.config.train.minutes
        self.done = step.number
        if self.launched > self.done:
            self.runtime.watch.enter("step", self.launched - 1)  # the rest has its time from now on
        self.budget.note(results["clock"] / self.runtime.ranks * 60 * minutes, self.done)
        return results

    def _samples_of_step(self) -> dict:
        """The samples of the step just done, with their refs and sentences."""
        batch, data = self.config.train.batch_size, self.train_data
        samples = [self.source.sample_at((self.done - 1) * batch + i) for i in range(batch)]
        refs = data.sentence_ref[samples]
        found = {"samples": samples, "refs": data.ref_ids[refs].tolist(),
                 "sentences": [data.sentence(s, self.config.data.sentence_field) for s in samples]}
        return found | ({"sets": [data.part_of(r) for r in refs]} if isinstance(data, UnionData) else {})

    def _seconds(self) -> float:
        return self.spent + time.perf_counter() - self.started

    def validate(self) -> dict | None:
        """Score the validation samples with the averaged weights where there are any; keep the best."""
        self.validated, self.validation_started = self.done, time.perf_counter()
        with _Averaged(self.step):
            result = None
            if len(self.val_samples):
                scores = evaluate_samples(self.model, self.data, self.val_samples, self.tokenizer, self.config,
                                          runtime=self.runtime)
                result = report(self.data, scores)
                score = result["image"][self.config.train.best_by]
                self.run.log({"step": self.done, "val": result})
                named = (f"{name} {result['image'][name]:.2f}" for name in ("oIoU", "mIoU", "P@0.5", "N_acc", "T_acc")
                         if name in result["image"])  # the last two where sentences mean nothing
                self.log(f"step {self.done}: {self.config.data.val_split} {'  '.join(named)}  "
                         f"({len(self.val_samples)} sentences, image's own size)")
            if result is None or score > self.best:
                self.best = score if result else self.best
                self.run.save_best(named_arrays(self.model.get_parameters(), "model"),
                                   without_absolute_paths(self.config), *self._about()[1:])
        return result

    def _save_state(self, again: bool = False):
        """``again``: in place of the newest state, which is of the same step."""
        arrays = named_arrays(self.model.get_parameters(), "model")
        for section, state in self.step.states().items():
            arrays |= {f"{section}.{name}": array for name, array in state.items()}
        unlogged = {"validated": self.validated, **self.step_log.state()}
        self.run.save_state(arrays, *self._about(self.step.counters() | unlogged), again=again)

    def _about(self, counters: dict | None = None) -> tuple[Config, str, dict]:
        """Configuration, tokenizer and progress, as checkpoints keep them."""
        progress = {"step": self.done, "best": self.best, "seconds": round(self._seconds(), 1),
                    "seen_images": self._seen_images()}
        if self.config.train.minutes:
            progress |= {"decay_share": self.budget.share,
                         "finished_minutes": self.config.train.minutes if self.budget.over else 0.0}
        return self.config, self.tokenizer.to_json(), progress | (counters or {})

    def _seen_images(self) -> str:
        """The hashes of the pictures that the weights have been trained on, an earlier run's included."""
        if self.runtime.rank == 0 and not self.seen:
            started = self.state or (self.initial.checkpoint if self.initial else None)
            before = (started.progress, str(started.path)) if started else ()
            self.seen = seen_with(image_paths(self.train_data, self.train_split), *before)
        return self.seen

    def _open(self):
        self.run.open(self.config, self.done, self.validated, self.state.path if self.state else None)
        if self.initial is not None:
            self.run.log({"step": 0, "init_from": self.initial.facts})
        ranks.broadcast(self.model.get_parameters(), self.runtime)
        train = self.config.train
        parameters = sum(p.size for p in self.model.trainable_params())
        length = f"{train.minutes:g} minutes, at most " if train.minutes else ""
        shared = f", {self.runtime.ranks} ranks" if self.runtime.ranks > 1 else ""
        trained = " + ".join(names.dataset for names in self.config.data.sets or (self.config.data,))
        self.log(f"{trained}: {length}{self.total - self.done} steps of {train.batch_size} samples on "
                 f"{self.runtime.target}{shared}, {parameters / 1e6:.2f} M parameters, output {self.run.path} "
                 "(the first step compiles the network)")

    def _log_losses(self, lr: float, scale: float, speed: float, bar: Bar):
        text = self.step_log.write(self.done, lr, speed, scale if self.step.scaler is not None else None)
        budget = 60 * self.config.train.minutes
        bar.note(text + (f", {max(0, budget - self._seconds()) / 60:.1f} min left" if budget else ""))
        if self.train_data.turned and not self.turned_said:
            self.turned_said = True
            self.log(exif_warning(self.train_data))


def _judged_by(config: Config) -> tuple:
    """What scores must have in common to be compared."""
    data, judge = config.data, config.eval
    return (data.val_split, data.sentence_field, data.overlap, config.train.val_samples, config.train.best_by,
            judge.threshold, judge.exists_threshold, judge.min_pixels)


class _Averaged:
    """While entered, the model computes with its averaged weights and statistics.

    By ops.assign: after set_data a graph that is compiled already would go on with the old memory.
    """

    def __init__(self, step):
        self.step = step

    def __enter__(self):
        if self.step.ema_decay:
            averages = self.step.averaged()
            self.replaced = [p for p in self.step.objective.get_parameters() if p.name in averages]
            self.kept = [p.asnumpy().copy() for p in self.replaced]
            for parameter in self.replaced:
                assign(parameter, ms.Tensor(averages[parameter.name]))

    def __exit__(self, *_):
        if self.step.ema_decay:
            for parameter, value in zip(self.replaced, self.kept, strict=True):
                assign(parameter, ms.Tensor(value))
