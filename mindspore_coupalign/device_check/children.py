"""Processes of a device check: what crashes or hangs there takes nothing else along, and each has the device alone."""

import re
import subprocess
import sys
from pathlib import Path

from mindspore_coupalign.distributed.process import run_child

ERROR = re.compile(r"(error: .*|(?:\w+\.)*\w*(?:Error|Exception|Interrupt)\b.*)")  # as Python ends, or this package


def run(module: str, *arguments, log: Path) -> str:
    """Run ``python -m MODULE`` to its end; "" or the line that says why it failed. All that it says is in ``log``."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    with open(log, "w") as said:
        ended = run_child(command, stdin=subprocess.DEVNULL, stdout=said,
                          stderr=subprocess.STDOUT)
    return "" if ended.code == 0 else reason(ended.code, log.read_text(errors="replace"))


def reason(code: int, said: str) -> str:
    """Why a process ended with a code, from what it said."""
    ended = f"its process ended by signal {-code}" if code < 0 else f"exit code {code}"
    lines = [line.strip() for line in said.splitlines() if line.strip(" -\t")]
    errors = [(i, found[1]) for i, line in enumerate(lines) if (found := ERROR.match(line))]
    if not errors:
        return f"{ended}: {lines[-1][:300]}" if lines else ended
    at, text = errors[-1]
    return f"{ended}: {' '.join([text, *lines[at + 1:at + 3]])[:400]}"
