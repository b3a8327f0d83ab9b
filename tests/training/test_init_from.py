"""train --init-from: a checkpoint's weights at another size, learning rate, recipe; and what does not fit."""

import json

import numpy as np
import pytest
from fake_training import compute_nothing, fails
from numpy_layers import randomize
from refer_files import write_vocabulary
from tiny_network import LAVT, eager, tiny_batch, tiny_config
from training_runs import log_of, write_config

from mindspore_coupalign import build
from mindspore_coupalign.__main__ import main
from mindspore_coupalign.config import config_to_dict, load_config
from mindspore_coupalign.data.refshapes.dataset import make_shapes
from mindspore_coupalign.data.tokenizer import SentenceTokenizer
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.training.init_from import COMPARED, PARTS, REPORTED, InitialWeights
from mindspore_coupalign.weights.checkpoint import load_checkpoint, named_arrays, save_checkpoint
from mindspore_coupalign.weights.load import resample_table

NETWORK = ["model.backbone.name=swin", "model.sentence_mask=false", "loss.proposal_mask=0", "model.proposal_head=false",
           "loss.deep_supervision=0", "model.stage_heads=false",
           "model.text.dropout=0"]
TABLE = "encoder.backbone.stages.0.blocks.0.attn.relative_position_bias_table"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Data, a small configuration and, for each method, a checkpoint of it with random weights."""
    folder = tmp_path_factory.mktemp("from")
    make_shapes(folder / "data", 1, train=4, val=2, testA=1, testB=1)
    write_config(folder / "small.yaml", folder / "data", NETWORK)
    write_checkpoint(folder / "coupalign.safetensors", load_config(folder / "small.yaml"))
    lavt = load_config(folder / "small.yaml", list(LAVT))
    write_checkpoint(folder / "lavt.safetensors", lavt)
    return folder


def write_checkpoint(path, config, averages=True):
    """With averaged weights that differ from the others, as training's last.safetensors has them."""
    tokenizer = SentenceTokenizer.from_name(config.data.tokenizer, config.data.max_tokens)
    model = randomize(build.build_model(config, tokenizer.vocab_size), scale=0.2)
    arrays = named_arrays(model.get_parameters(), "ema" if averages else "model")
    others = {"model." + name.partition(".")[2]: array + 1 for name, array in arrays.items()} if averages else {}
    save_checkpoint(path, arrays | others, config, tokenizer.to_json(), {"step": 70, "best": 5.0, "updates": 70})


@pytest.fixture
def begin(place, tmp_path, monkeypatch):
    """``begin(*arguments)``: the command with steps that change nothing; the weights that it began with."""
    def run(*arguments, name="coupalign", output="run"):
        compute_nothing(monkeypatch, [1.0] * 2)
        assert main(["train", "--config", str(place / "small.yaml"), "--output", str(tmp_path / output),
                     "--init-from", str(place / f"{name}.safetensors"), "train.steps=2", *arguments]) == 0
        return load_checkpoint(tmp_path / output / "best.safetensors")

    return run


@pytest.mark.parametrize("name, overrides", [("coupalign", []),
                                             ("lavt", list(LAVT))])
def test_step_0_has_the_checkpoints_network(begin, place, tmp_path, name, overrides, capsys):
    """The averaged weights, all of them: the same logits; but a run with its own learning rate and best score."""
    found = begin(*overrides, "train.lr=0.3", name=name)
    start = load_checkpoint(place / f"{name}.safetensors")
    for key, array in start.section("ema").items():
        np.testing.assert_array_equal(found.section("model")[key], array, err_msg=key)
    image, ids, word_mask, _ = tiny_batch(2, tokens=16)
    logits = [eager(build.restore_model(checkpoint)[0], image, ids, word_mask).asnumpy()
              for checkpoint in (start, found)]
    np.testing.assert_array_equal(*logits)
    assert found.config.train.lr == 0.3 and found.progress["step"] == 2 and found.tokenizer == start.tokenizer
    said, facts = capsys.readouterr().out, json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[0])
    count = len(start.section("ema"))
    assert f"starts from the averaged weights of {place / name}.safetensors (step 70): {count} arrays loaded, 0" in said
    assert facts == {"step": 0, "init_from": {"file": f"{name}.safetensors", "step": 70, "loaded": count,
                                              "averaged": True, "resampled": [], "fresh": [], "left_out": []}}
    assert [line["step"] for line in log_of(tmp_path / "run")[0]] == [1, 2]


def test_another_window_resamples_the_tables(begin, place, capsys):
    found = begin("data.image_size=96", "model.backbone.window=6", "data.mean=[0.4, 0.4, 0.4]")
    start = load_checkpoint(place / "coupalign.safetensors").section("ema")
    assert start[TABLE].shape == (49, 1) and found.section("model")[TABLE].shape == (121, 1)
    for key, array in found.section("model").items():
        expected = resample_table(start[key], array.shape) if key.endswith("bias_table") else start[key]
        np.testing.assert_array_equal(array, expected, err_msg=key)
    said = capsys.readouterr().out
    assert "4 of them resampled" in said and f"resampled: {TABLE}" in said
    assert "data.mean: was [0.5, 0.5, 0.5], now [0.4, 0.4, 0.4]" in said


def test_a_real_run_at_another_size_and_rate(place, tmp_path, capsys):
    """It compiles, learns and validates at 96 pixels."""
    output = tmp_path / "run"
    assert main(["train", "--config", str(place / "small.yaml"), "--output", str(output), "--init-from",
                 str(place / "coupalign.safetensors"), "data.image_size=96", "model.backbone.window=6", "train.lr=1e-4",
                 "train.steps=2", "train.val_samples=2", "loss.contrast=0"]) == 0
    assert "4 of them resampled" in capsys.readouterr().out
    last, start = load_checkpoint(output / "last.safetensors"), load_checkpoint(place / "coupalign.safetensors")
    assert last.progress["updates"] == 2 and last.config.data.image_size == 96
    moved = np.abs(last.section("model")["head.conv.weight"] - start.section("ema")["head.conv.weight"]).max()
    assert 0 < moved < 3e-4  # Adam's moves are as long as the learning rate


def test_what_does_not_fit_is_named(place, tmp_path, capsys):
    def refused(*arguments, name="coupalign"):
        return fails(capsys, "train", "--config", place / "small.yaml", "--output", tmp_path / "run", "--init-from",
                     place / f"{name}.safetensors", *arguments)

    line = refused("model.decoder.dim=24")
    assert "pixel_decoder.fuse" in line and "the configuration's network expects" in line
    assert "--init-from-skip head pixel_decoder" in line
    line = refused("loss.deep_supervision=0.5", "model.stage_heads=true")
    assert "stage_heads.0.weight (not in the checkpoint)" in line and "--init-from-skip stage_heads" in line
    line = refused("model.text.groups=[0, 0, 0, 1]", "--init-from-skip", "decoder")
    assert "(the configuration's network has none)" in line and "encoder.text" in line
    assert "model.fusion.name was pixel_word, now word_pixel" in refused(name="lavt")
    line = refused("model.backbone.heads=[2, 2, 2, 4]", "model.text.activation=gelu")
    assert "model.text.activation was relu, now gelu; model.backbone.heads was [1, 2, 2, 4], now [2, 2, 2, 4]" in line
    assert "no parameter's name starts so" in refused("--init-from-skip", "decodr")
    line = refused("--resume", place)
    assert "--resume continues a run, --init-from starts a new one" in line
    line = fails(capsys, "train", "--config", place / "small.yaml", "--init-from-skip", "decoder")
    assert "belongs to --init-from" in line
    line = refused(name="no")
    assert "no such checkpoint" in line
    assert not (tmp_path / "run").exists()


def test_what_is_left_out_starts_fresh(begin, place, capsys):
    found = begin("model.decoder.dim=24", "loss.deep_supervision=0.5", "model.stage_heads=true", "--init-from-skip",
                  "decoder", "head", "stage_heads")
    start = load_checkpoint(place / "coupalign.safetensors").section("ema")
    fresh = {key for key in found.section("model") if key.startswith(("pixel_decoder", "head", "stage_heads"))}
    for key in found.section("model").keys() - fresh:
        np.testing.assert_array_equal(found.section("model")[key], start[key], err_msg=key)
    assert found.section("model")["head.conv.weight"].shape[1] == 24
    said = capsys.readouterr().out
    assert "  fresh: head.conv." in said and "pixel_decoder." in said and "  left out of the file: head.conv." in said


def test_another_tokenizer(place, tmp_path):
    path, vocabulary = place / "coupalign.safetensors", write_vocabulary(tmp_path / "words")
    config = load_config(place / "small.yaml", [f"data.tokenizer={vocabulary}"])
    own = load_checkpoint(path).tokenizer
    with pytest.raises(UserError, match="data.tokenizer=.*words: not the tokenizer of .*coupalign.safetensors"):
        InitialWeights(path).tokenizer(config)
    fresh = InitialWeights(path, ("encoder.text",)).tokenizer(config)
    assert fresh.vocab_size != SentenceTokenizer.from_json(own, 16).vocab_size
    initial = InitialWeights(path)
    config = load_config(place / "small.yaml", ["data.tokenizer=gone/"])
    assert initial.tokenizer(config).to_json() == own and "own tokenizer is used" in initial.lines[0]


def test_pretrained_files_are_read_for_what_is_left_out_alone(place, monkeypatch):
    path = place / "coupalign.safetensors"
    config = load_config(place / "small.yaml", ["model.text_weights=bert/", "model.backbone_weights=swin.pth"])
    read = []
    monkeypatch.setattr(build, "load_text_weights", lambda *given: read.append(given[2]) or FakeLoaded())
    model = build.build_model(config, SentenceTokenizer.from_json(load_checkpoint(path).tokenizer, 16).vocab_size)
    initial = InitialWeights(path, ("encoder.text",))
    initial.load(model, config)
    assert read == ["bert/"] and "a table" in initial.lines
    assert any("model.backbone_weights=swin.pth is not read" in line for line in initial.lines)


class FakeLoaded:
    def table(self):
        return "a table"


def test_the_settings_that_are_compared_exist():
    values = config_to_dict(tiny_config())
    for name in (*COMPARED, *REPORTED, *(f"model.{part}.name" for part in PARTS)):
        section, *keys, field = name.split(".")
        found = values[section]
        for key in keys:
            found = found[key]
        assert field in found, name
