"""The command predict: several images and sentences, the names of its files, what it never overwrites, its exit codes.

The network is the session's compiled one; the real command runs in test_predict.py.
"""

import re
import sys

import cv2
import numpy as np
import pytest
from conftest import SENTENCES
from PIL import Image

from mindspore_coupalign.__main__ import main
from mindspore_coupalign.cli import predict


@pytest.fixture
def call(monkeypatch, capsys, tiny_restored, tiny_checkpoint, tmp_path):
    """``call(images, texts, *options)`` runs the command in this process: code, out, err; output folder ``out``."""
    def run(images, texts, *options):
        arguments = [*(part for image in images for part in ("--image", image)),
                     *(part for text in texts for part in ("--text", text))]
        code = main(["predict", "--checkpoint", str(tiny_checkpoint), "--device-target", "CPU", "--output",
                     str(tmp_path / "out"), *map(str, arguments), *options])
        return code, *capsys.readouterr()

    monkeypatch.setattr(predict.Predictor, "from_checkpoint", lambda *_, **__: tiny_restored.predictor)
    return run


@pytest.fixture
def unloaded(monkeypatch):
    """Nothing may load the network."""
    def fail(*_, **__):
        raise AssertionError("the network was loaded for nothing")

    monkeypatch.setattr(predict.Predictor, "from_checkpoint", fail)


def masks(folder) -> dict:
    return {path.name: cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in folder.glob("*_mask.png")}


def write(path, rgb):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb).save(path)
    return path


def test_images_of_one_name_get_names_of_their_own(call, picture, tiny_restored, tmp_path):
    a, b = write(tmp_path / "a" / "1.png", picture.rgb), write(tmp_path / "b" / "1.png", picture.rgb[::-1].copy())
    code, out, err = call([a, b, a], SENTENCES[:1])
    assert (code, err) == (0, "") and out.count("90 x 60 pixels") == 2  # a file given twice is one
    found = masks(tmp_path / "out")
    assert sorted(found) == ["a_1.png_1_the-red-circle_mask.png", "b_1.png_1_the-red-circle_mask.png"]
    for rgb, mask in ((picture.rgb, found["a_1.png_1_the-red-circle_mask.png"]),
                      (picture.rgb[::-1], found["b_1.png_1_the-red-circle_mask.png"])):
        expected = tiny_restored.predictor.predict(rgb, SENTENCES[0])[0]
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
            patch.setattr(predict.Predictor, "from_checkpoint", lambda *_: pytest.fail("loaded for nothing"))
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
def test_sentences_without_a_word_are_refused_in_one_short_line(call, picture, text, match):
    code, _, err = call([picture.path], [text])
    assert code == 2 and match in err and err.count("\n") == 1 and len(err) < 500


def test_odd_sentences_are_printed_and_drawn_in_bounds(call, picture, tmp_path):
    texts = ["red\x07 circle\x1b[31m", "red circle " * 5000, "red \U0001f642", "red \U0001f643", "红 red", "蓝 red"]
    code, out, err = call([picture.path], texts)
    assert code == 0 and "\x07" not in out + err and "\x1b" not in out + err and len(out) < 2000
    names = {name.split("_", 2)[2] for name in masks(tmp_path / "out")}
    assert len(names) == len(texts) and names >= {"红-red_mask.png", "蓝-red_mask.png"}
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


def test_small_pictures(call, tiny_restored, tmp_path):
    sizes = [(1, 1), (1, 900), (900, 1)]
    images = [write(tmp_path / f"{h}x{w}.png", np.full((h, w, 3), 99, np.uint8)) for h, w in sizes]
    code, out, err = call(images, SENTENCES[:1])
    assert (code, err) == (0, "") and "1 x 1 pixels" in out
    assert sorted(mask.shape for mask in masks(tmp_path / "out").values()) == sizes


def test_names_are_distinct_and_short():
    folders = ["x/1.jpg", "y/1.jpg", "z/x/1.jpg", "X/1.JPG", "x_1.jpg", "2.jpg", "2.png", "3.jpg", "x_1.jpg-2.png"]
    names = predict._stems(folders)
    assert len({name.casefold() for name in names}) == len(folders) and names[7] == "3" and names[0] == "x_1.jpg"
    long = predict._stems(["a" * 250 + "1.jpg", "a" * 250 + "2.jpg", "红" * 80 + ".png", "c\udce9" * 60 + ".png"])
    assert len(set(long)) == 4 and all(len(name.encode("utf-8", "surrogateescape")) < 100 for name in long)
    sentences = ["红圈", "蓝圈", "the red cup", "?", "!", "a" * 50, "a" * 51, "कि", "का", "red 🙂", "red 😀", "RED é"]
    slugs = [predict._slug(sentence) for sentence in sentences]
    assert len(set(slugs)) == len(slugs) and slugs[:3] == ["红圈", "蓝圈", "the-red-cup"]
    assert all(re.fullmatch(r"[^\W_]+(-[^\W_]+)*", slug) and len(slug) < 60 for slug in slugs)


def test_names_on_a_file_system_without_unicode(monkeypatch):
    monkeypatch.setattr(predict.os, "fsencode", lambda text: text.encode("ascii"))
    assert re.fullmatch(r"red-[0-9a-f]{8}", predict._slug("红 red"))


def test_the_terminal_need_not_know_the_sentence(call, picture, tmp_path, monkeypatch):
    with open(tmp_path / "log", "w", encoding="ascii") as file:
        monkeypatch.setattr(sys, "stdout", file)
        assert call([picture.path], ["红 red circle"])[0] == 0
    assert r"'\u7ea2 red circle'" in (tmp_path / "log").read_text("ascii")
