"""What a dry run says of memory: the arithmetic, limits of containers, and attempts that end for want of memory."""

import os
import re

import pytest
from fake_training import compute_nothing, fails
from tiny_network import tiny_config
from training_runs import write_config

from mindspore_coupalign import memory
from mindspore_coupalign.__main__ import main
from mindspore_coupalign.data.refshapes.dataset import make_shapes
from mindspore_coupalign.distributed.process import Runtime, environment_alone
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.training import dry_run
from mindspore_coupalign.training.dry_run import GIB, LargestBatch, Line, Measured, fewest_micro_batches, outcome

KILLED = Measured(out_of_memory=True, error="killed (signal 9), as the system does when memory runs out")


def test_the_line_through_two_sizes():
    line = Line.through({2: 5 * GIB, 4: 9 * GIB})
    assert line == (GIB, 2 * GIB)
    assert [line.largest(room * GIB) for room in (0.5, 1, 2.9, 3, 20.9, 21)] == [0, 0, 0, 1, 9, 10]


@pytest.mark.parametrize("growths", [{4: 8 * GIB}, {2: 9 * GIB, 4: 8 * GIB}, {2: 8 * GIB, 4: 8 * GIB},
                                     {2: 3 * GIB, 4: 8 * GIB}])
def test_where_two_sizes_make_no_line_all_memory_is_the_samples(growths):
    """Also where the line would begin below 0, as when the first of them has a part that the second has not."""
    assert Line.through(growths) == Line(0.0, 2 * GIB)


def test_a_global_batch_in_micro_batches():
    assert [fewest_micro_batches(32, 1, largest) for largest in (40, 32, 31, 9, 8, 1, 0)] == [1, 1, 2, 4, 4, 32, 0]
    assert fewest_micro_batches(32, 4, 5) == 2 and fewest_micro_batches(30, 2, 4) == 5


def test_how_an_attempt_ended():
    assert outcome(0, 'a warning\n{"growth": 7}\n', "") == Measured(7)
    assert outcome(-11, '{"growth": 7}\n', "") == Measured(7)  # MindSpore's teardown
    assert outcome(-9, "", "") == KILLED
    for said in ("RuntimeError: Out of memory!", "std::bad_alloc", "Device(id:0) memory isn't enough and alloc failed"):
        assert outcome(1, "", f"{said}\n----\n").out_of_memory
    assert outcome(1, "", "KeyError: 'x'\n") == Measured(error="its process ended by exit code 1: KeyError: 'x'")
    assert outcome(-6, "", "").error == "its process ended by signal 6"


def test_an_attempt_that_the_system_kills(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nkill -9 $$\n")
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))
    assert dry_run.measure_step(tiny_config(), "CPU", 30, 2) == KILLED


def test_a_container_limits_the_memory(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal: 1000 kB\nMemAvailable: 600 kB\nHugePages_Total: 0\n")
    (tmp_path / "group").write_text("4:memory:/job\n1:cpu:/\n0::/pod/job\n")
    monkeypatch.setattr(memory, "OF_MACHINE", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "OF_PROCESS", tmp_path / "group")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")
    assert memory.host() == (1024000, 614400, 0) and memory.host().usable == 1024000

    def limit(place, value):
        (tmp_path / "cgroup" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / place).write_text(f"{value}\n")
        return memory.host().limit

    assert limit("memory/job/memory.limit_in_bytes", 2**63 - 4096) == 0
    assert limit("pod/job/memory.max", "max") == 0
    assert limit("pod/memory.max", 900000) == 900000 == memory.host().usable
    assert limit("memory/memory.limit_in_bytes", 800000) == 800000
    assert limit("memory.max", 700000) == 700000
    assert memory.resident() <= memory.peak() * 1.01


def test_a_child_is_no_rank(monkeypatch):
    for name in ("MS_ROLE", "MS_SCHED_HOST", "COUPALIGN_RANKS", "DEVICE_ID"):
        monkeypatch.setenv(name, "1")
    alone = environment_alone()
    assert alone["DEVICE_ID"] == "1" and not {"MS_ROLE", "MS_SCHED_HOST", "COUPALIGN_RANKS"} & alone.keys()
    assert set(os.environ) - set(alone) == {n for n in os.environ if n.startswith(("MS_ROLE", "MS_SCHED",
                                                                                   "MS_WORKER_NUM", "COUPALIGN_"))}


@pytest.fixture
def checked(monkeypatch):
    """``checked(total, attempts, *overrides)``: a LargestBatch on a machine of ``total`` GiB after its check; an
    attempt is GiB, None where it is killed, or why it failed otherwise."""
    def run(total, attempts, *overrides, workers=1, ranks=1):
        tried, log = [], []

        def measure(config, target, vocabulary, micro):
            tried.append(micro)
            attempt = attempts[micro]
            return KILLED if attempt is None else Measured(error=attempt) if isinstance(attempt, str) else \
                Measured(int(attempt * GIB))

        monkeypatch.setattr(dry_run.ranks, "all_reduce_sum", lambda array, _: array * ranks)
        monkeypatch.setattr(dry_run, "host", lambda: memory.Host(int(total * GIB), int(total * GIB), 0))
        monkeypatch.setattr(dry_run, "resident", lambda: 0)
        runtime = Runtime("CPU", 0, ranks)
        runtime.watch.workers = workers
        batch = LargestBatch(tiny_config(*overrides), runtime, 30, log.append, measure)
        try:
            batch.check()
        finally:
            run.tried, run.log = tried, log
        return batch

    return run


def test_what_surely_fits_is_tried_once(checked, monkeypatch):
    batch = checked(20, {4: 5}, "train.batch_size=8")
    assert checked.tried == [4]
    monkeypatch.setattr(dry_run, "used", lambda *_: 9 * GIB)
    batch.report(0)
    assert re.search(r"1 GiB for each sample plus 1: the largest micro-batch that fits into 20\.0 GiB is about 17, "
                     "10% kept free", checked.log[-1])
    batch.accumulate = 2
    assert "train.batch_size=8 would fit with train.accumulate=1, 8 samples at a time; it is 2" in batch.lines()[-1]


def test_what_may_not_fit_is_tried_outside(checked):
    """Twice the memory of half the batch is more than there is: it may fit all the same."""
    assert checked(9.5, {4: 5, 8: 9}, "train.batch_size=8").growths == {4: 5 * GIB, 8: 9 * GIB}
    assert checked.tried == [4, 8]


def test_what_does_not_fit_ends_with_one_line(checked):
    with pytest.raises(UserError) as said:
        checked(8, {4: 5, 8: None}, "train.batch_size=8")
    assert str(said.value) == (
        "train.batch_size=8 with train.accumulate=1: 8 samples at a time do not fit into the memory (killed (signal "
        "9), as the system does when memory runs out); train.accumulate=2 takes 4 at a time")
    with pytest.raises(UserError, match="with train.accumulate=2: 8 samples .*; train.accumulate=16 takes 2 at"):
        checked(8, {8: None, 1: 3}, "train.batch_size=32", "train.accumulate=2")
    assert checked.tried == [8, 1]
    with pytest.raises(UserError, match="lower data.image_size or take a smaller model"):
        checked(8, {2: None, 1: None}, "train.batch_size=1")
    assert checked.tried == [2, 1]


def test_a_batch_of_one_may_be_the_largest(checked, monkeypatch):
    batch = checked(8, {2: None, 1: 6}, "train.batch_size=1")
    monkeypatch.setattr(dry_run, "used", lambda *_: 6 * GIB)
    batch.report(0)
    assert batch.growths == {1: 6 * GIB}


def test_ranks_of_a_machine_share_its_memory(checked):
    batch = checked(20, {2: 2.5}, "train.batch_size=16", workers=4, ranks=4)
    assert batch.total == 5 * GIB and batch.micro == 4 and batch.growths[2] == 2.5 * GIB


def test_an_attempt_that_fails_otherwise_stops_nothing(checked):
    batch = checked(20, {4: "its process ended with exit code 1: ImportError"}, "train.batch_size=8")
    assert batch.growths == {} and "could not be measured: its process ended with exit code 1: ImportError" in \
        checked.log[-1]


def test_the_command_ends_with_the_line(tmp_path, monkeypatch, capsys):
    make_shapes(tmp_path / "data", 1, train=5, val=2, testA=1, testB=1)
    config = write_config(tmp_path / "small.yaml", tmp_path / "data")
    compute_nothing(monkeypatch, [1.0] * 20, measure=lambda *_: KILLED)
    arguments = ["train", "--config", config, "--output", tmp_path / "run", "--dry-run", "train.batch_size=4"]
    assert "do not fit into the memory" in fails(capsys, *arguments) and not (tmp_path / "run").exists()
    compute_nothing(monkeypatch, [1.0] * 20)
    assert main([str(a) for a in arguments]) == 0
    assert "compiles once more" in capsys.readouterr().out
