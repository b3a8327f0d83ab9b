"""Swin against a NumPy Swin that pads, rolls and loops over the windows one by one.

Padded cells are zero vectors behind the first norm and take part as keys, as in mmdetection's Swin.
"""

import itertools

import mindspore as ms
import numpy as np
import pytest
from numpy_layers import assert_near, attention, below, gelu, linear, mlp, norm, randomize, relu, weights
from tiny_network import tiny_model

from mindspore_coupalign.models.backbones.swin import (
    PatchMerging,
    Swin,
    SwinBlock,
    SwinSettings,
    TokenGather,
    inverse_index,
    relative_position_index,
    shift_mask,
    window_index,
)
from mindspore_coupalign.models.layers import sine_positions

SIZES = [((8, 8), 4), ((8, 12), 4), ((15, 15), 4), ((12, 20), 5), ((7, 9), 5)]


def windows_of(x, window, shift):
    """(H, W, C) -> (n, M, C): pad, roll, cut out the windows in reading order."""
    height, width, _ = x.shape
    x = np.pad(x, ((0, -height % window), (0, -width % window), (0, 0)))
    x = np.roll(x, (-shift, -shift), (0, 1))
    rows, cols = x.shape[0] // window, x.shape[1] // window
    return np.stack([x[i * window:(i + 1) * window, j * window:(j + 1) * window].reshape(window * window, -1)
                     for i in range(rows) for j in range(cols)])


def map_of(windows, size, window, shift):
    """The inverse of ``windows_of``, without the padding."""
    height, width = size
    rows, cols = -(-height // window), -(-width // window)
    x = np.zeros((rows * window, cols * window, windows.shape[-1]))
    for n, (i, j) in enumerate(itertools.product(range(rows), range(cols))):
        x[i * window:(i + 1) * window, j * window:(j + 1) * window] = windows[n].reshape(window, window, -1)
    return np.roll(x, (shift, shift), (0, 1))[:height, :width]


def position_bias(table, window, heads):
    """(h, M, M): the table's row by the two cells' distance in rows and columns."""
    cells = list(itertools.product(range(window), range(window)))
    bias = np.zeros((heads, len(cells), len(cells)))
    for (a, (ya, xa)), (b, (yb, xb)) in itertools.product(enumerate(cells), repeat=2):
        bias[:, a, b] = table[(ya - yb + window - 1) * (2 * window - 1) + xa - xb + window - 1]
    return bias


def block_reference(w, x, size, heads, window, shift, act=gelu):
    """One sample, (P, C) -> (P, C)."""
    if min(size) <= window:
        window, shift = min(size), 0
    height, width = size
    rows, cols = -(-height // window) * window, -(-width // window) * window
    y = norm(w, "norm1", x).reshape(height, width, -1)
    # which side of the seam a cell comes from: cells that the roll carried over it must not see the others
    over_y = np.arange(rows)[:, None] + shift >= rows
    over_x = np.arange(cols)[None] + shift >= cols
    side = (2 * over_y + over_x).astype(float)[..., None]
    sides = windows_of(side, window, 0)[..., 0]
    bias = position_bias(w["attn.relative_position_bias_table"], window, heads)
    mixed = []
    for cells, side in zip(windows_of(y, window, shift), sides, strict=True):
        apart = np.where(side[:, None] == side[None], 0.0, -np.inf)
        mixed.append(attention(below(w, "attn"), cells, cells, cells, heads, bias=bias + apart))
    x = x + map_of(np.stack(mixed), size, window, shift).reshape(x.shape)
    return x + mlp(w, "mlp", norm(w, "norm2", x), act)


def merging_reference(w, x, size):
    grid = x.reshape(*size, -1)
    joined = np.stack([np.concatenate([grid[i, j], grid[i + 1, j], grid[i, j + 1], grid[i + 1, j + 1]])
                       for i in range(0, size[0], 2) for j in range(0, size[1], 2)])
    return linear(w, "reduction", norm(w, "norm", joined))


def swin_reference(w, image, size, depths, heads, window, act=gelu):
    """One image (3, H, W) -> the four stages' features."""
    kernel, rows, cols = w["embed.proj.weight"], size[0] // 4, size[1] // 4
    x = np.stack([(kernel * image[:, 4 * i:4 * i + 4, 4 * j:4 * j + 4]).sum((1, 2, 3)) + w["embed.proj.bias"]
                  for i in range(rows) for j in range(cols)])
    x, features = norm(w, "embed.norm", x), []
    for i in range(4):
        for j in range(depths[i]):
            x = block_reference(below(w, f"stages.{i}.blocks.{j}"), x, (rows, cols), heads[i], window,
                                window // 2 if j % 2 else 0, act)
        features.append(norm(w, f"outputs.{i}", x))
        if i < 3:
            x = merging_reference(below(w, f"downsamples.{i}"), x, (rows, cols))
            rows, cols = rows // 2, cols // 2
    return features


@pytest.mark.parametrize("size,window", SIZES)
def test_partition_and_restore_are_pad_roll_and_cut(size, window):
    random = np.random.default_rng(0)
    x = random.normal(size=(2, size[0] * size[1], 3)).astype(np.float32)
    for shift in (0, window // 2):
        index = window_index(size, window, shift)
        inverse = inverse_index(index, x.shape[1])
        out = TokenGather(index.reshape(-1), inverse)(ms.Tensor(x)).asnumpy()
        expected = np.stack([windows_of(sample.reshape(*size, 3), window, shift).reshape(-1, 3) for sample in x])
        np.testing.assert_array_equal(out, expected)
        changed = out * random.normal(size=out.shape).astype(np.float32)  # padded cells are filled too
        changed += 1
        back = TokenGather(inverse, index.reshape(-1))(ms.Tensor(changed)).asnumpy()
        cut = changed.reshape(2, -1, window * window, 3)
        expected = np.stack([map_of(sample, size, window, shift).reshape(-1, 3) for sample in cut])
        np.testing.assert_array_equal(back, expected.astype(np.float32))


@pytest.mark.parametrize("size,window", [((8, 12), 4), ((7, 9), 5)])
def test_the_gradient_is_the_adjoint(size, window):
    """G is linear, so <dout, G x> = <bprop(dout), x> for all x and dout."""
    index = window_index(size, window, 2)
    inverse = inverse_index(index, size[0] * size[1])
    random = np.random.default_rng(1)
    for first, second in ((index.reshape(-1), inverse), (inverse, index.reshape(-1))):
        gather = TokenGather(first, second)
        x = random.normal(size=(2, second.size, 3)).astype(np.float32)
        dout = random.normal(size=(2, first.size, 3)).astype(np.float32)
        out = gather(ms.Tensor(x)).asnumpy()
        gradient = ms.ops.GradOperation(sens_param=True)(gather)(ms.Tensor(x), ms.Tensor(dout)).asnumpy()
        assert gradient.shape == x.shape
        np.testing.assert_allclose((gradient * x).sum(), (dout * out).sum(), rtol=1e-4)
        expected = np.zeros((2, second.size + 1, 3), np.float32)  # the scatter that the bprop saves; last row: padding
        for cell, token in enumerate(first):
            expected[:, token] += dout[:, cell]
        np.testing.assert_allclose(gradient, expected[:, :-1], rtol=1e-6)


def test_shift_mask_forbids_exactly_the_pairs_across_the_seam():
    for size, window, shift in (((8, 8), 4, 2), ((15, 10), 5, 2)):
        rows, cols = (-(-s // window) * window for s in size)
        y, x = np.divmod(np.arange(rows * cols), cols)
        place = np.stack([y, x], -1).reshape(rows, cols, 2)
        came_from = windows_of(place, window, shift).astype(int)  # (n, M, 2), where each cell lay before the roll
        near = (np.abs(came_from[:, :, None] - came_from[:, None]) < window).all(-1)
        np.testing.assert_array_equal(shift_mask(size, window, shift) == 0, near)


def test_relative_position_index():
    index = relative_position_index(3).reshape(9, 9)
    assert index[0, 0] == index[4, 4] == 12  # the table's middle: no distance
    assert index[0, 8] == 0 and index[8, 0] == 24  # two rows and columns before and behind
    assert index[0, 1] == 11 and index[0, 3] == 7
    assert sorted(set(index.ravel().tolist())) == list(range(25))


@pytest.mark.parametrize("size,window,shift", [((7, 9), 4, 2), ((3, 5), 5, 2)])
def test_block_equals_the_reference(size, window, shift):
    block = randomize(SwinBlock(8, size, 2, window, shift, 2.0, 0.0, "relu"))
    x = np.random.default_rng(2).normal(size=(2, size[0] * size[1], 8)).astype(np.float32)
    expected = np.stack([block_reference(weights(block), sample, size, 2, window, shift, relu) for sample in x])
    assert_near(block(ms.Tensor(x)).asnumpy(), expected)


def test_whole_swin_equals_the_reference():
    """Stages 24×40, 12×20, 6×10 and 3×5 with windows of 5: padding acts in each, the last has windows of 3."""
    size, depths, heads = (96, 160), (2, 1, 2, 2), (1, 2, 2, 4)
    swin = randomize(Swin(SwinSettings(embed_dim=8, depths=depths, heads=heads, window=5, mlp_ratio=2.0, drop_path=0.0),
                          size=size), scale=0.15)
    assert swin.sizes == [(24, 40), (12, 20), (6, 10), (3, 5)] and swin.channels == [8, 16, 32, 64]
    image = np.random.default_rng(3).normal(size=(2, 3, *size)).astype(np.float32)
    out = [feature.asnumpy() for feature in swin(ms.Tensor(image))]
    for i in range(2):
        for feature, expected in zip(out, swin_reference(weights(swin), image[i], size, depths, heads, 5), strict=True):
            assert_near(feature[i], expected)


def test_patch_merging_order():
    merging = randomize(PatchMerging(2, (4, 6)))
    x = np.random.default_rng(4).normal(size=(1, 24, 2)).astype(np.float32)
    assert_near(merging(ms.Tensor(x)).asnumpy()[0], merging_reference(weights(merging), x[0], (4, 6)))


def test_sine_positions_tell_rows_and_columns_apart():
    code = sine_positions((3, 5), 10).asnumpy().reshape(3, 5, 10)
    np.testing.assert_allclose(code[:, 0, :5], code[:, 4, :5])  # the first half knows the row only
    np.testing.assert_allclose(code[0, :, 5:], code[2, :, 5:])
    flat = code.reshape(15, 10)
    assert np.abs(flat[:, None] - flat[None]).max(-1)[~np.eye(15, dtype=bool)].min() > 0.1
    np.testing.assert_allclose(code[1, 0, :2], [np.sin(np.pi), np.cos(np.pi)], atol=1e-6)  # the middle is half a turn
    assert sine_positions((2, 2), 7).shape == (1, 4, 7)


def test_drop_path_and_positions_act():
    """Stochastic depth changes training only, and rates grow from 0 at the first block to the last."""
    vision = tiny_model("model.backbone.drop_path=0.4").encoder.backbone
    rates = [block.drop_path1.rate for stage in vision.stages for block in stage.blocks]
    np.testing.assert_allclose(rates, np.linspace(0, 0.4, 5), atol=1e-7)
    branch = vision.stages[3].blocks[0].drop_path1
    x = ms.Tensor(np.ones((200, 2, 3), np.float32))
    np.testing.assert_array_equal(branch.set_train(False)(x).asnumpy(), 1)
    out = branch.set_train(True)(x).asnumpy()
    np.testing.assert_allclose(out, np.broadcast_to(out[:, :1, :1], out.shape))  # whole samples
    assert set(np.round(np.unique(out), 4)) == {0.0, np.float32(1.6667)} and 0.4 < out.mean() / 1.6667 < 0.8
