"""A MINDIR predicts what its checkpoint predicts; without its sidecar, or damaged, it is rejected."""

import json
import os
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest
from conftest import ROOT, SENTENCES
from mindspore.train import serialization
from mindspore.train.mind_ir_pb2 import ModelProto
from refer_files import write_refer

from mindspore_coupalign.__main__ import main
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.evaluation import scored_models
from mindspore_coupalign.inference import loading, mindir, sidecar
from mindspore_coupalign.inference.cells import CellNetwork
from mindspore_coupalign.inference.model import Predictor


@pytest.fixture
def copy(exported, tmp_path):
    """A copy of both files that a test may damage."""
    file = tmp_path / "copy.mindir"
    file.write_bytes(exported[0].read_bytes())
    sidecar.sidecar_path(file).write_bytes(sidecar.sidecar_path(exported[0]).read_bytes())
    return file


def test_the_command_writes_two_files_and_the_difference(exported):
    file, out = exported
    assert sorted(p.name for p in file.parent.iterdir()) == ["model.mindir", "model.mindir.json"]
    facts = json.loads(sidecar.sidecar_path(file).read_text())
    assert facts["step"] == 7 and facts["input_size"] == 64 and facts["config"]["model"]["queries"] == 6
    assert facts["amp"] == "O0" and facts["amp_dtype"] == "float32" and facts["threshold"] == 0.5
    assert [(entry["name"], entry["shape"], entry["type"]) for entry in facts["inputs"] + facts["outputs"]] == [
        ("image", ["B", 3, 64, 64], "float32"), ("ids", ["B", 8], "int32"), ("word_mask", ["B", 8], "int32"),
        ("logits", ["B", 1, 64, 64], "float32")]
    assert facts["batch"] is None and facts["weights"] == {} and facts["padding"]["length"] == 8
    paths = {"root", "images", "tokenizer", "image_weights", "text_weights"}  # of the machine that trained
    assert not paths & (facts["config"]["data"].keys() | facts["config"]["model"].keys())
    assert str(file.parent) not in sidecar.sidecar_path(file).read_text()
    assert len(facts["differences"]) == 3 and max(facts["differences"]) <= mindir.TOLERANCES["float32"]
    assert re.search(r"3 random inputs \(batches 1, 3, 5\), both in O0 float32: largest difference [\d.]+e[+-]\d+ "
                     r"of the logits' ", out)
    assert os.access(file, os.W_OK)


def test_the_graph_is_for_inference(exported):
    model = ModelProto()
    model.ParseFromString(exported[0].read_bytes())
    assert [list(i.tensor[0].dims) for i in model.graph.input] == [[-1, 3, 64, 64], [-1, 8], [-1, 8]]
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


def test_predicting_needs_nothing_that_only_training_needs(exported, tiny_checkpoint, picture, tiny_restored, tmp_path):
    """A checkpoint by ``load``, then the MINDIR by the command."""
    code = f"""
import sys
sys.modules.update(dict.fromkeys(["transformers", "matplotlib", "pycocotools", "torch"]))
import mindspore_coupalign as coupalign
from mindspore_coupalign.__main__ import main
prediction = coupalign.load({str(tiny_checkpoint)!r}).predict({str(picture.path)!r}, {SENTENCES[0]!r})
prediction.save({str(tmp_path / "api")!r})
try:
    prediction.rle()
except coupalign.UserError as exc:
    print(exc)
sys.exit(main(sys.argv[1:]))
"""
    arguments = ("predict", "--model", exported[0], "--image", picture.path, "--text", *SENTENCES[:1], "--text",
                 SENTENCES[1], "eval.threshold=0.51", "--output", tmp_path)
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "pip install pycocotools" in done.stdout and "note: predictions.jsonl has no RLE" in done.stderr
    written = cv2.imread(str(tmp_path / "api" / "shapes_the-red-circle_mask.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(written > 0, tiny_restored.predictor.predict(picture.rgb, SENTENCES[0])[0].mask)
    records = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    expected = tiny_restored.predictor.predict(picture.rgb, list(SENTENCES), threshold=0.51)
    for record, prediction in zip(records, expected, strict=True):
        assert record["rle"] is None and record["area"] == prediction.area and record["has_target"]
        written = cv2.imread(str(tmp_path / record["mask"]), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(written, prediction.mask * np.uint8(255))


@pytest.mark.slow
def test_a_mindir_of_half_precision(command_line, tiny_checkpoint, picture, tmp_path, capsys):
    """It says so, and predicts what the checkpoint predicts at that level; near float32, but not the same."""
    file = tmp_path / "half.mindir"
    done = command_line("export", "--checkpoint", tiny_checkpoint, "--output", file, "--amp", "O1")
    assert done.code == 0 and "both in O1 float16" in done.out, done.err
    facts = json.loads(sidecar.sidecar_path(file).read_text())
    assert facts["amp"] == "O1" and facts["amp_dtype"] == "float16"
    theirs, ours, exact = (predictor.predict(picture.rgb, list(SENTENCES)) for predictor in (
        Predictor.from_mindir(file), Predictor.from_checkpoint(tiny_checkpoint, amp="O1"),
        Predictor.from_checkpoint(tiny_checkpoint, amp="O0")))
    for a, b, c in zip(theirs, ours, exact, strict=True):
        np.testing.assert_allclose(a.probability, b.probability, atol=1e-3)
        assert 0 < np.abs(b.probability - c.probability).max() < 0.02
    code = main(["predict", "--mindir", str(file), "--image", str(picture.path), "--text", SENTENCES[0], "--amp", "O0",
                 "--output", str(tmp_path)])
    assert code == 2 and "--amp needs a checkpoint" in capsys.readouterr().err


def refused(file, match):
    with pytest.raises(UserError, match=match) as caught:
        Predictor.from_mindir(file)
    assert "\n" not in str(caught.value)


def test_missing_and_damaged_files_are_refused(copy, tmp_path):
    beside = sidecar.sidecar_path(copy)
    facts = json.loads(beside.read_text())
    refused(tmp_path / "none.mindir", "none.mindir: no such file")
    for changed, match in (({"format": "x"}, "field 'format'"), ({"threshold": "high"}, "field 'threshold'"),
                           ({"threshold": 1.0}, "field 'threshold' must be a number between 0 and 1, found '1.0'"),
                           ({"mean": ["a", 0, 0]}, "field 'mean' must be three finite numbers"),
                           ({"std": [1, 0.0, 1]}, "field 'std' must be three positive numbers"),
                           ({"tokenizer": None}, "field 'tokenizer'"), ({"input_size": 0}, "field 'input_size'"),
                           ({"kind": "onnx"}, "is a graph of kind onnx, not mindir; give it as --onnx"),
                           ({"kind": 1}, "field 'kind' must be"), ({"batch": 0}, "field 'batch'"),
                           ({"max_tokens": 1}, "at least 3"),
                           ({"input_size": True}, "'input_size' must be an integer of at least 1, found 'True'"),
                           ({"input_size": 32}, "field 'inputs'"), ({"max_tokens": 4}, "field 'inputs'"),
                           ({"batch": 3}, "field 'inputs' must be image, ids and word_mask, with the shapes of batch"),
                           ({"inputs": [facts["inputs"][0] | {"type": "uint8"}, *facts["inputs"][1:]]}, "'inputs'"),
                           ({"inputs": facts["inputs"][::-1]}, "'inputs'"), ({"outputs": []}, "'outputs' must be"),
                           ({"weights": {"../data_0": "x"}}, "field 'weights'"),
                           ({"weights": {"w/data_0": "x"}}, "w/data_0: cannot be read")):
        beside.write_text(json.dumps(facts | changed))
        refused(copy, match)
    beside.write_text(json.dumps({key: value for key, value in facts.items() if key != "batch"}))
    refused(copy, "field 'batch'")
    for text, match in (("{", "not valid JSON"), ("[]", "field 'format'")):
        beside.write_text(text)
        refused(copy, match)
    beside.write_text(json.dumps(facts))
    whole = copy.read_bytes()
    copy.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused(copy, "sha256 differs")
    copy.write_bytes(b"no graph")
    beside.write_text(json.dumps(facts | {"sha256": sidecar.sha256(copy)}))
    refused(copy, "cannot load it")
    copy.unlink()
    refused(copy, "copy.mindir: cannot be read")
    beside.unlink()
    copy.write_bytes(whole)
    refused(copy, "copy.mindir.json: no such file; .* beside")


def test_a_sidecar_of_the_first_format(copy):
    """A batch of one; nothing said of inputs, outputs and resizing."""
    beside = sidecar.sidecar_path(copy)
    facts = json.loads(beside.read_text())
    old = {key: facts[key] for key in ("sha256", "input_size", "mean", "std", "threshold", "max_tokens", "tokenizer",
                                       "step", "amp", "amp_dtype", "differences", "config")}
    beside.write_text(json.dumps({"format": "coupalign-mindir-1", **old}))
    read = sidecar.read(copy, "mindir")
    assert read["batch"] == 1 and not sidecar.takes_uint8(read)
    with pytest.raises(UserError, match="of kind mindir, not onnx; give it as --mindir"):
        sidecar.read(copy, "onnx")


@pytest.fixture
def compiled(monkeypatch, tiny_restored):
    """The network is restored and compiled already."""
    monkeypatch.setattr(mindir.build, "restore_model",
                        lambda _, amp=None: (tiny_restored.model, tiny_restored.tokenizer))


@pytest.fixture
def quick(monkeypatch, exported, compiled):
    """export in this process without compiling: the network is compiled already, ms.export copies a finished file."""
    def copied(*_, file_name, file_format):
        assert file_format == "MINDIR"
        with open(file_name, "wb") as file:
            file.write(exported[0].read_bytes())

    monkeypatch.setattr(mindir.ms, "export", copied)


def run(capsys, checkpoint, output, *options):
    code = main(["export", "--checkpoint", str(checkpoint), "--output", str(output), *options])
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


def test_an_output_that_cannot_be_written_is_named_and_leaves_nothing(quick, tiny_checkpoint, tmp_path, capsys):
    code, err = run(capsys, tiny_checkpoint, tmp_path / "a.pth")
    assert code == 2 and "must end in .mindir" in err
    code, err = run(capsys, tiny_checkpoint, tmp_path / "caf\udce9.mindir")
    assert code == 2 and "not UTF-8; choose another --output" in err
    with pytest.raises(UserError, match="not UTF-8; rename it"):
        Predictor.from_mindir(tmp_path / "caf\udce9.mindir")
    code, err = run(capsys, tiny_checkpoint, tmp_path / "none" / "a.mindir")
    assert code == 2 and "does not exist" in err
    code, err = run(capsys, tiny_checkpoint, tmp_path / "a.mindir", "--batch", "0")
    assert code == 2 and "--batch must be at least 1" in err
    assert list(tmp_path.iterdir()) == []


def test_weights_in_files_of_their_own(compiled, tiny_checkpoint, tiny_restored, picture, tmp_path, monkeypatch,
                                       capsys):
    """What MindSpore does beyond 1 GiB, here beyond 100 KiB; with pixels of 8 bits and a batch of two on the way."""
    monkeypatch.setattr(serialization, "TOTAL_SAVE", 100)  # KiB
    file = tmp_path / "é" / "split.mindir"
    file.parent.mkdir()
    assert run(capsys, tiny_checkpoint, file, "--uint8", "--batch", "2") == (0, "")
    weights = file.parent / "split.mindir.weights"
    assert sorted(p.name for p in file.parent.iterdir()) == ["split.mindir", "split.mindir.json", weights.name]
    assert sum(p.stat().st_size for p in weights.iterdir()) > 4 * 50_000 > file.stat().st_size - 1_000_000
    facts = json.loads(sidecar.sidecar_path(file).read_text())
    assert facts["weights"].keys() == {f"split.mindir.weights/{p.name}" for p in weights.iterdir()}
    assert facts["batch"] == 2 and facts["inputs"][0]["shape"] == [2, 64, 64, 3]
    moved = tmp_path / "elsewhere"
    file.parent.rename(moved)
    sentences = [*SENTENCES, "red circle"]
    theirs = loading.load(moved / file.name).predict(picture.rgb, sentences)
    for b, sentence in zip(theirs, sentences, strict=True):
        a = tiny_restored.predictor.predict(picture.rgb, sentence)[0]
        np.testing.assert_allclose(b.probability, a.probability, atol=1e-5)
        np.testing.assert_array_equal(b.mask, a.mask)
    part = next((moved / weights.name).iterdir())
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    refused(moved / file.name, r"weights/data_0: not the file that split.mindir.json describes")


@pytest.fixture(scope="session")
def scored_data(tmp_path_factory):
    root = write_refer(tmp_path_factory.mktemp("refer"))
    return [f"data.root={root}", "data.dataset=tiny", "data.split_by=unc"]


def scores(output, *arguments) -> dict:
    assert main(["evaluate", *map(str, arguments), "--output", str(output), "--protocol", "sentence", "lavt", "--split",
                 "train", "val"]) == 0
    return json.loads(output.read_text())


def test_a_graph_scores_as_its_checkpoint(exported, tiny_checkpoint, tiny_restored, scored_data, tmp_path, capsys,
                                          monkeypatch):
    """In the same table and JSON; the MINDIR at another batch, the stand-in for ONNX at its own fixed one."""
    monkeypatch.setattr(scored_models.build, "restore_model", lambda *_: (tiny_restored.model, tiny_restored.tokenizer))
    expected = scores(tmp_path / "a.json", "--checkpoint", tiny_checkpoint, *scored_data, "eval.batch_size=1")
    table = capsys.readouterr().out
    found = scores(tmp_path / "a.json", "--mindir", exported[0], *scored_data, "eval.batch_size=4")
    assert capsys.readouterr().out == table
    assert found.pop("mindir") == str(exported[0]) and expected.pop("checkpoint") == str(tiny_checkpoint)
    assert found == expected and 0 < found["splits"]["train"]["image"]["mIoU"] < 100
    facts = json.loads(sidecar.sidecar_path(exported[0]).read_text())
    onnx = tmp_path / "a.onnx"
    onnx.write_bytes(b"")
    inputs = [entry | {"shape": [1, *entry["shape"][1:]]} for entry in facts["inputs"]]
    sidecar.write(onnx, facts | {"kind": "onnx", "batch": 1, "inputs": inputs})
    facts = sidecar.read(onnx, "onnx")
    monkeypatch.setattr(scored_models, "open_graph", lambda *_: (CellNetwork(tiny_restored.model), facts))
    found = scores(tmp_path / "a.json", "--onnx", onnx, *scored_data)
    assert found.pop("onnx") == str(onnx) and found == expected


def test_a_graph_is_scored_on_data_that_it_fits(exported, scored_data, tmp_path, capsys):
    for arguments, match in (((), "names no data folder"),
                             ((*scored_data, "data.image_size=96"), "data.image_size=96: .* was exported with 64"),
                             ((*scored_data, "data.max_tokens=9"), "data.max_tokens=9: .* was exported with 8"),
                             ((*scored_data, "train.amp=O1"), "train.amp=O1: a checkpoint is computed"),
                             ((*scored_data, "--config", "refshapes_tiny"), "data.max_tokens=.* was exported with 8"),
                             ((*scored_data, "--amp", "O1"), "--amp needs a checkpoint"),
                             ((*scored_data, "--protocol", "ref-concatenated"), "reads 8 word pieces, but a prompt")):
        code = main(["evaluate", "--mindir", str(exported[0]), "--split", "train", *arguments])
        err = capsys.readouterr().err
        assert code == 2 and re.search(match, err), err
