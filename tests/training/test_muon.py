"""Muon against NumPy: orthogonal factors of padded bins, and whole updates."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn
from tiny_network import tiny_config, tiny_model

from mindspore_coupalign.errors import UserError
from mindspore_coupalign.training import setup
from mindspore_coupalign.training.muon import ITERATIONS, A, B, C, Muon, bin_shape
from mindspore_coupalign.training.optimizer import Optimizer

SHAPES = [(24, 24), (40, 24), (24, 40), (32, 300), (70, 64), (3, 5), (24, 24)]


def newton_schulz(matrix):
    """The iteration on one matrix, in float64 and as Jordan writes it."""
    x = matrix / np.linalg.norm(matrix)
    for _ in range(ITERATIONS):
        s = x @ x.T
        x = A * x + (B * s + C * s @ s) @ x
    return x


def random_matrices(seed=0):
    random = np.random.default_rng(seed)
    return [random.normal(size=shape) * 10.0 ** random.integers(-6, 3) for shape in SHAPES]


def joined(matrices):
    return Tensor(np.concatenate([m.reshape(-1) for m in matrices]), ms.float32)


def moves(matrices):
    flat = Muon([m.shape for m in matrices])(joined(matrices)).asnumpy()
    parts = np.split(flat, np.cumsum([m.size for m in matrices])[:-1])
    return [part.reshape(m.shape) for part, m in zip(parts, matrices, strict=True)]


def test_each_move_is_that_of_its_matrix_alone():
    """Whatever lies beside it in its bin, however much padding, lying or standing, and at any scale."""
    matrices = random_matrices()
    assert len({bin_shape(m.shape) for m in matrices}) < len({m.shape for m in matrices}), "no bin is shared"
    for matrix, move in zip(matrices, moves(matrices), strict=True):
        np.testing.assert_allclose(move, newton_schulz(matrix) * max(matrix.shape) ** 0.5, rtol=2e-3, atol=2e-3)


def test_singular_directions_stay_and_their_lengths_become_alike():
    """The move is U S' Vᵀ of the gradient's own U S Vᵀ, S' near 1 even where S spans a factor of 50."""
    random = np.random.default_rng(1)
    u, _ = np.linalg.qr(random.normal(size=(24, 24)))
    v, _ = np.linalg.qr(random.normal(size=(40, 24)))
    move = moves([u * np.geomspace(1, 0.02, 24) @ v.T])[0] / 40**0.5
    lengths = u.T @ move @ v
    assert 0.6 < np.diag(lengths).min() and np.diag(lengths).max() < 1.3
    np.testing.assert_allclose(lengths - np.diag(np.diag(lengths)), 0, atol=1e-3)


def test_a_gradient_of_zero_moves_nothing():
    assert np.array_equal(moves([np.zeros((24, 24)), np.ones((24, 24))])[0], np.zeros((24, 24)))


class Two(nn.Cell):
    def __init__(self, seed):
        super().__init__()
        random = np.random.default_rng(seed)
        self.w = Parameter(Tensor(random.normal(size=(6, 4)), ms.float32))
        self.k = Parameter(Tensor(random.normal(size=(4, 2, 3, 3)), ms.float32))
        self.b = Parameter(Tensor(random.normal(size=3), ms.float32))


def test_updates_equal_the_reference():
    """Nesterov momentum 0.95, moves of lr · rate, decoupled decay; the bias goes by Adam as ever."""
    cell, random = Two(0), np.random.default_rng(3)
    optimizer = Optimizer([{"params": [cell.b], "weight_decay": 0.0},
                           {"params": [cell.w, cell.k], "weight_decay": 0.1, "lr_mult": 0.8, "muon": True}])
    expected = {name: getattr(cell, name).asnumpy().astype(np.float64) for name in "wk"}
    bias, average = cell.b.asnumpy().copy(), {name: 0.0 for name in "wk"}
    for lr in (0.1, 0.05, 0.02):
        gradients = {p.name: random.normal(size=p.shape) for p in optimizer.params}
        optimizer(optimizer.pack(tuple(Tensor(gradients[p.name], ms.float32) for p in optimizer.params)),
                  Tensor(lr, ms.float32))
        for name, value in expected.items():
            average[name] = 0.95 * average[name] + 0.05 * gradients[name]
            matrix = (0.95 * average[name] + 0.05 * gradients[name]).reshape(len(value), -1)
            move = newton_schulz(matrix) * max(matrix.shape) ** 0.5
            expected[name] = value * (1 - lr * 0.8 * 0.1) - lr * 0.8 * move.reshape(value.shape)
            np.testing.assert_allclose(getattr(cell, name).asnumpy(), expected[name], rtol=1e-3, atol=1e-4)
    assert 0.1 < np.abs(cell.b.asnumpy() - bias).max() < 0.18  # Adam: at most lr a step
    states = optimizer.flat.arrays(optimizer.first)
    np.testing.assert_allclose(states["w"], average["w"], rtol=1e-5, atol=1e-6)
    assert states["k"].shape == (4, 2, 3, 3)


def test_the_models_matrices():
    """Muon gets dense layers and the decoder's convolutions; embeddings, queries, head and first layer do not."""
    model = tiny_model()
    decayed, plain, tables, matrices = setup.parameter_groups(model, 0.1, 1.0, 0.8)
    assert matrices["muon"] and matrices["lr_mult"] == 0.8
    names = {p.name for p in matrices["params"]}
    assert {"encoder.backbone.stages.0.blocks.0.attn.q.weight", "encoder.fusion.0.pixel_query.weight"} <= names
    assert any(name.startswith("pixel_decoder.") for name in names)
    assert {p.name for p in decayed["params"]} == {
        "encoder.backbone.embed.proj.weight", "encoder.text.embed.word_embeddings",
        "encoder.text.embed.token_type_embeddings", "mask_generator.queries", "head.conv.weight"}
    assert len(setup.parameter_groups(model, 0.1)[3]["params"]) == 0


@pytest.mark.parametrize("override", ["train.muon_lr_mult=-1", "train.position_bias_lr_mult=0"])
def test_impossible_rates(override):
    with pytest.raises(UserError, match="muon_lr_mult not negative"):
        tiny_config(override)
