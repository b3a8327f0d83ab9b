"""Other formats of referring-segmentation data -> REFER's layout, for ``import-data``.

    importer (one function per format)  --Ref-->  ImportJob.add (checks, images)  -->  import_job.write_layout

An importer reads its files, and inside ``with job.record(...)`` turns each record into a ``records.Ref`` for
``job.add``. A record that it cannot convert raises ``records.BadRecord``, which ``job.record`` counts under the
record's name.
"""

from collections.abc import Callable
from functools import partial

from mindspore_coupalign.data.importers import hf, own, published

FORMATS: dict[str, tuple[Callable, str]] = {  # name: (function, what it is)
    "hf-refer": (hf.read_refer_rows, "Hugging Face parquet of annotations, a row per ref (jxu124/refcoco)"),
    "hf-eval": (hf.read_eval_rows, "Hugging Face parquet with the images inside (lmms-lab/RefCOCO)"),
    "seqtr": (published.read_seqtr, "SeqTR's instances.json: split -> records with expressions and mask"),
    "uninext": (published.read_uninext, "UNINEXT's instances_<split>.json: COCO with expressions on images"),
    "mdetr": (published.read_mdetr, "MDETR's finetune_<set>_<split>.json; masks from --instances"),
    "cris": (published.read_cris, "CRIS, ETRIS, DETRIS: anns/<set>/<split>.json and masks/<set>/<ref>.png"),
    "grefcoco": (partial(published.read_refer_files, pattern="grefs(*).*", several=True),
                 "gRefCOCO's grefs(unc).json and instances.json"),
    "phrasecut": (published.read_phrasecut, "PhraseCut's refer_<split>.json"),
    "rrsis-d": (partial(published.read_refer_files, pattern="refs(*).*", several=False),
                "RRSIS-D: REFER's two files"),
    "polyformer": (published.read_polyformer, "PolyFormer's and OFA's TSV with images and masks inside"),
    "labelme": (own.read_labelme, "labelme and ReasonSeg: a JSON file per image"),
    "coco": (own.read_coco, "COCO JSON whose annotations carry a sentence"),
    "jsonl": (own.read_jsonl, "your own data: a line of JSON per sentence"),
}
