"""The smallest CoupAlign that has every part, for tests: 64 × 64 pixels, 8 word pieces, about 60,000 parameters."""

import contextlib
import os
from unittest import mock

import mindspore as ms
import numpy as np

from mindspore_coupalign import build
from mindspore_coupalign.config import Config, config_from_dict, with_overrides

ms.set_device("CPU")
ms.set_context(mode=ms.GRAPH_MODE)

VOCABULARY = 30
TINY = {
    "data": {"image_size": 64, "mean": [0.5] * 3, "std": [0.25] * 3, "tokenizer": "refshapes", "max_tokens": 8,
             "workers": 2},
    "model": {
        "backbone": {"embed_dim": 8, "depths": [2, 1, 1, 1], "heads": [1, 2, 2, 4], "window": 4, "mlp_ratio": 2.0,
                  "drop_path": 0.0},
        "text": {"hidden": 16, "heads": 2, "ffn": 32, "groups": [1, 1, 1, 1], "max_positions": 16, "dropout": 0.0},
        "fusion": {"heads": [1, 2, 2, 4]}, "decoder": {"dim": 16}, "queries": 6, "query_layers": 1, "query_heads": 2,
        "query_ffn": 16},
    "loss": {"negatives": 40},
    "train": {"batch_size": 4, "lr": 1e-3, "log_every": 1},
    "eval": {"batch_size": 4},
}

LAVT = ("model.fusion.name=pixel_word", "model.fusion.stages=[1,2,3,4]", "model.sentence_mask=false")
# Dropout and stochastic depth in little to compile, and what else draws or normalises in its own way
DROPPING = ("model.backbone.depths=[1,1,1,1]", "model.backbone.drop_path=0.3", "model.text.dropout=0.2",
            "model.text.groups=[1,0,0,1]", "model.fusion.stages=[1]")
ENCODERS = {
    "swin": (),
    "resnet": ("model.backbone.name=resnet", "model.backbone.freeze_batch_norm=false"),
    "darknet": ("model.backbone.name=darknet", "model.backbone.freeze_batch_norm=false"),
    "lavt": LAVT,
}
CNN = ("model.backbone.depths=[1,2,1,1]", "model.fusion.stages=[2,4]", "model.text.groups=[1,0,0,1]")
VARIANTS = {
    "resnet": ("model.backbone.name=resnet", "model.backbone.freeze_batch_norm=false", *CNN),
    "darknet": ("model.backbone.name=darknet", "model.backbone.freeze_batch_norm=true", *CNN),
    "lavt": (*LAVT, "model.text.groups=[1,0,0,1]"),
}


def tiny_config(*overrides: str) -> Config:
    config = config_from_dict(TINY, "the tests' network")
    return with_overrides(config, overrides, "the tests' network") if overrides else config


def tiny_model(*overrides: str, seed: int = 0):
    """Not in training; the same seed gives the same weights."""
    ms.set_seed(seed)
    return build.build_model(tiny_config(*overrides), VOCABULARY).set_train(False)


@contextlib.contextmanager
def pynative():
    """In here everything runs operator by operator: a forward pass takes seconds to compile, a step half a minute."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    try:
        with mock.patch.dict(os.environ, MS_JIT="0"):
            yield
    finally:
        ms.set_context(mode=ms.GRAPH_MODE)


def eager(call, *arrays):
    with pynative():
        return call(*map(ms.Tensor, arrays))


def tiny_batch(batch: int = 2, size: int = 64, tokens: int = 8, seed: int = 0) -> tuple:
    """image, ids, word_mask, mask as NumPy arrays; sample i has 3 + i words."""
    random = np.random.default_rng(seed)
    image = random.normal(size=(batch, 3, size, size)).astype(np.float32)
    ids = random.integers(5, VOCABULARY, (batch, tokens)).astype(np.int32)
    word_mask = (np.arange(tokens) < 3 + np.arange(batch)[:, None] % (tokens - 2)).astype(np.int32)
    mask = np.zeros((batch, 1, size, size), np.float32)
    for i in range(batch):
        mask[i, 0, 8 + 4 * i:40, 16:48] = 1
    return image, ids * word_mask, word_mask, mask
