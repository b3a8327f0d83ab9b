"""Real photographs: a small network trained on refcoco_mini's resplit overfits its train split (slow)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from refer_files import refcoco_mini

from mindspore_coupalign.data.refer import read_refer

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_training_on_real_photographs_reaches_90(tmp_path):
    root = refcoco_mini()
    if root is None:
        pytest.skip("no refcoco_mini here")
    data = read_refer(root, "refcoco_resplit", "unc")
    words = sorted({w for s in data.split("train") for w in data.sentence(s).lower().replace("'", " ' ").split()})
    vocabulary = tmp_path / "vocabulary"
    vocabulary.mkdir()
    (vocabulary / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]) + "\n")
    overrides = [f"data.root={root}", "data.dataset=refcoco_resplit", f"data.tokenizer={vocabulary}"]
    run(["train", "--config", "configs/refcoco_mini.yaml", "--output", tmp_path / "run", *overrides])
    run(["evaluate", "--checkpoint", tmp_path / "run/best.safetensors", "--output", tmp_path / "r.json", *overrides,
         "--split", "train"])
    result = json.loads((tmp_path / "r.json").read_text())["splits"]["train"]
    assert result["sentences"] == 56
    print("refcoco_resplit train oIoU, image's own size:", result["image"]["oIoU"])
    assert result["image"]["oIoU"] >= 90


def run(arguments):
    done = subprocess.run([sys.executable, "-m", "mindspore_coupalign", *map(str, arguments)], cwd=ROOT, text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr
