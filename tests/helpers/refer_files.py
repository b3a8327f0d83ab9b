"""A tiny data set in REFER's layout for tests: 4 images of 40 × 60 pixels, 6 refs, 11 sentences, three splits.

``write_refer(root)`` writes files that are right; its arguments change the two annotation files to make them wrong.
"""

import json
import os
import pickle
from pathlib import Path

import cv2
import numpy as np

HEIGHT, WIDTH = 40, 60
SQUARE = [10.0, 5.0, 30.0, 5.0, 30.0, 25.0, 10.0, 25.0]  # x 10-30, y 5-25
TRIANGLE = [40.0, 10.0, 55.0, 35.0, 35.0, 35.0]
OUTSIDE = [200.0, 200.0, 260.0, 200.0, 260.0, 240.0]
SPLITS = {"train": 6, "val": 3, "testA": 2}  # sentences per split
VOCABULARY = "[PAD] [UNK] [CLS] [SEP] [MASK] the left right big red square tri ##angle of image number".split()


def box_mask() -> np.ndarray:
    """(HEIGHT, WIDTH) uint8 with a box at rows 20-30, columns 3-9: the mask of the RLE annotations."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[20:30, 3:9] = 1
    return mask


def plain_rle(mask: np.ndarray) -> dict:
    """Uncompressed COCO RLE, column by column, written out by hand."""
    flat = np.concatenate([[0], mask.ravel(order="F"), [0]])
    edges = np.flatnonzero(np.diff(flat))
    counts = np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()
    return {"size": list(mask.shape), "counts": counts}


def segmentations() -> list:
    """A polygon, two polygons, a plain RLE, a compressed one, a list of two, a polygon that reaches outside."""
    from pycocotools import mask as coco

    packed = coco.encode(np.asfortranarray(box_mask()))
    packed = {"size": packed["size"], "counts": packed["counts"].decode()}
    rest = coco.encode(np.asfortranarray(box_mask()[:, ::-1]))
    rest = {"size": rest["size"], "counts": rest["counts"].decode()}
    reaching = [50.0, 30.0, 90.0, 30.0, 90.0, 70.0, 50.0, 70.0]
    return [[SQUARE], [SQUARE, TRIANGLE], plain_rle(box_mask()), packed, [packed, rest], [reaching]]


def refs_and_instances() -> tuple[list, dict]:
    """The contents of the two annotation files; a test may change them before ``write_refer`` writes them."""
    images = [{"id": 100 + i, "file_name": f"im{i}.{'png' if i == 3 else 'jpg'}", "height": HEIGHT, "width": WIDTH}
              for i in range(4)]
    of_image = [0, 0, 1, 2, 2, 3]
    annotations = [{"id": 7000 + a, "image_id": 100 + of_image[a], "segmentation": segmentation}
                   for a, segmentation in enumerate(segmentations())]
    splits, sentences = ["train", "train", "train", "val", "val", "testA"], [3, 2, 1, 2, 1, 2]
    refs, sent_id = [], 0
    for r in range(6):
        texts = [f"the red square left of image number {r} {k}" for k in range(sentences[r])]
        refs.append({
            "ref_id": 500 + r, "ann_id": 7000 + r, "image_id": 100 + of_image[r], "split": splits[r], "category_id": 1,
            "file_name": f"im{of_image[r]}_{r}.jpg",  # as in REFER, not the image's file
            "sent_ids": list(range(sent_id, sent_id + len(texts))),
            "sentences": [{"sent_id": sent_id + k, "sent": text, "raw": text.upper(), "tokens": text.split()}
                          for k, text in enumerate(texts)]})
        sent_id += len(texts)
    return refs, {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "shape"}]}


def write_refer(root: Path, refs: list | None = None, instances: dict | None = None, dataset: str = "tiny",
                split_by: str = "unc") -> Path:
    """Write images/<dataset>/ and <dataset>/ with refs(<split_by>).p (protocol 2) and instances.json; returns root."""
    first, second = refs_and_instances()
    folder, images = root / dataset, root / "images" / dataset
    folder.mkdir(parents=True, exist_ok=True)
    images.mkdir(parents=True, exist_ok=True)
    (folder / f"refs({split_by}).p").write_bytes(pickle.dumps(first if refs is None else refs, protocol=2))
    (folder / "instances.json").write_text(json.dumps(second if instances is None else instances))
    for i, record in enumerate(second["images"]):
        picture = np.full((HEIGHT, WIDTH, 3), 40 * i, np.uint8)
        picture[5:25, 10:30] = (0, 0, 250)  # BGR: red
        assert cv2.imwrite(str(images / record["file_name"]), picture)
    return root


def with_exif(jpeg: bytes, orientation: int) -> bytes:
    """A JPEG file's content with an EXIF segment of one entry: tag 0x0112, orientation."""
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01" + orientation.to_bytes(2, "big") + bytes(6)
    return jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:]


def write_vocabulary(folder: Path) -> Path:
    """A BERT folder with nothing but vocab.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    return folder


def refcoco_mini() -> Path | None:
    """The folder with real RefCOCO samples, or None where there is none."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data" / "refcoco_mini"
    folder = Path(os.environ.get("COUPALIGN_REFCOCO_MINI", beside))
    return folder if (folder / "refcoco").is_dir() else None


def cut_at(jpeg: bytes, share: float) -> bytes:
    """A JPEG whose compressed pixels end after a share of them, with an end marker all the same."""
    scan = jpeg.rindex(b"\xff\xda")
    return jpeg[:scan + 14 + int((len(jpeg) - scan - 16) * share)] + b"\xff\xd9"
