"""What make-shapes wrote, as plain values."""

import hashlib
import json
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from pycocotools import mask as coco_mask

FEW = {"train": 55, "val": 2, "testA": 2, "testB": 2}  # two chunks of train
HELD_OUT = {("red", "circle"), ("green", "square"), ("blue", "triangle"), ("yellow", "star"), ("purple", "cross"),
            ("white", "circle")}


def load(folder: Path, name: str = "refshapes") -> SimpleNamespace:
    """The files as they are: ``sentences`` of (split, ref, sentence), ``scenes`` image id -> its annotations."""
    refs = pickle.loads((folder / name / "refs(shapes).p").read_bytes())
    instances = json.loads((folder / name / "instances.json").read_text())
    scenes = {image["id"]: [] for image in instances["images"]}
    for annotation in instances["annotations"]:
        scenes[annotation["image_id"]].append(annotation)
    return SimpleNamespace(
        folder=folder, refs=refs, scenes=scenes, annotations={a["id"]: a for a in instances["annotations"]},
        images={image["id"]: image for image in instances["images"]},
        names={category["id"]: category["name"] for category in instances["categories"]},
        sentences=[(ref["split"], ref, sentence) for ref in refs for sentence in ref["sentences"]],
        references=json.loads((folder / name / "references.json").read_text()))


def digest(folder: Path) -> dict:
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file()}


def mask_of(annotation) -> np.ndarray:
    return coco_mask.decode(coco_mask.frPyObjects(annotation["segmentation"], 64, 64))[..., 0].astype(bool)
