"""The files of a training run, written by rank 0 alone, and resuming from them.

``config.yaml``             the resolved configuration
``log.jsonl``               one line per logged step or validation
``skipped.jsonl``           one line per step with a non-finite loss or gradient: its samples and sentences
``last.safetensors``        everything that --resume needs; older ones are last-1, last-2, …; damaged ones that a
                            resumed run has skipped become aside-last, aside-1-last, …
``best.safetensors``        the weights that scored best
"""

import fcntl
import itertools
import json
import os
import re
import shutil
from pathlib import Path

import yaml

from mindspore_coupalign.config import Config, config_to_dict
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.weights.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

MOST_KEPT = 100  # training states


class RunFolder:
    """Args:
        path: the folder; made by ``open``.
        keep: number of training states to keep, the newest included.
        writes: False on ranks other than 0, where every method does nothing.
    """

    def __init__(self, path: Path, keep: int = 1, writes: bool = True):
        self.path, self.keep, self.writes = path, keep, writes
        self.locked: int | None = None  # the folder's descriptor

    def open(self, config: Config, done: int, validated: int = 0, resumed: Path | None = None):
        """Make the folder, lock it against other runs, and drop what an earlier run logged after this one's start.

        Args:
            done: steps that are done.
            validated: the last one that was validated.
            resumed: the state that this run resumes. Newer ones beside it, usually damaged, leave the rotation, where
                they would push good states out. From another folder, the best weights so far are copied.

        Raises:
            UserError: the folder cannot be written, or another run is writing there.
        """
        if not self.writes:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock()
            elsewhere = resumed is not None and not resumed.parent.samefile(self.path)
            (self.path / "config.yaml").write_text(yaml.safe_dump(config_to_dict(config), sort_keys=False))
            for name in ("log.jsonl", "skipped.jsonl"):
                self._cut(self.path / name, *((0, 0) if elsewhere else (done, validated)))
            if resumed is not None:
                self._take_over(resumed, elsewhere)
            for temporary in self.path.glob(".*.tmp"):  # of a run that was killed while it saved
                temporary.unlink()
        except OSError as exc:
            raise UserError(f"{self.path}: cannot be written ({exc.strerror}); choose another --output") from exc

    def _lock(self):
        """A lock on the folder itself ends with the process, however that ends."""
        self.close()
        self.locked = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(self.locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{self.path}: another training is writing there; wait until it ends, or choose another "
                            "--output") from None
        except OSError:  # a file system without locks
            pass

    def close(self):
        if self.locked is not None:
            os.close(self.locked)
            self.locked = None

    def _take_over(self, resumed: Path, elsewhere: bool):
        if elsewhere:
            best = resumed.parent / "best.safetensors"
            if best.exists():
                fresh = self.path / ".best.tmp"
                shutil.copyfile(best, fresh)
                fresh.replace(self.path / best.name)
            return
        states = _states(self.path)
        names = [state.name for state in states]
        if resumed.name not in names:  # a copy that the user made: it is unknown which states are newer
            return
        for state in states[:names.index(resumed.name)]:
            aside = (self.path / f"aside-{f'{count}-' if count else ''}{state.name}" for count in itertools.count())
            state.replace(next(path for path in aside if not path.exists()))

    def _cut(self, file: Path, done: int, validated: int):
        lines = []
        if done and file.exists():
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        if file.exists() or file.name == "log.jsonl":
            fresh = file.with_name(f".{file.name}.tmp")  # a kill while it is rewritten would lose the log
            fresh.write_text("".join(line for line in lines if _is_before(line, done, validated)), encoding="utf-8")
            fresh.replace(file)

    def log(self, entry: dict, name: str = "log.jsonl"):
        """Append a line.

        Raises:
            UserError: the disk is full or the folder gone.
        """
        if not self.writes:
            return
        try:
            with open(self.path / name, "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as exc:
            raise UserError(f"{self.path / name}: cannot be written ({exc.strerror}); the checkpoints in {self.path} "
                            "are good: free some space and continue with --resume") from exc

    def save_best(self, arrays: dict, config: Config, tokenizer: str, progress: dict):
        if self.writes:
            save_checkpoint(self.path / "best.safetensors", arrays, config, tokenizer, progress)

    def save_state(self, arrays: dict, config: Config, tokenizer: str, progress: dict, again: bool = False):
        """Save as last.safetensors; older states are renamed, the oldest is dropped, unless it is saved ``again``.

        A kill at any moment leaves the newest intact state under the first name that exists.
        """
        if self.writes:
            save_checkpoint(self.path / "last.safetensors", arrays, config, tokenizer, progress,
                            before=None if again else self._rotate)

    def _rotate(self):
        states = [self.path / _state_name(age) for age in range(self.keep)]
        for older, newer in zip(states[::-1], states[-2::-1], strict=False):
            if newer.exists():
                newer.replace(older)


def _state_name(age: int) -> str:
    return f"last-{age}.safetensors" if age else "last.safetensors"


def _is_before(line: str, done: int, validated: int) -> bool:
    """Whether a line of the log is of a step up to ``done``, or a validation of one up to ``validated``."""
    try:
        entry = json.loads(line)
        return entry["step"] <= (validated if "val" in entry else done)
    except (ValueError, KeyError, TypeError):  # a line that a kill truncated
        return False


def _states(path: Path) -> list:
    """The existing training states, the newest first."""
    return [file for age in range(MOST_KEPT) if (file := path / _state_name(age)).exists()]


def holds_a_run(path: Path) -> bool:
    return bool(_states(path))


def load_state(resume: str | Path, log=print) -> Checkpoint:
    """A training state: the file, or the newest intact one of a run's folder.

    Args:
        log: called with a line for each damaged state that is skipped.

    Raises:
        UserError: no state, or none that is intact.
    """
    path = Path(resume)
    if not path.is_dir():
        return load_checkpoint(path)
    states = _states(path)
    errors = []
    for state in states or [path / "last.safetensors"]:
        try:
            return load_checkpoint(state)
        except UserError as exc:
            errors.append(exc)
            log(f"warning: {exc}") if len(states) > 1 else None
    raise errors[0]


# Fields that may differ when a run is resumed. All others decide what is learned.
MAY_CHANGE = ("data.root", "data.images", "data.workers", "data.val_split", "data.tokenizer",  # the state holds it
              "data.cache", "data.cache_gb", "data.sets.root", "data.sets.images",
              "model.backbone_weights", "model.text_weights",
              "train.epochs", "train.steps", "train.minutes", "train.val_every", "train.val_samples",
              "train.best_by", "train.recompute", "train.save_every", "train.keep", "train.max_nonfinite_steps",
              "train.step_timeout", "train.heartbeat_timeout",
              "train.compile_timeout", "train.remote_grace", "train.barrier_timeout", "train.log_every",
              "eval.batch_size", "eval.threshold", "eval.target_threshold", "eval.min_pixels")


def differences(before: dict, now: dict, prefix: str = "") -> list:
    """(name, value before, value now) of every field that differs between two resolved configurations."""
    changed = []
    for key in now:
        old, new = before.get(key), now[key]
        if isinstance(new, dict):
            changed += differences(old or {}, new, f"{prefix}{key}.")
        elif isinstance(old, list) and _are_sections(old) and _are_sections(new) and len(old) == len(new):
            for i, (first, second) in enumerate(zip(old, new, strict=True)):
                changed += differences(first, second, f"{prefix}{key}[{i}].")
        elif old != new:
            changed.append((prefix + key, old, new))
    return changed


def _are_sections(value) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, dict) for entry in value)


def check_resumable(state: Checkpoint, config: Config) -> list:
    """Lines that name each difference from the checkpoint's configuration.

    Raises:
        UserError: a field differs that must not, or the checkpoint has no training state.
    """
    if "updates" not in state.progress:
        raise UserError(f"{state.path}: holds weights without a training state; resume from last.safetensors")
    changed = differences(config_to_dict(state.config), config_to_dict(config))
    forbidden = [entry for entry in changed if re.sub(r"\[\d+\]", "", entry[0]) not in MAY_CHANGE]
    if forbidden:
        listed = "; ".join(f"{name} was {old!r}, now {new!r}" for name, old, new in forbidden)
        raise UserError(f"{state.path}: its run had another configuration: {listed}; set it back, or start a new run "
                        "with another --output")
    return [f"{name}: was {old!r}, now {new!r}" for name, old, new in changed]
