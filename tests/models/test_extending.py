"""docs/extending.md by itself: its parts, registered from outside the package, go through every command.

The page's Python is saved as ``my_parts.py``; one process, in which COUPALIGN_PARTS names it, runs the commands on a
few scenes of RefShapes. No file of the package knows the parts.
"""

import json
import os
import re
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
from conftest import ROOT

PAGE = ROOT / "docs" / "extending.md"
PARTS = ["model.fusion.name=gather", "model.decoder.name=sum", "loss.extra=[{name: area, weight: 0.5}]"]
SMALL = ["data.workers=1", "train.batch_size=2", "train.val_samples=2", "train.minutes=0", "train.log_every=1",
         "train.warmup_steps=0", "train.muon_lr_mult=0", "train.ema=0", "model.backbone.depths=[1,1,1,1]",
         "model.text.groups=[1,0,0,0]", "model.head.upsample=bilinear", "model.fusion.width=8"]
COMMANDS = """
import sys
from mindspore_coupalign.__main__ import main
data, run, again, parts = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]
config = ["--config", "refshapes_tiny", f"data.root={data}", *parts]
sizes = ["--train", "4", "--val", "2", "--testA", "1", "--testB", "1", "--workers", "1"]
assert main(["make-shapes", "--output", data, *sizes]) == 0
assert main(["describe", *config]) == 0
assert main(["train", "--output", run, *config, "train.steps=2", "train.recompute=true"]) == 0
assert main(["train", "--output", run, "--resume", run, *config, "train.steps=3", "train.recompute=true"]) == 0
best = f"{run}/best.safetensors"
assert main(["evaluate", "--checkpoint", best, "--split", "val", "--output", f"{run}/scores.json"]) == 0
for kind in ("mindir", "onnx"):
    assert main(["export", "--checkpoint", best, "--output", f"{run}/model.{kind}"]) == 0
assert main(["train", "--output", again, "--init-from", best, *config, "train.steps=1"]) == 0
config += ["model.fusion.width=9", "train.steps=1"]
sys.exit(main(["train", "--output", again + "2", "--init-from", best, *config]))
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """(folder with my_parts.py and the runs, the process that went through the commands)"""
    folder = tmp_path_factory.mktemp("extending")
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"<!-- not run: my_parts.py of [^\n]*\n```python\n(.*?)```", text, re.S)
    assert len(blocks) == 2
    (folder / "my_parts.py").write_text("\n".join(blocks), encoding="utf-8")
    place = {"COUPALIGN_PARTS": "my_parts", "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "GLOG_v": "3"}
    done = subprocess.run([sys.executable, "-c", COMMANDS, "data", "run", "again", *PARTS, *SMALL], cwd=folder,
                          env=os.environ | place, text=True, capture_output=True, timeout=600)
    return folder, done


def test_every_command_takes_parts_from_outside(page):
    folder, done = page
    assert done.returncode == 2, done.stdout + done.stderr  # of the last command, which is refused
    table = {line[:26].strip(): line.split()[-4:] for line in done.stdout.splitlines() if line.endswith(" %")}
    assert float(table["fusion 1"][2]) > 0 and float(table["pixel decoder"][2]) > 0
    lines = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3] and all(0 < line["area"] < 1 for line in steps)
    scores = json.loads((folder / "run" / "scores.json").read_text())
    assert "val" in json.dumps(scores)
    assert (folder / "again" / "best.safetensors").exists()


def test_settings_are_compared_by_init_from(page):
    folder, done = page
    line = done.stderr.splitlines()[-1]
    assert "model.fusion.width was 8, now 9" in line and "--init-from-skip" in line
    assert not (folder / "again2").exists()


def test_the_exported_graphs_need_no_module(page):
    """They load without COUPALIGN_PARTS, and agree with each other."""
    folder, _ = page
    facts = json.loads((folder / "run" / "model.onnx.json").read_text())
    assert max(facts["differences"]) < 1e-5
    session = onnxruntime.InferenceSession(folder / "run" / "model.onnx", providers=["CPUExecutionProvider"])
    shapes = {entry.name: [1 if isinstance(side, str) else side for side in entry.shape]
              for entry in session.get_inputs()}
    inputs = {"image": np.zeros(shapes["image"], np.float32), **{
        name: np.ones(shapes[name], np.int32) for name in ("ids", "word_mask")}}
    assert np.isfinite(session.run(None, inputs)[0]).all()


def test_a_checkpoint_names_the_part_that_is_missing(page, command_line):
    folder, _ = page
    done = command_line("evaluate", "--checkpoint", folder / "run" / "best.safetensors", "--split", "val")
    assert done.code == 2 and "model.fusion.name must be one of" in done.err and "COUPALIGN_PARTS" in done.err


WRONG = {
    "returns three": ("return v, words, v, expand_dims(attention, 1)", "return v, words, v",
                      "model.fusion: Gather returns"),
    "no dataclass": ("@dataclass(frozen=True)\nclass GatherSettings", "class GatherSettings", "is no dataclass"),
    "no type": ("width: int = 16", "width: dict = None", "GatherSettings.width: a setting is an int"),
    "no name": ('name: str = "gather"', 'name: str = ""', "needs a name"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_part_is_one_line(page, name, tmp_path, command_line, monkeypatch):
    folder, _ = page
    right, wrong, words = WRONG[name]
    code = (folder / "my_parts.py").read_text(encoding="utf-8")
    assert right in code
    (tmp_path / "wrong_parts.py").write_text(code.replace(right, wrong), encoding="utf-8")
    monkeypatch.setenv("COUPALIGN_PARTS", "wrong_parts")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = command_line("describe", "--config", "refshapes_tiny", "model.fusion.name=gather")
    assert done.code == 2 and words in done.err.splitlines()[-1] and "Traceback" not in done.err


def test_a_module_that_is_not_there_is_one_line(command_line, monkeypatch):
    monkeypatch.setenv("COUPALIGN_PARTS", "no_such_module")
    done = command_line("describe", "--config", "refshapes_tiny")
    assert done.code == 2 and done.err.count("\n") == 1 and "COUPALIGN_PARTS=no_such_module" in done.err
