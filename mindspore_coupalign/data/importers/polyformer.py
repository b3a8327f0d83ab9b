"""PolyFormer's and OFA's TSV with a line per sentence (https://github.com/amazon-science/polygon-transformer).

Columns: <ref id>_<number>, image id, sentence, box x1,y1,x2,y2, polygons as text, picture as base64 JPEG, mask as
base64 PNG, more polygons. The mask is exact; the polygons are thinned out and are not read.
"""

from mindspore_coupalign.data.importers.job import Import, encode
from mindspore_coupalign.data.importers.pictures import read_mask
from mindspore_coupalign.data.importers.records import BadRecord, Ref, Sentence, Target, shown, whole
from mindspore_coupalign.data.importers.sources import files, from_base64, split_of
from mindspore_coupalign.errors import UserError

_COLUMNS = 7  # that are needed; the eighth is not read


def read_polyformer(job: Import) -> None:
    for path in files(job.source, "*.tsv"):
        split = split_of(path)
        try:
            with path.open(encoding="utf-8") as file:
                for number, line in enumerate(file, 1):
                    with job.record(path, "line", number):
                        _read_line(job, line.rstrip("\n").split("\t"), split)
        except UnicodeDecodeError as exc:
            raise UserError(f"{path}: not UTF-8 text ({exc.reason}); is this the right file?") from exc


def _read_line(job: Import, columns: list[str], split: str):
    if len(columns) < _COLUMNS:
        raise BadRecord(f"has {len(columns)} columns, not {_COLUMNS} or more; is the file truncated?")
    name, image, sentence, _, _, picture, mask = columns[:_COLUMNS]
    owner, _, count = name.rpartition("_")
    if not owner or not count.isdigit():
        raise BadRecord(f"column 1 must be <ref id>_<number>; found {shown(name)}")
    ref_id, image_id = whole(owner, "column 1"), whole(image, "column 2")
    key = (split, ref_id)
    ref = Ref(f"COCO_train2014_{image_id:012d}.jpg", None, [], [Sentence(sentence)], split, ref_id, image_id)
    if job.known(key) is None:
        if job.pictures.folder is None:
            job.pictures.keep(ref.image, from_base64(picture, "column 6, the picture,"))
        pixels = read_mask(from_base64(mask, "column 7, the mask,"), "column 7, the mask,")
        height, width = pixels.shape
        ref.size, ref.targets = (height, width), [Target(encode(pixels))]
    job.add(ref, "mask (column 7)", key)
