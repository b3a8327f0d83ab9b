"""Where a data set's files lie below its root, and helpful words when they do not."""

import os
from pathlib import Path, PurePosixPath

from mindspore_coupalign.data.importers.recognise import foreign_form
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
        form = "" if pickled.exists() or _holds_refs(folder) else foreign_form(folder)
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
    if form := "" if here else foreign_form(root):
        raise UserError(f"{folder}: no such data set; {root} holds data of another form; bring it into REFER's layout "
                        f"with `import-data --format {form} {root} --images IMAGES --output ROOT`")
    known = ", ".join(f"{name} (split by {by})" for name, by in KNOWN.items())
    raise UserError(f"{folder}: no such data set; {root} holds {', '.join(here) or 'none'}; known are {known}")


def _holds_refs(folder: Path) -> bool:
    return not folder.name.startswith(".") and any(any(folder.glob(f"refs(*).{kind}")) for kind in ("p", "json"))


def image_places(root: Path, dataset: str) -> list[Path]:
    """Where a data set's pictures usually lie below root, the most usual place first."""
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
    if images:
        tried = [Path(images)] if Path(images).is_absolute() else [Path(images), root / images]
    else:
        tried = image_places(root, dataset)
    for folder in tried:
        if folder.is_dir():
            return folder
    raise UserError(f"no image folder for {dataset}: tried {', '.join(map(str, tried))}; name it in data.images")


def elsewhere(image_dir: Path, name: str) -> str:
    """Where a picture lies that is not at ``image_dir / name``, with the remedy: the end of an error message."""
    folders = [image_dir.parent, image_dir.parent.parent, *_subfolders(image_dir)]
    found = [folder for folder in folders if os.path.isfile(folder / name)]
    if len(found) == 1:
        return f", but {found[0] / name} exists; give {found[0]} as data.images (check-data: --images)"
    if found:
        return f"; {len(found)} other folders hold one ({', '.join(map(str, found[:3]))}); name one in data.images"
    bare = PurePosixPath(name).name
    if bare != name and os.path.isfile(image_dir / bare):
        return (f", but {image_dir / bare} exists; instances.json puts its pictures into a folder "
                f"{PurePosixPath(name).parent}: move them there, or take it out of its file_name fields")
    return "; check the image folder, or name another in data.images (check-data: --images)"


def _subfolders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return sorted(folder / entry.name for entry in entries if entry.is_dir())
    except OSError:
        return []
