"""Several data sets in one training (``data.sets``), images left out (``data.skip_images``), and images that a
training shares with a validation or test split."""

import json
import shutil
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from fake_training import compute_nothing
from several_sets import config_of, own, union_of, write_set, write_sets
from tiny_network import TINY

from mindspore_coupalign.__main__ import main
from mindspore_coupalign.cli import train
from mindspore_coupalign.config import config_from_dict, config_to_dict
from mindspore_coupalign.config.paths import without_absolute_paths, without_paths
from mindspore_coupalign.data import leakage
from mindspore_coupalign.data.leakage import image_paths, seen_images, seen_with, warnings_of
from mindspore_coupalign.data.loader import TrainSource
from mindspore_coupalign.data.refer import read_refer
from mindspore_coupalign.data.refshapes.dataset import make_shapes
from mindspore_coupalign.data.sets import open_data
from mindspore_coupalign.data.tokenizer import SentenceTokenizer
from mindspore_coupalign.data.transforms import ImageTransform
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.training.dry_run import check_images
from mindspore_coupalign.training.run_folder import check_resumable
from mindspore_coupalign.weights.checkpoint import Checkpoint, load_checkpoint


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_sets(tmp_path_factory.mktemp("sets"))


def test_the_union_holds_every_set_as_it_is(root):
    """Sentences, masks, images and ids of each ref, but for the refs on images of another split."""
    union = union_of(root, "a", "b", "own")
    expected = []
    for name, left_out in (("a", [2]), ("b", [3, 4]), ("own", [])):
        data = read_refer(root, name, "unc")
        expected += [(data, r) for r in data.refs_to_train("train") if r not in left_out]
    assert len(union.ref_ids) == len(expected) == 2 + 3 + 6 and str(union.source) == "data.sets"
    for r, (data, s) in enumerate(expected):
        assert union.ref_ids[r] == data.ref_ids[s] and union.part_of(r).split()[0] == data.source.parent.name
        for overlap in ("union", "single"):
            np.testing.assert_array_equal(union.mask(r, overlap), data.mask(s, overlap))
        np.testing.assert_array_equal(union.read_image(r), data.read_image(s))
        mine, theirs = (range(*d.ref_sentences[k:k + 2]) for d, k in ((union, r), (data, s)))
        for field in ("sent", "raw"):
            assert [union.sentence(i, field) for i in mine] == [data.sentence(i, field) for i in theirs]
        assert union.sentence_ref[mine].tolist() == [r] * len(mine)
        np.testing.assert_array_equal(union.sentence_ids[mine], data.sentence_ids[theirs])
    assert any("2 of 9 training images, with 3 refs, are kept out" in line for line in union.notes), union.notes


def test_pictures_of_the_validation_set_are_kept_out_though_it_is_not_trained_on(root):
    union = union_of(root, "b")
    assert len(union.ref_ids) == 3 and not {3, 12} & {leakage.coco_id(f) for f in union.image_files}


def test_the_same_file_under_another_name_is_kept_out(tmp_path, root):
    """By content, also where only one of the two has a number of COCO's; a file of the same size alone is not."""
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    pictures = tmp_path / "images"
    shutil.copyfile(pictures / "a/COCO_train2014_000000000004.jpg", pictures / "own/y.png")  # a's testA
    content = bytearray((pictures / "a/COCO_train2014_000000000003.jpg").read_bytes())
    content[-20] ^= 1
    (pictures / "own/z.png").write_bytes(content)
    union = union_of(tmp_path, "own")
    assert sorted(path.rsplit("/", 1)[1] for path in union.image_files) == ["w.png", "x.png", "z.png"]


def test_shared():
    """Names with numbers decide by themselves, whether the files are there or not."""
    first, second = leakage.Path("p"), leakage.Path("q")
    names = ["COCO_train2014_000000000003.jpg", "x.jpg", "COCO_val2014_000000000009_2.jpg", "000000000004.png"]
    others = ["000000000003.jpg", "x.jpg", "COCO_train2014_000000000009.jpg", "COCO_train2014_000000000005.jpg"]
    same = leakage.shared([first / n for n in names], [second / n for n in others])
    assert same.tolist() == [True, False, True, False]
    assert leakage.shared([first / "x.jpg"], [first / "x.jpg"]).tolist() == [True]
    assert leakage.shared([], [first]).tolist() == [] and leakage.shared([first], []).tolist() == [False]


def order(union, epochs, seed=0):
    return [union.epoch_samples("train", seed, epoch) for epoch in range(epochs)]


def test_each_ref_once_per_epoch_without_weights(root):
    union = union_of(root, "a", "b", "own")
    drawn = order(union, 12)
    for epoch in drawn:
        assert sorted(union.sentence_ref[epoch]) == list(range(11))
    assert len({tuple(epoch) for epoch in drawn}) == 12
    assert set(np.concatenate(drawn)) == set(range(len(union.sentence_ref)))


def test_a_single_set_is_trained_in_the_order_that_it_has_without_sets(root):
    data, union = read_refer(root, "own", "unc"), union_of(root, "own")
    for epoch in range(4):
        assert union.epoch_samples("train", 5, epoch).tolist() == data.epoch_samples("train", 5, epoch).tolist()


@pytest.mark.parametrize("weight, size", [(1.0, 6), (2.0, 12), (0.5, 3), (1.5, 9), (0.67, 4), (3.2, 19)])
def test_weights(root, weight, size):
    """Over the epochs every ref of a set comes equally often, w times per epoch; the other set is as it was."""
    union = union_of(root, "a", own(weight=weight))
    assert union.epoch_size("train") == 3 + size
    counts = Counter()
    for number, epoch in enumerate(order(union, 12), 1):
        refs = union.sentence_ref[epoch]
        assert len(epoch) == 3 + size and sorted(refs[refs < 3]) == [0, 1, 2]
        counts.update(refs[refs >= 3].tolist())
        assert max(counts.values()) - min(counts[r] for r in range(3, 9)) <= 1, number
    assert sum(counts.values()) == 12 * size
    assert [e.tolist() for e in order(union, 12)] == [
        union.epoch_samples("train", 0, epoch).tolist() for epoch in range(12)]
    assert union.epoch_samples("train", 0, 7).tolist() == order(union, 8)[-1].tolist()  # no state between them
    assert union.epoch_samples("train", 1, 0).tolist() != union.epoch_samples("train", 0, 0).tolist()


def test_ranks_and_a_later_start_see_the_same_order(root):
    union, tokenizer = union_of(root, "a", own(weight=1.5)), SentenceTokenizer.from_name("refshapes", 16)

    def drawn(steps=(0, 9), rank=0, ranks=1):
        source = TrainSource(union, "train", tokenizer, ImageTransform(32, (0.5,) * 3, (0.2,) * 3), 3, 4, 0.5, steps,
                             rank, ranks)
        return [source.item(k) for k in range(len(source))]

    whole = drawn()
    halves = [drawn(rank=rank, ranks=2) for rank in range(2)]
    mixed = [item for step in range(9) for half in halves for item in half[2 * step:2 * step + 2]]
    for items in (mixed, whole[:20] + drawn(steps=(5, 9))):
        for item, other in zip(whole, items, strict=True):
            for a, b in zip(item, other, strict=True):
                np.testing.assert_array_equal(a, b)


def test_ids_as_text_beside_numbers(tmp_path, root):
    def rename(refs, instances):
        for ref in refs:
            ref["ref_id"] = f"r{ref['ref_id']}"

    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    write_set(tmp_path, "texts", ["train"] * 6, ["1.png", "2.png", "3.png", "4.png"], rename)
    union = union_of(tmp_path, "own", {"dataset": "texts", "split_by": "unc"})
    assert [str(i) for i in union.ref_ids] == [*map(str, range(500, 506)), *(f"r{i}" for i in range(500, 506))]


def test_a_missing_picture_is_named_with_its_folder(tmp_path, root):
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    union = union_of(tmp_path, "own")
    assert check_images(union) == 4
    (tmp_path / "images/own/x.png").rename(tmp_path / "images/x.png")
    with pytest.raises(UserError, match="own/x.png: no such image file, but .*images/x.png exists"):
        union.read_image(0)
    with pytest.raises(UserError, match="own/x.png: missing or empty, but .*images/x.png exists"):
        check_images(union)


@pytest.mark.parametrize("sets, words", [
    ([{"dataset": "own"}], r"data.sets\[0\] needs dataset and split_by"),
    (["a", own(weight=0.0)], r"data.sets\[1\].weight must be positive"),
    (["own", own(weight=2)], r"names own \(unc\), train twice"),
    ([own(wieght=1)], r"did you mean data.sets\[0\].weight"),
    (["own", 5], r"data.sets\[1\] must be a section"), ([own(weight=[1])], r"data.sets\[0\].weight must be a number"),
    ([own(weight=0.01)], r"nothing of own \(unc\) is left"), (["nowhere"], "no such data set"),
    ([own(train_split="trian")], "no split 'trian'"), ([own(train_split="val")], "no split 'val'"),
    ([own(skip_images=["x.jpg"])], r"x.jpg is no image of a ref .*did you mean x.png")])
def test_impossible_sets_are_refused(root, sets, words):
    with pytest.raises(UserError, match=words):
        union_of(root, *sets)


def test_paths_of_the_sets_stay_at_home(root):
    values = {"data": {"sets": [own(root=str(root), images="images"), own(root="here", dataset="b")]}}
    config = config_from_dict(values, "test")
    plain = without_absolute_paths(config).data.sets
    assert [(entry.root, entry.images) for entry in plain] == [("", "images"), ("here", "")]
    assert str(root) not in json.dumps(without_paths(config)) and "weight" in without_paths(config)["data"]["sets"][0]
    assert config_from_dict(config_to_dict(config), "again") == config


def test_a_resumed_run_may_move_its_sets_but_not_change_them(root, tmp_path):
    def config(**more):
        return config_from_dict({"data": {"sets": [own(), {"dataset": "b", "split_by": "unc", **more}]}}, "test")

    state = Checkpoint(tmp_path / "last.safetensors", {}, config(), "", {"updates": 1})
    assert check_resumable(state, config(root="/moved")) == ["data.sets[1].root: was '', now '/moved'"]
    with pytest.raises(UserError, match=r"data.sets\[1\].weight was 1.0, now 2.0"):
        check_resumable(state, config(weight=2.0))
    with pytest.raises(UserError, match="data.sets was "):
        check_resumable(state, config_from_dict({"data": {"sets": [own()]}}, "test"))


# what a checkpoint has seen

def test_hashes(root, tmp_path):
    paths = [root / "images/own" / f"{name}.png" for name in "xyz"]
    assert len(leakage.image_hashes(paths)) == 3
    moved = tmp_path / "renamed.png"
    shutil.copyfile(paths[0], moved)
    assert leakage.image_hashes([moved])[0] in leakage.image_hashes(paths)
    assert leakage.image_hashes([tmp_path / "absent.png"]).size == 0
    both = leakage.image_hashes([tmp_path / n for n in ("COCO_train2014_000000000003.jpg", "000000000003.jpg")])
    assert len(both) == 1
    many = np.sort(np.random.default_rng(0).integers(0, 2**64, 17_000, np.uint64))
    text = leakage.hashes_to_text(many)
    assert len(text) < 182_000 and (leakage.hashes_from_text(text, "") == many).all()
    for damaged in (text[:-2], "§", 5):
        with pytest.raises(UserError, match="seen_images.* is damaged"):
            leakage.hashes_from_text(damaged, "x.safetensors")


def test_seen_pictures_are_counted_by_split(root):
    data, other = (read_refer(root, name, "unc") for name in "ab")
    progress = {"seen_images": seen_with(image_paths(data, "train"))}
    assert seen_images(progress, "", data, ["val", "train"]) == {
        "val": {"seen": 0, "images": 1}, "train": {"seen": 2, "images": 2}}
    found = seen_images(progress, "", other, ["testA", "train"])
    assert found == {"testA": {"seen": 1, "images": 1}, "train": {"seen": 0, "images": 3}}
    assert len(warnings_of(found)) == 1 and "testA: the checkpoint was trained on 1 of this split's 1" in \
        warnings_of(found)[0]
    assert seen_images({"step": 3}, "", other, ["testA"]) is None and warnings_of(None) == []
    more = {"seen_images": seen_with(image_paths(other, "train"), progress)}
    assert seen_images(more, "", data, ["val", "train"])["val"]["seen"] == 1  # b's train has it
    assert seen_images(more, "", data, ["train"])["train"]["seen"] == 2


# the real commands

@pytest.fixture(scope="module")
def run(root, tmp_path_factory):
    """RefShapes and a's images, trained for two steps, validated on b."""
    folder = tmp_path_factory.mktemp("run")
    make_shapes(folder / "shapes", 1, train=4, val=1, testA=1, testB=1)
    values = json.loads(json.dumps(TINY))
    values["data"] |= {"root": str(root), "dataset": "b", "split_by": "unc", "val_split": "testA", "max_tokens": 16,
                       "sets": [{"dataset": "a", "split_by": "unc"},
                                {"root": str(folder / "shapes"), "dataset": "refshapes", "split_by": "shapes",
                                 "weight": 0.5}]}
    values["model"]["fusion"] |= {"stages": [1]}
    values["model"]["backbone"] = {"name": "darknet", "embed_dim": 8, "depths": [1, 1, 1, 1],
                                   "freeze_batch_norm": False}
    values["model"]["text"] |= {"groups": [1, 0, 0, 0], "max_positions": 24}
    file = folder / "sets.yaml"
    file.write_text(yaml.safe_dump(values))
    return SimpleNamespace(folder=folder, config=file, output=folder / "run")


@pytest.mark.slow  # compiles a step
def test_train_and_evaluate(run, root, command_line):
    done = command_line("train", "--config", run.config, "--output", run.output, "train.steps=2", timeout=500)
    assert done.code == 0, done.err
    assert "a + refshapes: 2 steps" in done.out
    assert "an epoch has 6 samples: a (unc, train) 2 refs, refshapes (shapes, train) 8 refs x 0.5" in done.out
    assert "data.sets: 1 of 6 training images, with 1 refs, are kept out" in done.out
    scores = run.folder / "scores.json"
    done = command_line("evaluate", "--checkpoint", run.output / "best.safetensors", "--split", "testA", "train",
                        "--output", scores, f"data.root={root}", "data.dataset=a")
    assert done.code == 0, done.err
    assert json.loads(scores.read_text())["seen_images"] == {"testA": {"seen": 0, "images": 1},
                                                             "train": {"seen": 1, "images": 2}}
    warnings = [line for line in done.err.splitlines() if "was trained on" in line]
    assert len(warnings) == 1 and warnings[0].startswith("warning: train: the checkpoint was trained on 1 of this")


def test_a_resumed_run_sees_the_same_samples(run, monkeypatch, capsys):
    """Every step non-finite, so that skipped.jsonl lists every sample; nothing is computed."""
    def train_to(steps, output, *more):
        compute_nothing(monkeypatch, [float("nan")] * steps)
        assert main(["train", "--config", str(run.config), "--output", str(run.folder / output), *more,
                     f"train.steps={steps}"]) == 0
        return [json.loads(line) for line in (run.folder / output / "skipped.jsonl").read_text().splitlines()]

    whole = train_to(7, "whole")
    train_to(3, "stopped")
    assert train_to(7, "stopped", "--resume", str(run.folder / "stopped")) == whole
    assert len(whole) == 7 and {name for line in whole for name in line["sets"]} == {
        "a (unc, train)", "refshapes (shapes, train)"}
    capsys.readouterr()
    best = load_checkpoint(run.folder / "stopped/best.safetensors")
    assert len(leakage.hashes_from_text(best.progress["seen_images"], "")) == 1 + 4
    assert [entry.root for entry in best.config.data.sets] == ["", ""]


def test_what_train_makes_of_its_sets(run, root, monkeypatch, capsys):
    """Without a step: the epoch's length, the lines, the samples by set, and images of the run before."""
    made = []
    monkeypatch.setattr(train.Trainer, "train", lambda self: made.append(self))
    assert main(["train", "--config", str(run.config), "--output", str(run.folder / "none")]) == 0
    trainer = made[0]
    assert trainer.plan.refs == 6 and trainer.plan.total == -(-40 * 6 // 4) and trainer.train_data is not trainer.data
    found = trainer.step_log.samples_of(2)
    assert set(found["sets"]) <= {"a (unc, train)", "refshapes (shapes, train)"} and len(found["sets"]) == 4
    for sample, name, ref in zip(found["samples"], found["sets"], found["refs"], strict=True):
        assert name.startswith("a") == (sample < 5) and (ref in (500, 501)) == (sample < 5)
    trainer.origin = SimpleNamespace(path="x", progress={
        "seen_images": seen_with(image_paths(open_data(config_of(root, dataset="own")), "train"))})
    assert len(leakage.hashes_from_text(trainer.seen_images, "")) == 1 + 4 + 4
    assert main(["train", "--config", str(run.config), "--output", str(run.folder / "none"),
                 "data.sets=[{dataset: b, split_by: unc, skip_images: [x.jpg]}]"]) == 2
    assert "x.jpg is no image of a ref" in capsys.readouterr().err
