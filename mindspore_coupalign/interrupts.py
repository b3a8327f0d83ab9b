"""Ctrl-C and SIGTERM: a training finishes its step and saves, any other command ends with 130. Needs no MindSpore.

With every compiled call MindSpore takes SIGINT's handler and leaves its own there, which sends the process a SIGTERM.
SIGINT is therefore blocked before any of its threads exists and waited for by a thread of ours.
"""

import _thread
import contextlib
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

LOOK = 0.2  # seconds between looks whether Ctrl-C was pressed
GRACE = 5.0  # seconds after Ctrl-C in which what runs outside of Python (the compiler) may come to its end


def watch_interrupts():
    """Give every SIGINT to Python's handler of the main thread. Call it first of all, in the main thread."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    threading.Thread(target=_pass_on, daemon=True).start()


def _pass_on():
    while True:
        signal.sigwait({signal.SIGINT})
        ends = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        _thread.interrupt_main(signal.SIGINT)
        if ends:
            timer = threading.Timer(GRACE, _end)
            timer.daemon = True
            timer.start()


def _end():
    """The main thread has not come back to Python."""
    print("interrupted", file=sys.stderr, flush=True)
    os._exit(130)


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
    """SIGINT and SIGTERM take effect at the end of this block: in between nobody would know of a half-started child."""
    arrived: list[int] = []
    before = {number: handler for number in (signal.SIGINT, signal.SIGTERM)
              if (handler := signal.getsignal(number)) is not signal.SIG_IGN}  # which a child inherits
    for number in before:
        signal.signal(number, lambda arriving, _: arrived.append(arriving))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if arrived:
            os.kill(os.getpid(), arrived[0])


@contextlib.contextmanager
def unwound_by_sigterm() -> Iterator[None]:
    """In this block SIGTERM raises SystemExit, so that child processes end and half-made folders are removed."""
    def stop(number, _):
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class StopRequest:
    """While entered, a SIGTERM or SIGINT is noted in ``received`` and does not end the process; a second one does.

    Args:
        patient: a second one does not either: a rank may get one from its cluster and one from its launcher, which
            knows when to lose patience.
    """

    def __init__(self, patient: bool = False):
        self.received, self.patient = 0, patient

    def __enter__(self):
        self.previous = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_):
        if self.patient:  # the process ends next, and the last thing it does is to wait for the others
            return
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _note(self, number, _):
        self.received = self.received or int(number)
        self.__exit__()
