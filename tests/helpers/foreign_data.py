"""A data set in REFER's layout, written again in every form that ``import-data`` reads: that form's own field names and
types, as the loaders and converters of the projects have them.

``WRITERS[form](refer, images, folder) -> Written`` writes the form below ``folder``. ``Written.arguments`` are the
command's further arguments, ``Written.exact`` is False where the form itself cannot hold a mask of several parts.
"""

import base64
import io
import json
import pickle
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from refer_files import HEIGHT, SQUARE, TRIANGLE, WIDTH, plain_rle

from mindspore_coupalign.__main__ import main
from mindspore_coupalign.data.masks import rle_to_mask, segmentation_to_rle


@dataclass
class Refer:
    """The contents of refs(*).p and instances.json, and the folder of the images."""

    refs: list
    instances: dict
    images: Path
    image: dict = field(init=False)
    annotation: dict = field(init=False)

    def __post_init__(self):
        self.image = {record["id"]: record for record in self.instances["images"]}
        self.annotation = {record["id"]: record for record in self.instances["annotations"]}

    def mask(self, ref, segmentation=None) -> np.ndarray:
        """The ref's mask, or that of another segmentation of its image."""
        image = self.image[ref["image_id"]]
        size = image["height"], image["width"]
        segmentation = segmentation or self.annotation[ref["ann_id"]]["segmentation"]
        return rle_to_mask(segmentation_to_rle(segmentation, *size).union, *size)

    def box(self, ref) -> list:
        """x, y, width, height as floats."""
        ys, xs = np.nonzero(self.mask(ref))
        return [float(v) for v in (xs.min(), ys.min(), xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min())]

    def splits(self) -> dict:
        return {split: [ref for ref in self.refs if ref["split"] == split]
                for split in dict.fromkeys(ref["split"] for ref in self.refs)}

    def bytes(self, ref) -> bytes:
        return (self.images / self.image[ref["image_id"]]["file_name"]).read_bytes()


@dataclass
class Written:
    source: Path
    arguments: tuple = ()
    exact: bool = True  # whether the form can hold every mask
    raw: bool = False  # whether it keeps the sentences as typed


def read_source(folder: Path, split_by: str, images: Path) -> Refer:
    refs = pickle.loads((folder / f"refs({split_by}).p").read_bytes())
    return Refer(refs, json.loads((folder / "instances.json").read_text()), images)


def made_up(folder) -> Refer:
    """Five images, seven objects in four splits: polygons of one and two parts, RLE; raw differs from sent."""
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


def hf_refer(refer: Refer, folder: Path) -> Written:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sentence = pa.struct([("raw", pa.string()), ("sent", pa.string()), ("sent_id", pa.int64()),
                          ("tokens", pa.list_(pa.string()))])
    schema = pa.schema([
        ("sent_ids", pa.list_(pa.int64())), ("file_name", pa.string()), ("ann_id", pa.int64()), ("ref_id", pa.int64()),
        ("image_id", pa.int64()), ("split", pa.string()), ("sentences", pa.list_(sentence)),
        ("category_id", pa.int64()), ("raw_anns", pa.string()), ("raw_image_info", pa.string()),
        ("raw_sentences", pa.string()), ("image_path", pa.string()), ("bbox", pa.list_(pa.float64())),
        ("captions", pa.list_(pa.string())), ("global_image_id", pa.string()), ("anns_id", pa.string())])
    (folder / "data").mkdir(parents=True)
    for split, refs in refer.splits().items():
        rows = []
        for ref in refs:
            image, (x, y, w, h) = refer.image[ref["image_id"]], refer.box(ref)
            rows.append({
                **{key: ref[key] for key in ("sent_ids", "file_name", "ann_id", "ref_id", "image_id", "sentences",
                                             "category_id")},
                "split": {"testA": "test", "val": "validation"}.get(split, split),
                "raw_anns": json.dumps(refer.annotation[ref["ann_id"]]), "raw_image_info": json.dumps(image),
                "raw_sentences": json.dumps(ref["sentences"]), "image_path": f"coco/train2014/{image['file_name']}",
                "bbox": [x, y, x + w, y + h], "captions": [s["raw"] for s in ref["sentences"]],
                "global_image_id": f"coco.{image['id']}", "anns_id": str(ref["ann_id"])})
        name = {"testA": "test", "val": "validation"}.get(split, split)
        pq.write_table(pa.Table.from_pylist(rows, schema), folder / f"data/{name}-00000-of-00001-abc.parquet")
    return Written(folder, ("--dataset", "refcoco", "--split-by", "unc"), raw=True)


def hf_eval(refer: Refer, folder: Path) -> Written:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([
        ("question_id", pa.string()), ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("question", pa.string()), ("answer", pa.list_(pa.string())), ("segmentation", pa.list_(pa.float32())),
        ("bbox", pa.list_(pa.float32())), ("iscrowd", pa.int8()), ("file_name", pa.string())])
    (folder / "data").mkdir(parents=True)
    for split, refs in refer.splits().items():
        rows = []
        for i, ref in enumerate(refs):
            segmentation = refer.annotation[ref["ann_id"]]["segmentation"]
            if not isinstance(segmentation, list) or not isinstance(segmentation[0], list):
                continue  # RLE has no place in this form
            rows.append({
                "question_id": str(i), "image": {"bytes": refer.bytes(ref), "path": None},
                "question": "Please describe the region.", "answer": [s["sent"] for s in ref["sentences"]],
                "segmentation": segmentation[0], "bbox": refer.box(ref), "iscrowd": 0, "file_name": ref["file_name"]})
        pq.write_table(pa.Table.from_pylist(rows, schema), folder / f"data/{split}-00000-of-00001.parquet")
    return Written(folder, ("--dataset", "refcoco", "--split-by", "unc"), exact=False)


def seqtr(refer: Refer, folder: Path) -> Written:
    content = {}
    for split, refs in refer.splits().items():
        content[split] = []
        for ref in refs:
            image = refer.image[ref["image_id"]]
            record = {"bbox": refer.box(ref), "cat_id": ref["category_id"], "image_id": image["id"],
                      "mask": refer.annotation[ref["ann_id"]]["segmentation"], "width": image["width"],
                      "height": image["height"]}
            spoken = [s["sent"] for s in ref["sentences"]]
            # as in SeqTR's files: train has all sentences in one record, the others a record per sentence
            groups = [spoken] if split == "train" else [[text] for text in spoken]
            content[split] += [{**record, "expressions": group} for group in groups]
    (folder / "refcoco-unc").mkdir(parents=True)
    (folder / "refcoco-unc/instances.json").write_text(json.dumps(content))
    return Written(folder / "refcoco-unc")


def uninext(refer: Refer, folder: Path) -> Written:
    content = json.loads((seqtr(refer, folder).source / "instances.json").read_text())
    running = 0
    for split, records in content.items():
        images, annotations = [], []
        for record in records:
            running += 1
            images.append({"file_name": f"COCO_train2014_{record['image_id']:012d}.jpg", "height": record["height"],
                           "width": record["width"], "id": running, "expressions": record["expressions"]})
            annotations.append({"bbox": record["bbox"], "segmentation": record["mask"], "image_id": running,
                                "iscrowd": 0, "category_id": 1, "id": running, "area": 1.0})
        (folder / f"refcoco-unc/instances_{split}.json").write_text(json.dumps({
            "images": images, "annotations": annotations,
            "categories": [{"supercategory": "object", "id": 1, "name": "object"}]}))
    return Written(folder / "refcoco-unc")


def mdetr(refer: Refer, folder: Path) -> Written:
    folder.mkdir(parents=True)
    running = 0
    for split, refs in refer.splits().items():
        images, annotations = [], []
        for ref in refs:
            image, annotation = refer.image[ref["image_id"]], refer.annotation[ref["ann_id"]]
            for sentence in ref["sentences"]:
                images.append({
                    "file_name": "_".join(ref["file_name"].split("_")[:-1]) + ".jpg", "height": image["height"],
                    "width": image["width"], "id": running, "original_id": image["id"], "caption": sentence["sent"],
                    "dataset_name": "refcoco", "tokens_negative": [[0, 1]]})
                annotations.append({
                    "area": annotation.get("area", 1.0), "iscrowd": annotation.get("iscrowd", 0), "image_id": running,
                    "category_id": ref["category_id"], "id": running, "bbox": refer.box(ref),
                    "original_id": ref["ann_id"], "tokens_positive": [[0, 1]]})
                running += 1
        (folder / f"finetune_refcoco_{split}.json").write_text(json.dumps(
            {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": []}))
    coco = folder / "coco/annotations/instances_train2014.json"
    coco.parent.mkdir(parents=True)
    coco.write_text(json.dumps(refer.instances))
    return Written(folder, ("--instances", coco, "--dataset", "refcoco", "--split-by", "unc"))


def cris(refer: Refer, folder: Path) -> Written:
    (folder / "anns/refcoco").mkdir(parents=True)
    (folder / "masks/refcoco").mkdir(parents=True)
    for split, refs in refer.splits().items():
        records = []
        for ref in refs:
            x, y, w, h = map(int, refer.box(ref))
            cv2.imwrite(str(folder / f"masks/refcoco/{ref['ref_id']}.png"), refer.mask(ref) * 255)
            records.append({
                "bbox": [x, y, x + w, y + h], "cat": ref["category_id"] - 1, "segment_id": ref["ref_id"],
                "img_name": refer.image[ref["image_id"]]["file_name"],
                "sentences": [{"idx": i, "sent_id": s["sent_id"], "sent": s["sent"].strip()}
                              for i, s in enumerate(ref["sentences"])], "sentences_num": len(ref["sentences"])})
        (folder / f"anns/refcoco/{split}.json").write_text(json.dumps(records))
    return Written(folder, ("--dataset", "refcoco", "--split-by", "unc"))


def grefcoco(refer: Refer, folder: Path) -> Written:
    folder.mkdir(parents=True)
    refs = [{**ref, "ann_id": [ref["ann_id"]], "category_id": [ref["category_id"]], "no_target": False}
            for ref in refer.refs]
    refs[0].update(ann_id=refs[0]["ann_id"][0], category_id=refs[0]["category_id"][0])  # as older records are
    (folder / "grefs(unc).json").write_text(json.dumps(refs))
    (folder / "instances.json").write_text(json.dumps(refer.instances))
    return Written(folder, raw=True)


def phrasecut(refer: Refer, folder: Path) -> Written:
    """Polygons alone: objects with an RLE get an outline of theirs, which is why the form is not exact."""
    folder.mkdir(parents=True)
    sizes = [{"image_id": image["id"], "width": image["width"], "height": image["height"], "coco_id": None,
              "split": "train", "url": ""} for image in refer.instances["images"]]
    (folder / "image_data_split3000.json").write_text(json.dumps(sizes))
    for split, refs in refer.splits().items():
        tasks = []
        for ref in refs:
            segmentation = refer.annotation[ref["ann_id"]]["segmentation"]
            if not isinstance(segmentation, list) or not isinstance(segmentation[0], list):
                outlines, _ = cv2.findContours(refer.mask(ref), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
                segmentation = [outline.ravel().tolist() for outline in outlines]
            points = [np.reshape(polygon, (-1, 2)).tolist() for polygon in segmentation]
            tasks += [{"task_id": f"{ref['image_id']}__{ref['ann_id']}", "image_id": ref["image_id"],
                       "ann_ids": [ref["ann_id"]], "instance_boxes": [refer.box(ref)], "Polygons": [points],
                       "phrase": s["sent"], "phrase_structure": {"name": "thing", "attributes": [], "type": "name"}}
                      for s in ref["sentences"]]
        (folder / f"refer_{split}.json").write_text(json.dumps(tasks))
    return Written(folder, exact=False)


def rrsisd(refer: Refer, folder: Path) -> Written:
    (folder / "rrsisd").mkdir(parents=True)
    (folder / "rrsisd/refs(unc).p").write_bytes(pickle.dumps(refer.refs, protocol=2))
    (folder / "rrsisd/instances.json").write_text(json.dumps(refer.instances))
    return Written(folder / "rrsisd", raw=True)


def polyformer(refer: Refer, folder: Path) -> Written:
    folder.mkdir(parents=True)
    for split, refs in refer.splits().items():
        lines = []
        for ref in refs:
            x, y, w, h = refer.box(ref)
            packed = io.BytesIO()
            Image.fromarray(refer.mask(ref), mode="P").save(packed, format="png")
            columns = [f"{x},{y},{x + w},{y + h}", "0,0,1,0,1,1", base64.b64encode(refer.bytes(ref)).decode(),
                       base64.b64encode(packed.getvalue()).decode(), "0,0,1,0,1,1"]
            lines += ["\t".join([f"{ref['ref_id']}_{i}", str(ref["image_id"]), s["sent"], *columns]) + "\n"
                      for i, s in enumerate(ref["sentences"])]
        (folder / f"refcoco_{split}.tsv").write_text("".join(lines))
    return Written(folder, ("--dataset", "refcoco", "--split-by", "unc"))


def labelme(refer: Refer, folder: Path) -> Written:
    """labelme's ``mask`` shapes: the box's two corners and the mask inside it as PNG; a file per image and split."""
    for split, refs in refer.splits().items():
        (folder / split).mkdir(parents=True)
        shapes = {}
        for ref in refs:
            x, y, w, h = map(int, refer.box(ref))
            inside = cv2.imencode(".png", refer.mask(ref)[y : y + h, x : x + w])[1].tobytes()
            shapes.setdefault(ref["image_id"], []).extend(
                {"label": "thing", "points": [[x, y], [x + w - 1, y + h - 1]], "group_id": None,
                 "description": s["sent"], "shape_type": "mask", "flags": {},
                 "mask": base64.b64encode(inside).decode()} for s in ref["sentences"])
        for image_id, drawn in shapes.items():
            image = refer.image[image_id]
            (folder / split / f"{image_id}.json").write_text(json.dumps({
                "version": "5.5.0", "flags": {}, "shapes": drawn, "imagePath": image["file_name"], "imageData": None,
                "imageHeight": image["height"], "imageWidth": image["width"]}))
    return Written(folder)


def coco(refer: Refer, folder: Path) -> Written:
    folder.mkdir(parents=True)
    for split, refs in refer.splits().items():
        annotations = []
        for ref in refs:
            annotations += [{**refer.annotation[ref["ann_id"]], "id": s["sent_id"], "caption": s["sent"]}
                            for s in ref["sentences"]]
        (folder / f"captions_{split}.json").write_text(json.dumps({
            "images": refer.instances["images"], "annotations": annotations, "categories": [{"id": 1, "name": "o"}]}))
    return Written(folder)


def jsonl(refer: Refer, folder: Path) -> Written:
    """Masks in all the ways that a line can have them, one after the other."""
    (folder / "masks").mkdir(parents=True)
    lines = []
    for i, ref in enumerate(refer.refs):
        segmentation = refer.annotation[ref["ann_id"]]["segmentation"]
        mask, painted = refer.mask(ref), f"masks/{ref['ref_id']}.png"
        if i % 3 == 0:  # white on black
            cv2.imwrite(str(folder / painted), mask * 255)
        elif i % 3 == 1:  # red on a transparent layer
            cv2.imwrite(str(folder / painted), np.dstack([mask * 0, mask * 0, mask * 255, mask * 255]))
        value = {"mask": segmentation if i % 3 == 2 else painted}
        lines += [{"image": refer.image[ref["image_id"]]["file_name"], "sentence": s["sent"], "split": ref["split"],
                   **value} for s in ref["sentences"]]
    (folder / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Written(folder / "own.jsonl")


WRITERS = {"hf-refer": hf_refer, "hf-eval": hf_eval, "seqtr": seqtr, "uninext": uninext, "mdetr": mdetr, "cris": cris,
           "grefcoco": grefcoco, "phrasecut": phrasecut, "rrsis-d": rrsisd, "polyformer": polyformer,
           "labelme": labelme, "coco": coco, "jsonl": jsonl}
