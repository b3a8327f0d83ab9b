"""What has to hold for the other backbones and for LAVT, as test_model.py has it for CoupAlign with Swin."""

import mindspore as ms
import numpy as np
import pytest
from numpy_layers import linear, randomize, relu, softmax, weights
from tiny_network import VARIANTS, VOCABULARY, eager, pynative, tiny_batch, tiny_config, tiny_model

from mindspore_coupalign import build
from mindspore_coupalign.models.backbones import cnn
from mindspore_coupalign.models.bert import padding_bias
from mindspore_coupalign.models.fusion.pixel_word import PixelWordAttention, PixelWordSettings
from mindspore_coupalign.models.fusion.word_pixel import Gate
from mindspore_coupalign.training import setup

# What adds the same to all scores of a softmax, or to all positions before an instance norm, has no gradient
WITHOUT_GRADIENT = ("attn.k.bias", "attention.k.bias", "alignment.mask_key.bias",
                    *(f"encoder.fusion.{i}.{w}.bias" for i in range(4)
                      for w in ("pixel_query", "word_key", "word_value", "gathered")))


def run(model, image, ids, word_mask, mask=None):
    return model(*map(ms.Tensor, (image, ids, word_mask))).asnumpy()


@pytest.fixture(scope="module", params=VARIANTS)
def overrides(request):
    return VARIANTS[request.param]


@pytest.fixture(scope="module")
def model(overrides):
    return randomize(tiny_model(*overrides), scale=0.15)


@pytest.fixture(scope="module")
def logits(model):
    return run(model, *tiny_batch(2))


def test_graph_mode_equals_pynative(model, logits):
    expected = eager(model, *tiny_batch(2)[:3]).asnumpy()
    assert logits.shape == (2, 1, 64, 64) and logits.std() > 0.01
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_words_matter_and_padding_does_not(model, logits):
    image, ids, word_mask, _ = tiny_batch(2)
    other = np.where(word_mask > 0, ids, 9).astype(np.int32)
    assert (other != ids).any()
    np.testing.assert_allclose(run(model, image, other, word_mask), logits, rtol=1e-5, atol=1e-5)
    other[:, 1] = ids[:, 1] % 20 + 6
    assert np.abs(run(model, image, other, word_mask) - logits).max() > 1e-3 * logits.std()


def test_samples_do_not_touch_each_other(model, logits):
    image, ids, word_mask, _ = tiny_batch(2)
    for i in range(2):
        out = run(model, image[[i, i]], ids[[i, i]], word_mask[[i, i]])
        np.testing.assert_allclose(out, logits[[i, i]], rtol=1e-5, atol=1e-5)


def test_every_parameter_learns(overrides):
    config = tiny_config(*overrides, "loss.contrast=1.0")
    model = randomize(build.build_model(config, VOCABULARY), scale=0.15)
    groups = setup.parameter_groups(model, 0.1, 1.0, 0.5)
    grouped = sorted(p.name for group in groups for p in group["params"])
    assert grouped == sorted(p.name for p in model.trainable_params())
    decayed = {p.name for group in groups for p in group["params"] if group["weight_decay"]}
    assert not any(name.endswith(("gamma", "beta", "bias")) for name in decayed)
    step = setup.build_train_step(model, config)
    params = step.optimizer.params
    assert sorted(p.name for p in params) == grouped
    objective = step.objective.set_train(True)
    with pynative():  # the whole step is compiled for CoupAlign with Swin, in tests/models/test_model.py
        losses, gradients = ms.value_and_grad(lambda *x: objective(*x)[0], None, params)(*map(ms.Tensor, tiny_batch(4)))
    assert np.isfinite(losses.asnumpy())
    silent = [p.name for p, gradient in zip(params, gradients, strict=True)
              if not np.abs(gradient.asnumpy()).max() > 1e-10 and not p.name.endswith(WITHOUT_GRADIENT)]
    assert not silent


@pytest.mark.parametrize(("ranks", "target", "frozen", "layer"), [
    (True, "Ascend", False, "SyncBatchNorm"), (True, "GPU", False, "BatchNorm2d"),
    (True, "CPU", False, "BatchNorm2d"), (False, "Ascend", False, "BatchNorm2d"),
    (True, "Ascend", True, "BatchNorm2d")])
def test_batch_norm_over_the_ranks_where_there_is_one(monkeypatch, ranks, target, frozen, layer):
    monkeypatch.setenv("MS_ROLE", "MS_WORKER" if ranks else "")
    monkeypatch.setattr(cnn, "device_target", lambda: target)
    made = []
    for name in ("SyncBatchNorm", "BatchNorm2d"):
        monkeypatch.setattr(cnn.nn, name, lambda *_, name=name, **__: made.append(name))
    cnn.batch_norm(frozen)(8)
    assert made == [layer]


def instance_norm(x):
    return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)


def test_pixel_word_attention_is_that_of_lavts_paper():
    """Its section 3.1 for one sample: v (P, C), l (T, D); the third word is padding."""
    cell = randomize(PixelWordAttention(PixelWordSettings(), stage=4, pixel_dim=8, word_dim=6))
    w, random = weights(cell), np.random.default_rng(0)
    v, l = random.normal(size=(9, 8)), random.normal(size=(3, 6))  # noqa: E741
    scores = instance_norm(linear(w, "pixel_query", v)) @ linear(w, "word_key", l[:2]).T / np.sqrt(8)
    gathered = instance_norm(linear(w, "gathered", softmax(scores) @ linear(w, "word_value", l[:2])))
    expected = relu(linear(w, "out", relu(linear(w, "pixels", v)) * gathered))
    bias = padding_bias(ms.Tensor([[1, 1, 0]], ms.int32), ms.float32)
    _, _, fused, over_words = cell(ms.Tensor(v[None], ms.float32), ms.Tensor(l[None], ms.float32), bias)
    np.testing.assert_allclose(fused.asnumpy()[0], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(over_words.asnumpy()[0, 0], np.pad(softmax(scores), ((0, 0), (0, 1))), atol=1e-5)


@pytest.mark.parametrize("opening", [0.0, 1.0])
def test_the_language_gate_is_that_of_lavts_paper(opening):
    """Its section 3.2, and the opening that training from scratch gives it."""
    cell = Gate(8, opening, bias=True)
    assert (cell.out.bias.asnumpy() == opening).all()
    randomize(cell)
    w, x = weights(cell), np.random.default_rng(0).normal(size=(1, 5, 8))
    expected = np.tanh(linear(w, "out", relu(linear(w, "hidden", x))))
    np.testing.assert_allclose(cell(ms.Tensor(x, ms.float32)).asnumpy(), expected, rtol=1e-4, atol=1e-5)
