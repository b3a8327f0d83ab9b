"""The file that ``evaluate --details`` writes: JSON Lines, one line per sentence.

split, ref_id, ann_id (a list where the sentence means several objects, null where none), sentence_id, text, image (file
below the image folder), intersection and union in pixels at the image's own size, pieces (word pieces of the sentence),
cut (how many of them the network did not read), exists (whether the network says that the sentence means anything), and
the predicted mask as COCO's compressed RLE, {"size": [h, w],
"counts": text}, which pycocotools reads.
"""

import json
from pathlib import Path

from mindspore_coupalign.data.refer import ReferData
from mindspore_coupalign.distributed.collectives import gather
from mindspore_coupalign.distributed.process import Runtime
from mindspore_coupalign.evaluation.prompts import Plan
from mindspore_coupalign.outputs import write_file


def lines(data: ReferData, split: str, plan: Plan, kept: list, field: str, max_tokens: int) -> list[str]:
    """One rank's lines, in the order of ``kept``, each beginning with its sample's place in the split."""
    place = {unit.sentence: k for k, unit in enumerate(plan.units["sentence"])}
    return [f"{place[row.sample]} " + json.dumps(_record(data, split, row, field, int(plan.lengths[place[row.sample]]),
                                                        max_tokens), ensure_ascii=False)
            for row in kept]


def _record(data: ReferData, split: str, row, field: str, pieces: int, max_tokens: int) -> dict:
    r = int(data.sentence_ref[row.sample])
    objects = data.objects_of(r)
    return {"split": split, "ref_id": data.ref_ids[r].item(),
            "ann_id": objects[0] if len(objects) == 1 else objects or None,
            "sentence_id": data.sentence_ids[row.sample].item(), "text": data.sentence(row.sample, field),
            "image": str(data.image_files[data.ref_image[r]]), "intersection": row.inter, "union": row.union,
            "pieces": pieces, "cut": max(0, pieces - max_tokens), "exists": row.exists,
            "rle": {"size": data.image_sizes[data.ref_image[r]].tolist(), "counts": row.counts.decode()}}


def ordered(own: list[str], runtime: Runtime) -> list[str]:
    """All ranks' lines of a split in the order of its sentences, without their places."""
    every = [line for part in gather("\n".join(own).encode(), runtime) for line in part.decode().split("\n") if line]
    pairs = sorted((int(place), line) for place, _, line in (line.partition(" ") for line in every))
    return [line for _, line in pairs]


def write(path: str | Path, records: list[str]):
    """Whole or not at all. Raises UserError when it cannot be written."""
    write_file(path, "".join(f"{line}\n" for line in records).encode())
