import copy
import gzip
import json

import cv2
import numpy as np
import pytest
from refer_files import (
    HEIGHT,
    OUTSIDE,
    SPLITS,
    SQUARE,
    TRIANGLE,
    WIDTH,
    box_mask,
    plain_rle,
    refcoco_mini,
    refs_and_instances,
    write_refer,
)

from mindspore_coupalign.data.masks import rle_to_mask, segmentation_to_rle
from mindspore_coupalign.data.refer import read_refer
from mindspore_coupalign.errors import UserError


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return read_refer(write_refer(tmp_path_factory.mktemp("refer")), "tiny", "unc")


def changed(**edits):
    """(refs, instances) after ``edits``: name -> function that changes the list ``refs`` or the dict ``instances``."""
    refs, instances = copy.deepcopy(refs_and_instances())
    for name, edit in edits.items():
        edit({"refs": refs, "instances": instances}[name])
    return refs, instances


def fails(tmp_path, *words, **edits):
    write_refer(tmp_path, *changed(**edits))
    with pytest.raises(UserError) as caught:
        read_refer(tmp_path, "tiny", "unc")
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_sentence_is_in_one_split_once(tiny):
    assert tiny.split_names == tuple(SPLITS)
    parts = [tiny.split(name) for name in SPLITS]
    assert [len(part) for part in parts] == list(SPLITS.values())
    assert np.concatenate(parts).tolist() == list(range(11))  # file order, each once
    assert [tiny.sentence(s)[-3:] for s in tiny.split("val")] == ["3 0", "3 1", "4 0"]
    assert tiny.sentence_ids.tolist() == list(range(11)) and tiny.ref_ids[tiny.sentence_ref[10]] == 505
    assert [tiny.ref_sentences[r:r + 2].tolist() for r in (0, 5)] == [[0, 3], [9, 11]]
    assert tiny.kind_names == () and (tiny.sentence_kind == -1).all()


def test_each_wording_stands_for_the_other_where_that_is_missing(tmp_path):
    wordings = [{"sent": "a", "raw": "A."}, {"sent": "b"}, {"raw": "C!"}, {"sent": "d", "raw": None},
                {"sent": "e", "raw": " "}, {"sent": " ", "raw": "F"}, {"sent": "", "raw": ""},
                {"sent": "é", "raw": "É"}, {"sent": "same", "raw": "same"}]

    def edit(refs):
        refs[0]["sentences"] = [{"sent_id": k} | wording for k, wording in enumerate(wordings)]

    data = read_refer(write_refer(tmp_path, *changed(refs=edit)), "tiny", "unc")
    assert [data.sentence(s) for s in range(9)] == ["a", "b", "C!", "d", "e", "F", "", "é", "same"]
    assert [data.sentence(s, "raw") for s in range(9)] == ["A.", "b", "C!", "d", "e", "F", "", "É", "same"]
    assert data.sentence(9) == "the red square left of image number 1 0" == data.sentence(9, "raw").lower()
    assert data.raw.startswith(b"A.\xc3\x89THE RED")  # one copy of what is equal


def test_unknown_split_lists_the_splits(tiny):
    with pytest.raises(UserError, match="no split 'testB'; the splits here are train, val, testA"):
        tiny.split("testB")


def test_test_splits_follow_refers_rule(tmp_path):
    names = ["train", "testA", "testAB", "testBC", "testB", "val"]

    def rename(refs):
        for ref, name in zip(refs, names, strict=True):
            ref["split"] = name

    data = read_refer(write_refer(tmp_path, *changed(refs=rename)), "tiny", "unc")
    assert {name: data.refs_of(name).tolist() for name in ("test", "testA", "testB", "testC", "testAB")} == {
        "test": [1, 2, 3, 4], "testA": [1, 2], "testB": [2, 3, 4], "testC": [3], "testAB": [2]}


def test_epoch_samples_are_one_sentence_per_ref(tiny):
    first = tiny.epoch_samples("train", seed=3, epoch=0)
    assert sorted(tiny.sentence_ref[first]) == tiny.refs_of("train").tolist()
    assert first.tolist() == tiny.epoch_samples("train", seed=3, epoch=0).tolist()
    draws = {tuple(tiny.epoch_samples("train", seed, epoch)) for seed in range(2) for epoch in range(30)}
    assert len(draws) > 20  # 6 choices x 6 orders
    assert set(np.concatenate([list(draw) for draw in draws])) == set(range(6))  # every sentence has its turn


def test_epoch_samples_leave_out_refs_without_sentences(tmp_path):
    data = read_refer(write_refer(tmp_path, *changed(refs=lambda refs: refs[1].update(sentences=[]))), "tiny", "unc")
    assert sorted(data.sentence_ref[data.epoch_samples("train", 0, 0)]) == [0, 2]


def test_polygon_masks_agree_with_another_rasteriser(tiny):
    for r, polygons in ((0, [SQUARE]), (1, [SQUARE, TRIANGLE])):
        drawn = np.zeros((HEIGHT, WIDTH), np.uint8)
        for polygon in polygons:  # one at a time: fillPoly counts overlaps as holes
            cv2.fillPoly(drawn, [np.round(polygon).astype(np.int32).reshape(-1, 2)], 1)
        mask = tiny.mask(r)
        assert mask.dtype == np.uint8 and mask.shape == (HEIGHT, WIDTH) and set(np.unique(mask)) == {0, 1}
        assert tiny.mask_area(r) == mask.sum()
        edge = cv2.dilate(drawn, np.ones((3, 3))) - cv2.erode(drawn, np.ones((3, 3)))
        assert not (mask != drawn)[edge == 0].any()  # they may differ along the outline only
        assert (mask & drawn).sum() / (mask | drawn).sum() > 0.85


def test_rle_masks_are_exact(tiny):
    np.testing.assert_array_equal(tiny.mask(2), box_mask())
    np.testing.assert_array_equal(tiny.mask(3), box_mask())
    np.testing.assert_array_equal(tiny.mask(4), box_mask() | box_mask()[:, ::-1])


def test_pixels_under_two_parts(tmp_path):
    """``single`` is ``np.sum(parts, axis=2) == 1``, as LAVT keeps of REFER's mask; no second mask without overlap."""
    from pycocotools import mask as coco

    def box(x, y, side=20):
        return [x, y, x + side, y, x + side, y + side, x, y + side]

    def rle(mask):
        packed = coco.encode(np.asfortranarray(mask))
        return {"size": packed["size"], "counts": packed["counts"].decode()}

    boxes = [np.pad(np.ones((10, 10), np.uint8), ((y, 30 - y), (x, 50 - x))) for x, y in ((0, 0), (5, 5), (40, 20))]
    segmentations = [[SQUARE], [box(2, 2), box(12, 7), box(15, 10)], [box(2, 2), box(30, 2)], [box(2, 2), box(2, 2)],
                     [rle(mask) for mask in boxes], rle(boxes[0])]

    def edit(instances):
        for annotation, segmentation in zip(instances["annotations"], segmentations, strict=True):
            annotation["segmentation"] = segmentation

    data = read_refer(write_refer(tmp_path, *changed(instances=edit)), "tiny", "unc")
    assert (np.diff(data.single_at) > 0).tolist() == [False, True, False, True, True, False]
    for r, segmentation in enumerate(segmentations):
        parts = segmentation if isinstance(segmentation, list) else [segmentation]
        summed = coco.decode(coco.frPyObjects(parts, HEIGHT, WIDTH) if isinstance(parts[0], list) else parts).sum(2)
        np.testing.assert_array_equal(data.mask(r, "single"), summed == 1)
        np.testing.assert_array_equal(data.mask(r), summed > 0)
        assert data.mask_area(r, "single") == (summed == 1).sum() and data.mask_area(r) == (summed > 0).sum()
    assert data.mask_area(3, "single") == 0 and data.mask_area(3) == 400


def test_random_rles_are_exact_compressed_and_not(tmp_path):
    from pycocotools import mask as coco

    random = np.random.default_rng(0)
    for _ in range(200):
        shape = tuple(random.integers(1, 70, 2).tolist())
        mask = (random.random(shape) < random.random()).astype(np.uint8)
        packed = coco.encode(np.asfortranarray(mask))
        for rle in (plain_rle(mask), plain_rle(mask) | {"id": 3, "score": 0.5},
                    {"size": list(shape), "counts": packed["counts"].decode()}):
            counts, _, outside, _ = segmentation_to_rle(rle, *shape)
            np.testing.assert_array_equal(rle_to_mask(counts, *shape), mask)
            assert not outside


@pytest.mark.parametrize("counts", ["", "0", "000", "zzzz", "oooo", "PPP", "é", "h31", [5], [HEIGHT * WIDTH + 5, -5],
                                    [2400.0], None, 3])
def test_rles_that_do_not_fill_the_image_are_refused(counts):
    with pytest.raises(ValueError, match="counts"):
        segmentation_to_rle({"size": [HEIGHT, WIDTH], "counts": counts}, HEIGHT, WIDTH)


def test_polygons_outside_the_image_are_clipped(tiny, tmp_path):
    assert tiny.ref_outside.tolist() == [False] * 5 + [True]
    assert tiny.mask(5)[31:, 51:].all() and not tiny.mask(5)[:29].any()
    for polygon in (OUTSIDE, [-50, -50, -40, -50, -40, -40]):
        counts, _, outside, _ = segmentation_to_rle([polygon], HEIGHT, WIDTH)
        assert outside and not rle_to_mask(counts, HEIGHT, WIDTH).any()
    for x, y, reaches in ((-3, 0, True), (0, -3, True), (42, 0, True), (0, 22, True), (-0.9, -0.9, False),
                          (40.9, 20.9, False)):
        square = (np.array(SQUARE).reshape(4, 2) - [10, 5] + [x, y]).ravel().tolist()  # 20 × 20 pixels
        assert segmentation_to_rle([square], HEIGHT, WIDTH).outside == reaches
    thin = [5.4, 2.0, 5.45, 2.0, 5.45, 30.0, 5.4, 30.0]  # a ground truth that is empty for a reason
    assert not rle_to_mask(segmentation_to_rle([thin], HEIGHT, WIDTH).union, HEIGHT, WIDTH).any()
    around = [-1e4, -1e4, 1e4, -1e4, 1e4, 1e4, -1e4, 1e4]
    assert rle_to_mask(segmentation_to_rle([around], HEIGHT, WIDTH)[0], HEIGHT, WIDTH).all()


def test_a_polygon_that_encloses_nothing_is_left_out_beside_a_proper_one(tiny, tmp_path):
    for segmentation in ([SQUARE, [5, 5, 20, 20]], [[], SQUARE, [1, 2]]):
        region = segmentation_to_rle(segmentation, HEIGHT, WIDTH)
        assert region.left_out == len(segmentation) - 1 and not region.single
        np.testing.assert_array_equal(rle_to_mask(region.union, HEIGHT, WIDTH), tiny.mask(0))
    pairs = np.array(SQUARE).reshape(-1, 2).tolist()  # one meaning
    assert segmentation_to_rle([pairs], HEIGHT, WIDTH) == segmentation_to_rle([SQUARE], HEIGHT, WIDTH)


@pytest.mark.parametrize("bad, words", [
    ([[4, 4], [24, 4], [24, 24], [4, 24]], "holds no polygon of at least three points"),
    ([[4, 4, 24, 24]], "[[4, 4, 24, 24]] holds no polygon of at least"),
    ([[4, 4, 24, 24], [1, 1, 3, 3]], "holds no polygon"), ([], "[] holds no polygon"),
    ([[]], "holds no polygon of at least three points"), ([[4, 4]], "holds no polygon of at least three points"),
    ([SQUARE, [1, 2, 3, 4, 5]], "a polygon has 5 numbers"), (SQUARE, "a polygon must be a list of numbers"),
    ([[[10, 30, 30], [5, 5, 25]]], "a polygon must be a list of numbers"),
    ([[1, 2, 3, 4, 5, 6, 7]], "a polygon has 7 numbers"), ([["a", "b"]], "a polygon must be"),
    ([[None] * 6], "coordinate"),
    ([[0, 0, 1, 1, float("nan"), 2]], "coordinate"), ([[0, 0, 1, 1, 1e12, 2]], "coordinate"),
    ({"size": [3, 3], "counts": [9]}, "size [3, 3] is not the image's [40, 60]"), ([3, 4], "a polygon must be"),
    ([[10**400, 1, 2, 3, 4, 5]], "a polygon must be"),
    ({}, "size"), ("text", "field 'segmentation' must be"), (None, "field 'segmentation' must be"),
])
def test_bad_segmentations_name_ref_and_annotation(tmp_path, bad, words):
    def edit(instances):
        instances["annotations"][2]["segmentation"] = bad

    fails(tmp_path, "instances.json", "annotation 7002", words, instances=edit)


@pytest.mark.parametrize("kind, number", [("annotations", 3), ("images", 2)])
def test_missing_annotation_or_image_names_ref_and_annotation(tmp_path, kind, number):
    fails(tmp_path, "instances.json", f"has no {kind[:-1]}", "ref 503", "7003", instances=lambda i: i[kind].pop(number))


def test_annotation_on_another_image(tmp_path):
    fails(tmp_path, "annotation 7000 lies on image 100", "ref 500", "image 103",
          refs=lambda refs: refs[0].update(image_id=103))


@pytest.mark.parametrize("edits, words", [
    ({"refs": lambda refs: refs[2].pop("split")}, ("refs(unc).p", "ref number 2", "'split'", "missing")),
    ({"refs": lambda refs: refs[2].update(ann_id=[1, 2])}, ("ref 502", "has no annotation 1")),
    ({"refs": lambda refs: refs[2].update(ann_id=[7002, "x", {}])}, ("ref number 2", "'ann_id'", "found {}")),
    ({"refs": lambda refs: refs[2].update(ann_id=[7002, "7002"])}, ("ref 502", "names an annotation twice")),
    ({"refs": lambda refs: refs[2].update(ann_id=[7002], no_target=True)}, ("ref 502", "contradict each other")),
    ({"refs": lambda refs: refs[2].update(ann_id=[-1], no_target=False)}, ("ref 502", "contradict each other")),
    ({"refs": lambda refs: refs[2].update(ann_id=[7002, "-1"])}, ("ref 502", "-1, which stands for no object")),
    ({"refs": lambda refs: refs[2].update(no_target=1)}, ("ref 502", "'no_target'", "true or false")),
    ({"refs": lambda refs: refs[2].update(ann_id=[7002, 7000])}, ("annotation 7000 lies on image 100", "ref 502")),
    ({"refs": lambda refs: refs[0].update(ann_id=[7000, 7001]),
      "instances": lambda i: [a.update(iscrowd=1) for a in i["annotations"]]}, ("ref 500", "7000, 7001", "crowds")),
    ({"refs": lambda refs: [refs[1]["sentences"][1].pop(field) for field in ("sent", "raw")]},
     ("a sentence of ref 501", "'sent'", "missing")),
    ({"refs": lambda refs: refs[1]["sentences"][1].update(sent=5)}, ("a sentence of ref 501", "'sent'", "found 5")),
    ({"refs": lambda refs: refs[1]["sentences"][1].update(raw=[1])}, ("a sentence of ref 501", "'raw'", "found [1]")),
    ({"refs": lambda refs: refs.__setitem__(4, "x")}, ("ref number 4", "'ref_id'")),
    ({"refs": lambda refs: refs.clear()}, ("refs(unc).p", "expected a list of refs")),
    ({"instances": lambda i: i.pop("images")}, ("instances.json", "no list 'images'")),
    ({"instances": lambda i: i["annotations"].append(5)}, ("instances.json", "annotations number 6", "'id'")),
    ({"instances": lambda i: i["images"][1].update(height="40")}, ("image 101", "'height'", "whole number")),
    ({"instances": lambda i: i["images"][1].update(width=0)}, ("image 101", "between 1 and 65535")),
    ({"instances": lambda i: i["images"][1].update(width=10**6)}, ("image 101", "between 1 and 65535")),
])
def test_missing_and_mistyped_fields_are_named(tmp_path, edits, words):
    fails(tmp_path, *words, **edits)


@pytest.mark.parametrize("kind, of", [("annotations", "annotation"), ("images", "image")])
def test_an_id_that_two_records_have_is_named(tmp_path, kind, of):
    def twice(instances, **change):
        instances[kind].append(instances[kind][1] | change)

    write_refer(tmp_path / "same", *changed(instances=lambda i: twice(i)))  # the very same record: no harm
    read_refer(tmp_path / "same", "tiny", "unc")
    number = len(refs_and_instances()[1][kind])
    words = (f"instances.json: {kind} number 1 and number {number} have the same id", "which ref 50",
             f"give every {of} an id")
    on_one = {"annotations": {"segmentation": [TRIANGLE]}, "images": {"file_name": "im2.jpg"}}[kind]
    fails(tmp_path, *words, instances=lambda i: twice(i, **on_one))
    if kind == "annotations":
        fails(tmp_path, *words, "7001", instances=lambda i: twice(i, image_id=101))
    unused = {"id": 99999, "image_id": 1, "file_name": "a.jpg"}
    pair = [unused, unused | {"file_name": "b.jpg"}]
    write_refer(tmp_path / "unused", *changed(instances=lambda i: i[kind].extend(pair)))
    read_refer(tmp_path / "unused", "tiny", "unc")  # no ref asks for it


@pytest.mark.parametrize("write", [str, float])
def test_ids_as_digits_and_as_whole_floats_are_the_numbers(tmp_path, write):
    def edit(instances):
        for image in instances["images"][:2]:
            image["id"] = write(image["id"])
        for annotation in instances["annotations"][1:4]:
            annotation.update(id=write(annotation["id"]), image_id=write(annotation["image_id"]))

    def edit_refs(refs):
        for ref in refs[2:]:
            ref.update({key: write(ref[key]) for key in ("ref_id", "ann_id", "image_id")})

    data = read_refer(write_refer(tmp_path, *changed(refs=edit_refs, instances=edit)), "tiny", "unc")
    assert data.ref_ids.tolist() == list(range(500, 506)) and data.ann_ids.tolist() == list(range(7000, 7006))
    assert data.ref_image.tolist() == [0, 0, 1, 2, 2, 3]


def test_ids_that_are_text_stay_text(tmp_path):
    """RefCLEF has such annotations; "007" is not 7."""
    names = ["12_1", "007", "x", "1" * 30, "-3", "²"]

    def edit(records, key):
        for record, name in zip(records, names, strict=True):
            record[key] = name

    data = read_refer(write_refer(tmp_path, *changed(
        refs=lambda refs: edit(refs, "ann_id"), instances=lambda i: edit(i["annotations"], "id"))), "tiny", "unc")
    assert data.ann_ids.tolist() == names
    fails(tmp_path, "ref number 0", "'ann_id'", "whole number", "1.5", refs=lambda refs: refs[0].update(ann_id=1.5))


def test_refs_of_numpy_and_pandas(tmp_path):
    def edit(refs):
        for ref in refs:
            ref |= {key: np.int64(ref[key]) for key in ("ref_id", "ann_id", "image_id")}
            ref["split"] = np.str_(ref["split"])
            ref["sentences"] = np.array([sentence | {"sent_id": np.int32(sentence["sent_id"]),
                                                     "tokens": np.array(sentence["tokens"])}
                                         for sentence in ref["sentences"]])

    write_refer(tmp_path / "plain")
    data = read_refer(write_refer(tmp_path, *changed(refs=edit)), "tiny", "unc")
    plain = read_refer(tmp_path / "plain", "tiny", "unc")
    for name, column in vars(plain).items():
        assert np.array_equal(getattr(data, name), column) or name in ("source", "image_dir"), name


@pytest.mark.parametrize("content, words", [
    (b"<!DOCTYPE html><html>", "not complete JSON but a web page"),
    (gzip.compress(b"{}", mtime=0), "not complete JSON but gzip-compressed: unpack it"),
    (b"PK\x03\x04rest", "not complete JSON but a zip archive: unpack it"),
    (b"version https://git-lfs.github.com/spec/v1", "not complete JSON but a Git LFS"),
    (b"", "not complete JSON but an empty file"),
    (b'{"images": [', "not complete JSON"), (b"[]", "expected a dict"),
    (b"\xff\xfe\xff", "not complete JSON"), (b"[" * 100_000, "not complete JSON"),
])
def test_malformed_json(tmp_path, content, words):
    write_refer(tmp_path)
    (tmp_path / "tiny" / "instances.json").write_bytes(content)
    with pytest.raises(UserError, match=f"instances.json: {words}"):
        read_refer(tmp_path, "tiny", "unc")


def test_wrong_names_get_advice(tmp_path):
    write_refer(tmp_path)
    for root, dataset, split_by, words in (
            (tmp_path, "refcok", "unc", "no such data set; .* holds tiny; known are refcoco"),
            (tmp_path, "unc", "tiny", "swapped"),
            (tmp_path / "tiny", "tiny", "unc", "give its parent as data.root"),
            (tmp_path / "no", "tiny", "unc", "no such folder; data.root must hold"),
            (tmp_path, "tiny", "umd", r"found beside it: refs\(unc\).p")):
        with pytest.raises(UserError, match=words):
            read_refer(root, dataset, split_by)


def test_image_folders(tmp_path, monkeypatch):
    usual = {"refcoco+": "images/mscoco/images/train2014", "refclef": "saiapr_tc-12", "x": "images"}
    for dataset, folder in usual.items():
        root = write_refer(tmp_path / dataset, dataset=dataset)
        (root / "images" / dataset).rename(root / "moved")
        (root / "images").rmdir()
        with pytest.raises(UserError, match=f"tried .*{folder}.*data.images"):
            read_refer(root, dataset, "unc")
        (root / folder).mkdir(parents=True)
        assert read_refer(root, dataset, "unc").image_dir == root / folder
        assert read_refer(root, dataset, "unc", "moved").read_image(0).shape == (HEIGHT, WIDTH, 3)
        assert read_refer(root, dataset, "unc", str(root / "moved")).image_dir == root / "moved"
        monkeypatch.chdir(root)
        assert read_refer(root, dataset, "unc", "moved").image_dir.is_dir()
        with pytest.raises(UserError, match="tried nowhere"):
            read_refer(root, dataset, "unc", "nowhere")


def test_kinds_of_sentences(tmp_path):
    def add(refs):
        for ref in refs[:2]:
            for sentence in ref["sentences"]:
                sentence["kind"] = "side" if ref["ref_id"] == 500 else "size"

    data = read_refer(write_refer(tmp_path, *changed(refs=add)), "tiny", "unc")
    assert data.kind_names == ("side", "size") and data.sentence_kind.tolist() == [0] * 3 + [1] * 2 + [-1] * 6


@pytest.mark.skipif(refcoco_mini() is None, reason="no sample of the real RefCOCO (COUPALIGN_REFCOCO_MINI)")
def test_real_refcoco_sample():
    data = read_refer(refcoco_mini(), "refcoco", "unc")
    assert {name: len(data.split(name)) for name in data.split_names} == {"val": 45, "testA": 18, "testB": 30}
    raw = json.loads((refcoco_mini() / "refcoco" / "instances.json").read_text())
    boxes = {a["id"]: a["bbox"] for a in raw["annotations"]}
    for r, ann_id in enumerate(data.ann_ids.tolist()):
        mask = data.mask(r)
        assert data.read_image(r).shape[:2] == mask.shape
        x, y, w, h = np.round(boxes[ann_id]).astype(int)
        assert mask[y : y + h, x : x + w].sum() > 0.98 * mask.sum()
        x, y, tight_w, tight_h = cv2.boundingRect(mask)
        assert tight_w * tight_h > 0.9 * w * h  # less than the box: outlines may end in a spike
