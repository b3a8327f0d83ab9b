"""The comparison on RefShapes: which runs it wants, and its table, from results written by hand."""

import importlib.util
import json
from pathlib import Path

import pytest

from mindspore_coupalign.config import load_config

PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "refshapes_rows.py"
TIMES = {"coupalign": 0.4, "lavt": 0.2, "wpa-none": 0.4}


@pytest.fixture(scope="module")
def rows():
    spec = importlib.util.spec_from_file_location("refshapes_rows", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_row_is_a_configuration_of_its_own(rows):
    configs = [load_config(rows.CONFIG, overrides) for _, overrides in (rows.ROWS | rows.WPA_ROWS).values()]
    assert len(configs) == len(set(configs)) == 11


def test_equal_steps_come_first_and_equal_rows_run_once(rows):
    some = {name: rows.ROWS[name] for name in TIMES}
    wanted = rows.plan(some, TIMES, 100, [0, 1])
    assert wanted == [(name, 100, seed) for seed in (0, 1) for name in TIMES] + [("lavt", 200, 0), ("lavt", 200, 1)]


def test_the_table_shows_medians_spread_and_what_is_missing(rows, tmp_path):
    runs = {}
    for seed, score in enumerate((40.0, 46.0, 42.0)):
        result = {split: {"image": {"oIoU": score, "mIoU": score + 10, "P@0.5": 1.0}} for split in rows.SPLITS}
        (tmp_path / "results.json").write_text(json.dumps({"splits": result}))
        runs[rows.name_of("coupalign", 100, seed)] = rows.read_results(tmp_path / "results.json")
    some = {name: rows.ROWS[name] for name in ("coupalign", "lavt", "no-sma")}
    _, _, own, lavt, untimed = rows.table({"times": TIMES, "runs": runs}, some, 100, [0, 1, 2]).splitlines()
    assert own.count("42.0 (40.0 to 46.0)") == 2 and "52.0 (50.0 to 56.0)" in own and "42.0 / 42.0 / 42.0" in own
    assert "not run [0 of 3]" in lavt and "| 0.50 |" in lavt and "| 200 |" in lavt
    assert "not timed" in untimed


def test_a_run_that_has_scores_is_not_repeated(rows, tmp_path, monkeypatch, capsys):
    started = []

    def one_run(folder, data, overrides, steps, seed, core):
        started.append((folder.name, overrides))
        folder.mkdir()
        result = {split: {"image": {"oIoU": 30.0, "mIoU": 40.0}} for split in rows.SPLITS}
        (folder / "results.json").write_text(json.dumps({"splits": result}))

    monkeypatch.setattr(rows, "one_run", one_run)
    some = {name: rows.ROWS[name] for name in TIMES}
    known = {split: {"oIoU": 20.0, "mIoU": 20.0} for split in rows.SPLITS}
    scores = {"times": TIMES, "runs": {"coupalign-100-seed0": known}}
    file = tmp_path / "scores.json"
    rows.run_all(tmp_path, tmp_path, some, rows.plan(some, TIMES, 100, [0]), scores, file)
    assert sorted(started) == [("lavt-100-seed0", rows.ROWS["lavt"][1]), ("lavt-200-seed0", rows.ROWS["lavt"][1]),
                               ("wpa-none-100-seed0", rows.ROWS["wpa-none"][1])]
    kept = json.loads(file.read_text())["runs"]
    assert kept["coupalign-100-seed0"] == known and len(kept) == 4


def test_rows_that_were_timed_keep_their_times(rows, monkeypatch):
    some = {name: rows.ROWS[name] for name in ("coupalign", "lavt", "no-sma")}
    monkeypatch.setattr(rows, "measure_steps", lambda new: {"coupalign": 0.8, "no-sma": 0.6})
    times = {"coupalign": 0.4, "lavt": 0.2}  # lavt is not measured again
    assert rows.time_rows(some, times) and times == {"coupalign": 0.4, "lavt": 0.2, "no-sma": pytest.approx(0.3)}
    assert not rows.time_rows(some, times)
