"""Runs that are killed, asked to stop, or meet a full disk or a damaged file; dry runs and curves."""

import dataclasses
import itertools
import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_training import compute_nothing, fails, loop_of
from training_runs import LIGHT, QUICK, ROOT, write_config

from mindspore_coupalign.__main__ import main
from mindspore_coupalign.config import DataSet, config_to_dict, load_config
from mindspore_coupalign.data.refshapes.dataset import make_shapes
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.training.dry_run import measure_step
from mindspore_coupalign.training.run_folder import MAY_CHANGE, RunFolder, differences, load_state
from mindspore_coupalign.weights.checkpoint import load_checkpoint

KILLED = ["model.fusion.name=word_pixel", *LIGHT, "model.backbone.name=darknet",
          "model.backbone.freeze_batch_norm=false",
          "model.head.upsample=bilinear", "train.muon_lr_mult=0"]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reliable")
    make_shapes(folder / "data", 1, train=5, val=2, testA=1, testB=1)
    return write_config(folder / "small.yaml", folder / "data", QUICK)


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_nothing():
    """At the start, among the steps, in a save, and newest checkpoints cut short: bit for bit the undisturbed run. One
    kill in a save is tests/training/test_train.py's ``resumed``."""
    done = subprocess.run([sys.executable, "benchmarks/kill_training.py", "--kills", "20", *KILLED], cwd=ROOT,
                          text=True, capture_output=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    assert "loss curve identical" in last and "0 arrays different" in last, done.stdout
    kills, saves, cut = (int(re.search(pattern, last)[1]) for pattern in
                         (r"^(\d+) kills", r"(\d+) in a save", r"(\d+) newest"))
    assert kills == 20 and saves >= 5 and cut >= 1, done.stdout


def test_a_full_disk_ends_the_run_and_spoils_nothing(config, tmp_path, monkeypatch, capsys):
    """No file may grow beyond 20 kB from some moment on, which is what a write to a full disk meets."""
    output, limits, steps = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE), itertools.count(1)

    def fill_the_disk():
        if next(steps) == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))

    loop = loop_of(config, tmp_path, monkeypatch)
    try:
        assert loop([1.0] * 9, "train.steps=9", "train.val_every=9", "train.save_every=1", pause=fill_the_disk) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(f"error: {output}/last.safetensors: cannot be written") and "free some space" in last
    state = load_state(output)
    assert state.progress["step"] == 3 and state.path.name == "last.safetensors"
    assert not list(output.glob(".*.tmp"))
    load_checkpoint(output / "last-1.safetensors")


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    output = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        compute_nothing(patch, [1.0] * 4)
        assert main(["train", "--config", str(config), "--output", str(output), "train.steps=4", "train.save_every=1",
                     "train.val_every=2", "train.keep=3"]) == 0
    return output


def test_the_newest_states_are_kept(finished):
    assert [load_checkpoint(finished / f"{name}.safetensors").progress["step"]
            for name in ("last", "last-1", "last-2")] == [4, 3, 2]
    assert not (finished / "last-3.safetensors").exists()


@pytest.mark.parametrize("damage", ["cut", "flipped", "text", "empty", "missing"])
def test_a_damaged_newest_state_is_passed_over(finished, tmp_path, damage):
    for file in finished.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    newest = tmp_path / "last.safetensors"
    content = newest.read_bytes()
    if damage == "missing":
        newest.unlink()
    else:
        newest.write_bytes({"cut": content[:-1000], "empty": b"",
                            "text": content.replace(b'\\"step\\": 4', b'\\"step\\": 5', 1),
                            "flipped": content[:-500] + bytes([content[-500] ^ 4]) + content[-499:]}[damage])
    said = []
    assert load_state(tmp_path, said.append).progress["step"] == 3
    assert damage == "missing" or len(said) == 1 and str(newest) in said[0]


def test_a_damaged_state_never_pushes_a_good_one_out(finished, tmp_path):
    """With two states kept, the newest damaged: until the next one has its name, the good one has to stay."""
    for name in ("last.safetensors", "last-1.safetensors"):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    damaged = (finished / "last.safetensors").read_bytes()[:-1000]
    (tmp_path / "last.safetensors").write_bytes(damaged)
    state = load_state(tmp_path, lambda line: None)
    run = RunFolder(tmp_path, keep=2)
    run.open(state.config, 3, resumed=state.path)
    assert (tmp_path / "aside-last.safetensors").read_bytes() == damaged
    again = (finished / "last.safetensors").read_bytes()[:-2000]
    (tmp_path / "last.safetensors").write_bytes(again)
    run.open(state.config, 3, resumed=state.path)
    assert (tmp_path / "aside-last.safetensors").read_bytes() == damaged
    assert (tmp_path / "aside-1-last.safetensors").read_bytes() == again
    run._rotate()  # and now a kill, before the new state has its name
    assert load_state(tmp_path).progress["step"] == 3


def test_a_disk_that_has_become_read_only(finished, tmp_path, monkeypatch):
    """Neither can the new file be made nor the attempt be removed: still one line."""
    state = load_checkpoint(finished / "last.safetensors")

    def read_only(*_, **__):
        raise OSError(30, "Read-only file system")

    for name in ("touch", "unlink"):
        monkeypatch.setattr(Path, name, read_only)
    with pytest.raises(UserError, match="Read-only file system.*choose another --output"):
        RunFolder(tmp_path).save_state(state.arrays, state.config, state.tokenizer, state.progress)


def test_states_move_on_also_after_a_kill_between_two_renames(tmp_path, finished):
    """The moment when last.safetensors has become last-1 and the new file has no name yet."""
    last = (finished / "last.safetensors").read_bytes()
    (tmp_path / "last-1.safetensors").write_bytes(last)
    (tmp_path / ".0123.tmp").write_bytes(last)
    assert load_state(tmp_path).progress["step"] == 4
    state = load_state(tmp_path)
    run = RunFolder(tmp_path, keep=2)
    run.open(state.config, 4)
    assert not list(tmp_path.glob(".*.tmp"))
    run.save_state(state.arrays, state.config, state.tokenizer, state.progress | {"step": 5})
    assert [load_checkpoint(tmp_path / name).progress["step"]
            for name in ("last.safetensors", "last-1.safetensors")] == [5, 4]


def test_a_kill_while_the_log_is_cut_loses_nothing(tmp_path, finished, monkeypatch):
    """A resumed run drops the lines of steps it does again; at no moment may the file hold less than it keeps."""
    log = tmp_path / "log.jsonl"
    lines = [json.dumps({"step": step}) + "\n" for step in range(6)]
    log.write_text("".join(lines))
    run, config = RunFolder(tmp_path), load_state(finished).config

    def killed(self, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", killed)
        run.open(config, 3)
    assert log.read_text() == "".join(lines)
    run.open(config, 3)
    assert log.read_text() == "".join(lines[:4]) and not list(tmp_path.glob(".*.tmp"))


def test_every_field_is_either_free_to_change_or_not(config):
    """A field that is renamed may not silently become free or forbidden."""
    def names(values, prefix=""):
        for key, value in values.items():
            if isinstance(value, dict):
                yield from names(value, f"{prefix}{key}.")
            else:
                yield prefix + key

    of_sets = {f"data.sets.{field.name}" for field in dataclasses.fields(DataSet)}
    assert set(MAY_CHANGE) <= {*names(config_to_dict(load_config(config))), *of_sets}
    before, now = (config_to_dict(load_config(config, extra)) for extra in ([], ["train.lr=0.5", "data.workers=1"]))
    assert differences(before, now) == [("data.workers", 2, 1), ("train.lr", 0.001, 0.5)]
    del before["train"]["amp"]  # a checkpoint from before the field existed
    assert ("train.amp", None, "auto") in differences(before, now)


def test_a_dry_run_writes_nothing(config, tmp_path, capsys, monkeypatch):
    """The child process that measures a step is a real one; the steps of the dry run itself are not."""
    output = tmp_path / "run"
    compute_nothing(monkeypatch, [1.0] * 9, measure=measure_step)
    assert main(["train", "--config", str(config), "--output", str(output), "--dry-run", "train.steps=50"]) == 0
    out = capsys.readouterr().out
    assert not output.exists() and "nothing was written" in out
    for pattern in (r"data: .* 9 images are there", r"disk: up to 0\.0\d GB", r"step 1: loss \d\.\d+, .*with compiling",
                    r"step 9: loss", r"memory: \d\.\d GiB at most of \d",
                    r"memory: about .*: the largest micro-batch that fits into \d+\.\d GiB is about \d+, 10% kept free",
                    r"the run: 41 more steps of \d+\.?\d* s \(median of 8\), \d+\.\d min"):
        assert re.search(pattern, out), (pattern, out)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    assert "GB are free; lower train.keep" in fails(capsys, "train", "--config", config, "--output", output,
                                                    "--dry-run")


def test_a_dry_run_forecasts_by_the_median_step(config, tmp_path, capsys, monkeypatch):
    """Not by one step, which may have waited; long steps are not repeated more than it needs."""
    now = [0.0]

    def forecast(seconds, steps):
        took = iter(seconds + [seconds[-1]] * (9 - len(seconds)))
        compute_nothing(monkeypatch, [1.0] * 20, pause=lambda: now.append(now[-1] + next(took)), clock=lambda: now[-1])
        assert main(["train", "--config", str(config), "--output", str(tmp_path / "run"), "--dry-run",
                     f"train.steps={steps}"]) == 0
        return next(line for line in capsys.readouterr().out.splitlines() if line.startswith("the run:"))

    assert "100 more steps of 2 s (median of 8), 3.3 min" in forecast([60.0, 9.0, 2.0], 109)
    assert "100 more steps of 50 s (median of 2), 1.4 h" in forecast([90.0, 50.0], 103)


def test_a_dry_run_says_that_there_is_a_run_already(finished, config, capsys):
    assert "holds a run already" in fails(capsys, "train", "--config", config, "--output", finished, "--dry-run")


def test_two_runs_do_not_share_a_folder(finished, tmp_path):
    """The second one would empty the first one's log and move its states, which appear after the first save only."""
    config = load_state(finished).config
    first, second = RunFolder(tmp_path), RunFolder(tmp_path)
    first.open(config, 0)
    first.log({"step": 1})
    with pytest.raises(UserError, match=f"{tmp_path}: another training is writing there"):
        second.open(config, 0)
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1}\n'
    first.close()
    second.open(config, 0)
    assert (tmp_path / "log.jsonl").read_text() == ""
    RunFolder(tmp_path, writes=False).open(config, 0)  # the other ranks


def test_a_log_that_is_damaged_is_cut_all_the_same(finished, tmp_path):
    run, config = RunFolder(tmp_path), load_state(finished).config
    lines = (b'{"step": 1}', b"7", b"\xff\xfe", b'{"step": 2, "val": {}}', b'{"step": 2}', b'{"step": 3}', b"")
    (tmp_path / "log.jsonl").write_bytes(b"\n".join(lines))
    run.open(config, 2, validated=1)
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_dry_run_of_a_finished_run(finished, config, capsys, monkeypatch):
    compute_nothing(monkeypatch, [])
    assert main(["train", "--config", str(config), "--resume", str(finished), "--dry-run", "train.steps=4",
                 "train.save_every=1", "train.val_every=2", "train.keep=3"]) == 0
    assert "nothing is left to train" in capsys.readouterr().out


def test_a_dry_run_finds_a_missing_image(config, tmp_path, capsys):
    root = tmp_path / "data"
    make_shapes(root, 1, train=5, val=2, testA=1, testB=1)
    missing = sorted((root / "images" / "refshapes").glob("val*"))[0]
    missing.unlink()
    line = fails(capsys, "train", "--config", config, "--output", tmp_path / "run", "--dry-run", f"data.root={root}")
    assert str(missing) in line and "missing or empty" in line


def test_plot_run(finished, tmp_path, capsys):
    import cv2
    output = tmp_path / "curves.png"
    (tmp_path / "half").mkdir()
    lines = [{"step": s, "loss": 1 / (s + 1), "lr": 0.1, "scale": 2.0**s} for s in range(5)]
    (tmp_path / "half" / "log.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 5, "lo')
    assert main(["plot-run", str(finished), str(tmp_path / "half"), "--output", str(output)]) == 0
    picture = cv2.imread(str(output))
    assert picture.shape[1] > 3 * picture.shape[0] and (picture < 128).any()  # four panels side by side
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 10
    capsys.readouterr()
    assert "must end in .png" in fails(capsys, "plot-run", finished, "--output", tmp_path / "curves")
    assert "no log of a run" in fails(capsys, "plot-run", tmp_path, "--output", output)
    (tmp_path / "log.jsonl").write_text("what\nis\nthis\n")
    assert "line 1" in fails(capsys, "plot-run", tmp_path, "--output", output)
    (tmp_path / "log.jsonl").write_text("")
    assert "nothing logged yet" in fails(capsys, "plot-run", tmp_path, "--output", output)
    assert "cannot be written" in fails(capsys, "plot-run", finished, "--output", tmp_path / "no" / "x.png")
