"""The encoders against their originals, run side by side in PyTorch: `pip install -r requirements-parity.txt`.

Random weights are written in every format and under every project's names, read back by the command convert-weights,
and the features of each stage compared, in graph mode and in PyNative.
"""

import mindspore as ms
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs requirements-parity.txt")

import foreign
from safetensors.numpy import save_file
from tiny_network import eager, tiny_batch

from mindspore_coupalign import build
from mindspore_coupalign.__main__ import main
from mindspore_coupalign.config import load_config
from mindspore_coupalign.weights.load import load_backbone_weights, load_text_weights, resample_table

CONFIG = "configs/base.yaml"
RELATIVE = 1e-4  # largest difference over largest value


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


def converted(kind: str, path, out, overrides: list):
    """The backbone or text encoder of a configuration, filled through the command and its file."""
    assert main(["convert-weights", "--config", CONFIG, f"--{kind}", str(path), "--output", str(out), *overrides]) == 0
    config = load_config(CONFIG, overrides)
    if kind == "text":
        cell = build.build_text(config, VOCABULARY)
        load_text_weights(cell, config.model.text, out)
    else:
        cell = build.build_backbone(config.model.backbone, (config.data.image_size, config.data.image_size))
        load_backbone_weights(cell, config.model.backbone, out)
    return cell.set_train(False)


def assert_equal_in_both_modes(cell, inputs: tuple, expected: list):
    for found in (cell(*map(ms.Tensor, inputs)), eager(cell, *inputs)):
        found = found if isinstance(found, tuple) else (found,)
        for stage, (ours, theirs) in enumerate(zip(found, expected, strict=True), 1):
            assert ours.shape == theirs.shape
            difference = np.abs(ours.asnumpy() - theirs).max() / np.abs(theirs).max()
            assert difference <= RELATIVE, f"stage {stage}: {difference:.1e}"


SWIN = {  # size, embed_dim, depths, heads, window
    "swin_t_224": (224, 96, [2, 2, 6, 2], [3, 6, 12, 24], 7),
    "swin_b_224_short": (224, 128, [2, 2, 2, 2], [4, 8, 16, 32], 7),
    "swin_b_480_short": (480, 128, [2, 2, 2, 2], [4, 8, 16, 32], 12),
    "swin_b_224": (224, 128, [2, 2, 18, 2], [4, 8, 16, 32], 7),
    "swin_b_384": (384, 128, [2, 2, 18, 2], [4, 8, 16, 32], 12),
    "swin_b_480": (480, 128, [2, 2, 18, 2], [4, 8, 16, 32], 12),  # 120, 60, 30 and 15 cells: the last two are padded
}
SWIN_FILES = {"swin_t_224": "official", "swin_b_224_short": "OpenMMLab", "swin_b_480_short": "transformers",
              "swin_b_224": "timm", "swin_b_384": "official", "swin_b_480": "transformers"}


def swin_overrides(size, embed_dim, depths, heads, window) -> list:
    return [f"data.image_size={size}", f"model.backbone.embed_dim={embed_dim}", f"model.backbone.depths={depths}",
            f"model.backbone.heads={heads}", f"model.fusion.heads={heads}", f"model.backbone.window={window}"]


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if "18" in str(SWIN[name]) else ())
                                  for name in SWIN])
def test_swin(tmp_path, name):
    size, *rest = SWIN[name]
    original = foreign.swin(*SWIN[name])
    state, path = foreign.published(original, tmp_path), tmp_path / "model.safetensors"
    if SWIN_FILES[name] == "official":
        path = tmp_path / "swin.pth"
        foreign.save_torch(path, foreign.official_swin(state, rest[-1]), inside="model")
    elif SWIN_FILES[name] == "OpenMMLab":
        path = tmp_path / "upernet.pth"
        state = foreign.openmmlab_swin(foreign.official_swin(state, rest[-1]))
        heads = {"decode_head.conv_seg.weight": np.zeros((2, 3), np.float32)}
        foreign.save_torch(path, {f"backbone.{n}": a for n, a in state.items()} | heads, inside="state_dict")
    elif SWIN_FILES[name] == "timm":
        path = tmp_path / "timm.safetensors"
        save_file(foreign.timm_swin(foreign.official_swin(state, rest[-1])), path)
    else:
        save_file(state, path)
    image = np.random.default_rng(0).normal(size=(1, 3, size, size)).astype(np.float32)
    vision = converted("image", path, tmp_path / "ours.safetensors", swin_overrides(size, *rest))
    assert_equal_in_both_modes(vision, (image,), foreign.swin_features(original, image))


@pytest.mark.parametrize("wanted", [5, 13, 23, 31])
def test_tables_are_resampled_as_by_the_authors(wanted):
    """Swin's own code interpolates the table with PyTorch's bicubic."""
    table = np.random.default_rng(0).normal(size=(13 * 13, 3)).astype(np.float32)
    planes = foreign.torch.from_numpy(table.T.reshape(1, 3, 13, 13).copy())
    expected = foreign.torch.nn.functional.interpolate(planes, (wanted, wanted), mode="bicubic")
    found = resample_table(table, (wanted**2, 3))
    np.testing.assert_allclose(found, expected[0].numpy().reshape(3, -1).T, atol=1e-5)


@pytest.mark.parametrize("names", ["torchvision", "transformers"])
def test_resnet_101(tmp_path, names):
    original = foreign.resnet(256, [3, 4, 23, 3])
    state, path = foreign.published(original, tmp_path), tmp_path / "model.safetensors"
    if names == "torchvision":
        path = tmp_path / "resnet101.pth"
        foreign.save_torch(path, foreign.torchvision_resnet(state), stream=True)
    image = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
    overrides = ["data.image_size=224", "model.backbone.name=resnet", "model.backbone.embed_dim=256",
                 "model.backbone.depths=[3,4,23,3]"]
    vision = converted("image", path, tmp_path / "ours.safetensors", overrides)
    assert_equal_in_both_modes(vision, (image,), foreign.resnet_features(original, image))


VOCABULARY = 30522


@pytest.mark.parametrize("kind", ["folder", "bin"])
def test_bert_base(tmp_path, kind):
    original = foreign.bert(VOCABULARY, 768, 12, 12, 3072)
    state, path = foreign.published(original, tmp_path), tmp_path
    if kind == "bin":  # a task model's, of the time when norms had gamma and beta
        path = tmp_path / "pytorch_model.bin"
        old = {f"bert.{n}".replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): a
               for n, a in state.items()}
        foreign.save_torch(path, old | {"cls.predictions.bias": np.zeros(9, np.float32)}, stream=True)
    text = converted("text", path, tmp_path / "ours.safetensors", [])
    _, ids, word_mask, _ = tiny_batch(2, tokens=20)
    ids = ids * 500 % VOCABULARY
    expected = foreign.text_features(original, ids, word_mask)
    words = word_mask > 0  # what stands at padded places is nobody's: nothing reads it
    compiled = [text(ms.Tensor(ids), ms.Tensor(word_mask))] if kind == "folder" else []  # the same network twice
    for ours in (*compiled, eager(text, ids, word_mask)):
        difference = np.abs(ours.asnumpy() - expected)[words].max() / np.abs(expected).max()
        assert difference <= RELATIVE
