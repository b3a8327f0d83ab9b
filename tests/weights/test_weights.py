"""Foreign weights: golden files of the originals, darknet's format against a NumPy network, and strictness."""

import json
import shutil
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from numpy_layers import assert_near, randomize
from safetensors.numpy import load_file, save_file
from tiny_network import eager, tiny_config

from mindspore_coupalign import build
from mindspore_coupalign.config import TextConfig
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.models.backbones.darknet import Darknet, DarknetSettings
from mindspore_coupalign.models.backbones.resnet import ResNetSettings
from mindspore_coupalign.models.backbones.swin import SwinSettings
from mindspore_coupalign.models.bert import Bert
from mindspore_coupalign.weights.load import load_backbone_weights, load_text_weights, resample_table
from mindspore_coupalign.weights.torch_files import read_torch_file

GOLDEN = Path(__file__).parents[1] / "golden" / "weights"
SWIN = SwinSettings(embed_dim=4, depths=(1, 2, 1, 2), heads=(1, 2, 2, 4), window=2, drop_path=0.0)
RESNET = ResNetSettings(embed_dim=16, depths=(1, 2, 1, 1))
DARKNET = DarknetSettings(embed_dim=8, depths=(2, 8, 8, 4))
BERT = TextConfig(hidden=8, heads=2, ffn=16, groups=(1, 0, 2, 0), dropout=0.0)
IMAGE_FILES = {
    "swin/model.safetensors": SWIN, "swin": SWIN, "swin_official.pth": SWIN, "swin_official_stream.pth": SWIN,
    "swin_timm.safetensors": SWIN, "resnet/model.safetensors": RESNET, "resnet_torchvision.pth": RESNET}
TEXT_FILES = ("bert", "bert/model.safetensors", "bert_pytorch_model.bin")


@pytest.fixture(scope="module")
def features():
    return load_file(GOLDEN / "features.safetensors")


def vision_of(image, size: int = 96):
    return build.build_backbone(image, (size, size)).set_train(False)


def text_of(config: TextConfig = BERT, vocabulary: int = 12):
    return Bert(vocabulary, config.hidden, config.heads, config.ffn, config.groups, 512, 6,
                config.dropout).set_train(False)


def values(cell) -> dict:
    return {name: p.asnumpy().copy() for name, p in cell.parameters_and_names()}


@pytest.mark.parametrize("file", IMAGE_FILES)
def test_backbones_equal_the_originals(features, file):
    image = IMAGE_FILES[file]
    vision = vision_of(image)
    loaded = load_backbone_weights(vision, image, GOLDEN / file)
    assert loaded.fresh == sorted(name for name in values(vision) if name.startswith("outputs."))
    for stage, found in enumerate(eager(vision, features["image"])):
        assert_near(found.asnumpy(), features[f"{image.name}_{stage}"], 1e-4)


@pytest.mark.parametrize("image", [SWIN, RESNET], ids=["swin", "resnet"])
def test_backbones_equal_the_originals_in_graph_mode(features, image):
    vision = vision_of(image)
    load_backbone_weights(vision, image, GOLDEN / image.name)
    for stage, found in enumerate(vision(ms.Tensor(features["image"]))):
        assert_near(found.asnumpy(), features[f"{image.name}_{stage}"], 1e-4)


@pytest.mark.parametrize("file", TEXT_FILES)
def test_bert_equals_the_original(features, file):
    text = text_of()
    load_text_weights(text, BERT, GOLDEN / file)
    found = eager(text, features["ids"], features["word_mask"]).asnumpy()
    words = features["word_mask"] > 0
    assert_near(found[words], features["bert"][words], 1e-4)


# Darknet-53 in plain NumPy, after the paper's table and darknet's C code ------------------------------------------


def conv_reference(layer: dict, x, stride: int, slope: float):
    """x (C, H, W) -> (C', H', W'): convolution, (x - mean) / (sqrt(variance) + 1e-6), scale, bias, leaky ReLU."""
    kernel = layer["kernel"].astype(np.float64)
    pad = kernel.shape[2] // 2
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    patches = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[2:], (1, 2))[:, ::stride, ::stride]
    x = np.tensordot(kernel, patches, ((1, 2, 3), (0, 3, 4)))

    def column(name):
        return layer[name].astype(np.float64)[:, None, None]

    x = (x - column("mean")) / (np.sqrt(column("variance")) + 1e-6) * column("scale") + column("bias")
    return np.where(x > 0, x, slope * x)


def darknet_reference(layers: list, x, slope: float = 0.1) -> list:
    """The table of the YOLOv3 paper: 32, then five times a stride and 1, 2, 8, 8, 4 residual blocks."""
    layers, features = iter(layers), []
    x = conv_reference(next(layers), x, 1, slope)
    for blocks in (1, 2, 8, 8, 4):
        x = conv_reference(next(layers), x, 2, slope)
        for _ in range(blocks):
            y = conv_reference(next(layers), x, 1, slope)
            x = x + conv_reference(next(layers), y, 1, slope)
        features.append(x)
    assert next(layers, None) is None
    return features[1:]


def darknet_layers(width: int, seed: int = 0) -> list:
    """Random layers in darknet's order; ``width`` is the first convolution's (32 in Darknet-53)."""
    random, shapes = np.random.default_rng(seed), [(width, 3, 3)]
    for i, blocks in enumerate((1, 2, 8, 8, 4)):
        wide = width * 2 ** (i + 1)
        shapes.append((wide, wide // 2, 3))
        shapes += [(wide // 2, wide, 1), (wide, wide // 2, 3)] * blocks
    layers = []
    for out, inputs, kernel in shapes:
        layers.append({"bias": random.normal(0, 0.1, out), "scale": random.normal(0.5, 0.1, out),
                       "mean": random.normal(0, 0.1, out), "variance": random.uniform(0.3, 1.5, out),
                       "kernel": random.normal(0, (inputs * kernel**2) ** -0.5, (out, inputs, kernel, kernel))})
        for name, scale in {"kernel": 1e-4, "mean": 1e-4, "variance": 1e-8}.items():
            layers[-1][name][0] *= scale  # a channel that nearly died, where the epsilon counts
        layers[-1] = {name: array.astype(np.float32) for name, array in layers[-1].items()}
    return layers


def write_darknet(path, layers: list, version=(0, 2, 0), behind: int = 0):
    seen = np.array([32013312], "<i8" if version[1] >= 2 else "<i4")
    parts = [layer[name].ravel() for layer in layers for name in ("bias", "scale", "mean", "variance", "kernel")]
    parts.append(np.full(behind, 0.5, np.float32))
    path.write_bytes(np.array(version, "<i4").tobytes() + seen.tobytes() + np.concatenate(parts).tobytes())
    return path


def timm_darknet(layers: list) -> dict:
    layers, names = iter(layers), ["stem.conv1"]
    for i, blocks in enumerate((1, 2, 8, 8, 4)):
        names.append(f"stages.{i}.conv_down")
        names += [f"stages.{i}.blocks.{j}.conv{k}" for j in range(blocks) for k in (1, 2)]
    state = {"head.fc.weight": np.zeros((10, 4), np.float32)}
    for name, layer in zip(names, layers, strict=True):
        ours = {"conv.weight": "kernel", "bn.weight": "scale", "bn.bias": "bias", "bn.running_mean": "mean",
                "bn.running_var": "variance"}
        state |= {f"{name}.{key}": layer[field] for key, field in ours.items()}
        state[f"{name}.bn.num_batches_tracked"] = np.array(5)
    return state


@pytest.mark.parametrize("file,version,behind", [
    ("darknet53.weights", (0, 2, 0), 1001), ("darknet53.conv.74", (0, 1, 0), 0)])
def test_darknet_53_equals_darknet(tmp_path, file, version, behind):
    layers = darknet_layers(2)
    path = write_darknet(tmp_path / file, layers, version, behind)
    vision = vision_of(DARKNET, 64)
    loaded = load_backbone_weights(vision, DARKNET, path)
    assert loaded.skipped == ([f"{behind} values behind the backbone"] if behind else [])
    assert len(loaded.arrays) == 52 * 5
    image = np.random.default_rng(1).normal(size=(1, 3, 64, 64)).astype(np.float32)
    for found, expected in zip(eager(vision, image), darknet_reference(layers, image[0]), strict=True):
        assert_near(found.asnumpy()[0], expected.reshape(len(expected), -1).T, 1e-4)


def test_darknet_53_of_timm_has_another_slope(tmp_path):
    layers = darknet_layers(2, seed=3)
    for layer in layers:  # timm's norm has its epsilon inside the root
        layer["variance"] = layer["variance"] + 0.01
    save_file(timm_darknet(layers), tmp_path / "darknet.safetensors")
    with pytest.raises(UserError, match=r"need model.backbone.negative_slope=0.01 \(found 0.1\)"):
        load_backbone_weights(vision_of(DARKNET, 64), DARKNET, tmp_path / "darknet.safetensors")
    image_config = DarknetSettings(embed_dim=8, depths=(2, 8, 8, 4), negative_slope=0.01)
    vision = vision_of(image_config, 64)
    load_backbone_weights(vision, image_config, tmp_path / "darknet.safetensors")
    image = np.random.default_rng(1).normal(size=(1, 3, 64, 64)).astype(np.float32)
    for layer in layers:
        layer["variance"] = (np.sqrt(layer["variance"] + 1e-5) - 1e-6) ** 2
    for found, expected in zip(eager(vision, image), darknet_reference(layers, image[0], 0.01), strict=True):
        assert_near(found.asnumpy()[0], expected.reshape(len(expected), -1).T, 1e-4)


@pytest.mark.parametrize("change,message", [
    (lambda content: content[:-4], "not a complete darknet file"),
    (lambda content: content[:-3], "not a complete darknet file"),
    (lambda content: content[:7], "not a complete darknet file"),
    (lambda content: content[:20] + content[24:] + b"\0\0\x80\xbf", "no batch norm's"),  # shifted by one value
])
def test_broken_darknet_files(tmp_path, change, message):
    path = write_darknet(tmp_path / "darknet53.conv.74", darknet_layers(2))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError, match=message):
        load_backbone_weights(vision_of(DARKNET, 64), DARKNET, path)


# Position-bias tables ---------------------------------------------------------------------------------------------


def test_a_table_of_another_window_is_resampled():
    rows = np.repeat(np.arange(13.0), 13)
    table = np.stack([np.full(169, 2.5), rows], -1).astype(np.float32)  # a constant and a slope
    resized = resample_table(table, (529, 2)).reshape(23, 23, 2)
    np.testing.assert_allclose(resized[..., 0], 2.5, rtol=1e-6)
    expected = (np.arange(23) + 0.5) * 13 / 23 - 0.5
    np.testing.assert_allclose(resized[3:-3, 11, 1], expected[3:-3], atol=0.06)  # this cubic bends a slope a little
    np.testing.assert_allclose(resized[:, :1, 1], resized[:, 5:6, 1], atol=1e-5)  # the same in every column
    assert resample_table(table, (529, 3)).shape == (169, 2)  # other heads: the caller's error


def test_a_backbone_takes_weights_of_another_window():
    image = SwinSettings(embed_dim=4, depths=(1, 2, 1, 2), heads=(1, 2, 2, 4), window=3, drop_path=0.0)
    vision = vision_of(image)
    loaded = load_backbone_weights(vision, image, GOLDEN / "swin_official.pth")
    assert len(loaded.resampled) == 6 and all(name.endswith("table") for name in loaded.resampled)
    assert values(vision)["stages.0.blocks.0.attn.relative_position_bias_table"].shape == (25, 1)


# Strictness -------------------------------------------------------------------------------------------------------


def changed(tmp_path, **arrays):
    """The golden ResNet's weights with arrays replaced (dots written as __) or, by None, left out."""
    state = read_torch_file(GOLDEN / "resnet_torchvision.pth")
    for name, array in arrays.items():
        state[name.replace("__", ".")] = array
    save_file({name: np.ascontiguousarray(a) for name, a in state.items() if a is not None}, tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


@pytest.mark.parametrize("arrays,message", [
    ({"layer2__1__conv2__weight": None}, r"1 parameters would stay unloaded \(stages.1.blocks.1.conv2.conv.weight\)"),
    ({"layer1__0__bn1__running_var": None}, "stages.0.blocks.0.conv1.norm.moving_variance"),
    ({"layer4__1__conv1__weight": np.zeros(3, np.float32)}, r"1 of the file's have no place \(stages.3.blocks.1.conv1"),
    ({"layer1__0__se__weight": np.zeros(3, np.float32)}, "1 unexpected names .* layer1.0.se.weight"),
    ({"conv1__weight": np.zeros((4, 3, 5, 5), np.float32)}, r"embed.blocks.0.conv.weight has shape \(4, 3, 5, 5\)"),
    ({"bn1__bias": np.array([0, np.nan, 0, 0], np.float32)}, "embed.blocks.0.norm.beta holds non-finite values"),
])
def test_what_does_not_fit_is_named_and_loads_nothing(tmp_path, arrays, message):
    vision = vision_of(RESNET)
    before = values(vision)
    with pytest.raises(UserError, match=message):
        load_backbone_weights(vision, RESNET, changed(tmp_path, **arrays))
    for name, value in values(vision).items():
        np.testing.assert_array_equal(value, before[name])


def saved(tmp_path, arrays: dict):
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


def openmmlab_names(official: dict) -> dict:
    """tests/helpers/foreign.py's without torch: nn.Unfold lays its channels out as (channel, row, column)."""
    new = {}
    for name, array in official.items():
        if ".downsample." in name:
            places = array.reshape(*array.shape[:-1], 2, 2, -1)  # column, row, channel: the official order
            array = np.moveaxis(places, -1, -3).swapaxes(-1, -2).reshape(array.shape)
        name = name.replace("patch_embed.proj.", "patch_embed.projection.").replace("layers.", "stages.")
        name = name.replace(".attn.", ".attn.w_msa.").replace("mlp.fc1", "ffn.layers.0.0")
        name = name.replace("norm.", "norm3.") if name.startswith("norm.") else name
        new[name.replace("mlp.fc2", "ffn.layers.1")] = array
    return new


HEADS = {"decode_head.conv_seg.weight": np.zeros((2, 3), np.float32), "auxiliary_head.conv_seg.bias": np.zeros(2)}
PREFIXES = {"UPerNet": "backbone.", "parallel": "module.backbone.", "deep": "model.swin.", "wrapped": "_orig_mod.net.",
            "bare": ""}


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("names", ["official", "OpenMMLab"])
def test_a_backbone_inside_a_larger_network(features, tmp_path, prefix, names):
    """Its heads are skipped by name; a classifier's only norm of OpenMMLab's too."""
    state = read_torch_file(GOLDEN / "swin_official.pth")
    state = openmmlab_names(state) if names == "OpenMMLab" else state
    state = {name.replace(".attn.", ".module.attn."): array for name, array in state.items()}  # a wrapper inside
    path = saved(tmp_path, {PREFIXES[prefix] + name: array for name, array in state.items()} | HEADS)
    vision = vision_of(SWIN)
    loaded = load_backbone_weights(vision, SWIN, path)
    assert set(HEADS) <= set(loaded.skipped) and names in loaded.title + "official"
    assert len(loaded.fresh) == 8 and (("norm3.bias" in loaded.skipped) or names == "official")
    if prefix in ("UPerNet", "bare"):
        for stage, found in enumerate(eager(vision, features["image"])):
            assert_near(found.asnumpy(), features[f"swin_{stage}"], 1e-4)


def test_the_norms_of_a_segmentation_networks_outputs_are_loaded(tmp_path):
    random = np.random.default_rng(0)
    norms = {f"norm{i}.{kind}": random.normal(size=4 * 2**i).astype(np.float32) for i in range(4)
             for kind in ("weight", "bias")}
    state = openmmlab_names(read_torch_file(GOLDEN / "swin_official.pth")) | norms
    vision = vision_of(SWIN)
    named = {f"backbone.{n}": a for n, a in state.items()}
    loaded = load_backbone_weights(vision, SWIN, saved(tmp_path, named | HEADS))
    assert not loaded.fresh
    np.testing.assert_array_equal(values(vision)["outputs.2.gamma"], norms["norm2.weight"])


@pytest.mark.parametrize("wrap", ["module.", "bert.", "model.text.bert."])
def test_a_text_encoder_inside_a_larger_network(tmp_path, wrap):
    state = {f"{wrap}{name}": array for name, array in load_file(GOLDEN / "bert/model.safetensors").items()}
    more = {} if wrap == "module." else {"cls.predictions.bias": np.zeros(12, np.float32), "vision.conv": np.zeros(3)}
    loaded = load_text_weights(text_of(), BERT, saved(tmp_path, state | more))
    assert set(more) <= set(loaded.skipped)


def test_what_is_left_over_beside_a_bare_backbone_has_a_remedy(tmp_path):
    state = read_torch_file(GOLDEN / "swin_official.pth") | {"fusion.weight": np.zeros(3, np.float32)}
    with pytest.raises(UserError, match="1 unexpected names .*fusion.weight.*the backbone's arrays alone"):
        load_backbone_weights(vision_of(SWIN), SWIN, saved(tmp_path, state))


def test_two_networks_in_one_file_are_refused(tmp_path):
    state = read_torch_file(GOLDEN / "resnet_torchvision.pth")
    save_file({f"{prefix}{name}": np.ascontiguousarray(array) for name, array in state.items()
               for prefix in ("module.", "model.")}, tmp_path / "two.safetensors")
    with pytest.raises(UserError, match=r"holds two networks, under different prefixes \(.*'model.'\)"):
        load_backbone_weights(vision_of(RESNET), RESNET, tmp_path / "two.safetensors")


@pytest.mark.parametrize("image,file,message", [
    (SWIN, "resnet_torchvision.pth", "holds no swin weights"), (RESNET, "swin", "holds no resnet weights"),
    (RESNET, "bert", "holds no resnet weights"), (DARKNET, "resnet", "holds no darknet weights"),
    (SwinSettings(embed_dim=4, depths=(1, 2, 2, 2), heads=(1, 2, 2, 4), window=2), "swin_timm.safetensors",
     "stages.2.blocks.1"),
])
def test_another_architecture_is_refused(image, file, message):
    with pytest.raises(UserError, match=message):
        load_backbone_weights(vision_of(image), image, GOLDEN / file)


@pytest.mark.parametrize("config,message", [
    (TextConfig(hidden=8, heads=4, ffn=16, groups=(1, 0, 2, 0)), "num_attention_heads is 2, .* has 4"),
    (TextConfig(hidden=8, heads=2, ffn=16, groups=(1, 0, 2, 0), activation="relu"), "hidden_act is 'gelu'"),
    (TextConfig(hidden=8, heads=2, ffn=16, groups=(1, 0, 1, 0)), "no place .layers.2"),
    (TextConfig(hidden=8, heads=2, ffn=16, groups=(1, 1, 1, 1)), "unloaded .groups.3.layers.0"),
])
def test_another_bert_is_refused(config, message):
    with pytest.raises(UserError, match=message):
        load_text_weights(text_of(config), config, GOLDEN / "bert")


def test_another_vocabulary_is_refused():
    with pytest.raises(UserError, match=r"embed.word_embeddings has shape \(12, 8\), .* expects \(13, 8\)"):
        load_text_weights(text_of(vocabulary=13), BERT, GOLDEN / "bert")


@pytest.mark.parametrize("key,value", [("downsample_in_bottleneck", True), ("hidden_act", "gelu")])
def test_a_resnet_that_computes_something_else_is_refused(tmp_path, key, value):
    shutil.copytree(GOLDEN / "resnet", tmp_path / "resnet")
    path = tmp_path / "resnet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(UserError, match=f"config.json: {key} is {value!r}"):
        load_backbone_weights(vision_of(RESNET), RESNET, tmp_path / "resnet")


# Batch norm -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_statistics_stay_and_batch_statistics_follow(frozen):
    """Frozen, a batch of one in training gives what it gives in evaluation: nothing collapses with small batches."""
    settings = DarknetSettings(embed_dim=8, depths=(1, 1, 1, 1), freeze_batch_norm=frozen)
    vision = randomize(Darknet(settings, size=(64, 64)), scale=0.3)
    before = values(vision)
    image = np.random.default_rng(0).normal(size=(1, 3, 64, 64)).astype(np.float32)
    evaluated = eager(vision, image)[3].asnumpy()
    trained = eager(vision.set_train(True), image)[3].asnumpy()
    after = values(vision)
    moved = [name for name in before if not np.array_equal(before[name], after[name])]
    if frozen:
        assert not moved
        assert_near(trained, evaluated, 1e-5)
    else:
        assert {name.rsplit(".", 1)[1] for name in moved} == {"moving_mean", "moving_variance"}
        assert np.abs(trained - evaluated).max() > 0.1


def test_frozen_statistics_need_a_file():
    config = tiny_config("model.backbone.name=darknet", "model.backbone.depths=[1,1,1,1]")
    with pytest.raises(UserError, match="set model.backbone_weights, or model.backbone.freeze_batch_norm=false"):
        build.load_pretrained(build.build_model(config, 30), config)
