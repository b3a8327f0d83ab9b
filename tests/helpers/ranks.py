"""For tests of several ranks: the scripts' environment, configurations, and the comparison of two runs."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from training_runs import log_of

from mindspore_coupalign.training.step import LOSSES
from mindspore_coupalign.weights.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parents[2]
# Noise is drawn by each rank for itself: none here, so that two ranks can equal one
EQUAL = ["loss.negatives=300", "model.text.dropout=0", "model.backbone.name=swin", "model.sentence_mask=false",
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
