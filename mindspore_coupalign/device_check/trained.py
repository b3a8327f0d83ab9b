"""A short training on RefShapes, and what one does with a trained model: the real commands, each in its own process."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mindspore_coupalign.data.refshapes.dataset import make_shapes
from mindspore_coupalign.device_check import children
from mindspore_coupalign.device_check.compared import Row

MAIN, CONFIG, SHIPPED = "mindspore_coupalign", "refshapes_tiny", "refshapes"
SCENES = (2000, 200)  # in train and val
AMP = ["--amp", "O0"]
LINES = 6  # of the table of losses
# Two trainings part ways by rounding: their losses at the end differ as those of two seeds; the scores of one
# checkpoint by pixels on the threshold
CURVE, SCORE = 0.1, 0.1  # relative; points of oIoU


class Training(NamedTuple):
    """Loss of each step, NaN of one that was not finite; the run's folder; why it failed, or ""."""

    losses: list
    folder: Path
    why: str


def train(folder: Path, name: str, target: str, amp: str, steps: int) -> Training:
    """``train`` for so many steps into ``folder/name``, with data that the first call draws."""
    if not (folder / "shapes").exists():
        train_scenes, val_scenes = SCENES
        make_shapes(folder / "shapes", train=train_scenes, val=val_scenes, testA=1, testB=1)
    output = folder / name
    why = children.run(MAIN, "train", "--config", CONFIG, "--device-target", target, "--output", output,
                       f"data.root={folder / 'shapes'}", f"train.amp={amp}", f"train.steps={steps}", "train.minutes=0",
                       "train.log_every=1", f"train.val_every={steps}", log=output.with_suffix(".log"))
    log = output / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    losses = [line["loss"] for line in lines if "loss" in line]  # null where a loss scale was too high
    return Training([np.nan if loss is None else loss for loss in losses], output, why)


def compare(found: Training, reference: Training) -> Row:
    """The mean loss of the last tenth."""
    last = max(1, len(reference.losses) // 10)
    ours, theirs = (_mean(training.losses[-last:]) for training in (found, reference))
    if len(found.losses) < len(reference.losses) or np.isfinite(found.losses[-last:]).mean() < 0.5:
        ours = np.nan
    return Row("training", f"mean loss of the last {last} steps", abs(ours - theirs) / theirs, CURVE)


def table(trainings: dict, steps: int) -> list[str]:
    """Mean losses of equal parts of the trainings, side by side."""
    lines = [f"  {'steps':<12}" + "".join(f"{name:>14}" for name in trainings)]
    for part in np.array_split(np.arange(steps), min(LINES, steps)):
        means = [_mean(t.losses[part[0]:part[-1] + 1]) if len(t.losses) > part[-1] else np.nan
                 for t in trainings.values()]
        lines.append(f"  {f'{part[0] + 1} to {part[-1] + 1}':<12}" + "".join(f"{mean:>14.4f}" for mean in means))
    return lines


def _mean(losses: list) -> float:
    """Of those that are finite; NaN where none is."""
    finite = [loss for loss in losses if np.isfinite(loss)]
    return float(np.mean(finite)) if finite else np.nan


def export(mindir: Path, target: str) -> str:
    """``export`` of the shipped model in float32; why it failed, or ""."""
    return children.run(MAIN, "export", "--checkpoint", SHIPPED, "--output", mindir, "--device-target", target, *AMP,
                        log=mindir.with_suffix(".log"))


def score(folder: Path, kind: str, file: Path | str, target: str) -> tuple[float, str]:
    """(oIoU on val by ``evaluate`` in float32, why it failed or "")."""
    output = folder / f"score_{kind}_{target}.json"
    amp = AMP if kind == "checkpoint" else []
    why = children.run(MAIN, "evaluate", f"--{kind}", file, "--split", "val", "--output", output, "--device-target",
                       target, *amp, f"data.root={folder / 'shapes'}", log=output.with_suffix(".log"))
    if why:
        return float("nan"), why
    return json.loads(output.read_text())["splits"]["val"]["image"]["oIoU"], ""
