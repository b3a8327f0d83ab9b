"""The training step's guards and settings: bad numbers, loss scaling, accumulation, learning rates, freezing, noise."""

from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from mindspore import ops
from numpy_layers import randomize
from tiny_network import VOCABULARY, pynative, tiny_batch, tiny_config

from mindspore_coupalign import build
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.models.precision import FLOAT32, choose_precision, restored_precision
from mindspore_coupalign.models.rng import Dropout, DropPath, Noise, bind, draw_keys
from mindspore_coupalign.training import setup
from mindspore_coupalign.training.objective import LOSSES
from mindspore_coupalign.training.step import RESULTS, StepResults

QUICK = ("model.backbone.depths=[1,1,1,1]", "model.text.groups=[1,0,0,0]", "model.fusion.stages=[1]",
         "loss.negatives=300",
         "model.head.upsample=guided", "loss.proposal_mask=0.5", "model.proposal_head=true")
BATCH_NORM = ("model.backbone.name=darknet", "model.backbone.freeze_batch_norm=false", "model.sentence_mask=false",
              "loss.proposal_mask=0", "model.proposal_head=false", "loss.contrast=0")


def new_step(*overrides, batch=4):
    ms.set_seed(0)
    config = tiny_config(*QUICK, f"train.batch_size={batch}", *overrides)
    model = randomize(build.build_model(config, VOCABULARY), scale=0.15)
    return setup.build_train_step(model, config)


def take(step, batch, lr=1e-3, last=True, keys=None):
    results = step(*map(ms.Tensor, batch), ms.Tensor(lr, ms.float32), keys, last=last).asnumpy()
    return dict(zip(RESULTS, results.tolist(), strict=True))


def everything(step) -> dict:
    """Every array that a step may change: weights, statistics, moments, averages, counters."""
    arrays = {p.name: p.asnumpy().copy() for p in step.objective.get_parameters()}
    for section, state in step.states().items():
        arrays |= {f"{section}.{name}": a.copy() for name, a in state.items()}
    return arrays | {"updates": np.array(step.counters()["updates"])}


def same(a: dict, b: dict) -> bool:
    assert a.keys() == b.keys()
    return all(np.array_equal(a[name], b[name]) for name in a)


def test_a_bad_batch_changes_nothing_and_the_next_one_does():
    step = new_step(*BATCH_NORM, "train.ema=0.9", "train.muon_lr_mult=0.5", "train.clip_norm=1")
    good = tiny_batch(4)
    bad = (np.where(np.arange(4)[:, None, None, None] == 2, np.nan, good[0]).astype(np.float32), *good[1:])
    assert take(step, good)["finite"] == 1
    before = everything(step)
    results = take(step, bad)
    assert results["finite"] == 0 and not np.isfinite(results["loss"])
    assert same(everything(step), before)
    assert take(step, good)["finite"] == 1
    after = everything(step)
    changed = {name for name in after if not np.array_equal(after[name], before[name])}
    assert {"updates", "head.conv.weight", "ema.head.conv.weight", "adam_m.head.conv.weight"} <= changed
    statistics = [name for name in changed if name.endswith("moving_mean") and not name.startswith("ema.")]
    assert statistics
    for name in statistics:  # averaged as the weights are: those of one without the other fit no network
        expected = 0.9 * before[f"ema.{name}"] + 0.1 * after[name]
        np.testing.assert_allclose(after[f"ema.{name}"], expected, rtol=1e-4, atol=1e-7)
    assert all(np.isfinite(array).all() for array in after.values())


@pytest.fixture(scope="module")
def plain():
    """The step with averages and nothing else; what it did the first time, and the arrays after it."""
    step = new_step("train.ema=0.9")
    return SimpleNamespace(results=take(step, tiny_batch(4)), after=everything(step), step=step,
                           names=[p.name for p in step.optimizer.params])


@pytest.fixture(scope="module")
def half():
    return new_step("train.amp=O2", "train.ema=0.9")


@pytest.mark.parametrize("level", [pytest.param("O1", marks=pytest.mark.slow), "O2",
                                   pytest.param("O3", marks=pytest.mark.slow)])
def test_half_precision_is_near_float32(level, plain, half):
    """Losses and gradients; and it is half precision: they do differ."""
    rounded = half if level == "O2" else new_step(f"train.amp={level}")
    first, second = plain.results, take(rounded, tiny_batch(4))
    assert second["finite"] == 1 and second["scale"] == setup.SCALE_START
    for key in ("loss", "bce", "dice", "contrast", "proposal_mask_bce", "proposal_mask_dice", "grad_norm"):
        assert second[key] == pytest.approx(first[key], rel=0.03), key
    assert second["loss"] != first["loss"]
    a, b = (np.concatenate([arrays[f"adam_m.{name}"].reshape(-1) for name in plain.names])
            for arrays in (plain.after, everything(rounded)))
    assert np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b) > 0.995
    assert all(p.dtype == ms.float32 for p in rounded.objective.get_parameters())


def test_an_overflow_halves_the_scale_and_skips(half):
    """fp16 holds nothing above 65504: with this scale the gradients of the first steps overflow."""
    batch, start = tiny_batch(4), 2.0**40
    half.scaler.scale_value.set_data(ms.Tensor(start, ms.float32))
    before = everything(half)
    results = take(half, batch)
    assert results["finite"] == 0 and results["scale"] == start and np.isfinite(results["loss"])
    assert same(everything(half), before) and half.counters()["scale"] == start / 2
    scales = []
    for _ in range(40):
        results = take(half, batch)
        scales.append(results["scale"])
        if results["finite"]:
            break
    assert results["finite"] == 1 and scales == [start / 2 ** (i + 1) for i in range(len(scales))]
    assert half.counters()["updates"] == before["updates"] + 1 and half.counters()["scale"] == scales[-1]
    assert not same(everything(half), before)


def test_a_state_without_a_scale_goes_on_in_half_precision(half):
    """A run of a CPU, in float32, resumed on a device where auto is O2."""
    counters = half.counters()
    half.restore(lambda section: half.states()[section], {"updates": 3}, "test")
    assert half.counters() == counters | {"updates": 3}
    saved = {"updates": 4, "scale": 8.0, "scale_counter": 2}
    half.restore(lambda section: half.states()[section], saved, "test")
    assert half.counters() == saved


def test_levels_and_targets():
    assert choose_precision("auto", "float16", "CPU") == choose_precision("auto", "bfloat16", "CPU") == FLOAT32
    assert choose_precision("auto", "bfloat16", "Ascend") == ("O1", "bfloat16")
    assert choose_precision("auto", "float16", "GPU") == ("O1", "float16")
    assert choose_precision("O0", "bfloat16", "GPU") == FLOAT32 and choose_precision("O3", "float16", "CPU").amp == "O3"
    for level, target in (("O2", "CPU"), ("O1", "GPU"), ("auto", "GPU")):
        with pytest.raises(UserError, match=f"train.amp_dtype=bfloat16.*no bfloat16 kernels for the {target}.*float16"):
            choose_precision(level, "bfloat16", target)


def test_a_checkpoint_is_restored_in_the_precision_of_its_training(capsys):
    def restored(amp, dtype, asked, target):
        config = tiny_config(f"train.amp={amp}", f"train.amp_dtype={dtype}")
        return restored_precision(SimpleNamespace(path="best.safetensors", config=config), asked, target)

    assert restored("auto", "float16", None, "CPU") == FLOAT32
    assert restored("auto", "float16", None, "GPU") == ("O1", "float16")
    assert restored("O2", "float16", None, "CPU") == ("O2", "float16")
    assert restored("O2", "float16", "O0", "Ascend") == FLOAT32
    assert restored("O2", "bfloat16", "auto", "Ascend") == ("O1", "bfloat16")
    assert capsys.readouterr().err == ""
    assert restored("O2", "bfloat16", None, "GPU") == FLOAT32
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "best.safetensors: trained in bfloat16" in error and "in float32" in error
    with pytest.raises(UserError, match="--amp O1: best.safetensors was trained in bfloat16.*use --amp O0"):
        restored("O2", "bfloat16", "O1", "CPU")


def test_accumulated_micro_batches_equal_the_whole_batch(plain):
    """And a bad micro-batch spoils its own step only."""
    whole, parts = plain.step, new_step("train.accumulate=2", "train.ema=0.9")
    for seed in range(3):
        batch = tiny_batch(4, seed=seed)
        expected = take(whole, batch) if seed else plain.results
        first = take(parts, tuple(x[:2] for x in batch), last=False)
        held = everything(parts)
        second = take(parts, tuple(x[2:] for x in batch))
        assert not same(everything(parts), held)
        assert (first["loss"] + second["loss"]) / 2 == pytest.approx(expected["loss"], rel=1e-5)
        assert second["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
        if seed == 1:  # after the third step a few values have grown apart
            found = everything(parts)
            for name, array in everything(whole).items():
                np.testing.assert_allclose(found[name], array, rtol=1e-3, atol=2e-5, err_msg=name)
    a, b = ({name: np.asarray(array, np.float64).ravel() for name, array in everything(step).items()}
            for step in (whole, parts))
    assert a.keys() == b.keys()
    for name in whole.states()["adam_m"]:  # the gradients
        far = np.abs(a[f"adam_m.{name}"] - b[f"adam_m.{name}"]).max()
        assert far <= 1e-2 * np.abs(a[f"adam_m.{name}"]).max() + 1e-7, name
    # Adam makes a gradient that is nearly rounding as large as any other: a few values may differ, by moves
    far = np.abs(np.concatenate(list(a.values())) - np.concatenate(list(b.values())))
    assert far.max() < 3e-3 and (far > 2e-5).mean() < 1e-3
    good = tuple(x[:2] for x in tiny_batch(4))
    bad = (np.full_like(good[0], np.nan), *good[1:])
    before = everything(parts)
    take(parts, bad, last=False)
    assert take(parts, good)["finite"] == 0 and same(everything(parts), before)
    take(parts, good, last=False)
    assert take(parts, good)["finite"] == 1 and not same(everything(parts), before)


def test_rates_of_the_parts_and_freezing():
    """Adam's first move is as long as the learning rate: a part with a tenth of it moves a tenth, frozen ones stay."""
    frozen = ("encoder.text.embed", "encoder.backbone.stages.0")
    plain = new_step("train.ema=0.9")
    rated = new_step("train.backbone_lr_mult=0.1", "train.text_lr_mult=0.5", "train.head_lr_mult=2", "train.ema=0.9",
                     f"train.freeze=[{', '.join(frozen)}]")
    start = everything(plain)
    with pynative():
        take(plain, tiny_batch(4))
        take(rated, tiny_batch(4))
    usual, other = everything(plain), everything(rated)
    moved = [p.name for p in plain.optimizer.params]
    still = [name for name in moved if name.startswith(frozen)]
    assert all(any(name.startswith(part) for name in still) for part in frozen)
    for name in still:
        np.testing.assert_array_equal(other[name], start[name])
        assert f"ema.{name}" not in other and f"adam_m.{name}" not in other
    factors = {"encoder.backbone.": 0.1, "encoder.text.": 0.5, "pixel_decoder.": 2, "encoder.fusion.": 2}
    for prefix, factor in factors.items():
        names = [name for name in moved if name.startswith(prefix) and name not in still]
        far = max(np.abs(usual[name] - start[name]).max() for name in names)
        assert far > 5e-4
        for name in names:
            np.testing.assert_allclose(other[name] - start[name], factor * (usual[name] - start[name]), atol=2e-6)


def test_results_have_the_names_of_the_losses():
    assert RESULTS[:len(LOSSES)] == LOSSES
    first, second = np.arange(len(RESULTS)), np.arange(len(RESULTS)) + 2
    results = StepResults.of([first, second])  # of two micro-batches: losses are means, the rest is the last one's
    assert results.loss == 1 and results.no_target == 9 and results.grad_norm == 11 and results.clock == 15


def test_what_cannot_be_frozen():
    with pytest.raises(UserError, match="train.freeze: no parameter's name starts with 'encoder.txt'"):
        new_step("train.freeze=[encoder.txt]")
    with pytest.raises(UserError, match="leaves nothing to train"):
        new_step("train.freeze=['']")


def test_noise_is_uniform_and_follows_its_key():
    class Two(ms.nn.Cell):
        def __init__(self):
            super().__init__()
            self.a, self.b = Noise(), Noise()

        def construct(self, x):
            return self.a(x.shape), self.b(x.shape)

    x = ms.Tensor(np.zeros((100, 300), np.float32))
    assert len(Two()(x)) == 2  # also where nothing has given it keys
    cell = Two()
    keys = bind(cell)
    assert keys.shape == (2,) and [p.name for p in cell.get_parameters()] == []

    def draw(*seeds):
        ops.assign(keys, ms.Tensor(draw_keys(2, *seeds)))
        return [u.asnumpy().reshape(-1) for u in cell(x)]

    a, b = draw(0, 1)
    other, again = draw(0, 2)[0], draw(0, 1)[0]
    np.testing.assert_array_equal(a, again)
    for u, v in ((a, b), (a, other), (a[:-1], a[1:])):
        assert abs(np.corrcoef(u, v)[0, 1]) < 0.02
    for u in (a, b, other):
        assert u.min() >= 0 and u.max() < 1
        counts = np.histogram(u, 20, (0, 1))[0]
        assert ((counts - 1500) ** 2 / 1500).sum() < 50  # chi-square of 19 degrees: 50 once in 7,000 draws


def test_dropout_keeps_the_mean_and_drop_path_whole_samples():
    x = ms.Tensor(np.ones((64, 10, 50), np.float32))
    dropout, path = Dropout(0.3).set_train(), DropPath(0.3).set_train()
    y = dropout(x).asnumpy()
    assert set(np.round(np.unique(y), 4)) == {0, np.float32(round(1 / 0.7, 4))} and abs(y.mean() - 1) < 0.02
    rows = path(x).asnumpy().reshape(64, -1)
    assert (rows == rows[:, :1]).all() and 0.1 < (rows[:, 0] == 0).mean() < 0.5
    assert (dropout.set_train(False)(x).asnumpy() == 1).all() and (path.set_train(False)(x).asnumpy() == 1).all()
