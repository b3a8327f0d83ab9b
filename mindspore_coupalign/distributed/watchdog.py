"""A watchdog over the ranks of a job, which ends the job when one of them dies or hangs. Needs no MindSpore.

Every rank writes ``rank_<n>.json`` to a folder that all ranks of its machine (or of all machines, where it is shared)
can read: its process, its phase and since when, the number of barriers it has reached, and a heartbeat every second. A
rank that waits for another in a collective cannot know why; its watchdog thread can, from the other's file. The
launcher (launcher.py) reads the files as well.
"""

import contextlib
import json
import os
import re
import signal
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from mindspore_coupalign.errors import UserError

LEAST_LIMIT = 20.0  # seconds that a step may always take
SHORT_LIMIT = 5.0  # seconds that a rank may be without a heartbeat once a collective has failed
COMPILING = {"CPU": 120.0}  # seconds that it may be without one while it compiles; elsewhere:
COMPILING_ELSEWHERE = 1200.0
COLLECTIVE = re.compile(r"AllReduce|AllGather|Broadcast|collective|HCCL|NCCL|cluster", re.IGNORECASE)  # in errors
FOLDER = "COUPALIGN_RANKS"  # environment variable of launch_ranks.sh: the folder of the ranks' files
LOCAL_WORKERS = "COUPALIGN_LOCAL_WORKERS"  # another one: the number of ranks on this machine
ASKED = "asked_to_stop"  # a file in that folder: the job was asked to stop, perhaps before all of its ranks had started
ENDS = ("done", "stopped")
GONE = ("Z", "")  # _status of a process that has ended


class State(TypedDict, total=False):
    """A rank's file; times are seconds of its machine's clock."""

    rank: int
    pid: int
    host: str
    phase: str  # see Watch.enter
    step: int
    compiles: bool
    since: float  # when it entered the phase
    code: int  # exit code of a failure
    barriers: int  # how many it has reached
    beat: float  # its last heartbeat


@dataclass(frozen=True)
class Limits:
    """Seconds, as in the configuration's section ``train``, which takes its place."""

    step_timeout: float = 0.0  # 0: ten times the longest so far, at least LEAST_LIMIT
    heartbeat_timeout: float = 20.0
    compile_timeout: float = 0.0  # 0: COMPILING of its target
    remote_grace: float = 60.0
    barrier_timeout: float = 1800.0


def folder() -> Path | None:
    return Path(os.environ[FOLDER]) if os.environ.get(FOLDER) else None


def own_rank() -> int:
    return int(os.environ.get("RANK_ID", "0"))  # from msrun


def begin():
    """What a rank of a job does first. Ends the process if the job was asked to stop before the rank had started."""
    if place := folder():
        place.mkdir(parents=True, exist_ok=True)
        _write(place, _state(own_rank(), "starting", 0, compiles=True))
        if (place / ASKED).exists():
            os._exit(128 + signal.SIGTERM)


def tell(message: str, code: int) -> bool:
    """Leave a rank's last message and exit code to the launcher, which prints it; False outside of a job."""
    if not (place := folder()):
        return False
    own = next((s for s in read_states(place) if s["rank"] == own_rank()), State(phase="", step=0))
    if own["phase"].startswith("rank "):  # it names the rank that failed first
        return True
    return _write(place, _state(own_rank(), f"rank {own_rank()}: {message}", own["step"], code=code))


class Watch:
    """Writes this rank's file and, in a thread, reads the others'.

    A context manager: at the end of the block it enters the phase ``ending`` ("done" by default). A RuntimeError, by
    which MindSpore may notice a lost rank first, becomes a UserError that names the rank, if the files tell.

    Args:
        folder: of the ranks' files; None watches nothing.
        limits: ``Limits``, or the configuration's section ``train``.
        workers: ranks of this machine.
    """

    def __init__(self, folder: Path | None, rank: int = 0, limits=Limits(), workers: int = 1):
        self.folder, self.rank, self.limits, self.workers = folder, rank, limits, workers
        self.target = "CPU"  # where the ranks compute; runtime.setup sets it
        self.ahead = 0  # pending steps before a step's results are read; the trainer sets it
        self.longest, self.barriers = 0.0, 0
        self.waits = 0  # steps in which this rank may wait for another that saves
        self.state: State = {}
        # rank of another machine -> its heartbeat and when that changed here, its phase and when that changed here
        self.seen: dict[int, tuple[float, float, tuple, float]] = {}
        self.ending, self.ended = "done", threading.Event()
        self.compiled_at = 0.0  # time.perf_counter() of the first ``compiled`` of this phase; 0 before it
        self.lock = threading.Lock()
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self.enter("starting", 0, compiles=True)
            threading.Thread(target=self._run, daemon=True).start()

    @classmethod
    def of_job(cls, limits=Limits()):
        """The watch of this process's rank; outside of a job it does nothing."""
        return cls(folder(), own_rank(), limits, int(os.environ.get(LOCAL_WORKERS, "1")))

    def __enter__(self):
        return self

    def __exit__(self, kind, exc, _):
        if self.folder is None:
            return
        if exc is None:
            self.barrier()  # msrun ends all ranks when the first one exits
            self.enter(self.ending, self.state["step"])
        # the heartbeat continues meanwhile: explain may wait for another rank's
        failed_rank = self.explain(str(exc)) if isinstance(exc, RuntimeError) else ""
        with self.lock:
            self.ended.set()
        if failed_rank:
            raise UserError(f"{failed_rank}; the job ends, continue with --resume") from exc

    def enter(self, phase: str, step: int, compiles: bool = False):
        """``phase``: starting, loading, step, saving, evaluating, stopped, done, or a failure: "rank …"."""
        self.compiled_at = 0.0
        if self.folder is None:
            return
        now = time.time()
        if self.state.get("phase") == "step" and not self.state["compiles"]:
            if not self.waits:
                self.longest = max(self.longest, now - self.state["since"])
            self.waits = max(0, self.waits - 1)
        if phase == "saving":  # the others wait for rank 0 when they read the first step after it
            self.waits = 1 + self.ahead
        with self.lock:
            self.state = _state(self.rank, phase, step, compiles)
            self._write()

    def compiled(self):
        """This phase's compilation is done: from here on a rank without a heartbeat hangs."""
        self.compiled_at = self.compiled_at or time.perf_counter()
        if self.folder is not None:
            with self.lock:
                self.state["compiles"] = False

    def barrier(self):
        """Block until every rank of this machine has reached this point: a rank that enters a collective long before
        the others fails (on CPU after 30 s), even if they are well."""
        if self.folder is None:
            return
        with self.lock:
            self.barriers += 1
            self._write()
        pause, start, limit = 0.001, time.time(), self.limits.barrier_timeout
        while missing := self._missing():
            if time.time() - start > limit:
                raise UserError(f"{missing} has not reached a barrier in {limit / 60:.0f} minutes "
                                "(train.barrier_timeout); the job ends, continue with --resume")
            time.sleep(pause)
            pause = min(0.1, 1.5 * pause)

    def _missing(self) -> str:
        """The name of a rank that has not reached this rank's barrier; "" when all have."""
        states = self._states()
        late = [s for s in states if s["barriers"] < self.barriers and s["phase"] not in ENDS]
        return _name(late[0]) if late else "" if len(states) >= self.workers else "a rank"

    def limit(self) -> float:
        return self.limits.step_timeout or max(LEAST_LIMIT, 10 * self.longest)

    def explain(self, error: str = "") -> str:
        """The failed rank, when a collective has failed by MindSpore's own timeout; "" when none can be named.

        Args:
            error: MindSpore's message.
        """
        if self.folder is None:
            return ""
        start, collective = time.time(), COLLECTIVE.search(error)
        while not (failed_rank := self._failed_rank(SHORT_LIMIT, SHORT_LIMIT)) and collective:
            alive = all(seen[1] > start + SHORT_LIMIT for seen in self.seen.values())
            if alive or time.time() - start > SHORT_LIMIT + self.limits.remote_grace:
                failed_rank = self._lost_connection()
                break
            time.sleep(0.5)  # a missing heartbeat of another machine shows only after a while
        if failed_rank:
            self.enter(failed_rank, self.state["step"])
        return failed_rank

    def _failed_rank(self, limit: float, silence: float) -> str:
        compiling = self.limits.compile_timeout or COMPILING.get(self.target, COMPILING_ELSEWHERE)

        def look() -> str:
            others = [self._by_own_clock(s) for s in self._states() if s["rank"] != self.rank]
            return find_failed_rank(self.state, others, limit, time.time(), silence, compiling,
                                    self.limits.remote_grace)

        return look() and look()  # twice: the file of a dead rank may have been read just before it wrote its end

    def _by_own_clock(self, state: State) -> State:
        """With times of this machine's clock: another's may differ, and its files arrive late."""
        if state["host"] == self.state["host"]:
            return state
        now, phase = time.time(), (state["phase"], state["step"], state["since"])
        beat, beat_at, before, since = self.seen.get(state["rank"], (None, now, None, now))
        beat_at, since = (beat_at if beat == state["beat"] else now), (since if before == phase else now)
        self.seen[state["rank"]] = state["beat"], beat_at, phase, since
        return state | {"beat": beat_at, "since": since}

    def _lost_connection(self) -> str:
        """The explanation of a failed collective where every rank that can be seen is alive."""
        if hosts := sorted({s["host"] for s in self._states()} - {self.state["host"]}):
            return (f"{_name(self.state)} does not reach the ranks on {', '.join(hosts)}, which are alive; check the "
                    "network between the machines")
        if self.workers < int(os.environ.get("MS_WORKER_NUM", "1")):
            return (f"{_name(self.state)} has lost a rank of another machine or the connection to it; see its log; "
                    "with a LOG_DIR that all machines share its message is shown here")
        return ""

    def _states(self) -> list[State]:
        return read_states(self.folder) if self.folder is not None else []

    def _write(self):
        if self.folder is not None:
            _write(self.folder, self.state | {"barriers": self.barriers})

    def _run(self):
        while True:
            with self.lock:
                if self.ended.is_set():
                    return
                self._write()
            if failed_rank := self._failed_rank(self.limit(), self.limits.heartbeat_timeout):
                self.enter(failed_rank, self.state["step"])  # the launcher prints it once
                os._exit(3)  # the main thread is inside a collective and cannot be asked; msrun ends the others
            self.ended.wait(1)


def _state(rank: int, phase: str, step: int, compiles: bool = False, code: int = 1) -> State:
    """``code``: the exit code of a failure."""
    return {"rank": rank, "pid": os.getpid(), "host": socket.gethostname(), "phase": phase, "step": step,
            "compiles": compiles, "since": time.time(), "code": code, "barriers": 0}


def _write(folder: Path, state: State) -> bool:
    path, content = folder / f"rank_{state['rank']}.json", json.dumps(state | {"beat": time.time()})
    temporary = path.with_suffix(".tmp")
    with contextlib.suppress(OSError):
        temporary.write_text(content)
        temporary.replace(path)
        return True
    with contextlib.suppress(OSError), path.open("r+") as file:  # a full disk: in the space that the file has already
        file.write(content.ljust(path.stat().st_size))
        return True
    return False


def _name(state: State) -> str:
    return f"rank {state['rank']} (process {state['pid']} on {state['host']})"


def find_failed_rank(own: State, others: list[State], limit: float, now: float,
                     silence: float = Limits.heartbeat_timeout, compiling: float = COMPILING["CPU"],
                     remote: float = 0.0) -> str:
    """A sentence about the rank that the others wait for; "" when all is well.

    Args:
        limit: seconds that a step may take; a step of all ranks hangs after three times as long.
        silence: seconds without a heartbeat; ``compiling`` while it compiles, unless its process is stopped.
        remote: additional seconds for ranks of other machines.
    """
    for other in others:
        if other["phase"] in ENDS:
            continue
        if other["phase"].startswith("rank "):  # it has reported its failure
            return other["phase"]
        name, same_host = _name(other), other["host"] == own["host"]
        status = _status(other["pid"]) if same_host else "?"
        if status in GONE:
            return f"{name} died in step {other['step']} ({other['phase']})"
        allowed = compiling if other["compiles"] and status != "T" else silence
        if now - other["beat"] > allowed + (0 if same_host else remote):
            return f"{name} has had no heartbeat for {now - other['beat']:.0f} s in step {other['step']}"
    if own["phase"] != "step" or own["compiles"]:
        return ""
    patience = "; train.step_timeout sets how long is allowed"
    for other in others:  # this rank waits for those that have not entered its step; they may have saved before it
        waited = now - max(own["since"], other["since"])
        behind = (other["step"], other["phase"]) < (own["step"], "step") and other["phase"] in ("loading", "step")
        if behind and waited > limit + (0 if other["host"] == own["host"] else remote):
            return f"{_name(other)} hangs in step {other['step']} ({other['phase']}) for {waited:.0f} s{patience}"
    together = now - max(state["since"] for state in (own, *others))
    if others and together > 3 * limit and all(other["phase"] == "step" for other in others):
        several = any(other["host"] != own["host"] for other in others)
        network = ", or the network between the machines is cut" if several else ""
        return f"{_name(own)} hangs with all others in step {own['step']} for {together:.0f} s{network}{patience}"
    return ""


def is_alive(pid: int) -> bool:
    return _status(pid) not in GONE


def _status(pid: int) -> str:
    """R running, S sleeping, T stopped, Z ended …; "" for no such process, "?" (unknown) without /proc."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "" if Path("/proc/self").exists() else "?"


def read_states(folder: Path) -> list[State]:
    states = []
    for path in sorted(folder.glob("rank_*.json")):
        with contextlib.suppress(OSError, ValueError):
            states.append(json.loads(path.read_text()))
    return states
