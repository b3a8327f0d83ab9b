"""How fast the data pipeline makes training samples, beside LAVT's own dataset class, and what memory its index takes.

The set has RefCOCO's size (42,404 refs, 120,624 sentences, 16,994 pictures; 197,000 annotations), made by repetition
from a source in REFER's layout with photographs (refcoco_mini): every picture is a link to one of the source's, so that
reading them from the disk costs nobody anything. Both sides make the same samples: 480 x 480, normalised, with a mask
and a sentence's word pieces, in the order of a shuffled epoch. Each runs in a process of its own, on as many cores as
--workers says (threads here, processes in PyTorch's DataLoader there). Samples per second and core are samples per
second of processor time, of the process and its children, so that other work on the machine changes little. Memory is
what they hold at the end, pages that they share counted once (Pss).

LAVT's code is not part of this project: --lavt names a clone of github.com/yz93/LAVT-RIS, --python a Python that has
torch and torchvision. Modules that its data set imports without using (h5py, skimage, matplotlib) may be missing.

Usage: python benchmarks/pipeline.py --source ROOT DATASET SPLIT_BY [--lavt PATH --python PYTHON] [--workers 1]
"""

import argparse
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # a clone that is not installed

REFS, SENTENCES, IMAGES, ANNOTATIONS, SIZE, BATCH = 42_404, 120_624, 16_994, 197_000, 480, 8
WHERE = "images/mscoco/images/train2014"  # LAVT's place, which the project's reader knows too
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", nargs=3, metavar=("ROOT", "DATASET", "SPLIT_BY"), required=True)
    parser.add_argument("--lavt", metavar="PATH", help="a clone of LAVT-RIS")
    parser.add_argument("--python", default=sys.executable, help="for LAVT")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--samples", type=int, default=480)
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        side, root = args.side
        (lavt if side == "lavt" else ours)(Path(root), side, args)
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), *args.source)
        sides = [("lavt", args.python)] if args.lavt else []
        sides += [("plain", sys.executable), ("cache, filling", sys.executable), ("cache, filled", sys.executable)]
        rates = {}
        for side, python in sides:
            command = [python, __file__, *sys.argv[1:], "--side", side, folder]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "GLOG_v": "3"}
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
            found = json.loads(done.stdout.splitlines()[-1])
            rates[side] = found["rate"]
            ratio = f", {rates[side] / rates['lavt']:.1f} times LAVT's" if "lavt" in rates and side != "lavt" else ""
            print(f"{side:<15} {rates[side]:6.0f} samples/s and core{ratio}; ready after {found['ready']:.1f} s; "
                  f"memory {found['imported']:,.0f} MiB after imports, {found['index']:,.0f} MiB more with the index, "
                  f"{found['running']:,.0f} MiB more with {args.workers} worker{'s' * (args.workers != 1)} running",
                  flush=True)


def write(root: Path, source: str, dataset: str, split_by: str):
    """``<root>/refcoco/refs(unc).p``, ``instances.json``, linked pictures, a vocabulary."""
    from mindspore_coupalign.data.annotations import load_refs, read_json
    from mindspore_coupalign.data.datasets import find_dataset, find_images

    file = find_dataset(Path(source), dataset, split_by)
    refs, instances = load_refs(file), read_json(file.parent / "instances.json")
    sizes = {image["id"]: image for image in instances["images"]}
    masks = {annotation["id"]: annotation for annotation in instances["annotations"]}
    by_image: dict = {}
    for ref in refs:
        by_image.setdefault(ref["image_id"], []).append(ref)
    originals, folder = list(by_image), find_images(Path(source), dataset, "").resolve()
    (root / WHERE).mkdir(parents=True)
    pictures, annotations, found, sentence = [], [], [], 0
    for i in range(IMAGES):
        original = sizes[originals[i % len(originals)]]
        pictures.append({**original, "id": i, "file_name": f"COCO_train2014_{i:012d}.jpg"})
        os.symlink(folder / original["file_name"], root / WHERE / pictures[-1]["file_name"])
    for i in range(REFS):
        image = i % IMAGES
        own = by_image[originals[image % len(originals)]]
        ref = own[i // IMAGES % len(own)]
        count = SENTENCES * (i + 1) // REFS - SENTENCES * i // REFS
        spoken = [{**ref["sentences"][k % len(ref["sentences"])], "sent_id": sentence + k} for k in range(count)]
        sentence += count
        annotations.append({**masks[ref["ann_id"]], "id": i, "image_id": image})
        found.append({**ref, "ref_id": i, "ann_id": i, "image_id": image, "split": "train", "sentences": spoken,
                      "sent_ids": [s["sent_id"] for s in spoken]})
    annotations += [{**annotations[i % REFS], "id": i} for i in range(REFS, ANNOTATIONS)]
    (root / "refcoco").mkdir()
    (root / "refcoco/refs(unc).p").write_bytes(pickle.dumps(found, protocol=2))
    (root / "refcoco/instances.json").write_text(json.dumps({**instances, "images": pictures,
                                                             "annotations": annotations}))
    words = sorted({word for ref in refs for s in ref["sentences"] for word in s["raw"].lower().split()})
    (root / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]) + "\n")


def ours(root: Path, side: str, args: argparse.Namespace):
    from mindspore_coupalign.config import config_from_dict
    from mindspore_coupalign.data.loader import TrainSource, batches
    from mindspore_coupalign.data.sets import open_data, with_cache
    from mindspore_coupalign.data.tokenizer import SentenceTokenizer
    from mindspore_coupalign.data.transforms import ImageTransform

    pin(args.workers)
    imported, started = held(), time.perf_counter()
    cache = "" if side == "plain" else str(root / "cache")
    names = config_from_dict({"data": {"root": str(root), "cache": cache, "sentence_field": "raw"}}, "benchmark").data
    data, tokenizer = with_cache(open_data(names), names), SentenceTokenizer.from_name(str(root), 20)
    source = TrainSource(data, "train", tokenizer, ImageTransform(SIZE, MEAN, STD), 0, BATCH, 0.0,
                         (0, args.samples // BATCH + 2), 0, 1, "raw", "single")
    index, ready = held(), time.perf_counter() - started
    finish(batches(source, BATCH, args.workers), args.samples, imported, index, ready)


def lavt(root: Path, _: str, args: argparse.Namespace):
    """LAVT's ``ReferDataset`` with the transforms of its train.py, in PyTorch's DataLoader."""
    for name in ("h5py", "skimage", "skimage.io", "matplotlib", "matplotlib.pyplot", "matplotlib.collections",
                 "matplotlib.patches"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["matplotlib.collections"].PatchCollection = sys.modules["matplotlib.patches"].Polygon = None
    sys.modules["matplotlib.patches"].Rectangle = None
    sys.argv[1:] = []  # it reads the command line on import
    sys.path.insert(0, args.lavt)
    import torch
    import transforms as T  # LAVT's
    from data.dataset_refer_bert import ReferDataset

    pin(args.workers)
    imported, started = held(), time.perf_counter()
    names = types.SimpleNamespace(refer_data_root=str(root), dataset="refcoco", splitBy="unc",
                                  bert_tokenizer=str(root / "vocab.txt"))
    steps = T.Compose([T.Resize(SIZE, SIZE), T.ToTensor(), T.Normalize(mean=list(MEAN), std=list(STD))])
    data = ReferDataset(names, image_transforms=steps, split="train")
    index, ready = held(), time.perf_counter() - started
    torch.set_num_threads(1)
    loader = torch.utils.data.DataLoader(data, BATCH, shuffle=True, num_workers=args.workers, drop_last=True,
                                         generator=torch.Generator().manual_seed(0))
    finish(iter(loader), args.samples, imported, index, ready)


def finish(stream, samples: int, imported: float, index: float, ready: float):
    """Time batches after a first one; the last line of the output is the result."""
    for _ in range(2):
        next(stream)
    before = processor_time()
    for _ in range(samples // BATCH):
        next(stream)
    seconds, running = processor_time() - before, held()
    print(json.dumps({"rate": samples / seconds, "ready": ready, "imported": imported, "index": index - imported,
                      "running": running - index}), flush=True)
    os._exit(0)  # no waiting for workers that prepare more


def pin(cores: int):
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:cores]))


def processes() -> list[int]:
    """This one and its children."""
    return [os.getpid(), *map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())]


def processor_time() -> float:
    """Seconds of all processes."""
    fields = (Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split() for process in processes())
    return sum(int(field[11]) + int(field[12]) for field in fields) / os.sysconf("SC_CLK_TCK")


def held() -> float:
    """MiB of all processes; what they share is counted once."""
    return sum(int(line.split()[1]) for process in processes()
               for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
               if line.startswith("Pss:")) / 1024


if __name__ == "__main__":
    main()
