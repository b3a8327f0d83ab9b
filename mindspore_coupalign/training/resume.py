"""Going on from a checkpoint: what of its configuration may change on the way, and what may not."""

import re

from mindspore_coupalign.config import Config, config_to_dict
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.weights.checkpoint import Checkpoint

# Everything else decides what is learned: a run that changes it is another run.
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
    found = []
    for key in now:
        old, new = before.get(key), now[key]
        if isinstance(new, dict):
            found += differences(old or {}, new, f"{prefix}{key}.")
        elif isinstance(old, list) and _are_sections(old) and _are_sections(new) and len(old) == len(new):
            for i, (first, second) in enumerate(zip(old, new, strict=True)):
                found += differences(first, second, f"{prefix}{key}[{i}].")
        elif old != new:
            found.append((prefix + key, old, new))
    return found


def _are_sections(value) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, dict) for entry in value)


def check_resumable(state: Checkpoint, config: Config) -> list:
    """Lines that name each difference to the checkpoint's configuration.

    Raises:
        UserError: a difference that would make it another run, or a checkpoint without a training state.
    """
    if "updates" not in state.progress:
        raise UserError(f"{state.path}: holds weights without a training state; resume from last.safetensors")
    changed = differences(config_to_dict(state.config), config_to_dict(config))
    forbidden = [entry for entry in changed if re.sub(r"\[\d+\]", "", entry[0]) not in MAY_CHANGE]
    if forbidden:
        listed = "; ".join(f"{name} was {old!r}, now {new!r}" for name, old, new in forbidden)
        raise UserError(f"{state.path}: its run had another configuration: {listed}; set it back, or start a new run "
                        "with another --output")
    return [f"{name}: was {old!r}, goes on with {new!r}" for name, old, new in changed]
