"""Images left out (``data.skip_images``), and what check-data says of several sets."""

import shutil

import numpy as np
import pytest
import yaml
from several_sets import coco, config_of, write_set, write_sets

from mindspore_coupalign.__main__ import main
from mindspore_coupalign.cli import check_data
from mindspore_coupalign.data.refer import read_refer
from mindspore_coupalign.data.sets import keep_refs, open_data
from mindspore_coupalign.errors import UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_sets(tmp_path_factory.mktemp("sets"))


# data.skip_images

def test_pictures_are_left_out_with_their_refs(root):
    data = read_refer(root, "a", "unc")
    name = str(data.image_files[0])
    less = open_data(config_of(root, skip_images=[name]))
    assert less.ref_ids.tolist() == data.ref_ids[2:].tolist() and len(less.image_files) == 3
    assert [less.sentence(s) for s in range(len(less.sentence_ref))] == [data.sentence(s) for s in range(5, 11)]
    assert "1 image of" in less.notes[0] and "2 refs (train 2) and 5 sentences" in less.notes[0]
    for r in range(4):
        np.testing.assert_array_equal(less.mask(r), data.mask(r + 2))
        np.testing.assert_array_equal(less.read_image(r), data.read_image(r + 2))
    everything = keep_refs(data, np.ones(6, bool))
    for field in ("ref_image", "image_files", "text", "text_at", "raw", "raw_at", "rle", "rle_at", "sentence_ref",
                  "ref_sentences", "single", "single_at", "sentence_ids", "ref_split"):
        assert np.array_equal(getattr(everything, field), getattr(data, field)), field


@pytest.mark.parametrize("names, words", [
    (["COCO_train2014_00000000001.jpg"], "did you mean COCO_train2014_0"), (["zebra"], "are called like COCO_train"),
    (coco(1, 12, 3, 4), "leaves no ref")])
def test_unknown_pictures_are_refused(root, names, words):
    with pytest.raises(UserError, match=words):
        open_data(config_of(root, skip_images=names))


def test_check_data_leaves_out_a_broken_picture(tmp_path, root, capsys):
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    (tmp_path / "images/own/y.png").write_bytes(b"GIF89a")
    command = ["check-data", "--root", str(tmp_path), "--dataset", "own", "--split-by", "unc"]
    assert main(command) == 1
    capsys.readouterr()
    assert main([*command, "--skip-images", "y.png"]) == 0
    out = capsys.readouterr().out
    assert "3 of 3 are there" in out and "left out, with 1 refs (train 1) and 1 sentences" in out
    assert main([*command, "--skip-images", "v.png"]) == 2 and "did you mean" in capsys.readouterr().err


# check-data

def test_check_data_counts_leaks_across_sets(root, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(check_data, "_DEFAULT_TOKENIZER", str(tmp_path / "none"))
    assert main(["check-data", "--root", str(root), "--dataset", "a", "b", "own", "--split-by", *["unc"] * 3]) == 0
    by_option = capsys.readouterr().out
    assert "Split test stands for testA here." in by_option
    assert "objects      6 annotations in instances.json, 0 of which no ref names" in by_option
    lines = by_option[by_option.index("Images that a training split shares"):].splitlines()[1:]
    assert [line.strip() for line in lines] == ["a (unc, train) has 1 image of b (unc, testA)",
                                                "b (unc, train) has 1 image of a (unc, val)"]
    file = tmp_path / "sets.yaml"
    sets = [{"dataset": name, "split_by": "unc"} for name in ("a", "b", "own")]
    file.write_text(yaml.safe_dump({"data": {"root": "x", "dataset": "a", "split_by": "unc", "sets": sets}}))
    assert main(["check-data", "--config", str(file), f"data.root={root}"]) == 0
    assert capsys.readouterr().out == by_option
    assert main(["check-data", "--root", str(root), "--dataset", "a", "own", "--split-by", "unc", "unc"]) == 0
    assert "no training split has an image of another set's" in capsys.readouterr().out


@pytest.mark.parametrize("options, words", [
    (["--root", "x", "--dataset", "a", "b", "--split-by", "unc"], "one for each"), (["--root", "x"], "--dataset and"),
    (["--root", "x", "--config", "y"], "--config names the data"), (["data.root=x"], "give --config")])
def test_check_data_refuses(capsys, options, words):
    assert main(["check-data", *options]) == 2 and words in capsys.readouterr().err


def test_annotations_that_no_ref_names_are_counted(tmp_path, capsys):
    def add(refs, instances):
        instances["annotations"] += [instances["annotations"][0] | {"id": 1}, instances["annotations"][1]]

    write_set(tmp_path, "more", ["train"] * 5 + ["test"], ["1.png", "2.png", "3.png", "4.png"], add)
    assert main(["check-data", "--root", str(tmp_path), "--dataset", "more", "--split-by", "unc"]) == 0
    out = capsys.readouterr().out
    assert "7 annotations in instances.json, 1 of which no ref names" in out and "Split test" not in out


