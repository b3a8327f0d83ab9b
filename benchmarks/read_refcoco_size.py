"""How long and how much memory reading a data set of RefCOCO's full size takes, on one core.

The set is made by repetition: the refs of a source in REFER's layout (real ones: refcoco_mini; else drawn) are copied
under new ids until there are 50,000 with 142,000 sentences on 20,000 pictures, which are only named, not there; as in
RefCOCO, instances.json has 197,000 annotations, three of four for no ref. Both forms of refs, pickle and JSON, are read
in a process of their own.

Usage: python benchmarks/read_refcoco_size.py [--source ROOT DATASET SPLIT_BY]
"""

import argparse
import json
import math
import os
import pickle
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # a clone that is not installed

from mindspore_coupalign.data.annotations import load_refs, read_json
from mindspore_coupalign.data.datasets import find_dataset

REFS, SENTENCES, IMAGES, ANNOTATIONS = 50_000, 142_000, 20_000, 197_000


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", nargs=3, metavar=("ROOT", "DATASET", "SPLIT_BY"))
    parser.add_argument("--read", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read:
        read(args.read)
        return
    with tempfile.TemporaryDirectory() as folder:
        refs, instances = repeated(*(sourced(*args.source) if args.source else drawn()))
        for dataset, content in (("pickled", pickle.dumps(refs, protocol=2)), ("json", json.dumps(refs).encode())):
            place = Path(folder) / dataset
            place.mkdir()
            (Path(folder) / "images" / dataset).mkdir(parents=True)
            (place / f"refs(unc).{'p' if dataset == 'pickled' else 'json'}").write_bytes(content)
            (place / "instances.json").write_text(json.dumps(instances))
        size = (place / "instances.json").stat().st_size / 2**20
        print(f"{len(refs):,} refs, {sum(len(ref['sentences']) for ref in refs):,} sentences, "
              f"{len(instances['images']):,} pictures, {len(instances['annotations']):,} annotations; "
              f"instances.json has {size:,.0f} MiB")
        for dataset in ("pickled", "json"):
            command = [sys.executable, __file__, "--read", f"{folder}:{dataset}"]
            subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def read(place: str):
    """Read and print seconds and peak memory of this process, imports included."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    from mindspore_coupalign.data.refer import read_refer

    folder, dataset = place.rsplit(":", 1)
    before = peak_gib()
    started, worked = time.perf_counter(), time.process_time()
    data = read_refer(folder, dataset, "unc")
    seconds, worked = time.perf_counter() - started, time.process_time() - worked
    kept = sum(value.nbytes if hasattr(value, "nbytes") else len(value) for value in vars(data).values()
               if hasattr(value, "nbytes") or isinstance(value, bytes)) / 2**20
    print(f"{dataset:<8} {seconds:5.1f} s ({worked:.1f} s of one core), peak {peak_gib():.2f} GiB ({before:.2f} GiB "
          f"before), {kept:,.0f} MiB kept for {len(data.sentence_ref):,} sentences")


def peak_gib() -> float:
    """Of this process alone: getrusage's figure begins with that of the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


def sourced(root: str, dataset: str, split_by: str) -> tuple[list, dict]:
    file = find_dataset(Path(root), dataset, split_by)
    return load_refs(file), read_json(file.parent / "instances.json")


def drawn() -> tuple[list, dict]:
    """A ref with a polygon of 40 points (COCO's have about as many) on a picture of 480 x 640."""
    outline = [round(v, 2) for k in range(40) for v in (320 + 90 * math.cos(k * math.pi / 20) + k % 5,
                                                        240 + 110 * math.sin(k * math.pi / 20) + k % 3)]
    sentences = [{"sent_id": k, "sent": text, "raw": text.title(), "tokens": text.split()}
                 for k, text in enumerate(("man in the blue shirt", "left guy", "the one who holds a racket"))]
    ref = {"ref_id": 0, "ann_id": 1, "image_id": 1, "split": "train", "category_id": 1, "sent_ids": [0, 1, 2],
           "file_name": "COCO_train2014_000000000001_1.jpg", "sentences": sentences}
    return [ref], {"images": [{"id": 1, "file_name": "COCO_train2014_000000000001.jpg", "height": 480, "width": 640}],
                   "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": 1.0,
                                    "bbox": [1, 2, 3, 4], "segmentation": [outline]}],
                   "categories": [{"id": 1, "name": "person"}]}


def repeated(refs: list, instances: dict) -> tuple[list, dict]:
    """REFS refs with SENTENCES sentences on IMAGES pictures under new ids; RLEs keep their picture's size."""
    sizes = {image["id"]: image for image in instances["images"]}
    masks = {annotation["id"]: annotation for annotation in instances["annotations"]}
    pictures, annotations, found, sentence = {}, [], [], 0
    for i in range(REFS):
        ref = refs[i % len(refs)]
        count = SENTENCES * (i + 1) // REFS - SENTENCES * i // REFS
        image = i % IMAGES if len(sizes) == 1 else i % len(refs) + len(refs) * (i // len(refs) % (IMAGES // len(refs)))
        pictures.setdefault(image, {**sizes[ref["image_id"]], "id": image,
                                    "file_name": f"COCO_train2014_{image:012d}.jpg"})
        annotations.append({**masks[ref["ann_id"]], "id": i, "image_id": image})
        spoken = [{**ref["sentences"][k % len(ref["sentences"])], "sent_id": sentence + k} for k in range(count)]
        found.append({**ref, "ref_id": i, "ann_id": i, "image_id": image, "sentences": spoken,
                      "sent_ids": [s["sent_id"] for s in spoken]})
        sentence += count
    annotations += [{**annotations[i % REFS], "id": i} for i in range(REFS, ANNOTATIONS)]
    return found, {**instances, "images": list(pictures.values()), "annotations": annotations}


if __name__ == "__main__":
    main()
