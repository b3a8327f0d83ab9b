"""Several ranks on one machine: the same run as one rank, exact scores, and a job that ends when a rank does."""

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

import numpy as np
import pytest
from test_reliability import QUICK, hear_interrupts, running
from test_train import log_of, run_command, write_config

from mindspore_coupalign.config import Config, load_config
from mindspore_coupalign.data.refshapes.dataset import make_shapes
from mindspore_coupalign.distributed import launcher as job
from mindspore_coupalign.distributed import watchdog as watch
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.training.step import LOSSES
from mindspore_coupalign.weights.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parents[1]
# Noise is drawn by each rank for itself: none here, so that two ranks can equal one
EQUAL = ["loss.negatives=300", "model.text.dropout=0", "model.image.name=swin", "model.sentence_mask=false",
         "loss.proposal_mask=0", "model.proposal_head=false", "train.ema=0.9", "data.flip=0.5", "train.clip_norm=0.5",
         "eval.threshold=0.35",
         "train.lr=3e-4"]
ENDLESS = ["train.steps=100000", "train.val_every=100000"]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def environment(tmp_path, **more) -> dict:
    """For the project's scripts: the tests' own Python in place of a virtual environment, a port of their own."""
    venv = tmp_path / "venv"
    if not venv.exists():
        (venv / "bin").mkdir(parents=True)
        for name in ("python", "msrun"):
            target = Path(sys.executable).parent / name
            (venv / "bin" / name).write_text(f'#!/bin/sh\nexec "{target}" "$@"\n')
            (venv / "bin" / name).chmod(0o755)
        content = (ROOT / "requirements.txt").read_bytes() * 2
        mark = subprocess.run(["cksum"], input=content, capture_output=True).stdout.split()[0].decode()
        (venv / f".installed-{mark}").touch()
    return {**os.environ, "VENV": str(venv), "LOG_DIR": str(tmp_path / "logs"), "MASTER_PORT": str(free_port()), **more}


def start(tmp_path, workers, *arguments):
    return subprocess.Popen(["bash", "scripts/run_distribute_train.sh", str(workers), *map(str, arguments)], cwd=ROOT,
                            env=environment(tmp_path), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            start_new_session=True, preexec_fn=hear_interrupts)


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    make_shapes(folder / "data", 3, train=9, val=4, testA=1, testB=1)
    return folder, write_config(folder / "small.yaml", folder / "data", EQUAL)


@pytest.fixture(scope="module")
def quick(setting):
    """For what does not depend on the network: one that compiles sooner."""
    return write_config(setting[0] / "quick.yaml", setting[0] / "data", QUICK)


@pytest.fixture(scope="module")
def one_and_two(setting):
    """The same run by one rank and, through the script, by two."""
    folder, config = setting
    length = ["train.steps=20", "train.val_every=10"]
    process = start(folder, 2, config, "CPU", "--output", folder / "two", *length)
    out, _ = process.communicate(timeout=400)
    assert process.returncode == 0, out
    run_command("train", "--config", config, "--output", folder / "one", *length)
    return folder / "one", folder / "two", out


def test_two_ranks_equal_one(one_and_two):
    one, two, out = one_and_two
    assert_equal(one, two)
    assert "2 ranks" in out and out.count("20 steps of 4 samples") == 1  # rank 0 alone speaks


def assert_equal(one: Path, two: Path):
    """The loss curve, the scores and every parameter after 20 steps of two runs."""
    (losses, scores), (losses_2, scores_2) = log_of(one), log_of(two)
    assert [line["step"] for line in losses_2] == list(range(1, 21))
    for key in LOSSES:
        np.testing.assert_allclose([x[key] for x in losses_2], [x[key] for x in losses], rtol=1e-5, atol=1e-5)
    first, second = (load_checkpoint(run / "last.safetensors") for run in (one, two))
    assert first.arrays.keys() == second.arrays.keys()
    for name, array in first.section("model").items():
        if name.endswith("k.bias"):  # adds the same to all scores: its gradient is rounding, which Adam makes large
            continue
        np.testing.assert_allclose(second.arrays[f"model.{name}"], array, atol=1e-5, err_msg=name)
    assert [line["val"]["sentences"] for line in scores_2] == [line["val"]["sentences"] for line in scores]
    for a, b in zip(scores, scores_2, strict=True):
        assert b["val"]["image"]["mIoU"] == pytest.approx(a["val"]["image"]["mIoU"], abs=0.05)


@pytest.mark.parametrize("workers", [3])
def test_evaluation_on_three_ranks_is_exact(one_and_two, setting, workers, tmp_path):
    """Splits that three does not divide, each sentence once: the same files as from one rank."""
    best = one_and_two[0] / "best.safetensors"

    def options(name):
        return ["--protocol", "sentence", "ref-averaged", "cris", "--output", str(tmp_path / f"{name}.json"),
                "--details", str(tmp_path / f"{name}.jsonl")]

    run_command("evaluate", "--checkpoint", best, "--split", "val", "train", *options("one"))
    done = subprocess.run(
        ["bash", "scripts/run_eval.sh", str(best), "val train", "CPU", *options("many")],
        cwd=ROOT, text=True, capture_output=True, timeout=300, env=environment(tmp_path, WORKER_NUM=str(workers)))
    assert done.returncode == 0, done.stdout + done.stderr
    one, many = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "many"))
    assert many == one and one["splits"]["val"]["sentences"] % workers
    assert done.stdout.count("image's own size") >= 2 and done.stdout.count("wrote") == 2
    details = (tmp_path / "many.jsonl").read_text()
    assert details == (tmp_path / "one.jsonl").read_text()
    assert details.count("\n") == sum(split["sentences"] for split in one["splits"].values())


def under_way(process, logs: Path, step: int) -> list:
    """The states of both ranks once both have come to ``step``."""
    deadline = time.time() + 200
    while True:
        states = [s for s in watch.read_states(logs) if s["step"] >= step]
        if [s["rank"] for s in states] == [0, 1]:
            return states
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.1)


def lose_rank_1(folder, config, way, step, *arguments) -> str:
    """The last line of a job whose rank 1 gets the signal ``way`` at ``step``."""
    process = start(folder, 2, config, "CPU", *arguments, *ENDLESS, "train.save_every=2")
    try:
        os.kill(under_way(process, folder / "logs", step)[1]["pid"], way)
        out, _ = process.communicate(timeout=60)
    finally:
        for state in watch.read_states(folder / "logs"):
            subprocess.run(["kill", "-9", str(state["pid"])], capture_output=True)
    last = out.strip().splitlines()[-1]
    assert process.returncode != 0 and last.startswith("error: rank 1 (process") and "--resume" in last, out
    return last


@pytest.fixture(scope="module")
def killed(quick, tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    last = lose_rank_1(folder, quick, signal.SIGKILL, 5, "--output", folder / "run")
    return folder / "run", last, load_checkpoint(folder / "run" / "last.safetensors").progress["step"]


def test_a_rank_that_dies_ends_the_job(killed):
    """Within 60 seconds, with a line that names it."""
    _, last, step = killed
    assert re.search("killed by signal 9|died", last) and step >= 4


def test_a_rank_that_hangs_ends_the_job_that_a_resume_went_on_with(quick, killed, tmp_path):
    run, _, step = killed
    last = lose_rank_1(tmp_path, quick, signal.SIGSTOP, step + 3, "--resume", run)
    assert re.search("no heartbeat|hangs", last), last
    assert load_checkpoint(run / "last.safetensors").progress["step"] >= step + 2


@pytest.fixture(scope="module")
def stopped(quick, tmp_path_factory, request):
    """A run of one rank that got a signal: its folder, exit code, output and errors."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    process = running(quick, run)
    process.send_signal(request.param)
    out, err = process.communicate(timeout=60)
    return run, process.returncode, out, err, load_checkpoint(run / "last.safetensors").progress["step"]


@pytest.mark.parametrize("stopped, expected", [(signal.SIGTERM, 143), (signal.SIGINT, 130)], indirect=["stopped"])
def test_sigterm_or_ctrl_c_saves_and_ends(stopped, expected):
    """MindSpore turns the second into the first; the exit code has to tell them apart all the same."""
    run, code, out, err, step = stopped
    assert code == expected and "Traceback" not in err
    assert f"the state of step {step} is saved; go on with --resume" in out
    assert log_of(run)[0][-1]["step"] == step  # nothing was done after the save


@pytest.mark.parametrize("stopped", [signal.SIGTERM], indirect=True)
def test_a_job_that_is_asked_to_stop_saves_first(quick, stopped, tmp_path):
    """SIGTERM as a cluster's scheduler sends it: to every process, those of the script's group and the ranks. Two
    ranks, which go on where one had stopped."""
    run, *_, before = stopped
    process = start(tmp_path, 2, quick, "CPU", "--resume", run, *ENDLESS, "train.save_every=1")
    for state in under_way(process, tmp_path / "logs", before + 3):
        os.kill(state["pid"], signal.SIGTERM)
    os.killpg(process.pid, signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 143 and out.strip().splitlines()[-1].startswith("all ranks have saved"), out
    step = load_checkpoint(run / "last.safetensors").progress["step"]
    assert step >= before + 3 and f"the state of step {step} is saved" in out
    assert [line["step"] for line in log_of(run)[0]] == list(range(1, step + 1))
    assert not [s for s in watch.read_states(tmp_path / "logs") if watch.lives(s["pid"])]


@pytest.mark.parametrize("way, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_job_that_is_asked_to_stop_before_it_has_started(setting, tmp_path, way, code):
    process = start(tmp_path, 2, setting[1], "CPU", "--output", tmp_path / "run")
    while not (tmp_path / "logs" / "worker_0.log").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(way)
    out, _ = process.communicate(timeout=100)
    assert process.returncode == code and out.strip().splitlines()[-1].startswith("stopped, as it was asked to"), out
    assert not (tmp_path / "run").exists() and not job._living(tmp_path / "logs")


@pytest.mark.parametrize("arguments, error", [
    (["train.batch=4"], "train.batch"),  # before the ranks know of each other
    (["train.batch_size=5"], "multiple of the 2 ranks"),
    pytest.param(["--no-such-option"], "the command line was not understood; see its log", marks=pytest.mark.slow),
])
def test_bad_input_is_said_in_one_line(setting, tmp_path, arguments, error):
    process = start(tmp_path, 2, setting[1], "CPU", "--output", tmp_path / "run", *arguments)
    out, _ = process.communicate(timeout=100)
    last = out.strip().splitlines()[-1]
    assert process.returncode == 2 and last.startswith("error: rank ") and error in last, out
    assert "Traceback" not in out and "--resume" not in last and out.count("error: rank") == 1, out


@pytest.mark.parametrize("arguments, said", [
    (["--resume", "two"], "trained to its end at step 20"),
    pytest.param(["--dry-run", "--output", "new"], "nothing was written", marks=pytest.mark.slow),
])
def test_ranks_with_nothing_to_train_end_well(one_and_two, setting, arguments, said):
    process = start(setting[0], 2, setting[1], "CPU", *arguments[:-1], setting[0] / arguments[-1], "train.steps=20",
                    "train.val_every=10")
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 0 and said in out, out


LATE = """
import time
from pathlib import Path
import numpy as np
from mindspore_coupalign.runtime import setup
from mindspore_coupalign.distributed import collectives as ranks
from mindspore_coupalign.distributed.watchdog import Watch, begin
begin()
with Watch.of_job() as watch:
    runtime = setup("CPU", 0, watch)
    time.sleep(45 * runtime.rank)
    assert ranks.all_reduce_sum(np.array([70000 + runtime.rank]), runtime).tolist() == [140001]
    ranks.wait(runtime)
    time.sleep(35 * (1 - runtime.rank))
"""


@pytest.mark.slow
def test_a_rank_that_comes_late_is_waited_for(tmp_path):
    """Longer than the 30 s after which MindSpore's collectives on CPU give up, and at the end as well."""
    (tmp_path / "late.py").write_text(LATE)
    place = {watch.FOLDER: str(tmp_path / "ranks"), watch.LOCAL_WORKERS: "2", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["msrun", "--worker_num=2", "--local_worker_num=2", f"--master_port={free_port()}",
                           "--join=True", f"--log_dir={tmp_path}", "python", tmp_path / "late.py"], cwd=tmp_path,
                          env=environment(tmp_path) | place | {"PATH": f"{tmp_path}/venv/bin:{os.environ['PATH']}"},
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [s["phase"] for s in watch.read_states(tmp_path / "ranks")] == ["done", "done"]


SPIN = """
import os, signal, sys, types
from mindspore_coupalign import __main__ as command_line
command_line.watch_interrupts()
import mindspore as ms
import numpy as np
spin = types.ModuleType("mindspore_coupalign.cli.spin")
spin.add_arguments = lambda parser: None

@ms.jit
def product(x):
    return ms.ops.matmul(x, x)

def run(args):
    x = ms.Tensor(np.ones((9, 9), np.float32))
    product(x).asnumpy()
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(100000):
        product(x).asnumpy()
    return 0

spin.run = run
sys.modules[spin.__name__] = spin
command_line.COMMANDS["spin"] = "compute for long"
sys.exit(command_line.main(["spin"]))
"""


def test_ctrl_c_ends_any_command_with_130(tmp_path):
    """Also while MindSpore computes, whose own handler would make a SIGTERM of it."""
    (tmp_path / "spin.py").write_text(SPIN)
    done = subprocess.run([sys.executable, tmp_path / "spin.py"], capture_output=True, text=True, timeout=100,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, preexec_fn=hear_interrupts)
    assert done.returncode == 130 and done.stderr.strip().splitlines()[-1] == "interrupted", done.stderr
    assert "Traceback" not in done.stderr


def test_ranks_meet(tmp_path):
    """The first waits for the second, then both go on; and at the end."""
    first, second = (watch.Watch(tmp_path, rank, workers=2) for rank in (0, 1))
    came = []

    def go():
        with first:
            first.barrier()
            came.append("met")

    thread = threading.Thread(target=go)
    thread.start()
    time.sleep(0.5)
    assert came == [] and thread.is_alive()
    second.enter("loading", 1)  # what it does since does not change how often it has met
    second.barrier()
    time.sleep(0.5)
    assert came == ["met"] and thread.is_alive()  # it waits at its end
    with second:
        pass
    thread.join(10)
    assert not thread.is_alive() and [s["phase"] for s in watch.read_states(tmp_path)] == ["done", "done"]
    with watch.Watch(None) as nobody:
        nobody.barrier()


def state(rank, step, phase, since=0.0, beat=100.0, **more):
    return {"rank": rank, "pid": os.getpid(), "host": socket.gethostname(), "step": step, "phase": phase,
            "since": since, "beat": beat, "compiles": False, "code": 1, "met": 0, **more}


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
    own = watch.Watch(tmp_path, 0, watch.Limits(remote=2))
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
    assert watch.Limits.of(config.train) == watch.Limits(0, 30, 900, 60, 1800)
    assert watch.Limits() == watch.Limits.of(Config().train)
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
    assert job.summary(tmp_path, 1) == (1, f"{failed_rank}; go on with --resume")
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
    with pytest.raises(UserError, match="rank 1 .* has not come"), \
            watch.Watch(tmp_path, 0, watch.Limits(barrier=0.2), workers=2) as own:
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
    assert job.summary(tmp_path, 1) == (2, "rank 1: x.jpg: no; go on with --resume")


