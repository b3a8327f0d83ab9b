"""Which form of data a folder holds, by its files' names, for the error message of a reader that wanted REFER's."""

from pathlib import Path

_PATTERNS = (  # one of these files, and the form
    ("grefs(*).*", "grefcoco"), ("*.parquet", "hf-refer"), ("data/*.parquet", "hf-refer"),
    ("finetune_*.json", "mdetr"), ("refer_*.json", "phrasecut"), ("instances_*.json", "uninext"),
    ("*.tsv", "polyformer"), ("anns/*", "cris"), ("*.jsonl", "jsonl"),
)
_START = 1 << 16  # bytes


def foreign_form(folder: Path) -> str:
    """The --format of import-data that reads the folder, empty where none is recognised."""
    if not folder.is_dir():
        return ""
    found = next((form for pattern, form in _PATTERNS if any(folder.glob(pattern))), "")
    instances = folder / "instances.json"
    if not found and instances.is_file():
        with instances.open("rb") as file:
            start = file.read(_START)
        return "seqtr" if b'"expressions"' in start else ""
    return found
