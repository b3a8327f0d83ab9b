"""Where this process computes, and which of a job's ranks it is; ``runtime.setup`` finds it out."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from mindspore_coupalign.distributed.watchdog import Watch


@dataclass(frozen=True)
class Runtime:
    target: str  # CPU, GPU or Ascend
    rank: int
    ranks: int
    watch: Watch = field(default_factory=lambda: Watch(None))


def environment_alone() -> dict:
    """This process's environment for a child with the same package on the same device, which is no rank of its job."""
    place = {name: value for name, value in os.environ.items()
             if not name.startswith(("MS_ROLE", "MS_SCHED", "MS_WORKER_NUM", "COUPALIGN_"))}
    root = str(Path(__file__).resolve().parents[2])
    return place | {"PYTHONPATH": os.pathsep.join([root, *filter(None, [place.get("PYTHONPATH")])])}


def in_a_job() -> bool:
    """Whether msrun has started this process, which has other ranks beside it then."""
    return bool(os.environ.get("MS_ROLE"))


def is_scheduler() -> bool:
    """Whether msrun has started this process to serve the ranks, and not as one of them."""
    return os.environ.get("MS_ROLE") == "MS_SCHED"
