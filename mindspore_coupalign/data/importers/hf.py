"""Hugging Face copies as parquet: annotations alone (``hf-refer``, a row per ref) and with images (``hf-eval``).

``hf-refer``: https://huggingface.co/datasets/jxu124/refcoco; masks are in ``raw_anns``, sizes in ``raw_image_info``
(both JSON as text); its file ``test`` is REFER's testA.
``hf-eval``: https://huggingface.co/datasets/lmms-lab/RefCOCO; it has no train split, and its ``segmentation`` is one
flat list of numbers, so that of an object in several parts only one outline is left.
"""

from pathlib import Path

from mindspore_coupalign.data.importers.import_job import ImportJob, bounds
from mindspore_coupalign.data.importers.records import (
    BadRecord,
    Ref,
    Sentence,
    Target,
    files,
    is_number,
    parse_json,
    polygons,
    sentences,
    size_of,
    split_of,
    take,
    texts,
)
from mindspore_coupalign.errors import UserError, one_line

INSTALL = "pip install 'pyarrow==25.0.1'"  # as pyproject.toml and requirements-test.txt have it


def read_refer_rows(job: ImportJob) -> None:
    if job.dataset in ("refcoco", "refcoco+"):
        job.renamed["test"] = "testA"
    for path, number, row in _rows(job.source, ("sentences", "raw_anns", "raw_image_info")):
        with job.record(path, "row", number):
            annotation, image = _json(row, "raw_anns"), _json(row, "raw_image_info")
            if "ann_id" in row and take(row, "ann_id", int) != take(annotation, "id", int):
                raise BadRecord(f"field 'ann_id' is {row['ann_id']}, but 'raw_anns' is annotation {annotation['id']}")
            job.categories.setdefault(take(row, "category_id", int, 1), f"category {take(row, 'category_id', int, 1)}")
            job.add(Ref(
                image=take(image, "file_name", str), size=size_of(image),
                targets=[Target(take(annotation, "segmentation", (list, dict)), annotation["id"],
                                take(row, "category_id", int, None))],
                sentences=sentences(row), split=take(row, "split", str, "") or split_of(path),
                ref_id=take(row, "ref_id", int, None), image_id=take(row, "image_id", int, None)), "raw_anns")


def read_eval_rows(job: ImportJob) -> None:
    incomplete = 0
    for path, number, row in _rows(job.source, ("answer", "segmentation", "image")):
        with job.record(path, "row", number):
            image = take(row, "image", dict)
            name = take(row, "file_name", str, "") or take(image, "path", str)
            name = job.pictures.keep(name, take(image, "bytes", bytes) if job.pictures.folder is None else b"")
            flat = take(row, "segmentation", (list, dict))
            segmentation = flat if isinstance(flat, dict) else polygons(flat, "segmentation")
            job.add(Ref(name, None, [Target(segmentation)], [Sentence(text) for text in texts(row, "answer")],
                        split_of(path)), "segmentation")
            added = job.refs[-1]
            incomplete += _lacks_parts(added, job.sizes[added.image], row.get("bbox"))
    job.notes["this form has no train split and one outline per object: scores on it do not compare"] = 0
    if incomplete:
        job.notes["outlines that do not fill their box: parts of the object are missing"] = incomplete


def _lacks_parts(ref: Ref, size: tuple[int, int], box) -> bool:
    """Whether the mask's box is smaller than the row's by more than two pixels on a side."""
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        return False
    (x, y, w, h), _ = bounds(ref.rles[0], size)
    return max(x - box[0], y - box[1], box[0] + box[2] - x - w, box[1] + box[3] - y - h) > 2


def _json(row: dict, key: str) -> dict:
    """A field that holds a JSON dict as text (or the dict itself)."""
    value = take(row, key, (str, dict))
    try:
        return parse_json(value) if isinstance(value, str) else value
    except BadRecord as exc:
        raise BadRecord(f"field {key!r} is {exc}") from exc


def _rows(source: Path, wanted: tuple):
    """(file, row number, row as dict) of every row, a batch in memory at a time.

    Raises:
        UserError: no pyarrow, a file that is no parquet, one without the columns wanted.
    """
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as exc:
        raise UserError(f"{source}: reading parquet needs pyarrow ({str(exc)[:80]}): {INSTALL}") from exc
    for path in files(source, "*.parquet"):
        try:
            with parquet.ParquetFile(path) as file:
                absent = [name for name in wanted if name not in file.schema_arrow.names]
                if absent:
                    raise UserError(f"{path}: has no column {', '.join(absent)}; it has "
                                    f"{', '.join(file.schema_arrow.names)}; is this the right --format?")
                rows = (row for batch in file.iter_batches(batch_size=64) for row in batch.to_pylist())
                for number, row in enumerate(rows):
                    yield path, number, row
        except (pyarrow.ArrowException, OSError) as exc:
            raise UserError(f"{path}: not a complete parquet file ({one_line(exc, 100)}); download it "
                            "again") from exc
