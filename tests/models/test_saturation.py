"""Devices that saturate instead of overflowing: the flag that amp.all_finite reads there decides, on all ranks alike.

A CPU follows IEEE 754: where the flag itself matters, ``raised`` stands for it. One parameter w (4,); the loss of a
batch is the mean of sqrt(w · image).
"""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops
from tiny_network import VOCABULARY, tiny_config

from mindspore_coupalign import build
from mindspore_coupalign.training import setup
from mindspore_coupalign.training import step as train_step
from mindspore_coupalign.training.optimizer import Optimizer
from mindspore_coupalign.training.step import LOSSES, RESULTS, TrainStep

GOOD = np.arange(1, 5, dtype=np.float32)
STEEP = np.array([0, 1, 2, 3], np.float32)  # sqrt(0): the loss is finite, its gradient is not


class Roots(nn.Cell):
    def __init__(self):
        super().__init__()
        self.w = Parameter(Tensor(np.ones(4, np.float32)))

    def construct(self, image, ids, word_mask, mask):
        loss = ops.sqrt(self.w * image).mean()
        return (loss,) * len(LOSSES)


raised = Parameter(Tensor(0, ms.float32), name="raised", requires_grad=False)


def flag_is_down(_):
    return raised < 0.5


def new_step(**options) -> TrainStep:
    objective = Roots()
    return TrainStep(objective, Optimizer([{"params": [objective.w], "weight_decay": 0.0}]), 0.0, 0.0, saturates=True,
                     **options)


def take(step, image, flag=0.0, last=True, signals=(0.0, 0.0)):
    """(RESULTS by name, whether w has changed)."""
    ops.assign(raised, Tensor(flag, ms.float32))
    before = step.objective.w.asnumpy().copy()
    results = step(*[Tensor(image)] * 4, Tensor(0.1, ms.float32), signals=signals, last=last).asnumpy()
    return dict(zip(RESULTS, results.tolist(), strict=True)), bool((step.objective.w.asnumpy() != before).any())


def test_all_finite_is_part_of_the_compiled_step():
    step = new_step()
    for image, finite in ((GOOD, 1), (STEEP, 0), (GOOD * np.nan, 0), (-GOOD, 0), (GOOD, 1)):
        results, moved = take(step, image)
        assert results["finite"] == finite and moved == bool(finite)


def test_a_raised_flag_leaves_the_step_out(monkeypatch):
    """Though every number that can be looked at is finite."""
    monkeypatch.setattr(train_step, "all_finite", flag_is_down)
    step = new_step()
    for flag in (0, 1, 0):
        results, moved = take(step, GOOD, flag)
        assert np.isfinite(results["grad_norm"]) and results["finite"] == 1 - flag and moved == (not flag)


def test_one_micro_batch_spoils_its_own_step_only(monkeypatch):
    monkeypatch.setattr(train_step, "all_finite", flag_is_down)
    step = new_step(accumulate=2)
    for first, second in ((0, 0), (1, 0), (0, 0), (0, 1), (1, 1), (0, 0)):
        assert not take(step, GOOD, first, last=False)[1]
        results, moved = take(step, GOOD, second)
        assert results["finite"] == float(not (first or second)) and moved == (not (first or second))


def test_another_ranks_flag_leaves_the_step_out_here_too(monkeypatch):
    """Two ranks, of which this process is one; the other has the same batch, and the flag that stands for its clock."""
    @ops.constexpr
    def of_the_other(shape):
        return Tensor([0, 1, 1] if shape == (3,) else list(range(shape[0])))  # the former: two signals and the flag

    def all_reduce_sum(x):
        return x + ops.gather(x, of_the_other(x.shape), 0)

    monkeypatch.setattr(train_step, "all_finite", flag_is_down)
    monkeypatch.setattr(train_step.ops, "AllReduce", lambda: all_reduce_sum)
    step = new_step(ranks=2)
    for own, others in ((0, 0), (0, 1), (1, 0), (0, 0)):
        results, moved = take(step, GOOD, own, signals=(0, others))
        assert results["finite"] == float(not (own or others)) and moved == (not (own or others))
        assert results["loss"] == pytest.approx(np.sqrt(step.objective.w.asnumpy() * GOOD).mean(), rel=0.2)


@pytest.mark.parametrize(("target", "asked"), [("Ascend", True), ("GPU", False), ("CPU", False)])
def test_the_target_decides_whether_the_flag_is_asked(target, asked, monkeypatch):
    found = {}
    monkeypatch.setattr(setup, "TrainStep", lambda *_, **options: found.update(options))
    config = tiny_config("train.amp=O0")
    setup.build_train_step(build.build_model(config, VOCABULARY), config, target=target)
    assert found["saturates"] is asked
