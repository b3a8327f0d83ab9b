"""A command that waits for a child process: what ends the command, at any moment, ends the child."""

import _thread
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from mindspore_coupalign import interrupts
from mindspore_coupalign.interrupts import run_child, unwound_by_sigterm

ASLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def children(monkeypatch):
    """The child processes that were started."""
    started = []

    class Noted(subprocess.Popen):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    return started


def test_ctrl_c_ends_the_child_that_is_waited_for(children):
    """The thread that hears of it (interrupts.py) tells Python's main thread, and no system call of it."""
    threading.Timer(0.5, _thread.interrupt_main).start()
    started = time.time()
    with pytest.raises(KeyboardInterrupt):
        run_child(ASLEEP)
    assert time.time() - started < 10 and children[0].returncode == -signal.SIGKILL


@pytest.mark.parametrize("number, error", [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_while_the_child_starts_ends_it(children, monkeypatch, number, error):
    class Interrupted(subprocess.Popen):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            _thread.interrupt_main(number)
            time.sleep(0.01)  # in which Python calls the handler

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    before = signal.getsignal(number)
    with pytest.raises(error), unwound_by_sigterm():
        run_child(ASLEEP)
    assert children[0].returncode == -signal.SIGKILL and signal.getsignal(number) == before


def test_a_child_gets_and_says_all():
    code = "import sys, time; text = sys.stdin.read(); time.sleep(0.5); sys.stdout.write(text + text)"
    text = "0123456789" * 100_000
    ended = run_child([sys.executable, "-c", code], text, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert ended.out == text + text and ended.code == 0 and not ended.late


def test_a_child_that_takes_too_long_is_killed_with_all_it_started():
    """And what it has said until then is known. Its own child would keep the pipe open for a minute."""
    code = "import subprocess, sys; print('hello', flush=True); subprocess.run([sys.executable, *sys.argv[1:]])"
    ended = run_child([sys.executable, "-c", code, *ASLEEP[1:]], limit=2, stdout=subprocess.PIPE,
                      start_new_session=True)
    assert ended == interrupts.Ended(-signal.SIGKILL, "hello\n", "", late=True)


def test_what_the_parent_ignores_the_child_ignores():
    """As ``nohup`` and ``&`` have it."""
    code = "import signal; print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        ended = run_child([sys.executable, "-c", code], stdout=subprocess.PIPE, env=os.environ)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.out == "True\n"
