"""This process (where it computes, which of a job's ranks it is), and child processes that are no ranks."""

import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from mindspore_coupalign.distributed.watchdog import Watch
from mindspore_coupalign.interrupts import descendants, kill

ERROR = re.compile(r"error: |(\w+\.)*\w*(Error|Exception|Interrupt)\b")  # how this package ends, and Python


@dataclass(frozen=True)
class Runtime:
    """What ``runtime.setup`` has set up."""

    target: str  # CPU, GPU or Ascend
    rank: int
    ranks: int
    watch: Watch = field(default_factory=lambda: Watch(None))


def environment_alone() -> dict:
    """This process's environment for a child with the same package on the same device, which is no rank of its job."""
    place = {name: value for name, value in os.environ.items()
             if not name.startswith(("MS_ROLE", "MS_SCHED", "MS_WORKER_NUM", "COUPALIGN_"))
             or name == "COUPALIGN_PARTS"}  # modules with parts of the user's
    root = str(Path(__file__).resolve().parents[2])
    return place | {"PYTHONPATH": os.pathsep.join([root, *filter(None, [place.get("PYTHONPATH")])])}


def in_a_job() -> bool:
    """Whether msrun has started this process, which has other ranks beside it then."""
    return bool(os.environ.get("MS_ROLE"))


def is_scheduler() -> bool:
    """Whether msrun has started this process to serve the ranks, and not as one of them."""
    return os.environ.get("MS_ROLE") == "MS_SCHED"


class Ended(NamedTuple):
    """A child process that has ended, and what it has written into pipes; ``late``: it was killed at its time limit."""

    code: int
    out: str
    err: str
    late: bool = False


def reason(code: int, output: str) -> str:
    """How a process ended, in a line: its signal or exit code, and the last error in its output."""
    ended = f"its process ended by {f'signal {-code}' if code < 0 else f'exit code {code}'}"
    lines = [line.strip() for line in output.splitlines() if line.strip(" -\t")]
    last = max((i for i, line in enumerate(lines) if ERROR.match(line)), default=len(lines) - 1)
    return f"{ended}: {' '.join(lines[last:last + 3])[:400]}" if lines else ended


def run_child(command: list, given: str | None = None, limit: float | None = None, **options) -> Ended:
    """Run a process that is no rank of this job to its end; whatever ends the wait kills it and all it has started.

    Args:
        given: what the child reads, if ``options`` have a pipe for its standard input.
        limit: seconds that it may take.
        options: those of ``subprocess.Popen``, in text mode.
    """
    late = False
    with subprocess.Popen(command, errors="replace", env=environment_alone(), **options) as child:
        try:
            out, err = child.communicate(given, timeout=limit)
        except subprocess.TimeoutExpired:
            late = True
            kill([*descendants(child.pid), child.pid])
            out, err = child.communicate()
        finally:
            if child.poll() is None:
                kill([*descendants(child.pid), child.pid])
    return Ended(child.returncode, out or "", err or "", late)
