"""Which pictures a checkpoint was trained on: ``progress["seen_images"]``, the hashes of data/leaks.py as text."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mindspore_coupalign.data.leaks import hashes_from_text, hashes_to_text, picture_hashes
from mindspore_coupalign.data.refer import ReferData
from mindspore_coupalign.data.union import picture_paths

KEY = "seen_images"  # in a checkpoint's progress


def seen_with(paths: Iterable[Path], progress: dict | None = None, source: str = "") -> str:
    """The text for a checkpoint that was trained on these pictures.

    Args:
        progress, source: of the checkpoint that the training started from, whose pictures it has seen too.

    Raises:
        UserError: that checkpoint's own text is damaged.
    """
    hashes = picture_hashes(paths)
    if before := (progress or {}).get(KEY):
        hashes = np.union1d(hashes, hashes_from_text(before, source))
    return hashes_to_text(hashes)


def seen_images(progress: dict, source: str, data: ReferData, splits: Iterable[str]) -> dict | None:
    """Of each split, {"seen": its pictures that a checkpoint was trained on, "images": all}; None where the checkpoint,
    of an earlier version, does not know.

    Raises:
        UserError: a damaged text, or no such split.
    """
    if KEY not in progress:
        return None
    trained, found = set(hashes_from_text(progress[KEY], source).tolist()), {}
    for split in splits:
        own = [picture_hashes([path]).tolist() for path in picture_paths(data, split)]
        found[split] = {"seen": sum(not trained.isdisjoint(hashes) for hashes in own), "images": len(own)}
    return found


def warnings_of(seen: dict | None) -> list[str]:
    """A line for each split of which the checkpoint has seen a picture."""
    return [f"warning: {split}: the checkpoint was trained on {counts['seen']:,} of this split's {counts['images']:,} "
            "pictures; its scores say little about pictures that it has not seen"
            for split, counts in (seen or {}).items() if counts["seen"]]
