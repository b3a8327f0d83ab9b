"""Configuration files and overrides: what they give, and the one line that says what is wrong with them."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import yaml
from safetensors import safe_open

from mindspore_coupalign.config import (
    Config,
    config_from_dict,
    config_to_dict,
    load_config,
    shipped_configs,
    with_overrides,
)
from mindspore_coupalign.config.renamed import HEADS, RENAMED
from mindspore_coupalign.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted((ROOT / "configs").rglob("*.yaml"))
AT_LEAST = 23  # shipped configurations; raise it with every new one


def write(folder, text, name="some.yaml"):
    (folder / name).write_text(text)
    return folder / name


def error(call, *args):
    with pytest.raises(UserError) as caught:
        call(*args)
    message = str(caught.value)
    assert "\n" not in message
    return message


def leaves(cls=Config, prefix=""):
    """Dotted name -> field, of every value of a configuration."""
    found = {}
    for item in dataclasses.fields(cls):
        nested = dataclasses.is_dataclass(item.type)
        found |= leaves(item.type, f"{prefix}{item.name}.") if nested else {prefix + item.name: item}
    return found


def test_enough_configurations_are_found():
    assert len(SHIPPED) >= AT_LEAST


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_configurations_load_and_survive_a_round_trip(path):
    config = load_config(path)
    assert config_from_dict(config_to_dict(config), "again") == config
    assert path.read_text().startswith("#"), "opens with what it is for"


def test_defaults_are_the_recipe():
    config = Config()
    assert (config.train.lr, config.train.weight_decay, config.train.schedule) == (5e-5, 0.01, "poly")
    assert (config.train.epochs, config.train.batch_size, config.train.warmup_steps) == (40, 32, 0)
    assert (config.data.image_size, config.data.max_tokens) == (480, 20)
    assert (config.data.dataset, config.data.split_by, config.eval.batch_size) == ("refcoco", "unc", 8)
    assert load_config("base") == load_config("refcoco_swin_b") == config
    assert config.model.backbone.depths == (2, 2, 18, 2) and config.model.fusion.stages == (1, 2, 3, 4)
    assert config_from_dict({}, "nothing") == config


def test_values_and_types(tmp_path):
    config = load_config(write(tmp_path, """
train: {lr: 5e-5, weight_decay: 1, clip_norm: "0.5"}
data: {mean: [0, 0.5, 1], dataset: refcoco+}
model: {wpa_stages: [], image: {absolute_position: yes}}
"""))
    assert config.train.lr == 5e-5 and type(config.train.lr) is float  # YAML 1.1 takes 5e-5 for a text
    assert config.train.weight_decay == 1.0 and type(config.train.weight_decay) is float
    assert config.train.clip_norm == 0.5
    assert config.data.mean == (0.0, 0.5, 1.0) and config.data.dataset == "refcoco+"
    assert config.model.fusion.stages == () and config.model.backbone.absolute_position is True


def test_an_empty_file_is_the_defaults(tmp_path):
    assert load_config(write(tmp_path, "# nothing yet\n")) == Config()


def test_overrides():
    config = with_overrides(Config(), ["train.lr=1e-4", "model.fusion.stages=[3, 4]", "data.root=/x=y"], "here")
    assert config.train.lr == 1e-4 and config.model.fusion.stages == (3, 4) and config.data.root == "/x=y"
    assert config.train.batch_size == Config().train.batch_size
    assert with_overrides(Config(), ["train.steps=1", "train.steps=2"], "here").train.steps == 2


def test_base_files(tmp_path):
    (tmp_path / "sub").mkdir()
    write(tmp_path, "train: {lr: 1.0, epochs: 3}\nmodel: {wpa_stages: [1, 2]}\n", "a.yaml")
    write(tmp_path, "base: ../a.yaml\ntrain: {epochs: 4, seed: 7}\n", "sub/b.yaml")
    config = load_config(write(tmp_path, "base: sub/b.yaml\nmodel: {wpa_stages: [4]}\ntrain: {seed: 8}\n"),
                         ["train.epochs=5"])
    assert (config.train.lr, config.train.epochs, config.train.seed) == (1.0, 5, 8)
    assert config.model.fusion.stages == (4,)


@pytest.mark.parametrize("text,key,near", [
    ("train: {batchsize: 3}", "train.batchsize", "train.batch_size"),
    ("model: {image: {windo: 3}}", "model.backbone.windo", "model.backbone.window"),
    ("trian: {lr: 3}", "trian", "train"),
    ("data: {zzzzqq: 3}", "data.zzzzqq", "max_tokens"),
    ("model: {3: 4}", "model.3", "query_stage"),
])
def test_unknown_keys_name_file_key_and_near_match(tmp_path, text, key, near):
    path = write(tmp_path, text)
    message = error(load_config, path)
    assert str(path) in message and f"unknown key {key};" in message and near in message


@pytest.mark.parametrize("text,words", [
    ("train: {batch_size: many}", ("train.batch_size", "a whole number", "'many'")),
    ("train: {batch_size: 3.5}", ("train.batch_size", "a whole number", "3.5")),
    ("train: {batch_size: true}", ("train.batch_size", "a whole number", "True")),
    ("train: {lr: fast}", ("train.lr", "a number", "'fast'")),
    ("train: {lr: .nan}", ("train.lr", "a number", "nan")),
    ("train: {lr: .inf}", ("train.lr", "a number", "inf")),
    ("train: {lr: inf}", ("train.lr", "a number", "inf")),
    ("train: {lr: true}", ("train.lr", "a number", "True")),
    ("train: {lr: null}", ("train.lr", "a number", "None")),
    ("train: {lr: [1]}", ("train.lr", "a number", "[1")),
    ("data: {dataset: 3}", ("data.dataset", "a text", "3")),
    ("model: {sentence_mask: 1}", ("model.sentence_mask", "true or false", "1")),
    ("model: {wpa_stages: 4}", ("model.fusion.stages", "a list", "4")),
    ("model: {wpa_stages: [1, two]}", ("model.fusion.stages[1]", "a whole number", "'two'")),
    ("data: {mean: 0.5}", ("data.mean", "a list", "0.5")),
    ("model: 3", ("model", "section", "3")),
    ("model: {image: swin}", ("model.backbone", "section", "'swin'")),
    ("train:", ("train", "section", "None")),
])
def test_wrong_types_name_file_field_and_value(tmp_path, text, words):
    path = write(tmp_path, text)
    message = error(load_config, path)
    assert all(word in message for word in (str(path), *words)), message


@pytest.mark.parametrize("override,field", [
    ("data.image_size=100", "data.image_size"), ("data.image_size=0", "data.image_size"),
    ("data.image_size=-32", "data.image_size"),
    ("data.mean=[0.5, 0.5]", "data.mean"), ("data.std=[1, 0, 1]", "data.std"),
    ("data.max_tokens=2", "data.max_tokens"), ("data.max_tokens=513", "data.max_tokens"),
    ("data.flip=1.1", "data.flip"), ("data.sentence_field=tokens", "data.sentence_field"),
    ("data.overlap=xor", "data.overlap"), ("data.workers=0", "data.workers"),
    ("model.name=vlt", "model.name"), ("model.backbone.name=vit", "model.backbone.name"),
    ("model.backbone.activation=silu", "model.backbone.activation"),
    ("model.text.activation=tanh", "model.text.activation"),
    ("model.backbone.depths=[2, 2, 2]", "model.backbone.depths"),
    ("model.backbone.depths=[2, 2, 0, 2]", "model.backbone.depths"),
    ("model.backbone.heads=[3, 8, 16, 32]", "model.backbone.heads[0]=3"),
    ("model.backbone.heads=[]", "model.backbone.heads"),
    ("model.backbone.window=0", "model.backbone.window"), ("model.backbone.drop_path=1.0", "model.backbone.drop_path"),
    ("model.backbone.mlp_ratio=0", "model.backbone.mlp_ratio"), ("model.backbone.embed_dim=6", "model.backbone.heads"),
    ("model.text.groups=[3, 3, 3]", "model.text.groups"), ("model.text.groups=[0, 0, 0, 0]", "model.text.groups"),
    ("model.text.groups=[3, 3, 3, -1]", "model.text.groups"),
    ("model.text.heads=5", "model.text.heads"), ("model.text.heads=0", "model.text.heads"),
    ("model.text.dropout=1", "model.text.dropout"),
    ("model.fusion.stages=[0]", "model.fusion.stages"), ("model.fusion.stages=[5]", "model.fusion.stages"),
    ("model.fusion.stages=[1, 1]", "model.fusion.stages"), ("model.fusion.heads=[4, 8, 16]", "model.fusion.heads"),
    ("model.fusion.heads=[4, 8, 16, 33]", "model.fusion.heads[3]=33"), ("model.query_stage=0", "model.query_stage"),
    ("model.query_heads=7", "model.query_heads"), ("model.queries=0", "model.queries"),
    ("model.query_layers=0", "query_layers"), ("model.decoder.dim=264", "above 256 of 32"),
    ("model.decoder.dim=20", "model.decoder.dim"),
    ("loss.bce=-1", "loss.bce"), ("loss.contrast=-0.1", "contrast"), ("loss.temperature=0", "loss.temperature"),
    ("loss.proposal_mask=-1", "must not be negative"), ("loss.negatives=0", "loss.negatives"),
    ("train.schedule=step", "train.schedule"),
    ("train.batch_size=0", "batch_size"), ("eval.batch_size=0", "batch_size"), ("train.epochs=0", "train.epochs"),
    ("train.steps=-1", "train.steps"), ("train.lr=0", "train.lr"), ("train.seed=-1", "train.seed"),
    ("train.warmup_steps=-1", "warmup_steps"), ("train.clip_norm=-1", "clip_norm"), ("train.ema=1.0", "train.ema"),
    ("train.log_every=0", "train.log_every"), ("eval.threshold=1", "eval.threshold"),
    ("eval.threshold=0", "eval.threshold"), ("train.val_every=-1", "val_every"),
])
def test_impossible_values_and_combinations(override, field):
    message = error(with_overrides, Config(), [override], "some.yaml")
    assert message.startswith(("some.yaml: ", "override ")) and field in message, message


def test_another_part_keeps_what_both_know():
    """A fusion's heads are of no use to one without heads; the stages are shared."""
    base = with_overrides(Config(), ["model.fusion.stages=[1, 2]", "model.fusion.heads=[1, 2, 4, 8]"], "base")
    fusion = with_overrides(base, ["model.fusion.name=pixel_word"], "some.yaml").model.fusion
    assert (fusion.name, fusion.stages) == ("pixel_word", (1, 2)) and not hasattr(fusion, "heads")
    assert "unknown key model.fusion.heads" in error(
        with_overrides, base, ["model.fusion.name=pixel_word", "model.fusion.heads=[1, 1, 1, 1]"], "some.yaml")
    old = with_overrides(base, ["model.name=lavt", "model.wpa_heads=[1, 1, 1, 1]"], "some.yaml")  # known no longer
    assert old.model.fusion == fusion and not old.model.sentence_mask


def test_a_part_that_is_not_registered_is_named_with_those_that_are():
    message = error(with_overrides, Config(), ["model.fusion.name=mine"], "some.yaml")
    assert "model.fusion.name must be one of" in message and "word_pixel" in message and "COUPALIGN_PARTS" in message


@pytest.mark.parametrize("without", ["model.sentence_mask=false", "model.name=lavt"])
def test_a_loss_on_proposals_needs_them(without):
    overrides = ["loss.proposal_mask=0.5", "model.proposal_head=true", without]
    assert "loss.proposal_mask" in error(with_overrides, Config(), overrides, "some.yaml")


@pytest.mark.parametrize(("weight", "head"), [("deep_supervision", "stage_heads"), ("proposal_mask", "proposal_head")])
def test_a_loss_on_heads_needs_them(weight, head):
    message = error(with_overrides, Config(), [f"loss.{weight}=0.5"], "some.yaml")
    assert f"loss.{weight} needs" in message and f"set model.{head}=true" in message
    with_overrides(Config(), [f"loss.{weight}=0.5", f"model.{head}=true"], "some.yaml")
    with_overrides(Config(), [f"model.{head}=true"], "some.yaml")  # to go on without the loss


@pytest.mark.parametrize(("old", "new", "value"), [
    *((old, new, 0.25) for old, new in RENAMED.items() if "_rate" in old or "gate" in old),
    *((old, new, 30) for old, new in RENAMED.items() if "_seconds" in old or "skipped" in old),
    ("loss.stages", "loss.deep_supervision", 0.5), ("loss.proposals", "loss.proposal_mask", 0.5)])
def test_keys_of_an_earlier_version_go_on_working(old, new, value, tmp_path, capsys):
    """In files, overrides and checkpoints, with a line that names both."""
    section, field = new.split(".", 1)
    head = [f"{HEADS[old]}=true"] if old in HEADS else []
    expected = with_overrides(Config(), [f"{new}={value}", *head], "new")
    assert capsys.readouterr().err == ""
    assert getattr(getattr(expected, section), field.split(".")[-1], None) == value or "." in field
    nested = value
    for key in reversed(old.split(".")):
        nested = {key: nested}
    path = write(tmp_path, yaml.safe_dump(nested))
    text = f"{old}={value}"
    for load, source in ((lambda: load_config(path), str(path)),
                         (lambda: with_overrides(Config(), [text], "some.yaml"), f"override {text}"),
                         (lambda: config_from_dict(nested, "a checkpoint"), "a checkpoint")):
        assert load() == expected
        line = capsys.readouterr().err
        assert line == f"warning: {source}: keys of an earlier version: {old} is {new} now\n"


def test_old_keys_are_refused_where_they_mean_two_things():
    twice = {"train": {"muon_rate": 0.4, "muon_lr_mult": 0.5}}
    assert "train.muon_lr_mult is there as well as train.muon_rate" in error(config_from_dict, twice, "f")
    assert "model.image.norm must be one of frozen, batch" in error(config_from_dict, {"model": {"image": {
        "norm": "group"}}}, "f")
    assert "model.wpa_gate_zero=true is no longer known" in error(config_from_dict, {"model": {
        "wpa_gate_zero": True}}, "f")
    assert "must be one of bilinear, guided" in error(config_from_dict, {"model": {"upsample": "subpixel"}}, "f")
    for section in (3, None):  # an old key whose new one lies in another section, which is none
        assert f"f: model must be a section of keys, found {section}" in error(
            config_from_dict, {"model": section, "loss": {"stages": 0.5}}, "f")


def test_every_key_of_a_first_configuration_is_known(capsys):
    """The golden state's is resolved: it holds every key of its version."""
    with safe_open(ROOT / "tests/golden/first_release.safetensors", framework="np") as file:
        values = json.loads(file.metadata()["config"])
    config = config_from_dict(values, "golden")
    assert config.model.stage_heads and config.model.proposal_head and config.model.backbone.name == "swin"
    assert config.train.muon_lr_mult == values["train"]["muon_rate"] > 0
    assert capsys.readouterr().err.count("\n") == 1
    assert config.train.step_timeout == values["train"]["hang_seconds"]


@pytest.mark.parametrize("overrides", [
    ["model.backbone.embed_dim=0"], ["model.backbone.embed_dim=-128"], ["model.text.hidden=0"], ["model.text.ffn=0"],
    ["model.backbone.mlp_ratio=0.001"],
])
def test_widths_without_channels(overrides):
    error(with_overrides, Config(), overrides, "some.yaml")


def test_two_sided_losses_off():
    assert "loss" in error(with_overrides, Config(), ["loss.bce=0", "loss.dice=0"], "some.yaml")


@pytest.mark.parametrize("text", ["train.lr", "=3", "train.lr 3", ""])
def test_overrides_that_are_none(text):
    message = error(with_overrides, Config(), [text], "some.yaml")
    assert repr(text) in message and "section.key=value" in message


@pytest.mark.parametrize("text,words", [
    ("train.lr=[1", "not valid YAML"), ("data.split_by=2012-13-45", "not valid YAML"),
    ("train=3", "train must be a section"), ("lr=3", "unknown key lr"),
    ("train.lr.x=3", "train.lr"), ("train.=3", "unknown key train."), ("data.root=", "data.root"),
])
def test_overrides_with_bad_keys_or_values(text, words):
    assert words in error(with_overrides, Config(), [text], "some.yaml")


def test_files_that_are_none(tmp_path):
    missing = tmp_path / "missing.yaml"
    assert f"{missing}: no such configuration file" in error(load_config, missing)
    assert str(tmp_path) in error(load_config, tmp_path)
    for text, words in (("a: [1, ", "not valid YAML"), ("- 1\n- 2\n", "top level"), ("hello", "top level"),
                        ("a: !!python/object:os.system x", "not valid YAML"),
                        ("a: 2012-13-45", "not valid YAML"), ("\ta: 1", "not valid YAML")):
        path = write(tmp_path, text)
        message = error(load_config, path)
        assert str(path) in message and words in message
    (tmp_path / "picture.yaml").write_bytes(b"\x89PNG\r\n\x1a\n\xff\xd8")
    assert "picture.yaml: cannot be read" in error(load_config, tmp_path / "picture.yaml")


def test_bases_that_are_none(tmp_path):
    first = write(tmp_path, "base: second.yaml\n", "first.yaml")
    write(tmp_path, "base: first.yaml\n", "second.yaml")
    assert "leads back" in error(load_config, first)
    assert "leads back" in error(load_config, write(tmp_path, "base: own.yaml", "own.yaml"))
    assert "absent.yaml: no such" in error(load_config, write(tmp_path, "base: absent.yaml"))
    assert "base must be a file name" in error(load_config, write(tmp_path, "base: [a.yaml]"))


def test_every_field_is_read_by_the_package():
    """No dead keys: outside config.py, some line reads ``.field`` of each."""
    files = [p for p in (ROOT / "mindspore_coupalign").rglob("*.py") if p.name != "config.py"]
    source = "\n".join(p.read_text() for p in files)
    fields = leaves()
    assert len(fields) > 50
    dead = [name for name in fields if not re.search(rf"\.{name.rpartition('.')[2]}\b", source)]
    assert not dead


@pytest.mark.parametrize("name", shipped_configs())
def test_a_shipped_configuration_has_todays_keys(name, capsys):
    load_config(name)
    assert capsys.readouterr().err == ""


def test_a_shipped_configuration_is_found_by_its_name_from_any_folder(tmp_path, monkeypatch):
    shipped = shipped_configs()
    assert {"base", "refshapes_tiny", "refshapes_general", "refcoco_swin_b", "lavt_swin_b",
            "refcoco_swin_b_wpa_4"} <= shipped.keys()
    monkeypatch.chdir(tmp_path)
    for name in ("lavt_swin_b", "lavt_swin_b.yaml", "configs/paper/lavt_swin_b.yaml"):
        assert load_config(name).model.fusion.name == "pixel_word"
    (tmp_path / "lavt_swin_b").write_text("model: {decoder: {dim: 64}}\n")  # the user's own file comes first
    assert load_config("lavt_swin_b").model.decoder.dim == 64
    for name in ("lavt_swin_c", "elsewhere/lavt_swin_b.yaml", "lavt_swin_b.yml"):
        with pytest.raises(UserError, match="no such configuration file, and none of that name is shipped"):
            load_config(name)


def test_shipped_configurations_have_different_names():
    assert len(SHIPPED) >= AT_LEAST and len({file.stem for file in SHIPPED}) == len(SHIPPED)
