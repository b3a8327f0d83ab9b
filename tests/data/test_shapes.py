"""RefShapes: its sentences against a second reader, its images against its polygons, its files against themselves."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import shape_reader as reader
from refshapes_files import FEW, HELD_OUT, digest, load, mask_of

from mindspore_coupalign.__main__ import main
from mindspore_coupalign.data.refer import read_refer
from mindspore_coupalign.data.refshapes.dataset import make_shapes
from mindspore_coupalign.data.tokenizer import SentenceTokenizer
from mindspore_coupalign.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"train": 300, "val": 80, "testA": 80, "testB": 120}
SPATIAL = {"side", "ordinal", "corner", "size"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes") / "data"
    assert make_shapes(folder, 0, **SIZES)
    return load(folder)


def test_every_sentence_names_its_object_alone(made):
    assert len(made.sentences) > 1800
    for _, ref, sentence in made.sentences:
        found = reader.fitting(sentence["sent"], made.scenes[ref["image_id"]], made.names, 64)
        assert found == {ref["ann_id"]}, sentence


def test_fits_are_what_the_noun_phrase_alone_names(made):
    for _, ref, sentence in made.sentences:
        found = reader.fitting_noun_phrase(sentence["sent"], made.scenes[ref["image_id"]], made.names)
        assert found == set(sentence["fits"]) and len(found) == len(sentence["fits"]), sentence
        assert (len(found) == 1) == (sentence["kind"] == "attribute"), sentence


def test_mirrored_sentences_stay_true(made):
    for _, ref, sentence in made.sentences:
        mirrored = [reader.mirror_annotation(a, 64) for a in made.scenes[ref["image_id"]]]
        text = reader.mirror_sentence(sentence["sent"])
        assert reader.fitting(text, mirrored, made.names, 64) == {ref["ann_id"]}, sentence


def test_the_kind_alone_never_solves_a_sentence(made):
    for ref in made.refs:
        same = [a for a in made.scenes[ref["image_id"]] if a["category_id"] == ref["category_id"]]
        assert len(same) >= 2, ref


def test_combinations_need_both_cues(made):
    for _, ref, sentence in made.sentences:
        if sentence["kind"] == "combination":
            same = {a["id"] for a in made.scenes[ref["image_id"]] if a["category_id"] == ref["category_id"]}
            assert set(sentence["fits"]) < same, sentence


def test_kinds_have_equal_shares_and_object_is_rare(made):
    kinds = Counter(s["kind"] for split, _, s in made.sentences if split != "testB")
    total = sum(kinds.values())
    assert len(kinds) == 7
    assert all(0.11 < count / total < 0.18 for count in kinds.values()), kinds
    spatial = [s["tokens"] for split, _, s in made.sentences if split != "testB" and s["kind"] in SPATIAL]
    assert 0.07 < np.mean(["object" in tokens for tokens in spatial]) < 0.18
    assert any(tokens[-1] == "object" for tokens in spatial)


def test_sentences_of_a_ref_differ_in_kind_and_wording(made):
    for ref in made.refs:
        sentences = ref["sentences"]
        assert len(sentences) in ((2, 3) if ref["split"] == "train" else (1, 2))
        assert len({s["kind"] for s in sentences}) == len({s["sent"] for s in sentences}) == len(sentences)
        assert ref["sent_ids"] == [s["sent_id"] for s in sentences]
        for s in sentences:
            assert s["tokens"] == s["sent"].split() and s["raw"] == s["sent"] == " ".join(s["tokens"]).lower()
    assert len({s["sent_id"] for _, _, s in made.sentences}) == len(made.sentences)


def test_splits_hold_the_scenes_and_pairs_that_are_documented(made):
    files = {split: sorted({r["file_name"] for r in made.refs if r["split"] == split}) for split in SIZES}
    assert {split: len(names) for split, names in files.items()} == SIZES
    counts, novel = {}, {}
    for _, ref, sentence in made.sentences:
        counts[ref["file_name"]] = len(made.scenes[ref["image_id"]])
        novel.setdefault(ref["file_name"], set()).add(bool(reader.named_pairs(sentence["sent"]) & HELD_OUT))
    for split in ("train", "val", "testA"):
        assert {counts[name] for name in files[split]} == {3, 4, 5, 6}
        assert all(novel[name] == {False} for name in files[split])
    even, odd = files["testB"][::2], files["testB"][1::2]
    assert all(novel[name] == {True} and 3 <= counts[name] <= 6 for name in even)
    assert all(novel[name] == {False} for name in odd) and {counts[name] for name in odd} == {7, 8}
    named = set().union(*(reader.named_pairs(s["sent"]) for split, _, s in made.sentences if split == "testB"))
    assert named >= HELD_OUT
    drawn = {(a["color"], made.names[a["category_id"]])
             for r in made.refs if r["split"] == "train" for a in made.scenes[r["image_id"]]}
    assert len(drawn) == 30


def test_no_two_pictures_are_alike(made):
    pictures = {hashlib.sha256((made.folder / "images" / "refshapes" / image["file_name"]).read_bytes()).digest()
                for image in made.images.values()}
    assert len(pictures) == sum(SIZES.values())


def test_polygons_are_what_is_drawn(made):
    """A pixel counts as drawn when its colour is nearer to the object's than to that of the ground around it."""
    overlaps = []
    for image_id, annotations in list(made.scenes.items())[::3]:
        picture = cv2.imread(str(made.folder / "images" / "refshapes" / made.images[image_id]["file_name"]))
        assert picture.shape == (64, 64, 3)
        masks = [mask_of(a) for a in annotations]
        wide = [cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool) for mask in masks]
        for i, mask in enumerate(masks):
            others = np.any([w for j, w in enumerate(wide) if j != i], axis=0)
            near = cv2.dilate(mask.astype(np.uint8), np.ones((7, 7), np.uint8)).astype(bool) & ~others
            inside = np.median(picture[mask], axis=0)
            around = np.median(picture[near & ~wide[i]], axis=0)
            far = [np.linalg.norm(picture - colour, axis=2) for colour in (inside, around)]
            drawn = near & (far[0] < far[1])
            overlaps.append((drawn & mask).sum() / (drawn | mask).sum())
    assert len(overlaps) > 800
    assert min(overlaps) >= 0.85 and np.mean(overlaps) > 0.96, (min(overlaps), np.mean(overlaps))


def test_objects_lie_apart_and_inside(made):
    for annotations in made.scenes.values():
        assert sum(mask_of(a).astype(int) for a in annotations).max() == 1
        for a in annotations:
            points = np.reshape(a["segmentation"][0], (-1, 2))
            assert points.min() >= 1 - 0.01 and points.max() <= 63 + 0.01
            low, high = points.min(0), points.max(0)
            assert np.allclose(a["bbox"], [*low, *(high - low)], atol=0.011)
            assert a["area"] == pytest.approx(reader._area(a), abs=0.01)
            across = np.linalg.norm(points[:, None] - points, axis=2).max()  # an upright triangle's side is the least
            assert a["area"] > 25 and 1.7 * a["radius"] < across < 2 * a["radius"] + 0.03


def test_references_are_what_the_masks_give(made):
    """oIoU of the three guesses from decoded masks and their unions, against the shortcut over areas."""
    masks = {i: mask_of(a) for i, a in made.annotations.items()}
    for split, reference in made.references["splits"].items():
        sums = {name: np.zeros(2) for name in ("all_objects", "random_object", "noun_phrase")}
        kinds = {}
        said = [(ref, s) for name, ref, s in made.sentences if name == split]
        for ref, s in said:
            target, scene = masks[ref["ann_id"]], [masks[a["id"]] for a in made.scenes[ref["image_id"]]]
            fits = np.any([masks[i] for i in s["fits"]], axis=0)
            pair = np.array([(target & fits).sum(), (target | fits).sum()])
            sums["noun_phrase"] += pair
            kinds[s["kind"]] = kinds.get(s["kind"], 0) + np.array([1, *pair])
            sums["all_objects"] += (target & np.any(scene, axis=0)).sum(), (target | np.any(scene, axis=0)).sum()
            sums["random_object"] += np.mean([((target & m).sum(), (target | m).sum()) for m in scene], axis=0)
        for name, (intersection, union) in sums.items():
            assert reference[name] == pytest.approx(100 * intersection / union, abs=0.006), (split, name)
        assert reference["sentences"] == len(said)
        assert {k: v["sentences"] for k, v in reference["kinds"].items()} == {k: v[0] for k, v in kinds.items()}
        for kind, (_, intersection, union) in kinds.items():
            assert reference["kinds"][kind]["noun_phrase"] == pytest.approx(100 * intersection / union, abs=0.006)


def test_guessing_does_not_pay(made):
    for split, reference in made.references["splits"].items():
        assert reference["noun_phrase"] <= 40, split
        assert reference["all_objects"] <= 25 and reference["random_object"] <= 15, split
        assert reference["kinds"]["attribute"]["noun_phrase"] == 100


def test_the_shipped_vocabulary_is_exactly_the_words_in_use(made):
    lines = (ROOT / "mindspore_coupalign/assets/refshapes_tokenizer/vocab.txt").read_text().split()
    assert lines[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert set(lines[5:]) == {word for _, _, s in made.sentences for word in s["tokens"]}
    assert len(set(lines)) == len(lines)
    longest = max((s["sent"] for _, _, s in made.sentences), key=lambda sent: len(sent.split()))
    ids, word_mask = SentenceTokenizer.from_name("refshapes", 20)([longest])
    assert word_mask.sum() == len(longest.split()) + 2
    assert [lines[i] for i in ids[0][word_mask[0] == 1]] == ["[CLS]", *longest.split(), "[SEP]"]


def test_the_ordinary_reader_reads_it(made):
    data = read_refer(made.folder, "refshapes", "shapes")
    assert len(data.ref_ids) == len(made.refs) and set(data.split_names) == set(SIZES)
    assert [data.sentence(s) for s in range(len(data.sentence_ref))] == [s["sent"] for _, _, s in made.sentences]
    for r in range(0, len(made.refs), 50):
        assert np.array_equal(data.mask(r).astype(bool), mask_of(made.annotations[made.refs[r]["ann_id"]]))
        assert data.read_image(r).shape == (64, 64, 3)


def test_bytes_depend_on_the_seed_alone(tmp_path):
    for name, seed, sizes, workers in (("one", 5, FEW, 1), ("two", 5, FEW, 2), ("other", 6, FEW, 1),
                                       ("more", 5, {**FEW, "train": 60}, 1)):
        make_shapes(tmp_path / name, seed, **sizes, workers=workers)
    one, two, other, more = (digest(tmp_path / name) for name in ("one", "two", "other", "more"))
    assert one == two and len(one) == sum(FEW.values()) + 3
    assert one.keys() == other.keys() and not set(one.values()) & set(other.values())
    pictures = {name: value for name, value in one.items() if name.endswith(".png")}
    assert pictures.items() <= more.items()


def test_scenes_are_those_of_the_first_release(tmp_path):
    """Everything but areas by digest; areas against the polygons; of the images the mean.

    Processors sum floats in different orders, so an area that lies between two hundredths of a square pixel is rounded
    up on one and down on another. Anti-aliased pixels may differ by a level.
    """
    make_shapes(tmp_path / "data", 5, **FEW)
    made = load(tmp_path / "data")
    instances = json.loads((tmp_path / "data/refshapes/instances.json").read_text())
    for annotation in instances["annotations"]:
        area = annotation.pop("area")
        doubled = doubled_area(annotation["segmentation"][0])  # in hundredths of a pixel: a whole number, thus exact
        assert abs(200 * 100 * area - doubled) <= 100.5, annotation["id"]
    references = (tmp_path / "data/refshapes/references.json").read_text()
    texts = [json.dumps(made.refs), json.dumps(instances), references]
    assert hashlib.sha256("".join(texts).encode()).hexdigest() == (
        "d8814f69bc6cf3b77a0c7b58b2c1df36197e14ea986b152fa98f29b26200e852")
    images = [cv2.imread(str(path)) for path in sorted((tmp_path / "data" / "images" / "refshapes").iterdir())[:6]]
    assert np.allclose([image.mean() for image in images], [105.69, 95.15, 104.89, 87.74, 90.42, 88.75], atol=0.03)


def doubled_area(polygon: list) -> int:
    """Twice the area of a polygon, in hundredths of a pixel squared, by integers alone."""
    points = np.rint(100 * np.reshape(polygon, (-1, 2))).astype(np.int64).tolist()
    return abs(sum(x * v - y * u for (x, y), (u, v) in zip(points, points[1:] + points[:1], strict=True)))


def test_a_made_set_is_kept_and_another_is_only_replaced_by_force(tmp_path, capsys):
    sizes = [text for split in FEW for text in (f"--{split}", "2")]
    command = ["make-shapes", "--output", str(tmp_path / "data"), "--workers", "1", *sizes]
    assert main(command) == 0
    assert "noun_phrase" in capsys.readouterr().out
    before = digest(tmp_path / "data")
    assert main(command) == 0
    assert "already" in capsys.readouterr().out
    assert main([*command, "--seed", "1"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "seed 0" in error and "--force" in error
    assert digest(tmp_path / "data") == before
    assert main([*command, "--seed", "1", "--force"]) == 0
    assert digest(tmp_path / "data").keys() == before.keys() and digest(tmp_path / "data") != before
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("force", [False, True])
def test_a_foreign_folder_is_left_alone(tmp_path, force):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not RefShapes"):
        make_shapes(tmp_path, **dict.fromkeys(FEW, 1), force=force)
    data = tmp_path / "data"
    make_shapes(data, **dict.fromkeys(FEW, 1))
    (data / "images" / "mine.png").write_text("mine")
    with pytest.raises(UserError, match="not RefShapes"):
        make_shapes(data, 1, **dict.fromkeys(FEW, 1), force=force)
    assert (data / "images" / "mine.png").exists() and (tmp_path / "notes.txt").read_text() == "mine"


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "data").mkdir()
    assert make_shapes(tmp_path / "data", **dict.fromkeys(FEW, 1))
    assert (tmp_path / "data" / "refshapes" / "instances.json").exists()


def test_bad_arguments_are_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for output, options, word in (("file", (), "Not a directory"), ("file/below", (), "cannot be written"),
                                  ("data", ("--val", "0"), "--val"), ("data", ("--seed", "-1"), "--seed"),
                                  ("data", ("--workers", "0"), "--workers")):
        assert main(["make-shapes", "--output", str(tmp_path / output), *options]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and word in error, error
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="follows processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_run_leaves_no_output_and_no_process(tmp_path, number):
    command = [sys.executable, "-m", "mindspore_coupalign", "make-shapes", "--output", str(tmp_path / "data"),
               "--workers", "2"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: list(tmp_path.glob(".data-partial-*/fresh/images/refshapes/*.png")), 60)
        workers = [int(p) for p in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        assert len(workers) >= 2
        os.kill(process.pid, number)
        assert process.wait(30) == (143 if number == signal.SIGTERM else -signal.SIGKILL)
    finally:
        process.kill()
    assert not (tmp_path / "data").exists()
    if number == signal.SIGTERM:
        assert not list(tmp_path.iterdir())
    wait_for(lambda: not any(map(runs, workers)), 30)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition, seconds: float):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)
