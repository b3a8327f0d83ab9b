"""BERT against a NumPy BERT, layer by layer and word by word."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import ops
from numpy_layers import assert_near, attention, below, gelu, mlp, norm, randomize, weights
from tiny_network import tiny_batch

from mindspore_coupalign.models.bert import Bert, padding_bias
from mindspore_coupalign.models.layers import layer_norm
from mindspore_coupalign.models.rng import bind, draw_keys

HIDDEN, HEADS, GROUPS = 16, 2, (1, 2, 0, 1)


@pytest.fixture(scope="module")
def bert():
    return randomize(Bert(30, HIDDEN, HEADS, 24, GROUPS, 16, 8, dropout=0.1))


@pytest.fixture(scope="module")
def batch():
    return tiny_batch(3)[1:3]


def run(cell, *arrays):
    return cell(*map(ms.Tensor, arrays)).asnumpy()


def reference(w, ids, word_mask):
    """One sentence (T,) -> (T, D): post-normalisation, exact GELU, every token of segment 0."""
    x = w["embed.word_embeddings"][ids] + w["embed.position_embeddings"][:len(ids)]
    x = norm(w, "embed.norm", x + w["embed.token_type_embeddings"][0], 1e-12)
    for name in [f"groups.{g}.layers.{j}" for g, count in enumerate(GROUPS) for j in range(count)]:
        layer = below(w, name)
        x = norm(layer, "norm1", x + attention(below(layer, "attention"), x, x, x, HEADS, word_mask > 0), 1e-12)
        x = norm(layer, "norm2", x + mlp(layer, "mlp", x, gelu), 1e-12)
    return x


def test_equals_the_reference(bert, batch):
    out = run(bert, *batch)
    for i in range(3):
        assert_near(out[i], reference(weights(bert), batch[0][i], batch[1][i]))


def test_groups_one_after_the_other_equal_the_whole(bert, batch):
    ids, word_mask = map(ms.Tensor, batch)
    x, bias = bert.embed(ids), padding_bias(word_mask, ms.float32)
    for group in bert.groups:
        x = group(x, bias)
    np.testing.assert_allclose(x.asnumpy(), run(bert, *batch), rtol=1e-5, atol=1e-6)


def test_padding_changes_no_word(bert, batch):
    ids, word_mask = batch
    other = np.where(word_mask > 0, ids, 7).astype(np.int32)
    assert (other != ids).any()
    before, after = run(bert, ids, word_mask), run(bert, other, word_mask)
    words = word_mask > 0
    np.testing.assert_allclose(after[words], before[words], rtol=1e-6, atol=1e-6)
    assert np.abs(after - before)[~words].max() > 0.1
    read = run(bert, other, np.ones_like(word_mask))  # read as words, they do change it
    assert np.abs(read - before)[words].max() > 0.01


def test_padding_bias_fits_half_precision():
    bias = padding_bias(ms.Tensor([[1, 1, 0]], ms.int32), ms.float16)
    assert bias.shape == (1, 1, 1, 3) and bias.dtype == ms.float16
    assert bias.asnumpy()[0, 0, 0, :2].tolist() == [0, 0] and -np.inf < bias.asnumpy()[0, 0, 0, 2] < -5000


def test_dropout_acts_in_training_only(bert, batch):
    calm = run(bert, *batch)
    np.testing.assert_array_equal(run(bert, *batch), calm)
    keys = bind(bert.set_train(True))
    noisy = []
    for seed in (1, 2, 1):
        ops.assign(keys, ms.Tensor(draw_keys(len(keys), seed)))
        noisy.append(run(bert, *batch))
    assert np.abs(noisy[0] - noisy[1]).max() > 0.1
    np.testing.assert_array_equal(noisy[0], noisy[2])
    bert.set_train(False)
    np.testing.assert_array_equal(run(bert, *batch), calm)


def test_layer_norm_is_the_stock_one():
    """Whatever kernels it is made of: the same names, result and gradients, also of rows that hardly vary."""
    ours, stock = randomize(layer_norm(24)), randomize(ms.nn.LayerNorm((24,), epsilon=1e-5))
    assert [n for n, _ in ours.parameters_and_names()] == [n for n, _ in stock.parameters_and_names()]
    random = np.random.default_rng(0)
    x = random.normal(size=(2, 5, 24)).astype(np.float32) * 3 + 1
    x[0, 0] = 2 + 1e-3 * random.normal(size=24)
    inputs = ms.Tensor(x), ms.Tensor(random.normal(size=x.shape).astype(np.float32))
    gradient = ms.ops.GradOperation(get_all=True, get_by_list=True, sens_param=True)
    (dx,), by = gradient(ours, ms.ParameterTuple(ours.trainable_params()))(*inputs)
    (stock_dx,), stock_by = gradient(stock, ms.ParameterTuple(stock.trainable_params()))(*inputs)
    assert_near(ours(inputs[0]).asnumpy(), stock(inputs[0]).asnumpy(), 1e-5)
    for a, b in ((dx, stock_dx), *zip(by, stock_by, strict=True)):
        assert_near(a.asnumpy(), b.asnumpy(), 1e-4)
