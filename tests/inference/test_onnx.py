"""An ONNX file computes what the network computes, at any batch, in onnxruntime; what is wrong is not written."""

import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from conftest import ROOT, SENTENCES
from numpy_layers import randomize
from paper_rows import ROWS, reduced
from tiny_network import VARIANTS, VOCABULARY, eager, pynative, tiny_batch, tiny_config, tiny_model
from toy_parts import TOYS, Asks, Gathered, Unfolded

onnx = pytest.importorskip("onnx", reason="needs requirements-test.txt")
ort = pytest.importorskip("onnxruntime", reason="needs requirements-test.txt")

from mindspore import Tensor, nn  # noqa: E402

import mindspore_coupalign as coupalign  # noqa: E402
from mindspore_coupalign import build, runtime  # noqa: E402
from mindspore_coupalign.__main__ import main  # noqa: E402
from mindspore_coupalign.config import load_config  # noqa: E402
from mindspore_coupalign.data.transforms import ImageTransform  # noqa: E402
from mindspore_coupalign.errors import UserError  # noqa: E402
from mindspore_coupalign.inference import sidecar  # noqa: E402
from mindspore_coupalign.inference.network import NetworkOutput  # noqa: E402
from mindspore_coupalign.inference.onnx import export, session  # noqa: E402
from mindspore_coupalign.inference.onnx.session import TOLERANCE, load_onnx  # noqa: E402
from mindspore_coupalign.weights.checkpoint import load_checkpoint  # noqa: E402

RELU = ("model.backbone.activation=relu", "model.text.activation=relu", "model.backbone.absolute_position=true",
        "model.fusion.stages=[1,3]", "model.query_stage=2")
KINDS = {"swin": (), "relu": RELU, "guided": ("model.head.upsample=guided",), "padded": ("model.backbone.window=5",),
         "no_target": ("model.no_target=true",), **VARIANTS}


def runs(model: onnx.ModelProto):
    """``run(image, ids, word_mask)`` of a model in memory."""
    runtime = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda *arrays: runtime.run(None, dict(zip(session.INPUTS, arrays, strict=True)))[0]


def shape(value) -> list:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_computes_what_the_network_computes(kind, tmp_path):
    config = tiny_config(*KINDS[kind])
    network = randomize(tiny_model(*KINDS[kind]), scale=0.15)
    model = export.network_to_onnx(network, config.data, tmp_path)
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    assert shape(inferred.graph.output[0]) == ["batch", 1, 64, 64]
    assert [(i.name, shape(i)) for i in model.graph.input] == [
        ("image", ["batch", 3, 64, 64]), ("ids", ["batch", 8]), ("word_mask", ["batch", 8])]

    run, batch = runs(model), tiny_batch(3)[:3]
    result = eager(network, *batch)
    expected = (result[0] if isinstance(result, tuple) else result).asnumpy()
    tolerance = TOLERANCE / 5 * np.abs(expected).max()
    assert expected.std() > 1e-2 * np.abs(expected).max()
    np.testing.assert_allclose(run(*batch), expected, rtol=0, atol=tolerance)
    for i in range(3):  # a sample's logits do not depend on its batch
        one = run(*(part[i:i + 1] for part in batch))
        np.testing.assert_allclose(one, expected[i:i + 1], rtol=0, atol=tolerance)
    other = np.where(batch[2] > 0, batch[1], 9).astype(np.int32)
    assert (other != batch[1]).any()  # padding does not matter, words do
    np.testing.assert_allclose(run(batch[0], other, batch[2]), expected, rtol=0, atol=tolerance)
    other[:, 1] = batch[1][:, 1] % 20 + 6
    assert np.abs(run(batch[0], other, batch[2]) - expected).max() > 1e-3 * expected.std()


def operators(model: onnx.ModelProto) -> Counter:
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize("kind", ["swin", "padded", "darknet"])
def test_a_fast_operator_takes_the_place_of_several(kind, tmp_path):
    model = export.network_to_onnx(tiny_model(*KINDS[kind]), tiny_config(*KINDS[kind]).data, tmp_path)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)] and model.ir_version <= 9
    kinds, gelus = operators(model), {"swin": 5 + 4, "padded": 5 + 4, "darknet": 2}[kind]
    assert {"LayerNormalization", "Gemm", "Resize", "InstanceNormalization", "Tanh"} <= set(kinds)
    assert not {"Erf", "Pow", "Dropout", "Neg", "Sigmoid", "Div", "If", "Loop"} & set(kinds)
    assert kinds["Gelu"] >= gelus and kinds["Shape"] <= 1 and kinds["LeakyRelu"] == (18 if kind == "darknet" else 0)
    stored = [init.name for init in model.graph.initializer]
    assert len(stored) == len(set(stored)) and any(name.startswith("encoder.backbone.") for name in stored)
    used = {name for node in model.graph.node for name in node.input}
    assert set(stored) <= used
    # every linear layer has its bias; it sees each token once, although padded windows hold more
    without = [node.input[1] for node in model.graph.node if node.op_type == "Gemm" and len(node.input) < 3]
    assert all(name.endswith(("gate.hidden.weight", "reduction.weight")) for name in without)  # which have none
    if kind == "padded":
        shapes = {v.name: shape(v) for v in onnx.shape_inference.infer_shapes(model, data_prop=True).graph.value_info}
        gathers = [node for node in model.graph.node if node.op_type == "Gather" and len(shapes[node.output[0]]) == 3]
        assert sum(shapes[node.output[0]][1] == 400 for node in gathers) == 3 * 2  # q, k, v of two blocks


def test_heads_that_only_training_needs_are_not_exported(tmp_path):
    plain = operators(export.network_to_onnx(tiny_model(), tiny_config().data, tmp_path))
    network = tiny_model("model.stage_heads=true", "model.proposal_head=true")
    assert operators(export.network_to_onnx(network, tiny_config().data, tmp_path)) == plain


@pytest.mark.parametrize("name", [*(pytest.param(name, marks=pytest.mark.slow) for name in ROWS), "refshapes_tiny",
                                  "refcoco_mini"])
def test_every_shipped_configuration_has_a_graph(name, tmp_path):
    config = reduced(load_config(name if name not in ROWS else ROOT / "configs" / f"{name}.yaml"))
    network = build.build_model(config, VOCABULARY).set_train(False)
    model = export.network_to_onnx(network, config.data, tmp_path)
    batch = tiny_batch(2, config.data.image_size, config.data.max_tokens)[:3]
    logits = runs(model)(*batch)
    assert logits.shape == (2, 1, *batch[0].shape[2:]) and np.isfinite(logits).all()


def test_pixels_of_8_bits_are_normalised_in_the_graph(tmp_path):
    network, data = tiny_model(), tiny_config("data.mean=[0.4,0.5,0.6]", "data.std=[0.2,0.3,0.25]").data
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    words = tiny_batch(2)[1:3]
    logits = runs(export.network_to_onnx(network, data, tmp_path, uint8=True))(pixels, *words)
    expected = runs(export.network_to_onnx(network, data, tmp_path))(export.normalised(pixels, data), *words)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


MAPS = {"shape": ["B", 4, 8, 8], "type": "float32"}


def translated(cell: nn.Cell, folder) -> tuple[np.ndarray, np.ndarray, onnx.ModelProto]:
    """A cell's result on random maps (3, 4, 8, 8), the same by onnxruntime, and the ONNX model."""
    random = np.random.default_rng(0)
    for parameter in cell.set_train(False).get_parameters():
        parameter.set_data(Tensor(random.uniform(0.5, 1.5, parameter.shape).astype(np.float32)))
    maps = random.normal(size=(3, 4, 8, 8)).astype(np.float32)
    model = export.cell_to_onnx(cell, [MAPS], ["y"], folder)
    onnx.checker.check_model(model, full_check=True)
    runtime = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return cell(Tensor(maps)).asnumpy(), runtime.run(None, {model.graph.input[0].name: maps})[0], model


@pytest.mark.parametrize("cell", TOYS, ids=lambda cell: cell.__name__)
def test_what_a_new_part_may_compute_is_translated(cell, tmp_path):
    expected, result, _ = translated(cell(), tmp_path)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_a_linear_layer_goes_to_the_side_of_a_gather_with_fewer_rows(tmp_path):
    for index, rows in (([0, 1, 2, 1, 0, 2, 1, 3], 4), ([2, 0], 2)):
        expected, result, model = translated(Gathered(index, first=rows == 4), tmp_path)
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
        shapes = {v.name: shape(v) for v in onnx.shape_inference.infer_shapes(model, data_prop=True).graph.value_info}
        kinds = [node.op_type for node in model.graph.node]
        assert (kinds.index("Gemm") < kinds.index("Gather")) == (rows == 4)
        gather = model.graph.node[kinds.index("Gather")]
        assert shapes[gather.output[0]][1:] == [len(index), 5 if rows == 4 else 64]


@pytest.mark.parametrize(("cell", "message"), [
    (Unfolded, r"the primitive Im2Col of Default/unfolding-Unfolding/Im2Col-op0 has no translation for it; "),
    (Asks, "the primitive Switch of Default.* has no translation for a condition or size that depends on the input")])
def test_what_has_no_translation_is_named(cell, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        export.cell_to_onnx(cell(), [MAPS], ["y"], tmp_path)
    assert "\n" not in str(caught.value) and "export a .mindir" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def exported(command_line, tiny_checkpoint, tmp_path_factory):
    """What the real command wrote, in float32 and in 8 bits, and what it printed."""
    folder = tmp_path_factory.mktemp("onnx") / "my models (é)"
    folder.mkdir()
    done = command_line("export", "--checkpoint", tiny_checkpoint, "--output", folder / "model.onnx", "--int8",
                        folder / "model.int8.onnx")
    assert done.code == 0, done.err
    assert done.err == ""
    return folder / "model.onnx", folder / "model.int8.onnx", done.out


def test_the_command_writes_the_file_and_its_sidecar(exported):
    file, int8, out = exported
    assert sorted(p.name for p in file.parent.iterdir()) == [
        "model.int8.onnx", "model.int8.onnx.json", "model.onnx", "model.onnx.json"]
    facts = json.loads(sidecar.sidecar_path(file).read_text())
    assert facts["kind"] == "onnx" and facts["batch"] is None and facts["step"] == 7
    assert facts["amp"] == "O0" and facts["amp_dtype"] == "float32"
    assert len(facts["differences"]) == 2 and 0 < max(facts["differences"]) < TOLERANCE
    assert f"difference {max(facts['differences']):.1e} of the logits' scale (allowed: 1e-04)" in out
    model = onnx.load(file)
    inputs = [{"name": i.name, "shape": ["B" if s == "batch" else s for s in shape(i)],
               "type": onnx.helper.tensor_dtype_to_np_dtype(i.type.tensor_type.elem_type).name}
              for i in model.graph.input]
    assert inputs == [{key: entry[key] for key in ("name", "shape", "type")} for entry in facts["inputs"]]
    assert [o.name for o in model.graph.output] == [entry["name"] for entry in facts["outputs"]] == ["logits"]


def test_the_file_predicts_what_the_checkpoint_predicts(exported, tiny_checkpoint, picture):
    network, tokenizer = build.restore_model(load_checkpoint(tiny_checkpoint))
    found = coupalign.load(exported[0]).predict(picture.rgb, list(SENTENCES))
    data = tiny_config().data
    transform = ImageTransform(data.image_size, data.mean, data.std)
    for prediction in found:
        logits = eager(network, transform.image(picture.rgb)[None], *tokenizer([prediction.sentence])).asnumpy()
        expected = 1 / (1 + np.exp(-transform.inverse(logits[0, 0], picture.rgb.shape[:2])))
        np.testing.assert_allclose(prediction.probability, expected, atol=1e-5)
    assert (found[0].mask != found[1].mask).any()


def test_predicting_needs_neither_mindspore_nor_onnx(exported, picture):
    code = ("import sys; sys.modules.update(dict.fromkeys(('mindspore', 'onnx', 'transformers'))); "
            "import mindspore_coupalign as c; "
            "print(int(c.load(sys.argv[1]).predict(sys.argv[2], sys.argv[3]).mask.sum()))")
    done = subprocess.run([sys.executable, "-c", code, exported[0], picture.path, SENTENCES[0]], cwd=ROOT, text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == int(coupalign.load(exported[0]).predict(picture.rgb, SENTENCES[0]).mask.sum())


def test_8_bits_are_smaller_and_near(exported, picture):
    file, int8, out = exported
    kinds, before = ([node.op_type for node in onnx.load(path).graph.node] for path in (int8, file))
    assert kinds.count("MatMulInteger") == before.count("Gemm") > 0  # the linear layers and nothing else
    assert kinds.count("MatMul") == before.count("MatMul") > 0 and kinds.count("Conv") == before.count("Conv")
    weights = {init.data_type for init in onnx.load(int8).graph.initializer}
    assert onnx.TensorProto.INT8 in weights and int8.stat().st_size < 0.85 * file.stat().st_size
    facts = json.loads(sidecar.sidecar_path(int8).read_text())
    assert facts["amp_dtype"] == "int8" and 1e-4 < max(facts["differences"]) < 0.2
    assert f"difference {max(facts['differences']):.1e} of the logits' scale; score it" in out
    exact, rough = (coupalign.load(path).predict(picture.rgb, SENTENCES[0]) for path in (file, int8))
    assert 0 < np.abs(exact.probability - rough.probability).max() < 0.2


def run(capsys, checkpoint, output, *more):
    code = main(["export", "--checkpoint", str(checkpoint), "--output", str(output), *map(str, more)])
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return code, err


@pytest.fixture
def quick(monkeypatch):
    """The command in this process, the network operator by operator: nothing is compiled."""
    monkeypatch.setattr(runtime, "setup", lambda *_: None)
    with pynative():
        yield


def test_a_graph_that_differs_is_not_written(quick, tiny_checkpoint, tmp_path, monkeypatch, capsys):
    right, file = session.runner, tmp_path / "a.onnx"
    file.write_bytes(b"older")
    for wrong in (1 + 2 * TOLERANCE, float("nan")):
        monkeypatch.setattr(session, "runner", lambda path, wrong=wrong: lambda *x: NetworkOutput(
            right(path)(*x).logits * wrong))
        code, err = run(capsys, tiny_checkpoint, file)
        assert code == 1 and "differs from the checkpoint by" in err and "nothing was written" in err
        assert [p.name for p in tmp_path.iterdir()] == ["a.onnx"] and file.read_bytes() == b"older"


def test_what_cannot_be_written_is_named_and_nothing_stays(quick, tiny_checkpoint, tmp_path, monkeypatch, capsys):
    for arguments, match in (
            ((tmp_path / "none" / "a.onnx",), "does not exist"),
            ((tmp_path / "a.ort",), "must end in .mindir or .onnx"),
            ((tmp_path / "caf\udce9.onnx",), "not UTF-8; choose another --output"),
            ((tmp_path / "a.onnx", "--amp", "O1"), "--amp: ONNX files compute in float32"),
            ((tmp_path / "a.onnx", "--batch", 2), "--batch: ONNX files compute in float32, at any batch"),
            ((tmp_path / "a.onnx", "--int8", tmp_path / "a.onnx"), "needs a name of its own"),
            ((tmp_path / "a.onnx", "--int8", tmp_path / "none" / "b.onnx"), "does not exist"),
            ((tmp_path / "a.mindir", "--int8", tmp_path / "b.onnx"), "--int8: of ONNX files only")):
        code, err = run(capsys, tiny_checkpoint, *arguments)
        assert code == 2 and match in err
    monkeypatch.setattr(export, "_LARGEST", 1000)
    code, err = run(capsys, tiny_checkpoint, tmp_path / "a.onnx")
    assert code == 2 and "GiB of weights, but an ONNX file ends at 2 GiB" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_without_the_extra_the_command_to_install_it_is_named(quick, package, tiny_checkpoint, tmp_path, monkeypatch,
                                                              capsys, exported):
    monkeypatch.setitem(sys.modules, package, None)
    code, err = run(capsys, tiny_checkpoint, tmp_path / "a.onnx")
    assert code == 2 and f"need the package {package}" in err and 'pip install "mindspore_coupalign[onnx]"' in err
    assert list(tmp_path.iterdir()) == []
    if package == "onnxruntime":
        with pytest.raises(UserError, match="need the package onnxruntime"):
            load_onnx(exported[0])
    text = (ROOT / "pyproject.toml").read_text()
    assert f'"{package}>=' in next(line for line in text.splitlines() if line.startswith("onnx = ["))


def test_damaged_files_are_refused(exported, tmp_path):
    file = tmp_path / "copy.onnx"
    whole, facts = exported[0].read_bytes(), json.loads(sidecar.sidecar_path(exported[0]).read_text())

    def refused(match):
        with pytest.raises(UserError, match=match) as caught:
            load_onnx(file)
        assert "\n" not in str(caught.value)

    refused("copy.onnx: no such file")
    file.write_bytes(whole)
    refused("copy.onnx.json: no such file")
    sidecar.write(file, facts)
    assert load_onnx(file)[1]["sha256"] == facts["sha256"]
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused("sha256 differs")
    for content in (b"no graph", b"", whole[:len(whole) // 2]):
        file.write_bytes(content)
        sidecar.write(file, facts)
        refused("cannot load it")
    file = tmp_path / "caf\udce9.onnx"
    refused("not UTF-8; rename it")


MEASURED = """
import sys
import numpy as np
from mindspore_coupalign.inference.onnx import session
random, size, tokens = np.random.default_rng(0), 480, 20
image, ids = random.standard_normal((1, 3, size, size), np.float32), np.arange(100, 100 + tokens, dtype=np.int32)[None]
word_mask = (np.arange(tokens) < 12).astype(np.int32)[None]
run = session.runner(sys.argv[1])
for _ in range(2):
    logits = run(image, ids, word_mask)
np.save(sys.argv[2], logits)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["refcoco_swin_b", "swin_l"])
def test_the_full_recipe_in_2_gib(recipe, tmp_path):
    """Weights of 1.4 GB as well; windows and sentence are padded."""
    import mindspore as ms
    large = ("model.backbone.embed_dim=192", "model.backbone.heads=[6,12,24,48]", "model.fusion.heads=[6,12,24,48]")
    config = load_config("refcoco_swin_b", large if recipe == "swin_l" else ())
    model = build.build_model(config, 30522).set_train(False)
    file = tmp_path / "model.onnx"
    file.write_bytes(export.network_to_onnx(model, config.data, tmp_path).SerializeToString())
    onnx.checker.check_model(file)
    done = subprocess.run([sys.executable, "-c", MEASURED, file, tmp_path / "logits.npy"], cwd=ROOT, text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr
    logits = np.load(tmp_path / "logits.npy")
    if recipe == "refcoco_swin_b":
        assert int(done.stdout) < 2 * 2**20  # KiB
        random = np.random.default_rng(0)
        image = random.standard_normal((1, 3, 480, 480), np.float32)
        ids, word_mask = np.arange(100, 120, dtype=np.int32)[None], (np.arange(20) < 12).astype(np.int32)[None]
        expected = model(*map(ms.Tensor, (image, ids, word_mask))).asnumpy()
        np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())
    assert logits.shape == (1, 1, 480, 480) and np.isfinite(logits).all() and logits.std() > 0
