import subprocess
import sys
from types import SimpleNamespace

import pytest
from refer_files import OUTSIDE, refcoco_mini, refs_and_instances, write_refer, write_vocabulary

from mindspore_coupalign.__main__ import main
from mindspore_coupalign.cli import check_data as check

MINI = refcoco_mini()


def check_data(capsys, root, *options, dataset="tiny", split_by="unc"):
    code = main(["check-data", "--root", str(root), "--dataset", dataset, "--split-by", split_by, *options])
    out, err = capsys.readouterr()
    return SimpleNamespace(code=code, out=out, err=err, result=out.strip().splitlines()[-1] if out else "")


@pytest.fixture(autouse=True)
def no_hub(monkeypatch, tmp_path):
    """Count words, whatever this machine has in its cache of the hub."""
    monkeypatch.setattr(check, "_DEFAULT_TOKENIZER", str(tmp_path / "no-such-tokenizer"))


def test_a_good_folder(tmp_path, capsys):
    done = check_data(capsys, write_refer(tmp_path))
    assert done.code == 0 and done.err == ""
    rows = {line.split()[0]: line.split()[1:] for line in done.out.splitlines() if line}
    assert rows["train"] == ["3", "6", "2"] and rows["val"] == ["2", "3", "1"] and rows["testA"] == ["1", "2", "1"]
    assert "4 of 4 are there" in done.out and "1 of 6 have a polygon that reaches outside" in done.out
    assert "11.0 tokens on average" in done.out and "counted as words + 2" in done.out  # 9 words
    assert "0 of 11 are cut at 20" in done.out
    assert done.result == "Result: every file is readable, and there are no published counts to compare."


def test_word_pieces_are_counted_with_a_tokenizer(tmp_path, capsys):
    vocabulary = write_vocabulary(tmp_path / "bert")
    done = check_data(capsys, write_refer(tmp_path), "--tokenizer", str(vocabulary), "--max-tokens", "10")
    assert done.code == 0 and "11 of 11 are cut at 10" in done.out and f"word pieces of {vocabulary}" in done.out
    assert "11 have a word that this vocabulary cannot spell" in done.out  # the digits
    assert check_data(capsys, tmp_path, "--tokenizer", str(tmp_path / "images")).code == 2


def test_counts_beside_the_published_ones(tmp_path, capsys, monkeypatch):
    write_refer(tmp_path)
    exact = {"train": (3, 6, 2), "val": (None, 3, None), "testA": (1, 2, 1)}
    monkeypatch.setitem(check.PUBLISHED, ("tiny", "unc"), exact)
    done = check_data(capsys, tmp_path, "--strict")
    assert done.code == 0 and "differs:" not in done.out and "no count differs from a published one" in done.result
    monkeypatch.setitem(check.PUBLISHED, ("tiny", "unc"), {**exact, "val": (2, 4, 1), "testB": (1, 1, 1)})
    done = check_data(capsys, tmp_path)
    assert done.code == 0 and "counts differ" in done.result
    lines = {line.split()[0]: line for line in done.out.splitlines() if "differs:" in line}
    assert lines["val"].endswith("differs: sentences") and lines["testB"].endswith("differs: refs, sentences, images")
    assert len(lines) == 2 and check_data(capsys, tmp_path, "--strict").code == 1


def test_broken_images_fail(tmp_path, capsys):
    refs, instances = refs_and_instances()
    instances["images"][3].update(height=20, width=30)
    write_refer(tmp_path, refs, instances)
    images = tmp_path / "images" / "tiny"
    (images / "im0.jpg").unlink()
    data = (images / "im1.jpg").read_bytes()
    (images / "im1.jpg").write_bytes(data[: len(data) // 2])
    # annotation 7005 is a polygon, so instances.json alone cannot tell that im3.png has another size
    done = check_data(capsys, tmp_path)
    assert done.code == 1
    assert "1 of 4 are there" in done.out and "im3.png: 60 x 40 pixels, not 30 x 20" in done.out
    assert done.result.startswith("Result: broken: ") and done.result.count("1 ") >= 3
    for words in ("missing images", "unreadable images", "images of another size"):
        assert words in done.result


def test_doubtful_masks_sentences_and_leaks_are_warnings(tmp_path, capsys):
    refs, instances = refs_and_instances()
    instances["annotations"][0]["segmentation"] = [OUTSIDE]
    instances["annotations"][1]["segmentation"] = {"size": [40, 60], "counts": [0, 2400]}
    refs[2]["sentences"][0].update(sent="  ", raw="\t")
    refs[5]["sentences"] = []
    instances["annotations"][3]["image_id"] = refs[3]["image_id"] = 101  # val, on an image of train
    done = check_data(capsys, write_refer(tmp_path, refs, instances))
    assert done.code == 0 and "5 warnings above" in done.result
    report = done.out[done.out.index("\n\n", done.out.index("sentences    ")):]
    for title, line in (("empty masks: 1", "ref 500 (annotation 7000, split train)"),
                        ("masks that cover the whole image: 1", "ref 501"),
                        ("empty sentences: 1", "sentence 5 of ref 502"),
                        ("refs without a sentence: 1", "ref 505"), ("images that train shares with val: 1", "im1.jpg")):
        after = report[report.index(title):].splitlines()
        assert line in after[1], report


def test_long_lists_are_cut(tmp_path, capsys):
    refs, instances = refs_and_instances()
    for ref in refs:
        for sentence in ref["sentences"]:
            sentence.update(sent="", raw="")
    done = check_data(capsys, write_refer(tmp_path, refs, instances))
    assert "empty sentences: 11" in done.out and "and 1 more" in done.out


@pytest.mark.parametrize("options, words", [(["--max-tokens", "2"], "--max-tokens"), (["--workers", "0"], "--workers"),
                                            (["--images", "nowhere"], "tried nowhere")])
def test_bad_options(tmp_path, capsys, options, words):
    done = check_data(capsys, write_refer(tmp_path), *options)
    assert done.code == 2 and words in done.err and done.err.count("\n") == 1


def command(*options):
    return subprocess.run([sys.executable, "-m", "mindspore_coupalign", "check-data", *options], capture_output=True,
                          text=True, timeout=120)


def test_the_real_command_line(tmp_path):
    write_refer(tmp_path)
    options = ["--root", str(tmp_path), "--dataset", "tiny", "--split-by", "unc"]
    options += ["--tokenizer", str(write_vocabulary(tmp_path / "bert"))]
    done = command(*options)
    assert done.returncode == 0 and "Result: every file is readable" in done.stdout and done.stderr == ""
    (tmp_path / "images" / "tiny" / "im2.jpg").unlink()
    assert command(*options).returncode == 1
    (tmp_path / "tiny" / "refs(unc).p").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    done = command(*options)
    assert done.returncode == 2 and done.stdout.count("\n") == 0
    assert done.stderr.startswith("error: ") and "os.system" in done.stderr and done.stderr.count("\n") == 1


def test_a_path_that_the_system_refuses(capsys):
    """Too long here; a folder of somebody else's raises the same way, but for root."""
    name = "x" * 300
    done = check_data(capsys, name)
    assert done.code == 2 and done.err.startswith(f"error: {name}/tiny: File name too long") and done.out == ""


@pytest.mark.skipif(MINI is None, reason="no sample of the real RefCOCO (COUPALIGN_REFCOCO_MINI)")
@pytest.mark.parametrize("dataset, counts", [
    ("refcoco", {"train": 0, "val": 45, "testA": 18, "testB": 30}),
    ("refcoco_resplit", {"train": 56, "val": 10, "testA": 12, "testB": 15})])
def test_real_refcoco_sample(capsys, dataset, counts):
    done = check_data(capsys, MINI, dataset=dataset)
    assert done.code == 0 and "of 93 are cut" in done.out and "12 of 12 are there" in done.out
    column = 3 if dataset == "refcoco" else 2
    found = {line.split()[0]: int(line.split()[column]) for line in done.out.splitlines() if line.split()[:1] and
             line.split()[0] in counts}
    assert found == counts
    assert check_data(capsys, MINI, "--strict", dataset=dataset).code == (1 if dataset == "refcoco" else 0)
