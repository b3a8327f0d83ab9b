"""CRIS, ETRIS, DETRIS (https://github.com/DerrickWang005/CRIS.pytorch): ``anns/<set>/<split>.json`` and
``masks/<set>/<ref_id>.png``.

A record: {bbox x1 y1 x2 y2, cat 0..79, segment_id (the ref's id), img_name, sentences [{idx, sent_id, sent}]}. COCO's
annotation and image ids are lost in this form.
"""

from pathlib import Path

from mindspore_coupalign.data.importers.job import Import, encode
from mindspore_coupalign.data.importers.pictures import read_mask
from mindspore_coupalign.data.importers.records import BadRecord, Ref, Target, sentences, take
from mindspore_coupalign.data.importers.sources import files, read_list, split_of
from mindspore_coupalign.errors import UserError


def read_cris(job: Import) -> None:
    folder = _annotations(job)
    masks = job.masks or _masks(folder)
    for path in files(folder, "*.json"):
        for i, record in enumerate(read_list(path, "refs")):
            with job.record(path, "record", i):
                ref_id = take(record, "segment_id", int)
                file = masks / f"{ref_id}.png"
                try:
                    content = file.read_bytes()
                except OSError as exc:
                    raise BadRecord(f"mask {file} cannot be read ({exc.strerror}); name the folder with "
                                    "--masks") from exc
                mask = read_mask(content, f"mask {file}")
                height, width = mask.shape
                job.add(Ref(take(record, "img_name", str), (height, width),
                            [Target(encode(mask), category_id=take(record, "cat", int, 0) + 1)],
                            sentences(record), split_of(path), ref_id), f"mask {file.name}")


def _annotations(job: Import) -> Path:
    """The folder of <split>.json, or the file itself: the source, or anns/<set> below it."""
    source = job.source
    for folder in (source / "anns" / job.dataset, source / job.dataset):
        if folder.is_dir():
            return folder
    found = sorted(path for path in source.glob("anns/*") if path.is_dir()) if source.is_dir() else []
    if len(found) > 1:
        raise UserError(f"{source}: holds {', '.join(path.name for path in found)}; choose one with --dataset")
    return found[0] if found else source


def _masks(annotations: Path) -> Path:
    folder = annotations if annotations.is_dir() else annotations.parent
    usual = folder.parent.parent / "masks" / folder.name
    if not usual.is_dir():
        raise UserError(f"{usual}: no such folder; name the folder of the mask pictures with --masks")
    return usual
