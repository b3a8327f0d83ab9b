"""The whole network at its smallest: what has to hold for any weights, and its parts against NumPy."""

import difflib
import os
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from numpy_layers import assert_near, linear, norm, randomize, relu, softmax, weights
from tiny_network import eager, tiny_batch, tiny_config, tiny_model

from mindspore_coupalign import build
from mindspore_coupalign.models.bert import padding_bias
from mindspore_coupalign.models.coupalign import STAGE_LOGITS, Outputs
from mindspore_coupalign.models.decoders.top_down import PixelDecoder, TopDownSettings
from mindspore_coupalign.models.fusion.word_pixel import WordPixelAlignment, WordPixelSettings
from mindspore_coupalign.models.layers import Tanh
from mindspore_coupalign.models.mask_generator import MaskGenerator
from mindspore_coupalign.models.sentence_mask import SentenceMaskAlignment
from mindspore_coupalign.training import setup
from mindspore_coupalign.training.objective import LOSSES

GOLDEN = Path(__file__).parents[1] / "golden" / "parameter_names.txt"
GOLDEN_HEAD = "# The tests' network: parameter name and shape. tests/models/test_model.py says how to write it anew.\n"
# The paper's table of stages with word-pixel alignment, and none
STAGES = [(1, 2, 3, 4), (1, 2), (3, 4), (4,), (3,), (2,), (1,), ()]
# What adds the same to all scores of a softmax has no gradient: the keys' biases, and the masks' in SMA
WITHOUT_GRADIENT = ("attn.k.bias", "attention.k.bias", "alignment.mask_key.bias")


def run(model, image, ids, word_mask, mask=None):
    return model(*map(ms.Tensor, (image, ids, word_mask))).asnumpy()


def golden_lines() -> list:
    return [line for line in GOLDEN.read_text().splitlines() if not line.startswith("#")]


def named_shapes(model) -> list:
    return sorted(f"{p.name} {'x'.join(map(str, p.shape))}" for p in model.get_parameters())


@pytest.fixture(scope="module")
def model():
    return randomize(tiny_model(), scale=0.15)


@pytest.fixture(scope="module")
def batch():
    return tiny_batch(2)


@pytest.fixture(scope="module")
def logits(model, batch):
    return run(model, *batch)


def test_graph_mode_equals_pynative(model, batch, logits):
    expected = eager(model, *batch[:3]).asnumpy()
    assert logits.shape == (2, 1, 64, 64) and logits.std() > 0.01
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_padding_changes_no_mask(model, batch, logits):
    image, ids, word_mask, _ = batch
    other = np.where(word_mask > 0, ids, 9).astype(np.int32)
    assert (other != ids).any()
    np.testing.assert_allclose(run(model, image, other, word_mask), logits, rtol=1e-5, atol=1e-6)


def test_more_room_for_words_changes_no_mask(model, batch, logits):
    wide = tiny_model("data.max_tokens=12")
    ms.load_param_into_net(wide, model.parameters_dict(), strict_load=True)
    image, ids, word_mask, _ = batch
    out = eager(wide, image, np.pad(ids, ((0, 0), (0, 4)), constant_values=9), np.pad(word_mask, ((0, 0), (0, 4))))
    np.testing.assert_allclose(out.asnumpy(), logits, rtol=1e-5, atol=1e-6)


def test_samples_do_not_touch_each_other(model, batch, logits):
    """Each sample's mask is the same in another company (the same shapes, so nothing is compiled again)."""
    image, ids, word_mask, _ = batch
    for i in range(2):
        out = run(model, image[[i, i]], ids[[i, i]], word_mask[[i, i]])
        np.testing.assert_allclose(out, logits[[i, i]], rtol=1e-5, atol=1e-5)
    alone = run(model, image[:1], ids[:1], word_mask[:1])
    np.testing.assert_allclose(alone, logits[:1], rtol=1e-5, atol=1e-5)


def test_words_and_their_order_matter(model, batch, logits):
    image, ids, word_mask, _ = batch
    scale = logits.std()
    other = ids.copy()
    other[:, 1] = ids[:, 1] % 20 + 6
    assert np.abs(run(model, image, other, word_mask) - logits).max() > 0.01 * scale
    swapped = ids[:, [0, 2, 1, *range(3, 8)]]
    assert np.abs(run(model, image, swapped, word_mask) - logits).max() > 0.01 * scale
    assert np.abs(run(model, image[::-1].copy(), ids, word_mask) - logits).max() > 0.1 * scale


def test_every_parameter_learns(batch):
    """In the jitted step, also where windows of 5 cut maps of 16 and 8 unevenly; and the step leaves no dropout behind
    for evaluation."""
    config = tiny_config("model.text.dropout=0.1", "model.backbone.drop_path=0.1", "model.backbone.window=5",
                         "loss.contrast=1.0", "loss.deep_supervision=0.5", "model.stage_heads=true",
                         "loss.proposal_mask=0.5", "model.proposal_head=true")
    ms.set_seed(0)
    model = randomize(build.build_model(config, 30), scale=0.15)
    step = setup.build_train_step(model, config)
    arrays = [ms.Tensor(a) for a in tiny_batch(4)]
    before = {p.name: p.asnumpy().copy() for p in model.trainable_params()}
    # two steps, since a path that was dropped for every sample gives no gradient
    losses = [step(*arrays, ms.Tensor(1e-3, ms.float32)).asnumpy() for _ in range(2)]
    assert np.isfinite(losses).all() and losses[0][0] != losses[1][0]
    first = step.optimizer.flat.arrays(step.optimizer.first)
    moments = {name: np.abs(array).max() for name, array in first.items()}
    assert moments.keys() == before.keys()
    silent = {name for name, size in moments.items() if not size > 1e-11 and not name.endswith(WITHOUT_GRADIENT)}
    assert not silent
    still = {p.name for p in model.trainable_params() if (p.asnumpy() == before[p.name]).all()}
    assert not {name for name in still if not name.endswith(WITHOUT_GRADIENT)}
    model.set_train(False)
    out = [run(model, *tiny_batch(4)) for _ in range(2)]
    np.testing.assert_array_equal(*out)


@pytest.mark.parametrize("stages", STAGES, ids=str)
def test_stages_with_word_pixel_alignment(stages, batch):
    """Exactly the stages of the list have WPA parameters, of their own widths, and run; everything else stays."""
    model = randomize(tiny_model(f"model.fusion.stages={list(stages)}"))
    found = {p.name: p for p in model.get_parameters()}
    slots = {name.split(".")[2] for name in found if name.startswith("encoder.fusion.")}
    assert slots == {str(i) for i in range(len(stages))}
    widths = [found[f"encoder.fusion.{i}.pixel_query.weight"].shape[0] for i in range(len(stages))]
    assert widths == [8 * 2 ** (stage - 1) for stage in stages]
    rest = {line for line in named_shapes(model) if not line.startswith("encoder.fusion.")}
    assert rest == {line for line in golden_lines() if not line.startswith("encoder.fusion.")}
    out = Outputs(*eager(model.outputs, *batch[:3]))
    assert np.isfinite(out.logits.asnumpy()).all()
    shapes = [((1, 2, 2, 4)[stage - 1], 256 // 4 ** (stage - 1)) for stage in stages]
    assert [a.shape[1:3] for a in out.attention] == shapes


def test_outputs_are_the_intermediates(model, batch, logits):
    out, y, proposals, chosen, attention, stage_logits, proposal_logits, exists = eager(model.outputs, *batch[:3])
    np.testing.assert_allclose(out.asnumpy(), logits, rtol=1e-4, atol=1e-4)
    assert y.shape == (2, 16, 16, 16) and proposals.shape == (2, 256, 6) and chosen.shape == (2, 6)
    assert [a.shape for a in attention] == [(2, 1, 256, 8), (2, 2, 64, 8), (2, 2, 16, 8), (2, 4, 4, 8)]
    assert stage_logits == () and proposal_logits is None and exists is None
    np.testing.assert_allclose(chosen.asnumpy().sum(1), 1, rtol=1e-5)
    for over_words in attention:
        over_words = over_words.asnumpy()
        np.testing.assert_allclose(over_words.sum(-1), 1, rtol=1e-5)
        assert (over_words[0, :, :, 3:] == 0).all() and (over_words[0, :, :, :3] > 0).all()  # 3 words, then padding


def test_without_sentence_mask_alignment(batch):
    model = randomize(tiny_model("model.sentence_mask=false"))
    assert not any(p.name.startswith(("generator.", "alignment.")) for p in model.get_parameters())
    out, y, proposals, chosen, *_ = eager(model.outputs, *batch[:3])
    assert out.shape == (2, 1, 64, 64) and y.shape == (2, 16, 16, 16) and proposals is None and chosen is None


def mask_losses(logits, mask, side):
    """(cross-entropy, Dice) of logits (2, side², 1) against the share of the mask (2, 1, 64, 64) in each cell."""
    p = 1 / (1 + np.exp(-logits.reshape(2, -1).astype(np.float64)))
    t = mask.reshape(2, side, 64 // side, side, 64 // side).mean((2, 4)).reshape(2, -1)
    return np.array([-(t * np.log(p) + (1 - t) * np.log(1 - p)).mean(),
                     (1 - (2 * (p * t).sum(1) + 1) / (p.sum(1) + t.sum(1) + 1)).mean()])


def test_stage_heads(batch):
    """Logits of the first two stages; their losses compare them with the share of the mask in each cell."""
    config = tiny_config("loss.deep_supervision=0.5", "model.stage_heads=true", "loss.contrast=0", "loss.bce=3",
                         "loss.dice=0.7")
    model = randomize(tiny_model("loss.deep_supervision=0.5", "model.stage_heads=true"))
    heads = eager(model.outputs, *batch[:3])[STAGE_LOGITS]
    assert [e.shape for e in heads] == [(2, 256, 1), (2, 64, 1)]
    objective = setup.build_train_step(model, config).objective
    losses = dict(zip(LOSSES, [float(x.asnumpy()) for x in eager(objective, *batch)], strict=True))
    expected = sum(mask_losses(e.asnumpy(), batch[3], side) for e, side in zip(heads, (16, 8), strict=True))
    assert (losses["deep_supervision_bce"], losses["deep_supervision_dice"]) == pytest.approx(tuple(expected), rel=1e-4)
    total = 3 * losses["bce"] + 0.7 * losses["dice"] + 0.5 * (3 * expected[0] + 0.7 * expected[1])
    assert losses["loss"] == pytest.approx(total, rel=1e-4) and losses["proposal_mask_bce"] == 0


def test_the_proposal_head(batch):
    """The proposals' sum under the sentence's weights, in logits; its losses, and nothing of it in the mask."""
    config = tiny_config("loss.proposal_mask=0.5", "model.proposal_head=true", "loss.contrast=0", "loss.bce=3",
                         "loss.dice=0.7")
    model = randomize(build.build_model(config, 30))
    out = Outputs(*eager(model.outputs, *batch[:3]))
    logits, proposals, chosen, mask = (x.asnumpy() for x in (out.logits, out.proposals, out.weights,
                                                             out.proposal_logits))
    gain, offset = model.proposal_head.gain.asnumpy(), model.proposal_head.offset.asnumpy()
    assert_near(mask, gain * (proposals @ chosen[..., None]) + offset)
    objective = setup.build_train_step(model, config).objective
    losses = dict(zip(LOSSES, [float(x.asnumpy()) for x in eager(objective, *batch)], strict=True))
    expected = mask_losses(mask, batch[3], 16)
    assert (losses["proposal_mask_bce"], losses["proposal_mask_dice"]) == pytest.approx(tuple(expected), rel=1e-4)
    total = 3 * losses["bce"] + 0.7 * losses["dice"] + 0.5 * (3 * expected[0] + 0.7 * expected[1])
    assert losses["loss"] == pytest.approx(total, rel=1e-4) and losses["deep_supervision_dice"] == 0
    model.proposal_head.gain.set_data(-model.proposal_head.gain)
    np.testing.assert_array_equal(eager(model, *batch[:3]).asnumpy(), logits)


@pytest.mark.parametrize("size", [32, 96])
def test_other_sizes_share_the_parameters(size):
    """Windows that fit and that need padding (24, 12, 6, 3 with windows of 5)."""
    window = "model.backbone.window=5"
    model = randomize(tiny_model(f"data.image_size={size}", window))
    assert named_shapes(tiny_model("data.image_size=160", window)) == named_shapes(
        tiny_model("data.image_size=224", window))  # from where no window shrinks
    out = eager(model, *tiny_batch(1, size)[:3])
    assert out.shape == (1, 1, size, size) and np.isfinite(out.asnumpy()).all()


@pytest.mark.parametrize("stage", [1, 2, 3, 4])
def test_the_stage_that_the_queries_read(stage, batch):
    model = randomize(tiny_model(f"model.query_stage={stage}"))
    assert model.mask_generator.project.weight.shape == (16, 8 * 2 ** (stage - 1))
    assert np.isfinite(eager(model, *batch[:3]).asnumpy()).all()


def test_parameter_names_are_a_contract():
    """Checkpoints name their arrays so. After a change that is meant: COUPALIGN_GOLDEN=1 pytest on this file."""
    lines = named_shapes(tiny_model())
    if os.environ.get("COUPALIGN_GOLDEN"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(GOLDEN_HEAD + "\n".join(lines) + "\n")
    changes = [c for c in difflib.unified_diff(golden_lines(), lines, "golden", "network", lineterm="", n=0)]
    assert not changes, "\n".join(changes[:20])


def test_the_guided_filter_gives_the_inputs_size(batch):
    assert eager(randomize(tiny_model("model.head.upsample=guided")), *batch[:3]).shape == (2, 1, 64, 64)


def test_tanh_is_exact():
    """The CPU's own kernel is off by up to 1e-4."""
    x = np.linspace(-12, 12, 20001).astype(np.float32)
    np.testing.assert_allclose(Tanh()(ms.Tensor(x)).asnumpy(), np.tanh(x.astype(np.float64)), rtol=0, atol=4e-6)


def alignment(**settings):
    """8 channels of pixels, 6 of words, 2 heads."""
    return WordPixelAlignment(WordPixelSettings(heads=(2, 2, 2, 2), **settings), stage=1, pixel_dim=8, word_dim=6)


def shut(wpa):
    """With gates whose W2 is 0."""
    for gate in (wpa.pixel_gate, wpa.word_gate):
        gate.out.weight.set_data(ms.ops.zeros_like(gate.out.weight))
    return wpa


def test_an_open_gate_lets_the_words_in(features):
    """W2 = 0 and b = 1: the gate is tanh(1) everywhere."""
    wpa = shut(alignment(gate_bias_init=1.0))
    v, l, word_mask = features  # noqa: E741
    w = weights(wpa)
    out = run_wpa(wpa, v, l, word_mask)
    for i in range(2):
        expected = wpa_reference(w, v[i], l[i], word_mask[i], 2)[0]
        assert_near(out[0][i], expected)
    assert np.abs(out[0] - v).max() > 0.1


def test_the_seed_decides_the_weights():
    first, again, other = (weights(tiny_model(seed=s)) for s in (1, 1, 2))
    assert all((first[k] == again[k]).all() for k in first)
    assert any((first[k] != other[k]).any() for k in first)


def wpa_reference(w, v, l, word_mask, heads):  # noqa: E741
    """One sample: v (P, C), l (T, D) -> fused v, fused l, attention over words (h, P, T)."""
    pixels, words = norm(w, "pixel_norm", v), norm(w, "word_norm", l)
    q, k = linear(w, "pixel_query", pixels), linear(w, "word_key", words)
    from_words, from_pixels = linear(w, "word_value", words), linear(w, "pixel_value", pixels)
    width = q.shape[1] // heads
    to_v, to_l, attention = np.zeros_like(q), np.zeros((len(l), q.shape[1])), []
    for part in (slice(h * width, (h + 1) * width) for h in range(heads)):
        affinity = q[:, part] @ k[:, part].T / np.sqrt(width)
        over_words = softmax(np.where(word_mask > 0, affinity, -np.inf), 1)
        to_v[:, part] = over_words @ from_words[:, part]
        to_l[:, part] = softmax(affinity.T, 1) @ from_pixels[:, part]
        attention.append(over_words)
    to_v, to_l = linear(w, "pixel_out", to_v), linear(w, "word_out", to_l)

    def gate(name, x):
        return np.tanh(linear(w, f"{name}.out", relu(linear(w, f"{name}.hidden", x))))

    return v + gate("pixel_gate", to_v) * to_v, l + gate("word_gate", to_l) * to_l, np.stack(attention)


@pytest.fixture(scope="module")
def features():
    random = np.random.default_rng(0)
    word_mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], np.int32)
    v, l = (random.normal(size=s).astype(np.float32) for s in ((2, 12, 8), (2, 5, 6)))  # noqa: E741
    return v, l, word_mask


def run_wpa(wpa, v, l, word_mask):  # noqa: E741
    bias = padding_bias(ms.Tensor(word_mask), ms.float32)
    fused, words, output, attention = (x.asnumpy() for x in wpa(ms.Tensor(v), ms.Tensor(l), bias))
    np.testing.assert_array_equal(output, fused)
    return [fused, words, attention]


def test_word_pixel_alignment_equals_its_formulas(features):
    wpa = randomize(alignment(), scale=0.5)
    out = run_wpa(wpa, *features)
    for i in range(2):
        for actual, expected in zip(out, wpa_reference(weights(wpa), *(f[i] for f in features), 2), strict=True):
            assert_near(actual[i], expected)
    assert np.abs(out[0] - features[0]).max() > 0.1 and np.abs(out[1] - features[1]).max() > 0.1


def test_zero_gates_leave_the_encoders_as_they_are(features):
    out = run_wpa(shut(alignment()), *features)
    np.testing.assert_array_equal(out[0], features[0])
    np.testing.assert_array_equal(out[1], features[1])
    assert np.abs(run_wpa(alignment(), *features)[0] - features[0]).max() > 0


def test_sentence_mask_alignment_equals_its_formulas():
    sma = randomize(SentenceMaskAlignment(8, 6), scale=0.7)
    random = np.random.default_rng(1)
    y, q, sentence = (random.normal(size=s).astype(np.float32) * 2 for s in ((2, 9, 8), (2, 5, 8), (2, 6)))
    out = [x.asnumpy() for x in sma(*map(ms.Tensor, (y, q, sentence)))]
    w = weights(sma)
    for i in range(2):
        chosen = softmax(linear(w, "mask_key", q[i]) @ linear(w, "sentence_query", sentence[i]) / np.sqrt(8))
        proposals = y[i] @ q[i].T / np.sqrt(8)
        aligned = softmax(proposals, 1) @ (chosen[:, None] * q[i])
        for actual, expected in zip(out, (aligned, proposals, chosen), strict=True):
            assert_near(actual[i], expected)
    assert chosen.max() > 0.4  # the weights tell the masks apart


def resize_reference(x, rows, cols):
    """(C, h, w) -> (C, rows, cols): bilinear with half-pixel centres, edges repeated."""
    for axis, count in ((1, rows), (2, cols)):
        length = x.shape[axis]
        at = np.clip((np.arange(count) + 0.5) * length / count - 0.5, 0, length - 1)
        low = np.floor(at).astype(int)
        share = (at - low).reshape([-1 if a == axis else 1 for a in range(3)])
        x = np.take(x, low, axis) * (1 - share) + np.take(x, np.minimum(low + 1, length - 1), axis) * share
    return x


def conv_norm_relu_reference(w, name, x, groups):
    """3×3 convolution with zero padding, group norm, ReLU: (Cin, H, W) -> (Cout, H, W)."""
    kernel, (_, rows, cols) = w[f"{name}.conv.weight"], x.shape
    padded, y = np.pad(x, ((0, 0), (1, 1), (1, 1))), 0
    for i in range(3):
        for j in range(3):
            y = y + np.tensordot(kernel[:, :, i, j], padded[:, i:i + rows, j:j + cols], 1)
    parts = y.reshape(groups, -1)
    y = ((parts - parts.mean(1, keepdims=True)) / np.sqrt(parts.var(1, keepdims=True) + 1e-5)).reshape(y.shape)
    return relu(y * w[f"{name}.norm.gamma"][:, None, None] + w[f"{name}.norm.beta"][:, None, None])


def test_pixel_decoder_equals_the_reference():
    """Top-down over an odd pyramid: 12×20, 6×10, 3×5 and 2×3."""
    sizes, channels = [(12, 20), (6, 10), (3, 5), (2, 3)], [3, 4, 5, 6]
    decoder = randomize(PixelDecoder(TopDownSettings(dim=16), channels=channels, sizes=sizes))
    random = np.random.default_rng(2)
    stages = [random.normal(size=(2, h * w, c)).astype(np.float32) for (h, w), c in zip(sizes, channels, strict=True)]
    out = decoder(tuple(map(ms.Tensor, stages))).asnumpy()
    w = weights(decoder)
    for i in range(2):
        maps = [stage[i].T.reshape(-1, *size) for stage, size in zip(stages, sizes, strict=True)]
        y = maps[3]
        for stage in (2, 1, 0):
            y = np.concatenate([resize_reference(y, *sizes[stage]), maps[stage]])
            y = conv_norm_relu_reference(w, f"fuse.{stage}.0", y, 2)
            y = conv_norm_relu_reference(w, f"fuse.{stage}.1", y, 2)
        assert_near(out[i], y)


def test_mask_generator():
    """The memory's order does not matter once its positions move along; without them it would not at all."""
    generator = randomize(MaskGenerator(6, (3, 4), 8, 5, 2, 2, 12), scale=0.4)
    random = np.random.default_rng(3)
    features = random.normal(size=(1, 12, 6)).astype(np.float32)
    out = generator(ms.Tensor(features)).asnumpy()
    assert out.shape == (1, 5, 8) and np.abs(out[0, 0] - out[0, 1]).max() > 0.01
    order = random.permutation(12)
    moved = generator(ms.Tensor(features[:, order])).asnumpy()
    assert np.abs(moved - out).max() > 1e-3
    same = MaskGenerator(6, (3, 4), 8, 5, 2, 2, 12)
    ms.load_param_into_net(same, generator.parameters_dict(), strict_load=True)
    same.positions = ms.Tensor(same.positions.asnumpy()[:, order])
    np.testing.assert_allclose(same(ms.Tensor(features[:, order])).asnumpy(), out, rtol=1e-4, atol=1e-5)
