"""Which precision a network computes in, and what O1 promises: residual streams stay in float32."""

from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from numpy_layers import randomize
from refer_files import write_refer
from tiny_network import eager, pynative, tiny_batch, tiny_config, tiny_model

from mindspore_coupalign import build
from mindspore_coupalign.config import with_overrides
from mindspore_coupalign.data.refer import read_refer
from mindspore_coupalign.data.tokenizer import SentenceTokenizer
from mindspore_coupalign.data.transforms import ImageTransform
from mindspore_coupalign.evaluation.prompts import make_plan
from mindspore_coupalign.evaluation.protocols import PROTOCOLS, resolve
from mindspore_coupalign.evaluation.scoring import evaluate_samples
from mindspore_coupalign.models.precision import FLOAT32, Precision, set_precision
from mindspore_coupalign.training import setup
from mindspore_coupalign.weights.checkpoint import load_checkpoint, load_parameters, named_arrays, save_checkpoint

FEW = ("model.backbone.depths=[1,1,1,1]", "model.text.groups=[1,0,0,0]")
WPA = ("model.fusion.stages=[4]",)


def logits(precision):
    """Of a network whose residual streams reach 1e5 in every stage of Swin: both branches of each block add 5e4, which
    float16 can hold (to 65504), to a channel."""
    model = randomize(tiny_model(*FEW, *WPA), scale=0.15)
    for parameter in model.get_parameters():
        if parameter.name.startswith("encoder.backbone.stages") and parameter.name.endswith(
                ("attn.proj.bias", "mlp.fc2.bias")):
            values = parameter.asnumpy().copy()
            values[0] = 5e4
            parameter.set_data(ms.Tensor(values))
    set_precision(model, precision)
    return eager(model, *tiny_batch(2)[:3]).asnumpy()


@pytest.mark.parametrize(("level", "holds"), [("O1", True), pytest.param("O2", False, marks=pytest.mark.slow)])
def test_a_large_activation_in_the_residual_stream(level, holds):
    """The logits are finite and near float32's at O1; at O2, which rounds the stream itself, they are not."""
    exact, mixed = (logits(precision) for precision in (FLOAT32, Precision(level, "float16")))
    assert np.isfinite(exact).all() and np.isfinite(mixed).all() == holds
    if holds:
        assert 0 < np.abs(mixed - exact).max() / np.abs(exact).max() < 0.01


def test_lavts_fusion_reads_a_large_activation():
    """It has no norm between the residual stream and its products: at O1 it computes as it does in float32."""
    random = np.random.default_rng(0)
    v, words = (random.normal(size=shape).astype(np.float32) for shape in ((2, 4, 64), (2, 8, 16)))
    v[..., 0] = 1e5
    found = []
    for precision in (FLOAT32, Precision("O1", "float16"), Precision("O2", "float16")):
        model = tiny_model("model.fusion.name=pixel_word", "model.sentence_mask=false", *FEW)
        set_precision(model, precision)
        encoder, bias = model.encoder, ms.Tensor(np.zeros((2, 1, 1, 8), np.float32))
        with pynative():
            fused = encoder.fusion[3](ms.Tensor(v), ms.Tensor(words), bias)[2]
            gated = encoder.fusion[2].gate(ms.Tensor(v[..., :32]))
        found.append([x.asnumpy() for x in (fused, gated)])
    for exact, mixed, rounded in zip(*found, strict=True):
        np.testing.assert_array_equal(mixed, exact)
        assert np.isfinite(mixed).all() and not np.allclose(rounded, exact, rtol=0.1)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> SimpleNamespace:
    """Data of 11 sentences and a network of few parts, whose masks cover about half of its pictures."""
    data = read_refer(write_refer(tmp_path_factory.mktemp("refer")), "tiny", "unc")
    config = tiny_config(*FEW, *WPA, "eval.batch_size=2", "train.amp=O2")
    tokenizer = SentenceTokenizer.from_name(config.data.tokenizer, config.data.max_tokens)
    model = randomize(build.build_model(config, tokenizer.vocab_size), scale=0.4)
    small = SimpleNamespace(data=data, config=config, tokenizer=tokenizer, samples=np.arange(len(data.sentence_ref)))
    logits = scores(Recorded(model), small, 2)[1]
    model.head.conv.bias.set_data(model.head.conv.bias - float(np.median(logits)))
    small.model = model
    return small


class Recorded:
    """A network that keeps its answers, (n, 1, H, W), in ``logits``."""

    def __init__(self, model):
        self.model, self.logits = model, []

    def set_train(self, mode):
        self.model.set_train(mode)

    def __call__(self, *inputs):
        found = self.model(*inputs)
        self.logits.append(found.asnumpy())
        return found


def scores(model, small, batch) -> tuple:
    """(what evaluate_samples counts, logits (S, H, W))"""
    model = Recorded(model)
    config = with_overrides(small.config, [f"eval.batch_size={batch}"], "test")
    found = evaluate_samples(model, small.data, small.samples, small.tokenizer, config)
    plan = make_plan(small.data, small.samples, small.tokenizer, [resolve(PROTOCOLS["sentence"], config)])
    order = np.argsort([small.data.ref_image[prompt.ref] for prompt in plan.prompts], kind="stable")
    row = np.argsort(order)  # equal sentences of a ref are computed once
    logits = np.concatenate(model.logits)[:, 0]
    return found, logits[[row[unit.prompts[0]] for unit in plan.units["sentence"]]]


def test_a_batchs_size_changes_no_score(small):
    """In float32 a sample's logits differ between batch sizes by rounding; only a pixel whose logit lies that near the
    threshold can change sides, and without such pixels the counts are the same."""
    found, logits = scores(small.model, small, 1)
    transform = ImageTransform(64, small.config.data.mean, small.config.data.std)
    bound = 2e-6 * np.abs(logits).max()
    shapes = [small.data.mask(int(small.data.sentence_ref[s])).shape for s in small.samples]
    near = {"input": [(np.abs(x) < bound).sum() for x in logits],
            "image": [(np.abs(transform.inverse(x, shape)) < bound).sum()
                      for x, shape in zip(logits, shapes, strict=True)]}
    assert 0 < found["image"][:, 0].sum() < found["image"][:, 1].sum()
    for batch in (2, 7, 32):
        others, other_logits = scores(small.model, small, batch)
        assert np.abs(other_logits - logits).max() < bound
        for protocol, pixels in near.items():
            moved = np.abs(others[protocol] - found[protocol]).max(1)
            assert (moved <= pixels).all() and sum(pixels) < 10


def test_validation_and_a_restored_checkpoint_score_alike(small, tmp_path):
    """The network as training holds it in mixed precision, and the one that evaluate restores: the same counts. At
    another level the logits differ, which is why evaluate must not choose one."""
    trained = build.build_model(small.config, small.tokenizer.vocab_size)
    load_parameters(trained.get_parameters(), {p.name: p.asnumpy() for p in small.model.get_parameters()}, "test")
    setup.build_train_step(trained, small.config)
    path = tmp_path / "best.safetensors"
    save_checkpoint(path, named_arrays(trained.get_parameters(), "model"), small.config, small.tokenizer.to_json(),
                    {"step": 1})
    restored = build.restore_model(load_checkpoint(path))[0]
    assert restored.precision == trained.precision == ("O2", "float16")
    assert build.restore_model(load_checkpoint(path), amp="O0")[0].precision == FLOAT32
    (in_training, logits), (later, same), (_, exact) = (
        scores(model, small, 2) for model in (trained, restored, small.model))
    for protocol in ("image", "input"):
        np.testing.assert_array_equal(in_training[protocol], later[protocol])
    np.testing.assert_array_equal(logits, same)
    assert 0 < np.abs(exact - logits).max() < 0.05 * np.abs(exact).max()
