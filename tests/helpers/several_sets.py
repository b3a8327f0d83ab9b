"""Three small data sets that share images, and configurations that name them."""

import cv2
from refer_files import refs_and_instances, write_refer

from mindspore_coupalign.config import config_from_dict
from mindspore_coupalign.data.sets import open_data, open_union


def write_set(root, name, splits, pictures, change=None):
    """A data set as refer_files', its refs in these splits (6), its images under these names (4) and of their own
    content; image 0 has refs 0 and 1, image 2 refs 3 and 4."""
    refs, instances = refs_and_instances()
    for ref, split in zip(refs, splits, strict=True):
        ref["split"] = split
    old = [image["file_name"] for image in instances["images"]]
    for image, file in zip(instances["images"], pictures, strict=True):
        image["file_name"] = file
    if change:
        change(refs, instances)
    write_refer(root, refs, instances, dataset=name)
    for k, (before, file) in enumerate(zip(old, pictures, strict=True)):
        path = root / "images" / name / before
        pixels = cv2.imread(str(path))
        path.unlink()
        pixels[k, : len(name)] = (7 * sum(map(ord, name))) % 250
        assert cv2.imwrite(str(root / "images" / name / file), pixels)


def coco(*numbers):
    return [f"COCO_train2014_{n:012d}.jpg" for n in numbers]


def write_sets(folder):
    """a and b share COCO's images 3 (b's train, a's val) and 12 (a's train, b's testA); own has none of COCO's."""
    write_set(folder, "a", ["train", "train", "train", "val", "val", "testA"], coco(1, 12, 3, 4))
    write_set(folder, "b", ["train", "train", "train", "train", "train", "testA"],
              ["COCO_train2014_000000000011.jpg", "COCO_train2014_000000000013.jpg", "000000000003.jpg",
               "000000000012.jpg"])
    write_set(folder, "own", ["train"] * 6, ["x.png", "y.png", "z.png", "w.png"])
    return folder


def config_of(root, *sets, **data):
    values = {"data": {"root": str(root), "dataset": "a", "split_by": "unc",
                       "sets": [{"dataset": s, "split_by": "unc"} if isinstance(s, str) else s for s in sets]} | data}
    return config_from_dict(values, "test").data


def union_of(root, *sets, **data):
    names = config_of(root, *sets, **data)
    return open_union(names, open_data(names))


def own(**more):
    return {"dataset": "own", "split_by": "unc", **more}
