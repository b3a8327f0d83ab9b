"""A MINDIR gives the checkpoint's answers, and without its sidecar or after any damage it gives none."""

import json
import os
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest
from conftest import ROOT, SENTENCES
from mindspore.train.mind_ir_pb2 import ModelProto

from mindspore_coupalign.__main__ import main
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.inference import mindir
from mindspore_coupalign.inference.predictor import Predictor


@pytest.fixture(scope="session")
def exported(command_line, tiny_checkpoint, tmp_path_factory):
    """The MINDIR that the real command wrote, and what it printed."""
    folder = tmp_path_factory.mktemp("export") / "my models (é)"  # MindSpore's own export refuses such names
    folder.mkdir()
    file = folder / "model.mindir"
    done = command_line("export", "--checkpoint", tiny_checkpoint, "--output", file)
    assert done.code == 0, done.err
    return file, done.out


@pytest.fixture
def copy(exported, tmp_path):
    """A copy of both files that a test may damage."""
    file = tmp_path / "copy.mindir"
    file.write_bytes(exported[0].read_bytes())
    mindir.sidecar_path(file).write_bytes(mindir.sidecar_path(exported[0]).read_bytes())
    return file


def test_the_command_writes_two_files_and_the_difference(exported):
    file, out = exported
    assert sorted(p.name for p in file.parent.iterdir()) == ["model.mindir", "model.mindir.json"]
    facts = json.loads(mindir.sidecar_path(file).read_text())
    assert facts["step"] == 7 and facts["input_size"] == 64 and facts["config"]["model"]["queries"] == 6
    assert facts["amp"] == "O0" and facts["amp_dtype"] == "float32"
    paths = {"root", "images", "tokenizer", "image_weights", "text_weights"}  # of the machine that trained
    assert not paths & (facts["config"]["data"].keys() | facts["config"]["model"].keys())
    assert len(facts["differences"]) == 3 and max(facts["differences"]) <= mindir.TOLERANCES["float32"]
    assert re.search(r"3 random inputs, both in O0 float32: largest difference [\d.]+e[+-]\d+ of the logits' ", out)
    assert os.access(file, os.W_OK)


def test_the_graph_is_for_inference(exported):
    model = ModelProto()
    model.ParseFromString(exported[0].read_bytes())
    assert [list(i.tensor[0].dims) for i in model.graph.input] == [[1, 3, 64, 64], [1, 8], [1, 8]]
    assert len(model.graph.output) == 1
    operators = {node.op_type for graph in (model.graph, *model.functions) for node in graph.node}
    assert any("BatchMatMul" in name for name in operators)
    assert not [name for name in operators if "Dropout" in name]


def test_the_mindir_predicts_what_the_checkpoint_predicts(exported, tiny_restored, picture):
    predictor = Predictor.from_mindir(exported[0])
    theirs = predictor.predict(picture.rgb, list(SENTENCES))
    ours = tiny_restored.predictor.predict(picture.rgb, list(SENTENCES))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(b.probability, a.probability, atol=1e-6)
        np.testing.assert_array_equal(b.mask, a.mask)
    assert (theirs[0].mask != theirs[1].mask).any()
    with pytest.raises(UserError, match="none of its words"):
        predictor.predict(picture.rgb, ["zebra"])


def test_predicting_needs_neither_transformers_nor_the_checkpoint(exported, picture, tiny_restored, tmp_path):
    code = ("import sys; sys.modules['transformers'] = None; from mindspore_coupalign.__main__ import main; "
            "sys.exit(main(sys.argv[1:]))")
    arguments = ("predict", "--mindir", exported[0], "--image", picture.path, "--text", SENTENCES[0],
                 "--output", tmp_path)
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written = cv2.imread(str(tmp_path / "shapes_1_the-red-circle_mask.png"), cv2.IMREAD_UNCHANGED)
    mask = tiny_restored.predictor.predict(picture.rgb, [SENTENCES[0]])[0].mask
    np.testing.assert_array_equal(written, mask * np.uint8(255))


@pytest.mark.slow
def test_a_mindir_of_half_precision(command_line, tiny_checkpoint, picture, tmp_path, capsys):
    """It says so, and predicts what the checkpoint predicts at that level; near float32, but not the same."""
    file = tmp_path / "half.mindir"
    done = command_line("export", "--checkpoint", tiny_checkpoint, "--output", file, "--amp", "O1")
    assert done.code == 0 and "both in O1 float16" in done.out, done.err
    facts = json.loads(mindir.sidecar_path(file).read_text())
    assert facts["amp"] == "O1" and facts["amp_dtype"] == "float16"
    theirs, ours, exact = (predictor.predict(picture.rgb, list(SENTENCES)) for predictor in (
        Predictor.from_mindir(file), Predictor.from_checkpoint(tiny_checkpoint, amp="O1"),
        Predictor.from_checkpoint(tiny_checkpoint, amp="O0")))
    for a, b, c in zip(theirs, ours, exact, strict=True):
        np.testing.assert_allclose(a.probability, b.probability, atol=1e-3)
        assert 0 < np.abs(b.probability - c.probability).max() < 0.02
    code = main(["predict", "--mindir", str(file), "--image", str(picture.path), "--text", SENTENCES[0], "--amp", "O0",
                 "--output", str(tmp_path)])
    assert code == 2 and "--amp needs --checkpoint" in capsys.readouterr().err


def refused(file, match):
    with pytest.raises(UserError, match=match) as caught:
        Predictor.from_mindir(file)
    assert "\n" not in str(caught.value)


def test_missing_and_damaged_files_are_refused(copy, tmp_path):
    sidecar = mindir.sidecar_path(copy)
    facts = json.loads(sidecar.read_text())
    refused(tmp_path / "none.mindir", "none.mindir: no such file")
    for text, match in (("{", "not valid JSON"), ("[]", "field 'format'"),
                        (json.dumps(facts | {"format": "x"}), "field 'format'"),
                        (json.dumps(facts | {"threshold": "high"}), "field 'threshold'"),
                        (json.dumps(facts | {"threshold": 1.0}), "field 'threshold' must lie between 0 and 1"),
                        (json.dumps(facts | {"mean": ["a", 0, 0]}), "field 'mean' must be three numbers"),
                        (json.dumps(facts | {"std": [1, 0.0, 1]}), "field 'std' must be three numbers above 0"),
                        (json.dumps({k: v for k, v in facts.items() if k != "tokenizer"}), "field 'tokenizer'")):
        sidecar.write_text(text)
        refused(copy, match)
    sidecar.write_text(json.dumps(facts))
    whole = copy.read_bytes()
    copy.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused(copy, "sha256 differs")
    copy.write_bytes(b"no graph")
    sidecar.write_text(json.dumps(facts | {"sha256": mindir._sha256(copy)}))
    refused(copy, "cannot load it")
    copy.unlink()
    refused(copy, "copy.mindir: cannot be read")
    sidecar.unlink()
    copy.write_bytes(whole)
    refused(copy, "copy.mindir.json: no such file; .* beside")


@pytest.fixture
def quick(monkeypatch, exported, tiny_restored):
    """export in this process without compiling: the network is compiled already, ms.export copies a finished file."""
    def copied(*_, file_name, file_format):
        assert file_format == "MINDIR"
        with open(file_name, "wb") as file:
            file.write(exported[0].read_bytes())

    monkeypatch.setattr(mindir.ms, "export", copied)
    monkeypatch.setattr(mindir.build, "restore_model",
                        lambda _, amp=None: (tiny_restored.model, tiny_restored.tokenizer))


def run(capsys, checkpoint, output):
    code = main(["export", "--checkpoint", str(checkpoint), "--output", str(output)])
    return code, capsys.readouterr().err


def test_an_older_file_is_replaced(quick, copy, tiny_checkpoint, capsys):
    copy.write_bytes(b"old")
    assert run(capsys, tiny_checkpoint, copy) == (0, "")
    Predictor.from_mindir(copy)
    assert sorted(p.name for p in copy.parent.iterdir()) == ["copy.mindir", "copy.mindir.json"]


def test_a_graph_that_differs_is_not_kept(quick, tiny_checkpoint, tmp_path, monkeypatch, capsys):
    model = mindir.nn.GraphCell
    for wrong in (1.0001, float("nan")):
        monkeypatch.setattr(mindir.nn, "GraphCell", lambda graph, wrong=wrong: lambda *x: model(graph)(*x) * wrong)
        code, err = run(capsys, tiny_checkpoint, tmp_path / "a.mindir")
        assert code == 1 and "differs from the checkpoint by" in err and err.count("\n") == 1
        assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_named_and_nothing_stays(quick, tiny_checkpoint, tmp_path, monkeypatch, capsys):
    code, err = run(capsys, tiny_checkpoint, tmp_path / "a.onnx")
    assert code == 2 and "must end in .mindir" in err
    code, err = run(capsys, tiny_checkpoint, tmp_path / "caf\udce9.mindir")
    assert code == 2 and "not UTF-8; choose another --output" in err
    with pytest.raises(UserError, match="not UTF-8; rename it"):
        Predictor.from_mindir(tmp_path / "caf\udce9.mindir")
    code, err = run(capsys, tiny_checkpoint, tmp_path / "none" / "a.mindir")
    assert code == 2 and "does not exist" in err
    monkeypatch.setattr(mindir, "_LARGEST", 1000)
    code, err = run(capsys, tiny_checkpoint, tmp_path / "a.mindir")
    assert code == 2 and "GiB of weights" in err
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_mindspore_splits_is_refused(quick, tiny_checkpoint, tmp_path, monkeypatch, capsys):
    def split(*_, file_name, **__):
        os.makedirs(file_name.replace(".mindir", "_variables"))
        open(file_name.replace(".mindir", "_graph.mindir"), "wb").close()

    monkeypatch.setattr(mindir.ms, "export", split)
    code, err = run(capsys, tiny_checkpoint, tmp_path / "a.mindir")
    assert code == 2 and "model_graph.mindir, model_variables instead of one file" in err
    assert list(tmp_path.iterdir()) == []
