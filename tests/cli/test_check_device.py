"""``check-device``: what counts as equal, that what is wrong is named, and the whole command on the CPU."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from conftest import ROOT
from tiny_network import DROPPING, TINY

from mindspore_coupalign.__main__ import main
from mindspore_coupalign.cli import check_device
from mindspore_coupalign.device_check import checks
from mindspore_coupalign.device_check.compare import BOUNDS, EPS, compare
from mindspore_coupalign.distributed.process import reason
from mindspore_coupalign.doctor.machine import ABSENT, OK, Item

FORWARD = {"stage 1": np.ones((2, 3)), "stage 2": np.full((2, 3), 5.0), "logits": np.full((2, 1), 0.1)}
GRADIENTS = {"a.weight": np.array([1.0, -0.5, 1e-4]), "a.bias": np.array([1e-9, -2e-9])}  # that bias has none
WEIGHTS = {name: -1e-3 * np.sign(gradient) for name, gradient in GRADIENTS.items()}  # Adam's first step
RESULTS = {"forward": FORWARD, "losses": {"loss": np.float32(2), "dice": np.float32(0)}, "gradients": GRADIENTS,
           "weights": WEIGHTS, "curve": {"step 1": np.float32(2), "step 2": np.float32(1)}}
START = {"a.weight": np.array([1.0, 1.0, 1.0]), "a.bias": np.array([0.0, 0.0])}


@pytest.fixture
def compared(tmp_path):
    """(results of the device) -> rows by part."""
    np.savez(tmp_path / "weights.npz", **START)

    def write(name: str, results: dict):
        (tmp_path / name).mkdir()
        for part, arrays in results.items():
            np.savez(tmp_path / name / f"{part}.npz", **arrays)

    def compared(results: dict, half: bool = False) -> dict:
        write("found", results)
        return {row.part: row for row in compare(tmp_path, tmp_path / "found", tmp_path / "reference", half)}

    write("reference", RESULTS)
    compared.folder = tmp_path
    return compared


def changed(part: str, name: str, value) -> dict:
    return RESULTS | {part: RESULTS[part] | {name: np.asarray(value)}}


@pytest.mark.parametrize("half", [False, True])
def test_equal_results(compared, half):
    rows = compared(RESULTS, half)
    assert [part for part in rows if part != "each"] == list(BOUNDS) and ("each" in rows) == half
    assert all(row.good and row.error == 0 for row in rows.values())


@pytest.mark.parametrize("part, name, value, where", [
    ("forward", "stage 2", [[5, 5, 5], [5, 5, 5.01]], "stage 2"),
    ("forward", "stage 1", [[1, 1, 1], [1, 1, np.nan]], "stage 1"),
    ("losses", "loss", 2.01, "loss"),
    ("losses", "dice", 1e-3, "dice"),
    ("gradients", "a.weight", [1.0, -0.5, 6e-3], "a.weight"),
    ("gradients", "a.bias", [1e-7, 0], "a.bias"),  # of a tensor without a gradient: beside the largest of all
    ("weights", "a.weight", [-1e-3, -1e-3, -1e-3], "a.weight"),  # moved the wrong way
    ("curve", "step 2", 1.1, "step 2")])
def test_what_differs_is_named(compared, part, name, value, where):
    rows = compared(changed(part, name, value))
    assert [row.part for row in rows.values() if not row.good] == [part]
    assert rows[part].where == where


@pytest.mark.parametrize("part, name, value", [
    ("forward", "stage 2", [[5, 5, 5], [5, 5, 5.004]]),
    ("gradients", "a.bias", [-3e-9, 4e-9]),  # rounding alone
    ("weights", "a.bias", [1e-3, 1e-3]),  # whose signs Adam follows
    ("weights", "a.weight", [-1e-3, 1e-3, 1e-3]),  # the third gradient is too small to say where to
    ("weights", "a.weight", [-1e-3 - 1.1 * EPS, 1e-3, -1e-3])])  # 1 - 1e-3 has no more digits
def test_what_is_rounding_passes(compared, part, name, value):
    assert all(row.good for row in compared(changed(part, name, value)).values())


def test_the_first_that_is_wrong_is_named_not_the_worst(compared):
    wrong = RESULTS | {"forward": FORWARD | {"stage 2": FORWARD["stage 2"] * 1.01, "logits": FORWARD["logits"] * 3}}
    assert compared(wrong)["forward"].where == "stage 2"


def test_half_precision_is_measured_as_a_whole(compared):
    rows = compared(changed("gradients", "a.weight", [1.02, -0.51, 5e-3]), half=True)
    assert rows["gradients"].good and 0.01 < rows["gradients"].error < 0.03
    assert rows["gradients"].where == "all as one vector" and rows["each"].good


@pytest.mark.parametrize("factor", [0, -1, np.nan])
def test_a_small_gradient_that_is_missing_in_half_precision_is_named(compared, factor):
    """Of all as one vector it is next to nothing."""
    small = {"b.weight": np.array([1e-4, 3e-4])}
    np.savez(compared.folder / "reference" / "gradients.npz", **GRADIENTS, **small)
    rows = compared(changed("gradients", "b.weight", factor * small["b.weight"]), half=True)
    assert not rows["each"].good and rows["each"].where == "b.weight"
    assert rows["gradients"].good or np.isnan(factor)


def test_a_process_that_ended_early_is_compared_as_far_as_it_came(compared):
    assert list(compared({part: RESULTS[part] for part in ("forward", "losses")})) == ["forward", "losses"]


def test_why_a_process_ended():
    said = "a warning\nTraceback (most recent call last):\nRuntimeError: no kernel for Erf\n\n----\n- Hint\nuse\n"
    assert reason(1, said) == "its process ended by exit code 1: RuntimeError: no kernel for Erf - Hint use"
    assert reason(-9, "compiling\n") == "its process ended by signal 9: compiling"
    assert reason(2, "error: x.json: no such file\n").endswith("exit code 2: error: x.json: no such file")
    assert reason(3, "") == "its process ended by exit code 3"


def computing(session: int) -> bool:
    """Whether a process of that session computes for a check."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            here = int((process / "stat").read_text().rpartition(")")[2].split()[3])
            if here == session and b"device_check.run_case" in (process / "cmdline").read_bytes():
                return True
    return False


def test_a_check_that_is_interrupted_leaves_nothing(tmp_path):
    """Neither its folder nor the process that computes. Other signals: test_interrupts.py."""
    place = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-m", "mindspore_coupalign", "check-device", "CPU", "--amp", "O0"]
    with subprocess.Popen(command, env=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          start_new_session=True,
                          preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) as check:  # if it is ignored
        until = time.time() + 120
        while not computing(check.pid) and time.time() < until:
            time.sleep(0.1)
        assert list(tmp_path.glob("coupalign-check-*"))
        check.send_signal(signal.SIGINT)
        said, _ = check.communicate(timeout=60)
    assert check.returncode == 130 and "Traceback" not in said
    assert not computing(check.pid)
    assert not list(tmp_path.glob("coupalign-check-*"))


@pytest.fixture
def tiny(tmp_path):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    return ["--config", str(tmp_path / "tiny.yaml"), "--batch", "2", "--steps", "2", "train.ema=0.9", *DROPPING]


@pytest.mark.slow
def test_the_cpu_agrees_with_itself(tiny, tmp_path, capsys):
    """In float32 bit by bit, dropout included; in emulated half precision with the errors that it has."""
    assert main(["check-device", "CPU", "--amp", "O0", "O1", "--output", str(tmp_path / "r.json"), *tiny]) == 0
    same, half = json.loads((tmp_path / "r.json").read_text())["results"][1:]
    assert [row["part"] for row in same["rows"]] == list(BOUNDS)
    assert not any(row["error"] for row in same["rows"])
    errors = {row["part"]: row["error"] for row in half["rows"]}
    assert 1e-5 < errors["forward"] < 1e-2 and 1e-5 < errors["gradients"] < 0.1 and half["facts"]["overflows"] >= 0
    assert "\nCPU agrees with the CPU\n" in capsys.readouterr().out


@pytest.mark.slow
def test_a_device_that_is_wrong_and_dies(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(checks, "RUN_CASE", "wrong_device")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests" / "helpers"))
    assert main(["check-device", "CPU", "--amp", "O1", "--output", str(tmp_path / "r.json"), *tiny]) == 1
    reference, wrong = json.loads((tmp_path / "r.json").read_text())["results"]
    assert reference["good"] and not wrong["good"]
    assert [(row["part"], row["where"], row["good"]) for row in wrong["rows"]] == [("forward", "stage 3", False)]
    assert "signal 9" in wrong["why"]
    printed = capsys.readouterr().out
    assert "CPU does not agree with the CPU, or fails: CPU O1" in printed and "BAD  forward" in printed


def test_a_reference_that_fails_ends_it(tiny, capsys):
    assert main(["check-device", "CPU", *tiny, "model.backbone_weights=nowhere.pth", "train.amp_dtype=float16",
                 "train.freeze=[nothing]"]) == 1
    printed = capsys.readouterr().out
    assert "no parameter's name starts with 'nothing'" in printed and printed.count("BAD") == 1


def test_a_full_folder_is_no_fault_of_the_device(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(check_device.targets, "cpu", lambda _: iter([Item("CPU", OK, "fine")]))
    monkeypatch.setattr(check_device, "results_of", lambda *_: iter([checks.Result("CPU O0", "exit code 1")]))
    monkeypatch.setattr(check_device.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    assert main(["check-device", "CPU"]) == 2
    assert "no room left; TMPDIR=DIR names another place" in capsys.readouterr().err


@pytest.mark.parametrize("arguments, says", [
    (["GPU"], "GPU: no card; `pip install x` is the next step"),
    (["CPU", "--amp", "O4"], "--amp O4: no such level; choose among O0 O1 O2 O3"),
    (["CPU", "train.amp=O1"], "train.amp=…: give --amp instead"),
    (["CPU", "--amp", "O1", "train.amp_dtype=bfloat16"], "MindSpore has no such kernels for the CPU"),
    (["CPU", "--batch", "0"], "--batch 0: must be at least 1"),
    (["CPU", "--output", "nowhere/r.json"], "its folder nowhere does not exist"),
    (["CPU", "--config", "refshapes_tiny", "train.lr=x"], "train.lr")])
def test_what_cannot_be_checked_is_refused(arguments, says, capsys, monkeypatch):
    monkeypatch.setattr(check_device.targets, "gpu", lambda _: iter([Item("GPU", ABSENT, "no card", "pip install x")]))
    monkeypatch.setattr(check_device.targets, "cpu", lambda _: iter([Item("CPU", OK, "fine")]))
    assert main(["check-device", *arguments]) == 2
    assert says in capsys.readouterr().err


def test_levels_are_the_usual_ones_where_only_settings_follow_amp(monkeypatch):
    asked = []
    monkeypatch.setattr(check_device.targets, "cpu", lambda _: iter([Item("CPU", OK, "fine")]))
    monkeypatch.setattr(check_device, "results_of", lambda _, args, levels, *more: iter(asked.append(levels) or ()))
    assert main(["check-device", "CPU", "--amp", "train.ema=0.9"]) == 0
    assert asked == [["O0", "O1", "O2"]]


def test_the_table_of_trainings():
    """Means of equal parts; a run that ended early has none for the rest."""
    reference, dead = list(range(12)), [float("nan"), 1.0, 1.0, 1.0, 1.0]  # the first made the loss scale smaller
    runs = {"CPU O0": reference, "GPU O1": dead}
    lines = checks.table(runs, 12)
    assert len(lines) == 7 and lines[1].split()[:5] == ["1", "to", "2", "0.5000", "1.0000"]
    assert lines[3].split()[-1] == "nan" and lines[-1].split()[3] == "10.5000"


def test_trainings_are_compared_by_their_end():
    def run(*losses):
        return list(losses)

    reference = run(*[3.0] * 18, 2.0, 1.0)
    assert checks.compare_trainings(run(*[9.0] * 18, 2.0, 1.1), reference).good
    assert not checks.compare_trainings(run(*[3.0] * 18, 2.0, 2.0), reference).good
    assert checks.compare_trainings(run(*[3.0] * 19, 1.5), reference).error == pytest.approx(0.5)
    assert not checks.compare_trainings(run(*[float("nan")] * 20), reference).good
    assert not checks.compare_trainings(run(1.5), reference).good  # it ended early
    assert not checks.compare_trainings(run(*[3.0] * 18, *[float("nan")] * 2), reference).good


@pytest.mark.slow
def test_training_evaluation_and_export(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "SCENES", (20, 5))
    results = list(checks.trainings(tmp_path / "t", "CPU", ["O0"], 3))
    assert all(result.good for result in results), [result.report() for result in results]
    names = " ".join(result.name for result in results)
    assert [row.error for result in results for row in result.rows] == [0, 0, 0]
    for part in ("again", "mean loss of steps", "export", "evaluation of the checkpoint", "evaluation of the mindir"):
        assert part in names
    oiou = float(results[-1].rows[0].where.partition(",")[0])
    assert 30 < oiou < 90  # of some 40 sentences, by a trained model
