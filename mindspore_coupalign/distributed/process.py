"""Where this process computes, and which of a job's ranks it is; ``runtime.setup`` finds it out."""

import os
from dataclasses import dataclass, field

from mindspore_coupalign.distributed.watchdog import Watch


@dataclass(frozen=True)
class Runtime:
    target: str  # CPU, GPU or Ascend
    rank: int
    ranks: int
    watch: Watch = field(default_factory=lambda: Watch(None))


def in_a_job() -> bool:
    """Whether msrun has started this process, which has other ranks beside it then."""
    return bool(os.environ.get("MS_ROLE"))
