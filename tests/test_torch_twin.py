"""The whole network against a twin in plain PyTorch (tests/torch_twin): `pip install -r requirements-parity.txt`.

Both get the same random weights and the same batch; compared are every intermediate, all losses and the gradient of
every parameter. A difference is the largest one over the largest value of the tensor.
"""

import re

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs requirements-parity.txt")

from tiny_network import TINY, VOCABULARY, pynative, tiny_batch
from torch_twin import ours, theirs

from mindspore_coupalign.config import config_from_dict, config_to_dict, with_overrides

FEATURES, LOSSES, GRADIENTS = 1e-4, 1e-5, 1e-3
# All losses, at weights that tell them apart; every background pixel counts, so that nothing is drawn
ALL = ("loss.negatives=100000", "loss.bce=0.7", "loss.dice=0.6", "loss.contrast=0.3", "loss.stages=0.4")
PICKED = (*ALL, "loss.proposals=0.5")
NARROW = ("model.image.depths=[2,2,2,2]",)
CASES = {  # 128 pixels: 32, 16, 8 and 4 cells in windows of 4; 160: 40, 20, 10 and 5, the last two padded
    "no_padding": ("data.image_size=128", *NARROW, *PICKED),
    "padded_windows": ("data.image_size=160", *NARROW, *PICKED),
    "map_below_a_window": ("data.image_size=64", *NARROW, *PICKED),  # 16, 8, 4 and 2 cells
    "aligned_at_2_and_4": ("data.image_size=96", "model.wpa_stages=[4,2]", "model.text.groups=[1,0,2,1]", *NARROW,
                           "model.query_stage=3", "model.query_layers=2", "model.upsample=subpixel", *PICKED),
    "no_sentence_mask": ("data.image_size=64", "model.sentence_mask=false", "model.wpa_stages=[]", *NARROW, *ALL),
    "lavt": ("data.image_size=128", "model.name=lavt", "model.text.groups=[1,0,0,1]", *NARROW, *ALL),
    "lavt_padded_windows": ("data.image_size=160", "model.name=lavt", *NARROW, *ALL),
}


def wide_batch(config, vocabulary: int, batch: int = 2) -> tuple:
    """Sample 0 has a short sentence, the last one fills ``max_tokens``."""
    size, tokens = config.data.image_size, config.data.max_tokens
    image, _, _, mask = tiny_batch(batch, size, tokens)
    ids = np.random.default_rng(1).integers(1, vocabulary, (batch, tokens)).astype(np.int32)
    lengths = np.linspace(tokens * 5 // 8, tokens, batch).astype(int)[:, None]
    word_mask = (np.arange(tokens) < lengths).astype(np.int32)
    return image, ids * word_mask, word_mask, mask


def assert_same(found: dict, expected: dict, tolerance: float):
    """By name: max |found - expected| <= tolerance · max |expected|."""
    assert found.keys() == expected.keys()
    wrong = {}
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        difference, largest = np.abs(found[name] - value).max(), np.abs(value).max()
        if not difference <= tolerance * largest:
            wrong[name] = f"{difference:.1e} of {largest:.1e}"
    assert not wrong, wrong


def without_gradient(name: str, config) -> bool:
    """What adds the same to all scores of a softmax, or to all positions before an instance norm."""
    if config.model.name == "lavt" and name.startswith("encoder.text.groups"):
        groups = config.model.text.groups
        last = max(i for i in range(4) if groups[i])
        return name.endswith(".k.bias") or name == f"encoder.text.groups.{last}.layers.{groups[last] - 1}.norm2.beta"
    return re.search(r"(\.k|alignment\.w_q|attend\.\d\.w_[qkvw])\.bias$", name) is not None


def assert_same_gradients(found: dict, expected: dict, config):
    """As ``assert_same``; a gradient that is 0 by its formula is rounding beside the largest of all."""
    assert found.keys() == expected.keys()
    none = {name for name in expected if without_gradient(name, config)}
    largest = max(np.abs(g).max() for g in expected.values())
    for name in none:
        assert max(np.abs(found[name]).max(), np.abs(expected[name]).max()) <= 1e-4 * largest, name
    assert_same({n: g for n, g in found.items() if n not in none},
                {n: g for n, g in expected.items() if n not in none}, GRADIENTS)


def compare(config, vocabulary: int, graph: bool):
    """``graph``: losses and gradients from the compiled network as well."""
    batch = wide_batch(config, vocabulary)
    objective, weights = ours.built(config, vocabulary)
    found, hooks = ours.intermediates(objective.model)
    sides, more_hooks = ours.sides(objective.model, config)
    with pynative():
        results = [ours.losses_and_gradients(objective, batch)]
    for hook in (*hooks, *more_hooks):
        hook.remove()
    arrays, losses, gradients = theirs.run(config_to_dict(config), vocabulary, weights, batch, sides=sides)
    assert_same(found, arrays, FEATURES)
    if graph:
        results.append(ours.losses_and_gradients(objective, batch))
    for our_losses, our_gradients in results:
        assert our_losses == pytest.approx(losses, rel=LOSSES)
        assert_same_gradients(our_gradients, gradients, config)


@pytest.mark.parametrize("case", CASES)
def test_reduced_network(case):
    config = with_overrides(config_from_dict(TINY, "tiny"), CASES[case], case)
    compare(config, VOCABULARY, graph=case == "padded_windows")
