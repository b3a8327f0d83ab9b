"""The command convert-weights as a user runs it, and training that starts from foreign files."""

import errno
import os
import pickle
import shutil
import struct
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import yaml
from fake_training import compute_nothing
from refer_files import VOCABULARY, write_refer
from safetensors.numpy import load_file, save_file
from test_weights import assert_near, darknet_layers, darknet_reference, write_darknet
from tiny_network import TINY

from mindspore_coupalign import build
from mindspore_coupalign.__main__ import main
from mindspore_coupalign.config import load_config
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.weights.checkpoint import load_checkpoint
from mindspore_coupalign.weights.files import read_arrays
from mindspore_coupalign.weights.load import load_backbone_weights, load_text_weights

DARKNET = {"name": "darknet", "embed_dim": 8, "depths": [2, 8, 8, 4]}
GOLDEN = Path(__file__).parents[1] / "golden" / "weights"
SWIN = {"name": "swin", "embed_dim": 4, "depths": [1, 2, 1, 2], "heads": [1, 2, 2, 4], "window": 2, "drop_path": 0.0}
RESNET = {"name": "resnet", "embed_dim": 16, "depths": [1, 2, 1, 1]}
BERT = {"hidden": 8, "heads": 2, "ffn": 16, "groups": [1, 0, 2, 0], "dropout": 0.0}
WORDS = 12  # rows of the golden BERT's vocabulary


@pytest.fixture(scope="module")
def configs(tmp_path_factory) -> dict:
    """Backbone -> a file that describes the tests' network with it, the golden BERT and tiny data."""
    folder = tmp_path_factory.mktemp("configs")
    (folder / "words").mkdir()
    (folder / "words" / "vocab.txt").write_text("\n".join(VOCABULARY[:WORDS]) + "\n")
    data = {"root": str(write_refer(folder / "data")), "dataset": "tiny", "split_by": "unc", "val_split": "testA",
            "tokenizer": str(folder / "words")}
    model = {"text": BERT, "fusion": {"heads": [1, 2, 2, 4], "stages": [4]}, "sentence_mask": False}
    for image in (SWIN, RESNET, DARKNET):
        values = {**TINY, "data": TINY["data"] | data, "model": TINY["model"] | model | {"backbone": image}}
        (folder / f"{image['name']}.yaml").write_text(yaml.safe_dump(values))
    return {path.stem: path for path in folder.glob("*.yaml")}


FIELDS = {"image": "backbone_weights", "text": "text_weights"}  # option of the command -> of the configuration


@pytest.fixture
def convert(configs, tmp_path):
    """``convert(kind, file, *more)`` -> exit code; ``out/ours.safetensors`` holds what it writes, before that "old"."""
    ours = tmp_path / "out" / "ours.safetensors"
    ours.parent.mkdir()
    ours.write_bytes(b"old")

    def run(kind: str, file, *more, network: str = "swin", output=ours) -> int:
        return main(["convert-weights", "--config", str(configs[network]), f"--{kind}", str(file), "--output",
                     str(output), *more])

    return run


def loaded(config, kind: str, file) -> dict:
    """What the network of a configuration takes from a file."""
    config = load_config(config)
    if kind == "text":
        return load_text_weights(build.build_text(config, WORDS), config.model.text, file).arrays
    size = (config.data.image_size, config.data.image_size)
    return load_backbone_weights(build.build_backbone(config.model.backbone, size), config.model.backbone, file).arrays


def assert_same(found: dict, expected: dict):
    assert found.keys() == expected.keys() and expected
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE])
def test_darknet_comes_back_as_it_was_and_only_with_its_slope(convert, configs, tmp_path, capsys, mode):
    """From darknet's own file through the command, under a name that looks like darknet's own again."""
    layers, image = darknet_layers(2), np.random.default_rng(1).normal(size=(1, 3, 64, 64)).astype(np.float32)
    ours = tmp_path / "darknet53.conv.74.safetensors"
    assert convert("image", write_darknet(tmp_path / "darknet53.conv.74", layers), network="darknet", output=ours) == 0
    config = load_config(configs["darknet"], ["data.image_size=64"])
    vision = build.build_backbone(config.model.backbone, (64, 64))
    load_backbone_weights(vision, config.model.backbone, ours)
    vision.set_train(False)
    ms.set_context(mode=mode)
    try:
        features = [feature.asnumpy()[0] for feature in vision(ms.Tensor(image))]
    finally:
        ms.set_context(mode=ms.GRAPH_MODE)
    for found, expected in zip(features, darknet_reference(layers, image[0]), strict=True):
        assert_near(found, expected.reshape(len(expected), -1).T, 1e-4)
    config = load_config(configs["darknet"], ["model.backbone.negative_slope=0.01"])
    with pytest.raises(UserError, match='converted for {"slope": 0.1}, the configuration has {"slope": 0.01}'):
        load_backbone_weights(build.build_backbone(config.model.backbone, (64, 64)), config.model.backbone, ours)


def test_heads_travel_with_a_converted_bert(convert, configs, tmp_path, capsys):
    """No array shows them, and the config.json that does stays behind."""
    ours = tmp_path / "out" / "ours.safetensors"
    assert convert("text", GOLDEN / "bert") == 0
    config = load_config(configs["swin"], ["model.text.heads=4"])
    with pytest.raises(UserError, match='"heads": 2.*"heads": 4'):
        load_text_weights(build.build_text(config, WORDS), config.model.text, ours)


def test_the_config_of_another_file_in_the_folder_says_nothing(configs, tmp_path):
    """A Swin that lies in BERT's folder."""
    shutil.copy(GOLDEN / "bert" / "config.json", tmp_path)
    shutil.copy(GOLDEN / "swin_official.pth", tmp_path)
    assert loaded(configs["swin"], "image", tmp_path / "swin_official.pth")


def only_line(capsys) -> str:
    """The one line that the command says before it exits with code 2."""
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and "Traceback" not in captured.out, captured.err
    return lines[0]


# What is written ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind,network,file,rows", [
    ("image", "swin", "swin_official.pth", ("115 arrays", "8 arrays: outputs.0.beta", "10 arrays: head.bias")),
    ("image", "swin", "swin", ("115 arrays", "8 arrays: outputs.0.beta", "2 arrays: layernorm.bias")),
    ("image", "resnet", "resnet_torchvision.pth", ("100 arrays", "0", "21 arrays: bn1.num_batches_tracked")),
    ("text", "swin", "bert", ("53 arrays", "0", "2 arrays: pooler.dense.bias")),
    ("text", "swin", "bert_pytorch_model.bin", ("53 arrays", "0", "2 arrays: pooler.dense.bias")),
])
def test_the_written_file_holds_what_the_network_takes(convert, configs, tmp_path, capsys, kind, network, file, rows):
    ours, again = tmp_path / "out" / "ours.safetensors", tmp_path / "out" / "again.safetensors"
    assert convert(kind, GOLDEN / file, network=network) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0].startswith(str(GOLDEN / file)) and lines[1].endswith("none missing, none unexpected")
    for label, row, line in zip(("loaded", "not in file", "skipped"), rows, (lines[1], *lines[3:5]), strict=True):
        assert line.startswith(f"{label} {row}")
    assert lines[5].startswith(f"wrote {ours}") and lines[5].endswith(f"model.{FIELDS[kind]}={ours}")
    assert_same(load_file(ours), loaded(configs[network], kind, GOLDEN / file))
    assert_same(loaded(configs[network], kind, ours), load_file(ours))

    assert convert(kind, ours, "--names", network=network, output=again) == 0  # as if it were a foreign file
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    source = "model.safetensors" if (GOLDEN / file).is_dir() else file
    assert lines[0].endswith(f"names, converted from {source}")
    assert lines[5:-1] == [f"{name} {'×'.join(map(str, a.shape))}" for name, a in sorted(load_file(ours).items())]
    assert_same(load_file(again), load_file(ours))
    (tmp_path / "plain").touch()
    assert ours.stat().st_mode == (tmp_path / "plain").stat().st_mode  # who may read plain files may read it
    assert set(ours.parent.iterdir()) == {ours, again}


def test_a_full_disk_keeps_the_older_file(convert, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert convert("image", GOLDEN / "swin") == 2
    assert "No space left" in only_line(capsys)
    assert [path.read_bytes() for path in (tmp_path / "out").iterdir()] == [b"old"]


# What is refused ------------------------------------------------------------------------------------------------------


def golden(name: str, **changes) -> dict:
    """A golden file's arrays; ``changes`` are named by the end of a name, with dots written as __."""
    arrays = {key: np.ascontiguousarray(array) for key, array in read_arrays(GOLDEN / name)[0].items()}
    for end, array in changes.items():
        (key,) = [key for key in arrays if key.endswith(end.replace("__", "."))]
        arrays[key] = array
    return arrays


def saved(name: str, metadata=None, **changes):
    return lambda folder: save_file(golden(name, **changes), folder / "w", metadata)


def hostile(folder):
    command = f"touch {folder / 'it-ran'}".encode()
    body = b"}X\1\0\0\0wcposix\nsystem\nX" + struct.pack("<I", len(command)) + command + b"\x85Rs."
    head = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    (folder / "w").write_bytes(b"".join(pickle.dumps(part, 2) for part in head) + b"\x80\x02" + body)


def with_deep_config(folder):
    shutil.copy(GOLDEN / "swin_official.pth", folder / "w")
    (folder / "config.json").write_text(100_000 * "[")


TABLE = "layers__0__blocks__0__attn__relative_position_bias_table"
REFUSED = {  # name -> (kind, how the file ``w`` is made, words of the error)
    "missing": ("image", lambda folder: None, "no such file or folder"),
    "truncated": ("image", lambda folder: (folder / "w").write_bytes(
        (GOLDEN / "swin_official.pth").read_bytes()[:-1000]), "truncated or damaged"),
    "hostile": ("image", hostile, "refuses 'posix.system'"),
    "another backbone": ("image", saved("resnet_torchvision.pth"), "holds no swin weights"),
    "a text encoder": ("image", saved("bert_pytorch_model.bin"), "holds no swin weights"),
    "a backbone": ("text", saved("swin_official.pth"), "holds no bert weights"),
    "another shape": ("image", saved("swin_official.pth", patch_embed__proj__bias=np.zeros(3, np.float32)),
                      "embed.proj.bias has shape (3,), the configuration's network expects (4,)"),
    "no three parts": ("image", saved("swin_official.pth", layers__0__blocks__0__attn__qkv__bias=np.zeros(
        7, np.float32)), "does not split into three"),
    "a table of one number": ("image", saved("swin_official.pth", **{TABLE: np.zeros((), np.float32)}), "shape ()"),
    "an empty table": ("image", saved("swin_official.pth", **{TABLE: np.zeros((0, 1), np.float32)}), "shape (0, 1)"),
    "too large a number": ("image", saved("swin_official.pth", patch_embed__proj__bias=np.full(4, 1e99)), "non-finite"),
    "no words": ("text", saved("bert_pytorch_model.bin", word_embeddings__weight=np.zeros((0, 8), np.float32)),
                 "word_embeddings has shape (0, 8)"),
    "words without end": ("text", saved("bert_pytorch_model.bin", word_embeddings__weight=np.zeros(
        (2**40, 0), np.float32)), "word_embeddings has shape (1099511627776, 0)"),
    "ours of another backbone": ("image", saved("resnet_torchvision.pth", {
        "format": "coupalign-weights-1", "architecture": "resnet"}), "holds 'resnet' weights"),
    "ours without a title": ("image", saved("resnet_torchvision.pth", {"format": "coupalign-weights-1"}),
                             "holds 'unknown' weights"),
    "a deep config": ("image", with_deep_config, "config.json: cannot be read as JSON"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_weights_is_refused_and_nothing_written(convert, tmp_path, capsys, name):
    kind, make, words = REFUSED[name]
    make(tmp_path)
    assert convert(kind, tmp_path / "w") == 2
    line = only_line(capsys)
    assert words in line and str(tmp_path) in line
    assert [path.read_bytes() for path in (tmp_path / "out").iterdir()] == [b"old"]
    assert not (tmp_path / "it-ran").exists()


def test_a_checkpoint_is_no_pretrained_network(convert, tiny_checkpoint, capsys):
    for kind in ("image", "text"):
        assert convert(kind, tiny_checkpoint) == 2
        assert f"holds no {'swin' if kind == 'image' else 'bert'} weights" in only_line(capsys)


@pytest.mark.parametrize("output", ["absent/w", "out/ours.safetensors/w", "out", 300 * "x" + "/w", "/proc/w"])
def test_places_that_cannot_be_written(convert, tmp_path, capsys, output):
    assert convert("image", GOLDEN / "swin", output=tmp_path / output) == 2
    line = only_line(capsys)
    assert str(tmp_path / output) in line and ("does not exist" in line or "cannot be written" in line)
    assert [path.read_bytes() for path in (tmp_path / "out").iterdir()] == [b"old"]


def test_the_process_answers_with_its_exit_code(command_line, configs, tmp_path):
    arguments = ("convert-weights", "--config", configs["swin"], "--output", tmp_path / "ours.safetensors", "--text")
    done = command_line(*arguments, GOLDEN / "bert")
    assert done.code == 0 and done.err == "" and "none missing, none unexpected" in done.out
    hostile(tmp_path)
    before = (tmp_path / "ours.safetensors").read_bytes()
    done = command_line(*arguments, tmp_path / "w")
    assert done.code == 2 and done.out == "" and done.err.startswith("error: ") and done.err.count("\n") == 1
    assert (tmp_path / "ours.safetensors").read_bytes() == before and not (tmp_path / "it-ran").exists()


# Training from foreign files ------------------------------------------------------------------------------------------


def train(configs, output, *more) -> int:
    return main(["train", "--config", str(configs["swin"]), "--output", str(output), "train.batch_size=2", *more])


def test_training_starts_from_foreign_files_and_resumes_without_them(configs, tmp_path, capsys, monkeypatch):
    compute_nothing(monkeypatch, [1.0] * 2)
    shutil.copy(GOLDEN / "swin_official.pth", tmp_path)
    shutil.copytree(GOLDEN / "bert", tmp_path / "bert")
    files = [f"model.backbone_weights={tmp_path / 'swin_official.pth'}", f"model.text_weights={tmp_path / 'bert'}"]
    assert train(configs, tmp_path / "run", *files, "train.steps=1") == 0
    out = capsys.readouterr().out
    assert "Swin, official or timm names" in out and "BERT, transformers names" in out
    trained = load_checkpoint(tmp_path / "run" / "last.safetensors").section("model")
    for part, kind, file in (("backbone", "image", "swin_official.pth"), ("text", "text", "bert")):
        for name, array in loaded(configs["swin"], kind, tmp_path / file).items():
            np.testing.assert_array_equal(trained[f"encoder.{part}.{name}"], array, err_msg=name)
    (tmp_path / "swin_official.pth").unlink()
    shutil.rmtree(tmp_path / "bert")
    assert train(configs, tmp_path / "run", *files, "train.steps=2", "--resume", str(tmp_path / "run")) == 0
    resumed = load_checkpoint(tmp_path / "run" / "last.safetensors")
    assert resumed.progress["step"] == 2
    for name, array in resumed.section("model").items():
        np.testing.assert_array_equal(array, trained[name], err_msg=name)


@pytest.mark.parametrize("key,name", [("image", "truncated"), ("image", "hostile"), ("image", "a text encoder"),
                                      ("text", "a backbone"), ("text", "missing")])
def test_training_refuses_before_it_writes(configs, tmp_path, capsys, key, name):
    _, make, words = REFUSED[name]
    make(tmp_path)
    assert train(configs, tmp_path / "run", f"model.{FIELDS[key]}={tmp_path / 'w'}") == 2
    assert words in only_line(capsys)
    assert not (tmp_path / "run").exists() and not (tmp_path / "it-ran").exists()
