"""Counts against a real pass whose matrix products are watched, and against published numbers."""

import mindspore as ms
import numpy as np
import pytest
import yaml
from mindspore import nn, ops
from tiny_network import LAVT, TINY, VOCABULARY, tiny_batch, tiny_config, tiny_model

from mindspore_coupalign.__main__ import main
from mindspore_coupalign.cli.describe import describe
from mindspore_coupalign.models import macs
from mindspore_coupalign.models.backbones.darknet import Darknet, DarknetSettings
from mindspore_coupalign.models.backbones.resnet import ResNet, ResNetSettings
from mindspore_coupalign.models.backbones.swin import Swin, SwinSettings
from mindspore_coupalign.models.bert import Bert

VARIANTS = {
    "all": (),
    "padded windows": ("data.image_size=96", "model.backbone.window=5", "model.query_stage=2"),
    "guided filter": ("model.head.upsample=guided",),
    "without alignment": ("model.sentence_mask=false", "model.fusion.stages=[3]", "model.text.groups=[1,0,0,2]"),
    "ResNet": ("model.backbone.name=resnet", "model.backbone.freeze_batch_norm=false", "data.image_size=96"),
    "Darknet": ("model.backbone.name=darknet", "model.fusion.stages=[1,4]"),
    "LAVT": LAVT,
    "existence head": ("model.no_target=true",),
}


@pytest.fixture
def watched(monkeypatch):
    """A list to which every matrix product and convolution adds its MACs, while cells run operator by operator."""
    found = []
    dense, conv, product, matmul = nn.Dense.construct, nn.Conv2d.construct, ops.BatchMatMul.__call__, ops.matmul

    def dense_watched(self, x):
        found.append(x.size * self.out_channels)
        return dense(self, x)

    def conv_watched(self, x):
        out = conv(self, x)
        found.append(out.size * self.weight.size // self.out_channels)
        return out

    def product_watched(self, a, b):
        out = product(self, a, b)
        found.append(out.size * a.shape[-1])
        return out

    def matmul_watched(a, b):
        out = matmul(a, b)
        found.append(out.size * a.shape[-1])
        return out

    monkeypatch.setattr(ops, "matmul", matmul_watched)
    monkeypatch.setattr(nn.Dense, "construct", dense_watched)
    monkeypatch.setattr(nn.Conv2d, "construct", conv_watched)
    monkeypatch.setattr(ops.BatchMatMul, "__call__", product_watched)
    ms.set_context(mode=ms.PYNATIVE_MODE)
    yield found
    ms.set_context(mode=ms.GRAPH_MODE)


@pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS)
def test_macs_are_those_of_a_real_pass(watched, overrides):
    model = tiny_model(*overrides)
    size = tiny_config(*overrides).data.image_size
    image, ids, word_mask, _ = tiny_batch(1, size)
    model(ms.Tensor(image), ms.Tensor(ids), ms.Tensor(word_mask))
    assert len(watched) > 30
    count = sum(part.macs for part in describe(tiny_config(*overrides), VOCABULARY))
    if overrides == VARIANTS["without alignment"]:  # words that no later stage reads are not in the compiled graph
        assert 0.9 * sum(watched) < count < sum(watched)
    else:
        assert count == sum(watched)


@pytest.mark.parametrize("overrides", [*VARIANTS.values(), ("loss.deep_supervision=0.5", "model.stage_heads=true",
                                                            "loss.proposal_mask=0.5", "model.proposal_head=true")],
                         ids=[*VARIANTS, "for training"])
def test_parts_hold_every_parameter_once(overrides):
    parts = describe(tiny_config(*overrides), VOCABULARY)
    model = tiny_model(*overrides)
    assert sum(part.parameters for part in parts) == sum(p.size for p in model.get_parameters())
    assert sum(part.trainable for part in parts) == sum(p.size for p in model.trainable_params())


def macs_of(cell, *inputs) -> int:
    tensors = [ms.Tensor(np.zeros(shape, kind)) for shape, kind in inputs]
    return sum(macs.count(cell.set_train(False), *tensors).values())


def image_of(side: int):
    return (1, 3, side, side), np.float32


@pytest.mark.parametrize("name, dim, depths, gmacs, millions", [
    ("T", 96, (2, 2, 6, 2), 4.5, 28.3), ("B", 128, (2, 2, 18, 2), 15.4, 87.8)])
def test_swin_at_224_matches_the_paper(name, dim, depths, gmacs, millions):
    heads = tuple(dim // 32 * 2**i for i in range(4))
    swin = Swin(SwinSettings(embed_dim=dim, depths=depths, heads=heads, window=7), size=(224, 224))
    assert macs_of(swin, image_of(224)) / 1e9 == pytest.approx(gmacs, rel=0.03)
    parameters = sum(p.size for p in swin.get_parameters()) / 1e6  # the paper's count has the classifier, ours has not
    assert parameters + swin.channels[3] * 1000 / 1e6 == pytest.approx(millions, rel=0.003)


def test_resnet_101_at_224_matches_the_literature():
    """7.8 GMACs and 44.55 M parameters, both with the classifier (2048 × 1000 and 1000 biases)."""
    resnet = ResNet(ResNetSettings(), size=(224, 224))
    assert (macs_of(resnet, image_of(224)) + 2048 * 1000) / 1e9 == pytest.approx(7.80, rel=0.003)
    assert sum(p.size for p in resnet.trainable_params()) + 2049 * 1000 == 44_549_160


def test_darknet_53_at_256_matches_its_table():
    """52 convolutions by the table of YOLOv3's paper, of which it says 18.7 billion operations (two per MAC)."""
    darknet = Darknet(DarknetSettings(), size=(256, 256))
    table = 256**2 * 9 * 3 * 32
    parameters = 9 * 3 * 32 + 2 * 32
    for i, blocks in enumerate((1, 2, 8, 8, 4)):
        wide, positions = 64 * 2**i, (128 // 2**i) ** 2
        kernels = 9 * wide // 2 * wide + blocks * (wide * wide // 2 + 9 * wide // 2 * wide)
        table += positions * kernels
        parameters += kernels + 2 * wide + blocks * 2 * (wide + wide // 2)
    count = macs_of(darknet, image_of(256))
    assert count == table and 2 * count / 1e9 == pytest.approx(18.7, rel=0.02)
    assert sum(p.size for p in darknet.trainable_params()) == parameters


def test_bert_base_is_85_million_per_word_and_attention():
    bert = Bert(30, 768, 12, 3072, (1, 1, 1, 1), 512, 20)  # four of its twelve equal layers
    count = 3 * macs_of(bert, ((1, 20), np.int32), ((1, 20), np.int32))
    assert count == 20 * 12 * (4 * 768**2 + 2 * 768 * 3072) + 12 * 2 * 20 * 20 * 768
    assert count / 20 == pytest.approx(85e6, rel=0.01)


def test_the_command(tmp_path, capsys):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    assert main(["describe", "--config", str(path), "train.ema=0.9", "--batch", "4"]) == 0
    out = capsys.readouterr().out
    assert "input 64 x 64, 8 word pieces" in out and "(refshapes)" in out and "averages" in out
    assert "backbone stage 4" in out and "fusion 1" in out and "batch of 4" in out
    assert main(["describe", "--config", str(path), f"data.tokenizer={tmp_path / 'none'}"]) == 0
    out = capsys.readouterr().out
    assert "vocabulary of 30522 (BERT's: the tokenizer" in out and "not on this machine" in out
    (tmp_path / "none").mkdir()  # a tokenizer that is there and damaged is no reason to count another
    assert main(["describe", "--config", str(path), f"data.tokenizer={tmp_path / 'none'}"]) == 2
    assert "neither tokenizer.json nor vocab.txt" in capsys.readouterr().err
    assert main(["describe", "--config", str(path), "--batch", "0"]) == 2
