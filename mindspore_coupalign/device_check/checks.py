"""Which processes a device check runs, one after the other, and what it makes of their results."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mindspore_coupalign.config import Config, config_to_dict
from mindspore_coupalign.device_check import children, trained
from mindspore_coupalign.device_check.compared import Row, compare

REFERENCE = ("CPU", "O0")
COMPUTED = "mindspore_coupalign.device_check.computed"
SAID = 4000  # last characters of what a failed process has said, for the report


@dataclass
class Result:
    """Of one process or of several that belong together."""

    name: str
    why: str = ""  # where it failed
    rows: list = field(default_factory=list)
    facts: dict = field(default_factory=dict)
    log: str = ""
    lines: list = field(default_factory=list)  # to print

    @classmethod
    def of(cls, name: str, why: str, log: Path) -> "Result":
        return cls(name, why, log=log.read_text(errors="replace")[-SAID:] if why else "")

    @property
    def good(self) -> bool:
        return not self.why and all(row.good for row in self.rows)

    def report(self) -> dict:
        return asdict(self) | {"good": self.good, "rows": [row._asdict() | {"good": row.good} for row in self.rows]}


def networks(folder: Path, config: Config, vocabulary: int, target: str, levels: list) -> Iterator[Result]:
    """Compute a configuration's network on the CPU and on ``target`` at each level, and compare.

    Where the CPU itself fails there is nothing to compare with, and that is the only result.
    """
    folder.mkdir()
    (folder / "case.json").write_text(json.dumps({"config": config_to_dict(config), "vocabulary": vocabulary}))
    for number, (place, amp) in enumerate((REFERENCE, *((target, level) for level in levels))):
        output = folder / str(number)
        output.mkdir()
        why = children.run(COMPUTED, folder, output, place, amp, log=output / "log")
        result = Result.of(f"{place} {amp}" + ", the reference" * (number == 0), why, output / "log")
        if (output / "facts.json").exists():
            result.facts = json.loads((output / "facts.json").read_text())
        if number > 0:
            result.rows = compare(folder, output, folder / "0", half=amp != "O0")
        yield result
        if number == 0 and why:
            return


def trainings(folder: Path, target: str, levels: list, steps: int) -> Iterator[Result]:
    """Train on the CPU and on ``target`` at each level; then score and export the shipped model there."""
    folder.mkdir()
    runs: dict[str, trained.Training] = {}
    for place, amp in (REFERENCE, *((target, level) for level in levels)):
        name = f"{place} {amp}" + " again" * (f"{place} {amp}" in runs)
        run = trained.train(folder, name.replace(" ", "_"), place, amp, steps)
        result = Result.of(f"{name}: training on RefShapes", run.why, run.folder.with_suffix(".log"))
        runs[name] = run
        reference = next(iter(runs.values()))
        if len(runs) > 1 and not run.why:
            result.rows = [trained.compare(run, reference)]
        yield result
        if reference.why:
            return
    yield Result("mean loss of steps", lines=trained.table(runs, steps))
    yield from shipped(folder, target)


def shipped(folder: Path, target: str) -> Iterator[Result]:
    """What one does with a trained model, the package's, on a target: evaluate, export, evaluate the MINDIR."""
    expected, why = trained.score(folder, "checkpoint", trained.SHIPPED, "CPU")
    yield Result.of("CPU: evaluation of the shipped model", why, folder / "score_checkpoint_CPU.log")
    if why:
        return
    mindir = folder / "coupalign.mindir"
    why = trained.export(mindir, target)
    exported = Result.of(f"{target}: export, which compares the MINDIR with the checkpoint", why,
                         mindir.with_suffix(".log"))
    yield exported
    for kind, file in (("checkpoint", trained.SHIPPED), *((("mindir", mindir),) if exported.good else ())):
        found, why = trained.score(folder, kind, file, target)
        result = Result.of(f"{target}: evaluation of the {kind}", why, folder / f"score_{kind}_{target}.log")
        if not why:
            result.rows = [Row("oIoU", f"{found:.2f}, on the CPU {expected:.2f}", abs(found - expected), trained.SCORE)]
        yield result
