"""Several ranks on one machine: the same run as one rank, exact scores, and a job that ends when a rank does."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from ranks import EQUAL, assert_equal, environment, free_port
from training_runs import ENDLESS, QUICK, ROOT, hear_interrupts, log_of, run_command, running, write_config

from mindspore_coupalign.data.refshapes.dataset import make_shapes
from mindspore_coupalign.distributed import launcher as job
from mindspore_coupalign.distributed import watchdog as watch
from mindspore_coupalign.weights.checkpoint import load_checkpoint


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
    assert "2 ranks" in out and out.count("20 steps of 4 samples") == 1  # rank 0 alone prints


def test_evaluation_on_three_ranks_is_exact(one_and_two, tmp_path):
    """Splits that three does not divide, each sentence once: the same files as from one rank."""
    best = one_and_two[0] / "best.safetensors"

    def options(name):
        return ["--protocol", "sentence", "ref-averaged", "cris", "--output", str(tmp_path / f"{name}.json"),
                "--details", str(tmp_path / f"{name}.jsonl")]

    run_command("evaluate", "--checkpoint", best, "--split", "val", "train", *options("one"))
    done = subprocess.run(
        ["bash", "scripts/run_eval.sh", str(best), "val train", "CPU", *options("many")],
        cwd=ROOT, text=True, capture_output=True, timeout=300, env=environment(tmp_path, WORKER_NUM="3"))
    assert done.returncode == 0, done.stdout + done.stderr
    one, many = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "many"))
    assert many == one and one["splits"]["val"]["sentences"] % 3
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


@pytest.mark.slow
def test_a_rank_that_hangs_ends_a_resumed_job(quick, killed, tmp_path):
    run, _, step = killed
    last = lose_rank_1(tmp_path, quick, signal.SIGSTOP, step + 3, "--resume", run)
    assert re.search("no heartbeat|hangs", last), last
    assert load_checkpoint(run / "last.safetensors").progress["step"] >= step + 2


@pytest.fixture(scope="module")
def stopped(quick, tmp_path_factory):
    """A run of one rank that got Ctrl-C: its folder, exit code, output and errors, and the saved step."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    process = running(quick, run)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    return run, process.returncode, out, err, load_checkpoint(run / "last.safetensors").progress["step"]


def test_ctrl_c_saves_and_ends(stopped):
    """MindSpore makes a SIGTERM of it; the exit code has to tell them apart all the same."""
    run, code, out, err, step = stopped
    assert code == 130 and "Traceback" not in err
    assert f"the state of step {step} is saved; continue with --resume" in out


def test_a_job_that_is_asked_to_stop_saves_first(quick, stopped, tmp_path):
    """SIGTERM as a cluster's scheduler sends it: to every process, those of the script's group and the ranks. Two
    ranks, which resume where one had stopped; no step is lost or done after a save."""
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
    assert not [s for s in watch.read_states(tmp_path / "logs") if watch.is_alive(s["pid"])]


@pytest.mark.parametrize("way, code", [  # who asks is the script's business alone (test_watchdog.py, test_scripts.py)
    (signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGHUP, 129)])
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
    pytest.param(["train.batch=4"], "train.batch", marks=pytest.mark.slow),  # before the ranks know of each other
    (["train.batch_size=5"], "multiple of the 2 ranks"),
    pytest.param(["--no-such-option"], "the command line was not understood; see its log", marks=pytest.mark.slow),
])
def test_bad_input_is_one_line(setting, tmp_path, arguments, error):
    process = start(tmp_path, 2, setting[1], "CPU", "--output", tmp_path / "run", *arguments)
    out, _ = process.communicate(timeout=100)
    last = out.strip().splitlines()[-1]
    assert process.returncode == 2 and last.startswith("error: rank ") and error in last, out
    assert "Traceback" not in out and "--resume" not in last and out.count("error: rank") == 1, out


@pytest.mark.parametrize("arguments, said", [
    (["--resume", "two"], "already complete at step 20"),
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
