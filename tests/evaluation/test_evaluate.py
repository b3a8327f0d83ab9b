"""The command evaluate under several protocols at once: table, results file, file of details, and what it refuses."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from pycocotools import mask as coco
from refer_files import SPLITS, refs_and_instances, write_refer
from tiny_network import eager, tiny_config

from mindspore_coupalign import build
from mindspore_coupalign.__main__ import main
from mindspore_coupalign.data.leakage import image_paths, seen_with
from mindspore_coupalign.data.refer import read_refer
from mindspore_coupalign.data.tokenizer import SentenceTokenizer
from mindspore_coupalign.data.transforms import ImageTransform
from mindspore_coupalign.evaluation import protocols
from mindspore_coupalign.weights.checkpoint import named_arrays, save_checkpoint

SPLIT = ("val", "train")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """``raw`` of every ref's second sentence is another one than ``sent``, and the last is short."""
    refs, instances = refs_and_instances()
    for ref in refs:
        ref["sentences"][1:2] = [s | {"raw": "Big red TRIANGLE"} for s in ref["sentences"][1:2]]
        ref["sentences"][-1]["sent"] = "red square"
    return write_refer(tmp_path_factory.mktemp("data"), refs, instances)


@pytest.fixture(scope="module")
def checkpoint(root, tmp_path_factory):
    """Random weights that see about half of a picture, with positions for prompts of three sentences."""
    import mindspore as ms

    config = tiny_config(f"data.root={root}", "data.dataset=tiny", "data.split_by=unc", "model.text.max_positions=24",
                         "eval.batch_size=4")
    tokenizer = SentenceTokenizer.from_name(config.data.tokenizer, config.data.max_tokens)
    ms.set_seed(0)
    model = build.build_model(config, tokenizer.vocab_size).set_train(False)
    random = np.random.default_rng(0)
    for parameter in model.get_parameters():
        if parameter.ndim > 1:
            scale = 1.5 / np.sqrt(np.prod(parameter.shape[1:]))
            parameter.set_data(ms.Tensor(random.normal(0, scale, parameter.shape).astype(np.float32)))
    data = read_refer(root, "tiny", "unc")
    image = ImageTransform(64, config.data.mean, config.data.std).image(data.read_image(0))[None]
    logits = eager(model, image, *tokenizer(["the red square"])).asnumpy()
    model.head.conv.bias.set_data(model.head.conv.bias - float(np.median(logits)))
    path = tmp_path_factory.mktemp("checkpoint") / "best.safetensors"
    progress = {"step": 7, "seen_images": seen_with(image_paths(data, "train")[:1])}
    save_checkpoint(path, named_arrays(model.get_parameters(), "model"), config, tokenizer.to_json(), progress)
    return path


@pytest.fixture(scope="module")
def done(checkpoint, command_line, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scores")
    run = command_line("evaluate", "--checkpoint", checkpoint, "--split", *SPLIT, "--shuffled", "val", "--protocol",
                       "all", "--output", folder / "scores.json", "--details", folder / "details.jsonl")
    assert run.code == 0, run.err
    lines = (folder / "details.jsonl").read_text(encoding="utf-8").splitlines()
    return SimpleNamespace(out=run.out, err=run.err, document=json.loads((folder / "scores.json").read_text()),
                           details=[json.loads(line) for line in lines])


def test_every_protocol_has_a_row_and_its_conventions(done):
    assert done.document["protocols"].keys() == protocols.PROTOCOLS.keys()
    assert done.document["protocols"]["cris"]["threshold"] == 0.35
    assert done.document["protocols"]["sentence"]["text"] == "sent"
    lines = done.out.splitlines()
    for split in SPLIT:
        result = done.document["splits"][split]
        assert (result["sentences"], result["image"]["samples"]) == (SPLITS[split], SPLITS[split])
        for name, scores in result["protocols"].items():
            row = next(line for line in lines if line.startswith(f"{split:<24}{name} "))
            assert scores["samples"] == (result["refs"] if name.startswith("ref-") else SPLITS[split])
            assert f" {scores['mIoU']:.2f}" in row and (f" {scores.get('oIoU', -1):.2f}" in row) == ("oIoU" in scores)
        assert f"{split:<24}image's own size" in done.out and f"{split:<24}network's input" in done.out
    assert "also called cIoU" in done.out and "also called gIoU" in done.out
    assert done.document["splits"]["train"]["protocols"]["lavt"] != done.document["splits"]["train"]["input"]
    assert done.document["shuffled"]["val"]["protocols"].keys() == protocols.PROTOCOLS.keys() - {"sentence"}


def test_pictures_that_the_checkpoint_was_trained_on_are_said(done):
    assert done.document["seen_images"] == {"val": {"seen": 0, "images": 1}, "train": {"seen": 1, "images": 2}}
    warnings = [line for line in done.err.splitlines() if "was trained on" in line]
    assert len(warnings) == 1 and "train: the checkpoint was trained on 1 of this split's 2 images" in warnings[0]


def test_cut_sentences_are_counted(done):
    """9 word pieces and more in all but the last sentence of a ref; the network reads 8."""
    assert [done.document["splits"][split]["cut"]["sentences"] for split in SPLIT] == [1, 3]
    longest = done.document["splits"]["val"]["cut"]["longest"]
    assert f"val: 1 of 3 sentences were cut at data.max_tokens=8 (the longest has {longest} word pieces)" in done.out
    for record in done.details:
        assert record["cut"] == max(0, record["pieces"] - 8) and (record["cut"] > 0) == (record["text"] != "red square")


def test_prompts_beyond_the_trained_positions_are_said(done):
    assert "note: prompts of several sentences take up to" in done.out


def test_details_give_the_table_without_the_network(done, root):
    """With pycocotools and the annotation file alone: I and U of every sentence, and the scores."""
    annotations = {a["id"]: a for a in json.loads((root / "tiny" / "instances.json").read_text())["annotations"]}
    refs, _ = refs_and_instances()
    assert len(done.details) == sum(SPLITS[split] for split in SPLIT)
    assert 4 <= sum(0 < record["intersection"] < record["union"] for record in done.details)
    for split in SPLIT:
        records = [record for record in done.details if record["split"] == split]
        assert [record["sentence_id"] for record in records] == [
            s["sent_id"] for ref in refs if ref["split"] == split for s in ref["sentences"]]
        for record in records:
            h, w = record["rle"]["size"]
            parts = annotations[record["ann_id"]]["segmentation"]
            rles = coco.frPyObjects(parts, h, w) if isinstance(parts, list) and isinstance(parts[0], list) else (
                parts if isinstance(parts, list) else [parts])
            rles = [coco.frPyObjects([rle], h, w)[0] if isinstance(rle["counts"], list) else rle for rle in rles]
            truth = coco.merge(rles)
            both = int(coco.area(coco.merge([truth, record["rle"]], intersect=True)))
            either = int(coco.area(coco.merge([truth, record["rle"]])))
            assert (record["intersection"], record["union"]) == (both, either)
        inter, union = np.array([(r["intersection"], r["union"]) for r in records]).T
        scores = done.document["splits"][split]["image"]
        assert scores["oIoU"] == pytest.approx(100 * inter.sum() / union.sum(), abs=1e-3)
        assert scores["mIoU"] == pytest.approx(100 * (inter / union).mean(), abs=1e-3)


def fails(capsys, *arguments) -> str:
    assert main([str(a) for a in arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "\n" not in error
    return error


def test_what_is_refused(checkpoint, tmp_path, capsys):
    command = ("evaluate", "--checkpoint", checkpoint, "--split", "val")
    error = fails(capsys, *command, "--protocol", "sentence", "lvat")
    assert "--protocol lvat: no such protocol; did you mean lavt?" in error and "refsegformer" in error
    details = tmp_path / "details.jsonl"
    assert "add sentence to --protocol" in fails(capsys, *command, "--protocol", "cris", "--details", details)
    assert "does not exist" in fails(capsys, *command, "--details", tmp_path / "no" / "details.jsonl")
    assert "name the same file" in fails(capsys, *command, "--details", details, "--output", details)
    error = fails(capsys, "evaluate", "--checkpoint", checkpoint, "--split", "train", "data.max_tokens=12",
                  "--protocol", "sentence", "ref-concatenated", "--details", details)
    assert "the 3 sentences of ref 500" in error and "24 positions (model.text.max_positions)" in error
    assert "leave this protocol out" in error
    assert not details.exists()


def test_help_names_the_protocols(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert all(name in text.replace("- ", "-") for name in protocols.PROTOCOLS)
