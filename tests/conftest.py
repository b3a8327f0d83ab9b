"""Fixtures that several test files share. The network is tiny_network's: every part, 64 pixels, random weights."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
LONGEST = ("test_ranks", "test_reliability", "test_step_guards", "test_model", "test_train")  # their files go first
SENTENCES = ("the red circle", "blue square on the left")


def pytest_collection_modifyitems(items):
    """Two workers, a file at a time: the longest first, so that both end at about the same time."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def picture(tmp_path_factory) -> SimpleNamespace:
    """A drawn photograph: ``path`` of the file and its pixels ``rgb`` (60, 90, 3)."""
    rgb = np.random.default_rng(0).integers(60, 100, (60, 90, 3), np.uint8)
    cv2.circle(rgb, (30, 25), 14, (230, 30, 30), -1)
    cv2.rectangle(rgb, (55, 30), (80, 50), (40, 60, 220), -1)
    path = tmp_path_factory.mktemp("pictures") / "shapes.png"
    assert cv2.imwrite(str(path), rgb[..., ::-1])
    return SimpleNamespace(path=path, rgb=rgb)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory, picture) -> Path:
    """A checkpoint with random weights and the shipped vocabulary; its masks cover about half of ``picture``."""
    import mindspore as ms
    from tiny_network import tiny_config

    from mindspore_coupalign import build
    from mindspore_coupalign.data.tokenizer import SentenceTokenizer
    from mindspore_coupalign.data.transforms import ImageTransform
    from mindspore_coupalign.weights.checkpoint import named_arrays, save_checkpoint

    config = tiny_config()
    tokenizer = SentenceTokenizer.from_name(config.data.tokenizer, config.data.max_tokens)
    model = build.build_model(config, tokenizer.vocab_size).set_train(False)
    random = np.random.default_rng(0)
    for parameter in model.get_parameters():
        if parameter.ndim > 1:  # large enough that words and places matter
            scale = 1.5 / np.sqrt(np.prod(parameter.shape[1:]))
            parameter.set_data(ms.Tensor(random.normal(0, scale, parameter.shape).astype(np.float32)))
    image = ImageTransform(64, config.data.mean, config.data.std).image(picture.rgb)[None]
    logits = [model(ms.Tensor(image), *map(ms.Tensor, tokenizer([s]))).asnumpy() for s in SENTENCES]
    model.head.conv.bias.set_data(model.head.conv.bias - float(np.median(logits)))
    path = tmp_path_factory.mktemp("checkpoint") / "best.safetensors"
    save_checkpoint(path, named_arrays(model.get_parameters(), "model"), config, tokenizer.to_json(), {"step": 7})
    return path


@pytest.fixture(scope="session")
def tiny_restored(tiny_checkpoint) -> SimpleNamespace:
    """The checkpoint in memory, compiled once for all tests: ``model``, ``tokenizer``, ``config``, ``predictor``."""
    from mindspore_coupalign.build import restore_model
    from mindspore_coupalign.inference.model import Predictor
    from mindspore_coupalign.weights.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(tiny_checkpoint)
    model, tokenizer = restore_model(checkpoint)
    predictor = Predictor.from_model(model, tokenizer, checkpoint.config)
    return SimpleNamespace(model=model, tokenizer=tokenizer, config=checkpoint.config, predictor=predictor)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A RefShapes of a few scenes, to train on."""
    from mindspore_coupalign.data.refshapes.dataset import make_shapes

    folder = tmp_path_factory.mktemp("data") / "shapes"
    make_shapes(folder, 1, train=5, val=3, testA=1, testB=1)
    return folder


@pytest.fixture(scope="module")
def config(root, tmp_path_factory) -> Path:
    """The file of a small configuration for it."""
    from training_runs import write_config

    return write_config(tmp_path_factory.mktemp("config") / "small.yaml", root)


def red_network(image: np.ndarray, ids: np.ndarray, word_mask: np.ndarray) -> np.ndarray:
    """A network of no parameters: where the picture is redder than a level that the word pieces choose."""
    level = (ids * word_mask).sum(1) % 7 / 7 - 0.5
    return (image[:, :1] - image[:, 2:] - level[:, None, None, None]).astype(np.float32)


@pytest.fixture(scope="session")
def make_model():
    """``make_model(network, spec)`` gives a Model of 64 pixels and 8 word pieces that needs no MindSpore."""
    from mindspore_coupalign.data.tokenizer import SentenceTokenizer
    from mindspore_coupalign.data.transforms import ImageTransform
    from mindspore_coupalign.inference.model import Model
    from mindspore_coupalign.inference.network import InputSpec

    tokenizer = SentenceTokenizer.from_name("refshapes", 8)

    def make(network=red_network, spec=InputSpec(), threshold=0.5, explain=None):  # noqa: B008 - immutable
        return Model(network, tokenizer, ImageTransform(64, [0.5] * 3, [0.25] * 3), threshold, spec, explain)

    return make


@pytest.fixture(scope="session")
def command_line():
    """``command_line("predict", …)`` runs the real command in a process of its own: code, out, err."""
    def run(*arguments, timeout=300) -> SimpleNamespace:
        done = subprocess.run([sys.executable, "-m", "mindspore_coupalign", *map(str, arguments)], cwd=ROOT, text=True,
                              capture_output=True, timeout=timeout, env={**os.environ, "GLOG_v": "3"})
        return SimpleNamespace(code=done.returncode, out=done.stdout, err=done.stderr)

    return run


@pytest.fixture(scope="session")
def exported(command_line, tiny_checkpoint, tmp_path_factory):
    """The MINDIR that the real command wrote, and what it printed."""
    folder = tmp_path_factory.mktemp("export") / "my models (é)"  # MindSpore's own export refuses such names
    folder.mkdir()
    file = folder / "model.mindir"
    done = command_line("export", "--checkpoint", tiny_checkpoint, "--output", file)
    assert done.code == 0, done.err
    return file, done.out
