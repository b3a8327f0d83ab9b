"""Counts per split that the literature states, and the table that puts a data set's own beside them.

Counts are (refs, sentences, images), None where not known.
"""

HEADS = ("refs", "sentences", "images")
# Refs, sentences, images per split, None where not known. RefCOCO's val, testA and testB were counted on the real
# files; the others are quoted from the literature.
Counts = dict[str, tuple[int | None, int | None, int | None]]  # by split
PUBLISHED: dict[tuple[str, str], Counts] = {
    ("refcoco", "unc"): {"train": (42404, 120624, 16994), "val": (3811, 10834, 1500), "testA": (1975, 5657, 750),
                         "testB": (1810, 5095, 750)},
    ("refcoco+", "unc"): {"train": (42278, 120191, 16992), "val": (3805, 10758, 1500), "testA": (1975, 5726, 750),
                          "testB": (1798, 4889, 750)},
    ("refcocog", "umd"): {"train": (42226, 80512, 21899), "val": (2573, 4896, 1300), "test": (5023, 9602, 2600)},
    ("refcocog", "google"): {"train": (None, 85474, None), "val": (None, 9536, None)},
    ("refclef", "berkeley"): {"train": (None, 54127, None), "val": (None, 5842, None), "test": (None, 60103, None)},
}
# Refs, sentences and images per split of sets that check-data does not know, None where not known: PhraseCut's own
# README, and the paper of RRSIS-D (RMSIN, CVPR 2024).
MORE_PUBLISHED: dict[tuple[str, str], Counts] = {
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
