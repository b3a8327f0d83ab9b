"""Command ``train``: the training loop around one jitted step.

Files in the output folder: ``config.yaml`` (resolved), ``log.jsonl`` (one line per logged step or validation),
``last.safetensors`` (everything that --resume needs), ``best.safetensors`` (the weights that scored best).
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import mindspore as ms
import numpy as np
import yaml
from mindspore import ops
from tqdm import tqdm

from mindspore_coupalign import build, runtime
from mindspore_coupalign.checkpoint import load_checkpoint, load_parameters, named_arrays, save_checkpoint
from mindspore_coupalign.config import Config, config_to_dict, load_config
from mindspore_coupalign.data.loader import TrainSource, batches
from mindspore_coupalign.data.refer import ReferData, read_refer
from mindspore_coupalign.data.tokenizer import SentenceTokenizer
from mindspore_coupalign.data.transforms import ImageTransform
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.evaluate import evaluate_samples, report
from mindspore_coupalign.train_step import LOSSES


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML, for example configs/refshapes_tiny.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example train.lr=1e-4 data.root=/data")
    parser.add_argument("--output", metavar="DIR",
                        help="where to write (default: the resumed run's folder, or runs/<name of the config file>)")
    parser.add_argument("--resume", metavar="DIR|FILE", help="go on from a run's folder or its last.safetensors")
    runtime.add_device_argument(parser)


def run(args: argparse.Namespace) -> int:
    config = load_config(args.config, args.overrides)
    state = load_checkpoint(_state_file(args.resume)) if args.resume else None
    if args.output or not state:
        output = Path(args.output or Path("runs") / Path(args.config).stem)
    else:
        output = state.path.parent
    if not state and (output / "last.safetensors").exists():
        raise UserError(f"{output}: holds a run already; go on with --resume {output}, or choose another --output")
    here = runtime.setup(args.device_target, config.train.seed)
    if config.train.batch_size % here.ranks:
        raise UserError(f"{args.config}: train.batch_size={config.train.batch_size} is the global batch and must be a "
                        f"multiple of the {here.ranks} ranks")
    data = read_refer(config.data.root, config.data.dataset, config.data.split_by, config.data.images)
    tokenizer = SentenceTokenizer.from_name(config.data.tokenizer, config.data.max_tokens)
    Trainer(config, data, tokenizer, output, here).train(state)
    return 0


def _state_file(resume: str) -> Path:
    path = Path(resume)
    return path / "last.safetensors" if path.is_dir() else path


class Trainer:
    """Holds what the loop needs; ``train`` runs it to the end and returns the last validation's report."""

    def __init__(self, config: Config, data: ReferData, tokenizer: SentenceTokenizer, output: Path,
                 here: runtime.Runtime):
        self.config, self.data, self.tokenizer, self.output, self.here = config, data, tokenizer, output, here
        train, names = config.train, config.data
        refs = len(data.refs_of(names.train_split))
        if refs == 0:
            raise UserError(f"{data.source}: split '{names.train_split}' has no refs to train on")
        self.total = train.steps or math.ceil(train.epochs * refs / train.batch_size)
        self.val_every = train.val_every or math.ceil(refs / train.batch_size)
        self.val_samples = data.split(names.val_split)
        if train.val_samples:
            self.val_samples = self.val_samples[:train.val_samples]
        self.model = build.build_model(config, tokenizer.vocab_size)
        self.step = build.build_train_step(self.model, config, here.ranks)
        self.done, self.best, self.spent = 0, -1.0, 0.0  # steps, score, seconds of earlier runs that this one resumes
        self.started = time.perf_counter()

    def train(self, state=None) -> dict | None:
        if state is not None and (state.progress["step"] >= self.total or self._clock(state.progress["seconds"]) >= 1):
            print(f"{state.path}: trained to its end at step {state.progress['step']}; raise train.steps, train.epochs "
                  "or train.minutes to go on")
            return None
        self._prepare(state)
        names, train, result = self.config.data, self.config.train, None
        transform = ImageTransform(names.image_size, names.mean, names.std)
        source = TrainSource(self.data, names.train_split, self.tokenizer, transform, train.seed, train.batch_size,
                             names.flip, (self.done, self.total), self.here.rank, self.here.ranks)
        window, started = [], time.perf_counter()
        shown = None if train.minutes else self.total
        with tqdm(total=shown, initial=self.done, unit="step", disable=self.here.rank > 0, dynamic_ncols=True,
                  mininterval=0.1 if sys.stderr.isatty() else 30) as bar:  # a log file gets two lines a minute
            for image, ids, word_mask, mask, _ in batches(source, source.local, names.workers):
                clock = self._clock(self._seconds())
                rate = np.float32(build.learning_rate(self.config, self.done, self.total, clock))
                window.append(self.step(*map(ms.Tensor, (image, ids, word_mask, mask)), ms.Tensor(rate)))
                self.done += 1
                bar.update()
                ends = self.done == self.total or clock >= 1
                saves = ends or self.done % self.val_every == 0
                if saves:
                    self._check_finite(window[-1].asnumpy())
                if ends or self.done % train.log_every == 0:
                    losses = np.mean([w.asnumpy() for w in window], 0)
                    self._check_finite(losses)
                    elapsed, count = time.perf_counter() - started, len(window)
                    self._log_losses(losses, rate, count * train.batch_size / elapsed, bar)
                    window, started = [], time.perf_counter()
                if saves:
                    paused = time.perf_counter()
                    result = self.validate(bar)
                    started += time.perf_counter() - paused
                if ends:
                    break
        return result

    def _seconds(self) -> float:
        return self.spent + time.perf_counter() - self.started

    def _clock(self, seconds: float) -> float:
        """Share of the time budget that is used; 0 without a budget."""
        budget = 60 * self.config.train.minutes
        return min(1.0, seconds / budget) if budget else 0.0

    def validate(self, bar=None) -> dict | None:
        """Score the validation samples with the averaged weights where there are any; keep best and last."""
        with _Averaged(self.step):
            result = None
            if len(self.val_samples):
                scores = evaluate_samples(self.model, self.data, self.val_samples, self.tokenizer, self.config)
                result = report(self.data, scores)
                score = result["image"]["oIoU"]
                self._log({"step": self.done, "val": result})
                (print if bar is None else bar.write)(
                    f"step {self.done}: {self.config.data.val_split} oIoU {score:.2f}  mIoU "
                    f"{result['image']['mIoU']:.2f}  P@0.5 {result['image']['P@0.5']:.2f}  "
                    f"({len(self.val_samples)} sentences, image's own size)")
            if result is None or score > self.best:
                self.best = score if result else self.best
                self._save("best", named_arrays(self.model.get_parameters(), "model"))
        arrays = named_arrays(self.model.get_parameters(), "model")
        for section, state in self.step.states().items():
            packed = self.step.optimizer.packing.arrays(state)
            arrays |= {f"{section}.{name}": array for name, array in packed.items()}
        self._save("last", arrays)
        return result

    def _prepare(self, state):
        """Output folder and log; with a checkpoint, the state it holds."""
        if state is not None:
            load_parameters(self.model.get_parameters(), state.section("model"), str(state.path))
            optimizer = self.step.optimizer
            for name, packed in self.step.states().items():
                optimizer.packing.load(packed, state.section(name), str(state.path))
            self.done, self.best, self.spent = (state.progress[key] for key in ("step", "best", "seconds"))
            optimizer.steps.set_data(ms.Tensor(self.done, ms.float32))
        if self.here.rank > 0:
            return
        try:
            self.output.mkdir(parents=True, exist_ok=True)
            (self.output / "config.yaml").write_text(yaml.safe_dump(config_to_dict(self.config), sort_keys=False))
            self._start_log()
        except OSError as exc:
            raise UserError(f"{self.output}: cannot be written ({exc.strerror}); choose another --output") from exc
        parameters = sum(p.size for p in self.model.trainable_params())
        length = f"{self.config.train.minutes:g} minutes, at most " if self.config.train.minutes else ""
        print(f"{self.config.data.dataset}: {length}{self.total - self.done} steps of {self.config.train.batch_size} "
              f"samples on {self.here.target}, {parameters / 1e6:.2f} M parameters, output {self.output} "
              "(the first step compiles the network)", flush=True)

    def _start_log(self):
        """Drop what an earlier run logged after the state that this one starts from."""
        log = self.output / "log.jsonl"
        lines = log.read_text(encoding="utf-8").splitlines(keepends=True) if self.done and log.exists() else []
        log.write_text("".join(line for line in lines if _logged_step(line) <= self.done), encoding="utf-8")

    def _save(self, name: str, arrays: dict):
        if self.here.rank == 0:
            save_checkpoint(self.output / f"{name}.safetensors", arrays, self.config, self.tokenizer.to_json(),
                            {"step": self.done, "best": self.best, "seconds": round(self._seconds(), 1)})

    def _log_losses(self, losses, rate, speed, bar):
        values = dict(zip(LOSSES, map(float, losses), strict=True))
        self._log({"step": self.done, **{k: round(v, 5) for k, v in values.items()}, "lr": float(rate),
                   "samples_per_s": round(speed, 1)})
        budget = 60 * self.config.train.minutes
        left = f", {max(0, budget - self._seconds()) / 60:.1f} min left" if budget else ""
        bar.set_postfix_str(f"loss {values['loss']:.3f}, lr {rate:.1e}, {speed:.0f} samples/s{left}", refresh=False)

    def _check_finite(self, losses):
        """Before anything is saved: a loss that is no number has reached the weights."""
        if not np.isfinite(losses[0]):
            raise UserError(f"step {self.done}: the loss is {losses[0]}; the last good state is in {self.output}; "
                            "lower train.lr or set train.clip_norm")

    def _log(self, entry: dict):
        if self.here.rank == 0:
            with open(self.output / "log.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")


def _logged_step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):  # a line that a kill cut short
        return math.inf


class _Averaged:
    """While entered, the model computes with its averaged weights.

    By ops.assign: after set_data a graph that is compiled already would go on with the old memory.
    """

    def __init__(self, step):
        self.step = step

    def __enter__(self):
        if self.step.ema_decay:
            params, averages = self.step.optimizer.params, self.step.optimizer.packing.arrays(self.step.averages)
            self.kept = [p.asnumpy().copy() for p in params]
            for parameter in params:
                ops.assign(parameter, ms.Tensor(averages[parameter.name]))

    def __exit__(self, *_):
        if self.step.ema_decay:
            for parameter, value in zip(self.step.optimizer.params, self.kept, strict=True):
                ops.assign(parameter, ms.Tensor(value))
