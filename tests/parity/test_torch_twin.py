"""The whole network against a twin in plain PyTorch (torch_twin beside it): `pip install -r requirements-parity.txt`.

Both get the same random weights and the same batch; compared are every intermediate, all losses and the gradient of
every parameter. A difference is the largest one over the largest value of the tensor.
"""

import json
import os
import re
import subprocess
import sys

import mindspore as ms
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs requirements-parity.txt")

from tiny_network import LAVT, TINY, VOCABULARY, pynative
from torch_twin import macs, ours, theirs
from torch_twin.inputs import random_batch

from mindspore_coupalign import build
from mindspore_coupalign.config import config_from_dict, config_to_dict, load_config, with_overrides
from mindspore_coupalign.models import macs as our_macs

FEATURES, LOSSES, GRADIENTS = 1e-4, 1e-5, 1e-3
# All losses, at weights that tell them apart; every background pixel counts, so that nothing is drawn
ALL = ("loss.negatives=100000", "loss.bce=0.7", "loss.dice=0.6", "loss.contrast=0.3", "loss.deep_supervision=0.4",
       "model.stage_heads=true")
PICKED = (*ALL, "loss.proposal_mask=0.5", "model.proposal_head=true")
NARROW = ("model.backbone.depths=[2,2,2,2]",)
CASES = {  # 128 pixels: 32, 16, 8 and 4 cells in windows of 4; 160: 40, 20, 10 and 5, the last two padded
    "no_padding": ("data.image_size=128", *NARROW, *PICKED),
    "padded_windows": ("data.image_size=160", *NARROW, *PICKED),
    "map_below_a_window": ("data.image_size=64", *NARROW, *PICKED),  # 16, 8, 4 and 2 cells
    "aligned_at_2_and_4": ("data.image_size=96", "model.fusion.stages=[4,2]", "model.text.groups=[1,0,2,1]", *NARROW,
                           "model.query_stage=3", "model.query_layers=2",
                           "loss.class_weights=[0.9,1.3]", *PICKED),
    "no_sentence_mask": ("data.image_size=64", "model.sentence_mask=false", "model.fusion.stages=[]", *NARROW, *ALL),
    "no_target": ("data.image_size=64", "model.no_target=true", "loss.no_target=0.4", *NARROW, *ALL),
    "lavt": ("data.image_size=128", *LAVT, "model.text.groups=[1,0,0,1]", *NARROW, *ALL),
    "lavt_padded_windows": ("data.image_size=160", *LAVT, *NARROW, *ALL),
    "refshapes": ("loss.negatives=100000",),  # the shipped configuration at its own size
}
GRAPH = "padded_windows"  # compiled as well, which takes most of a minute
RARE = ("map_below_a_window", "no_sentence_mask")


def assert_same(found: dict, expected: dict, tolerance: float, but=(), floor=0.0):
    """By name: max |found - expected| <= tolerance · max |expected|, or of ``floor`` where that is more."""
    assert found.keys() == expected.keys()
    wrong = {}
    for name in (n for n in expected if n not in but):  # in the order of computation
        value, other = expected[name], found[name]
        assert other.shape == value.shape, name
        difference, largest = np.abs(other - value).max(), np.abs(value).max()
        if not difference <= tolerance * max(largest, floor):
            wrong[name] = f"{difference:.1e} of {largest:.1e}"
    assert not wrong, wrong


_ADDS_TO_ALL = {
    "word_pixel": r"(\.k|alignment\.mask_key)\.bias$",
    "pixel_word": r"(\.k|fusion\.\d\.(pixel_query|word_key|word_value|gathered))\.bias$"}


def without_gradient(name: str, config) -> bool:
    """What adds the same to all scores of a softmax, or to all positions before an instance norm."""
    if config.model.fusion.name == "pixel_word" and name.startswith("encoder.text.groups"):
        groups = config.model.text.groups
        last = max(i for i in range(4) if groups[i])
        return name.endswith(".k.bias") or name == f"encoder.text.groups.{last}.layers.{groups[last] - 1}.norm2.beta"
    return re.search(_ADDS_TO_ALL[config.model.fusion.name], name) is not None


def assert_same_gradients(found: dict, expected: dict, config):
    """As ``assert_same``; what is 0 by its formula has to be small beside the largest of all.

    A tensor whose whole gradient is below a millionth of the largest is measured by that: word-pixel alignment's word
    keys get such a one, a rest of terms that cancel.
    """
    assert found.keys() == expected.keys()
    none = {name for name in expected if without_gradient(name, config)}
    largest = max(np.abs(expected[name]).max() for name in expected)
    for name in none:
        assert max(np.abs(found[name]).max(), np.abs(expected[name]).max()) <= 1e-4 * largest, name
    assert_same(found, expected, GRADIENTS, none, 1e-6 * largest)


def near(losses: dict):
    """A Dice near 0 is 1 minus nearly 1: not better than the rounding of 1."""
    return pytest.approx(losses, rel=LOSSES, abs=1e-6)


@pytest.mark.parametrize("case", [pytest.param(case, marks=pytest.mark.slow if case in RARE else ()) for case in CASES])
def test_reduced_network(case, request):
    if case == "refshapes":
        config = load_config(request.config.rootpath / "configs/refshapes_tiny.yaml", CASES[case])
    else:
        config = with_overrides(config_from_dict(TINY, "tiny"), CASES[case], case)
    values = config_to_dict(config)
    batch = random_batch(values, VOCABULARY, batch=2)
    if config.model.no_target:
        batch[3][1] = 0  # the second sentence means nothing
    objective, weights = ours.built(config, VOCABULARY)
    found, hooks = ours.intermediates(objective.model)
    sides, more_hooks = ours.sides(objective.model, config)
    with pynative():
        results = [ours.losses_and_gradients(objective, batch)]
    for hook in (*hooks, *more_hooks):
        hook.remove()
    if case == GRAPH:
        results.append(ours.losses_and_gradients(objective, batch))
    expected, losses, gradients = theirs.run(values, VOCABULARY, weights, batch, sides=sides)
    assert_same(found, expected, FEATURES)
    for our_losses, our_gradients in results:
        assert our_losses == near(losses)
        assert_same_gradients(our_gradients, gradients, config)


@pytest.mark.parametrize("case", ["no_padding", "padded_windows", "lavt"])
def test_macs(case):
    """PyTorch counts what `describe` says, which has the affinity of pixels and words twice, for each direction."""
    options = [o for o in CASES[case] if not o.startswith(("loss.", "model.stage_heads", "model.proposal_head"))]
    config = with_overrides(config_from_dict(TINY, "tiny"), options, case)
    model = build.build_model(config, VOCABULARY)
    expected = macs.count(config_to_dict(config), VOCABULARY)
    if case != "lavt":
        sizes, channels = model.encoder.backbone.sizes, model.encoder.backbone.channels
        expected += sum(config.data.max_tokens * h * w * c for (h, w), c in zip(sizes, channels, strict=True))
    image, ids, word_mask = (ms.Tensor(array) for array in random_batch(config_to_dict(config), VOCABULARY, 1)[:3])
    assert sum(our_macs.count(model.set_train(False), image, ids, word_mask).values()) == expected


FULL = {  # 480: windows of 12 pad the last two stages, and the sentence has 12 of 20 tokens; 384: no padding at all
    "coupalign_480": ("configs/refcoco_swin_b.yaml", 1, "loss.deep_supervision=0.4", "model.stage_heads=true",
                      "loss.proposal_mask=0.5", "model.proposal_head=true"),
    "coupalign_384": ("configs/refcoco_swin_b.yaml", 1, "data.image_size=384", "data.max_tokens=12"),
    "lavt_480": ("configs/paper/lavt_swin_b.yaml", 1,),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", FULL)
def test_full_size(case, tmp_path, request):
    """One side after the other, each in its own process: about 16 GiB, and five minutes on two cores."""
    path, samples, *overrides = FULL[case]
    root = request.config.rootpath
    config = load_config(root / path, overrides)
    values = config_to_dict(config)
    batch = random_batch(values, 30522, samples, background=16)  # 256 cells: as many as the contrast draws
    (tmp_path / "case.json").write_text(json.dumps({"config": values, "vocabulary": 30522}))
    np.savez(tmp_path / "batch.npz", **dict(zip(("image", "ids", "word_mask", "mask"), batch, strict=True)))
    for side in ("ours", "theirs"):
        places = (root, root / "tests/parity", root / "tests/helpers")
        done = subprocess.run([sys.executable, "-m", "torch_twin", side, str(tmp_path)], capture_output=True, text=True,
                              cwd=root, env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places))})
        assert done.returncode == 0, f"{side} {done.returncode}: {done.stderr[-2000:]}"
    features, gradients = ([np.load(tmp_path / side / f"{kind}.npz") for side in ("ours", "theirs")]
                           for kind in ("features", "gradients"))
    losses = [json.loads((tmp_path / side / "losses.json").read_text()) for side in ("ours", "theirs")]
    assert_same(*features, FEATURES)
    assert losses[0] == near(losses[1])
    assert_same_gradients(*gradients, config)
