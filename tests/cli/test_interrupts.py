"""What ends a command, at any moment, removes what is half made and ends the child that the command waits for."""

import _thread
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from training_runs import hear_interrupts

from mindspore_coupalign import interrupts
from mindspore_coupalign.child_process import Ended, run_child

ASLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
COMMAND = """
import os, signal, sys, time, types
from pathlib import Path
from mindspore_coupalign import __main__ as command_line
from mindspore_coupalign.outputs import scratch

command = types.ModuleType("mindspore_coupalign.cli.command")
command.add_arguments = lambda parser: None

def run(args):
    with scratch("half-made-", Path(".")):
        compute()
    return 0

command.run = run
sys.modules[command.__name__] = command
command_line.COMMANDS["command"] = "compute for long"
number, sys.argv[1:] = int(sys.argv[1]), ["command"]
sys.exit(command_line.console())
"""
COMPUTES = """
def compute():
    import mindspore as ms
    import numpy as np

    @ms.jit
    def product(x):
        return ms.ops.matmul(x, x)

    x = ms.Tensor(np.ones((9, 9), np.float32))
    product(x).asnumpy()
    os.kill(os.getpid(), number)
    for _ in range(100000):
        product(x).asnumpy()
"""
COMPILES = """
def compute():
    import threading
    import mindspore as ms

    @ms.jit
    def long(x):
        for i in range(200):
            x = x + i
        return x

    threading.Timer(0.5, os.kill, (os.getpid(), number)).start()
    for i in range(1000):
        long(ms.Tensor([1.0] * (i + 1)))
"""
IMPORTS = """
def compute():
    import threading
    threading.Timer(0.3, os.kill, (os.getpid(), number)).start()
    import mindspore
    time.sleep(60)
"""
WAITS_FOR_DATA = """
class Slow:
    def __len__(self):
        return 8

    def item(self, k):
        os.kill(os.getpid(), number)
        time.sleep(60)

def compute():  # MindSpore's pipelines bring handlers of their own
    from mindspore_coupalign.data import loader
    source = type("Source", (Slow, loader._Source), {})()
    next(loader.batches(source, 2, 2))
"""
OUTSIDE_OF_PYTHON = """
def compute():
    import hashlib, threading
    threading.Timer(0.5, os.kill, (os.getpid(), number)).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""
ROOT = Path(__file__).parents[2]
ENDINGS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


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


@pytest.fixture
def unwinding():
    """As a command has it."""
    before = {number: signal.signal(number, interrupts._unwind) for number in interrupts.ENDINGS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number, error", [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_while_the_child_starts_ends_it(children, unwinding, monkeypatch, number, error):
    class Interrupted(subprocess.Popen):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            _thread.interrupt_main(number)
            time.sleep(0.01)  # in which Python calls the handler

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with pytest.raises(error):
        run_child(ASLEEP)
    assert children[0].returncode == -signal.SIGKILL


def ended(folder: Path, number: int, compute: str) -> subprocess.CompletedProcess:
    """A command that is sent a signal while it computes."""
    (folder / "command.py").write_text(compute + COMMAND)
    return subprocess.run([sys.executable, "command.py", str(int(number))], cwd=folder, text=True, timeout=100,
                          env=os.environ | {"PYTHONPATH": str(ROOT)}, preexec_fn=hear_interrupts, capture_output=True)


@pytest.mark.parametrize("compute, ending", [
    (IMPORTS, 0), (IMPORTS, 1), (IMPORTS, 2), (COMPILES, 1), (COMPUTES, 0), (COMPUTES, 1),
    (WAITS_FOR_DATA, 1)],
    ids=["imports-INT", "imports-TERM", "imports-HUP", "compiles-TERM", "computes-INT", "computes-TERM",
         "waits for data"])
def test_a_signal_ends_any_command_in_order(tmp_path, compute, ending):
    """Also while MindSpore works, whose own handler of SIGINT would make a SIGTERM of it."""
    number, code = ENDINGS[ending]
    done = ended(tmp_path, number, compute)
    # a busy machine may import for more than the five seconds
    assert done.stderr in (("interrupted\n",) if number == signal.SIGINT else ("", "terminated\n"))
    assert done.returncode == code and done.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["command.py"]


@pytest.mark.parametrize("number, code", ENDINGS[:2])
def test_what_runs_outside_of_python_has_five_seconds(tmp_path, number, code):
    started = time.time()
    done = ended(tmp_path, number, OUTSIDE_OF_PYTHON)
    assert done.returncode == code and time.time() - started > interrupts.GRACE
    assert done.stderr == ("interrupted\n" if number == signal.SIGINT else "terminated\n")
    assert [path.name for path in tmp_path.iterdir()] == ["command.py"]


@pytest.mark.parametrize("number, code", ENDINGS)
def test_a_second_signal_does_not_end_the_removal(tmp_path, number, code):
    removes = """
def compute():
    import threading
    folder, = Path(".").glob("half-made-*")
    for k in range(3000):
        (folder / str(k)).touch()
    for delay in (0.2, 0.21, 0.22, 0.25):
        threading.Timer(delay, os.kill, (os.getpid(), number)).start()
    while True:
        time.sleep(0.01)
"""
    done = ended(tmp_path, number, removes)
    assert done.returncode == code and "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["command.py"]


def test_a_signal_while_a_command_is_imported(tmp_path):
    """Which comes to its end: what is half imported makes other errors of it."""
    (tmp_path / "interrupted.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\n"
                                             "time.sleep(0.5)\nprint('imported')\n"
                                             "add_arguments = run = lambda _: None\n")
    start = """
import mindspore_coupalign.cli
mindspore_coupalign.cli.__path__.append(".")
from mindspore_coupalign import __main__ as command_line
command_line.COMMANDS["interrupted"] = "is imported for long"
sys.argv[1:], number = ["interrupted"], 0
sys.exit(command_line.console())
"""
    done = ended(tmp_path, signal.SIGINT, "import sys" + start)
    assert (done.returncode, done.stdout, done.stderr) == (130, "imported\n", "interrupted\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_takes_a_signal_itself_has_all_the_time(tmp_path, number):
    """A training whose step, or saving, takes longer; its second signal has no more than others."""
    saving = """
def compute():
    from mindspore_coupalign.interrupts import StopRequest
    with StopRequest() as stop:
        os.kill(os.getpid(), number)
        while not stop.received:
            pass
        time.sleep(6)
        print("saved", flush=True)
        os.kill(os.getpid(), number)
        time.sleep(60)
"""
    done = ended(tmp_path, number, saving)
    assert (done.returncode, done.stdout) == (128 + number, "saved\n"), done.stderr


def test_a_forked_process_keeps_its_signals_to_itself(tmp_path):
    """Nor does it unwind its parent's work."""
    fork = """
def compute():
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(tell, b"1")
        time.sleep(60)
        os._exit(0)
    os.read(ready, 1)
    os.kill(child, number)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -number
    time.sleep(6)
"""
    done = ended(tmp_path, signal.SIGTERM, fork)
    assert done.returncode == 0, done.stderr


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
    assert ended == Ended(-signal.SIGKILL, "hello\n", "", late=True)


def test_what_the_parent_ignores_the_child_ignores():
    """As ``nohup`` and ``&`` have it."""
    code = "import signal; print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        ended = run_child([sys.executable, "-c", code], stdout=subprocess.PIPE, env=os.environ)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.out == "True\n"


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
