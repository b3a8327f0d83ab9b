"""The command predict: several images and sentences, the names of its files, what it never overwrites, its exit codes.

The network has no parameters (conftest.py); the real command runs in test_predict.py.
"""

import json
import os
import re
import sys

import cv2
import numpy as np
import pytest
from conftest import SENTENCES, red_network
from PIL import Image
from pycocotools import mask as coco

from mindspore_coupalign.__main__ import main
from mindspore_coupalign.inference import loading, predictions
from mindspore_coupalign.inference.predictions import Details


@pytest.fixture
def model(make_model):
    return make_model()


@pytest.fixture
def call(monkeypatch, capsys, model, tmp_path):
    """``call(images, texts, *options)`` runs the command in this process: code, out, err; output folder ``out``."""
    def run(images, texts, *options):
        arguments = [*(part for image in images for part in ("--image", image)),
                     *(part for text in texts for part in ("--text", text))]
        code = main(["predict", "--checkpoint", "best.safetensors", "--output", str(tmp_path / "out"),
                     *map(str, arguments), *map(str, options)])
        return code, *capsys.readouterr()

    monkeypatch.setattr(loading, "open_model", lambda *_: model)
    return run


@pytest.fixture
def unloaded(monkeypatch):
    """Nothing may load the network."""
    def fail(*_):
        raise AssertionError("the network was loaded for nothing")

    monkeypatch.setattr(loading, "open_model", fail)


def records(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def masks(folder) -> dict:
    return {path.name: cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in folder.glob("*_mask.png")}


def write(path, rgb):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb).save(path)
    return path


def test_images_of_one_name_get_names_of_their_own(call, picture, model, tmp_path):
    a, b = write(tmp_path / "a" / "1.png", picture.rgb), write(tmp_path / "b" / "1.png", picture.rgb[::-1].copy())
    code, out, err = call([a, b, a], SENTENCES[:1])
    assert (code, err) == (0, "") and out.count("90 x 60 pixels") == 2  # a file given twice is one
    found = masks(tmp_path / "out")
    assert sorted(found) == ["a_1.png_1_the-red-circle_mask.png", "b_1.png_1_the-red-circle_mask.png"]
    for rgb, mask in ((picture.rgb, found["a_1.png_1_the-red-circle_mask.png"]),
                      (picture.rgb[::-1], found["b_1.png_1_the-red-circle_mask.png"])):
        expected = model.predict(rgb, SENTENCES[0])
        np.testing.assert_array_equal(mask > 0, expected.mask)
        assert f"score {expected.score:.2f}" in out


def test_several_images_after_one_option(call, picture, tmp_path):
    images = [write(tmp_path / f"{name}.png", picture.rgb[:20, :30].copy()) for name in "ab"]
    assert call([images[0]], SENTENCES, "--image", str(images[1]))[0] == 0
    assert len(masks(tmp_path / "out")) == 4
    assert call([], SENTENCES, "--overwrite", "--image", *map(str, images))[0] == 0
    assert len(masks(tmp_path / "out")) == 4


def test_nothing_is_overwritten_unasked(call, picture, tmp_path, monkeypatch):
    a, b = write(tmp_path / "a" / "1.png", picture.rgb), write(tmp_path / "b" / "1.png", picture.rgb[::-1].copy())
    assert call([a], SENTENCES)[0] == 0
    before = masks(tmp_path / "out")
    for images, more in (([a], 3), ([b], 3)):
        with monkeypatch.context() as patch:
            patch.setattr(loading, "open_model", lambda *_: pytest.fail("loaded for nothing"))
            code, out, err = call(images, SENTENCES)
        assert code == 2 and out == "" and err.count("\n") == 1
        assert re.search(rf"1_1_the-red-circle_mask.png: exists already \(and {more} more\); add --overwrite", err)
    after = masks(tmp_path / "out")
    assert before.keys() == after.keys() and all((before[name] == after[name]).all() for name in before)
    assert call([b], SENTENCES, "--overwrite")[0] == 0
    assert any((mask != before[name]).any() for name, mask in masks(tmp_path / "out").items())
    assert call([b], ["the blue square"])[0] == 0  # another sentence


def test_a_broken_image_is_named_and_the_others_go_on(call, picture, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"GIF89a")
    code, out, err = call([bad, picture.path, tmp_path / "none.png"], SENTENCES[:1])
    assert code == 1 and "shapes.png: 90 x 60 pixels; loaded" in out
    assert [line.split(": ")[1] for line in err.splitlines()] == [str(bad), str(tmp_path / "none.png")]
    assert list(masks(tmp_path / "out")) == ["shapes_1_the-red-circle_mask.png"]


def test_nothing_is_loaded_for_nothing(call, unloaded, picture, tmp_path):
    code, out, err = call([tmp_path / "none.png", tmp_path / "nor.png"], SENTENCES)
    assert code == 2 and out == "" and err.count("error: ") == err.count("\n") == 2
    assert not (tmp_path / "out").exists()
    for text, match in (("caf\udce9", "byte 0xe9 at character 4 is not UTF-8"), (" \t\n", "empty; write what")):
        code, _, err = call([picture.path], [SENTENCES[0], text])
        assert code == 2 and match in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text, match", [
    ("\x07\x00", "empty"), ("?! ...", "no words"), ("\U0001f642", "no words"),
    ("zebra \U0001f642", "none of its words"),
    ("x" * 100_000, "none of its words"), (" ".join(f"q{i}" for i in range(5000)), "and 4990 more")])
def test_sentences_without_a_word_are_refused_in_one_short_line(call, picture, tmp_path, text, match):
    code, _, err = call([picture.path], [text])
    assert code == 2 and match in err and err.count("\n") == 1 and len(err) < 500
    assert not (tmp_path / "out").exists()


def test_odd_sentences_are_printed_and_drawn_in_bounds(call, picture, tmp_path):
    texts = ["red\x07 circle\x1b[31m", "red circle " * 5000, "red \U0001f642", "red \U0001f643", "红 red", "蓝 red"]
    code, out, err = call([picture.path], texts)
    assert code == 0 and "\x07" not in out + err and "\x1b" not in out + err and len(out) < 2000
    found = {name.split("_", 2)[2] for name in masks(tmp_path / "out")}
    assert len(found) == len(texts) and found >= {"红-red_mask.png", "蓝-red_mask.png"}
    assert all(cv2.imread(str(path)).shape[0] < 1000 for path in (tmp_path / "out").glob("*_overlay.png"))


def test_a_file_name_that_is_no_utf8(command_line, picture, tmp_path, call):
    odd = tmp_path / "caf\udce9.png"
    odd.write_bytes(picture.path.read_bytes())
    assert call([odd], SENTENCES[:1])[0] == 0
    assert (tmp_path / "out" / "caf\udce9_1_the-red-circle_mask.png").is_file()


@pytest.mark.parametrize("option", ["--text", "--image"])
def test_bytes_that_are_no_utf8_on_the_real_command_line(command_line, picture, tmp_path, option):
    arguments = {"--image": str(picture.path), "--text": "red circle"} | {option: "caf\udce9.png"}
    done = command_line("predict", "--checkpoint", tmp_path / "none", "--output", tmp_path / "out",
                        *(part for pair in arguments.items() for part in pair))
    assert done.code == 2 and done.err.count("\n") == 1 and done.err.startswith("error: ") and "udce9" in done.err


def test_small_pictures(call, tmp_path):
    sizes = [(1, 1), (1, 900), (900, 1)]
    images = [write(tmp_path / f"{h}x{w}.png", np.full((h, w, 3), 99, np.uint8)) for h, w in sizes]
    code, out, err = call(images, SENTENCES[:1])
    assert (code, err) == (0, "") and "1 x 1 pixels" in out
    assert sorted(mask.shape for mask in masks(tmp_path / "out").values()) == sizes


def test_names_are_distinct_and_short():
    folders = ["x/1.jpg", "y/1.jpg", "z/x/1.jpg", "X/1.JPG", "x_1.jpg", "2.jpg", "2.png", "3.jpg", "x_1.jpg-2.png"]
    stems = predictions.image_stems(folders)
    assert len({name.casefold() for name in stems}) == len(folders) and stems[7] == "3" and stems[0] == "x_1.jpg"
    long = predictions.image_stems(["a" * 250 + "1.jpg", "a" * 250 + "2.jpg", "红" * 80 + ".png",
                                    "c\udce9" * 60 + ".png"])
    assert len(set(long)) == 4 and all(len(name.encode("utf-8", "surrogateescape")) < 100 for name in long)
    sentences = ["红圈", "蓝圈", "the red cup", "?", "!", "a" * 50, "a" * 51, "कि", "का", "red 🙂", "red 😀", "RED é"]
    slugs = [predictions.slug(sentence) for sentence in sentences]
    assert len(set(slugs)) == len(slugs) and slugs[:3] == ["红圈", "蓝圈", "the-red-cup"]
    assert all(re.fullmatch(r"[^\W_]+(-[^\W_]+)*", slug) and len(slug) < 60 for slug in slugs)


def test_names_on_a_file_system_without_unicode(monkeypatch):
    monkeypatch.setattr(predictions.os, "fsencode", lambda text: text.encode("ascii"))
    assert re.fullmatch(r"red-[0-9a-f]{8}", predictions.slug("红 red"))


def test_the_terminal_need_not_know_the_sentence(call, picture, tmp_path, monkeypatch):
    with open(tmp_path / "log", "w", encoding="ascii") as file:
        monkeypatch.setattr(sys, "stdout", file)
        assert call([picture.path], ["红 red circle"])[0] == 0
    assert r"'\u7ea2 red circle'" in (tmp_path / "log").read_text("ascii")


def test_records_say_what_the_masks_hold(call, picture, model, tmp_path):
    blue = write(tmp_path / "blue.png", np.full((30, 40, 3), (0, 0, 255), np.uint8))
    assert call([picture.path, blue], SENTENCES)[0] == 0
    found = records(tmp_path / "out")
    assert [(r["image"], r["sentence"]) for r in found] == [
        (str(path), sentence) for path in (picture.path, blue) for sentence in SENTENCES]
    for record in found:
        mask = cv2.imread(str(tmp_path / "out" / record["mask"]), cv2.IMREAD_UNCHANGED) > 0
        expected = model.predict(record["image"], record["sentence"])
        np.testing.assert_array_equal(mask, expected.mask)
        np.testing.assert_array_equal(coco.decode(record["rle"]), mask)
        assert record["area"] == mask.sum() == coco.area(record["rle"]) and record["seconds"] > 0
        assert record["score"] == pytest.approx(expected.score, abs=1e-6)
        assert record["box"] == (coco.toBbox(record["rle"]).tolist() if mask.any() else None)
        assert (record["height"], record["width"]) == mask.shape and (tmp_path / "out" / record["overlay"]).is_file()
    assert any(r["box"] for r in found) and not all(r["box"] for r in found)


def test_further_calls_add_records_and_replaced_masks_have_one(call, picture, tmp_path):
    path = tmp_path / "out" / "predictions.jsonl"
    assert call([picture.path], SENTENCES[:1])[0] == 0
    assert call([picture.path], ["the blue square"])[0] == 0
    assert [r["sentence"] for r in records(tmp_path / "out")] == [SENTENCES[0], "the blue square"]
    assert call([picture.path], SENTENCES[:1], "--overwrite", "--threshold", "0.999")[0] == 0
    found = records(tmp_path / "out")
    assert [r["sentence"] for r in found] == ["the blue square", SENTENCES[0]] and found[1]["area"] < 5400
    path.write_text(path.read_text() + "my notes\n")
    code, _, err = call([picture.path], ["red"])
    assert code == 2 and f"{path}: line 3 is not a prediction record" in err and "my notes" in path.read_text()
    assert call([picture.path], ["red"], "--overwrite")[0] == 0 and len(records(tmp_path / "out")) == 3


def test_folders_and_patterns(call, unloaded, picture, monkeypatch, tmp_path, model):
    folder = tmp_path / "in"
    for name in ("b.png", "a.PNG", ".hidden.png", "deep/c.png"):
        write(folder / name, picture.rgb)
    (folder / "notes.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    for bad, match in ((tmp_path / "empty", "a folder without images"), (folder / "*.jpg", "no file matches")):
        code, out, err = call([bad], SENTENCES)
        assert code == 2 and match in err and str(bad) in err and err.count("\n") == 1
    monkeypatch.setattr(loading, "open_model", lambda *_: model)
    assert call([folder, folder / "**" / "*.png", folder / "b.png"], SENTENCES[:1])[0] == 0
    names_found = [os.path.relpath(r["image"], folder) for r in records(tmp_path / "out")]
    assert names_found == ["a.PNG", "b.png", "deep/c.png"]  # a file that is named three times is one
    literal = write(tmp_path / "x[1].png", picture.rgb)
    assert call([literal], SENTENCES[:1])[0] == 0 and records(tmp_path / "out")[-1]["image"] == str(literal)


def test_what_a_folder_holds_beside_pictures(call, unloaded, picture, monkeypatch, tmp_path, model):
    """A broken link and a pipe are named, and the masks of an earlier call into the same folder are no pictures."""
    folder = tmp_path / "out"
    write(folder / "a.png", picture.rgb)
    os.mkfifo(folder / "pipe.png")
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    code, _, err = call([folder / "pipe.png"], SENTENCES)
    assert code == 2 and "pipe.png: not a regular file" in err and not (folder / "predictions.jsonl").exists()
    monkeypatch.setattr(loading, "open_model", lambda *_: model)
    for images in ([folder], [folder / "*.png"]):
        code, _, err = call(images, SENTENCES, "--overwrite")
        assert code == 1 and "gone.png: no such image file" in err and "pipe.png: not a regular file" in err
        assert {os.path.basename(r["image"]) for r in records(folder)} == {"a.png"}


def test_nothing_is_left_where_nothing_was_predicted(call, picture, tmp_path, monkeypatch):
    monkeypatch.setattr("mindspore_coupalign.cli.predict._predict", lambda *_: 0)
    assert call([picture.path], SENTENCES)[0] == 2
    assert not (tmp_path / "out" / "predictions.jsonl").exists()


def test_names_that_are_none(call, unloaded, picture, tmp_path, capsys):
    for arguments in (["--output", ""], ["--image", ""], ["--list", ""]):
        options = {"--output": str(tmp_path / "out"), "--image": str(picture.path), "--text": SENTENCES[0]}
        options |= dict([arguments])
        assert main(["predict", "--model", "refshapes", *(part for pair in options.items() for part in pair)]) == 2
        assert capsys.readouterr().err == f"error: {arguments[0]}: is empty; give a value, or omit the option\n"
    (tmp_path / "out").write_text("")
    assert "a file, not a folder" in call([picture.path], SENTENCES)[2]


def test_a_list_of_pairs(call, picture, model, tmp_path):
    write(tmp_path / "pictures" / "a.png", picture.rgb)
    other = write(tmp_path / "b.png", picture.rgb[::-1].copy())
    lines = [{"image": "pictures/a.png", "sentence": SENTENCES[0]}, {"image": str(other), "sentence": SENTENCES[1]},
             {"image": "pictures/a.png", "sentence": SENTENCES[1], "note": 3}]
    file = tmp_path / "list.jsonl"
    file.write_text("\ufeff" + "\n\n".join(map(json.dumps, lines)) + "\n")
    code, out, err = call([], [], "--list", file, "--batch-size", 2)
    assert (code, err) == (0, "")
    found = records(tmp_path / "out")
    assert [r["mask"] for r in found] == ["a_1_the-red-circle_mask.png", "b_1_blue-square-on-the-left_mask.png",
                                          "a_2_blue-square-on-the-left_mask.png"]
    for record in found:
        assert record["area"] == model.predict(record["image"], record["sentence"]).area


@pytest.mark.parametrize("line, match", [
    ('{"image": "a.png", "sentence": "red"', "line 2: not valid JSON"), ("[1]", "line 2: a list, not a record"),
    ('{"image": "a.png"}', "line 2: field 'sentence' is missing"), ('{"image": 3, "sentence": "red"}', "line 2: field"),
    ('{"image": "a.png", "sentence": "\\udc80 red"}', "line 2: sentence .* is not UTF-8"),
    ('{"image": "a.png", "sentence": " "}', "line 2: field 'sentence'"), ("[" * 100000, "line 2: not valid JSON")])
def test_a_damaged_list_is_named_by_its_line(call, unloaded, picture, tmp_path, line, match):
    write(tmp_path / "a.png", picture.rgb)
    file = tmp_path / "list.jsonl"
    file.write_text('{"image": "a.png", "sentence": "red"}\n' + line + "\n")
    code, out, err = call([], [], "--list", file)
    assert code == 2 and out == "" and err.count("\n") == 1 and re.search(f"{re.escape(str(file))}: {match}", err)
    assert not (tmp_path / "out").exists()


def test_lists_that_are_none(call, unloaded, tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n \n")
    (tmp_path / "latin.jsonl").write_bytes(b'{"image": "caf\xe9"}')
    for options, match in ((("--list", tmp_path / "none"), "cannot be read"),
                           (("--list", tmp_path / "empty.jsonl"), "has no lines"),
                           (("--list", tmp_path / "latin.jsonl"), "not UTF-8 at byte 14"),
                           (("--list", tmp_path / "none", "--text", "red"), "leave --image and --text out"),
                           (("--image", "a.png"), "give --image and --text, or --list"),
                           (("--image", "a", "--text", "red", "--batch-size", 0), "--batch-size must be"),
                           (("--image", "a", "--text", "red", "--threshold", 1), "--threshold must lie")):
        code, _, err = call([], [], *options)
        assert code == 2 and match in err and err.count("\n") == 1


def test_a_sentence_without_a_known_word_in_a_list_is_named_and_the_others_go_on(call, picture, tmp_path):
    """Once, with its first line; under the names that all of them have with it."""
    write(tmp_path / "a.png", picture.rgb)
    pairs = [{"image": "a.png", "sentence": text} for text in ("red", "zebra", "zebra", "blue", "???")]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    code, _, err = call([], [], "--list", tmp_path / "list.jsonl")
    assert code == 1 and [line.partition(": none")[0].partition(": no words")[0] for line in err.splitlines()] == [
        f"error: {tmp_path / 'list.jsonl'}: line 2: sentence 'zebra'",
        f"error: {tmp_path / 'list.jsonl'}: line 5: sentence '???'"]
    assert list(masks(tmp_path / "out")) == ["a_1_red_mask.png", "a_4_blue_mask.png"]
    assert [record["sentence"] for record in records(tmp_path / "out")] == ["red", "blue"]


def test_no_folder_is_left_where_every_line_is_bad(call, picture, tmp_path):
    """A bad sentence for a good picture, and a bad picture for a good sentence."""
    write(tmp_path / "a.png", picture.rgb)
    (tmp_path / "bad.png").write_bytes(b"GIF89a")
    pairs = [{"image": "a.png", "sentence": "zebra"}, {"image": "bad.png", "sentence": "red"}]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    code, _, err = call([], [], "--list", tmp_path / "list.jsonl")
    assert code == 2 and err.count("error: ") == 2 and not (tmp_path / "out").exists()


def test_a_broken_image_in_the_middle_of_a_batch(call, picture, model, tmp_path):
    images = [write(tmp_path / f"{k}.png", np.roll(picture.rgb, k, 0)) for k in range(5)]
    images[2].write_bytes(images[2].read_bytes()[:100])
    code, out, err = call(images, SENTENCES, "--batch-size", 4)
    assert code == 1 and err.count("\n") == 1 and "2.png: the image is truncated" in err
    found = records(tmp_path / "out")
    assert [os.path.basename(r["image"]) for r in found] == [f"{k}.png" for k in (0, 0, 1, 1, 3, 3, 4, 4)]
    for record in found:
        assert record["area"] == model.predict(record["image"], record["sentence"]).area


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_answer_of_no_number_is_named_and_the_others_go_on(call, picture, model, tmp_path, value):
    def network(image, ids, word_mask):
        logits = red_network(image, ids, word_mask)
        logits[word_mask.sum(1) == 3, 0, 0, 0] = value  # one word
        return logits

    model._network = network
    code, _, err = call([picture.path], ["red", *SENTENCES])
    assert code == 1 and err == ("error: sentence 'red': the network's output is non-finite (NaN or infinity); compute "
                                 "in float32 (amp O0), or take another checkpoint\n")
    assert [r["sentence"] for r in records(tmp_path / "out")] == list(SENTENCES)


def test_settings_reach_the_network(monkeypatch, model, picture, tmp_path, capsys):
    asked = []
    monkeypatch.setattr(loading, "open_model", lambda *arguments: asked.append(arguments) or model)
    code = main(["predict", "--checkpoint", "a.mindir", "--image", str(picture.path), "eval.threshold=0.3", "--text",
                 "red", "data.max_tokens=7", "--device-target", "CPU", "--amp", "O1", "--output", str(tmp_path)])
    assert code == 0, capsys.readouterr().err
    path, kind, device, amp, details, overrides = asked[0]
    assert (str(path), kind, device, amp, details) == ("a.mindir", "checkpoint", "CPU", "O1", False)
    assert sorted(overrides) == ["data.max_tokens=7", "eval.threshold=0.3"]


def test_the_attention_sheet_is_bounded_and_written(call, make_model, picture, monkeypatch, tmp_path):
    def explain(image, ids, word_mask):
        def details(row, pieces):
            maps = np.random.default_rng(row).random((len(pieces), 4, 4), np.float32)
            return Details(pieces, {1: maps, 2: maps / 2}, maps[:3], np.array([0.2, 0.5, 0.3], np.float32))

        return red_network(image, ids, word_mask), details

    monkeypatch.setattr(loading, "open_model", lambda *_: make_model(explain=explain))
    tall, wide = (write(tmp_path / f"{h}x{w}.png", np.full((h, w, 3), 99, np.uint8)) for h, w in ((900, 20), (5, 1200)))
    code, _, err = call([picture.path, tall, wide], ["the red circle left of 红 it all"], "--attention")
    assert code == 0
    for record in records(tmp_path / "out"):
        sheet = cv2.imread(str(tmp_path / "out" / record["attention"]))
        assert 0 < sheet.shape[1] < 2000 and sheet.shape[0] < 12000


def test_a_shipped_model_by_name(monkeypatch, model, picture, tmp_path):
    (tmp_path / "shipped").mkdir()
    file = tmp_path / "shipped" / "refshapes.safetensors"
    file.touch()
    monkeypatch.setattr(loading, "SHIPPED", file.parent)
    monkeypatch.setattr(loading, "open_model", lambda path, kind, *_: {(file, "checkpoint"): model}[path, kind])
    arguments = ["--image", str(picture.path), "--text", "red", "--output", str(tmp_path / "out")]
    assert main(["predict", "--model", "refshapes", *arguments]) == 0
