"""What a device check runs, each part in a process of its own: what crashes or hangs there ends no other part, and each
has the device to itself.

``networks`` computes one network on the CPU and on the device (run_case.py) and compares the results (compare.py);
``trainings`` runs the real commands: a short training on RefShapes, then evaluation and export of the shipped model.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from mindspore_coupalign.config import Config, config_to_dict
from mindspore_coupalign.data.refshapes.dataset import make_shapes
from mindspore_coupalign.device_check.compare import Row, compare
from mindspore_coupalign.distributed.process import reason, run_child

REFERENCE = ("CPU", "O0")
RUN_CASE = "mindspore_coupalign.device_check.run_case"
MAIN, CONFIG, SHIPPED = "mindspore_coupalign", "refshapes_tiny", "refshapes"
SCENES = (2000, 200)  # in train and val
LINES = 6  # of the table of losses
# Two trainings diverge by rounding: their final losses differ as those of two seeds; the scores of one checkpoint by
# pixels on the threshold
CURVE, SCORE = 0.1, 0.1  # relative; points of oIoU
LOG = 4000  # last characters of a failed process's output, for the report


@dataclass
class Result:
    """Of one process, or of several that belong together."""

    name: str
    why: str = ""  # the cause, where it failed
    log: str = ""  # the end of its output, where it failed
    rows: list = field(default_factory=list)
    facts: dict = field(default_factory=dict)
    lines: list = field(default_factory=list)  # to print

    @property
    def good(self) -> bool:
        return not self.why and all(row.good for row in self.rows)

    def report(self) -> dict:
        return asdict(self) | {"good": self.good, "rows": [row._asdict() | {"good": row.good} for row in self.rows]}


def run(module: str, *arguments) -> tuple[str, str]:
    """Run ``python -m MODULE`` to its end: why it failed, in a line, and the end of its output; "" where it did not."""
    ended = run_child([sys.executable, "-m", module, *map(str, arguments)], stdin=subprocess.DEVNULL,
                      stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return (reason(ended.code, ended.out), ended.out[-LOG:]) if ended.code else ("", "")


def networks(folder: Path, config: Config, vocabulary: int, target: str, levels: list) -> Iterator[Result]:
    """Compute a configuration's network on the CPU and on ``target`` at each level, and compare.

    Where the CPU itself fails there is nothing to compare with, and that is the only result.
    """
    folder.mkdir()
    (folder / "case.json").write_text(json.dumps({"config": config_to_dict(config), "vocabulary": vocabulary}))
    for number, (place, amp) in enumerate((REFERENCE, *((target, level) for level in levels))):
        output = folder / str(number)
        output.mkdir()
        name = f"{place} {amp}" + ", the reference" * (number == 0)
        result = Result(name, *run(RUN_CASE, folder, output, place, amp))
        if (output / "facts.json").exists():
            result.facts = json.loads((output / "facts.json").read_text())
        if number > 0:
            result.rows = compare(folder, output, folder / "0", half=amp != "O0")
        yield result
        if number == 0 and result.why:
            return


def trainings(folder: Path, target: str, levels: list, steps: int) -> Iterator[Result]:
    """Train on the CPU and on ``target`` at each level; then score and export the shipped model there."""
    folder.mkdir()
    runs: dict[str, list] = {}
    for place, amp in (REFERENCE, *((target, level) for level in levels)):
        name = f"{place} {amp}" + " again" * (f"{place} {amp}" in runs)
        result, runs[name] = train(folder, name, place, amp, steps)
        reference = next(iter(runs.values()))
        if len(runs) > 1 and not result.why:
            result.rows = [compare_trainings(runs[name], reference)]
        yield result
        if len(runs) == 1 and result.why:
            return
    yield Result("mean loss of steps", lines=table(runs, steps))
    yield from shipped(folder, target)


def shipped(folder: Path, target: str) -> Iterator[Result]:
    """Evaluate the shipped model, export it, and evaluate the MINDIR on a target."""
    expected, result = score(folder, "checkpoint", SHIPPED, "CPU")
    yield result
    if result.why:
        return
    mindir = folder / "coupalign.mindir"
    exported = Result(f"{target}: export, which compares the MINDIR with the checkpoint", *run(
        MAIN, "export", "--checkpoint", SHIPPED, "--output", mindir, "--device-target", target, "--amp", "O0"))
    yield exported
    for kind, file in (("checkpoint", SHIPPED), *((("mindir", mindir),) if exported.good else ())):
        oiou, result = score(folder, kind, file, target)
        if result.good:
            result.rows = [Row("oIoU", f"{oiou:.2f}, on the CPU {expected:.2f}", abs(oiou - expected), SCORE)]
        yield result


def train(folder: Path, name: str, target: str, amp: str, steps: int) -> tuple[Result, list]:
    """Train for so many steps on data that the first call draws: the result, and the loss of each step, NaN for a
    non-finite one."""
    if not (folder / "shapes").exists():
        train_scenes, val_scenes = SCENES
        make_shapes(folder / "shapes", train=train_scenes, val=val_scenes, testA=1, testB=1)
    output = folder / name.replace(" ", "_")
    result = Result(f"{name}: training on RefShapes", *run(
        MAIN, "train", "--config", CONFIG, "--device-target", target, "--output", output,
        f"data.root={folder / 'shapes'}", f"train.amp={amp}", f"train.steps={steps}", "train.minutes=0",
        "train.log_every=1", f"train.val_every={steps}"))
    log = output / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    losses = [line["loss"] for line in lines if "loss" in line]  # null where a loss scale was too high
    return result, [np.nan if loss is None else loss for loss in losses]


def compare_trainings(losses: list, reference: list) -> Row:
    """By the mean loss of the last tenth of the steps."""
    last = max(1, len(reference) // 10)
    ours, theirs = _mean(losses[-last:]), _mean(reference[-last:])
    if len(losses) < len(reference) or np.isfinite(losses[-last:]).mean() < 0.5:
        ours = np.nan
    return Row("training", f"mean loss of the last {last} steps", abs(ours - theirs) / theirs, CURVE)


def table(trainings: dict, steps: int) -> list[str]:
    """Mean losses of equal parts of the trainings, side by side."""
    lines = [f"  {'steps':<12}" + "".join(f"{name:>14}" for name in trainings)]
    for part in np.array_split(np.arange(steps), min(LINES, steps)):
        means = [_mean(losses[part[0]:part[-1] + 1]) if len(losses) > part[-1] else np.nan
                 for losses in trainings.values()]
        lines.append(f"  {f'{part[0] + 1} to {part[-1] + 1}':<12}" + "".join(f"{mean:>14.4f}" for mean in means))
    return lines


def _mean(losses: list) -> float:
    """Of those that are finite; NaN where none is."""
    finite = [loss for loss in losses if np.isfinite(loss)]
    return float(np.mean(finite)) if finite else np.nan


def score(folder: Path, kind: str, file: Path | str, target: str) -> tuple[float, Result]:
    """(oIoU on val by ``evaluate`` in float32, NaN where it failed; its result)."""
    output = folder / f"score_{kind}_{target}.json"
    amp = ["--amp", "O0"] if kind == "checkpoint" else []
    result = Result(f"{target}: evaluation of the {kind}", *run(
        MAIN, "evaluate", f"--{kind}", file, "--split", "val", "--output", output, "--device-target", target, *amp,
        f"data.root={folder / 'shapes'}"))
    if result.why:
        return float("nan"), result
    return json.loads(output.read_text())["splits"]["val"]["image"]["oIoU"], result
