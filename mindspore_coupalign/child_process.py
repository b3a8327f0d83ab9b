"""A child process that is waited for: what ends the wait, at any moment, ends the child."""

import contextlib
import math
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import NamedTuple

from mindspore_coupalign.interrupts import heard

LOOK = 0.2  # seconds between looks whether Ctrl-C was pressed


class Ended(NamedTuple):
    """A child process at its end and what it has said into pipes; ``late``: it was killed because its time was up."""

    code: int
    out: str
    err: str
    late: bool = False


def run_child(command: list, given: str | None = None, limit: float = math.inf, **options) -> Ended:
    """Run a process to its end, or for ``limit`` seconds; ``options`` are those of ``subprocess.Popen``, in text mode.

    Unlike ``subprocess.run`` it hears of Ctrl-C. Whatever ends the wait ends the child, and with
    ``start_new_session`` all that the child has started.

    Args:
        given: what the child reads, if ``options`` have a pipe for its standard input.
    """
    child, late, until = None, False, time.monotonic() + limit
    try:
        with _held():
            child = subprocess.Popen(command, errors="replace", **options)
        while True:
            try:
                out, err = child.communicate(given, timeout=LOOK)
                return Ended(child.returncode, out or "", err or "", late)
            except subprocess.TimeoutExpired:
                given = None  # it has it
            if time.monotonic() > until and not late:
                late = True
                _kill(child, **options)
    finally:
        if child is not None and child.returncode is None:
            _kill(child, **options)
            child.wait()


def _kill(child: subprocess.Popen, start_new_session: bool = False, **_):
    if start_new_session:
        os.killpg(child.pid, signal.SIGKILL)
    else:
        child.kill()


@contextlib.contextmanager
def _held() -> Iterator[None]:
    """Signals that end take effect at the end of this block: in between nobody would know of a half-started child."""
    arrived: list[int] = []
    before = {number: signal.signal(number, lambda arriving, _: arrived.append(arriving))
              for number in heard()}  # a child inherits what is ignored
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if arrived:
            os.kill(os.getpid(), arrived[0])
