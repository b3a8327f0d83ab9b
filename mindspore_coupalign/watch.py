"""A watch over the ranks of a job, which ends the job when one of them dies or hangs. Needs no MindSpore.

Every rank writes ``rank_<n>.json`` into a folder that all ranks of its machine (or of all machines, where it is shared)
can read: its process, what it is doing since when, and a beat every second. A rank that waits for another in a
collective cannot know why; its watch thread can, from the other's file.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

LEAST_LIMIT = 20.0  # seconds that a step may always take, and that a rank may give no sign of life
SHORT_LIMIT = 5.0  # the same once it is known that something is wrong
SILENCE_LIMIT = 120.0  # seconds without a beat in a phase that compiles: the compiler keeps the interpreter for long
FOLDER = "COUPALIGN_RANKS"  # environment, from launch_ranks.sh: the folder of the ranks' files
LOCAL_WORKERS = "COUPALIGN_LOCAL_WORKERS"  # the same: ranks on this machine


def folder() -> Path | None:
    return Path(os.environ[FOLDER]) if os.environ.get(FOLDER) else None


class Watch:
    """Writes this rank's file and, in a thread of its own, reads the others'.

    Args:
        folder: of the ranks' files; None watches nothing.
        limit: seconds that a step may take; 0: ten times the longest so far, at least LEAST_LIMIT.
    """

    def __init__(self, folder: Path | None, rank: int, limit: float = 0.0):
        self.folder, self.rank, self.fixed = folder, rank, limit
        self.longest, self.state, self.waits = 0.0, {}, False
        self.lock = threading.Lock()
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self.enter("starting", 0, compiles=True)
            threading.Thread(target=self._run, daemon=True).start()

    def enter(self, phase: str, step: int, compiles: bool = False, code: int = 1):
        """``phase``: starting, loading, step, saving, stopped, done, or a failure: "rank …", with its exit code."""
        if self.folder is None:
            return
        now = time.time()
        if self.state.get("phase") == "step" and not self.state["compiles"]:
            if not self.waits:  # in the first step after a save the others wait for rank 0
                self.longest = max(self.longest, now - self.state["since"])
            self.waits = False
        self.waits |= phase == "saving"
        with self.lock:
            self.state = {"rank": self.rank, "pid": os.getpid(), "host": socket.gethostname(), "phase": phase,
                          "step": step, "compiles": compiles, "since": now, "code": code}
            self._write()

    def limit(self) -> float:
        return self.fixed or max(LEAST_LIMIT, 10 * self.longest)

    def explain(self) -> str:
        """Who it was, when a collective has failed by MindSpore's own timeout; empty when no rank is conspicuous."""
        if self.folder is None:
            return ""
        others = [s for s in read_states(self.folder) if s["rank"] != self.rank]
        culprit = find_culprit(self.state, others, SHORT_LIMIT, time.time(), SHORT_LIMIT)
        if culprit:
            self.enter(culprit, self.state["step"])
        return culprit

    def _write(self):
        path = self.folder / f"rank_{self.rank}.json"
        temporary = path.with_suffix(".tmp")
        with contextlib.suppress(OSError):  # a full disk: the one who saves says so
            temporary.write_text(json.dumps(self.state | {"beat": time.time()}))
            temporary.replace(path)

    def _run(self):
        while self.state["phase"] not in ("done", "stopped"):
            with self.lock:
                self._write()
            others = [s for s in read_states(self.folder) if s["rank"] != self.rank]
            culprit = find_culprit(self.state, others, self.limit(), time.time())
            if culprit:
                print(f"error: {culprit}; the job ends, go on with --resume", file=sys.stderr, flush=True)
                self.enter(culprit, self.state["step"])
                os._exit(3)  # the main thread is inside a collective and cannot be asked; msrun ends the others
            time.sleep(1)


def find_culprit(own: dict, others: list, limit: float, now: float, silence: float = LEAST_LIMIT) -> str:
    """A sentence about the rank that the others wait for; empty when all is well.

    Args:
        limit: seconds that a step may take; three times as long, and it counts as hanging on all ranks.
        silence: seconds without a beat; SILENCE_LIMIT while it compiles.
    """
    for other in others:
        if other["phase"] in ("done", "stopped"):
            continue
        name = f"rank {other['rank']} (process {other['pid']} on {other['host']})"
        if other["host"] == own["host"] and not _lives(other["pid"]):
            return f"{name} died in step {other['step']} ({other['phase']})"
        if now - other["beat"] > (SILENCE_LIMIT if other["compiles"] else silence):
            return f"{name} has given no sign of life for {now - other['beat']:.0f} s in step {other['step']}"
    if own["phase"] == "step" and not own["compiles"] and now - own["since"] > limit:
        for other in others:  # those that this rank waits for have not entered its step
            if (other["step"], other["phase"]) < (own["step"], "step") and other["phase"] in ("loading", "step"):
                return (f"rank {other['rank']} (process {other['pid']} on {other['host']}) hangs in step "
                        f"{other['step']} ({other['phase']}) for {now - other['since']:.0f} s")
        if others and now - own["since"] > 3 * limit and all(o["phase"] == "step" for o in others):
            return (f"rank {own['rank']} (process {own['pid']} on {own['host']}) hangs with all others in step "
                    f"{own['step']} for {now - own['since']:.0f} s")
    return ""


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return not Path("/proc/self").exists()  # without /proc nothing is known


def read_states(folder: Path) -> list:
    states = []
    for path in sorted(folder.glob("rank_*.json")):
        try:
            states.append(json.loads(path.read_text()))
        except (OSError, ValueError):
            continue
    return states


def serve_as_scheduler() -> int:
    """msrun's scheduler in a process of its own, ended with the last worker of this machine and not 40 s after it.

    Returns the exit code: 0 when every worker of this machine is done.
    """
    place, workers = folder(), int(os.environ[LOCAL_WORKERS])
    scheduler = subprocess.Popen([sys.executable, "-c", "from mindspore import communication; communication.init()"])
    while scheduler.poll() is None:
        time.sleep(0.5)
        states = [s for s in read_states(place) if s["host"] == socket.gethostname()]
        if len(states) >= workers and not any(_lives(s["pid"]) for s in states):
            scheduler.kill()
            return 0 if all(s["phase"] == "done" for s in states) else 1
    return scheduler.returncode


def summary(folder: Path, status: int) -> tuple[int, str]:
    """(exit code, line for the user) after msrun has ended with ``status``: which rank failed, and how."""
    states = read_states(folder)
    if status == 0 or not states:
        return status, ""
    if any(s["phase"] == "stopped" for s in states):  # said only after all ranks have saved
        return 143, "all ranks have saved and stopped, as they were asked to"
    # a rank that ended with a message has written it down, and one whose watch found another's failure; message first
    for state in sorted(states, key=lambda s: -s.get("code", 1)):
        if state["phase"].startswith("rank "):
            return state.get("code", 1), f"{state['phase']}; go on with --resume"
    log = folder / "msrun.log"
    ended = re.findall(r"Worker process (\d+) exit with exception\. Error code: (-?\d+)",
                       log.read_text(errors="replace") if log.exists() else "")
    for pid, code in ended:
        for state in states:
            if state["pid"] == int(pid):
                how = f"was killed by signal {-int(code)}" if int(code) < 0 else f"ended with exit code {code}"
                return (1 if int(code) < 0 else int(code),
                        f"rank {state['rank']} (process {pid} on {state['host']}) {how} in step {state['step']} "
                        f"({state['phase']}); see {folder}/worker_{state['rank']}.log; go on with --resume")
    return 1, f"the job failed; see the ranks' logs in {folder}"


def stop_ranks(folder: Path):
    """Ask the ranks of this machine to save and stop; the others learn it from them in the next step."""
    for state in read_states(folder):
        if state["host"] == socket.gethostname() and _lives(state["pid"]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(state["pid"], signal.SIGTERM)


if __name__ == "__main__":
    if sys.argv[1] == "--stop":
        stop_ranks(Path(sys.argv[2]))
        sys.exit()
    code, line = summary(Path(sys.argv[1]), int(sys.argv[2]))
    if line:
        print(f"error: {line}" if code != 143 else line, file=sys.stderr)
    sys.exit(code)
