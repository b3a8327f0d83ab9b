"""import-data: what foreign_data writes in each form comes back with equal masks and sentences; export-data."""

import json
import pickle
from collections import Counter

import numpy as np
import pytest
from foreign_data import WRITERS, Refer, import_data, made_up, read_source
from refer_files import SQUARE, TRIANGLE, refcoco_mini

from mindspore_coupalign.__main__ import main
from mindspore_coupalign.data.annotations import as_key
from mindspore_coupalign.data.importers import FORMATS
from mindspore_coupalign.data.refer import read_refer

PARQUET = ("hf-refer", "hf-eval")


def content(data, field="sent") -> Counter:
    """How often each (split, image, sentence, mask) is there."""
    masks = [data.mask(r).T.tobytes() for r in range(len(data.ref_ids))]
    return Counter((data.split_names[data.ref_split[r]], str(data.image_files[data.ref_image[r]]),
                    data.sentence(s, field), masks[r])
                   for s, r in enumerate(data.sentence_ref.tolist()))


def expected(refer: Refer, form: str, field="sent") -> Counter:
    found = Counter()
    for ref in refer.refs:
        segmentation = refer.annotation[ref["ann_id"]]["segmentation"]
        polygons = isinstance(segmentation, list) and isinstance(segmentation[0], list)
        if form == "hf-eval" and not (polygons and len(segmentation) == 1):
            continue
        name, mask = refer.image[ref["image_id"]]["file_name"], refer.mask(ref)
        if form == "hf-eval":  # its numbers are float32
            mask = refer.mask(ref, [np.float32(segmentation[0]).tolist()])
        if form == "phrasecut":
            if not polygons:
                continue
            name = f"{ref['image_id']}.jpg"
        pixels = mask.T.tobytes()
        for sentence in ref["sentences"]:
            found[ref["split"], name, sentence[field], pixels] += 1
    return found


def written_names(form, output):
    (folder,) = [path for path in output.iterdir() if path.name != "images" and path.is_dir()]
    (refs,) = folder.glob("refs(*).json")
    return folder.name, refs.name[5:-6]


def round_trip(capsys, tmp_path, refer, form):
    if form in PARQUET:
        pytest.importorskip("pyarrow")
    if form == "phrasecut":  # its images have Visual Genome's names
        renamed = tmp_path / "VG"
        (renamed / "VG_100K").mkdir(parents=True)
        for image in refer.instances["images"]:
            (renamed / "VG_100K" / f"{image['id']}.jpg").write_bytes((refer.images / image["file_name"]).read_bytes())
    written = WRITERS[form](refer, tmp_path / form)
    inside = form in ("hf-eval", "polyformer")
    code, out, err = import_data(capsys, form, written.source, tmp_path / "out", *written.arguments,
                                 images=None if inside else tmp_path / "VG" if form == "phrasecut" else refer.images)
    assert (code, err) == (0, ""), err
    dataset, split_by = written_names(form, tmp_path / "out")
    data = read_refer(tmp_path / "out", dataset, split_by)
    found = content(data)
    wanted = expected(refer, form)
    if form == "phrasecut":
        found = Counter({(s, name.removeprefix("VG_100K/"), t, m): n for (s, name, t, m), n in found.items()})
    assert len(wanted) and wanted <= found  # as multisets
    assert not written.exact or found == wanted
    assert not written.raw or content(data, "raw") == expected(refer, form, "raw")
    for r in range(len(data.ref_ids)):
        assert data.read_image(r).shape[:2] == tuple(data.image_sizes[data.ref_image[r]])
    return data, out


@pytest.mark.parametrize("form", FORMATS)
def test_round_trip_of_made_up_data(capsys, tmp_path, form):
    refer = made_up(tmp_path / "images")
    data, out = round_trip(capsys, tmp_path, refer, form)
    if form in ("hf-refer", "rrsis-d", "grefcoco", "mdetr"):  # ids survive where the form has them
        assert sorted(data.ann_ids.tolist()) == [ref["ann_id"] for ref in refer.refs]
    if form in ("hf-refer", "rrsis-d", "grefcoco", "cris", "polyformer"):
        assert sorted(data.ref_ids.tolist()) == [ref["ref_id"] for ref in refer.refs]
    if form not in ("phrasecut", "hf-eval"):  # sentences of one object are together again
        assert len(data.ref_ids) == len(refer.refs)
    if form == "hf-refer":
        assert "split validation is called val" in out and "split test is called testA" in out
    if form in ("hf-refer", "seqtr", "cris"):
        assert "120,624" in out  # the published count beside the found one


@pytest.mark.parametrize("form", FORMATS)
def test_round_trip_of_real_data(capsys, tmp_path, form):
    root = refcoco_mini()
    if root is None:
        pytest.skip("no refcoco_mini here")
    refer = read_source(root / "refcoco_resplit", "unc", root / "images/train2014")
    round_trip(capsys, tmp_path, refer, form)


def test_every_form_has_a_writer():
    assert list(WRITERS) == list(FORMATS)


@pytest.mark.parametrize("form, more", [("jsonl", ()), ("jsonl", ("--masks", "png")), ("coco", ())])
def test_what_is_exported_comes_back(capsys, tmp_path, form, more):
    refer = made_up(tmp_path / "root/images/train2014")
    (tmp_path / "root/refcoco").mkdir()
    (tmp_path / "root/refcoco/refs(unc).p").write_bytes(pickle.dumps(refer.refs, protocol=2))
    (tmp_path / "root/refcoco/instances.json").write_text(json.dumps(refer.instances))
    file = tmp_path / f"labels.{form}.json"
    place = ["--root", str(tmp_path / "root"), "--dataset", "refcoco", "--split-by", "unc"]
    assert main(["export-data", *place, "--format", form, "--output", str(file), *more]) == 0
    code, _, err = import_data(capsys, form, file, tmp_path / "out", images=refer.images)
    assert code == 0, err
    back = read_refer(tmp_path / "out", *written_names(form, tmp_path / "out"))
    first = read_refer(tmp_path / "root", "refcoco", "unc")
    for field in ("sent", "raw"):
        assert content(back, field) == content(first, field)
    assert back.ref_ids.tolist() == first.ref_ids.tolist()
    assert back.sentence_ids.tolist() == first.sentence_ids.tolist()
    assert main(["export-data", *place, "--format", form, "--output", str(file), "--split", "val", "nowhere"]) == 2
    assert "no split 'nowhere'" in capsys.readouterr().err


def test_an_export_joins_ids_as_the_reader_does(tmp_path):
    """Images' ids as numbers, the annotations' references to them as text: the reader takes both as one."""
    refer = made_up(tmp_path / "root/images/train2014")
    for annotation in refer.instances["annotations"]:
        annotation["image_id"] = str(annotation["image_id"])
    (tmp_path / "root/refcoco").mkdir()
    (tmp_path / "root/refcoco/refs(unc).p").write_bytes(pickle.dumps(refer.refs, protocol=2))
    (tmp_path / "root/refcoco/instances.json").write_text(json.dumps(refer.instances))
    file = tmp_path / "coco.json"
    assert main(["export-data", "--root", str(tmp_path / "root"), "--dataset", "refcoco", "--split-by", "unc",
                 "--format", "coco", "--output", str(file)]) == 0
    written = json.loads(file.read_text())
    assert {a["image_id"] for a in written["annotations"]} == {image["id"] for image in written["images"]}
    assert written["images"]


@pytest.mark.parametrize(("given", "key"), [
    (7, 7), ("7", 7), (7.0, 7), ("007", "007"), ("²", "²"), ("٣", "٣"), ("9" * 5000, "9" * 5000), (1.5, 1.5),
    (2.0**53, 2.0**53), ("", ""), (None, None)])
def test_ids_that_are_one(given, key):
    assert as_key(given) == key and type(as_key(given)) is type(key)


def several(tmp_path):
    """gRefCOCO: a sentence of two objects, one of none, one of a crowd and an object."""
    refer = made_up(tmp_path / "images")
    source = WRITERS["grefcoco"](refer, tmp_path / "grefcoco").source
    refs = json.loads((source / "grefs(unc).json").read_text())
    refs[1].update(ann_id=[900, 901], category_id=[1, 2])
    refs[2].update(ann_id=[-1], category_id=[-1], no_target=True)
    (source / "grefs(unc).json").write_text(json.dumps(refs))
    return refer, source


def test_several_objects_become_one_mask_and_sentences_without_one_are_left_out(capsys, tmp_path):
    refer, source = several(tmp_path)
    code, out, err = import_data(capsys, "grefcoco", source, tmp_path / "out", images=refer.images)
    assert code == 0, err
    assert "several objects got one mask of all of them: 2" in out and "mean no object left out" in out
    data = read_refer(tmp_path / "out", "grefcoco", "unc")
    assert len(data.ref_ids) == 6 and 52 not in data.ref_ids
    both = data.mask(data.ref_ids.tolist().index(51))
    np.testing.assert_array_equal(both, refer.mask(refer.refs[0]) | refer.mask(refer.refs[1]))


def test_objects_can_be_kept_in_grefcocos_form_which_is_read_and_exported(capsys, tmp_path):
    refer, source = several(tmp_path)
    code, _, err = import_data(capsys, "grefcoco", source, tmp_path / "out", "--objects", "keep", images=refer.images)
    assert code == 0, err
    refs = json.loads((tmp_path / "out/grefcoco/refs(unc).json").read_text())
    assert [ref["ann_id"] for ref in refs][:4] == [[900], [900, 901], [-1], [903]]
    assert [ref["no_target"] for ref in refs][:4] == [False, False, True, False]
    (tmp_path / "out/images/grefcoco").resolve(strict=True)
    check = ["check-data", "--root", str(tmp_path / "out"), "--dataset", "grefcoco", "--split-by", "unc"]
    assert main(check) == 0
    out = capsys.readouterr().out
    assert "1 refs mean several objects (up to 2), 1 mean none" in out and "empty masks" not in out
    kept = read_refer(tmp_path / "out", "grefcoco", "unc")
    lines = tmp_path / "own.jsonl"
    export = ["export-data", *check[1:], "--output", str(lines), "--format"]
    assert main([*export, "coco"]) == 2 and "ref 51 means 2 objects" in capsys.readouterr().err
    assert main([*export, "jsonl"]) == 0 and "--objects keep" in capsys.readouterr().out
    code, _, err = import_data(capsys, "jsonl", lines, tmp_path / "again", "--objects", "keep", images=refer.images)
    assert code == 0, err
    back = read_refer(tmp_path / "again", "own", "own")
    assert back.ref_ids.tolist() == kept.ref_ids.tolist() and back.text == kept.text
    assert back.has_target.tolist() == kept.has_target.tolist()
    for r in range(len(kept.ref_ids)):
        np.testing.assert_array_equal(back.mask(r), kept.mask(r))


def test_phrasecuts_instances_are_united(capsys, tmp_path):
    refer = made_up(tmp_path / "images")
    for image in refer.instances["images"]:
        (refer.images / image["file_name"]).rename(refer.images / f"{image['id']}.jpg")
    task = {"task_id": "100__1_2", "image_id": 100, "ann_ids": [1, 2], "instance_boxes": [], "phrase": "things",
            "Polygons": [[np.reshape(p, (-1, 2)).tolist()] for p in (SQUARE, TRIANGLE)]}
    (tmp_path / "refer_miniv.json").write_text(json.dumps([task]))  # without sizes: the image is opened
    code, _, err = import_data(capsys, "phrasecut", tmp_path, tmp_path / "out", images=refer.images)
    assert code == 0, err
    data = read_refer(tmp_path / "out", "phrasecut", "vg")
    np.testing.assert_array_equal(data.mask(0), refer.mask(refer.refs[0], [SQUARE, TRIANGLE]))
    assert data.split_names == ("miniv",)


def test_reasonsegs_shapes(capsys, tmp_path):
    refer = made_up(tmp_path / "images")
    square = np.reshape(SQUARE, (-1, 2)).tolist()
    hole = [[15, 10], [25, 10], [25, 20], [15, 20]]
    (tmp_path / "val").mkdir()
    (tmp_path / "val/a.json").write_bytes(json.dumps({
        "text": ["the café where one sits", "a place to sit"], "is_sentence": True, "shapes": [
            {"label": "ignore", "points": hole}, {"label": "target", "points": square},
            {"label": "flag", "points": hole}],
        "imagePath": refer.instances["images"][0]["file_name"]}, ensure_ascii=False).encode("cp1252"))
    code, _, err = import_data(capsys, "labelme", tmp_path, tmp_path / "out", images=refer.images)
    assert code == 0, err
    data = read_refer(tmp_path / "out", *written_names("labelme", tmp_path / "out"))
    assert [data.sentence(s) for s in data.split("val")] == ["the café where one sits", "a place to sit"]
    mask = data.mask(0)
    assert mask[6, 12] and not mask[15, 20] and mask.sum() == 21 * 21 - 11 * 11  # outlines belong to their shapes



def test_the_vocabulary_spells_every_sentence(capsys, tmp_path):
    from mindspore_coupalign.data.tokenizer import SentenceTokenizer

    refer = made_up(tmp_path / "images")
    refer.refs[0]["sentences"][0]["sent"] = "Caf\u00e9-owner's \u732b, 3rd"
    refer.refs[3]["sentences"][0]["sent"] = "unheard words in val"
    written = WRITERS["jsonl"](refer, tmp_path / "own")
    code, out, err = import_data(capsys, "jsonl", written.source, tmp_path / "out", "--vocabulary", images=refer.images)
    assert code == 0, err
    folder = tmp_path / "out/own/vocabulary"
    assert str(folder) in out
    tokenizer = SentenceTokenizer.from_name(str(folder), 40)
    data = read_refer(tmp_path / "out", "own", "own")
    texts = [data.sentence(s) for s in range(len(data.sentence_ref))]
    ids, words = tokenizer(texts)
    assert not ((ids == tokenizer.unknown_id) & (words == 1)).any()
    assert tokenizer.lengths(["the thing number", "unheard"]).tolist() == [5, 9]  # train's words are whole


def test_pictures_stay_where_they_are(capsys, tmp_path):
    refer = made_up(tmp_path / "root/images/train2014")
    written = WRITERS["seqtr"](refer, tmp_path / "seqtr")
    code, out, _ = import_data(capsys, "seqtr", written.source, tmp_path / "root", images=refer.images)
    assert code == 0 and not (tmp_path / "root/images/train2014").is_symlink()  # they are in their place already
    code, out, _ = import_data(capsys, "seqtr", written.source, tmp_path / "other", images=refer.images)
    assert code == 0 and "(a link)" in out and (tmp_path / "other/images/train2014").resolve() == refer.images
    (tmp_path / "third/images/train2014").mkdir(parents=True)  # the place is another's
    code, out, _ = import_data(capsys, "seqtr", written.source, tmp_path / "third", images=refer.images)
    assert code == 0 and f"data.images={refer.images}" in out
    assert len(read_refer(tmp_path / "third", "refcoco", "unc", str(refer.images)).ref_ids) == len(refer.refs)


def test_the_reader_takes_json_beside_nothing_and_the_pickle_beside_json(tmp_path):
    refer = made_up(tmp_path / "images/train2014")
    (tmp_path / "refcoco").mkdir()
    (tmp_path / "refcoco/instances.json").write_text(json.dumps(refer.instances))
    (tmp_path / "refcoco/refs(unc).json").write_text(json.dumps(refer.refs))
    first = read_refer(tmp_path, "refcoco", "unc")
    (tmp_path / "refcoco/refs(unc).p").write_bytes(pickle.dumps(refer.refs[:3], protocol=2))
    second = read_refer(tmp_path, "refcoco", "unc")
    assert first.source.suffix == ".json" and second.source.suffix == ".p" and len(second.ref_ids) == 3
    assert content(first) == expected(refer, "") and content(first, "raw") == expected(refer, "", "raw")


@pytest.mark.parametrize("form", ["hf-eval", "polyformer"])
def test_pictures_inside_a_form_can_be_left_for_the_originals(capsys, tmp_path, form):
    if form in PARQUET:
        pytest.importorskip("pyarrow")
    refer = made_up(tmp_path / "images")
    written = WRITERS[form](refer, tmp_path / form)
    code, out, err = import_data(capsys, form, written.source, tmp_path / "a", *written.arguments, images=refer.images)
    assert code == 0 and "(a link)" in out, err
    assert import_data(capsys, form, written.source, tmp_path / "b", *written.arguments)[0] == 0
    first, second = (read_refer(tmp_path / root, "refcoco", "unc") for root in "ab")
    assert content(first) == content(second)
    np.testing.assert_array_equal(first.read_image(0), second.read_image(0))
    stored = tmp_path / "b/images/train2014"
    assert not stored.is_symlink() and {p.name for p in stored.iterdir()} <= {p.name for p in refer.images.iterdir()}
    again = [*written.arguments, "--dataset", "refcocog"]
    code, _, err = import_data(capsys, form, written.source, tmp_path / "b", *again)
    assert code == 2 and "exists already" in err and "--images" in err  # they would mix with others


def test_a_line_may_mean_no_object(capsys, tmp_path):
    refer = made_up(tmp_path / "images")
    name = refer.instances["images"][0]["file_name"]
    lines = [{"image": name, "sentence": "a unicorn", "no_target": True},
             {"image": name, "sentence": ["the thing", "it"], "mask": [SQUARE]}]
    (tmp_path / "own.jsonl").write_text("\ufeff" + "\r\n\r\n".join(map(json.dumps, lines)))  # as Windows writes it
    code, out, err = import_data(capsys, "jsonl", tmp_path / "own.jsonl", tmp_path / "a", images=refer.images)
    assert code == 0 and "mean no object left out (--objects keep has them): 1" in out, err
    assert read_refer(tmp_path / "a", "own", "own").sentence_ids.tolist() == [1, 2]
    code, *_ = import_data(capsys, "jsonl", tmp_path / "own.jsonl", tmp_path / "b", "--objects", "keep",
                           images=refer.images)
    refs = json.loads((tmp_path / "b/own/refs(own).json").read_text())
    assert code == 0 and [(ref["ann_id"], ref["no_target"]) for ref in refs] == [([-1], True), ([1], False)]
