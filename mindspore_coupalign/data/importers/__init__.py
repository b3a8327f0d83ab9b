"""Other projects' forms of referring-segmentation data -> REFER's layout, for ``import-data``.

    importer (one function per form)  --Ref-->  Import.add (checks, pictures)  -->  writer.write_layout

An importer reads its files, and inside ``with job.record(...)`` turns each record into a ``records.Ref`` for
``job.add``. What it cannot place it raises as ``records.BadRecord``; ``job.record`` counts it under the record's name
and goes on.
"""

import importlib

# name: (module, function, what it is)
FORMATS = {
    "hf-refer": ("hf", "read_refer_rows", "Hugging Face parquet of annotations, a row per ref (jxu124/refcoco)"),
    "hf-eval": ("hf", "read_eval_rows", "Hugging Face parquet with the pictures inside (lmms-lab/RefCOCO)"),
    "seqtr": ("seqtr", "read_seqtr", "SeqTR's instances.json: split -> records with expressions and mask"),
    "uninext": ("seqtr", "read_uninext", "UNINEXT's instances_<split>.json: COCO with expressions on the images"),
    "mdetr": ("mdetr", "read_mdetr", "MDETR's finetune_<set>_<split>.json; masks from --instances"),
    "cris": ("cris", "read_cris", "CRIS, ETRIS, DETRIS: anns/<set>/<split>.json and masks/<set>/<ref>.png"),
    "grefcoco": ("refer_like", "read_grefcoco", "gRefCOCO's grefs(unc).json and instances.json"),
    "phrasecut": ("phrasecut", "read_phrasecut", "PhraseCut's refer_<split>.json"),
    "rrsis-d": ("refer_like", "read_rrsisd", "RRSIS-D: REFER's two files"),
    "polyformer": ("polyformer", "read_polyformer", "PolyFormer's and OFA's TSV with pictures and masks inside"),
    "labelme": ("labelme", "read_labelme", "labelme and ReasonSeg: a JSON file per picture"),
    "coco": ("coco", "read_coco", "COCO JSON whose annotations carry a sentence"),
    "jsonl": ("own", "read_jsonl", "your own data: a line of JSON per sentence"),
}


def importer(name: str):
    """The function that reads a form: ``read(job: Import) -> None``."""
    module, function, _ = FORMATS[name]
    return getattr(importlib.import_module(f"{__name__}.{module}"), function)
