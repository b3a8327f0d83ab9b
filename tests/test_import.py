"""import-data: data written in each form by foreign_data comes back with equal masks and sentences per split; typical
damages get one line; nothing half written is left."""

import json
import pickle
from collections import Counter

import cv2
import numpy as np
import pytest
from foreign_data import WRITERS, Refer, read_source
from refer_files import SQUARE, TRIANGLE, plain_rle, refcoco_mini

from mindspore_coupalign.__main__ import main
from mindspore_coupalign.data.importers import FORMATS
from mindspore_coupalign.data.refer import read_refer

HEIGHT, WIDTH = 40, 60
PARQUET = ("hf-refer", "hf-eval")


def made_up(folder) -> Refer:
    """Five pictures, seven objects in four splits: polygons of one and two parts, RLE; raw differs from sent."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    box = np.zeros((HEIGHT, WIDTH), np.uint8)
    box[20:30, 3:9] = 1
    images = [{"id": 100 + i, "file_name": f"COCO_train2014_{100 + i:012d}.jpg", "height": HEIGHT, "width": WIDTH}
              for i in range(5)]
    for image in images:
        cv2.imwrite(str(folder / image["file_name"]), random.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8))
    shift = [v + 2 for v in SQUARE]
    segmentations = [[SQUARE], [SQUARE, TRIANGLE], plain_rle(box), [TRIANGLE], [shift], [SQUARE], [TRIANGLE, shift]]
    of_image, splits = [0, 0, 1, 2, 3, 4, 4], ["train", "train", "train", "val", "testA", "testB", "testB"]
    refs, annotations, sent_id = [], [], 7
    for r, segmentation in enumerate(segmentations):
        image = images[of_image[r]]
        annotations.append({"id": 900 + r, "image_id": image["id"], "category_id": 1 + r % 2, "iscrowd": 0,
                            "segmentation": segmentation, "bbox": [0, 0, 1, 1], "area": 1.0})
        spoken = [f"the thing number {r} {k}" for k in range(1 + r % 3)]
        refs.append({
            "ref_id": 50 + r, "ann_id": 900 + r, "image_id": image["id"], "category_id": 1 + r % 2, "split": splits[r],
            "file_name": image["file_name"].replace(".jpg", f"_{r}.jpg"),
            "sent_ids": list(range(sent_id, sent_id + len(spoken))),
            "sentences": [{"sent_id": sent_id + k, "sent": text, "raw": f"The thing, number {r} {k}!",
                           "tokens": text.split()} for k, text in enumerate(spoken)]})
        sent_id += len(spoken)
    return Refer(refs, {"images": images, "annotations": annotations, "categories": [
        {"id": 1, "name": "thing"}, {"id": 2, "name": "stuff"}]}, folder)


def import_data(capsys, form, source, output, *more, images=None):
    """code, what was printed, what went to stderr."""
    arguments = ["import-data", "--format", form, source, "--output", output, *more]
    capsys.readouterr()
    code = main([str(a) for a in arguments + (["--images", images] if images else [])])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def content(data, field="sent") -> Counter:
    """How often each (split, picture, sentence, mask) is there."""
    return Counter((data.split_names[data.ref_split[r]], str(data.image_files[data.ref_image[r]]),
                    data.sentence(s, field), data.mask(r).tobytes())
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
        for sentence in ref["sentences"]:
            found[ref["split"], name, sentence[field], mask.tobytes()] += 1
    return found


def written_names(form, output):
    (folder,) = [path for path in output.iterdir() if path.name != "images" and path.is_dir()]
    (refs,) = folder.glob("refs(*).json")
    return folder.name, refs.name[5:-6]


def round_trip(capsys, tmp_path, refer, form):
    if form in PARQUET:
        pytest.importorskip("pyarrow")
    if form == "phrasecut":  # its pictures have Visual Genome's names
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
    refer = made_up(tmp_path / "pictures")
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
    assert list(WRITERS) == list(FORMATS) and pickle and json
