"""What scripts/launch_ranks.sh runs beside the ranks of a job: msrun's scheduler, stopping, and the summary at the end.

It reads the ranks' files (watchdog.py). Needs no MindSpore.
"""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from mindspore_coupalign.distributed.watchdog import ASKED, ENDS, LOCAL_WORKERS, State, is_alive, read_states

PATIENCE = 2.0  # seconds in which a second signal is ignored: a cluster may send one to every process


def serve_as_scheduler(place: Path) -> int:
    """Run msrun's scheduler in a child process, and end it with the last worker of this machine, not 40 s later.

    Returns the exit code: 0 when every worker of this machine is done.
    """
    workers = int(os.environ[LOCAL_WORKERS])
    scheduler = subprocess.Popen([sys.executable, "-c", "from mindspore import communication; communication.init()"])
    while scheduler.poll() is None:
        time.sleep(0.5)
        states = [s for s in read_states(place) if s["host"] == socket.gethostname()]
        failed = any(s["phase"] not in ENDS for s in states)  # then others may never write a file
        if (failed or len(states) >= workers) and states and not any(is_alive(s["pid"]) for s in states):
            scheduler.kill()
            states = read_states(place)  # again: they may have been read just before a rank's end
            return 0 if all(s["phase"] == "done" for s in states if s["host"] == socket.gethostname()) else 1
    return scheduler.returncode


def summary(folder: Path, status: int) -> tuple[int, str]:
    """(exit code, line for the user) after msrun has ended with ``status``: which rank failed, and how."""
    states, stop_code = read_states(folder), 128 + _asked_by(folder)
    if any(s["phase"] == "stopped" for s in states):  # a rank enters this phase after all have saved
        return stop_code, "all ranks have saved and stopped, as they were asked to"
    is_done = all(s["phase"] == "done" for s in states)
    if states and is_done or status == 0 and all(s["phase"] in ("done", "starting") for s in states):
        return 0, ""
    has_message = any(s["phase"].startswith(f"rank {s['rank']}: ") for s in states)
    asked = (folder / ASKED).exists() and not has_message
    if asked and not any(s["step"] for s in states):
        return stop_code, "stopped, as it was asked to, with no step to save"
    # a rank's own message (exit code 2) comes before what another rank's watchdog has written about it
    for state in sorted(states, key=lambda s: -s["code"]):
        if state["phase"].startswith("rank "):
            return state["code"], state["phase"] + ("; continue with --resume" if state["step"] else "")
    if asked:
        return stop_code, "killed before the state was saved; continue with --resume from the newest checkpoint"
    return _exit_of_a_rank(folder, states) or (status or 1, f"the job failed; see the ranks' logs in {folder}")


def _exit_of_a_rank(folder: Path, states: list[State]) -> tuple[int, str] | None:
    """The same for a rank that left no message, from msrun's log; None where that has no rank's exit."""
    logs = "".join(log.read_text(errors="replace") for log in sorted(folder.glob("msrun*.log")))
    by_pid = {state["pid"]: state for state in states}
    for pid, code in re.findall(r"Worker process (\d+) exit with exception\. Error code: (-?\d+)", logs):
        if state := by_pid.get(int(pid)):
            how = f"was killed by signal {-int(code)}" if int(code) < 0 else f"ended with exit code {code}"
            return (1 if int(code) < 0 else int(code),
                    f"rank {state['rank']} (process {pid} on {state['host']}) {how} in step {state['step']} "
                    f"({state['phase']}); see {folder}/worker_{state['rank']}.log; continue with --resume")
    return None


def _asked_by(folder: Path) -> int:
    """The signal by which the job was asked to stop; SIGTERM where nothing is known."""
    try:
        return int((folder / ASKED).read_text())
    except (OSError, ValueError):
        return int(signal.SIGTERM)


def stop_ranks(folder: Path, number: int = signal.SIGTERM):
    """Ask the ranks of this machine to save and stop; those of other machines learn it in the next step.

    Ranks that have not started yet read it in the folder. A second call kills the ranks. ``number``, the signal that
    the launcher received, is for its exit code.
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
    return [s for s in read_states(folder) if s["host"] == socket.gethostname() and is_alive(s["pid"])]


if __name__ == "__main__":
    if sys.argv[1] == "--stop":
        stop_ranks(Path(sys.argv[2]), int(sys.argv[3]))
        sys.exit()
    while _living(Path(sys.argv[1])):  # msrun was killed, and the ranks are still saving
        time.sleep(0.2)
    code, line = summary(Path(sys.argv[1]), int(sys.argv[2]))
    if line:  # after rank 0's progress bar
        print(f"\n{line}" if code in (129, 130, 143) else f"\nerror: {line}", file=sys.stderr)
    sys.exit(code)
