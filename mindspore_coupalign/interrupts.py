"""Ctrl-C, SIGTERM and SIGHUP: a training finishes its step and saves, any other command removes what is half made, ends
its child processes and ends with 130, 143 or 129. Needs no MindSpore.

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
GRACE = 5.0  # seconds after a signal in which what runs outside of Python (the compiler) may come to its end
ENDINGS = (signal.SIGTERM, signal.SIGHUP)


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
            _end_late(signal.SIGINT)


def unwind_at_the_end():
    """Have SIGTERM and SIGHUP raise SystemExit in the main thread, which calls this; Ctrl-C: KeyboardInterrupt."""
    for number in ENDINGS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, _unwind)
    arriving, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell)  # written to when the signal comes, while Python's handler waits for Python
    threading.Thread(target=_limit, args=(arriving,), daemon=True).start()
    os.register_at_fork(after_in_child=_as_by_default)


def _unwind(number: int, _):
    raise SystemExit(128 + number)


def _limit(arriving: int):
    while True:
        number = os.read(arriving, 1)[0]
        if signal.getsignal(number) is _unwind:
            _end_late(number)


def _as_by_default():
    """A forked process would tell its parent of signals that it gets itself."""
    signal.set_wakeup_fd(-1)
    for number in ENDINGS:
        if signal.getsignal(number) is _unwind:
            signal.signal(number, signal.SIG_DFL)


def _end_late(number: int):
    """End the process when the main thread has not come back to Python."""
    def end():
        print("interrupted" if number == signal.SIGINT else "terminated", file=sys.stderr, flush=True)
        os._exit(128 + number)

    timer = threading.Timer(GRACE, end)
    timer.daemon = True
    timer.start()


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
    before = {number: handler for number in (signal.SIGINT, *ENDINGS)
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
