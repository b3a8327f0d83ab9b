"""What SIGINT (Ctrl-C), SIGTERM and SIGHUP do to a command. Needs no MindSpore.

A training finishes its step and saves: it asks a ``StopRequest`` between steps. Any other command ends at once: its
child processes are killed, ``half_made`` files and folders removed, and the exit code is 130, 143 or 129.

A thread does this, not an exception in the main thread: MindSpore aborts the process (exit code 134) when a Python
function that it calls raises one, an import turns it into another error, and a compilation does not return to Python
for minutes. The main thread is stopped in its next line of Python, so that what it writes just then is whole.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import threading
from pathlib import Path

ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOPS = signal.SIGURG  # stops the main thread
GRACE = 1.0  # seconds in which the main thread may come back to Python
half_made: set[Path] = set()  # files and folders to remove when a signal ends the process
_ending, _stopped = False, threading.Event()
_ignored: set[int] = set()  # signals that the caller ignores, as ``nohup`` and a shell's ``&`` do
_request: "StopRequest | None" = None


def listen():
    """Handle the three signals from here on. Call it first of all, in the main thread.

    Each compiled call of MindSpore replaces SIGINT's handler by one that sends the process a SIGTERM. SIGINT is
    therefore blocked, before another thread exists, and waited for; the others come through Python's wakeup pipe.
    """
    _ignored.update(number for number in ENDINGS if signal.getsignal(number) is signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    for number in ENDINGS:
        if number not in _ignored or number == signal.SIGTERM:
            signal.signal(number, lambda *_: None)  # its number is written into the pipe
    signal.signal(STOPS, _wait_for_the_end)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=_restore_defaults)
    for next_signal in (lambda: signal.sigwait({signal.SIGINT}), lambda: os.read(reader, 1)[0]):
        threading.Thread(target=_serve, args=(next_signal,), daemon=True).start()


def _serve(next_signal):
    while True:
        if (number := next_signal()) in ENDINGS:
            _receive(number)


def _receive(number: int):
    if _ending:
        return
    if _request is not None and (_request.patient or not _request.received):
        _request.received = _request.received or int(number)
    elif _request is not None or number not in _ignored:
        _end(number)


def _end(number: int):
    global _ending
    _ending = True
    signal.pthread_kill(threading.main_thread().ident or 0, STOPS)
    _stopped.wait(GRACE)
    try:
        kill(descendants(os.getpid()))
        for path in tuple(half_made):
            remove(path)
        # the terminal may be gone (SIGHUP); print() would wait for the main thread's lock
        os.write(2, b"interrupted\n" if number == signal.SIGINT else b"terminated\n")
    finally:
        os._exit(128 + number)


def _wait_for_the_end(*_):
    _stopped.set()
    while True:
        signal.pause()


def _restore_defaults():
    """A forked process has none of these threads."""
    signal.set_wakeup_fd(-1)
    for number in {*ENDINGS, STOPS} - _ignored:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def remove(path: Path):
    """A file or folder; again where another thread writes into it meanwhile."""
    for _ in range(5):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        if not path.exists():
            return


def descendants(root: int) -> list[int]:
    """The processes that a process has started, and that those have started, and so on."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            parent = int(stat.read_text(errors="replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    processes = list(children.get(root, ()))
    for process in processes:  # grows meanwhile
        processes += children.get(process, ())
    return processes


def kill(processes: list[int]):
    for process in processes:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process, signal.SIGKILL)


class Actions:
    """The process's signal handlers below Python. MindSpore leaves handlers of its own behind with the first batch of a
    pipeline and with every compiled call; ``restore``, in any thread, puts back what was there when this was made."""

    _libc = ctypes.CDLL(None)

    def __init__(self, *numbers: int):
        self.kept = {int(number): ctypes.create_string_buffer(1024) for number in numbers}  # struct sigaction: some 150
        for number, action in self.kept.items():
            self._libc.sigaction(number, None, action)

    def restore(self):
        for number, action in self.kept.items():
            self._libc.sigaction(number, action, None)


class StopRequest:
    """While entered, the first signal is noted in ``received`` and does not end the process; a second one does. SIGINT
    and SIGTERM are noted even where the caller ignores them. Without ``listen`` a program keeps its own handlers.

    Args:
        patient: a second one does not end it either. A rank may get one from its cluster and one from its launcher,
            which kills it in the end; it stays so after the block, where the rank waits for the others.
    """

    def __init__(self, patient: bool = False):
        self.received, self.patient = 0, patient

    def __enter__(self):
        global _request
        _request = self
        return self

    def __exit__(self, *_):
        global _request
        if not self.patient:
            _request = None
