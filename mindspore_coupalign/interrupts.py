"""Ctrl-C, SIGTERM and SIGHUP: a training finishes its step and saves, any other command removes what is half made, ends
its child processes and ends with 130, 143 or 129. Needs no MindSpore.

With every compiled call MindSpore takes SIGINT's handler and leaves its own there, which sends the process a SIGTERM.
SIGINT is therefore blocked before any of its threads exists and waited for by a thread of ours.

Python calls no handler before the main thread is back in Python. That a signal has come is told before by
``signal.set_wakeup_fd``: a byte with its number. A handler that does not end the process writes one more, plus TAKEN.
"""

import _thread
import ctypes
import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

GRACE = 5.0  # seconds after a signal in which what runs outside of Python (the compiler) may come to its end
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
TAKEN = 128
half_made: set[Path] = set()  # folders to remove when that time is over
_bell: int | None = None  # where those bytes are written


def watch_interrupts():
    """Give every SIGINT to Python's handler of the main thread. Call it first of all, in the main thread."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    threading.Thread(target=_pass_on, daemon=True).start()


def _pass_on():
    while True:
        signal.sigwait({signal.SIGINT})
        ends = signal.getsignal(signal.SIGINT) in (signal.default_int_handler, _unwind)
        _thread.interrupt_main(signal.SIGINT)
        if ends:
            _end_late(signal.SIGINT)


def unwind_at_the_end():
    """Have Ctrl-C raise KeyboardInterrupt, SIGTERM and SIGHUP raise SystemExit in the main thread, which calls this.
    MindSpore, and what is being imported, comes to its end before: both make a crash of an exception, or print it."""
    for number in heard():
        signal.signal(number, _unwind)
    global _bell
    ear, _bell = os.pipe()
    os.set_blocking(_bell, False)
    signal.set_wakeup_fd(_bell)
    threading.Thread(target=_listen, args=(ear,), daemon=True).start()
    os.register_at_fork(after_in_child=_as_by_default)


def heard() -> list[int]:
    """The signals that nobody has asked to ignore, as ``nohup`` does."""
    return [number for number in ENDINGS if signal.getsignal(number) is not signal.SIG_IGN]


def _unwind(number: int, frame: FrameType | None):
    error = KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)
    for other in ENDINGS:  # another one would end the removal of what is half made
        signal.signal(other, signal.SIG_IGN)
    caller = None
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.endswith("__main__"):  # what has started the program is no import of its
            break
        if module.partition(".")[0] in ("mindspore", "importlib"):
            caller = frame.f_back
        frame = frame.f_back
    if caller is None:
        raise error

    def come_back(*_):
        sys.settrace(None)
        raise error

    caller.f_trace = come_back
    sys.settrace(lambda *_: None)  # without one, that of a frame is not called


def _listen(ear: int):
    timers: dict[int, threading.Timer] = {}
    while True:
        number = os.read(ear, 1)[0]
        if number >= TAKEN:
            if timer := timers.pop(number - TAKEN, None):
                timer.cancel()
        elif number in (signal.SIGTERM, signal.SIGHUP) and number not in timers:
            timers[number] = _end_late(number)


def taken(number: int):
    """For a handler that does not end the process: the signal is taken care of."""
    if _bell is not None:
        os.write(_bell, bytes([TAKEN + number]))


def _as_by_default():
    """A forked process would tell its parent of signals that it gets itself."""
    global _bell
    signal.set_wakeup_fd(-1)
    _bell = None
    for number in ENDINGS:
        if signal.getsignal(number) is _unwind:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def _end_late(number: int) -> threading.Timer:
    """End the process when the main thread has not come back to Python."""
    def end():
        if signal.getsignal(number) not in (_unwind, signal.default_int_handler, signal.SIG_IGN):
            return  # another handler waits for its turn
        for folder in tuple(half_made):
            shutil.rmtree(folder, ignore_errors=True)
        print("interrupted" if number == signal.SIGINT else "terminated", file=sys.stderr, flush=True)
        os._exit(128 + number)

    timer = threading.Timer(GRACE, end)
    timer.daemon = True
    timer.start()
    return timer


class Actions:
    """What the process does at signals now, below Python: MindSpore leaves handlers of its own behind, with the first
    batch of a pipeline and with every compiled call. ``restore`` may be called in any thread."""

    _libc = ctypes.CDLL(None)

    def __init__(self, *numbers: int):
        self.kept = {int(number): ctypes.create_string_buffer(1024) for number in numbers}  # struct sigaction: some 150
        for number, action in self.kept.items():
            self._libc.sigaction(number, None, action)

    def restore(self):
        for number, action in self.kept.items():
            self._libc.sigaction(number, action, None)


class StopRequest:
    """While entered, a SIGINT, SIGTERM or SIGHUP is noted in ``received`` and does not end the process; a second one
    does.

    Args:
        patient: a second one does not either: a rank may get one from its cluster and one from its launcher, which
            knows when to lose patience.
    """

    def __init__(self, patient: bool = False):
        self.received, self.patient = 0, patient

    def __enter__(self):
        numbers = {signal.SIGINT, signal.SIGTERM, *heard()}  # those two also where a shell's `&` ignores them
        self.previous = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_):
        if self.patient:  # the process ends next, and the last thing it does is to wait for the others
            return
        for number, handler in self.previous.items():
            if signal.getsignal(number) == self._note:
                signal.signal(number, handler)

    def _note(self, number, _):
        taken(number)
        self.received = self.received or int(number)
        self.__exit__()
