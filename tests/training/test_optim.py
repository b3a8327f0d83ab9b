"""The optimizer, the jitted training step and the schedule, against NumPy and MindSpore's own AdamW."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn
from mindspore.experimental import optim as experimental
from tiny_network import pynative, tiny_config, tiny_model

from mindspore_coupalign.errors import UserError
from mindspore_coupalign.training.optimizer import PACK_BELOW, Optimizer
from mindspore_coupalign.training.schedule import learning_rate
from mindspore_coupalign.training.setup import parameter_groups
from mindspore_coupalign.training.step import LOSSES, RESULTS, TrainStep

START = {"w": np.linspace(-1, 1, 12).reshape(3, 4), "b": np.array([0.5, -2.0])}


class Linear(nn.Cell):
    """An objective whose gradients are its inputs: sum of w · image + b · mask."""

    def __init__(self):
        super().__init__()
        self.w = Parameter(Tensor(START["w"], ms.float32))
        self.b = Parameter(Tensor(START["b"], ms.float32))

    def construct(self, image, ids, word_mask, mask):
        loss = (self.w * image).sum() + (self.b * mask).sum()
        return tuple(loss * (i + 1) for i in range(len(LOSSES)))


def groups(cell, decay=0.1):
    return [{"params": [cell.w], "weight_decay": decay}, {"params": [cell.b], "weight_decay": 0.0}]


def gradients(steps, seed=0):
    """Per step gradients of w and b, of sizes from 1e-7 to 10."""
    random = np.random.default_rng(seed)
    scale = (10.0, 1e-3, 1e-7, 0.3, 1.0)
    return [(random.normal(size=(3, 4)) * scale[i % 5], random.normal(size=2) * scale[i % 5]) for i in range(steps)]


def values(cell):
    return cell.w.asnumpy().copy(), cell.b.asnumpy().copy()


def as_tensors(pair):
    return tuple(Tensor(g, ms.float32) for g in pair)


def update(optimizer, pair, lr):
    """One update with the gradients of w and b, in the optimizer's own order."""
    by_name = dict(zip("wb", as_tensors(pair), strict=True))
    optimizer(optimizer.pack(tuple(by_name[p.name] for p in optimizer.params)), Tensor(lr, ms.float32))


def state(optimizer, packed):
    """The arrays of w and b in a packed state."""
    arrays = optimizer.flat.arrays(packed)
    return arrays["w"], arrays["b"]


def train(step, gradient, lr):
    image, mask = as_tensors(gradient)
    return step(image, Tensor(0), Tensor(0), mask, Tensor(lr, ms.float32)).asnumpy()


def adamw_reference(sequence, rates, clip=0.0, decay=0.1):
    """Parameters after each step: decoupled decay of w, bias-corrected moments; gradients clipped together."""
    values = [START["w"].copy(), START["b"].copy()]
    first, second = [0.0, 0.0], [0.0, 0.0]
    for t, (pair, lr) in enumerate(zip(sequence, rates, strict=True), 1):
        norm = np.sqrt(sum((g**2).sum() for g in pair))
        factor = min(1.0, clip / norm) if clip else 1.0
        for i in range(2):
            g = pair[i] * factor
            first[i] = 0.9 * first[i] + 0.1 * g
            second[i] = 0.999 * second[i] + 0.001 * g**2
            values[i] = values[i] * (1 - lr * (decay if i == 0 else 0.0))
            values[i] = values[i] - lr * (first[i] / (1 - 0.9**t)) / (np.sqrt(second[i] / (1 - 0.999**t)) + 1e-8)
        yield [v.copy() for v in values]


@pytest.mark.parametrize("below", [PACK_BELOW, 3, 1])
@pytest.mark.parametrize("order,beta2", [(1, 0.999), (-1, 0.95)])
def test_adamw_equals_mindspores_own(order, beta2, below):
    """Each step, with tiny gradients first and last; both, one and none of the parameters packed."""
    ours, theirs = Linear(), Linear()
    optimizer = Optimizer(groups(ours), beta2=beta2, below=below)
    other = experimental.AdamW([{"params": [theirs.w], "weight_decay": 0.1},
                                {"params": [theirs.b], "weight_decay": 0.0}], lr=0.01, betas=(0.9, beta2))
    for i, pair in enumerate(gradients(8)[2::order] if order == 1 else gradients(8)[::-1]):
        lr = 0.01 * (i + 1)
        for group in other.param_groups:
            ms.ops.assign(group["lr"], Tensor(lr, ms.float32))
        with pynative():
            update(optimizer, pair, lr)
            other(as_tensors(pair))
        for a, b in zip(values(ours), values(theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-6, atol=5e-7)
    assert float(optimizer.steps) == i + 1


@pytest.mark.parametrize("below", [PACK_BELOW, 1])
def test_a_group_of_another_rate(below):
    """Equal to the common learning rate times the factor, decay included; the other group goes on as before."""
    slow, fast = Linear(), Linear()
    factors = groups(fast)
    factors[0]["lr_mult"] = 8.0
    one, other = Optimizer(groups(slow), below=below), Optimizer(factors, below=below)
    lone = Linear()
    reference = Optimizer(groups(lone), below=below)
    with pynative():
        for pair in gradients(4):
            update(one, pair, 0.01)
            update(reference, pair, 0.08)
            update(other, pair, 0.01)
    np.testing.assert_allclose(fast.w.asnumpy(), lone.w.asnumpy(), rtol=1e-6)
    np.testing.assert_allclose(fast.b.asnumpy(), slow.b.asnumpy(), rtol=1e-6)


def test_the_first_step_is_lr_long_whatever_the_gradient():
    """Adam's property; an epsilon in the wrong place would shorten the step of small gradients."""
    cell = Linear()
    update(Optimizer(groups(cell, decay=0.0)), (np.full((3, 4), 1e-5), np.full(2, -3.0)), 0.1)
    np.testing.assert_allclose(cell.w.asnumpy(), START["w"] - 0.1 * 1e-5 / (1e-5 + 1e-8), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(cell.b.asnumpy(), START["b"] + 0.1, rtol=1e-5)


@pytest.mark.parametrize(("clip", "below"), [(0.0, PACK_BELOW), (0.5, PACK_BELOW), (0.5, 3), (0.5, 1)])
def test_train_step_equals_the_reference(clip, below):
    """Clip, AdamW, losses and gradient norm of RESULTS, and the average's recursion, over ten steps."""
    cell = Linear()
    step = TrainStep(cell, Optimizer(groups(cell), below=below), clip, ema=0.8)
    sequence, rates = gradients(10), np.linspace(0.1, 0.01, 10)
    average = [START["w"].copy(), START["b"].copy()]
    for pair, lr, expected in zip(sequence, rates, adamw_reference(sequence, rates, clip), strict=True):
        before = values(cell)
        losses = dict(zip(RESULTS, train(step, pair, lr), strict=True))
        loss = sum((a * g).sum() for a, g in zip(before, pair, strict=True))
        multiples = loss * np.arange(1, len(LOSSES) + 1)
        np.testing.assert_allclose([losses[k] for k in LOSSES], multiples, rtol=1e-4, atol=1e-5)
        assert losses["grad_norm"] == pytest.approx(np.sqrt(sum((g**2).sum() for g in pair)), rel=1e-4)
        average = [0.8 * a + 0.2 * v for a, v in zip(average, expected, strict=True)]
        averages = state(step.optimizer, step.averages)
        for actual, value, mean, now in zip(values(cell), expected, average, averages, strict=True):
            np.testing.assert_allclose(actual, value, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(now, mean, rtol=1e-5, atol=1e-5)


def test_clipping_bounds_the_norm():
    """After one step Adam's first moment is a tenth of the gradient that reached it."""
    for size, bound in ((10.0, 0.5), (0.01, None)):
        cell = Linear()
        optimizer = Optimizer(groups(cell))
        pair = tuple(g / np.sqrt(sum((x**2).sum() for x in gradients(1)[0])) * size for g in gradients(1)[0])
        train(TrainStep(cell, optimizer, 0.5, ema=0.0), pair, 0.1)
        moments = [10 * m for m in state(optimizer, optimizer.first)]
        norm = np.sqrt(sum((m**2).sum() for m in moments))
        assert norm == pytest.approx(bound or size, rel=1e-4)
        np.testing.assert_allclose(moments[0] / norm, pair[0] / size, rtol=1e-4, atol=1e-6)  # its direction stays


class Overflowing(Linear):
    """A non-finite loss with finite gradients: ``ids`` is added to it."""

    def construct(self, image, ids, word_mask, mask):
        loss = (self.w * image).sum() + (self.b * mask).sum() + ids
        return (loss,) * len(LOSSES)


@pytest.mark.parametrize("at", [0, 1])
def test_a_loss_without_a_number_in_any_micro_batch_spoils_its_step(at):
    cell = Overflowing()
    step = TrainStep(cell, Optimizer(groups(cell)), 0.0, ema=0.0, accumulate=2)
    image, mask = as_tensors(gradients(1)[0])
    for bad in (True, False):
        before = values(cell)
        for micro in range(2):
            offset = Tensor(np.inf if bad and micro == at else 0.0, ms.float32)
            results = step(image, offset, Tensor(0), mask, Tensor(0.1, ms.float32), last=micro == 1).asnumpy()
        assert dict(zip(RESULTS, results, strict=True))["finite"] == (0 if bad else 1)
        assert all((a == b).all() == bad for a, b in zip(values(cell), before, strict=True))


def test_no_average_without_decay():
    cell = Linear()
    assert len(TrainStep(cell, Optimizer(groups(cell)), 0.0, ema=0.0).averages) == 0


@pytest.mark.parametrize("below", [PACK_BELOW, 3, 1])
def test_a_packed_state_comes_back(below):
    """As arrays by parameter name, the same whatever is packed."""
    optimizer = Optimizer(groups(Linear()), below=below)
    arrays = {"w": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.array([7, 9], np.float32)}
    optimizer.flat.load(optimizer.first, arrays, "file")
    for name, array in optimizer.flat.arrays(optimizer.first).items():
        np.testing.assert_array_equal(array, arrays[name])
    with pytest.raises(UserError, match="file: b has shape"):
        optimizer.flat.load(optimizer.first, arrays | {"b": np.zeros(3, np.float32)}, "file")
    with pytest.raises(UserError, match="file: lacks w"):
        optimizer.flat.load(optimizer.first, {"b": arrays["b"]}, "file")


def learning_rates(config, total):
    return np.array([learning_rate(config, step, total) for step in range(total)])


def test_the_decay_follows_the_clock_where_it_is_ahead():
    config = tiny_config("train.lr=0.1", "train.schedule=cosine", "train.minutes=1", "train.warmup_steps=2")
    assert learning_rate(config, 10, 1000, clock=0.5) == pytest.approx(0.05)
    assert learning_rate(config, 10, 1000, clock=1.0) == 0
    assert learning_rate(config, 900, 1000, clock=0.1) == learning_rate(config, 900, 1000)
    assert learning_rate(config, 0, 1000, clock=0.0) == pytest.approx(0.1 / 3, rel=1e-4)


def test_polynomial_rates():
    rates = learning_rates(tiny_config("train.lr=0.1", "train.schedule=poly"), 50)
    np.testing.assert_allclose(rates, 0.1 * (1 - np.arange(50) / 50) ** 0.9, rtol=1e-5)  # LAVT's


def test_cosine_rates():
    rates = learning_rates(tiny_config("train.lr=0.1", "train.schedule=cosine"), 100)
    assert rates[0] == pytest.approx(0.1) and rates[50] == pytest.approx(0.05) and 0 < rates[-1] < 1e-4
    assert (np.diff(rates) < 0).all()


@pytest.mark.parametrize("schedule", ["poly", "cosine"])
def test_warm_up(schedule):
    rates = learning_rates(tiny_config("train.lr=0.1", f"train.schedule={schedule}", "train.warmup_steps=4"), 20)
    np.testing.assert_allclose(rates[:5], 0.1 * np.arange(1, 6) / 5, rtol=1e-5)
    assert (np.diff(rates[4:]) < 0).all() and 0 < rates[-1] < 0.02


@pytest.mark.parametrize("total", [1, 2, 3])
def test_a_warm_up_longer_than_the_run(total):
    rates = learning_rates(tiny_config("train.warmup_steps=10"), total)
    assert len(rates) == total and (rates > 0).all() and (rates <= 1e-3).all()


def test_parameter_groups_of_the_model():
    model = tiny_model()
    decayed, plain, tables, matrices = parameter_groups(model, 0.07, 16.0)
    assert not matrices["params"]  # unless they have a rate: test_muon.py
    assert decayed["weight_decay"] == 0.07 and plain["weight_decay"] == tables["weight_decay"] == 0.0
    assert tables["lr_mult"] == 16 and decayed["lr_mult"] == plain["lr_mult"] == 1
    names = [p.name for group in (decayed, plain, tables) for p in group["params"]]
    assert len(names) == len(set(names)) and set(names) == {p.name for p in model.trainable_params()}
    still = {p.name.rpartition(".")[2] for p in plain["params"]}
    assert still == {"gamma", "beta", "bias", "position_embeddings"}
    assert {p.name.rpartition(".")[2] for p in tables["params"]} == {"relative_position_bias_table"}
    moving = {p.name.rpartition(".")[2] for p in decayed["params"]}
    assert moving == {"weight", "word_embeddings", "token_type_embeddings", "queries"}


def test_what_decays_by_the_other_rules():
    """LAVT's code: everything but the image encoder's norms and position biases."""
    model = tiny_model("model.fusion.name=pixel_word", "model.sentence_mask=false")
    names = {p.name for p in model.trainable_params()}

    def decayed(rule):
        groups = parameter_groups(model, 0.07, decayed=rule)
        assert {p.name for group in groups for p in group["params"]} == names
        return {p.name for group in groups for p in group["params"] if group["weight_decay"]}

    assert decayed("all") == names
    lavt = {name for name in names if "relative_position_bias_table" in name
            or name.startswith("encoder.backbone.") and "norm" in name.rpartition(".")[0].rpartition(".")[2]
            or name.startswith("encoder.backbone.outputs.")}
    assert names - decayed("lavt") == lavt and len(lavt) > 20
    assert "encoder.text.embed.norm.gamma" in decayed("lavt") and "encoder.backbone.embed.proj.bias" in decayed("lavt")
    assert decayed("matrices") < decayed("lavt") < decayed("all")
