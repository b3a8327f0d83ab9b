"""``export-data``: a data set in REFER's layout -> JSON lines or COCO, for people who label or read it elsewhere.

``jsonl``: a line per sentence, ``{"image", "sentence", "raw", "mask", "split", "ref_id", "sent_id"}``; masks as COCO
has them (polygons or RLE), or painted as PNG beside the file (``--masks png``); several objects as one mask of all of
them, none as ``"no_target": true``. ``coco``: one COCO file whose annotations carry ``sentences``, ``split`` and
``ref_id``. ``import-data`` reads both back.
"""

import argparse
import json
import shlex
from pathlib import Path

import cv2
import numpy as np

from mindspore_coupalign.data.annotations import as_key, read_json
from mindspore_coupalign.data.importers.import_job import bounds, encode
from mindspore_coupalign.data.refer import ReferData, read_refer
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.outputs import check_writable, make_folder, write_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", required=True, help="folder that holds DATASET/refs(SPLIT_BY).p and the images")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--split-by", required=True, help="the X of refs(X).p")
    parser.add_argument("--images", default="", help="image folder, if not in the usual place below root")
    parser.add_argument("--format", required=True, choices=("jsonl", "coco"))
    parser.add_argument("--split", nargs="+", default=[], help="splits to export (default: all)")
    parser.add_argument("--masks", choices=("coco", "png"), default="coco", help="jsonl: masks inside the lines as "
                        "polygons or RLE (default), or as PNG files in a folder beside the file")
    parser.add_argument("--output", type=Path, required=True, help="the file to write")


def run(args: argparse.Namespace) -> int:
    """Export and say what was written."""
    if args.masks == "png" and args.format != "jsonl":
        raise UserError("--masks png goes with --format jsonl; COCO files have their masks inside")
    check_writable(args.output)
    data = read_refer(args.root, args.dataset, args.split_by, args.images)
    refs = np.arange(len(data.ref_ids))
    if args.split:
        refs = np.unique(np.concatenate([data.refs_of(split) for split in args.split]))
    instances = read_json(data.source.parent / "instances.json")
    drawn = {as_key(annotation["id"]): annotation for annotation in instances["annotations"]}
    if args.format == "coco":
        text = json.dumps(_coco(data, refs, drawn, instances))
    else:
        masks = make_folder(args.output.with_name(f"{args.output.stem}_masks")) if args.masks == "png" else None
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in _lines(data, refs, drawn, masks))
    write_file(args.output, text.encode("utf-8"))
    count = int(np.isin(data.sentence_ref, refs).sum())
    print(f"written      {args.output}: {count:,} sentences of {len(refs):,} refs in "
          f"{len(np.unique(data.ref_image[refs])):,} images")
    print(f"images       {data.image_dir}")
    keep = [] if data.has_target[refs].all() else ["--objects", "keep"]
    back = shlex.join(["--format", args.format, str(args.output), "--images", str(data.image_dir), *keep])
    print(f"Back again: python -m mindspore_coupalign import-data {back} --output ROOT")
    return 0


def _sentences(data: ReferData, r: int) -> list[dict]:
    found = []
    for s in range(data.ref_sentences[r], data.ref_sentences[r + 1]):
        sentence = {"sent_id": data.sentence_ids[s].item(), "sent": data.sentence(s)}
        raw = data.sentence(s, "raw")
        found.append(sentence if raw == sentence["sent"] else {**sentence, "raw": raw})
    return found


def _lines(data: ReferData, refs: np.ndarray, drawn: dict, masks: Path | None):
    """A dict per sentence; with ``masks`` it writes each ref's mask there, white on black."""
    for r in refs.tolist():
        ref_id, objects = data.ref_ids[r].item(), data.objects_of(r)
        if not objects:
            meant: dict = {"no_target": True}
        elif masks is not None:
            meant = {"mask": f"{masks.name}/{ref_id}.png"}
            write_file(masks / f"{ref_id}.png", cv2.imencode(".png", data.mask(r) * 255)[1].tobytes())
        elif len(objects) > 1:
            meant = {"mask": encode(data.mask(r))}
        else:
            meant = {"mask": drawn[as_key(objects[0])]["segmentation"]}
        for sentence in _sentences(data, r):
            yield {"image": str(data.image_files[data.ref_image[r]]), "sentence": sentence.pop("sent"), **sentence,
                   **meant, "split": data.split_names[data.ref_split[r]], "ref_id": ref_id}


def _coco(data: ReferData, refs: np.ndarray, drawn: dict, instances: dict) -> dict:
    for r in refs.tolist():
        if len(objects := data.objects_of(r)) != 1:
            what = f"{len(objects)} objects" if objects else "no object"
            raise UserError(f"{data.source}: ref {data.ref_ids[r]} means {what}, and a COCO file has sentences of one "
                            "object each; take --format jsonl")
    annotations, used = [], set()
    for r in refs.tolist():
        original = drawn[as_key(data.objects_of(r)[0])]
        used.add(as_key(original["image_id"]))
        box, area = bounds(data.rle[data.rle_at[r] : data.rle_at[r + 1]], data.image_sizes[data.ref_image[r]].tolist())
        annotations.append({
            "id": as_key(original["id"]), "image_id": as_key(original["image_id"]),
            "category_id": original.get("category_id", 1), "iscrowd": original.get("iscrowd", 0),
            "segmentation": original["segmentation"], "bbox": box, "area": area,
            "split": data.split_names[data.ref_split[r]], "ref_id": data.ref_ids[r].item(),
            "sentences": _sentences(data, r)})
    images = [{**image, "id": as_key(image["id"])} for image in instances["images"] if as_key(image["id"]) in used]
    return {"images": images, "annotations": annotations,
            "categories": instances.get("categories") or [{"id": 1, "name": "object"}]}
