"""The commands train and evaluate as a user runs them: files, log, resuming, scores, and answers to bad input."""

import functools
import json
import shutil
import signal
import subprocess
import time
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from fake_training import fails
from training_runs import ROOT, command, log_of, run_command, write_config

from mindspore_coupalign import build
from mindspore_coupalign.__main__ import main
from mindspore_coupalign.cli import train
from mindspore_coupalign.config import load_config
from mindspore_coupalign.config.paths import without_absolute_paths
from mindspore_coupalign.data.refer import read_refer
from mindspore_coupalign.data.refshapes.dataset import make_shapes
from mindspore_coupalign.distributed import process
from mindspore_coupalign.evaluation.prompts import derange
from mindspore_coupalign.training.objective import LOSSES
from mindspore_coupalign.training.run_folder import load_state
from mindspore_coupalign.training.schedule import learning_rate
from mindspore_coupalign.weights.checkpoint import load_checkpoint

SHORT = ["train.steps=6", "train.val_every=3", "train.ema=0.5", "train.muon_lr_mult=0.8", "data.flip=0.5",
         "eval.threshold=0.35"]


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """An undisturbed run of six steps."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    done = run_command("train", "--config", config, "--output", output, *SHORT)
    return SimpleNamespace(output=output, out=done.stdout, err=done.stderr)


@pytest.fixture(scope="module")
def resumed(config, tmp_path_factory):
    """The same run, killed (``kill -9``) while it saved, and gone on with; ``step``: from where."""
    output = tmp_path_factory.mktemp("runs") / "killed"
    with subprocess.Popen(command("train", "--config", config, "--output", output, *SHORT, "train.save_every=1"),
                          cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            if (output / "last-1.safetensors").exists() and any(output.glob(".*.tmp")):
                process.kill()
                break
            time.sleep(0.0005)
    assert process.returncode == -signal.SIGKILL, "it ended before it was seen to save"
    step = load_state(output).progress["step"]
    done = run_command("train", "--config", config, "--resume", output, *SHORT)
    return SimpleNamespace(output=output, out=done.stdout, step=step)


def test_a_run_leaves_its_files(whole, config):
    names = {path.name for path in whole.output.iterdir()}
    assert names == {"config.yaml", "log.jsonl", "last.safetensors", "last-1.safetensors", "best.safetensors"}
    assert load_config(whole.output / "config.yaml") == load_config(config, SHORT)
    losses, scores = log_of(whole.output)
    assert [line["step"] for line in losses] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in scores] == [3, 6]
    assert all({*LOSSES, "grad_norm", "lr", "samples_per_s"} == line.keys() - {"step"} for line in losses)
    assert all(np.isfinite(list(line.values())).all() for line in losses)
    for line in losses:  # the raw terms, of which the configuration's weights make the loss
        masks = {part: 2 * line[f"{part}bce"] + 0.5 * line[f"{part}dice"]
                 for part in ("", "deep_supervision_", "proposal_mask_")}
        total = masks[""] + 0.1 * line["contrast"] + 0.5 * masks["deep_supervision_"] + 0.3 * masks["proposal_mask_"]
        assert line["loss"] == pytest.approx(total,
                                             abs=5e-5) and line["deep_supervision_bce"] > 0 < line["proposal_mask_dice"]
    rates = [learning_rate(load_config(config, SHORT), step, 6) for step in range(6)]
    np.testing.assert_allclose([line["lr"] for line in losses], rates, rtol=1e-5)
    assert "6 steps of 4 samples on" in whole.out and "Traceback" not in whole.err


def test_checkpoints_say_where_they_are_from(whole, config):
    last, best = (load_checkpoint(whole.output / f"{name}.safetensors") for name in ("last", "best"))
    assert last.progress["step"] == 6 and best.progress["step"] in (3, 6)
    assert last.config == load_config(config, SHORT)
    assert best.config == without_absolute_paths(last.config) and best.config.data.root == ""
    assert {name.partition(".")[0] for name in last.arrays} == {"model", "ema", "adam_m", "adam_v"}
    assert last.progress["updates"] == 6 and not any("noise" in name for name in last.arrays)
    assert {name.partition(".")[0] for name in best.arrays} == {"model"}
    assert all(np.isfinite(array).all() for array in last.arrays.values())
    scores = {line["step"]: line["val"]["image"]["oIoU"] for line in log_of(whole.output)[1]}
    assert last.progress["best"] == pytest.approx(max(scores.values()))
    averaged = last.section("model") | last.section("ema")
    assert last.section("ema").keys() == last.section("model").keys()
    if best.progress["step"] == 6:  # the averaged weights are what was scored
        for name, array in best.section("model").items():
            np.testing.assert_array_equal(array, averaged[name])
    assert any((array != last.section("model")[name]).any() for name, array in last.section("ema").items())
    for parameter in build.restore_model(last)[0].get_parameters():
        np.testing.assert_array_equal(parameter.asnumpy(), averaged[parameter.name])


def test_the_resumed_run_equals_the_undisturbed_one(whole, resumed):
    first, second = (load_checkpoint(run.output / "last.safetensors") for run in (whole, resumed))
    for key in ("step", "best"):
        assert second.progress[key] == pytest.approx(first.progress[key])
    assert second.progress["seconds"] > 0 and first.arrays.keys() == second.arrays.keys()
    for name, array in first.arrays.items():
        np.testing.assert_array_equal(second.arrays[name], array, err_msg=name)


def test_the_log_goes_on(whole, resumed):
    (losses, scores), (losses_2, scores_2) = log_of(whole.output), log_of(resumed.output)
    assert [line["step"] for line in losses_2] == [1, 2, 3, 4, 5, 6] and [line["step"] for line in scores_2] == [3, 6]
    for key in ("loss", "grad_norm", "lr"):
        assert [x[key] for x in losses_2] == [x[key] for x in losses]
    assert scores_2 == scores and 1 <= resumed.step < 6 and f"{6 - resumed.step} steps of 4 samples on" in resumed.out


@pytest.mark.slow
def test_reading_a_step_behind_changes_nothing(whole, config, tmp_path, monkeypatch):
    """As on a device, where the next step is launched before one's results are read (test_overlap.py)."""
    monkeypatch.setattr(train, "Trainer", functools.partial(train.Trainer, ahead=1))
    assert main(["train", "--config", str(config), "--output", str(tmp_path), *SHORT, "train.save_every=5"]) == 0
    first, second = (load_checkpoint(folder / "last.safetensors") for folder in (whole.output, tmp_path))
    assert second.progress | {"seconds": 0} == first.progress | {"seconds": 0}
    for name, array in first.arrays.items():
        np.testing.assert_array_equal(second.arrays[name], array, err_msg=name)
    speedless = [[{key: value for key, value in line.items() if key != "samples_per_s"}
                  for line in [*log_of(folder)[0], *log_of(folder)[1]]] for folder in (whole.output, tmp_path)]
    assert speedless[0] == speedless[1]


def test_resume_without_output_goes_on_in_its_folder(whole, config, monkeypatch, tmp_path):
    """``--resume DIR`` alone writes to DIR, not to runs/<name of the configuration>."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train.Trainer, "train", lambda self: outputs.append(self.folder.path))
    outputs = []
    assert main(["train", "--config", str(config), "--resume", str(whole.output), *SHORT]) == 0
    assert [path.resolve() for path in outputs] == [whole.output.resolve()]


@pytest.fixture(scope="module")
def evaluated(whole, root, tmp_path_factory):
    """The subcommand's answer on two splits: printed table and JSON."""
    file = tmp_path_factory.mktemp("scores") / "scores.json"
    done = run_command("evaluate", "--checkpoint", whole.output / "best.safetensors", "--split", "val", "train",
                       "--shuffled", "val", "--output", file)
    return SimpleNamespace(out=done.stdout, document=json.loads(file.read_text()))


def test_evaluate_scores_every_sentence_under_both_protocols(evaluated, root):
    data = read_refer(root, "refshapes", "shapes")
    document = evaluated.document
    assert document["dataset"] == "refshapes" and document["split_by"] == "shapes" and document["input_size"] == 64
    assert document["amp"] == "O0" and document["amp_dtype"] == "float32"
    assert list(document["splits"]) == ["val", "train"] and list(document["shuffled"]) == ["val"]
    for name, result in document["splits"].items():
        samples = data.split(name)
        refs = data.refs_of(name)
        assert (result["sentences"], result["refs"]) == (len(samples), len(refs))
        assert result["images"] == len(set(data.ref_image[refs]))
        for protocol in ("image", "input"):
            scores = result[protocol]
            assert scores["samples"] == len(samples)
            assert {"oIoU", "mIoU", "P@0.5", "P@0.6", "P@0.7", "P@0.8", "P@0.9"} < scores.keys()
            assert all(0 <= value <= 100 for key, value in scores.items() if key != "samples")
        kinds = result["by_kind"]
        assert sum(kind["samples"] for kind in kinds.values()) == len(samples)
        mean = sum(kind["mIoU"] * kind["samples"] for kind in kinds.values()) / len(samples)
        assert mean == pytest.approx(result["image"]["mIoU"], abs=1e-3)


def test_evaluate_prints_a_table(evaluated):
    lines = evaluated.out.splitlines()
    header = lines[0].split()
    assert header[-7:] == ["oIoU", "mIoU", "P@0.5", "P@0.6", "P@0.7", "P@0.8", "P@0.9"] and "(shapes)" in header
    for name, result in evaluated.document["splits"].items():
        for protocol, words in (("image", "image's own size"), ("input", "network's input")):
            row = next(line for line in lines if line.startswith(f"{name} ") and words in line)
            assert f"{result[protocol]['oIoU']:.2f} " in row and f"{result[protocol]['mIoU']:.2f} " in row
        for kind in result["by_kind"]:
            assert any(line.startswith(f"  {kind} ") for line in lines)


def test_evaluate_repeats_the_validation(evaluated, whole):
    step = load_checkpoint(whole.output / "best.safetensors").progress["step"]
    logged = {line["step"]: line["val"] for line in log_of(whole.output)[1]}[step]
    found = evaluated.document["splits"]["val"]
    assert found["image"]["oIoU"] > 1  # a low threshold lets six steps score something
    assert evaluated.document["step"] == step and found["sentences"] == logged["sentences"]
    for protocol in ("image", "input"):
        assert found[protocol]["oIoU"] == pytest.approx(logged[protocol]["oIoU"], abs=0.05)


def test_shuffled_sentences_come_from_other_images(evaluated, root):
    data = read_refer(root, "refshapes", "shapes")
    image_of = data.ref_image[data.sentence_ref]
    for split in ("train", "val"):
        samples = data.split(split)
        others = derange(data, samples)
        assert sorted(others) == sorted(samples) and (image_of[others] != image_of[samples]).all()
    usual, shuffled = (evaluated.document[key]["val"] for key in ("splits", "shuffled"))
    assert shuffled["sentences"] == usual["sentences"] and shuffled["image"] != usual["image"]
    assert sum(line.startswith("val, shuffled ") for line in evaluated.out.splitlines()) == 2


def test_a_few_samples_are_learned_by_heart(tmp_path):
    """Loss and scores on the four refs that it was trained on."""
    make_shapes(tmp_path / "data", 2, train=2, val=1, testA=1, testB=1)
    config = write_config(tmp_path / "c.yaml", tmp_path / "data", [
        "train.lr=5e-3", "train.schedule=cosine", "model.backbone.name=swin", "model.backbone.activation=relu",
        "model.text.dropout=0", "loss.deep_supervision=0", "model.stage_heads=false", "loss.proposal_mask=0",
        "model.proposal_head=false", "loss.bce=1", "loss.dice=1"])
    assert main(["train", "--config", str(config), "--output", str(tmp_path / "run"), "train.steps=100",
                 "train.val_every=100", "data.val_split=train", "loss.contrast=0", "train.warmup_steps=5"]) == 0
    losses, scores = log_of(tmp_path / "run")
    assert losses[0]["loss"] > 5 * losses[-1]["loss"]
    assert scores[-1]["val"]["image"]["oIoU"] > 80 and scores[-1]["val"]["input"]["oIoU"] > 80


@pytest.mark.parametrize("override,words", [
    ("train.batchsize=4", ("unknown key train.batchsize", "train.batch_size")),
    ("train.batch_size=four", ("train.batch_size must be a whole number", "'four'")),
    ("train.lr", ("expected section.key=value",)),
    ("data.image_size=100", ("data.image_size", "multiple of 32")),
    ("train.seed=4294967296", ("train.seed", "2^32 - 1")),  # NumPy takes no larger one
    ("data.root=absent/folder", ("absent/folder",)),
    ("data.dataset=refcocoo", ("refcocoo",)),
    ("data.split_by=google", ("google",)),
    ("data.images=no/such/folder", ("no/such/folder",)),
    ("data.train_split=trian", ("no split 'trian'", "train, val")),
    ("data.val_split=vall", ("no split 'vall'", "train, val")),
])
def test_train_refuses(config, tmp_path, capsys, override, words):
    line = fails(capsys, "train", "--config", config, "--output", tmp_path / "run", override)
    assert all(word in line for word in words), line
    assert not (tmp_path / "run").exists()


def test_train_refuses_files_and_devices(config, whole, tmp_path, capsys, monkeypatch):
    output = tmp_path / "run"
    assert "no such configuration" in fails(capsys, "train", "--config", tmp_path / "no.yaml", "--output", output)
    if not ms.device_context.gpu.is_available():
        line = fails(capsys, "train", "--config", config, "--output", output, "--device-target", "GPU")
        assert "--device-target GPU" in line and "CPU" in line
    line = fails(capsys, "train", "--config", config, "--output", whole.output)
    assert "holds a run already" in line and f"--resume {whole.output}" in line
    blocked = config / "below" / "a" / "file"  # root may write anywhere but here
    assert str(blocked) in fails(capsys, "train", "--config", config, "--output", blocked)
    monkeypatch.setattr(train, "setup", lambda *_: process.Runtime("CPU", 0, 3))
    line = fails(capsys, "train", "--config", config, "--output", output)
    assert "train.batch_size=4" in line and "3 ranks" in line


def test_resume_refuses(config, whole, tmp_path, capsys):
    def refused(resume, *overrides):
        return fails(capsys, "train", "--config", config, "--resume", resume, "--output", tmp_path / "run", *overrides,
                     "train.steps=9")

    assert "last.safetensors: no such checkpoint" in refused(tmp_path)
    assert f"{config}: not a checkpoint" in refused(config)
    line = refused(whole.output, *SHORT, "model.decoder.dim=24", "train.lr=0.5", "train.log_every=3")
    assert "model.decoder.dim was 16, now 24; train.lr was 0.001, now 0.5; set it back" in line
    # the tokenizer is the state's own: where its files lie now does not matter
    line = refused(whole.output, *SHORT, "model.decoder.dim=24", "data.tokenizer=gone/")
    assert "model.decoder.dim was" in line
    assert "tokenizer" not in line
    line = refused(whole.output / "best.safetensors", *SHORT)
    assert "best.safetensors: holds weights without a training state" in line


def test_a_finished_run_has_nothing_left_to_do(config, whole, capsys):
    before = (whole.output / "last.safetensors").stat().st_mtime_ns
    assert main(["train", "--config", str(config), "--resume", str(whole.output), "--output", str(whole.output),
                 *SHORT]) == 0
    assert "already complete at step 6" in capsys.readouterr().out
    assert (whole.output / "last.safetensors").stat().st_mtime_ns == before


def test_evaluate_refuses(config, whole, root, tmp_path, capsys):
    best = whole.output / "best.safetensors"

    def refused(checkpoint, *more):
        return fails(capsys, "evaluate", "--checkpoint", checkpoint, *more)

    assert "no such checkpoint" in refused(tmp_path / "no.safetensors", "--split", "val")
    assert f"{whole.output}: a folder, not a checkpoint; give {best}" in refused(whole.output, "--split", "val")
    said = refused(tmp_path, "--split", "val")
    assert f"{tmp_path}: a folder, not a checkpoint; it holds no best.safetensors" in said
    shutil.copyfile(best, tmp_path / "alone.safetensors")
    line = refused(tmp_path / "alone.safetensors", "--split", "val")
    assert "names no data folder" in line and "give data.root=FOLDER" in line
    assert "no split 'vall'" in refused(tmp_path / "alone.safetensors", "--split", "vall", f"data.root={root}")
    assert f"{config}: not a checkpoint" in refused(config, "--split", "val")
    assert "no split 'vall'" in refused(best, "--split", "val", "vall")
    assert "does not exist" in refused(best, "--split", "val", "--output", tmp_path / "no" / "scores.json")
    assert "writable" in refused(best, "--split", "val", "--output", tmp_path)
    assert "another configuration" in refused(best, "--split", "val", "--config", config, "model.decoder.dim=24")
    content = best.read_bytes()
    short, damaged = tmp_path / "short.safetensors", tmp_path / "damaged.safetensors"
    short.write_bytes(content[:-100])
    damaged.write_bytes(content[:-3] + bytes([content[-3] ^ 0x10]) + content[-2:])
    assert "truncated" in refused(short, "--split", "val")
    assert "checksum" in refused(damaged, "--split", "val")
    for override in ("train.amp=O1", "train.amp_dtype=bfloat16"):
        assert f"{override}: a checkpoint is computed" in refused(best, "--split", "val", override)


def test_a_damaged_image_is_named(config, root, tmp_path, capsys):
    shutil.copytree(root, tmp_path / "data")
    for path in sorted((tmp_path / "data" / "images" / "refshapes").glob("train*"))[:3]:
        path.write_bytes(path.read_bytes()[:300])
    assert main(["train", "--config", str(config), "--output", str(tmp_path / "run"), "train.batch_size=10",
                 f"data.root={tmp_path / 'data'}"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ") and "truncated" in lines[-1] and ".png" in lines[-1]


def test_the_process_answers_with_code_two(config):
    """The same through a real process: exit code, one line, no traceback."""
    done = subprocess.run(command("train", "--config", config, "train.lrr=3"), cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: {config} with its overrides: unknown key train.lrr; did you mean train.lr?")


def test_overrides_may_stand_anywhere(config, tmp_path, capsys):
    """argparse takes a list of words in one place alone."""
    line = fails(capsys, "train", "--config", config, "train.lr=0.1", "--output", tmp_path / "run", "train.lrr=3")
    assert "unknown key train.lrr" in line
    with pytest.raises(SystemExit):
        main(["train", "--config", str(config), "train.lr=0.1", "--outputs", "run", "words"])
    assert "unrecognized arguments: --outputs" in capsys.readouterr().err
