"""Every row of the paper: its configuration says what the row says, and steps at reduced size."""

import re
from dataclasses import replace
from pathlib import Path

import mindspore as ms
import pytest
from paper_rows import ROWS, reduced
from tiny_network import VOCABULARY, pynative, tiny_batch

from mindspore_coupalign import build
from mindspore_coupalign.config import Config, load_config
from mindspore_coupalign.training import setup
from mindspore_coupalign.training.step import RESULTS

ROOT = Path(__file__).resolve().parents[2]
CROSS_ENTROPY = {"dice": 0.0, "contrast": 0.0}
LAVT = {"train": {"clip_norm": 0.0, "weight_decay_on": "lavt"}, "loss": CROSS_ENTROPY | {"class_weights": (0.9, 1.1)},
        "text": {"dropout": 0.0}}
FIRST = {"train": {"epochs": 50, "batch_size": 8, "lr": 1.5e-5, "schedule": "linear", "final_lr": 1e-5,
                   "lr_decay_epochs": 40, "lr_decay_unit": "epoch", "weight_decay_on": "all", "clip_norm": 0.0}}
RECIPES = {"paper/lavt_swin_b": LAVT, "paper/lavt_resnet_101": LAVT, "paper/first_author_coupalign_448": FIRST,
           "paper/first_author_lavt_448": FIRST | {"loss": CROSS_ENTROPY}}  # what tells them from LAVT's schedule
_STEPPED = {}  # reduced model -> whether it stepped: rows that differ in their data alone share one


def plain(config: Config) -> dict:
    """The fields by which rows may differ; ``method`` is the fusion's name, ``name`` the backbone's."""
    data, model = config.data, config.model
    found = {"dataset": data.dataset, "split_by": data.split_by, "mean": data.mean, "std": data.std,
             "method": model.fusion.name, "stages": model.fusion.stages}
    found |= {key: getattr(data, key) for key in ("image_size", "max_tokens", "sentence_field", "overlap")}
    swin = {"window": None, "drop_path": None}
    return found | swin | {key: value for key, value in vars(model.backbone).items()
                           if key in ("name", "embed_dim", "depths", "freeze_batch_norm", "negative_slope", *swin)}


def test_there_is_a_configuration_for_every_row():
    files = {str(path.relative_to(ROOT / "configs").with_suffix("")) for folder in ("paper", "wpa")
             for path in (ROOT / "configs" / folder).glob("*.yaml")} | {"refcoco_swin_b"}
    assert files == ROWS.keys() and len(files) == 17  # 14 of CoupAlign's, three of LAVT's
    listed = re.findall(r"configs/([\w/]+)\.yaml", (ROOT / "docs" / "paper.md").read_text())
    assert files <= set(listed)


@pytest.mark.parametrize("row", ROWS)
def test_a_row_differs_in_what_it_says_and_steps(row):
    config, base = (load_config(ROOT / "configs" / f"{name}.yaml") for name in (row, "refcoco_swin_b"))
    assert plain(config) == plain(base) | ROWS[row]
    other = RECIPES.get(row, {})
    assert (config.train, config.loss, config.eval, config.model.text) == (
        replace(base.train, **other.get("train", {})), replace(base.loss, **other.get("loss", {})), base.eval,
        replace(base.model.text, **other.get("text", {})))
    small = reduced(config)
    assert {key: plain(small)[key] for key in ("method", "name", "stages")} == {
        key: plain(config)[key] for key in ("method", "name", "stages")}
    if row.startswith("wpa/"):  # their stages are run in tests/models/test_model.py
        build.build_model(small, VOCABULARY)
    elif small.model not in _STEPPED:
        _STEPPED[small.model] = False
        with pynative():
            step_once(small)
        _STEPPED[small.model] = True
    assert row.startswith("wpa/") or _STEPPED[small.model]


def step_once(config: Config):
    ms.set_seed(0)
    model = build.build_model(config, VOCABULARY)
    build.load_pretrained(model, config)
    step = setup.build_train_step(model, config)
    before = {p.name: p.asnumpy().copy() for p in model.trainable_params()}
    values = step(*map(ms.Tensor, tiny_batch(2)), ms.Tensor(1e-3, ms.float32)).asnumpy()
    results = dict(zip(RESULTS, values, strict=True))
    assert results["finite"] == 1 and results["loss"] > 0 and results["grad_norm"] > 0
    moved = [name for name, value in before.items() if (model.parameters_dict()[name].asnumpy() != value).any()]
    assert len(moved) > 0.9 * len(before)
