"""Where the network draws random numbers: one site per place, with its own key and rate, independent of the others.

A site's count of draws, its numbers and the mask that it keeps are recorded inside the training step's own graph.
"""

from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, ops
from tiny_network import DROPPING, ENCODERS, VOCABULARY, pynative, tiny_batch, tiny_config

from mindspore_coupalign import build
from mindspore_coupalign.cli import train
from mindspore_coupalign.data.refshapes.dataset import make_shapes
from mindspore_coupalign.distributed.process import Runtime
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.models import rng
from mindspore_coupalign.models.rng import Dropout, DropPath, Noise, draw_keys, uniform
from mindspore_coupalign.training import setup

BATCH = 4
DROPS = (*DROPPING, f"train.batch_size={BATCH}")


def recorded_numbers(self, shape):
    """In Noise.construct's place."""
    numbers = self.draw(shape)
    ops.assign_add(self.draws, ops.ones_like(self.draws))
    ops.assign(self.numbers, numbers)
    return numbers


def recorded_mask(self, shape):
    """In Dropout._kept's place."""
    mask = self.keep(shape)
    ops.assign(self.mask, mask)
    return mask


@pytest.fixture
def recording(monkeypatch):
    """Noise and Dropout write down what they draw; ``recorders(step, batch)`` are the sites, by name of their cell."""
    monkeypatch.setattr(Noise, "draw", Noise.construct, raising=False)
    monkeypatch.setattr(Dropout, "keep", Dropout._kept, raising=False)

    def recorders(step, batch):
        shapes, sites = {}, {}
        cells = [(name, cell) for name, cell in step.objective.cells_and_names()]
        owners = {id(cell.noise): cell for _, cell in cells if isinstance(cell, Dropout) and cell.noise is not None}

        def shape_alone(self, shape):
            shapes[id(self)] = tuple(shape)
            return self.draw(shape)

        monkeypatch.setattr(Noise, "construct", shape_alone)
        with pynative():
            step.objective.set_train(True)(*map(ms.Tensor, batch))
        for name, cell in cells:
            if not isinstance(cell, Noise):
                continue
            owner, shape, number = owners.get(id(cell)), shapes.get(id(cell)), len(sites)
            assert shape is not None, f"{name} is never called"
            for target, what, start in ((cell, "draws", np.zeros(1)), (cell, "numbers", np.zeros(shape)),
                                        (owner, "mask", np.zeros(shape))):
                if target is not None:
                    value = Parameter(Tensor(start.astype(np.float32)), name=f"{what}_{number}", requires_grad=False)
                    object.__setattr__(target, what, value)  # as Noise holds its keys
            sites[name] = SimpleNamespace(cell=cell, owner=owner, shape=shape, rate=owner.rate if owner else 0.0)
        monkeypatch.setattr(Noise, "construct", recorded_numbers)
        monkeypatch.setattr(Dropout, "_kept", recorded_mask)
        return sites

    return recorders


def check_step(variant, recording, compiled: bool):
    """Sites of a network with every kind of drop after its compiled training step, or the step's forward pass alone."""
    ms.set_seed(0)
    config = tiny_config(*DROPS, *ENCODERS[variant])
    step = setup.build_train_step(build.build_model(config, VOCABULARY), config)
    batch, keys = tiny_batch(BATCH), draw_keys(step.keys.size, 3, 0, 17)
    sites = recording(step, batch)
    batch = [*map(ms.Tensor, batch)]
    if compiled:
        assert np.isfinite(step(*batch, ms.Tensor(1e-3, ms.float32), keys).asnumpy()).all()
    else:
        with pynative():
            ops.assign(step.keys, Tensor(keys))
            step.objective.set_train(True)(*batch)
    assert len(sites) == len(keys)
    for (name, site), key in zip(sites.items(), keys, strict=True):
        assert site.cell.draws.asnumpy() == 1, f"{name} answers several places with the same numbers"
        numbers = uniform(int(np.prod(site.shape)), key).reshape(site.shape)
        np.testing.assert_array_equal(site.cell.numbers.asnumpy(), numbers, err_msg=name)
        if site.owner is not None:
            kept = (numbers >= np.float32(site.rate)) / np.float32(1 - site.rate)
            np.testing.assert_allclose(site.owner.mask.asnumpy(), kept, rtol=1e-6, err_msg=name)
    return sites


def expected_rates(variant) -> list:
    """Of every place that draws: two per Swin block but the first, BERT's embeddings, three per BERT layer, and the
    contrast, which drops nothing."""
    blocks = [rate for rate in np.linspace(0, 0.3, 4)[1:] for _ in range(2)] if variant in ("swin", "lavt") else []
    return sorted([*blocks, *[0.2] * (1 + 2 * 3), 0.0])


@pytest.mark.parametrize(("variant", "compiled"), [
    ("swin", True), *((name, False) for name in ("resnet", "darknet", "lavt")),
    *(pytest.param(name, True, marks=pytest.mark.slow) for name in ("resnet", "darknet", "lavt"))])
def test_every_site_of_a_training_step_draws_once_and_its_own_numbers(variant, compiled, recording):
    sites = check_step(variant, recording, compiled)
    assert sorted(site.rate for site in sites.values()) == pytest.approx(expected_rates(variant))
    paths = [site for site in sites.values() if isinstance(site.owner, DropPath)]
    assert all(site.shape == (BATCH, 1, 1) for site in paths)
    check_independence(list(sites.values()))


def check_independence(sites: list, steps: int = 4000, most: int = 64):
    """Rates and correlations of the sites over many steps' keys; the step's graph was shown to draw ``uniform``."""
    drawn = [[uniform(min(most, int(np.prod(site.shape))), key) for site, key in zip(sites, keys, strict=True)]
             for keys in (draw_keys(len(sites), 3, 0, step) for step in range(steps))]
    first = np.array([[numbers[:BATCH] for numbers in step] for step in drawn])  # (steps, S, BATCH)
    for i, site in enumerate(sites):
        numbers = np.concatenate([step[i] for step in drawn])
        kept, bound = (numbers >= site.rate).mean(), 5 * np.sqrt(0.25 / len(numbers))
        assert abs(kept - (1 - site.rate)) < bound
    across = first.transpose(1, 0, 2).reshape(len(sites), -1)
    for values in (across, across > 0.2):
        found = np.corrcoef(values)[~np.eye(len(sites), dtype=bool)]
        assert np.abs(found).max() < 5 / np.sqrt(values.shape[1])
    along = np.corrcoef(first.transpose(1, 0, 2).reshape(-1, BATCH).T)[~np.eye(BATCH, dtype=bool)]
    assert np.abs(along).max() < 5 / np.sqrt(steps * len(sites))
    assert all(len(np.unique(draw_keys(len(sites), 3, 0, step))) == len(sites) for step in range(100))


def test_a_cell_that_serves_two_places_is_found(recording, monkeypatch):
    """What the test above is for."""
    from mindspore_coupalign.models.bert import BertLayer

    build_layer = BertLayer.__init__

    def shared(self, *arguments):
        build_layer(self, *arguments)
        self.dropout2 = self.dropout1

    monkeypatch.setattr(BertLayer, "__init__", shared)
    with pytest.raises(AssertionError, match="layers.0.dropout1.noise answers several places"):
        check_step("resnet", recording, compiled=False)


@pytest.mark.parametrize("apart", [1, 2, 5, 100])
def test_no_site_is_another_one_some_positions_further_on(apart):
    """The worst keys: their positions times the hash's step differ by ``apart`` steps."""
    count = 200_000
    for seed in range(4):
        key = int(draw_keys(1, seed)[0])
        other = np.array([(key + apart * rng._STEP) % 2**32], np.uint32).view(np.int32)[0]
        a, b = uniform(count, key)[apart:], uniform(count, other)[:-apart]
        for u, v in ((a, b), (a > 0.1, b > 0.1)):
            assert abs(np.corrcoef(u, v)[0, 1]) < 5 / np.sqrt(count)


def test_the_device_draws_what_numpy_draws():
    rng.check_device("CPU")
    cell, shape = Noise(), (2, 3, 50)
    for key in (0, 1, -1, 2**31 - 1, -2**31, 123456789):
        ops.assign(cell.keys, Tensor([key], ms.int32))
        expected = uniform(int(np.prod(shape)), key).reshape(shape)
        np.testing.assert_array_equal(cell(shape).asnumpy(), expected)


def test_a_device_whose_products_do_not_wrap_is_refused(monkeypatch, tmp_path):
    def saturates(self, shape):
        x = ops.arange(0, shape[0], 1).astype(ms.float32) * rng._STEP + self.keys[self.site].astype(ms.float32)
        x = ops.clamp(x, -2.0**31, 2.0**31 - 256).astype(ms.int32)
        return ops.bitwise_and(x, 0x7FFFFF).astype(ms.float32) * (1 / 2**23)

    monkeypatch.setattr(Noise, "construct", saturates)
    make_shapes(tmp_path / "data", 1, train=4, val=1, testA=1, testB=1)
    config = tiny_config(f"data.root={tmp_path / 'data'}", "data.dataset=refshapes", "data.split_by=shapes",
                         "data.max_tokens=16")
    runtime = Runtime("Ascend", 0, 1)
    for dry in (False, True):
        with pytest.raises(UserError, match="--device-target Ascend: .* random numbers differ from NumPy's") as caught:
            train.start(config, None, tmp_path / "run", runtime, dry)
        assert "\n" not in str(caught.value)
