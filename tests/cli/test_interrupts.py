"""SIGINT, SIGTERM and SIGHUP end any command at once, with its exit code, and leave no half-made file and no child
process; a training notes them instead."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from training_runs import hear_interrupts

from mindspore_coupalign.distributed.process import Ended, run_child

ROOT = Path(__file__).parents[2]
ASLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
COMMAND = """
import os, signal, subprocess, sys, threading, time, types
from pathlib import Path
from mindspore_coupalign import __main__ as command_line
from mindspore_coupalign.outputs import scratch

command = types.ModuleType("mindspore_coupalign.cli.command")
command.add_arguments = lambda parser: None

def later(seconds):
    threading.Timer(seconds, os.kill, (os.getpid(), number)).start()

def run(args):
    with scratch("half-made-", Path(".")) as folder:
        compute(folder)
    return 0

command.run = run
sys.modules[command.__name__] = command
command_line.COMMANDS["command"] = "compute for long"
number, sys.argv[1:] = int(sys.argv[1]), ["command"]
sys.exit(command_line.console())
"""
WRITES_WITH_A_CHILD = """
def compute(folder):
    child = subprocess.Popen(["sleep", "60"], start_new_session=True)
    Path("child").write_text(str(child.pid))
    for delay in (0.3, 0.31, 0.32, 0.35):
        later(delay)
    for k in range(10**9):
        (folder / str(k % 3000)).write_text("half made")
"""
IMPORTS = """
def compute(_):
    later(0.3)
    import mindspore
    time.sleep(60)
"""
COMPUTES = """
def compute(_):
    import mindspore as ms

    @ms.jit
    def product(x):
        return ms.ops.matmul(x, x)

    x = ms.ops.ones((9, 9))
    product(x).asnumpy()
    os.kill(os.getpid(), number)
    while True:
        product(x).asnumpy()
"""
COMPILES = """
def compute(_):
    import mindspore as ms

    @ms.jit
    def long(x):
        for i in range(200):
            x = x + i
        return x

    later(0.5)
    for i in range(1000):
        long(ms.Tensor([1.0] * (i + 1)))
"""
WAITS_FOR_DATA = """
class Slow:
    def __len__(self):
        return 8

    def item(self, k):
        os.kill(os.getpid(), number)
        time.sleep(60)

def compute(_):  # MindSpore's pipelines bring handlers of their own
    from mindspore_coupalign.data import loader
    next(loader.batches(type("Source", (Slow, loader._Source), {})(), 2, 2))
"""
OUTSIDE_OF_PYTHON = """
def compute(_):
    import hashlib
    later(0.3)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""
TRAINS = """
def compute(_):
    from mindspore_coupalign.interrupts import StopRequest
    with StopRequest() as stop:
        os.kill(os.getpid(), number)
        while not stop.received:
            time.sleep(0.01)
        print("saved")
        os.kill(os.getpid(), number)
        time.sleep(60)
"""
FORKS = """
def compute(_):
    child = os.fork()
    if child == 0:
        time.sleep(60)
    time.sleep(0.3)
    os.kill(child, number)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -number
"""


def ended(folder: Path, number: int, compute: str, hear=hear_interrupts) -> subprocess.CompletedProcess:
    """A command that is sent a signal while it computes."""
    (folder / "command.py").write_text(compute + COMMAND)
    return subprocess.run([sys.executable, "command.py", str(int(number))], cwd=folder, text=True, timeout=100,
                          env=os.environ | {"PYTHONPATH": str(ROOT)}, preexec_fn=hear, capture_output=True)


def said(number: int) -> str:
    return "interrupted\n" if number == signal.SIGINT else "terminated\n"


@pytest.mark.parametrize("number", CODES)
def test_nothing_half_made_and_no_child_is_left(tmp_path, number):
    """Though signals keep coming and the command keeps writing while it is ended; its child is in another session."""
    done = ended(tmp_path, number, WRITES_WITH_A_CHILD)
    assert (done.returncode, done.stdout, done.stderr) == (CODES[number], "", said(number))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["child", "command.py"]
    state = Path(f"/proc/{(tmp_path / 'child').read_text()}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.parametrize("compute, number", [
    (IMPORTS, signal.SIGHUP), (COMPILES, signal.SIGTERM), (COMPUTES, signal.SIGINT), (WAITS_FOR_DATA, signal.SIGTERM),
    (OUTSIDE_OF_PYTHON, signal.SIGINT)], ids=["imports", "compiles", "computes", "waits for data", "outside of Python"])
def test_a_signal_ends_any_command_at_once(tmp_path, compute, number):
    """Also while MindSpore works, whose own handler of SIGINT would make a SIGTERM of it."""
    done = ended(tmp_path, number, compute)
    assert (done.returncode, done.stdout, done.stderr) == (CODES[number], "", said(number))
    assert [path.name for path in tmp_path.iterdir()] == ["command.py"]


@pytest.mark.parametrize("number", CODES)
def test_a_stop_request_notes_the_first_signal_and_a_second_one_ends(tmp_path, number):
    done = ended(tmp_path, number, TRAINS)
    assert (done.returncode, done.stdout, done.stderr) == (CODES[number], "saved\n", said(number))


def test_a_signal_that_the_caller_ignores_is_ignored(tmp_path):
    """As ``nohup`` and a shell's ``&`` have it."""
    done = ended(tmp_path, signal.SIGHUP, "def compute(_):\n    os.kill(os.getpid(), number)\n    time.sleep(0.3)\n",
                 lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_forked_process_has_the_default_handlers(tmp_path, number):
    done = ended(tmp_path, number, FORKS)
    assert done.returncode == 0, done.stderr


def test_a_child_gets_and_says_all():
    code = "import sys, time; text = sys.stdin.read(); time.sleep(0.5); sys.stdout.write(text + text)"
    text = "0123456789" * 100_000
    child = run_child([sys.executable, "-c", code], text, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.out == text + text and child.code == 0 and not child.late


def test_a_child_that_takes_too_long_is_killed_with_all_it_started():
    """And what it has said until then is known. Its own child would keep the pipe open for a minute."""
    code = "import subprocess, sys; print('hello', flush=True); subprocess.run([sys.executable, *sys.argv[1:]])"
    child = run_child([sys.executable, "-c", code, *ASLEEP[1:]], limit=1, stdout=subprocess.PIPE)
    assert child == Ended(-signal.SIGKILL, "hello\n", "", late=True)


def test_a_program_that_predicts_keeps_its_handlers(tmp_path):
    """MindSpore leaves one of SIGINT behind that sends the process a SIGTERM."""
    program = """
import os, signal, sys, threading, time
import numpy as np
import mindspore_coupalign as coupalign

def predict():
    model.predict(np.zeros((64, 64, 3), np.uint8), ["red circle"])

model = coupalign.load("refshapes", device="CPU")
predict()
thread = threading.Thread(target=predict)
thread.start()
thread.join()
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
except KeyboardInterrupt:
    print("mine")
"""
    (tmp_path / "program.py").write_text(program)
    done = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, text=True, timeout=200, capture_output=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)}, preexec_fn=hear_interrupts)
    assert done.stdout == "mine\n" and done.returncode == 0, done.stderr
