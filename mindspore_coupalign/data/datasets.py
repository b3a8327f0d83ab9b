"""The known data sets: where their files are below the root, and their published counts per split.

Counts are (refs, sentences, images), None where not known.
"""

import os
from pathlib import Path, PurePosixPath

from mindspore_coupalign.errors import UserError

KNOWN = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd or google", "refclef": "berkeley or unc",
         "refshapes": "shapes", "refshapes_general": "shapes"}


def find_dataset(root: Path, dataset: str, split_by: str) -> Path:
    """``<root>/<dataset>/refs(<split_by>).p``, or ``.json`` where that alone is there; that the file exists is left to
    its reader.

    Raises:
        UserError: the root or the data set's folder is missing, or holds data of another form; says what is there.
    """
    folder = root / dataset
    if folder.is_dir() and dataset:
        pickled, json = folder / f"refs({split_by}).p", folder / f"refs({split_by}).json"
        if json.exists() and not pickled.exists():
            return json
        form = "" if pickled.exists() or _holds_refs(folder) else guess_format(folder)
        if form:
            raise UserError(f"{folder}: holds no refs({split_by}).p, but data of another form; bring it into REFER's "
                            f"layout with `import-data --format {form} {folder} --images IMAGES --output ROOT`")
        return pickled
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; data.root must hold <dataset>/refs(*).p and the images")
    if _holds_refs(root):
        raise UserError(f"{root}: this is a data set's own folder; give its parent as data.root and {root.name!r} "
                        "as data.dataset")
    here = sorted(path.name for path in root.iterdir() if path.is_dir() and _holds_refs(path))
    if split_by in here:
        raise UserError(f"{folder}: no such folder, but {root / split_by} exists: are data.dataset and data.split_by "
                        "swapped?")
    if form := "" if here else guess_format(root):
        raise UserError(f"{folder}: no such data set; {root} holds data of another form; bring it into REFER's layout "
                        f"with `import-data --format {form} {root} --images IMAGES --output ROOT`")
    known = ", ".join(f"{name} (split by {by})" for name, by in KNOWN.items())
    raise UserError(f"{folder}: no such data set; {root} holds {', '.join(here) or 'none'}; known are {known}")


def _holds_refs(folder: Path) -> bool:
    return not folder.name.startswith(".") and any(any(folder.glob(f"refs(*).{kind}")) for kind in ("p", "json"))


def image_places(root: Path, dataset: str) -> list[Path]:
    """Where a data set's images usually lie below root, the most usual place first."""
    if dataset.startswith("refcoco"):
        return [root / "images/train2014", root / "images/mscoco/images/train2014", root / "train2014"]
    if dataset.startswith("grefcoco"):
        return [root / "images" / dataset, *image_places(root, "refcoco")]
    if dataset.startswith("refclef"):
        return [root / "images/saiapr_tc-12", root / "saiapr_tc-12"]
    return [root / "images" / dataset, root / "images"]


def find_images(root: Path, dataset: str, images: str) -> Path:
    """The image folder: ``images`` if given (relative to the current folder or to root), else the usual places.

    Raises:
        UserError: there is none; names every folder tried.
    """
    tried = dict.fromkeys([Path(images), root / images]) if images else image_places(root, dataset)
    for folder in tried:
        if folder.is_dir():
            return folder
    raise UserError(f"no image folder for {dataset}: tried {', '.join(map(str, tried))}; name it in data.images")


def elsewhere(image_dir: Path, name: str) -> str:
    """Where an image lies that is not at ``image_dir / name``, with the remedy: the end of an error message."""
    folders = [image_dir.parent, image_dir.parent.parent, *_subfolders(image_dir)]
    found = [folder for folder in folders if os.path.isfile(folder / name)]
    if len(found) == 1:
        return f", but {found[0] / name} exists; give {found[0]} as data.images (check-data: --images)"
    if found:
        return f"; {len(found)} other folders hold one ({', '.join(map(str, found[:3]))}); name one in data.images"
    bare = PurePosixPath(name).name
    if bare != name and os.path.isfile(image_dir / bare):
        return (f", but {image_dir / bare} exists; instances.json puts its images into a folder "
                f"{PurePosixPath(name).parent}: move them there, or take it out of its file_name fields")
    return "; check the image folder, or name another in data.images (check-data: --images)"


def _subfolders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return sorted(folder / entry.name for entry in entries if entry.is_dir())
    except OSError:
        return []


HEADS = ("refs", "sentences", "images")
# Refs, sentences, images per split, None where not known. RefCOCO's val, testA and testB were counted on the real
# files; the others are quoted from the literature: PhraseCut's from its README, RRSIS-D's from RMSIN (CVPR 2024).
Counts = dict[str, tuple[int | None, int | None, int | None]]  # by split
PUBLISHED: dict[tuple[str, str], Counts] = {
    ("refcoco", "unc"): {"train": (42404, 120624, 16994), "val": (3811, 10834, 1500), "testA": (1975, 5657, 750),
                         "testB": (1810, 5095, 750)},
    ("refcoco+", "unc"): {"train": (42278, 120191, 16992), "val": (3805, 10758, 1500), "testA": (1975, 5726, 750),
                          "testB": (1798, 4889, 750)},
    ("refcocog", "umd"): {"train": (42226, 80512, 21899), "val": (2573, 4896, 1300), "test": (5023, 9602, 2600)},
    ("refcocog", "google"): {"train": (None, 85474, None), "val": (None, 9536, None)},
    ("refclef", "berkeley"): {"train": (None, 54127, None), "val": (None, 5842, None), "test": (None, 60103, None)},
    ("phrasecut", "vg"): {"train": (308893, 308893, 71354), "val": (20350, 20350, 2971), "test": (18980, 18980, 2937)},
    ("rrsisd", "unc"): {"train": (12181, 12181, None), "val": (1740, 1740, None), "test": (3481, 3481, None)},
}


def count_table(counts: dict[str, tuple], published: Counts, notes: dict[str, str] | None = None) -> str:
    """A line per split, of either: its counts, the published ones beside them where there are any, and a note.

    Args:
        counts: a split that is missing has none of anything.
        notes: by split, written at the line's end.
    """
    rows = [("split", *(cell for head in HEADS for cell in ((head, "published") if published else (head,))), "")]
    for split in dict.fromkeys([*published, *counts]):
        cells = [split]
        for n, known in zip(counts.get(split, (0, 0, 0)), published.get(split, (None,) * 3), strict=True):
            cells += [f"{n:,}", "-" if known is None else f"{known:,}"] if published else [f"{n:,}"]
        rows.append((*cells, (notes or {}).get(split, "")))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([first.ljust(widths[0]), *map(str.rjust, cells, widths[1:]), note]).rstrip()
             for first, *cells, note in rows]
    if not published:
        lines.append("No published counts are known for this data set and this way to split it.")
    return "\n".join(lines)


_PATTERNS = (  # one of these files, and the form
    ("grefs(*).*", "grefcoco"), ("*.parquet", "hf-refer"), ("data/*.parquet", "hf-refer"),
    ("finetune_*.json", "mdetr"), ("refer_*.json", "phrasecut"), ("instances_*.json", "uninext"),
    ("*.tsv", "polyformer"), ("anns/*", "cris"), ("*.jsonl", "jsonl"),
)
_START = 1 << 16  # bytes


def guess_format(folder: Path) -> str:
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
