"""The generalised task: sentences with several target objects, or none."""

import dataclasses
import json

import mindspore as ms
import numpy as np
import peer_rules
import pytest
from refer_files import refs_and_instances, write_refer, write_vocabulary
from tiny_network import eager, tiny_batch, tiny_config, tiny_model

from mindspore_coupalign import build
from mindspore_coupalign.__main__ import main
from mindspore_coupalign.config import DataConfig
from mindspore_coupalign.data.refer import read_refer
from mindspore_coupalign.data.sets import joined, keep_refs
from mindspore_coupalign.data.tokenizer import SentenceTokenizer
from mindspore_coupalign.data.warnings import data_warnings, no_target_warnings
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.evaluation import protocols
from mindspore_coupalign.evaluation.metrics import overlap, target_scores
from mindspore_coupalign.evaluation.results import announce, read_references
from mindspore_coupalign.evaluation.scoring import evaluate_samples, report
from mindspore_coupalign.inference.loading import load
from mindspore_coupalign.inference.network import NetworkOutput, TargetRule, as_output
from mindspore_coupalign.models.coupalign import Outputs
from mindspore_coupalign.training import setup
from mindspore_coupalign.training.objective import LOSSES
from mindspore_coupalign.weights.checkpoint import load_checkpoint, named_arrays, save_checkpoint


def general(root):
    """refs 500 and 501 mean both objects of image 100, ref 503 means nothing."""
    refs, instances = refs_and_instances()
    for ref in refs:
        ref.update(ann_id=[ref["ann_id"]], no_target=False)
        for k, sentence in enumerate(ref["sentences"]):
            sentence.update(sent="the red square" + " left" * (k % 2))
    refs[0].update(ann_id=[7000, 7001])
    refs[1].update(ann_id=[7001, 7000])
    refs[3].update(ann_id=[-1], no_target=True)
    write_refer(root, refs, instances)
    return read_refer(root, "tiny", "unc")


def test_a_mask_is_the_union_of_all_target_objects(tmp_path):
    write_refer(tmp_path / "single")
    plain, data = read_refer(tmp_path / "single", "tiny", "unc"), general(tmp_path / "general")
    assert data.objects_of(0) == [7000, 7001] and data.objects_of(1) == [7001, 7000] and data.objects_of(3) == []
    assert data.has_target.tolist() == [True, True, True, False, True, True]
    np.testing.assert_array_equal(data.mask(0), plain.mask(0) | plain.mask(1))
    np.testing.assert_array_equal(data.mask(0, "single"), plain.mask(0, "single") | plain.mask(1, "single"))
    assert not data.mask(3).any() and data.mask_area(3) == data.mask_area(3, "single") == 0
    for r in (2, 4, 5):
        np.testing.assert_array_equal(data.mask(r), plain.mask(r))


def test_crowds_are_no_objects_and_that_is_said(tmp_path):
    refs, instances = refs_and_instances()
    refs[0].update(ann_id=["7000", 7001])
    instances["annotations"][1]["iscrowd"] = 1
    write_refer(tmp_path, refs, instances)
    data = read_refer(tmp_path, "tiny", "unc")
    assert data.objects_of(0) == [7000] and data.objects_of(1) == [7001]  # which alone is meant, as in REFER
    assert len(data.notes) == 1 and data.notes[0].startswith("note: 1 crowd annotations")


@pytest.mark.parametrize("left_out", [0, 3])
def test_parts_and_unions_keep_what_each_ref_means(tmp_path, left_out):
    data = general(tmp_path)
    part = keep_refs(data, np.arange(6) != left_out)
    whole = type(data)(**joined([data, part]))
    expected = [data.objects_of(r) for r in range(6)]
    assert [whole.objects_of(r) for r in range(11)] == expected + expected[:left_out] + expected[left_out + 1 :]
    np.testing.assert_array_equal(whole.mask(10), data.mask(5))


def test_only_what_should_have_a_mask_is_called_empty(tmp_path):
    data, tokenizer = general(tmp_path), SentenceTokenizer.from_name(str(write_vocabulary(tmp_path / "bert")), 20)
    val = data.split("val")
    assert not any("empty" in line for line in data_warnings(data, {"val": val}, tokenizer, DataConfig()))
    (line,) = no_target_warnings(data, val, has_head=False)
    assert "2 of 3 sentences have no target" in line and "model.no_target=true" in line
    assert no_target_warnings(data, val, has_head=True) == []
    assert no_target_warnings(data, data.split("train"), has_head=False) == []


def sigmoid(x):
    return 1 / (1 + np.exp(-x.astype(np.float64)))


def linear(cell, x):
    return x @ cell.weight.asnumpy().astype(np.float64).T + cell.bias.asnumpy()


def test_the_head_by_its_formula():
    """Against NumPy: the sentence times the pixels that answer it, those, the mask's peak and area, two layers."""
    model, random = tiny_model("model.no_target=true", seed=3), np.random.default_rng(0)
    head = model.target_head
    for parameter in head.get_parameters():
        parameter.set_data(ms.Tensor(random.normal(0, 0.5, parameter.shape).astype(np.float32)))
    pixels, coarse = random.normal(size=(2, 32, 4, 4)), random.normal(size=(2, 1, 4, 4))
    sentence = random.normal(size=(2, 16))
    found = eager(head, *(x.astype(np.float32) for x in (pixels, coarse, sentence))).asnumpy()
    flat = np.exp(coarse.reshape(2, 1, 16))
    pooled = ((flat / flat.sum(-1, keepdims=True)) * pixels.reshape(2, 32, 16)).sum(-1)
    matched = linear(head.of_pixels, pooled) * linear(head.of_sentence, sentence)
    surest, area = coarse.reshape(2, 16).max(1), sigmoid(coarse).reshape(2, 16).mean(1)
    features = np.concatenate([matched, pooled, surest[:, None], area[:, None]], 1)
    expected = linear(head.decide, np.maximum(linear(head.hidden, features), 0))[:, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_head_changes_no_mask_and_has_its_loss():
    batch = [*tiny_batch(4)]
    batch[3][1] = 0  # the second sentence means nothing
    plain, model = tiny_model(seed=1), tiny_model("model.no_target=true", seed=1)
    weights = {p.name: p for p in plain.get_parameters()}
    for parameter in model.get_parameters():
        if parameter.name in weights:
            parameter.set_data(weights[parameter.name])
    logits, exists = (x.asnumpy() for x in eager(model, *batch[:3]))
    np.testing.assert_array_equal(logits, eager(plain, *batch[:3]).asnumpy())
    assert exists.shape == (4,)
    config = tiny_config("model.no_target=true", "loss.no_target=0.3", "loss.contrast=0")
    objective = setup.build_train_step(model, config).objective
    losses = dict(zip(LOSSES, [float(x.asnumpy()) for x in eager(objective, *batch)], strict=True))
    p = sigmoid(exists)
    expected = -np.log([p[0], 1 - p[1], p[2], p[3]]).mean()
    assert losses["no_target"] == pytest.approx(expected, rel=1e-4)
    assert losses["loss"] == pytest.approx(losses["bce"] + losses["dice"] + 0.3 * expected, rel=1e-4)


def test_the_head_needs_the_sentence_mask_alignment():
    for override in ("model.sentence_mask=false", "model.name=lavt"):
        with pytest.raises(UserError, match="model.no_target needs.*eval.min_pixels"):
            tiny_config("model.no_target=true", override)
    with pytest.raises(UserError, match="loss.no_target"):
        tiny_config("loss.no_target=0")


@pytest.mark.parametrize("head", [True, False])
def test_scores_are_relas(head):
    """gIoU, cIoU, N_acc, T_acc and Pr@X of random masks and answers, counted as ReLA's code does it."""
    random, units, rows = np.random.default_rng(7), [], []
    for _ in range(200):
        target = random.random() < 0.7
        truth = (random.random((6, 8)) < 0.5) * target
        drawn = truth ^ (random.random((6, 8)) < random.choice([0, 0.05, 0.3])) if random.random() < 0.8 else truth * 0
        predicted = bool(random.random() < 0.6) if head else bool(drawn.any())
        units.append((drawn.astype(bool), truth.astype(int), target, *([not predicted] if head else [])))
        rows.append((*overlap(drawn, truth), target, predicted))
    inter, union, has_target, predicted_target = np.array(rows).T
    found = protocols.count(protocols.PROTOCOLS["rela"], inter, union, np.arange(200), has_target > 0,
                            predicted_target > 0)
    assert found == pytest.approx({"samples": 200, **peer_rules.rela(units)}, abs=1e-3)


def test_n_acc_and_t_acc_by_hand():
    has_target, predicted = np.array([1, 1, 1, 0, 0], bool), np.array([1, 0, 1, 1, 0], bool)
    assert target_scores(has_target, predicted) == {"N_acc": 50, "T_acc": pytest.approx(66.6667)}
    assert target_scores(has_target[3:], predicted[3:]) == {"N_acc": 50}
    assert target_scores(has_target[:3], predicted[:3]) == {}


@pytest.mark.parametrize("pixels, target_logit, least, expected", [
    (5, None, 0, True), (0, None, 0, False), (5, None, 6, False), (6, None, 6, True),
    (5, 0.1, 0, True), (0, 0.1, 0, False), (5, 0.0, 0, False), (5, -3.0, 0, False), (5, 0.1, 6, False)])
def test_when_a_sentence_has_a_target(pixels, target_logit, least, expected):
    mask = np.arange(20).reshape(4, 5) < pixels
    assert TargetRule(0.5, least)(mask, target_logit) is expected
    by_head = target_logit is not None and target_logit > 0 and least == 0  # ReLA asks the head alone
    assert TargetRule(0.5, least)(mask, target_logit, head_alone=True) is (expected or by_head)


def test_the_heads_threshold_is_a_probability():
    mask = np.ones((2, 2), bool)
    assert TargetRule(0.9)(mask, 2.2) and not TargetRule(0.9)(mask, 2.19)  # log 9 = 2.197


class FakeCell:
    """A network of tensors: everything is mask; what an even number of words asks for is not there."""

    def set_train(self, mode):
        return self

    def __call__(self, image, ids, word_mask):
        words = word_mask.asnumpy().sum(1)
        return ms.ops.ones((len(words), 1, 64, 64)), ms.Tensor(np.where(words % 2, 2.0, -2.0).astype(np.float32))


def test_training_validates_with_the_target_presence_head(tmp_path):
    data = general(tmp_path)
    config = tiny_config("data.max_tokens=16", "data.workers=1")
    tokenizer = SentenceTokenizer.from_name(str(write_vocabulary(tmp_path / "bert")), 16)
    samples = np.arange(len(data.sentence_ref))
    scores = evaluate_samples(FakeCell(), data, samples, tokenizer, config)
    predicted = tokenizer([data.sentence(s) for s in samples])[1].sum(1) % 2 == 1
    assert 0 < predicted.sum() < len(predicted)
    np.testing.assert_array_equal(scores["predicted_target"], predicted)
    areas = np.array([data.mask_area(r) for r in data.sentence_ref])
    np.testing.assert_array_equal(scores["image"], np.stack([areas * predicted,
                                                             np.where(predicted, 40 * 60, areas)], 1))
    result = report(data, scores)["image"]
    has_target = data.has_target[data.sentence_ref]
    assert result["N_acc"] == pytest.approx(100 * (~predicted[~has_target]).mean(), abs=1e-3)
    assert result["T_acc"] == pytest.approx(100 * predicted[has_target].mean(), abs=1e-3)


@pytest.mark.parametrize("logit, drawn", [(3.0, True), (-3.0, False)])
def test_a_prediction_says_whether_there_is_a_target(make_model, picture, logit, drawn):
    def network(image, ids, word_mask):
        return np.full((len(image), 1, 64, 64), 5, np.float32), np.full(len(image), logit, np.float32)

    for either in (network, lambda *inputs: NetworkOutput(*network(*inputs))):
        prediction = make_model(either).predict(picture.path, "the red circle")
        assert prediction.has_target is drawn and prediction.mask.all() == drawn and prediction.mask.any() == drawn
        assert prediction.target_probability == pytest.approx(sigmoid(np.array(logit)))
        assert (prediction.exists, prediction.existence) == (drawn, prediction.target_probability)  # deprecated names
        assert prediction.probability.min() > 0.99
        assert (prediction.score > 0.99) if drawn else (prediction.score == 0 and prediction.box is None)
    plain = make_model().predict(picture.path, "the red circle")
    assert plain.target_probability is None and plain.has_target


def test_a_head_that_is_not_finite_is_an_error(make_model, picture):
    model = make_model(lambda image, *_: (np.zeros((len(image), 1, 64, 64), np.float32), np.full(len(image), np.nan)))
    with pytest.raises(UserError, match="non-finite"):
        model.predict(picture.path, "the red circle")


def test_an_output_is_made_of_logits_with_or_without_target_logits():
    logits, target = np.zeros((1, 1, 2, 2)), np.zeros(1)
    assert as_output(logits).target_logits is None and as_output((logits, target)).target_logit(0) == 0
    assert as_output(NetworkOutput(logits, target)).logits is logits


@pytest.fixture(scope="module")
def with_head(tiny_checkpoint, tmp_path_factory, picture):
    """conftest's checkpoint with a head whose answer is between the two sentences'; and the two logits."""
    from conftest import SENTENCES

    checkpoint = load_checkpoint(tiny_checkpoint)
    config = dataclasses.replace(checkpoint.config, model=dataclasses.replace(checkpoint.config.model, no_target=True))
    tokenizer = SentenceTokenizer.from_json(checkpoint.tokenizer, 8, "test")
    model = build.build_model(config, tokenizer.vocab_size).set_train(False)
    weights, random = checkpoint.section("model"), np.random.default_rng(4)
    for parameter in model.get_parameters():
        drawn = random.normal(0, 0.5, parameter.shape).astype(np.float32)
        parameter.set_data(ms.Tensor(weights.get(parameter.name, drawn)))
    image = np.stack([(picture.rgb[:1, :1].transpose(2, 0, 1) / 255 * 0 + 0.1).repeat(64, 1).repeat(64, 2)] * 2)
    image = image.astype(np.float32)
    exists = eager(model, image, *tokenizer(list(SENTENCES)))[1].asnumpy()
    head = model.target_head.decide.bias
    head.set_data(head - float(exists.mean()))
    path = tmp_path_factory.mktemp("general") / "best.safetensors"
    save_checkpoint(path, named_arrays(model.get_parameters(), "model"), config, tokenizer.to_json(), {"step": 7})
    return path, picture.path, list(SENTENCES)


def same(predictions, expected):
    for ours, theirs in zip(predictions, expected, strict=True):
        assert ours.target_probability == pytest.approx(theirs.target_probability, abs=1e-4)
        assert ours.has_target == theirs.has_target
        np.testing.assert_array_equal(ours.mask, theirs.mask)


def test_exported_graphs_predict_targets_as_their_checkpoint(with_head, tmp_path):
    path, photograph, sentences = with_head
    expected = load(path, device="CPU", details=True).predict(photograph, sentences)
    assert all(prediction.target_probability is not None and prediction.details for prediction in expected)
    for name, more in (("a.mindir", ("--batch", "2")), ("b.onnx", ("--uint8",))):
        if name.endswith("onnx"):
            pytest.importorskip("onnxruntime")
        file = tmp_path / name
        assert main(["export", "--checkpoint", str(path), "--output", str(file), *more]) == 0
        facts = json.loads((tmp_path / f"{name}.json").read_text())
        assert [entry["name"] for entry in facts["outputs"]] == ["logits", "has_target"]
        assert (facts["exists_threshold"], facts["min_pixels"]) == (0.5, 0)
        same(load(file, device="CPU").predict(photograph, sentences), expected)
        facts["outputs"][1]["name"] = "exists"  # its name in earlier versions
        (tmp_path / f"{name}.json").write_text(json.dumps(facts))
        low, high = (min(p.target_probability for p in expected), max(p.target_probability for p in expected))
        assert main(["predict", "--model", str(file), "--image", str(photograph), "--text", sentences[0], "--text",
                     sentences[1], "--output", str(tmp_path / f"out-{name}"), "--device-target", "CPU",
                     f"eval.target_threshold={(low + high) / 2}"]) == 0
        records = [json.loads(line) for line in (tmp_path / f"out-{name}/predictions.jsonl").read_text().splitlines()]
        assert sorted(r["has_target"] for r in records) == [False, True]


def test_the_networks_outputs_hold_target_logits():
    out = Outputs(*eager(tiny_model("model.no_target=true").outputs, *tiny_batch(2)[:3]))
    assert out.has_target.shape == (2,)


def test_the_baselines_of_the_generalised_task_are_read_and_printed(tmp_path, capsys):
    data = general(tmp_path)
    of_phrase = {"gIoU": 54.5, "cIoU": 43.4, "N_acc": None, "T_acc": 100.0}
    content = {"splits": {"val": {"all_objects": 1, "random_object": 2, "noun_phrase": 3,
                                  "noun_phrase_scores": of_phrase}}}
    (tmp_path / "tiny/references.json").write_text(json.dumps(content))
    found = read_references(data, ["val", "testA"])
    assert found == {"val": {"all_objects": 1, "random_object": 2, "noun_phrase": 3, "noun_phrase_scores": {
        "gIoU": 54.5, "cIoU": 43.4, "T_acc": 100.0}}}
    announce("tiny", {}, [], tiny_config(), found)
    assert "noun phrase, or nothing where nothing does: gIoU 54.50, cIoU 43.40, T_acc 100.00" in capsys.readouterr().out
    (tmp_path / "tiny/references.json").write_text('{"splits": {"val": 5}}')
    with pytest.raises(UserError, match="references.json: damaged"):
        read_references(data, ["val"])
