"""import-data: typical damages of each form get one line that names file, record and remedy; nothing half written is
left; masks painted in any tool."""

import json
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest
from conftest import ROOT
from foreign_data import HEIGHT, WIDTH, WRITERS, import_data, made_up
from PIL import Image
from refer_files import SQUARE

from mindspore_coupalign.__main__ import main
from mindspore_coupalign.data.importers.images import read_mask
from mindspore_coupalign.data.importers.records import BadRecord
from mindspore_coupalign.data.refer import read_refer


def lines(tmp_path, *records, images=True):
    """A jsonl file of records (or raw text) about drawn images; a key ``image`` is filled in."""
    refer = made_up(tmp_path / "images")
    name = refer.instances["images"][0]["file_name"]
    text = [record if isinstance(record, str) else
            json.dumps({"image": name, "sentence": "the thing", "mask": [SQUARE], **record}) for record in records]
    (tmp_path / "own.jsonl").write_text("\n".join(text) + "\n")
    return refer.images, tmp_path / "own.jsonl"


def painted(path, pixels, **options):
    path.parent.mkdir(exist_ok=True)
    assert cv2.imwrite(str(path), pixels, **options)
    return path.name


@pytest.mark.parametrize("value, box", [
    ([SQUARE], None), (SQUARE, None), (np.reshape(SQUARE, (-1, 2)).tolist(), None),
    ([np.reshape(SQUARE, (-1, 2)).tolist()], None), ([10, 5, 20, 20], None), (None, [10, 5, 20, 20])])
def test_masks_of_a_line_may_be_nested_in_any_usual_way(capsys, tmp_path, value, box):
    images, source = lines(tmp_path, {"mask": value, "box": box, "split": "valid"})
    assert import_data(capsys, "jsonl", source, tmp_path / "out", images=images)[0] == 0
    data = read_refer(tmp_path / "out", "own", "own")
    assert data.split_names == ("val",) and data.mask(0).sum() == 400 and data.mask(0)[5:25, 10:30].all()


def test_painted_masks(tmp_path):
    object_ = np.zeros((20, 30), np.uint8)
    object_[5:12, 4:20] = 1

    def saved(array, mode=None, palette=None, **options):
        image = Image.fromarray(array, mode)
        if palette:
            image.putpalette(palette)
        image.save(tmp_path / "m.png", **options)
        return (tmp_path / "m.png").read_bytes()

    black_palette = [0, 0, 0] * 256
    rgba = np.dstack([object_ * 0, object_ * 200, object_ * 0, object_ * 255])
    soft = cv2.GaussianBlur(object_ * 255, (3, 3), 0)
    for content, value in (
            (saved(object_), None), (saved(object_ * 255), None), (saved(object_ * 38), None), (saved(rgba), None),
            (saved(object_.astype(bool)), None), (saved(object_ * 7, "P", black_palette), None),
            (saved(np.dstack([object_ * 128] * 1 + [object_ * 0] * 2)), None), (saved(object_ * 2 + 1), 3),
            (saved(object_.astype(np.uint16) * 65535), None),
            (saved(np.dstack([object_ * 9, object_ * 0 + 1, object_ * 7])), [9, 1, 7])):
        np.testing.assert_array_equal(read_mask(content, "m", value), object_)
    assert np.abs(read_mask(saved(soft), "m").astype(int) - object_).sum() <= 2 * (7 + 16)  # along the outline
    labels = object_.copy()
    labels[15:] = 2
    for content in (saved(labels), saved(np.dstack([labels, labels * 3, labels])), saved(labels * 100)):
        with pytest.raises(BadRecord, match="which one is the object.*mask_value"):
            read_mask(content, "m")
    with pytest.raises(BadRecord, match="not a complete image"):
        read_mask(saved(object_)[:60], "m")


@pytest.mark.parametrize("record, words", [
    ({"image": "absent.jpg"}, ("line 2", "absent.jpg", "does not exist", "--images")),
    ({"image": "../etc/x.jpg"}, ("leaves the image folder",)),
    ({"image": 7}, ("'image' must be text", "7")),
    ({"sentence": " "}, ("'sentence' is blank",)),
    ({"sentence": None}, ("'sentence' is missing",)),
    ({"sentence": "\ud800"}, ("half a character",)),
    ({"image": "\ud800.jpg"}, ("does not exist",)),
    ({"sentence": ["a", 2]}, ("'sentence' must be a sentence or a list",)),
    ({"mask": None}, ("give the object once", "none of them")),
    ({"box": [1, 2, 3, 4]}, ("give the object once", "mask, box")),
    ({"mask": [[4, 4, 24, 24]]}, ("three points",)),
    ({"mask": [[4, 4], [24, 24]]}, ("three points",)),
    ({"mask": [4, 4, -2, 9]}, ("box", "positive size")),
    ({"mask": [[200, 200, 210, 200, 210, 210]]}, ("empty mask", "60 x 40")),
    ({"mask": {"size": [40, 60], "counts": "abc"}}, ("counts do not add up",)),
    ({"mask": {"size": [60, 40], "counts": [2400]}}, ("size [60, 40] is not the image's",)),
    ({"mask": "nowhere.png"}, ("nowhere.png", "cannot be read")),
    ({"mask": "own.jsonl"}, ("not a complete image",)),
    ({"mask": [["a"]]}, ("numbers x0, y0",)),
    ({"mask": True}, ("'mask' must be a mask image's path",)),
    ({"split": 3}, ("'split' must be text",)),
    ({"no_target": True}, ("give the object once",)),
    ('{"image": "a.jpg", "sent', ("not complete JSON",)),
    ("[1]", ("expected a dict",)),
])
def test_a_bad_line_is_refused_by_its_number(capsys, tmp_path, record, words):
    images, source = lines(tmp_path, {}, record, {"sentence": "the other thing"})
    code, _, err = import_data(capsys, "jsonl", source, tmp_path / "out", images=images)
    assert code == 2 and err.count("\n") == 1 and err.startswith(f"error: {source}: line 2: "), err
    assert all(word in err for word in words) and "--skip-bad 1" in err, err
    assert list((tmp_path / "out").iterdir()) == []
    code, out, err = import_data(capsys, "jsonl", source, tmp_path / "out", "--skip-bad", 1, images=images)
    assert code == 0 and "left out: " in out and "records left out: 1" in out, err
    assert len(read_refer(tmp_path / "out", "own", "own").sentence_ids) == 2


def test_mask_pictures_must_fit_their_picture(capsys, tmp_path):
    images, source = lines(tmp_path, {"mask": "small.png"}, {"mask": "empty.png"}, {"mask": "labels.png"})
    painted(tmp_path / "small.png", np.full((20, 30), 255, np.uint8))
    painted(tmp_path / "empty.png", np.zeros((HEIGHT, WIDTH), np.uint8))
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[:9], labels[20:] = 1, 2
    painted(tmp_path / "labels.png", labels)
    code, out, err = import_data(capsys, "jsonl", source, tmp_path / "out", images=images)
    assert code == 2 and "30 x 20" in err and "60 x 40" in err and "2 more records" in err and "--skip-bad 3" not in err
    assert "line 2" in out and "empty mask" in out and "line 3" in out and "mask_value" in out


def test_a_picture_that_exif_turns_is_named_as_the_reason(capsys, tmp_path):
    images, source = lines(tmp_path, {"image": "turned.jpg", "mask": "upright.png"})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT), "red").save(images / "turned.jpg", exif=exif)
    mask = np.zeros((WIDTH, HEIGHT), np.uint8)
    mask[9:30, 9:30] = 255
    painted(tmp_path / "upright.png", mask)
    code, _, err = import_data(capsys, "jsonl", source, tmp_path / "out", images=images)
    assert code == 2 and "EXIF orientation" in err, err


DAMAGES = [  # form, file below the source, how its content changes, words of the message
    ("seqtr", "instances.json", lambda c: c["train"][1].pop("mask"), ("train record 1", "'mask' is missing")),
    ("seqtr", "instances.json", lambda c: c["val"][0].update(width="x"), ("val record 0", "'width' must be a whole")),
    ("seqtr", "instances.json", lambda c: c["val"][0].update(image_id=7), ("000000000007.jpg", "does not exist")),
    ("seqtr", "instances.json", lambda c: c["train"][1].update(height=41), ("40 in an earlier record",)),
    ("uninext", "instances_val.json", lambda c: c["images"].clear(), ("annotation number 0", "its image")),
    ("uninext", "instances_val.json", lambda c: c.pop("images"), ("no list 'images'",)),
    ("uninext", "instances_val.json", lambda c: c["images"][0].update(file_name="a_².jpg"), ("does not exist",)),
    ("mdetr", "finetune_refcoco_val.json", lambda c: c["annotations"][0].update(original_id=5), ("image number 0",
                                                                                                   "annotation 5")),
    ("mdetr", "finetune_refcoco_val.json", lambda c: c["annotations"].clear(), ("no annotation lies on it",)),
    ("cris", "anns/refcoco/val.json", lambda c: c[0].update(segment_id=999), ("record 0", "999.png", "--masks")),
    ("cris", "anns/refcoco/val.json", lambda c: c[0].update(sentences=[]), ("no sentence",)),
    ("grefcoco", "grefs(unc).json", lambda c: c[1].update(ann_id=[12345]), ("ref 51", "annotation 12345")),
    ("grefcoco", "grefs(unc).json", lambda c: c[1].update(no_target=True), ("ref 51", "contradict")),
    ("grefcoco", "instances.json", lambda c: c["annotations"][1].update(id=900), ("two annotations have the id 900",)),
    ("phrasecut", "refer_val.json", lambda c: c[0].update(Polygons=[[[[1, 2], [3, 4]]]]), ("task 102__903", "'Poly")),
    ("phrasecut", "refer_val.json", lambda c: c[0].update(ann_ids=[1, 2]), ("one entry per instance",)),
    ("phrasecut", "image_data_split3000.json", lambda c: c[0].pop("width"), ("record 0", "'width' is missing")),
    ("labelme", "val/102.json", lambda c: c["shapes"][0].update(shape_type="point"), ("102.json", "has no area")),
    ("labelme", "val/102.json", lambda c: c.update(shapes=[]), ("'shapes' is empty",)),
    ("labelme", "val/102.json", lambda c: c.update(imageHeight=41), ("60 x 41", "60 x 40")),
    ("coco", "captions_val.json", lambda c: c["annotations"][0].update(segmentation=[], bbox=None), ("neither",)),
    ("coco", "captions_val.json", lambda c: c["annotations"][0].update(image_id=1), ("annotation 13", "image 1")),
]


@pytest.mark.parametrize("form, name, change, words", DAMAGES, ids=[f"{d[0]}-{i}" for i, d in enumerate(DAMAGES)])
def test_typical_damages_get_one_line(capsys, tmp_path, form, name, change, words):
    refer = made_up(tmp_path / "images")
    written = WRITERS[form](refer, tmp_path / form)
    if form == "phrasecut":
        for image in refer.instances["images"]:
            (refer.images / image["file_name"]).rename(refer.images / f"{image['id']}.jpg")
    file = written.source / name
    stored = json.loads(file.read_text())
    change(stored)
    file.write_text(json.dumps(stored))
    refuses(capsys, tmp_path, form, written, refer.images, *words)
    file.write_text(json.dumps(stored)[:-40])  # truncated
    refuses(capsys, tmp_path, form, written, refer.images, file.name, "not complete JSON")
    if form == "labelme":  # its reader takes Windows' encoding as well
        file.write_bytes(json.dumps(stored).encode()[:-40] + b"\xe9")
        refuses(capsys, tmp_path, form, written, refer.images, file.name, "not complete JSON")
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    if form != "labelme":
        refuses(capsys, tmp_path, form, written, refer.images, file.name, "Git LFS pointer")


def refuses(capsys, tmp_path, form, written, images, *words):
    code, _, err = import_data(capsys, form, written.source, tmp_path / "out", *written.arguments, images=images)
    assert code == 2 and err.count("\n") == 1 and err.startswith("error: "), err
    assert all(word in err for word in words), err
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_mdetrs_files_hold_several_sets_and_no_masks(capsys, tmp_path):
    refer = made_up(tmp_path / "images")
    written = WRITERS["mdetr"](refer, tmp_path / "mdetr")
    coco = written.arguments[1]
    code, _, err = import_data(capsys, "mdetr", written.source, tmp_path / "out", "--instances", coco,
                               images=refer.images)
    assert code == 2 and "of refcoco; choose one with --dataset" in err
    code, _, err = import_data(capsys, "mdetr", written.source, tmp_path / "out", "--dataset", "refcoco",
                               images=refer.images)
    assert code == 2 and "--instances" in err and "no masks" in err


def test_damages_of_tsv(capsys, tmp_path):
    refer = made_up(tmp_path / "images")
    written = WRITERS["polyformer"](refer, tmp_path / "polyformer")
    file = written.source / "refcoco_val.tsv"
    columns = file.read_text().split("\t")
    for change, words in (
            (columns[:6], ("line 1", "6 columns", "truncated")), (["53", *columns[1:]], ("<ref id>_<number>",)),
            ([*columns[:6], columns[6][:50], columns[7]], ("column 7, the mask", "base64")),
            ([*columns[:5], columns[5][:400], *columns[6:]], ("truncated",)),
            ([columns[0], "one", *columns[2:]], ("column 2", "whole number"))):
        file.write_text("\t".join(change))
        refuses(capsys, tmp_path, "polyformer", written, None, *words)


def test_damages_of_parquet(capsys, tmp_path):
    pytest.importorskip("pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    refer = made_up(tmp_path / "images")
    written = WRITERS["hf-refer"](refer, tmp_path / "hf-refer")
    file = written.source / "data/validation-00000-of-00001-abc.parquet"
    table = pq.read_table(file)

    def rewrite(**columns):
        rows = table.to_pylist()
        rows[0].update(columns)
        pq.write_table(pa.Table.from_pylist(rows, table.schema), file)

    for columns, words in (({"raw_anns": "{"}, ("row 0", "'raw_anns' is not complete JSON")),
                           ({"raw_anns": None}, ("'raw_anns' is missing",)),
                           ({"ann_id": 4}, ("'ann_id' is 4",)), ({"sentences": []}, ("no sentence",)),
                           ({"raw_anns": '{"id": 903, "segmentation": []}'}, ("holds no polygon",))):
        rewrite(**columns)
        refuses(capsys, tmp_path, "hf-refer", written, refer.images, file.name, *words)
    pq.write_table(table.drop_columns(["sentences"]), file)
    refuses(capsys, tmp_path, "hf-refer", written, refer.images, "no column sentences", "--format")
    pq.write_table(table, file)
    file.write_bytes(file.read_bytes()[:-100])
    refuses(capsys, tmp_path, "hf-refer", written, refer.images, "not a complete parquet file")


def test_a_parquet_box_of_no_numbers_says_nothing(capsys, tmp_path):
    """It only tells whether an outline lacks parts: no reason to refuse its row."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    refer = made_up(tmp_path / "images")
    written = WRITERS["hf-eval"](refer, tmp_path / "hf-eval")
    for file in written.source.rglob("*.parquet"):
        rows = [{**row, "bbox": [None] * 4} for row in pq.read_table(file).to_pylist()]
        pq.write_table(pa.Table.from_pylist(rows), file)
    code, out, err = import_data(capsys, "hf-eval", written.source, tmp_path / "out", images=refer.images)
    assert code == 0 and "do not fill their box" not in out, err


def test_without_pyarrow_the_command_to_install_it_is_named(capsys, tmp_path, monkeypatch):
    made_up(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "refcoco.parquet").write_bytes(b"PAR1")
    code, _, err = import_data(capsys, "hf-refer", tmp_path / "refcoco.parquet", tmp_path / "out", images=tmp_path)
    assert code == 2 and "reading parquet needs pyarrow" in err and err.count("\n") == 1
    pin = err.strip().rsplit("pip install ", 1)[1].strip("'")
    assert pin in (ROOT / "requirements-test.txt").read_text().splitlines()
    assert re.search(r'^hf = \["pyarrow>=', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)


@pytest.mark.parametrize("form", [form for form in WRITERS if form not in ("rrsis-d", "labelme", "coco")])
def test_other_forms_are_recognised_where_refers_files_were_wanted(capsys, tmp_path, form):
    if form.startswith("hf"):
        pytest.importorskip("pyarrow")
    source = WRITERS[form](made_up(tmp_path / "images"), tmp_path / form).source
    folder = source if source.is_dir() else source.parent
    (folder.parent / "images").mkdir(exist_ok=True)
    check = ["check-data", "--root", str(folder.parent), "--dataset", folder.name, "--split-by", "unc"]
    assert main(check) == 2
    err = capsys.readouterr().err
    assert f"import-data --format {'hf-refer' if form == 'hf-eval' else form} " in err, err


@pytest.mark.parametrize("arguments, words", [
    (["--images", "nowhere"], ("nowhere", "--images")), (["--dataset", "../x"], ("--dataset",)),
    (["--skip-bad", "-1"], ("--skip-bad",)), (["--split-by", "a/b"], ("--split-by",))])
def test_senseless_options_are_refused(capsys, tmp_path, arguments, words):
    _, source = lines(tmp_path, {})
    code, _, err = import_data(capsys, "jsonl", source, tmp_path / "out", *arguments)
    assert code == 2 and all(word in err for word in words) and not (tmp_path / "out").exists()


def test_nothing_is_overwritten(capsys, tmp_path):
    images, source = lines(tmp_path, {})
    assert import_data(capsys, "jsonl", source, tmp_path / "out", images=images)[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out/own").iterdir()}
    code, _, err = import_data(capsys, "jsonl", source, tmp_path / "out", images=images)
    assert code == 2 and "exists already" in err
    assert before == {path: path.read_bytes() for path in (tmp_path / "out/own").iterdir()}


@pytest.mark.parametrize("moment", ["json.dumps", "os.fsync", "os.rename"])
def test_a_killed_import_leaves_nothing_that_looks_whole(capsys, tmp_path, moment):
    images, source = lines(tmp_path, {})
    arguments = ["import-data", "--format", "jsonl", source, "--images", images, "--output", tmp_path / "out"]
    script = ("import os, signal, json; from mindspore_coupalign.__main__ import main\n"
              "import mindspore_coupalign.cli.import_data\n"
              f"{moment} = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)\nmain({[str(a) for a in arguments]})")
    assert subprocess.run([sys.executable, "-c", script]).returncode == -9
    assert not (tmp_path / "out/own").exists() and list((tmp_path / "out").glob(".import-own-*"))
    check = ["check-data", "--root", str(tmp_path / "out"), "--dataset", "own", "--split-by", "own"]
    assert main(check) == 2 and "holds none" in capsys.readouterr().err
    assert import_data(capsys, "jsonl", source, tmp_path / "out", images=images)[0] == 0  # and it clears up
    assert not list((tmp_path / "out").glob(".import-own-*"))


def test_the_real_command_line(command_line, tmp_path):
    images, source = lines(tmp_path, {}, {"sentence": "another"})
    done = command_line("import-data", "--format", "jsonl", source, "--images", images, "--output", tmp_path / "out")
    assert done.code == 0 and "Next: python -m mindspore_coupalign check-data" in done.out, done.err
    done = command_line(*done.out.split("mindspore_coupalign ", 1)[1].split())
    assert done.code == 0 and "every file is readable" in done.out
    done = command_line("import-data", "--format", "hf-refer", source, "--output", tmp_path / "again")
    assert done.code == 2 and "needs --images" in done.err


def replaced(value, random):
    """A JSON value with one node of it, any, replaced by something else."""
    junk = [None, 5, -1, "x", "", [], {}, 1e400, True, [[1, 2]], "7", 2**70, float("nan"), "a\0b", "../x", 0.5]
    nodes, holders = [()], {(): value}
    for path in nodes:
        inside = holders[path]
        for key in inside if isinstance(inside, dict) else range(len(inside)) if isinstance(inside, list) else ():
            nodes.append((*path, key))
            holders[(*path, key)] = inside[key]
    path = nodes[random.integers(len(nodes))]
    if path:
        holders[path[:-1]][path[-1]] = junk[random.integers(len(junk))]
    return value if path else junk[random.integers(len(junk))]


@pytest.mark.parametrize("form", ["seqtr", "uninext", "mdetr", "cris", "grefcoco", "phrasecut", "labelme", "coco"])
def test_any_damage_gets_one_line_or_data_that_can_be_read(capsys, tmp_path, form):
    refer, random = made_up(tmp_path / "images"), np.random.default_rng(0)
    for image in refer.instances["images"]:
        (refer.images / f"{image['id']}.jpg").write_bytes((refer.images / image["file_name"]).read_bytes())
    written = WRITERS[form](refer, tmp_path / form)
    files = sorted(written.source.rglob("*.json"))
    outcomes = set()
    for trial in range(40):
        file = files[random.integers(len(files))]
        whole = file.read_text()
        file.write_text(json.dumps(replaced(json.loads(whole), random)))
        code, _, err = import_data(capsys, form, written.source, tmp_path / f"out{trial}", *written.arguments,
                                   images=refer.images)
        outcomes.add(code)
        if code == 0:
            (folder,) = [path for path in (tmp_path / f"out{trial}").iterdir() if path.name != "images"]
            (refs,) = folder.glob("refs(*).json")
            read_refer(tmp_path / f"out{trial}", folder.name, refs.name[5:-6])
        else:
            assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, err
        file.write_text(whole)
    assert outcomes == {0, 2}
