"""One doubtful data set before the commands check-data, train and evaluate: each says what is wrong with it."""

import re

import cv2
import numpy as np
import pytest
import yaml
from fake_training import compute_nothing
from refer_files import HEIGHT, OUTSIDE, WIDTH, cut_at, refs_and_instances, with_exif, write_refer
from tiny_network import TINY

from mindspore_coupalign.__main__ import main

THIN = [5.4, 2.0, 5.45, 2.0, 5.45, 30.0, 5.4, 30.0]


@pytest.fixture
def run(tmp_path, tiny_checkpoint):
    """``run(command)`` -> its arguments, on the set that was written to ``tmp_path / "data"``."""
    names = ("data.dataset=tiny", "data.split_by=unc", f"data.root={tmp_path / 'data'}")
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(TINY))
    check = ("check-data", "--root", tmp_path / "data", "--dataset", "tiny", "--split-by", "unc", "--tokenizer",
             "refshapes", "--max-tokens", 8)
    train = ("train", "--config", config, *names, "train.batch_size=1", "--output", tmp_path / "run")
    evaluate = ("evaluate", "--checkpoint", tiny_checkpoint, *names, "--split", "train", "val")
    return {"check-data": check, "train": train, "evaluate": evaluate}


def doubtful() -> tuple:
    """Two empty ground truths, a polygon too short, two refs of one id, two blank sentences, sentences of 11 tokens."""
    refs, instances = refs_and_instances()
    instances["annotations"][0]["segmentation"] = [OUTSIDE]
    instances["annotations"][3]["segmentation"] = [THIN, [4, 4, 24, 24]]
    refs[1]["ref_id"] = 500
    for sentence in refs[2]["sentences"] + refs[3]["sentences"][:1]:
        sentence.update(sent=" ", raw="\t")
    return refs, instances


def test_what_is_doubtful_is_counted_at_the_start(run, tmp_path, command_line):
    root = write_refer(tmp_path / "data", *doubtful())
    (root / "images" / "tiny" / "im1.jpg").unlink()  # so that nobody computes for long
    (root / "images" / "tiny" / "im0.jpg").unlink()
    train = ("warning: train: 1 of 3 ground-truth masks are empty (first: ref 500); 1 refs have the ref_id of another; "
             "1 of 6 sentences are blank; 5 of 6 sentences are cut at data.max_tokens=8")
    val = ("warning: val: 1 of 2 ground-truth masks are empty (first: ref 503); 1 of 3 sentences are blank; 2 of 3 "
           "sentences are cut at data.max_tokens=8; 1 polygons of fewer than three points are left out")
    done = command_line(*run["train"])
    assert done.code == 2 and [line for line in done.out.splitlines() if "warning" in line] == [train, val], done
    assert "no such image file" in done.err and done.err.splitlines()[-1].startswith("error: ")
    done = command_line(*run["evaluate"])
    assert done.code == 2 and done.err.splitlines()[:2] == [train, val], done.err
    assert done.err.splitlines()[2].startswith("scoring train; val: 9 sentences")
    assert done.err.splitlines()[3].startswith("error: ") and done.err.count("\n") == 4
    done = command_line(*run["check-data"])
    assert done.code == 1 and "7 of 11 are cut" not in done.out and "9 of 11 are cut at 8" in done.out, done.out
    for line in ("empty masks: 2", "empty sentences: 2", "refs that share their ref_id: 2", "missing images: 2",
                 "masks of which a polygon with fewer than three points was left out: 1"):
        assert f"\n{line}\n" in done.out, done.out


def photograph() -> bytes:
    noise = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8), (3, 3), 1)
    return cv2.imencode(".jpg", noise)[1].tobytes()


def on_its_side() -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (WIDTH, HEIGHT, 3), np.uint8)
    return with_exif(cv2.imencode(".jpg", noise)[1].tobytes(), 6)


BAD_PICTURES = {
    "cut": (cut_at(photograph(), 0.7), "the image is truncated or damaged .*download it again"),
    "smaller": (cv2.imencode(".jpg", np.zeros((HEIGHT - 8, WIDTH, 3), np.uint8))[1].tobytes(),
                "60 x 32 pixels, not 60 x 40 as instances.json says"),
    "on its side": (on_its_side(), "40 x 60 pixels, not 60 x 40 .*EXIF orientation 6.*mogrify -auto-orient"),
}


@pytest.mark.parametrize("command", ["check-data", "train", "evaluate"])
@pytest.mark.parametrize("fault", BAD_PICTURES)
def test_a_picture_that_does_not_fit_ends_each_command(run, tmp_path, capfd, command, fault):
    content, words = BAD_PICTURES[fault]
    root = write_refer(tmp_path / "data")
    for name in ("im0.jpg", "im1.jpg", "im2.jpg"):
        (root / "images" / "tiny" / name).write_bytes(content)
    code = main([str(argument) for argument in run[command]])
    out, err = capfd.readouterr()
    if command == "check-data":
        assert code == 1 and "1 of 4 are there" in out, out
        where = out
    else:
        assert code == 2 and err.splitlines()[-1].startswith("error: ") and "Traceback" not in err
        where = err.splitlines()[-1]
    assert re.search(words, where), where
    assert "Corrupt JPEG" not in err  # the decoder's own words on stderr


def test_a_photograph_whose_orientation_no_size_shows(run, tmp_path, capsys, monkeypatch):
    """Upside down, or square: check-data lists it, and each run says so once."""
    root = write_refer(tmp_path / "data")
    (root / "images" / "tiny" / "im1.jpg").write_bytes(with_exif(photograph(), 3))  # train's third ref
    assert main([str(argument) for argument in run["check-data"]]) == 0
    out = capsys.readouterr().out
    assert "4 of 4 are there" in out and "images with an EXIF orientation, which is not applied" in out
    assert f"{root / 'images' / 'tiny' / 'im1.jpg'}: 3\n" in out
    assert main([str(argument) for argument in run["evaluate"]]) == 0
    err = capsys.readouterr().err
    assert err.count("EXIF") == 1 and "warning: 1 images read so far have an EXIF orientation (first: " in err
    compute_nothing(monkeypatch, [0.5] * 9)
    assert main([*map(str, run["train"]), "train.epochs=3", "train.log_every=1"]) == 0
    out = capsys.readouterr().out
    assert out.count("EXIF") == 1 and "warning: 1 images read so far have an EXIF orientation" in out
