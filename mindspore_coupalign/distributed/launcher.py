"""What the launcher of a job asks and does, from the ranks' files that watch.py describes. Needs no MindSpore."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from mindspore_coupalign.distributed.watchdog import ASKED, ENDS, LOCAL_WORKERS, State, lives, read_states

PATIENCE = 2.0  # seconds in which a second signal is the first one's echo: a cluster may send it to every process


def serve_as_scheduler(place: Path) -> int:
    """msrun's scheduler in a process of its own, ended with the last worker of this machine and not 40 s after it.

    Args:
        place: the folder of the ranks' files.

    Returns the exit code: 0 when every worker of this machine is done.
    """
    workers = int(os.environ[LOCAL_WORKERS])
    scheduler = subprocess.Popen([sys.executable, "-c", "from mindspore import communication; communication.init()"])
    while scheduler.poll() is None:
        time.sleep(0.5)
        states = [s for s in read_states(place) if s["host"] == socket.gethostname()]
        failed = any(s["phase"] not in ENDS for s in states)  # then others may never get as far as a file
        if (failed or len(states) >= workers) and states and not any(lives(s["pid"]) for s in states):
            scheduler.kill()
            states = read_states(place)  # once more: they may have been read just before the end of a rank
            return 0 if all(s["phase"] == "done" for s in states if s["host"] == socket.gethostname()) else 1
    return scheduler.returncode


def summary(folder: Path, status: int) -> tuple[int, str]:
    """(exit code, line for the user) after msrun has ended with ``status``: which rank failed, and how."""
    states, ended_by = read_states(folder), 128 + _asked_by(folder)
    if any(s["phase"] == "stopped" for s in states):  # said only after all ranks have saved
        return ended_by, "all ranks have saved and stopped, as they were asked to"
    if status == 0 and all(s["phase"] in ("done", "starting") for s in states):
        return 0, ""
    if states and all(s["phase"] == "done" for s in states):  # asked to stop too late
        return 0, ""
    told = any(s["phase"].startswith(f"rank {s['rank']}: ") for s in states)
    asked = (folder / ASKED).exists() and not told
    if asked and not any(s["step"] for s in states):
        return ended_by, "stopped, as it was asked to, with no step to save"
    # a rank that ended with a message has written it down, and one whose watch found another's failure; message first
    for state in sorted(states, key=lambda s: -s["code"]):
        if state["phase"].startswith("rank "):
            return state["code"], state["phase"] + ("; go on with --resume" if state["step"] else "")
    if asked:
        return ended_by, "killed before the state was saved; go on with --resume from the newest checkpoint"
    logs = "".join(log.read_text(errors="replace") for log in sorted(folder.glob("msrun*.log")))
    ended = re.findall(r"Worker process (\d+) exit with exception\. Error code: (-?\d+)", logs)
    for pid, code in ended:
        for state in states:
            if state["pid"] == int(pid):
                how = f"was killed by signal {-int(code)}" if int(code) < 0 else f"ended with exit code {code}"
                return (1 if int(code) < 0 else int(code),
                        f"rank {state['rank']} (process {pid} on {state['host']}) {how} in step {state['step']} "
                        f"({state['phase']}); see {folder}/worker_{state['rank']}.log; go on with --resume")
    return status or 1, f"the job failed; see the ranks' logs in {folder}"


def _asked_by(folder: Path) -> int:
    """The signal by which the job was asked to stop; SIGTERM where nothing is known."""
    try:
        return int((folder / ASKED).read_text())
    except (OSError, ValueError):
        return int(signal.SIGTERM)


def stop_ranks(folder: Path, number: int = signal.SIGTERM):
    """Ask the ranks of this machine to save and stop; the others learn it from them in the next step.

    Those that have not started read it in the folder. Asked again, they are killed.

    Args:
        number: the signal that the launcher got, for its exit code.
    """
    asked_here = folder / f"{ASKED}_{socket.gethostname()}"
    again = asked_here.exists()
    if again and time.time() - asked_here.stat().st_mtime < PATIENCE:
        return
    if not (folder / ASKED).exists():
        (folder / ASKED).write_text(str(int(number)))
    asked_here.touch()
    for state in _living(folder):
        with contextlib.suppress(ProcessLookupError):
            os.kill(state["pid"], signal.SIGKILL if again else signal.SIGTERM)


def _living(folder: Path) -> list[State]:
    return [s for s in read_states(folder) if s["host"] == socket.gethostname() and lives(s["pid"])]


if __name__ == "__main__":
    if sys.argv[1] == "--stop":
        stop_ranks(Path(sys.argv[2]), int(sys.argv[3]))
        sys.exit()
    while _living(Path(sys.argv[1])):  # msrun was killed, and the ranks are still saving
        time.sleep(0.2)
    code, line = summary(Path(sys.argv[1]), int(sys.argv[2]))
    if line:  # rank 0's bar may hold the last one
        print(f"\n{line}" if code in (129, 130, 143) else f"\nerror: {line}", file=sys.stderr)
    sys.exit(code)
