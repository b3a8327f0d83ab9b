"""Training as a user runs it: the command line in a child process, a small configuration, and the log of a run."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml
from tiny_network import TINY

from mindspore_coupalign.config import config_from_dict, config_to_dict, with_overrides

ROOT = Path(__file__).resolve().parents[2]
# quick to compile, but with stage heads, random numbers and statistics that are no parameters
SMALL = ["model.backbone.depths=[1, 1, 1, 1]", "model.text.groups=[1, 0, 0, 0]", "model.fusion.stages=[1]",
         "model.backbone.name=darknet", "model.backbone.freeze_batch_norm=false", "model.text.activation=relu",
         "loss.negatives=40",
         "loss.bce=2", "loss.dice=0.5", "loss.deep_supervision=0.5", "model.stage_heads=true",
         "loss.proposal_mask=0.3", "model.proposal_head=true", "model.text.dropout=0.2"]
LIGHT = ["model.fusion.stages=[1]", "model.sentence_mask=false", "loss.proposal_mask=0",
         "model.proposal_head=false"]  # little to compile
QUICK = [*LIGHT, "model.text.groups=[1, 0, 0, 0]", "loss.contrast=0", "loss.deep_supervision=0",
         "model.stage_heads=false"]
ENDLESS = ["train.steps=100000", "train.val_every=100000"]


def command(*arguments) -> list:
    return [sys.executable, "-m", "mindspore_coupalign", *map(str, arguments)]


def run_command(*arguments) -> subprocess.CompletedProcess:
    done = subprocess.run(command(*arguments), cwd=ROOT, text=True, capture_output=True, timeout=400)
    assert done.returncode == 0, done.stderr
    return done


def log_of(folder) -> tuple[list, list]:
    """(Lines of steps, lines of validations) of a run's log."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line], [line for line in lines if "val" in line]


def write_config(path, root, overrides=()):
    """The small network's configuration for a RefShapes in ``root``."""
    values = json.loads(json.dumps(TINY))
    values["data"] |= {"root": str(root), "dataset": "refshapes", "split_by": "shapes", "max_tokens": 16}
    settings = [*SMALL, *overrides]
    backbone = [text for text in settings if text.startswith("model.backbone.name=")][-1]  # first: it decides the keys
    settings = [text for text in settings if not text.startswith("model.backbone.name=")
                and not (backbone.endswith("=swin") and "freeze_batch_norm" in text)]
    config = with_overrides(config_from_dict(values, str(path)), [backbone, *settings], str(path))
    path.write_text(yaml.safe_dump(config_to_dict(config)))
    return path


def hear_interrupts():
    """For ``preexec_fn``: Ctrl-C reaches a child also where the tests themselves run in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def running(config, output, *overrides) -> subprocess.Popen:
    """An endless run that has saved at least two states."""
    process = subprocess.Popen(command("train", "--config", config, "--output", output, *ENDLESS, "train.save_every=1",
                                       *overrides), cwd=ROOT, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, preexec_fn=hear_interrupts)
    deadline = time.time() + 200
    while not (output / "last-1.safetensors").exists():
        assert process.poll() is None and time.time() < deadline, process.communicate()
        time.sleep(0.02)
    return process
