"""The training loop around steps that compute nothing: epochs, budget, log, validation, saving, stopping, resuming."""

import json
import os
import shutil
import sys

import numpy as np
import pytest
from fake_training import full_marks, loop_of
from training_runs import log_of

from mindspore_coupalign.cli import train
from mindspore_coupalign.data.refer import read_refer
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.training.run_folder import RunFolder
from mindspore_coupalign.weights.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture
def loop(config, tmp_path, monkeypatch):
    return loop_of(config, tmp_path, monkeypatch)


def test_steps_follow_from_the_epochs(loop, tmp_path):
    """10 refs in batches of 4: 7.5 steps for 3 epochs; validated once per epoch and at the end."""
    assert loop([0.5] * 8, "train.epochs=3", "train.log_every=4") == 0
    losses, scores = log_of(tmp_path / "run")
    assert [line["step"] for line in losses] == [4, 8] and [line["step"] for line in scores] == [3, 6, 8]


def test_a_rank_that_only_saves_must_give_signs_of_life(loop, monkeypatch):
    """The long silence of a phase that compiles is for validations alone: a rank stopped while it saved went unnoticed
    for two minutes."""
    phases = []
    monkeypatch.setattr(train.Watch, "enter", lambda self, phase, step, compiles=False: phases.append(
        (phase, step, compiles)))
    assert loop([0.5] * 4, "train.steps=4", "train.val_every=4", "train.save_every=2") == 0
    assert [phase for phase in phases if phase[0] == "saving"] == [("saving", 2, False), ("saving", 4, True)]


class Clock:
    """Made-up time: seconds pass where a test lets them."""

    now = 1000.0

    def __call__(self):
        return self.now


def test_a_time_budget_ends_a_run_and_keeps_it(loop, tmp_path, capsys):
    clock = Clock()

    def second():
        clock.now += 1

    budget = ["train.steps=100000", "train.minutes=0.5", "train.val_every=100000", "train.schedule=linear",
              "train.log_every=1"]
    assert loop([1.0] * 100, *budget, pause=second, clock=clock) == 0
    state = load_checkpoint(tmp_path / "run/last.safetensors")
    assert 26 <= state.progress["step"] <= 30 and state.progress["seconds"] == state.progress["step"]
    assert state.progress["decay_share"] > 0.9 and state.progress["finished_minutes"] == 0.5
    rates = [line["lr"] for line in log_of(tmp_path / "run")[0]]
    assert rates[1] == pytest.approx(1e-3, rel=1e-4) and rates == sorted(rates, reverse=True) and 0 < rates[-1] < 1e-4
    assert "are kept for the last validation" in capsys.readouterr().out
    assert loop([1.0], *budget, resume="run", clock=clock) == 0
    assert f"already complete at step {state.progress['step']}" in capsys.readouterr().out
    assert loop([1.0] * 100, *budget, "train.minutes=1", resume="run", pause=second,
                clock=clock) == 0  # half of it is left
    again = [line["lr"] for line in log_of(tmp_path / "run")[0]][len(rates):]
    assert again[0] == pytest.approx(0.5e-3, rel=0.1) and again[-1] < 1e-4


def test_the_last_validation_gets_its_time(loop, tmp_path):
    """As long as the earlier ones have taken, without what the first one compiled; and the budget does not count
    compiling as training: the decay begins after it and ends with the last step."""
    ends, clock = [], Clock()

    def step():
        clock.now += 1 if clock.now > 1000 else 40  # the first one compiles

    def score(model, data, samples, tokenizer, config, runtime):
        clock.now += 2 if ends else 22  # the first batch, which may compile
        runtime.watch.compiled_at = clock.now
        clock.now += 6  # the other three
        ends.append(clock.now - 1000)
        return full_marks(model, data, samples)

    assert loop([1.0] * 500, "train.steps=100000", "train.minutes=4", "train.val_every=60", "data.val_split=train",
                "train.schedule=linear", "train.log_every=1", "eval.batch_size=6", pause=step, clock=clock,
                score=score) == 0
    assert len(ends) == 3 and 237 <= ends[-1] <= 240, ends
    rates = [line["lr"] for line in log_of(tmp_path / "run")[0]]
    assert rates[2] > 0.99e-3 and rates[-1] < 0.02e-3 and rates == sorted(rates, reverse=True)
    assert max(a - b for a, b in zip(rates, rates[1:], strict=False)) < 1e-5  # 160 steps, none of them a jump


def test_a_state_of_an_older_version_is_resumed(loop, tmp_path):
    """Whose window names the losses otherwise, and whose progress knows nothing of a decay."""
    settings = ["train.steps=6", "train.log_every=4", "train.val_every=6"]
    assert loop([1.0] * 2, *settings, stop_in=2) == 143
    path = tmp_path / "run/last.safetensors"
    state = load_checkpoint(path)
    window = [{key: value for key, value in line.items() if "_bce" not in key and "_dice" not in key}
              | {"stages": 7.0, "proposals": 9.0} for line in state.progress["window"]]
    assert len(window) == 2
    save_checkpoint(path, state.arrays, state.config, state.tokenizer, state.progress | {"window": window})
    assert loop([3.0] * 4, *settings, resume="run") == 0
    line = log_of(tmp_path / "run")[0][0]
    assert (line["step"], line["loss"], line["deep_supervision_bce"]) == (4, 2.0, 3.0) and "stages" not in line


def test_the_log_is_the_mean_since_the_last_line(loop, tmp_path):
    assert loop([1.0, 2.0, 6.0, 5.0, 7.0], "train.steps=5", "train.log_every=3", "train.val_samples=2") == 0
    losses, scores = log_of(tmp_path / "run")
    assert [(line["step"], line["loss"]) for line in losses] == [(3, 3.0), (5, 6.0)]
    assert {line["val"]["sentences"] for line in scores} == {2}


@pytest.mark.parametrize("stop_in", [2, 3, 4, 6])
def test_a_run_that_was_asked_to_stop_goes_on_as_if_it_had_not_been(loop, tmp_path, stop_in):
    """In the middle of a line of the log, at its end, where a validation is due, and at the last step."""
    losses, settings = [1.0, 2.0, 6.0, 5.0, 7.0, 3.0], ["train.steps=6", "train.log_every=3", "train.val_every=4"]
    assert loop(losses, *settings, output="whole") == 0
    assert loop(losses, *settings, stop_in=stop_in) == 143
    assert loop(losses[stop_in:], *settings, resume="run") == 0
    logs = [log_of(tmp_path / name) for name in ("whole", "run")]
    assert [(x["step"], x["loss"]) for x in logs[1][0]] == [(x["step"], x["loss"]) for x in logs[0][0]]
    assert logs[1][1] == logs[0][1] and len(logs[0][1]) == 2
    best = [load_checkpoint(tmp_path / name / "best.safetensors").progress["step"] for name in ("whole", "run")]
    assert best[0] == best[1]


def test_a_validation_that_fails_costs_no_step(loop, tmp_path, monkeypatch, capsys):
    """The state is saved before it; the resumed run validates, and the log has its score once."""
    settings, path = ["train.steps=4", "train.val_every=2"], tmp_path / "run" / "last.safetensors"

    def fail(*_, **__):
        raise UserError("val_3.png: truncated")

    assert loop([1.0] * 4, *settings, score=fail) == 2
    assert "val_3.png" in capsys.readouterr().err and load_checkpoint(path).progress["step"] == 2
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_best", fail)  # this time after the score was logged
        assert loop([], *settings, resume="run") == 2
    assert loop([1.0] * 2, *settings, resume="run") == 0
    losses, scores = log_of(tmp_path / "run")
    assert [line["step"] for line in losses] == [1, 2, 3, 4] and [line["step"] for line in scores] == [2, 4]
    assert [load_checkpoint(path.with_name(name)).progress["step"] for name in ("last.safetensors",
                                                                               "last-1.safetensors")] == [4, 2]


def test_nobody_who_reads_is_no_reason_to_stop(loop, tmp_path, monkeypatch):
    """``train … | head``"""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert loop([1.0] * 3, "train.steps=3") == 0
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").progress["step"] == 3


def test_a_resumed_run_elsewhere(loop, tmp_path, capsys):
    """It takes the best weights along, spoils no other run, and forgets a score that was judged otherwise."""
    def best(name):
        return load_checkpoint(tmp_path / name / "best.safetensors").progress["step"]

    assert loop([1.0] * 2, "train.steps=2") == 0 and loop([1.0] * 2, "train.steps=2", output="other") == 0
    other = (tmp_path / "other" / "last.safetensors").read_bytes()
    assert loop([1.0], "train.steps=3", resume="run", output="other") == 2
    assert "other: holds a run already" in capsys.readouterr().err
    assert (tmp_path / "other" / "last.safetensors").read_bytes() == other
    assert loop([1.0], "train.steps=3", resume="run", output="new") == 0
    assert best("new") == best("run") == 2  # step 3 was no better
    assert loop([1.0], "train.steps=3", "eval.threshold=0.4", resume="run", output="another") == 0
    assert best("another") == 3


@pytest.mark.parametrize("by, step", [("oIoU", 2), ("mIoU", 4)])
def test_the_best_weights_are_the_best_by_the_configured_score(loop, tmp_path, by, step):
    scores = iter([(50, 60), (90, 65), (80, 65), (70, 70)])

    def score(*arguments, **_):
        report = full_marks(*arguments)
        report["image"]["oIoU"], report["image"]["mIoU"] = next(scores)
        return report

    assert loop([1.0] * 4, "train.steps=4", "train.val_every=1", f"train.best_by={by}", score=score) == 0
    assert load_checkpoint(tmp_path / "run" / "best.safetensors").progress["step"] == step


def test_a_copy_of_a_state_sets_nothing_aside(loop, tmp_path):
    """Nothing tells whether the states in the rotation are newer than a file of the user's."""
    assert loop([1.0] * 2, "train.steps=2", "train.save_every=1") == 0
    shutil.copyfile(tmp_path / "run" / "last-1.safetensors", tmp_path / "run" / "kept.safetensors")
    assert loop([1.0] * 2, "train.steps=3", "train.save_every=1", resume="run/kept.safetensors") == 0
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").progress["step"] == 3
    assert not list((tmp_path / "run").glob("aside-*"))


def test_steps_without_a_number_are_counted_across_a_stop(loop, capsys):
    settings = ["train.steps=9", "train.val_every=9", "train.max_nonfinite_steps=3"]
    assert loop([1.0, np.nan, np.nan], *settings, stop_in=3) == 143
    assert loop([], *settings, resume="run") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: step 4: the loss (nan)")


def test_steps_without_a_number_in_a_row_stop_the_run(loop, capsys, tmp_path, root):
    """Their batches are written down: what is in them is what the source gave."""
    losses = [1.0, np.nan, np.nan, 1.0]  # two in a row are not yet three
    assert loop(losses, "train.steps=9", "train.log_every=3", "train.val_every=9", "train.max_nonfinite_steps=3") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: step 7: the loss (nan)") and "3 steps in a row" in line and "skipped.jsonl" in line
    lines = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 3, 5, 6, 7] and {line["loss"] for line in lines} == {"nan"}
    data = read_refer(root, "refshapes", "shapes")
    order = np.concatenate([data.epoch_samples("train", 0, epoch) for epoch in range(4)])
    for line in lines:
        assert line["samples"] == order[4 * line["step"] - 4:4 * line["step"]].tolist()
        assert line["sentences"] == [data.sentence(s) for s in line["samples"]]
    logged = log_of(tmp_path / "run")[0]
    assert [(line["step"], line["loss"], line.get("skipped")) for line in logged] == [(3, 1.0, 2), (6, 1.0, 2)]
