"""The watch over the ranks and the launcher without MindSpore: who hangs or died, barriers, messages, exit codes."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from ranks import environment
from training_runs import ROOT, write_config

from mindspore_coupalign import __main__ as command_line
from mindspore_coupalign.config import TrainConfig, load_config
from mindspore_coupalign.distributed import launcher as job
from mindspore_coupalign.distributed import watchdog as watch
from mindspore_coupalign.errors import UserError


def test_a_barrier_waits_for_every_rank(tmp_path):
    """The first waits for the second, then both continue; and at the end."""
    first, second = (watch.Watch(tmp_path, rank, workers=2) for rank in (0, 1))
    reached = []

    def go():
        with first:
            first.barrier()
            reached.append("barrier")

    thread = threading.Thread(target=go)
    thread.start()
    time.sleep(0.5)
    assert reached == [] and thread.is_alive()
    second.enter("loading", 1)  # its phase does not change how many barriers it has reached
    second.barrier()
    time.sleep(0.5)
    assert reached == ["barrier"] and thread.is_alive()  # it waits at its end
    with second:
        pass
    thread.join(10)
    assert not thread.is_alive() and [s["phase"] for s in watch.read_states(tmp_path)] == ["done", "done"]
    with watch.Watch(None) as nobody:
        nobody.barrier()


def state(rank, step, phase, since=0.0, beat=100.0, **more):
    return {"rank": rank, "pid": os.getpid(), "host": socket.gethostname(), "step": step, "phase": phase,
            "since": since, "beat": beat, "compiles": False, "code": 1, "barriers": 0, **more}


def test_who_is_to_blame():
    own = state(0, 7, "step", since=50.0)
    assert watch.find_failed_rank(own, [state(1, 7, "step")], 20, 100.0) == ""  # it computes the same step
    assert "rank 1" in watch.find_failed_rank(own, [state(1, 7, "loading")], 20, 100.0)
    assert "rank 2" in watch.find_failed_rank(own, [state(1, 7, "step"), state(2, 6, "step")], 20, 100.0)
    assert watch.find_failed_rank(own, [state(1, 7, "loading")], 60, 100.0) == ""  # not long enough
    assert watch.find_failed_rank(own, [state(1, 6, "saving")], 20, 100.0) == ""  # a slow disk
    for phase in ("loading", "step"):  # and just after a long save
        assert watch.find_failed_rank(own, [state(1, 7, phase, since=95.0)], 15, 100.0) == ""
    assert "no heartbeat for 30 s" in watch.find_failed_rank(own, [state(1, 7, "step", beat=70.0)], 20, 100.0)
    assert "no heartbeat" in watch.find_failed_rank(own, [state(1, 7, "step", beat=70.0)], 300,
                                                       100.0)  # long steps too
    assert "rank 0" in watch.find_failed_rank(own, [state(1, 7, "step")], 15, 100.0)  # all are in it, for too long
    assert watch.find_failed_rank(own, [state(1, 7, "step", beat=70.0, compiles=True)], 20, 100.0) == ""
    assert "died in step 7" in watch.find_failed_rank(own, [state(1, 7, "step", pid=2**22 + 1)], 20, 100.0)
    assert watch.find_failed_rank(own, [state(1, 7, "done", pid=2**22 + 1)], 20, 100.0) == ""
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        silent = state(1, 7, "step", beat=70.0, compiles=True, pid=sleeper.pid)
        assert watch.find_failed_rank(own, [silent], 20, 100.0) == ""
        sleeper.send_signal(signal.SIGSTOP)
        while watch._status(sleeper.pid) != "T":
            time.sleep(0.01)
        assert "no heartbeat for 30 s" in watch.find_failed_rank(own, [silent], 20, 100.0)
        assert watch.find_failed_rank(own, [silent | {"host": "elsewhere"}], 20, 100.0) == ""  # nothing is known of it
        sleeper.kill()
    failed = state(1, 7, "rank 1: x.jpg: no", pid=2**22 + 1)
    assert watch.find_failed_rank(own, [failed], 20, 100.0) == "rank 1: x.jpg: no"


def test_ranks_of_other_machines_have_longer():
    """A network file system shows their files late; what is known at once of a rank of this machine is not of them."""
    own, remote = state(0, 7, "step", since=50.0), {"host": "elsewhere"}
    silent, slow = state(1, 7, "step", beat=70.0, **remote), state(1, 7, "loading", **remote)
    assert watch.find_failed_rank(own, [silent], 300, 100.0, remote=60) == ""
    assert "no heartbeat for 90 s" in watch.find_failed_rank(own, [silent], 300, 160.0, remote=60)
    assert watch.find_failed_rank(own, [slow], 20, 100.0, remote=60) == ""
    late = watch.find_failed_rank(own, [slow | {"beat": 130.0}], 20, 135.0, remote=60)
    assert "hangs in step 7 (loading) for 85 s" in late
    first, compiling = own | {"compiles": True}, silent | {"compiles": True}
    assert watch.find_failed_rank(first, [compiling], 300, 240.0, compiling=120, remote=60) == ""
    assert "no heartbeat" in watch.find_failed_rank(first, [compiling], 300, 260.0, compiling=120, remote=60)
    assert watch.find_failed_rank(first, [compiling], 300, 1300.0, compiling=1200, remote=60) == ""
    together = watch.find_failed_rank(own, [silent | {"beat": 199.0}], 20, 200.0, remote=60)
    assert "hangs with all others" in together and "or the network between the machines is cut" in together


def test_the_clock_of_another_machine_does_not_matter(tmp_path, monkeypatch):
    """Nor does a beat that comes late: a rank is silent from when its file was last seen to change."""
    clock = [1000.0]
    monkeypatch.setattr(watch.time, "time", lambda: clock[0])
    own = watch.Watch(None)
    own.folder, own.state = tmp_path, state(0, 7, "loading", beat=1000.0)

    def look(beat) -> str:
        (tmp_path / "rank_1.json").write_text(json.dumps(state(1, 7, "step", beat=beat, host="elsewhere")))
        return own._failed_rank(20, 20)

    assert look(beat=10.0) == ""  # its clock is a quarter of an hour slow
    clock[0] += 79
    assert look(beat=10.0) == ""
    clock[0] += 2
    assert "rank 1" in look(beat=10.0) and "no heartbeat for 81 s" in look(beat=10.0)
    assert look(beat=11.0) == ""
    assert look(beat=99999.0) == ""  # or fast
    clock[0] += 81
    assert "no heartbeat" in look(beat=99999.0)


@pytest.mark.parametrize("said, lives, expected", [
    ("Launch kernel failed, name:Default/AllReduce-op5", True, "does not reach the ranks on elsewhere, which are"),
    ("Launch kernel failed, name:Default/AllReduce-op5", False, "rank 1 .* has had no heartbeat"),
    ("Launch kernel failed, name:Default/MatMul-op5", True, "")])
def test_a_connection_that_is_lost_is_named(tmp_path, monkeypatch, said, lives, expected):
    """A collective fails, and the rank of another machine still has a heartbeat, or does not."""
    monkeypatch.setattr(watch, "SHORT_LIMIT", 1.0)
    mate, ended = tmp_path / "rank_1.json", threading.Event()

    def beat():
        while not ended.wait(0.2):
            watch._write(tmp_path, state(1, 7, "step", host="elsewhere"))

    mate.write_text(json.dumps(state(1, 7, "step", host="elsewhere")))
    own = watch.Watch(tmp_path, 0, watch.Limits(remote_grace=2))
    own.enter("step", 7)
    threads = [threading.Thread(target=beat)] if lives else []
    for thread in threads:
        thread.start()
    try:
        with pytest.raises(UserError if expected else RuntimeError, match=expected or "MatMul"), own:
            raise RuntimeError(said)
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def test_limits_are_configuration(tmp_path):
    config = load_config(write_config(tmp_path / "a.yaml", tmp_path, ["train.heartbeat_timeout=30",
                                                                      "train.compile_timeout=900"]))
    own = watch.Watch(None, 0, config.train)
    assert all(getattr(TrainConfig(), name) == value for name, value in vars(watch.Limits()).items())
    assert own.limit() == watch.LEAST_LIMIT and own.limits.heartbeat_timeout == 30 and own.limits.compile_timeout == 900
    for wrong, said in (("heartbeat_timeout=4", "at least 5"), ("barrier_timeout=0", "at least 1"),
                        ("remote_grace=-1", "must not be negative")):
        with pytest.raises(UserError, match=f"train.*{said}"):
            load_config(write_config(tmp_path / "a.yaml", tmp_path, [f"train.{wrong}"]))


@pytest.mark.parametrize("place, expected", [
    ({}, "60"), ({"CLUSTER_TIMEOUT": "90"}, "90"),
    ({"LOCAL_WORKERS": "1", "NODE_RANK": "0", "MASTER_ADDR": "nowhere"}, "600")])
def test_how_long_ranks_wait_for_each_other_to_start(tmp_path, place, expected):
    environ = environment(tmp_path, **place)
    (tmp_path / "venv" / "bin" / "msrun").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/called\n')
    environ["PATH"] = f"{tmp_path / 'venv' / 'bin'}:{environ['PATH']}"
    subprocess.run(["bash", "-c", "source scripts/launch_ranks.sh; launch_ranks 2 train"], cwd=ROOT, env=environ,
                   capture_output=True, timeout=60)
    assert f"--cluster_time_out={expected} " in (tmp_path / "called").read_text()


def test_what_is_compiled_may_no_longer_be_silent_for_long(tmp_path):
    one = watch.Watch(tmp_path, rank=1)
    one.enter("evaluating", 0, compiles=True)
    one.compiled()
    one.barrier()  # writes
    assert not watch.read_states(tmp_path)[0]["compiles"]
    watch.Watch(None).compiled()


def test_a_collective_that_fails_first_is_explained(tmp_path, monkeypatch):
    """MindSpore's own timeout may come before the watch's limit, wherever the rank is."""
    monkeypatch.setenv(watch.FOLDER, str(tmp_path))
    own = watch.Watch.of_job()
    own.enter("step", 7)
    mate = tmp_path / "rank_1.json"
    mate.write_text(json.dumps(state(1, 7, "step", beat=time.time())))
    assert own.explain() == "" and own.state["phase"] == "step"
    mate.write_text(json.dumps(state(1, 7, "step", beat=time.time() - 12)))
    with pytest.raises(UserError, match="rank 1 .* no heartbeat for 12 s .*--resume"), own:
        raise RuntimeError("Launch kernel failed")
    assert watch.tell("what it says itself comes second", 2)
    failed_rank = watch.read_states(tmp_path)[0]["phase"]
    assert failed_rank.startswith("rank 1 (")
    assert job.summary(tmp_path, 1) == (1, f"{failed_rank}; continue with --resume")
    with pytest.raises(RuntimeError, match="kernel"), watch.Watch(None):
        raise RuntimeError("Launch kernel failed")


def test_what_another_rank_has_said_is_not_said_again(tmp_path, monkeypatch, capfd):
    """Both ranks meet the same error, and one reads the other's message before it has come to its own."""
    monkeypatch.setattr(os, "_exit", sys.exit)
    (tmp_path / "rank_1.json").write_text(json.dumps(state(1, 0, "rank 1: x.jpg: no", beat=time.time(), code=2)))
    own = watch.Watch(None)
    own.folder = tmp_path
    own.enter("starting", 0)
    with pytest.raises(SystemExit):
        own._run()
    assert capfd.readouterr() == ("", "")
    assert job.summary(tmp_path, 1) == (2, "rank 1: x.jpg: no")


def test_the_last_message_of_a_rank(tmp_path, monkeypatch):
    assert not watch.tell("nobody hears it", 2)
    monkeypatch.setenv(watch.FOLDER, str(tmp_path / "new"))
    monkeypatch.setenv("RANK_ID", "3")
    watch.begin()
    assert watch.tell("a.yaml: no such key", 2)
    assert job.summary(tmp_path / "new", 1) == (2, "rank 3: a.yaml: no such key")


def test_a_full_disk_does_not_lose_the_last_message(tmp_path, monkeypatch):
    """No new file can be made; the one that is there has room in its block."""
    monkeypatch.setenv(watch.FOLDER, str(tmp_path))
    watch.begin()
    write = Path.write_text

    def refuse(path, text):
        write(path, "")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", refuse)
    assert watch.tell("log.jsonl: cannot be written", 2)
    assert job.summary(tmp_path, 1) == (2, "rank 0: log.jsonl: cannot be written")
    (tmp_path / "rank_0.json").unlink()
    assert not watch.tell("nobody hears it", 2)


def test_a_rank_that_never_comes(tmp_path):
    (tmp_path / "rank_1.json").write_text(json.dumps(state(1, 7, "saving", beat=time.time() + 60)))
    with pytest.raises(UserError, match="rank 1 .* has not reached"), \
            watch.Watch(tmp_path, 0, watch.Limits(barrier_timeout=0.2), workers=2) as own:
        own.barrier()


def test_what_an_earlier_job_has_left_is_cleared_away(tmp_path):
    """On machine 0 all of it, on the others what is old: this job's own files may lie there already."""
    def left_by(node_rank: int) -> set:
        logs = tmp_path / f"logs{node_rank}"
        logs.mkdir()
        for name in ("asked_to_stop", "rank_5.json", "rank_0.json", "worker_0.log"):
            (logs / name).touch()
        for name in ("asked_to_stop", "rank_5.json"):
            os.utime(logs / name, (time.time() - 3600,) * 2)
        more = {"LOG_DIR": str(logs), "NODE_RANK": str(node_rank), "LOCAL_WORKERS": "1", "MASTER_ADDR": "nowhere"}
        place = environment(tmp_path, **more) | {"PATH": f"{tmp_path / 'venv' / 'bin'}:{os.environ['PATH']}"}
        (tmp_path / "venv" / "bin" / "msrun").write_text("#!/bin/sh\n")
        subprocess.run(["bash", "-c", "source scripts/launch_ranks.sh; launch_ranks 2 train"], cwd=ROOT, env=place,
                       capture_output=True, timeout=60)
        return {path.name for path in logs.iterdir()} & {"asked_to_stop", "rank_5.json", "rank_0.json", "worker_0.log"}

    assert left_by(0) == {"worker_0.log"}
    assert left_by(1) == {"worker_0.log", "rank_0.json"}


def test_a_second_signal_kills(tmp_path, monkeypatch):
    """But not within the patience: it is the first one's echo."""
    sent = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append(number))
    (tmp_path / "rank_0.json").write_text(json.dumps(state(0, 7, "step")))
    job.stop_ranks(tmp_path)
    job.stop_ranks(tmp_path)
    assert sent == [signal.SIGTERM]
    for mark in tmp_path.glob(f"{watch.ASKED}*"):
        os.utime(mark, (time.time() - 10,) * 2)
    job.stop_ranks(tmp_path)
    assert sent == [signal.SIGTERM, signal.SIGKILL]


def test_summaries(tmp_path, monkeypatch):
    for rank, phase in enumerate(("step", "loading")):
        (tmp_path / f"rank_{rank}.json").write_text(json.dumps(state(rank, 3, phase, pid=500 + rank)))
    (tmp_path / "msrun.log").write_text("x\nWorker process 501 exit with exception. Error code: -9.\n")
    code, line = job.summary(tmp_path, 1)
    assert code == 1 and "rank 1 (process 501" in line and "killed by signal 9 in step 3 (loading)" in line
    (tmp_path / "msrun.log").write_text("Worker process 500 exit with exception. Error code: 2.\n")
    code, line = job.summary(tmp_path, 1)
    assert code == 2 and "rank 0" in line and "exit code 2" in line and "worker_0.log" in line
    assert job.summary(tmp_path, 0)[0] != 0  # msrun was interrupted, which it calls a success
    (tmp_path / watch.ASKED).touch()
    code, line = job.summary(tmp_path, 1)
    assert code == 143 and line.startswith("killed before the state was saved")
    (tmp_path / watch.ASKED).unlink()
    monkeypatch.setattr(job, "_living", lambda folder: [])
    job.stop_ranks(tmp_path, signal.SIGINT)
    assert job.summary(tmp_path, 1)[0] == 130 and job.summary(tmp_path, 1)[1].startswith("killed before")
    for phase, status, expected in (("done", 0, (0, "")), ("done", 143, (0, "")), ("starting", 0, (0, ""))):
        for rank in (0, 1):
            (tmp_path / f"rank_{rank}.json").write_text(json.dumps(state(rank, 3, phase)))
        assert job.summary(tmp_path, status) == expected
    for rank, (phase, exit_code) in enumerate((("rank 1 (process 501 on here) died", 1), ("rank 1: x.jpg: no", 2))):
        (tmp_path / f"rank_{rank}.json").write_text(json.dumps(state(rank, 3, phase, code=exit_code)))
    assert job.summary(tmp_path, 1) == (2, "rank 1: x.jpg: no; continue with --resume")




@pytest.mark.parametrize(("code", "expected"), [(0, 0), (2, 2), (None, 0), ("what a library says at its end", 1)])
def test_a_rank_ends_with_a_number(tmp_path, monkeypatch, code, expected):
    """Whatever it was ended with: MindSpore's teardown is jumped over by os._exit, which takes numbers alone."""
    ended = []
    monkeypatch.setenv(watch.FOLDER, str(tmp_path))
    monkeypatch.setattr(command_line, "listen", lambda: None)
    monkeypatch.setattr(command_line, "main", lambda: sys.exit(code))
    monkeypatch.setattr(os, "_exit", ended.append)
    command_line.run_rank()
    assert ended == [expected]
    assert ("not understood" in watch.read_states(tmp_path)[0]["phase"]) == bool(expected)
